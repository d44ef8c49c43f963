"""Bytes <-> ranks: every MPI call of the project.

Buffers only: nothing is pickled. Counts travel first, then the `v` collective. A timed barrier goes
before each collective, so that waiting is not taken for transfer; who waits there leaves its core
to those who work.
"""

import sys
import traceback
from collections.abc import Sequence
from time import perf_counter, sleep
from types import TracebackType

import numpy as np
from mpi4py import MPI

from fedmpi.clock import Clock, Phase

ROOT = 0
WORD = 8
"""Buffers are counted in words of 8 bytes, their padding: 32-bit MPI counts then reach 16 GiB."""
EAGER, NAP = 1e-4, 1e-4
"""Seconds for which a rank that waits looks out for the others all the time; and between looks."""


class Wire:
    """The ranks of one job, all of which reach each call in the same order.

    Attributes:
        rank: this rank; `ROOT` is the server.
        size: number of ranks.
        up: bytes that this rank handed to `gather` since the last `reset`.
        down: bytes that `bcast` and `scatter` handed to this rank since the last `reset`.
    """

    def __init__(self, clock: Clock, comm: MPI.Intracomm | None = None) -> None:
        self.comm = MPI.COMM_WORLD if comm is None else comm
        self.clock = clock
        self.rank, self.size = self.comm.Get_rank(), self.comm.Get_size()
        self.is_root = self.rank == ROOT
        self.rooms: dict[str, np.ndarray] = {}
        self.reset()

    def reset(self) -> None:
        """Begins a round's count of bytes."""
        self.up = self.down = 0

    def bcast(self, data: np.ndarray | None) -> np.ndarray:
        """The root's bytes on every rank: uint8 [words * 8]; `data` is None on the others.

        What they get is a view of one inbox, which the next `bcast` or `scatter` overwrites.
        """
        count = np.array([0 if data is None else _words(data)])
        self._meet(Phase.WAIT)
        with self.clock(Phase.TRANSFER):
            self.comm.Bcast(count, ROOT)
            if data is None:
                data = self._room("root", int(count[0]))
            self.comm.Bcast([data, int(count[0]), MPI.UINT64_T], ROOT)
        self.down += data.nbytes
        return data

    def gather(self, data: np.ndarray) -> list[np.ndarray]:
        """Every rank's bytes on the root, in rank order; an empty list elsewhere.

        The pieces are views of one inbox, which the next `gather` overwrites.
        """
        self._meet(Phase.WAIT)
        self.up += data.nbytes
        return self._gather(data, Phase.TRANSFER)

    def scatter(self, data: Sequence[np.ndarray]) -> np.ndarray:
        """This rank's share of the root's bytes; `data` is one piece a rank, empty elsewhere.

        It is a view of one inbox, which the next `bcast` or `scatter` overwrites.
        """
        count, counts, send = np.zeros(1, np.int64), None, None
        if self.is_root:
            with self.clock(Phase.PACK):
                counts = np.array([_words(piece) for piece in data])
                send = [np.concatenate(data), _layout(counts), MPI.UINT64_T]
        self._meet(Phase.WAIT)
        with self.clock(Phase.TRANSFER):
            self.comm.Scatter(counts, count, ROOT)
            mine = self._room("root", int(count[0]))
            self.comm.Scatterv(send, [mine, int(count[0]), MPI.UINT64_T], ROOT)
        self.down += mine.nbytes
        return mine

    def report(self, rows: np.ndarray) -> list[np.ndarray]:
        """Every rank's rows on the root, off the clock and outside the accounts.

        All are of one dtype, a whole number of words long.
        """
        pieces = self._gather(rows.reshape(-1).view(np.uint8), Phase.RECORD)
        return [piece.view(rows.dtype).copy() for piece in pieces]

    def publish(self, values: np.ndarray) -> np.ndarray:
        """The root's values on every rank, off the clock and outside the accounts.

        Elsewhere `values` only say of which shape and dtype they are.
        """
        found = values if self.is_root else np.empty_like(values)
        self._meet(Phase.EVALUATE)
        with self.clock(Phase.EVALUATE):
            self.comm.Bcast(found, ROOT)
        return found

    def settle(self) -> None:
        """Waits for all ranks, off the clock, so that nobody's measuring is another's waiting."""
        self._meet(Phase.EVALUATE)

    def lowest(self, here: bool) -> int | None:
        """The lowest rank on which `here` is true; None if it is so on none."""
        mine, least = np.array([self.rank if here else self.size]), np.zeros(1, np.int64)
        self.comm.Allreduce(mine, least, MPI.MIN)
        return int(least[0]) if least[0] < self.size else None

    def place_on_node(self) -> int:
        """This rank's number among the ranks of its node."""
        node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        place = node.Get_rank()
        node.Free()
        return place

    def _meet(self, phase: Phase) -> None:
        """Waits for all ranks without taking the core of one that still works.

        MPI waits by asking again and again, even where it yields in between: with three ranks on
        two cores that made the working ones a third slower. Once all are there, a barrier lets
        them go at once: what comes next is not to wait for one that naps.
        """
        with self.clock(phase):
            request, patience = self.comm.Ibarrier(), perf_counter() + EAGER
            while not request.Test():
                if perf_counter() > patience:
                    sleep(NAP)
            self.comm.Barrier()

    def _gather(self, data: np.ndarray, phase: Phase) -> list[np.ndarray]:
        count = np.array([_words(data)])
        counts = np.zeros(self.size, np.int64) if self.is_root else None
        receive, pieces = None, []
        with self.clock(phase):
            self.comm.Gather(count, counts, ROOT)
            if counts is not None:
                layout = _layout(counts)
                inbox = self._room("ranks", int(counts.sum()))
                receive = [inbox, layout, MPI.UINT64_T]
                pieces = [
                    inbox[start * WORD : (start + length) * WORD]
                    for length, start in zip(*layout, strict=True)
                ]
            self.comm.Gatherv([data, int(count[0]), MPI.UINT64_T], receive, ROOT)
        return pieces

    def _room(self, sender: str, words: int) -> np.ndarray:
        """An inbox, the same one each time until it is too small: fresh memory is slow."""
        room = self.rooms.get(sender)
        if room is None or room.nbytes < words * WORD:
            room = self.rooms[sender] = np.empty(words * WORD, np.uint8)
        return room[: words * WORD]


def _words(data: np.ndarray) -> int:
    words, rest = divmod(data.nbytes, WORD)
    if rest or data.dtype != np.uint8:
        raise ValueError(f"wanted bytes in words of {WORD}, found {data.nbytes} of {data.dtype}")
    return words


def _layout(counts: np.ndarray) -> tuple[list[int], list[int]]:
    """Counts and displacements, in words.

    Raises:
        OverflowError: beyond what MPI's 32-bit counts reach.
    """
    if counts.sum() > np.iinfo(np.int32).max:
        size = int(counts.sum()) * WORD / 2**30
        raise OverflowError(
            f"{size:.1f} GiB in one collective, 16 are possible; lower exchange.window"
        )
    return counts.tolist(), (np.cumsum(counts) - counts).tolist()


def abort_on_exception() -> None:
    """From now on an uncaught exception on one rank ends the job: traceback, then Abort(1)."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        abort("".join(traceback.format_exception(kind, error, trace)))

    sys.excepthook = hook


def abort(text: str) -> None:
    """Ends the job, wherever its other ranks are, and says which rank failed, and why."""
    rank = MPI.COMM_WORLD.Get_rank()
    sys.stdout.flush()
    sys.stderr.write(f"rank {rank} of {MPI.COMM_WORLD.Get_size()} failed:\n{text.rstrip()}\n")
    sys.stderr.flush()
    MPI.COMM_WORLD.Abort(1)


def library() -> str:
    """Name and version of the MPI library behind mpi4py, on one line."""
    return " ".join(MPI.Get_library_version().replace("\x00", "").split())


def host() -> str:
    """The name under which MPI knows this node."""
    return MPI.Get_processor_name()
