"""`python -m qualitygate`: the command line where its script isn't on the path."""

from qualitygate.cli import run

if __name__ == "__main__":
    run()
