"""When a run is kept: checkpoints between rounds, and the end after a signal.

The root decides. It says so instead of the next round's broadcast, which then has no message, so
that ranks need no further collective in rounds that have none. A signal that another rank got is
known on the root by that rank's report of the round.
"""

from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from time import monotonic

import numpy as np

from fedmpi.config import Settings
from fedmpi.messages.clock import Phase
from fedmpi.messages.wire import Wire
from fedmpi.results import checkpoint
from fedmpi.results.checkpoint import Manifest, State

WRITTEN = np.dtype([("size", "i8"), ("sha256", "u1", 32)])
"""What a rank says of its file."""


class Word(IntEnum):
    """What comes instead of a round."""

    ROUND = 0
    """Nothing: the round comes."""
    END = 1
    """The end of the run: nothing is left to do."""
    KEEP = 2
    """A checkpoint, and then the round."""
    STOP = 3
    """A checkpoint, and the end of the job: a signal came."""


class Keeper:
    """Decides on the root when a run is kept, and writes this rank's part of it.

    Args:
        settings: those of checkpoints count.
        path: the result; None if nothing is written.
        about: whose checkpoints they are; its sizes and hashes are filled in.
        is_signalled: whether a signal asked this process to end.
        sync: makes the root's result safe on the disk, before a checkpoint counts on it.

    Attributes:
        count: checkpoints that were written.
        bytes: of all ranks' files together; on the root.
    """

    def __init__(
        self,
        settings: Settings,
        path: Path | None = None,
        about: Manifest | None = None,
        is_signalled: Callable[[], bool] = lambda: False,
        sync: Callable[[], None] = lambda: None,
    ) -> None:
        self.chosen, self.path, self.about = settings.checkpoint, path, about
        self.is_signalled, self.sync = is_signalled, sync
        self.count, self.bytes, self.last, self.began = 0, 0, 0, monotonic()
        self.is_asked = False

    def begin(self, t: int) -> None:
        """The rounds begin with round t, before which nothing new is to be kept."""
        self.last, self.began = t, monotonic()

    def hear(self, signals: np.ndarray) -> None:
        """The root hears which ranks were signalled in a round."""
        self.is_asked = self.is_asked or bool(signals.any())

    def word(self, t: int) -> Word:
        """What comes instead of round t; asked on the root."""
        if self.path is None:
            return Word.ROUND
        if self.is_asked or self.is_signalled():
            return Word.STOP
        if t <= self.last:
            return Word.ROUND
        by_count = self.chosen.every and t % self.chosen.every == 0
        by_time = self.chosen.seconds and monotonic() - self.began >= self.chosen.seconds
        return Word.KEEP if by_count or by_time else Word.ROUND

    def keep(self, t: int, state: Callable[[], State], wire: Wire) -> None:
        """Writes the checkpoint before round t, on all ranks together, unless it is there.

        Args:
            t: the round.
            state: returns this rank's.
            wire: to the other ranks.

        Raises:
            Failure: if the system refuses to write.
        """
        if self.path is None or self.about is None or t <= self.last:
            return
        with wire.clock(Phase.SAVE):
            folder = checkpoint.place(self.path, t)
            size, sha256 = checkpoint.write(folder, wire.rank, state())
            mine = np.array([(size, list(sha256))], WRITTEN)
            found = wire.report(mine)
            if wire.is_root:
                self.sync()
                sizes = tuple(int(each["size"][0]) for each in found)
                hashes = tuple(each["sha256"][0].tobytes().hex() for each in found)
                checkpoint.commit(
                    self.path, replace(self.about, round=t, sizes=sizes, hashes=hashes)
                )
                self.bytes += sum(sizes)
        self.count, self.last, self.began = self.count + 1, t, monotonic()
