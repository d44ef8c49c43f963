"""When a run is kept: checkpoints between rounds, and the end after a signal.

The root decides. It says so instead of the next round's broadcast, which then has no message, so
that ranks need no further collective in rounds that have none. A signal that another rank got is
known on the root by that rank's report of the round.

A checkpoint is written from a copy, by a thread of each rank, while the next rounds train. What
became of a rank's file is in its report of a round, too. When the files of all ranks are on the
disk, the root's thread makes a checkpoint of them. At most one is on its way: the next one waits
for it, and so does the end of the run. What the system refuses is raised in the rank's next report.
With `checkpoint.memory=0` there is no copy, and a round waits until the checkpoint is whole.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from time import monotonic, perf_counter_ns
from typing import Any

import numpy as np

from fedmpi.config import Settings
from fedmpi.errors import Failure
from fedmpi.messages.clock import Phase
from fedmpi.messages.wire import Wire
from fedmpi.results import checkpoint
from fedmpi.results.checkpoint import Content, Manifest, State

REPORT = np.dtype(
    [("signalled", "i8"), ("is_written", "i8"), ("size", "i8"), ("ns", "i8"), ("hash", "u1", 16)]
)
"""What a rank says after a round: whether a signal came, and of its file of the newest checkpoint
whether it is on the disk, its bytes, nanoseconds of writing, and hash."""


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
        sync: returns a function that makes the root's result, as it is then, safe on the disk,
            before a checkpoint counts on it. It is called in another thread.

    Attributes:
        count: checkpoints that were begun.
        bytes: of all that were written, all ranks' files together; on the root.
        seconds: that writing them took, those of the slowest rank of each; on the root.
    """

    def __init__(
        self,
        settings: Settings,
        path: Path | None = None,
        about: Manifest | None = None,
        is_signalled: Callable[[], bool] = lambda: False,
        sync: Callable[[], Callable[[], None]] = lambda: lambda: None,
    ) -> None:
        self.chosen, self.path, self.about = settings.checkpoint, path, about
        self.is_signalled, self.sync = is_signalled, sync
        self.count, self.bytes, self.last, self.began = 0, 0, 0, monotonic()
        self.seconds, self.is_asked = 0.0, False
        self.writer: ThreadPoolExecutor | None = None
        self.room = np.empty(0, np.uint8)
        self.writing: Future[tuple[int, int, bytes]] | None = None
        self.committing: Future[None] | None = None
        self.synced: Callable[[], None] = lambda: None

    def begin(self, t: int) -> None:
        """The rounds begin with round t, before which nothing new is to be kept."""
        self.last, self.began = t, monotonic()

    def report(self) -> np.ndarray:
        """What this rank says after a round, int64 [6]: a row of `REPORT`.

        Raises:
            Failure: if the system has refused to write the newest checkpoint.
        """
        row = np.zeros(1, REPORT)
        row["signalled"] = self.is_signalled()
        if self.committing is not None and self.committing.done():
            self.committing.result()
        if self.writing is not None and self.writing.done():
            size, ns, digest = self.writing.result()
            row["is_written"], row["size"], row["ns"] = True, size, ns
            row["hash"] = np.frombuffer(digest, np.uint8)
        return row.view(np.int64)

    def hear(self, reports: np.ndarray) -> None:
        """The root hears what ranks report of a round, int64 [ranks, 6].

        When all of them have written their files, a checkpoint is made of them.
        """
        found = np.ascontiguousarray(reports).view(REPORT)[:, 0]
        self.is_asked = self.is_asked or bool(found["signalled"].any())
        if self.writing is None or self.committing is not None or not found["is_written"].all():
            return
        assert self.writer is not None
        assert self.about is not None
        hashes = tuple(each.tobytes().hex() for each in found["hash"])
        sizes = tuple(found["size"].tolist())
        manifest = replace(self.about, round=self.last, sizes=sizes, hashes=hashes)
        self.committing = self.writer.submit(self._commit, manifest)
        self.bytes += sum(sizes)
        self.seconds += float(found["ns"].max()) / 1e9

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

    def keep(self, t: int, state: Callable[[], State], wire: Wire, is_end: bool = False) -> None:
        """Begins to write the checkpoint before round t, on all ranks together.

        It waits for the one before. If that is of round t, nothing new is written.

        Args:
            t: the round.
            state: returns this rank's.
            wire: to the other ranks.
            is_end: whether it also waits for the new one; it does if no copy is allowed.

        Raises:
            Failure: if the system refuses to write.
        """
        if self.path is None or self.about is None:
            return
        with wire.clock(Phase.SAVE):
            self._settle(wire)
            if t > self.last:
                if wire.is_root:
                    self.synced = self.sync()
                self._write(checkpoint.place(self.path, t), wire.rank, Content(state()))
                self.count, self.last, self.began = self.count + 1, t, monotonic()
            if is_end or not self.chosen.memory:
                self._settle(wire)

    def finish(self, wire: Wire) -> None:
        """Waits for the checkpoint that is being written, on all ranks together, after the rounds.

        If it cannot be written, the run ends well without it.
        """
        if self.path is None or self.about is None:
            return
        self.close()
        mine = np.zeros(1, REPORT).view(np.int64)
        with suppress(Failure):
            mine = self.report()
        found = wire.report(mine)
        if wire.is_root:
            self.hear(np.array(found))
        self.close()

    def close(self) -> None:
        """Waits until this rank writes nothing more, whatever becomes of it."""
        begun: list[Future[Any]] = [one for one in (self.writing, self.committing) if one]
        wait(begun)

    def _settle(self, wire: Wire) -> None:
        """Waits until the newest checkpoint is whole, on all ranks together.

        Raises:
            Failure: if the system refuses to write it.
        """
        self.close()
        found = wire.report(self.report())
        if wire.is_root:
            self.hear(np.array(found))
            self.close()
            self.report()

    def _write(self, folder: Path, rank: int, content: Content) -> None:
        """Begins to write this rank's file, or writes it at once if no copy of it is allowed."""
        if self.writer is None:
            self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.committing = None
        is_copied = content.size <= self.chosen.memory * 2**20
        wanted = content.size if is_copied else min(content.size, checkpoint.PIECE)
        if len(self.room) < wanted:
            self.room = checkpoint.room(wanted)
        copied = content.copied(self.room)
        self.writing = self.writer.submit(
            _written, folder, rank, [*copied] if is_copied else copied
        )
        if not is_copied:
            self.writing.result()

    def _commit(self, manifest: Manifest) -> None:
        """Makes a checkpoint of all ranks' files, once the result is safe."""
        assert self.path is not None
        self.synced()
        checkpoint.commit(self.path, manifest)


def _written(folder: Path, rank: int, content: Iterable[memoryview]) -> tuple[int, int, bytes]:
    """Writes a rank's file; returns its bytes, the nanoseconds that it took, and its hash."""
    began = perf_counter_ns()
    size, digest = checkpoint.write(folder, rank, content)
    return size, perf_counter_ns() - began, digest
