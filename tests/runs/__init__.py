"""Tests of `fedmpi.runs`."""
