"""Tests of `fedmpi.clients`."""
