"""Every collective on one to four ranks: contents, accounts, and what the clock says of them."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from fedmpi.errors import Failure
from fedmpi.messages import clock, wire
from fedmpi.messages.clock import OFF, Clock, Phase
from fedmpi.messages.wire import NAPS, ROOT, WORD, Line, Place, Wire
from tests import until

on_ranks = pytest.mark.parallel([1, 2, 3, 4])

COMM = MPI.COMM_WORLD
RANK, SIZE = COMM.Get_rank(), COMM.Get_size()
ON = [phase for phase in Phase if phase not in OFF]


@pytest.fixture
def ours() -> Iterator[Wire]:
    """A wire of all ranks; they begin and end together."""
    COMM.Barrier()
    yield Wire(Clock(), COMM)
    COMM.Barrier()


class Naps:
    """A clock that goes on only while a rank waits in `wire`: a second at each look for the others.

    One rank can stay away until all others wait for it, however long that takes them.
    """

    LONG = 20
    """Looks after which a rank says that it waits."""
    TAG = wire.TAG + 1

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.late = 0, -1
        monkeypatch.setattr(clock, "perf_counter", lambda: float(self.now))
        monkeypatch.setattr(wire, "EAGER", -1.0)
        monkeypatch.setattr(wire, "sleep", self.nap)

    def nap(self, _: float) -> None:
        """In place of `sleep`."""
        self.now += 1
        if self.now == self.LONG and self.late != RANK:
            COMM.Send(np.zeros(1), self.late, self.TAG)
        time.sleep(NAPS[1])

    def until_all_wait(self) -> None:
        """The late rank comes when the others wait, or at last if they never do."""
        for other in set(range(SIZE)) - {self.late}:
            if until(lambda other=other: COMM.Iprobe(other, self.TAG), patience=60):
                COMM.Recv(np.zeros(1), other, self.TAG)


@pytest.fixture
def naps(ours: Wire, monkeypatch: pytest.MonkeyPatch) -> Naps:
    """From now on all seconds are naps."""
    found = Naps(monkeypatch)
    ours.clock.reset()
    return found


def data(words: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=words * WORD, dtype=np.uint8)


def shares(words: list[int], seed: int = 0) -> tuple[np.ndarray, list[int]] | tuple[None, list]:
    """What the root hands out: so many words for each rank; nothing elsewhere."""
    if RANK != ROOT:
        return None, []
    pieces = [data(count, seed + rank) for rank, count in enumerate(words)]
    return np.concatenate(pieces), [piece.nbytes for piece in pieces]


def seconds(found: Wire, *phases: Phase) -> float:
    return float(found.clock.seconds[list(phases)].sum())


@on_ranks
def test_ranks_know_their_places(ours: Wire) -> None:
    assert (ours.rank, ours.size, ours.is_root) == (RANK, SIZE, RANK == ROOT)
    assert (ours.up, ours.down) == (0, 0)
    assert ours.place == Place(RANK, SIZE, RANK, SIZE), "all of them on one node"
    assert wire.host()
    assert "\n" not in wire.library()


@on_ranks
@pytest.mark.parametrize("words", [0, 1, 5, 50_000])
def test_bcast(ours: Wire, words: int) -> None:
    wanted = data(words)
    found = ours.bcast(wanted.copy() if ours.is_root else None)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, wanted)
    assert (ours.up, ours.down) == (0, words * WORD)


@on_ranks
@pytest.mark.parametrize("empty", ["nobody", "root", "others", "everyone"])
def test_gather(ours: Wire, empty: str) -> None:
    """Lengths differ, and whoever has nothing still takes part."""
    silent = {"nobody": (), "root": (ROOT,), "others": range(1, SIZE), "everyone": range(SIZE)}
    words = [0 if rank in silent[empty] else 3 * rank + 1 for rank in range(SIZE)]
    pieces = ours.gather(data(words[RANK], RANK))
    assert (ours.up, ours.down) == (words[RANK] * WORD, 0)
    if not ours.is_root:
        assert pieces == []
        return
    assert len(pieces) == SIZE
    for rank, piece in enumerate(pieces):
        np.testing.assert_array_equal(piece, data(words[rank], rank))


@on_ranks
def test_gather_again_and_again(ours: Wire) -> None:
    """The inbox grows when it must, and is used again; old pieces are then gone."""
    for turn, words in enumerate((2, 1000, 3)):
        pieces = ours.gather(data(words + RANK, turn * SIZE + RANK))
        for rank, piece in enumerate(pieces):
            np.testing.assert_array_equal(piece, data(words + rank, turn * SIZE + rank))
            assert np.shares_memory(piece, ours.buffers["ranks"])
    whole = sum(words + RANK for words in (2, 1000, 3)) * WORD
    assert (ours.up, ours.down) == (whole, 0)


@on_ranks
@pytest.mark.parametrize("empty", ["nobody", "root", "everyone"])
def test_scatter(ours: Wire, empty: str) -> None:
    silent = {"nobody": (), "root": (ROOT,), "everyone": range(SIZE)}[empty]
    words = [0 if rank in silent else 2 * rank + 1 for rank in range(SIZE)]
    mine = ours.scatter(*shares(words))
    np.testing.assert_array_equal(mine, data(words[RANK], RANK))
    assert mine.dtype == np.uint8
    assert (ours.up, ours.down) == (0, words[RANK] * WORD)


@on_ranks
@pytest.mark.parametrize("most", [8 * WORD, 1 << 30])
def test_all_exchange_pieces_of_all_lengths(
    ours: Wire, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Again and again, also in waves; some have nothing for some, or for anybody."""
    monkeypatch.setattr(wire, "MOST", most)
    for seed in range(4):
        words = [
            [(3 * seed + to * source) % 4 * seed for to in range(SIZE)] for source in range(SIZE)
        ]
        pieces = [data(count, seed + to) for to, count in enumerate(words[RANK])]
        before = ours.up
        found = ours.exchange(np.concatenate(pieces), [len(piece) for piece in pieces])
        assert ours.up - before == WORD * sum(words[RANK])
        assert len(found) == SIZE
        for source, piece in enumerate(found):
            np.testing.assert_array_equal(piece, data(words[source][RANK], seed + RANK))
    assert ours.down == 0


@pytest.mark.parallel([2, 3, 4])
@pytest.mark.parametrize("words", [0, 3, 100_000])
def test_one_rank_sends_to_another(ours: Wire, words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Towards the root is up, away from it down: for who sends, or who receives. Also in waves."""
    monkeypatch.setattr(wire, "MOST", 30_000 * WORD)
    last = SIZE - 1
    for source, to in ((last, 0), (0, last)):
        if source == RANK:
            ours.send(data(words, source), to)
        if to == RANK:
            np.testing.assert_array_equal(ours.recv(source), data(words, source))
    assert (ours.up, ours.down) == ((WORD * words,) * 2 if last == RANK else (0, 0))


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("late", ["sender", "receiver"])
def test_waiting_for_another_rank_is_not_transfer(ours: Wire, naps: Naps, late: str) -> None:
    naps.late = int(late == "sender")
    if RANK > 1:
        if naps.late != RANK:
            COMM.Send(np.zeros(1), naps.late, naps.TAG)
        return
    if naps.late == RANK:
        naps.until_all_wait()
    if RANK:
        ours.send(data(10_000), 0)
    else:
        ours.recv(1)
    assert seconds(ours, Phase.WAIT) == seconds(ours, *Phase) == naps.now
    assert naps.late == RANK or naps.now >= naps.LONG


@on_ranks
def test_accounts_add_up_until_reset(ours: Wire) -> None:
    for _ in range(2):
        ours.bcast(data(3) if ours.is_root else None)
        ours.gather(data(RANK))
        ours.scatter(*shares([7] * SIZE))
    assert (ours.up, ours.down) == (2 * RANK * WORD, 2 * 10 * WORD)
    ours.reset()
    assert (ours.up, ours.down) == (0, 0)


@on_ranks
def test_report(ours: Wire) -> None:
    """Rows of several dtypes, unequally many, off the clock and outside the accounts."""
    form = np.dtype([("client", "i8"), ("loss", "f8"), ("name", "S8")])
    for rows in (
        np.arange(RANK, dtype="i8"),
        np.array([np.nan, RANK / 3]),
        np.array([(RANK, 0.5, b"front"), (7, np.inf, b"")][: RANK % 3], form),
    ):
        found = ours.report(rows)
        assert len(found) == (SIZE if ours.is_root else 0)
        if ours.is_root:
            assert all(piece.dtype == rows.dtype for piece in found)
            assert not any(np.shares_memory(piece, ours.buffers["ranks"]) for piece in found)
    if ours.is_root:
        assert [len(piece) for piece in found] == [min(rank % 3, 2) for rank in range(SIZE)]
        assert all(piece[0]["client"] == rank for rank, piece in enumerate(found) if len(piece))
    assert (ours.up, ours.down) == (0, 0)
    assert seconds(ours, *ON) == 0
    assert seconds(ours, Phase.RECORD) > 0


@on_ranks
def test_reports_values_survive_the_next_gather(ours: Wire) -> None:
    found = ours.report(np.full(3, RANK))
    ours.gather(data(9))
    assert [piece.tolist() for piece in found] == [[r] * 3 for r in range(SIZE) if ours.is_root]


@on_ranks
@pytest.mark.parametrize("length", [0, 1, 5, 50_001])
def test_publish(ours: Wire, length: int) -> None:
    """Any number of values, in memory that stays; what the others hand in stays theirs."""
    mine = np.full(length, RANK, np.float32)
    found = ours.publish(mine + 0.5 if ours.is_root else mine)
    ours.bcast(data(9) if ours.is_root else None)
    np.testing.assert_array_equal(found, np.full(length, 0.5, np.float32))
    np.testing.assert_array_equal(mine, np.full(length, RANK))
    assert found.dtype == np.float32


@on_ranks
def test_publishing_is_off_the_clock_and_the_accounts(ours: Wire, naps: Naps) -> None:
    naps.late = ROOT
    if ours.is_root:
        naps.until_all_wait()
    ours.publish(np.zeros(9, np.float32))
    assert (ours.up, ours.down) == (0, 0)
    assert ours.clock.elapsed() == seconds(ours, *ON) == 0
    assert seconds(ours, Phase.EVALUATE) == naps.now
    assert ours.is_root or naps.now >= naps.LONG


@on_ranks
def test_settle_is_off_the_clock(ours: Wire) -> None:
    ours.settle()
    assert (ours.up, ours.down) == (0, 0)
    assert seconds(ours, *ON) == 0
    assert seconds(ours, Phase.EVALUATE) > 0


def speak(ours: Wire, verb: str) -> None:
    """One collective, of a word for each."""
    if verb == "bcast":
        ours.bcast(data(1) if ours.is_root else None)
    elif verb == "gather":
        ours.gather(data(1))
    elif verb == "exchange":
        ours.exchange(data(SIZE), [WORD] * SIZE)
    else:
        ours.scatter(*shares([1] * SIZE))


@on_ranks
@pytest.mark.parametrize("verb", ["bcast", "gather", "scatter", "exchange"])
def test_seconds_are_of_waiting_and_of_transfer(ours: Wire, verb: str) -> None:
    speak(ours, verb)
    assert seconds(ours, Phase.WAIT) > 0
    assert seconds(ours, Phase.TRANSFER) > 0
    assert seconds(ours, Phase.PACK, Phase.TRAIN, Phase.SERVE, *OFF) == 0


@on_ranks
@pytest.mark.parametrize("verb", ["bcast", "gather", "scatter", "exchange"])
def test_waiting_is_not_transfer(ours: Wire, naps: Naps, verb: str) -> None:
    """One rank is late: the others wait for it, before the transfer and not in it."""
    naps.late = SIZE - 1
    if naps.late == RANK:
        naps.until_all_wait()
    speak(ours, verb)
    assert seconds(ours, Phase.WAIT) == seconds(ours, *Phase) == naps.now
    assert naps.late == RANK or naps.now >= naps.LONG


class Counted(MPI.Intracomm):
    """Notes the collectives that are made on it."""

    def __new__(cls, comm: MPI.Intracomm) -> "Counted":
        found = super().__new__(cls, comm)
        found.made = []
        return found

    def __getattribute__(self, name: str) -> object:
        if name[0].isupper() and not name.startswith("Get_"):
            self.made.append(name)
        return super().__getattribute__(name)


@on_ranks
@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("verb", ["gather", "bcast"])
def test_counts_travel_with_those_who_meet(verb: str, nodes: int) -> None:
    """They take no collective of their own: small messages are as fast as those of known length.

    The messages' own is a nonblocking one between nodes, where that is faster.
    """
    comm = Counted(COMM)
    speak(Wire(Clock(), comm, [rank % nodes for rank in range(SIZE)]), verb)
    name = {"gather": "gatherv", "bcast": "bcast"}[verb]
    is_near = 1 in (nodes, SIZE)
    assert comm.made == ["Iallgather", name.capitalize() if is_near else f"I{name}"]


@on_ranks
def test_settle_takes_the_waiting_off_the_clock(ours: Wire, naps: Naps) -> None:
    """The root measures: no part of a round, neither for it nor for the others."""
    naps.late = ROOT
    if ours.is_root:
        with ours.clock(Phase.EVALUATE):
            naps.until_all_wait()
            naps.now += naps.LONG
    ours.settle()
    assert ours.clock.elapsed() == 0
    assert seconds(ours, Phase.EVALUATE) == naps.now >= naps.LONG


@on_ranks
def test_lowest(ours: Wire) -> None:
    assert ours.lowest(False) is None
    assert ours.lowest(True) == 0
    for first in range(SIZE):
        assert ours.lowest(first == RANK) == first
        assert ours.lowest(first <= RANK) == first
    assert (ours.up, ours.down) == (0, 0)
    assert seconds(ours, *Phase) == 0


@on_ranks
@pytest.mark.parametrize("wrong", [np.zeros(9, np.uint8), np.zeros(2)])
def test_gather_wants_words(ours: Wire, wrong: np.ndarray) -> None:
    """On every rank alike, because one that raises alone leaves the others waiting."""
    with pytest.raises(ValueError, match=f"words of {WORD}"):
        ours.gather(wrong)
    with pytest.raises(ValueError, match=f"words of {WORD}"):
        ours.report(np.zeros(9, np.uint8))


@pytest.mark.parametrize("wrong", [np.zeros(9, np.uint8), np.zeros(2)])
def test_root_wants_words(wrong: np.ndarray) -> None:
    alone = Wire(Clock(), MPI.COMM_SELF)
    with pytest.raises(ValueError, match=f"words of {WORD}"):
        alone.bcast(wrong)
    (line,) = alone.lines(1)
    with pytest.raises(ValueError, match=f"words of {WORD}"):
        line.send_up(wrong)
    assert (alone.up, alone.down) == (0, 0)


@pytest.mark.parametrize(("size", "lengths"), [(9, [9]), (16, [8]), (16, [24]), (16, [8, 8])])
def test_shares_are_words_and_all_that_there_is(size: int, lengths: list[int]) -> None:
    alone = Wire(Clock(), MPI.COMM_SELF)
    (line,) = alone.lines(1)
    for hand_out in (alone.scatter, line.send_down):
        with pytest.raises(ValueError, match=rf"for 1 ranks, {size} bytes .* found \[{lengths[0]}"):
            hand_out(np.zeros(size, np.uint8), lengths)
    assert (alone.down, line.pending) == (0, [])


def turn(line: Line, up: list[int], down: list[int], seed: int) -> None:
    """One turn on a line, with so many words from and for each rank."""
    line.send_up(data(up[RANK], seed + RANK))
    pieces = line.recv_up()
    assert len(pieces) == (SIZE if RANK == ROOT else 0)
    for rank, piece in enumerate(pieces):
        np.testing.assert_array_equal(piece, data(up[rank], seed + rank))
    if RANK == ROOT:
        line.send_down(*shares(down, seed))
    np.testing.assert_array_equal(line.recv_down(), data(down[RANK], seed + RANK))


@on_ranks
@pytest.mark.parametrize("large", [3, 40_000])
def test_turns_on_a_line(ours: Wire, large: int) -> None:
    """Lengths change from turn to turn and rank to rank; some have nothing to say, or to hear."""
    (line,) = ours.lines(1)
    total = np.zeros(2, int)
    for seed in range(8):
        up, down = ([large * ((seed + rank + way) % 3) for rank in range(SIZE)] for way in range(2))
        turn(line, up, down, seed)
        total += WORD * np.array([up[RANK], down[RANK]])
    line.wait()
    assert (ours.up, ours.down) == tuple(total)
    assert line.pending == []


@on_ranks
def test_lines_are_the_same_each_time(ours: Wire) -> None:
    both = ours.lines(2)
    assert ours.lines(1) == both[:1]
    assert ours.lines(2) == both
    assert both[0].comm == ours.comm != both[1].comm
    assert Wire(Clock(), COMM).lines(2)[1].comm == both[1].comm, "libraries have but few"


@on_ranks
def test_a_line_does_not_wait_for_the_other(ours: Wire) -> None:
    """Ranks ask on both before the root hears, and it answers in another order than it was asked.

    Between the turns ranks speak on the wire itself, which is one of the lines' communicator.
    """
    first, second = ours.lines(2)
    for seed in range(3):
        words = [seed + rank for rank in range(SIZE)]
        first.send_up(data(words[RANK], RANK))
        second.send_up(data(2 * words[RANK], RANK + 9))
        for line, factor, start in ((second, 2, 9), (first, 1, 0)):
            for rank, piece in enumerate(line.recv_up()):
                np.testing.assert_array_equal(piece, data(factor * words[rank], rank + start))
            if ours.is_root:
                line.send_down(*shares(words, start))
        for line, start in ((first, 0), (second, 9)):
            np.testing.assert_array_equal(line.recv_down(), data(words[RANK], RANK + start))
            line.wait()
        assert len(ours.gather(data(1))) == (SIZE if ours.is_root else 0)


@pytest.mark.parallel([2, 3, 4])
@pytest.mark.parametrize("words", [5, 100_000])
def test_nobody_is_held_up_on_a_line(ours: Wire, words: int) -> None:
    """Everyone meets elsewhere between asking and hearing, and between answering and learning."""
    lines, elsewhere = ours.lines(2), COMM.Dup()
    for line in lines:
        line.send_up(data(words, RANK))
    elsewhere.Barrier()
    for line in lines:
        line.recv_up()
        if ours.is_root:
            line.send_down(*shares([words] * SIZE))
    elsewhere.Barrier()
    for line in lines:
        np.testing.assert_array_equal(line.recv_down(), data(words, RANK))
        line.wait()
    elsewhere.Free()


@pytest.mark.parallel([2, 3, 4])
@pytest.mark.parametrize("late", ["rank", "root"])
def test_waiting_on_a_line_is_not_transfer(ours: Wire, naps: Naps, late: str) -> None:
    """Until counts come it is waiting: for a late rank, or for the root; what it answers waits."""
    (line,) = ours.lines(1)
    naps.late = SIZE - 1 if late == "rank" else ROOT
    if late == "rank" and naps.late == RANK:
        naps.until_all_wait()
    line.send_up(data(10))
    line.recv_up()
    if late == "root" and naps.late == RANK:
        naps.until_all_wait()
    if ours.is_root:
        line.send_down(*shares([10] * SIZE))
    line.recv_down()
    line.wait()
    assert seconds(ours, Phase.WAIT, Phase.TRANSFER) == seconds(ours, *Phase) == naps.now
    assert naps.late == RANK or seconds(ours, Phase.WAIT) >= naps.LONG


@pytest.mark.parallel([2, 3, 4])
def test_seconds_on_a_line_are_of_waiting_and_of_transfer(ours: Wire) -> None:
    (line,) = ours.lines(1)
    line.send_up(data(10))
    line.recv_up()
    if ours.is_root:
        line.send_down(*shares([10] * SIZE))
    line.recv_down()
    line.wait()
    assert seconds(ours, Phase.WAIT) > 0
    assert seconds(ours, Phase.TRANSFER) > 0
    assert seconds(ours, Phase.PACK, Phase.TRAIN, Phase.SERVE, *OFF) == 0


@on_ranks
@pytest.mark.parametrize("most", [12, 1 << 30])
def test_reduction_is_in_place_on_the_root(
    ours: Wire, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one piece or several; whole numbers, so that the order of adding does not matter."""
    monkeypatch.setattr(wire, "MOST", most)
    mine = [np.arange(10, dtype="f4") + RANK, np.full(2, 2.0**40 * RANK), np.empty(0, "f4")]
    before = [vector.copy() for vector in mine]
    ours.reduce(mine)
    wanted = before
    if ours.is_root:
        ranks = sum(range(SIZE))
        wanted = [SIZE * np.arange(10) + ranks, np.full(2, 2.0**40 * ranks), np.empty(0)]
    for found, one in zip(mine, wanted, strict=True):
        np.testing.assert_array_equal(found, one)
    assert (ours.up, ours.down) == (0 if ours.is_root else 40 + 16, 0)
    assert seconds(ours, Phase.TRANSFER) > 0


class Spy:
    """A communicator that notes how many bytes its collectives are handed at a time."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.comm, self.sizes = comm, list[int]()

    def __getattr__(self, name: str) -> object:
        """A method of the communicator's."""
        verb = getattr(self.comm, name)
        if name not in ("Bcast", "Gatherv", "Scatterv", "Ibcast", "Igatherv", "Iscatterv"):
            return verb

        def noted(*given: object) -> object:
            self.sizes += [each[0].nbytes for each in given if isinstance(each, list)]
            return verb(*given)

        return noted


@on_ranks
@pytest.mark.parametrize("most", [8, 40, 1000])
@pytest.mark.parametrize("empty", ["nobody", "root", "last", "everyone"])
def test_what_is_long_goes_in_waves(
    ours: Wire, most: int, empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wave ends within a rank's bytes, or has those of several; contents are as in one."""
    silent = {"nobody": (), "root": (ROOT,), "last": (SIZE - 1,), "everyone": range(SIZE)}[empty]
    words = [0 if rank in silent else 7 * (rank + 1) for rank in range(SIZE)]
    spy = ours.comm = Spy(COMM)
    monkeypatch.setattr(wire, "MOST", most)
    for rank, piece in enumerate(ours.gather(data(words[RANK], RANK))):
        np.testing.assert_array_equal(piece, data(words[rank], rank))
    np.testing.assert_array_equal(ours.scatter(*shares(words)), data(words[RANK], RANK))
    length = 0 if empty == "everyone" else 9
    found = ours.bcast(data(length) if ours.is_root else None)
    np.testing.assert_array_equal(found, data(length))
    assert max(spy.sizes, default=0) <= most
    assert bool(spy.sizes) == (length > 0)
    assert ours.up == WORD * words[RANK]
    assert ours.down == WORD * (words[RANK] + length)


def test_waves_of_more_than_32_bits_count() -> None:
    """Each word in one wave, and in the order of the whole; none is longer than is possible."""
    counts = np.array([3, 0, 2**32 + 5, 1, 2**31 - 7, 0])
    waves = list(wire._waves(counts.tolist()))
    most, starts = wire.MOST // WORD, [0, 3, 3, 2**32 + 8, 2**32 + 9, 2**32 + 2**31 + 2]
    assert [wave.start for wave in waves] == list(range(0, int(counts.sum()), most))
    told = np.zeros(len(counts), np.int64)
    for wave in waves:
        lengths, places = wave.layout
        assert sum(lengths) == wave.end - wave.start <= most
        for rank, (length, place) in enumerate(zip(lengths, places, strict=True)):
            if length:
                assert wave.firsts[rank] == told[rank]
                assert starts[rank] + told[rank] == wave.start + place
        told += wave.counts
    np.testing.assert_array_equal(told, counts)
    assert list(wire._waves([0, 0, 0])) == []


def available() -> float:
    """GiB of memory that this machine can give, as all ranks agree."""
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    found = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    least = np.array([found[0] / 2**20 if found else 0.0])
    COMM.Allreduce(MPI.IN_PLACE, least, MPI.MIN)
    return float(least[0])


@pytest.mark.large
@pytest.mark.parallel([2])
def test_more_than_two_gibibytes(ours: Wire) -> None:
    """2.5 GiB from the last rank, with marks around each edge of a wave."""
    if available() < 8:
        pytest.skip("less than 8 GiB of memory are available")
    length, step = 5 << 29, wire.MOST
    marks = [at + near for at in range(0, length + 1, step) for near in (-1, 0, 1)]
    marks = np.array([at for at in marks if 0 <= at < length] + [length - 1])
    mine = np.zeros(length if RANK == SIZE - 1 else 0, np.uint8)
    if len(mine):
        mine[marks] = 1 + marks % 251
    pieces = ours.gather(mine)
    if ours.is_root:
        assert [len(piece) for piece in pieces] == [0, length]
        np.testing.assert_array_equal(pieces[-1][marks], 1 + marks % 251)
    ours.buffers.clear()


def test_what_displacements_do_not_reach_is_an_error_that_says_so() -> None:
    limit = 2**31 - 1
    counts, displacements = wire._layout(np.array([limit - 2, 0, 2]), "")
    assert (counts, displacements) == ([limit - 2, 0, 2], [0, limit - 2, limit - 2])
    with pytest.raises(Failure, match=r"32 GiB in one collective, wanted 16 at most; do less"):
        wire._layout(np.array([2 * limit, 1]), "do less")


@on_ranks
def test_pieces_that_displacements_do_not_reach(
    ours: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As much as they reach goes; of more than that each rank says what else is possible."""
    monkeypatch.setattr(wire, "REACH", 3 * SIZE)
    found = ours.exchange(data(3 * SIZE), [3 * WORD] * SIZE)
    assert [len(piece) for piece in found] == [3 * WORD] * SIZE
    with pytest.raises(Failure, match=r"take exchange\.name = 'reduce', 'tree' or 'sparse'"):
        ours.exchange(data(4 * SIZE), [4 * WORD] * SIZE)


@pytest.mark.parallel([2, 3])
def test_pieces_of_others_that_displacements_do_not_reach(
    ours: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank sends what they reach, all of it to the root, which cannot receive as much."""
    monkeypatch.setattr(wire, "REACH", 3)
    if ours.is_root:
        with pytest.raises(Failure, match="in one collective"):
            ours.exchange(data(3), [3 * WORD] + [0] * (SIZE - 1))
        # The others are in the collective by now.
        send = [data(3), ([3] + [0] * (SIZE - 1), [0] * SIZE), MPI.UINT64_T]
        COMM.Alltoallv(send, [data(3 * SIZE), [3] * SIZE, MPI.UINT64_T])
    else:
        ours.exchange(data(3), [3 * WORD] + [0] * (SIZE - 1))


def test_a_line_that_displacements_do_not_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the way up, and on the way down."""
    (line,) = Wire(Clock(), MPI.COMM_SELF).lines(1)
    monkeypatch.setattr(wire, "REACH", 3)
    line.send_up(data(3))
    assert len(line.recv_up()[0]) == 3 * WORD
    line.send_up(data(4))
    with pytest.raises(Failure, match=r"wanted .* at most; lower batch or exchange\.window"):
        line.recv_up()
    with pytest.raises(Failure, match="in one collective"):
        line.send_down(data(4), [4 * WORD])
