"""The tests: `python -m tests` runs them all; the modules mirror the package."""
