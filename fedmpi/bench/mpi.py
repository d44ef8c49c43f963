"""Collectives as `messages.wire` makes them, against the bare ones of the MPI library.

It runs on the ranks that a launcher starts: mpirun -n 4 fedmpi bench mpi. The idiom is that of the
OSU micro-benchmarks: buffers are made outside of the clock, a barrier comes before each collective,
the first ones do not count, and small messages are sent more often than large ones. A time is the
mean over the ranks, and stands beside that of the fastest and the slowest. Ours send counts beside
the data. What arrives is compared first.
"""

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import click
import numpy as np

from fedmpi.bench import JSON, REPEATS, Result, rank
from fedmpi.messages.clock import Phase
from fedmpi.messages.wire import ROOT, WORD
from fedmpi.turns import take_turns

if TYPE_CHECKING:
    from fedmpi.runs.job import Job

ON_RANKS = True
"""A launcher may start this benchmark on several ranks."""
COLLECTIVES = ("bcast", "gather", "reduce")
SIZES = tuple(8 * 8**power for power in range(8))
"""Bytes of a rank's message: 8 to 16 MiB."""
SMALL, MANY, FEW = 1 << 13, 100, 10
"""Bytes of the largest small message; collectives in a turn with small messages, and with others.
"""
WARM = 5
"""Of so many collectives one more comes first and does not count."""

Work = Callable[[], list[np.ndarray]]


def works(job: "Job", collective: str, size: int) -> dict[str, Work]:
    """Our collective and the bare one, with so many bytes from or to each rank.

    Each returns what has arrived on this rank, in pieces; nothing where nothing does.
    """
    wire, comm, mine = job.wire, job.wire.comm, np.full(size // 4, 1.0 + job.wire.rank, "f4")
    words, total = mine.view(np.uint64), mine.copy()
    length = size * wire.size if collective == "gather" else size
    inbox = np.empty(length // WORD, np.uint64)
    root, into = wire.is_root, inbox if wire.is_root else None

    def our_bcast() -> list[np.ndarray]:
        return [wire.bcast(mine.view(np.uint8) if root else None)]

    def bare_bcast() -> list[np.ndarray]:
        found = words if root else inbox
        comm.Bcast(found, ROOT)
        return [found]

    def our_gather() -> list[np.ndarray]:
        return wire.gather(mine.view(np.uint8))

    def bare_gather() -> list[np.ndarray]:
        comm.Gatherv(words, [inbox, [len(words)] * wire.size] if root else None, ROOT)
        return [inbox] if root else []

    def our_reduce() -> list[np.ndarray]:
        wire.reduce([total])
        return [total] if root else []

    def bare_reduce() -> list[np.ndarray]:
        comm.Reduce(mine, None if into is None else into.view("f4"), root=ROOT)
        return [inbox] if root else []

    both = {
        "bcast": (our_bcast, bare_bcast),
        "gather": (our_gather, bare_gather),
        "reduce": (our_reduce, bare_reduce),
    }[collective]
    return dict(zip(("ours", "bare"), both, strict=True))


def wanted(collective: str, size: int, ranks: int, is_root: bool) -> bytes:
    """What has to arrive on a rank."""
    if collective == "bcast":
        return np.full(size // 4, 1, "f4").tobytes()
    if not is_root:
        return b""
    numbers = np.arange(1, ranks + 1, dtype="f4")
    return np.repeat(numbers if collective == "gather" else numbers.sum(), size // 4).tobytes()


def loop(job: "Job", side: str, work: Work, count: int) -> float:
    """The seconds of one collective on this rank, without waiting for the others: mean of many."""
    wire, clock, bare = job.wire, job.clock, 0.0
    for number in range(-(-count // WARM) + count):
        if number == -(-count // WARM):
            clock.reset()
            bare = 0.0
        if side == "bare":
            wire.settle()
        began = perf_counter()
        work()
        bare += perf_counter() - began
    return (bare if side == "bare" else float(clock.seconds[Phase.TRANSFER])) / count


def measure(job: "Job", collective: str, size: int, repeats: int) -> Result | None:
    """One collective with messages of one size; the result is on the root."""
    wire, sides = job.wire, works(job, collective, size)
    right = wanted(collective, size, wire.size, wire.is_root)
    for side, work in sides.items():
        if b"".join(piece.tobytes() for piece in work()) != right:
            raise AssertionError(f"{side}: a {collective} of {size} bytes yields something else")
    count = MANY if size <= SMALL else FEW
    turns = {side: partial(loop, job, side, work, count) for side, work in sides.items()}
    seconds = take_turns(turns, repeats)
    found = wire.report(np.array([median(seconds["ours"]), median(seconds["bare"])]))
    if not wire.is_root:
        return None
    ours, bare = np.array(found).T
    case = {"collective": collective, "bytes": size, "ranks": wire.size}
    also = {
        "bare_us": 1e6 * bare.mean(),
        "bare_least_us": 1e6 * bare.min(),
        "bare_most_us": 1e6 * bare.max(),
    }
    against = {"bare": float(ours.mean() / bare.mean())}
    return Result("mpi", case, float(ours.mean()), (ours.min(), ours.max()), against, also)


def cases(names: tuple[str, ...], sizes: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    """Each collective with each size, or with all that there are."""
    for name in names or COLLECTIVES:
        for size in sizes or SIZES:
            yield name, -(-size // WORD) * WORD


@click.command()
@click.option(
    "--collective",
    "names",
    type=click.Choice(COLLECTIVES),
    multiple=True,
    help="Only this collective. Can be repeated.",
)
@click.option(
    "--bytes",
    "sizes",
    type=click.IntRange(min=1),
    multiple=True,
    help="Only messages of this size, up to whole words of 8 bytes. Can be repeated.",
)
@REPEATS
@JSON
def command(names: tuple[str, ...], sizes: tuple[int, ...], repeats: int, as_json: bool) -> None:
    """Measure collectives against those of the bare MPI library.

    Start it on several ranks: mpirun -n 4 fedmpi bench mpi.
    """
    job = rank()
    for name, size in cases(names, sizes):
        result = measure(job, name, size, repeats)
        if result is not None:
            result.say(as_json)
