"""The tests: `python -m tests` runs them all; the modules mirror the package."""

from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import pytest

KEPT = "FEDMPI_TESTS_KEPT"
"""Names the folder where what one rank makes lies, for those who compare more ranks with it."""
PATIENCE = 600
"""Seconds after which what has not ended is taken to hang. Nothing is expected to be faster."""
linux = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc here")
"""The mark of a test that looks at a process from outside, as only Linux lets it."""


def until(done: Callable[[], object], patience: float = PATIENCE, nap: float = 0.001) -> bool:
    """Waits for something that is bound to happen, for however long it takes on a slow machine.

    Args:
        done: whether it has happened.
        patience: seconds after which it is taken not to happen any more.
        nap: seconds between looks.

    Returns:
        Whether it has.
    """
    limit = monotonic() + patience
    while not (happened := bool(done())) and monotonic() < limit:
        sleep(nap)
    return happened
