"""Tests of `fedmpi.bench`."""
