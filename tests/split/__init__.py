"""Tests of `fedmpi.split`."""
