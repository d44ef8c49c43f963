"""Seconds by phase, for one rank and one round."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from time import perf_counter

import numpy as np


class Phase(IntEnum):
    """Where a rank's time goes. The last two are off the clock: no part of a round's seconds."""

    WAIT = 0
    """At the barrier before a collective: for slower ranks."""
    TRANSFER = 1
    """Inside a collective that carries messages."""
    PACK = 2
    """Vectors to bytes and back."""
    TRAIN = 3
    """Local steps of the clients."""
    SERVE = 4
    """The server's part: absorbing updates, training the back of a split network."""
    EVALUATE = 5
    """Off the clock: accuracies, and waiting for those who still measure theirs."""
    RECORD = 6
    """Off the clock: reports and results."""


OFF = (Phase.EVALUATE, Phase.RECORD)


class Clock:
    """Adds up seconds by phase; a phase inside of another takes its time from that one."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begins a round."""
        self.seconds = np.zeros(len(Phase))
        self.inside = 0.0
        self.began = perf_counter()

    @contextmanager
    def __call__(self, phase: Phase) -> Iterator[None]:
        """Charges the time inside to `phase`."""
        start, outside, self.inside = perf_counter(), self.inside, 0.0
        try:
            yield
        finally:
            taken = perf_counter() - start
            self.seconds[phase] += taken - self.inside
            self.inside = outside + taken

    def elapsed(self) -> float:
        """Seconds since the round began, less what was off the clock."""
        return perf_counter() - self.began - float(self.seconds[list(OFF)].sum())
