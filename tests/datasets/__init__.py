"""Tests of `fedmpi.datasets`."""
