"""Memory of the process: what vectors give back stays at hand for the next ones."""

import ctypes
import resource
import sys
from contextlib import suppress

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Parameters of glibc's `mallopt`, from its malloc.h."""


def keep_freed_memory() -> None:
    """From now on freed memory is not returned to the system.

    By default glibc maps each large block anew, and the kernel fills it with zeros page by page as
    it is touched: for a vector of ten million float32 that takes eight times as long as the
    subtraction whose result it holds. Without glibc this does nothing.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)


def peak() -> int:
    """Bytes that this process has held in memory at most, so far (resident, shared ones too)."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else 1024 * found
