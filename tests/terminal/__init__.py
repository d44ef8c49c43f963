"""Tests of `fedmpi.terminal`."""
