"""Tests of `fedmpi.models`."""
