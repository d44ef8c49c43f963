"""Tests of `fedmpi.networks`."""
