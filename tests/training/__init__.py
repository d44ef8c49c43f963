"""Tests of `fedmpi.training`."""
