"""Tests of the loops that run as machine code."""
