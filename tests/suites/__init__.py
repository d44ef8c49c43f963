"""Promises that hold for every method, file or number of ranks, and so mirror no module."""
