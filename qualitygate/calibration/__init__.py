"""From scores and predictions to the line: which methods to trust, where they cut, and what that buys."""
