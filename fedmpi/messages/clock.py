"""Seconds by phase, for one rank and one round."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from time import perf_counter

import numpy as np


class Phase(IntEnum):
    """Phases of a rank's time. The last three are off the clock: not part of a round's seconds."""

    WAIT = 0
    """Waiting for slower ranks, at the barrier before a collective."""
    TRANSFER = 1
    """Inside a collective that carries messages."""
    PACK = 2
    """Packing vectors into bytes, and unpacking."""
    TRAIN = 3
    """Local steps of the clients."""
    SERVE = 4
    """The server's work: absorbing updates, on whichever rank; training the back of a split
    network."""
    EVALUATE = 5
    """Off the clock: evaluation, and waiting for ranks that still evaluate."""
    RECORD = 6
    """Off the clock: reports and results."""
    SAVE = 7
    """Off the clock: the checkpoint before the round."""


OFF = (Phase.EVALUATE, Phase.RECORD, Phase.SAVE)


class Clock:
    """Adds up seconds by phase; the time of a nested phase is not counted in the outer one."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Sets all phases to zero, at the beginning of a round."""
        self.seconds = np.zeros(len(Phase))
        self.inside = 0.0
        self.began = perf_counter()

    def credit(self, phase: Phase, seconds: float) -> None:
        """Charges seconds before the beginning of the round to it, which then began earlier."""
        self.seconds[phase] += seconds
        self.began -= seconds

    @contextmanager
    def __call__(self, phase: Phase) -> Iterator[None]:
        """Charges the time in the `with` block to `phase`."""
        start, outside, self.inside = perf_counter(), self.inside, 0.0
        try:
            yield
        finally:
            taken = perf_counter() - start
            self.seconds[phase] += taken - self.inside
            self.inside = outside + taken

    def elapsed(self) -> float:
        """Returns the seconds since the round began, without the phases off the clock."""
        return perf_counter() - self.began - float(self.seconds[list(OFF)].sum())
