"""Tests of `fedmpi.exchanges`."""
