"""Suites that mirror no folder of the package."""
