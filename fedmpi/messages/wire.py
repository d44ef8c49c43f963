"""Bytes <-> ranks: every MPI call of the project.

Only buffers are sent, nothing is pickled. A timed barrier precedes each collective, so that waiting
is not counted as transfer; waiting ranks leave their core to working ones. Ranks that meet tell
each other the counts of what follows, a `v` collective; those of a scatter are broadcast. What is
longer than `MOST` goes in waves of that length. A broadcast goes in one of three ways, with the
same bytes on all ranks. Broadcasts, gathers and scatters between nodes are nonblocking, and waited
for at once: over TCP Open MPI's blocking ones take up to twice as long. Within a node blocking ones
save a tenth. A `Line`, and messages from one rank to another, have no barriers; their counts
separate waiting from transfer.
"""

import atexit
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache, cached_property
from itertools import accumulate
from threading import current_thread, main_thread
from time import perf_counter, sleep
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, cast

import mpi4py
import numpy as np

from fedmpi.errors import BadInput, Failure
from fedmpi.messages.clock import Clock, Phase

if TYPE_CHECKING:
    from fedmpi.config import Way

mpi4py.rc.initialize = False  # see `join`
try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:
    raise BadInput(
        f"no MPI library can be loaded: {' '.join(str(error).split())}; 'fedmpi doctor mpi' says "
        "more, and $MPI4PY_LIBMPI may name another libmpi.so"
    ) from None

ROOT = 0
NODES = "FEDMPI_NODES"
"""Environment variable for tests: a number of nodes among which the ranks are divided, in their
order, in place of the nodes that there are. Ranks of one such node must be on one machine."""
WORD = 8
"""Buffers are counted in words of 8 bytes, their padding."""
MOST = 1 << 30
"""Bytes in one collective. More go in several: most libraries count in 32 bits, and some of what
they are made of fails beyond 2 GiB."""
REACH = np.iinfo(np.int32).max
"""Words that MPI's 32-bit displacements reach: 16 GiB. It is a limit of a `Line` and of `exchange`,
where waves do not shorten them."""
BLOCK, FLIGHT = 1 << 20, 8
"""Bytes of a block of a broadcast in blocks, and blocks that are under way at once."""
TAG = 1
"""Tag of messages from one rank to another."""
AHEAD = 0.2
"""Seconds in which a launcher passes on why a rank failed, before it says itself that one has."""
EAGER = 1e-4
"""Seconds of busy polling before a waiting rank sleeps."""
NAPS, LATE = (2e-5, 1e-4), 64
"""Seconds of sleep between polls, at least and at most: as a share of the time waited, 1 / LATE."""
SLACK = 29, 1000
"""The option of prctl, on Linux, by which a thread's sleeps end after so many nanoseconds more;
it is 50 us otherwise, which is longer than most of these sleeps."""


Layout = tuple[list[int], list[int]]
"""Counts of the ranks' words, and displacements."""


class Place(NamedTuple):
    """Position of a rank in the job and on its node.

    Attributes:
        rank: number of the rank.
        ranks: number of ranks in the job.
        local_rank: number among the ranks of its node.
        local_size: number of ranks on its node.
    """

    rank: int
    ranks: int
    local_rank: int
    local_size: int

    @property
    def is_root(self) -> bool:
        """Whether this rank is the server."""
        return self.rank == ROOT


ALONE = Place(ROOT, 1, 0, 1)


class Wire:
    """The ranks of one job, all of which make all calls in the same order.

    Attributes:
        rank: this rank; `ROOT` is the server.
        size: number of ranks.
        up: bytes that this rank handed to `gather`, `gather_near`, `exchange`, `send` to a lower
            rank and, if it is not the root, which adds to its own sum in place, to `reduce` since
            the last `reset`.
        down: bytes that `bcast`, `scatter` and `recv` from a lower rank handed to this rank since
            the last `reset`.
        up_between: those of `up` that are for a rank on another node.
        down_between: those of `down` that are from a rank on another node.
        nodes: number of each rank's node.
        is_one_node: whether all ranks are on one node.

    Args:
        clock: of this rank.
        comm: the ranks; by default all.
        nodes: number of each rank's node, if it is known; otherwise MPI is asked.
    """

    def __init__(
        self,
        clock: Clock,
        comm: MPI.Intracomm | None = None,
        nodes: Sequence[int] | None = None,
    ) -> None:
        join()
        self.comm = MPI.COMM_WORLD if comm is None else comm
        self.clock = clock
        self.rank, self.size = self.comm.Get_rank(), self.comm.Get_size()
        self.is_root = self.rank == ROOT
        self.buffers: dict[str, np.ndarray] = {}
        self.known: list[Line] = []
        if nodes is None:
            nodes = self.node.numbers if self.size > 1 else [0]
        self.nodes, self.is_one_node = list(nodes), len(set(nodes)) == 1
        self.reset()

    def reset(self) -> None:
        """Sets the byte counts to zero, at the beginning of a round."""
        self.up = self.down = self.up_between = self.down_between = 0

    def sent(self, length: int, rank: int = ROOT) -> None:
        """Counts bytes that this rank handed to MPI for another one, or for itself."""
        self.up += length
        if self.nodes[rank] != self.nodes[self.rank]:
            self.up_between += length

    def got(self, length: int, rank: int = ROOT) -> None:
        """Counts bytes that MPI handed to this rank from another one, or from itself."""
        self.down += length
        if self.nodes[rank] != self.nodes[self.rank]:
            self.down_between += length

    def include(self, other: "Wire") -> None:
        """Counts what this rank moved on another wire, such as that of the nodes' leaders, too."""
        self.up, self.down = self.up + other.up, self.down + other.down
        self.up_between += other.up_between
        self.down_between += other.down_between

    def bcast(self, data: np.ndarray | None, way: "Way" = "bcast") -> np.ndarray:
        """Broadcasts the root's bytes, uint8 [words * 8]; other ranks pass None.

        Other ranks get a view of one inbox, which the next `bcast` or `scatter` overwrites. With
        `node` all ranks of a node have the same inbox, which none may change.

        Args:
            data: the bytes.
            way: bcast: by `MPI_Bcast`. node: once to the first rank of each node, in memory that
                its other ranks share. blocks: by nonblocking broadcasts of `BLOCK` bytes each, of
                which `FLIGHT` are under way.
        """
        words, source = int(self._meet(Phase.WAIT, 0 if data is None else _words(data))[ROOT]), ROOT
        if way == "node":
            source = ROOT if self.node.is_leader else self.nodes.index(self.nodes[self.rank])
            found = self._tell_node(data, words)
        else:
            found = self._room("root", words) if data is None else data
            with self.clock(Phase.TRANSFER):
                if way == "blocks":
                    self._tell_blocks(found, words)
                else:
                    self._tell(self.comm, found, words)
        self.got(found.nbytes, source)
        return found

    def gather(self, data: np.ndarray) -> list[np.ndarray]:
        """Gathers every rank's bytes on the root, in rank order; returns an empty list elsewhere.

        The pieces are views of one inbox, which the next `gather` overwrites.
        """
        self.sent(data.nbytes)
        return self._gather(data, Phase.WAIT, Phase.TRANSFER)

    def reduce(
        self, vectors: Sequence[np.ndarray], rows: np.ndarray | None = None
    ) -> list[np.ndarray]:
        """Adds every rank's vectors to the root's, in place; elsewhere they stay as they are.

        Rows are gathered on the root by the same meeting of the ranks, as `report` does.

        Args:
            vectors: float32 or float64; those of all ranks have the same lengths and types.
            rows: of one dtype on all ranks, whose size is a multiple of 8 bytes; None on all ranks
                if there are none.

        Returns:
            On the root the rows of each rank, in rank order; elsewhere an empty list.
        """
        found = self._report(np.empty(0, np.int64) if rows is None else rows, Phase.WAIT)
        with self.clock(Phase.TRANSFER):
            for vector in vectors:
                length = MOST // vector.itemsize
                for start in range(0, len(vector), length):
                    part = vector[start : start + length]
                    mine, all_of_it = (MPI.IN_PLACE, part) if self.is_root else (part, None)
                    self.comm.Reduce(mine, all_of_it, MPI.SUM, ROOT)
        if not self.is_root:
            self.sent(sum(vector.nbytes for vector in vectors))
        return found

    def gather_near(self, pack: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
        """Gathers the bytes of a node's ranks on its leader, in rank order; elsewhere nothing.

        The pieces are views of the window, until the next call.

        Args:
            pack: returns this rank's bytes; they lie in the uint8 memory that it is given, if that
                is long enough.
        """
        self.near._meet(Phase.WAIT)
        data = pack(self.node.up.mine)
        self.sent(data.nbytes, self.rank)
        self.node.up.sync()
        lengths = self.near._meet(Phase.WAIT, data.nbytes)
        with self.clock(Phase.TRANSFER):
            return self.node.up.gather(data, lengths.tolist())

    def scatter(self, data: np.ndarray | None, lengths: Sequence[int]) -> np.ndarray:
        """Scatters the root's bytes by the lengths for each rank; other ranks pass None and [].

        The result is a view of one inbox, which the next `bcast` or `scatter` overwrites.
        """
        counts = np.zeros(self.size, np.int64)
        if data is not None:
            counts[:] = self._counts(data, lengths)
        self._meet(Phase.WAIT)
        with self.clock(Phase.TRANSFER):
            self.comm.Bcast(counts, ROOT)
            mine = self._room("root", int(counts[self.rank]))
            for wave in _waves(counts.tolist()):
                send = None if data is None else [wave.whole(data), wave.layout, MPI.UINT64_T]
                part = [wave.piece(mine, self.rank), MPI.UINT64_T]
                self._run(self.comm, "scatterv", send, part)
        self.got(mine.nbytes)
        return mine

    def exchange(self, data: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
        """Sends each rank its part of the bytes, by their lengths; returns those for this rank.

        The pieces are in rank order, and views of one inbox, which the next `exchange` overwrites.

        Raises:
            Failure: if a rank sends or receives more than `REACH`.
        """
        mend = "take exchange.name = 'reduce', 'tree' or 'sparse', which have no such limit"
        counts, layout = self._shares(data, lengths, mend)
        theirs, longest = np.zeros(self.size, np.int64), np.zeros(1, np.int64)
        most = MOST // WORD // self.size
        self._meet(Phase.WAIT)
        with self.clock(Phase.TRANSFER):
            self.comm.Alltoall(counts, theirs)
            self.comm.Allreduce(counts.max(keepdims=True), longest, MPI.MAX)
            places = _layout(theirs, mend)
            inbox = self._room("all", int(theirs.sum()))
            for start in range(0, int(longest[0]), most):
                send, receive = (
                    [found, _part(about, start, most), MPI.UINT64_T]
                    for found, about in ((data, layout), (inbox, places))
                )
                self.comm.Alltoallv(send, receive)
        for rank, length in enumerate(lengths):
            self.sent(length, rank)
        return _pieces(inbox, places)

    def send(self, data: np.ndarray, rank: int) -> None:
        """Sends bytes to one rank, which calls `recv`."""
        words = _words(data)
        self.comm.Send(np.array([words]), rank, TAG)
        self._await([self.comm.Irecv(bytearray(1), rank, TAG)], Phase.WAIT)
        with self.clock(Phase.TRANSFER):
            for wave in _waves([words]):
                self.comm.Send([wave.piece(data), MPI.UINT64_T], rank, TAG)
        if rank < self.rank:
            self.sent(data.nbytes, rank)

    def recv(self, rank: int) -> np.ndarray:
        """Returns the bytes that one rank sends.

        They are a view of an inbox, which the next `recv` overwrites. Both ranks wait until the
        other one is there; only then the data is sent.
        """
        count = np.zeros(1, np.int64)
        self._await([self.comm.Irecv(count, rank, TAG)], Phase.WAIT)
        data = self._room("one", int(count[0]))
        with self.clock(Phase.TRANSFER):
            self.comm.Send(bytearray(1), rank, TAG)
            for wave in _waves(count.tolist()):
                self.comm.Recv([wave.piece(data), MPI.UINT64_T], rank, TAG)
        if rank < self.rank:
            self.got(data.nbytes, rank)
        return data

    def lines(self, count: int) -> list["Line"]:
        """Returns `count` lines, the same ones in each call; all ranks must pass the same count."""
        while len(self.known) < count:
            comm = _second(self.comm) if self.known else self.comm
            self.known.append(Line(self, comm, f"line {len(self.known)}"))
        return self.known[:count]

    def report(self, rows: np.ndarray) -> list[np.ndarray]:
        """Gathers every rank's rows on the root, off the clock and not counted in bytes.

        All ranks' rows have one dtype, whose size is a multiple of 8 bytes.
        """
        return self._report(rows, Phase.RECORD)

    def publish(self, values: np.ndarray) -> np.ndarray:
        """Broadcasts the root's values, off the clock and not counted as bytes of the round.

        On other ranks `values` only gives shape and dtype.
        """
        found = values if self.is_root else np.empty_like(values)
        self._meet(Phase.EVALUATE)
        with self.clock(Phase.EVALUATE):
            self.comm.Bcast(found, ROOT)
        return found

    def settle(self) -> None:
        """Waits for all ranks, off the clock, so that evaluation is not counted as waiting."""
        self._meet(Phase.EVALUATE)

    def lowest(self, here: bool) -> int | None:
        """Returns the lowest rank on which `here` is true, or None if there is none."""
        mine, least = np.array([self.rank if here else self.size]), np.zeros(1, np.int64)
        self.comm.Allreduce(mine, least, MPI.MIN)
        return int(least[0]) if least[0] < self.size else None

    @cached_property
    def node(self) -> "Node":
        """The ranks of this node; its first use is collective, so that all ranks must read it."""
        return _nodes(self.comm)

    @cached_property
    def near(self) -> "Wire":
        """The ranks of this node; its first use is collective."""
        comm = self.node.comm
        return Wire(self.clock, comm, [0] * comm.size)

    @cached_property
    def leaders(self) -> "Wire | None":
        """The first rank of each node; None on all others. Its first use is collective."""
        leaders = self.node.leaders
        if leaders == MPI.COMM_NULL:
            return None
        return Wire(self.clock, leaders, range(leaders.size))

    @cached_property
    def place(self) -> Place:
        """Position of this rank; its first use is collective, so that all ranks must read it."""
        node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        local_rank, local_size = node.Get_rank(), node.Get_size()
        node.Free()
        return Place(self.rank, self.size, local_rank, local_size)

    def _tell_node(self, data: np.ndarray | None, words: int) -> np.ndarray:
        """Broadcasts the root's bytes to the nodes' leaders, in memory that a node's ranks share.

        The root copies its own there, and returns them as they are. A leader that is alone on its
        node shares nothing.
        """
        node = self.node
        with self.clock(Phase.TRANSFER):
            if node.comm.size == 1:
                found = self._room("root", words) if data is None else data
            else:
                found = node.down.leaders(words * WORD)
                if data is not None:
                    found[:] = data
            if node.is_leader:
                self._tell(node.leaders, found, words)
            node.down.sync()
            node.comm.Barrier()
            node.down.sync()
        return found if data is None else data

    def _tell_blocks(self, data: np.ndarray, words: int) -> None:
        """Broadcasts the root's bytes block by block; ranks pass on some while more arrive."""
        pending: list[MPI.Request] = []
        for block in _waves([words], BLOCK):
            if len(pending) == FLIGHT:
                pending.pop(0).Wait()
            pending.append(self.comm.Ibcast([block.piece(data), MPI.UINT64_T], ROOT))
        MPI.Request.Waitall(pending)

    def _tell(self, comm: MPI.Intracomm, data: np.ndarray, words: int) -> None:
        """Broadcasts the root's bytes to all ranks of a communicator."""
        for wave in _waves([words]):
            self._run(comm, "bcast", [wave.piece(data), MPI.UINT64_T])

    def _run(self, comm: MPI.Intracomm, name: str, *buffers: object) -> None:
        """Makes a collective with the root, in the way that is faster here."""
        if self.is_one_node:
            getattr(comm, name.capitalize())(*buffers, ROOT)
        else:
            getattr(comm, f"I{name}")(*buffers, ROOT).Wait()

    def _meet(self, phase: Phase, count: int = 0) -> np.ndarray:
        """Waits for all ranks without taking the core of a rank that still works.

        Returns every rank's count, int64 [ranks].

        MPI waits by polling, even if it yields in between: with three ranks on two cores that made
        the working ones a third slower.
        """
        counts = np.empty(self.size, np.int64)
        self._await([self.comm.Iallgather(np.array([count]), counts)], phase)
        return counts

    def _await(self, requests: list[MPI.Request], phase: Phase) -> None:
        """Waits for requests without taking the core of a rank that works; clears the list."""
        with self.clock(phase):
            began, (least, most) = perf_counter(), NAPS
            while not MPI.Request.Testall(requests):
                waited = perf_counter() - began
                if waited > EAGER:
                    sleep(min(max(waited / LATE, least), most))
        requests.clear()

    def _report(self, rows: np.ndarray, waiting: Phase) -> list[np.ndarray]:
        """Gathers rows as `report` does; waiting is that phase."""
        pieces = self._gather(rows.reshape(-1).view(np.uint8), waiting, Phase.RECORD)
        return [piece.view(rows.dtype).copy() for piece in pieces]

    def _gather(self, data: np.ndarray, waiting: Phase, phase: Phase) -> list[np.ndarray]:
        lengths, inbox = self._meet(waiting, _words(data)).tolist(), data
        with self.clock(phase):
            if self.is_root:
                inbox = self._room("ranks", sum(lengths))
            for wave in _waves(lengths):
                receive = [wave.whole(inbox), wave.layout, MPI.UINT64_T] if self.is_root else None
                part = [wave.piece(data, self.rank), MPI.UINT64_T]
                self._run(self.comm, "gatherv", part, receive)
            return _pieces(inbox, _places(lengths)) if self.is_root else []

    def _counts(self, data: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
        """Returns the number of words for each rank.

        Raises:
            ValueError: if the lengths are not multiples of 8 bytes, not one for each rank, or do
                not add up to the length of data.
        """
        whole = all(length % WORD == 0 for length in lengths) and sum(lengths) == data.nbytes
        if not whole or len(lengths) != self.size:
            raise ValueError(
                f"wanted words of {WORD} for {self.size} ranks, {data.nbytes} bytes together; "
                f"found {list(lengths)}"
            )
        return np.array(lengths, np.int64) // WORD

    def _shares(
        self, data: np.ndarray, lengths: Sequence[int], mend: str
    ) -> tuple[np.ndarray, Layout]:
        """Returns the number of words for each rank, and their layout in `data`.

        Raises:
            ValueError: as `_counts`.
            Failure: as `_layout`.
        """
        counts = self._counts(data, lengths)
        return counts, _layout(counts, mend)

    def _room(self, sender: str, words: int) -> np.ndarray:
        """Returns an inbox, reused until it is too small, because new memory is slow."""
        buffer = self.buffers.get(sender)
        if buffer is None or buffer.nbytes < words * WORD:
            buffer = self.buffers[sender] = np.empty(words * WORD, np.uint8)
        return buffer[: words * WORD]


class Node:
    """The ranks of one node, whose first one is the leader.

    Attributes:
        leaders: the leaders of all nodes, the root first; COMM_NULL on other ranks.
        is_leader: whether this rank is the first one of its node.
        numbers: number of each rank's node, in the order of the leaders.
        up: memory in which the leader reads what the others write.
        down: memory in which the others read what the leader writes.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        number = _faked(comm)
        shared = comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.comm = cast(MPI.Intracomm, shared.Split(number, comm.rank))
        shared.Free()
        self.is_leader = self.comm.rank == ROOT
        color = 0 if self.is_leader else MPI.UNDEFINED
        self.leaders = cast(MPI.Intracomm, comm.Split(color, comm.rank))
        first, firsts = np.array([comm.rank]), np.zeros(comm.size, np.int64)
        self.comm.Bcast(first, ROOT)
        comm.Allgather(first, firsts)
        self.numbers: list[int] = np.unique(firsts, return_inverse=True)[1].tolist()
        self.up, self.down = Shared(self.comm), Shared(self.comm)

    def free(self) -> None:
        """Gives the memory back; all ranks of the node do so together, and before MPI ends."""
        self.up.free()
        self.down.free()


class Shared:
    """Memory that the ranks of a node share; one reads what another one writes, without a copy.

    Each rank has a segment of a window. It may write while nobody reads there: after all ranks
    met.

    Args:
        comm: the ranks of the node.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.comm = comm
        self.window: MPI.Win | None = None
        self.segments = [np.empty(0, np.uint8)] * comm.size

    @property
    def mine(self) -> np.ndarray:
        """This rank's segment, which may be too short, uint8."""
        return self.segments[self.comm.rank]

    def gather(self, data: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
        """Returns every rank's bytes on the leader, in rank order; elsewhere an empty list.

        Args:
            data: lies at the beginning of `mine` if it fits there; else it is copied into a longer
                segment, which all ranks of the node make together.
            lengths: of all ranks' bytes. Ranks that know them have written theirs, and `sync`ed.
        """
        segments = zip(lengths, self.segments, strict=True)
        if self.window is None or any(length > len(room) for length, room in segments):
            length, kept = max(data.nbytes, len(self.mine)), data.copy()
            self._grow(length)
            self.mine[: len(kept)] = kept
            self.sync()
            self.comm.Barrier()
        self.sync()
        if self.comm.rank != ROOT:
            return []
        return [some[:length] for some, length in zip(self.segments, lengths, strict=True)]

    def leaders(self, length: int) -> np.ndarray:
        """Returns so many bytes of the leader's segment; all ranks of the node call it together."""
        if self.window is None or length > len(self.segments[ROOT]):
            self._grow(length if self.comm.rank == ROOT else 0)
        return self.segments[ROOT][:length]

    def sync(self) -> None:
        """Orders what this rank has written before what others read after they have met."""
        if self.window is not None:
            self.window.Sync()

    def _grow(self, length: int) -> None:
        """Makes other segments, this rank's of so many bytes."""
        self.free()
        self.window = MPI.Win.Allocate_shared(length, 1, comm=self.comm)
        self.window.Lock_all()
        found = (self.window.Shared_query(rank)[0] for rank in range(self.comm.size))
        self.segments = [np.asarray(memory).view(np.uint8) for memory in found]

    def free(self) -> None:
        """Gives the memory back; all ranks of the node do so together."""
        if self.window is not None:
            self.segments = [np.empty(0, np.uint8)] * self.comm.size
            self.window.Unlock_all()
            self.window.Free()
            self.window = None


class Line:
    """A nonblocking gather and scatter pair: all ranks send to the root, and it answers each.

    `send_up` and `send_down` return at once; `recv_up` and `recv_down` return when the other side's
    message has arrived. In between a rank can compute, or use another line. Each line has a
    communicator of its own, because nonblocking collectives are matched by their order there.

    There is no barrier; counts take its place. They are sent when a message is ready, and are so
    small that they arrive without further calls of the sender. Waiting for counts is therefore
    waiting for slower ranks, and waiting for the data is transfer. Transfer during a computation is
    charged to the computation.
    """

    MEND = "lower batch or exchange.window, so that fewer samples or clients take a step at once"

    def __init__(self, wire: Wire, comm: MPI.Intracomm, name: str) -> None:
        self.wire, self.comm, self.name = wire, comm, name
        self.mine = np.empty(0, np.uint8)
        self.counts = np.zeros(wire.size, np.int64)
        self.ones = [1] * wire.size
        self.pending: list[MPI.Request] = []

    def send_up(self, data: np.ndarray) -> None:
        """Starts to send this rank's bytes to the root.

        The bytes must not change before the next `recv_down` returns.
        """
        count, self.mine = np.array([_words(data)]), data
        counts = [self.counts, self.ones] if self.wire.is_root else None
        with self.wire.clock(Phase.TRANSFER):
            self.pending.append(self.comm.Igatherv(count, counts, ROOT))
            if not self.wire.is_root:
                words = [data, int(count[0]), MPI.UINT64_T]
                self.pending.append(self.comm.Igatherv(words, None, ROOT))
        self.wire.sent(data.nbytes)

    def recv_up(self) -> list[np.ndarray]:
        """Returns all ranks' bytes on the root, in rank order; elsewhere an empty list, at once.

        The pieces are views of one inbox, which the next `recv_up` overwrites.

        Raises:
            Failure: if they are more than `REACH`.
        """
        if not self.wire.is_root:
            return []
        self.wire._await(self.pending, Phase.WAIT)
        layout = _layout(self.counts, self.MEND)
        inbox = self.wire._room(self.name, int(self.counts.sum()))
        mine = [self.mine, _words(self.mine), MPI.UINT64_T]
        with self.wire.clock(Phase.TRANSFER):
            self.pending.append(self.comm.Igatherv(mine, [inbox, layout, MPI.UINT64_T], ROOT))
        self.wire._await(self.pending, Phase.TRANSFER)
        return _pieces(inbox, layout)

    def send_down(self, data: np.ndarray, lengths: Sequence[int]) -> None:
        """Starts to send the root's bytes to all ranks, by their lengths; called on the root only.

        The bytes must not change before the next `recv_up` or `wait` returns.

        Raises:
            Failure: if they are more than `REACH`.
        """
        counts, layout = self.wire._shares(data, lengths, self.MEND)
        words = [data, layout, MPI.UINT64_T]
        with self.wire.clock(Phase.TRANSFER):
            self.pending.append(self.comm.Iscatterv([counts, self.ones], MPI.IN_PLACE, ROOT))
            self.pending.append(self.comm.Iscatterv(words, MPI.IN_PLACE, ROOT))
        self.mine = data[: lengths[ROOT]]

    def recv_down(self) -> np.ndarray:
        """Returns this rank's part of the answer, a view of the sent data or of an inbox."""
        if not self.wire.is_root:
            count = np.zeros(1, np.int64)
            self.pending.append(self.comm.Iscatterv(None, count, ROOT))
            self.wire._await(self.pending, Phase.WAIT)
            self.mine = self.wire._room(self.name, int(count[0]))
            words = [self.mine, int(count[0]), MPI.UINT64_T]
            self.pending.append(self.comm.Iscatterv(None, words, ROOT))
            self.wire._await(self.pending, Phase.TRANSFER)
        self.wire.got(self.mine.nbytes)
        return self.mine

    def wait(self) -> None:
        """Waits until everything sent has arrived, at the end of a conversation."""
        self.wire._await(self.pending, Phase.WAIT)


class _Wave(NamedTuple):
    """What one collective carries of buffers that lie one behind the other, rank by rank.

    Attributes:
        start: the first word of the whole that it carries.
        end: the word behind the last one.
        firsts: the first word of each rank's part of it, counted in the rank's own buffer.
        counts: words of each rank.
    """

    start: int
    end: int
    firsts: list[int]
    counts: list[int]

    def whole(self, data: np.ndarray) -> np.ndarray:
        """Returns its part of the whole, a view."""
        return data[self.start * WORD : self.end * WORD]

    def piece(self, data: np.ndarray, rank: int = 0) -> np.ndarray:
        """Returns its part of one rank's buffer, a view."""
        first = self.firsts[rank]
        return data[first * WORD : (first + self.counts[rank]) * WORD]

    @property
    def layout(self) -> Layout:
        """Counts and displacements in `whole`, in words."""
        return _places(self.counts)


def _waves(counts: list[int], length: int | None = None) -> Iterator[_Wave]:
    """Cuts so many words of each rank into waves of at most so many bytes; no words make none.

    All ranks that know the counts find the same. They are few, and for a few numbers Python's lists
    take less time than NumPy's arrays: above all after megabytes have passed the caches.

    Args:
        counts: words of each rank.
        length: by default `MOST`.
    """
    total, most = sum(counts), (length or MOST) // WORD
    if 0 < total <= most:  # nearly always; the lines below would find the same
        yield _Wave(0, total, [0] * len(counts), counts)
        return
    begins = _places(counts)[1]
    for start in range(0, total, most):
        end = min(start + most, total)
        firsts = [min(max(start - begin, 0), n) for begin, n in zip(begins, counts, strict=True)]
        lasts = [min(max(end - begin, 0), n) for begin, n in zip(begins, counts, strict=True)]
        yield _Wave(start, end, firsts, [b - a for a, b in zip(firsts, lasts, strict=True)])


def _places(counts: list[int]) -> Layout:
    """Counts, and displacements of what lies one behind the other."""
    return counts, [0, *accumulate(counts)][:-1]


def _words(data: np.ndarray) -> int:
    words, rest = divmod(data.nbytes, WORD)
    if rest or data.dtype != np.uint8:
        raise ValueError(f"wanted bytes in words of {WORD}, found {data.nbytes} of {data.dtype}")
    return words


def _layout(counts: np.ndarray, mend: str) -> Layout:
    """Returns counts and displacements, in words.

    Args:
        counts: words of each rank, int64.
        mend: what can be done about too many.

    Raises:
        Failure: if there are more words than MPI's 32-bit displacements reach.
    """
    found = _places(counts.tolist())
    if sum(found[0]) > REACH:
        size, most = (words * WORD / 2**30 for words in (sum(found[0]), REACH))
        raise Failure(f"{size:.4g} GiB in one collective, wanted {most:.4g} at most; {mend}")
    return found


def _part(layout: Layout, start: int, most: int) -> Layout:
    """Returns counts and displacements of the words from `start` on, `most` for each rank."""
    counts = [min(max(count - start, 0), most) for count in layout[0]]
    return counts, [at + min(start, count) for count, at in zip(*layout, strict=True)]


def _pieces(inbox: np.ndarray, layout: Layout) -> list[np.ndarray]:
    """Returns views of each rank's bytes in an inbox."""
    return [inbox[at * WORD : (at + count) * WORD] for count, at in zip(*layout, strict=True)]


@cache
def _second_key() -> int:
    """The name under which a communicator keeps its duplicate."""
    return MPI.Comm.Create_keyval()


def _second(comm: MPI.Intracomm) -> MPI.Intracomm:
    """Returns a duplicate communicator, made only once since MPI libraries limit their number."""
    found = comm.Get_attr(_second_key())
    if not isinstance(found, MPI.Intracomm):
        found = comm.Dup()
        comm.Set_attr(_second_key(), found)
    return found


@cache
def _nodes_key() -> int:
    """The name under which a communicator keeps its nodes, by the number that is asked for."""
    return MPI.Comm.Create_keyval()


def _nodes(comm: MPI.Intracomm) -> Node:
    """Returns this rank's node, made only once; all ranks call it together."""
    found, asked = comm.Get_attr(_nodes_key()), os.environ.get(NODES, "")
    if not isinstance(found, dict):
        found = dict[str, Node]()
        comm.Set_attr(_nodes_key(), found)
    if asked not in found:
        found[asked] = Node(comm)
        atexit.register(found[asked].free)
    return found[asked]


def _faked(comm: MPI.Intracomm) -> int:
    """Returns the number of this rank's node among those that `NODES` asks for; 0 without it."""
    asked = os.environ.get(NODES, "")
    if asked and not (asked.isdecimal() and 1 <= int(asked) <= comm.size):
        raise BadInput(f"${NODES} = '{asked}': wanted a number from 1 to {comm.size}, the ranks")
    return comm.rank * int(asked) // comm.size if asked else 0


def join() -> None:
    """Initialises MPI, until this process ends; no other process of this program knows MPI.

    A process that only starts ranks must not: it may be in a place that is meant for one of them.

    From now on SIGINT ends one of several ranks as other signals do, without Python's exception:
    others may wait for it in a collective, and the launcher ends them only if it is gone.
    """
    if not MPI.Is_initialized():
        os.environ.setdefault("OMPI_MCA_osc", "^ucx")  # complains of windows where it has no device
        MPI.Init_thread()
        atexit.register(MPI.Finalize)
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(*SLACK, 0, 0, 0)
        if MPI.COMM_WORLD.Get_size() > 1 and current_thread() is main_thread():
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def abort_on_exception() -> None:
    """Makes an uncaught exception on any of several ranks end the job: traceback, then Abort(1)."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if MPI.Is_initialized() and not MPI.Is_finalized() and MPI.COMM_WORLD.Get_size() > 1:
            abort("".join(traceback.format_exception(kind, error, trace)))
        sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook


def abort(text: str) -> None:
    """Ends the job on all ranks; says which rank failed, and why."""
    rank = MPI.COMM_WORLD.Get_rank()
    sys.stdout.flush()
    sys.stderr.write(f"rank {rank} of {MPI.COMM_WORLD.Get_size()} failed:\n{text.rstrip()}\n")
    sys.stderr.flush()
    sleep(AHEAD)
    MPI.COMM_WORLD.Abort(1)


def library() -> str:
    """Returns name and version of the MPI library behind mpi4py, on one line."""
    return " ".join(MPI.Get_library_version().replace("\x00", "").split())


def host() -> str:
    """Returns MPI's name of this node."""
    return MPI.Get_processor_name()
