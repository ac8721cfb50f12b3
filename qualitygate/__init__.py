"""qualitygate: which photographs are good enough to classify, and where exactly is the line?"""

__version__ = "0.1.0"
