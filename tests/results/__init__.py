"""Tests of `fedmpi.results`."""
