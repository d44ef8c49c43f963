"""Tests of `fedmpi.data`."""
