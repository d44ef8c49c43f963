"""Errors that the caller can fix. Any other exception is a defect, and ends in a traceback."""


class BadInput(ValueError):
    """Settings, files or data that cannot be used; the command line ends with exit code 2."""
