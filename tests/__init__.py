"""The tests: `python -m tests` runs them all; the modules mirror the package."""

KEPT = "FEDMPI_TESTS_KEPT"
"""Names the folder where what one rank makes lies, for those who compare more ranks with it."""
