"""Tests of `fedmpi.partitions`."""
