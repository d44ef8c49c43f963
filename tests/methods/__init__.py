"""Tests of `fedmpi.methods`."""
