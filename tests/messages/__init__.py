"""Tests of `fedmpi.messages`."""
