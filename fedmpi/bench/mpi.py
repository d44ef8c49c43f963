"""Collectives and exchanges on the ranks of a launcher, against bare ones of the MPI library.

It runs on the ranks that a launcher starts: srun -n 64 fedmpi bench mpi. The idiom is that of the
OSU micro-benchmarks: buffers are made outside of the clock, a barrier comes before each collective,
the first ones do not count, and small messages are sent more often than large ones. Each rank has
the median of its turns; their mean, the least and the most are in columns that readers of OSU's
output know. What arrives is compared first.

Three kinds of things are measured:

* Collectives of `messages.wire`, by the bytes of a rank's message: beside bare ones of the same
  bytes, whose lengths all ranks know; ones that send them beforehand; pickled ones; and torch's
  all_reduce over gloo. Where there are several nodes with several ranks each, they are measured
  among all ranks, those of each node (near), and the first ones of the nodes (far).
* Whole exchanges, by the bytes of a client's dense vector, sparsity, and clients a rank: from
  messages that are ready until the root has their sum. Beside dense vectors that are pickled,
  gathered, or added up and reduced.
* The work before and after: on every rank at once (each), or on the root alone (root).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from fedmpi import config, provenance
from fedmpi.bench import JSON, REPEATS, exchange, gloo, pack, rank, select
from fedmpi.messages import partial as sums
from fedmpi.messages import sparse
from fedmpi.messages import wire as wires
from fedmpi.messages.clock import Phase
from fedmpi.messages.codec import Block, Coding, Kind, Message, unpack
from fedmpi.messages.codec import pack as packed
from fedmpi.messages.counts import keep_round
from fedmpi.messages.wire import ROOT, WORD, Wire
from fedmpi.results import record
from fedmpi.results.tables import Columns
from fedmpi.turns import take_turns

if TYPE_CHECKING:
    from fedmpi.runs.job import Job

ON_RANKS = True
"""A launcher may start this benchmark on several ranks."""
TABLE = "mpi"
"""The table of the results in their file."""
PHASES = {
    "wait": Phase.WAIT,
    "transfer": Phase.TRANSFER,
    "pack": Phase.PACK,
    "serve": Phase.SERVE,
}
"""Parts of the time of an exchange, on the root."""
COLUMNS: Columns = {
    "kind": ("S12", "what is measured: collective, exchange or work"),
    "name": ("S16", "collective, exchange or step; dense: a reference of exchanges"),
    "side": ("S16", "ours, or the reference"),
    "level": (
        "S8",
        "ranks that take part. all; near: those of a node; far: the first ones of the nodes. Of "
        "work: each, at once; or root alone",
    ),
    "positions": ("S8", "of an exchange: each client's own, or agreed on"),
    "ranks": ("i4", "ranks that take part; near: of the largest node"),
    "nodes": ("i4", "nodes of all ranks"),
    "per_node": ("i4", "ranks of the largest node"),
    "clients": ("i4", "of an exchange: clients of each rank but the root, if it is not alone"),
    "bytes": ("i8", "of a rank's message; of an exchange or work: of a client's dense vector"),
    "sparsity": ("f8", "share of a client's values that are not sent"),
    "moved": ("i8", "bytes handed to our collectives by all ranks, or by them to all ranks"),
    "iterations": ("i4", "in each turn"),
    "avg_us": ("f8", "microseconds: mean over the ranks of the median of their turns"),
    "min_us": ("f8", "least over the ranks"),
    "max_us": ("f8", "most over the ranks"),
    **{
        f"{name}_us": ("f8", f"of an exchange: phase {name} on the root, in which the rest is")
        for name in PHASES
    },
}
COLLECTIVES = ("meet", "bcast", "gather", "near", "reduce", "pair", "alltoall")
"""`meet` is the barrier before each of the others, but for `pair`; `near` ranks' bytes in a node's
memory. In a `pair` each odd rank sends to the one before it, all at once. In an `alltoall` each
rank sends a part of its message to every rank."""
OTHER_WAYS: tuple[config.Way, ...] = ("node", "blocks")
"""Ways of a broadcast beside ours, among all ranks: see `exchange.down`."""
SIZES = tuple(8 * 4**power for power in range(12))
"""Bytes of a rank's message: 8 to 32 MiB."""
VECTORS = tuple(1 << power for power in (14, 16, 18, 20, 22, 24))
"""Bytes of a client's dense vector, float32: 16 KiB to 16 MiB."""
SPARSITIES, CLIENTS = (0.5, 0.9, 0.99, 0.999), (1, 4)
MOST = 1 << 31
"""Bytes that one rank gets at once, and has to be less: some references count in 32 bits."""
LOOPS = ((1 << 13, 100), (1 << 20, 20))
"""Collectives in a turn with messages of so many bytes at most; `FEW` with larger ones."""
FEW = 5
BUNDLE = 4
BUNDLED = dict.fromkeys(("pack", "pack dense", "read", "read dense", "add", "add dense"), BUNDLE)
"""Messages of as many clients that are packed, read or added in turn; a time is that of one."""
WARM = 5
"""Of so many collectives one more comes first and does not count."""
LATENCY = " Latency(us)"
HEAD = ("Size", f"Avg{LATENCY}", f"Min{LATENCY}", f"Max{LATENCY}", "Iterations")
"""Columns of the OSU micro-benchmarks, with --full."""

Row = dict[str, Any]
Work = Callable[[], list[np.ndarray]]


@dataclass(frozen=True)
class Level:
    """Ranks among which a collective is made.

    Attributes:
        name: all, near or far.
        wire: to them; None on a rank that is not among them.
        ranks: their number; of the largest node for `near`.
    """

    name: str
    wire: Wire | None
    ranks: int


def levels(wire: Wire) -> tuple[list[Level], int, int]:
    """Returns the levels that can be told apart, the nodes, and the ranks of the largest one."""
    mine = np.array([wire.node.comm.size if wire.node.is_leader else 0])
    sizes = np.array(wire.report(mine) or [mine])
    nodes, most = wire.publish(np.array([np.count_nonzero(sizes), sizes.max()])).tolist()
    if nodes == 1 or most == 1:
        return [Level("near" if nodes == 1 else "far", wire, wire.size)], nodes, most
    near = Level("near", wire.near, most)
    return [Level("all", wire, wire.size), near, Level("far", wire.leaders, nodes)], nodes, most


def works(wire: Wire, world: Wire, collective: str, size: int) -> dict[str, Work]:
    """Our collective and its references, with so many bytes from or to each rank of a wire.

    Each returns what has arrived on this rank, in pieces; nothing where nothing does.
    """
    comm, mine, root = wire.comm, np.full(size // 4, 1.0 + wire.rank, "f4"), wire.is_root
    words, total = mine.view(np.uint64), mine.copy()
    shares = [len(part) for part in np.array_split(words, wire.size)]
    pieces = wire.size if root and collective in ("gather", "near") else 1
    inbox, counts = np.empty(pieces * len(words), "u8"), [len(words)] * wire.size
    mixed = np.empty(shares[wire.rank] * wire.size if collective == "alltoall" else 0, "u8")
    sends, receives = wire.rank % 2 == 1, wire.rank % 2 == 0 and wire.rank + 1 < wire.size

    def our_meet() -> list[np.ndarray]:
        wire.settle()
        return []

    def bare_meet() -> list[np.ndarray]:
        comm.Barrier()
        return []

    def our_bcast() -> list[np.ndarray]:
        return [wire.bcast(mine.view(np.uint8) if root else None)]

    def way_of(way: config.Way) -> list[np.ndarray]:
        return [wire.bcast(mine.view(np.uint8) if root else None, way)]

    def bare_bcast() -> list[np.ndarray]:
        found = words if root else inbox
        comm.Bcast(found, ROOT)
        return [found]

    def counted_bcast() -> list[np.ndarray]:
        comm.Bcast(np.array([len(words)]), ROOT)
        return bare_bcast()

    def our_gather() -> list[np.ndarray]:
        return wire.gather(mine.view(np.uint8))

    def bare_gather() -> list[np.ndarray]:
        comm.Gatherv(words, [inbox, counts] if root else None, ROOT)
        return [inbox] if root else []

    def counted_gather() -> list[np.ndarray]:
        heard = np.empty(wire.size, np.int64) if root else None
        comm.Gather(np.array([len(words)]), heard, ROOT)
        comm.Gatherv(words, None if heard is None else [inbox, heard.tolist()], ROOT)
        return [inbox] if root else []

    def pickled_gather() -> list[np.ndarray]:
        return comm.gather(mine, ROOT) or []

    def write(room: np.ndarray) -> np.ndarray:
        if len(room) < size:
            return mine.view(np.uint8)
        room[:size] = mine.view(np.uint8)
        return room[:size]

    def our_near() -> list[np.ndarray]:
        return world.gather_near(write)

    def our_reduce() -> list[np.ndarray]:
        if root:
            total[:] = mine
        wire.reduce([total])
        return [total] if root else []

    def bare_reduce() -> list[np.ndarray]:
        comm.Reduce(mine, inbox.view("f4") if root else None, root=ROOT)
        return [inbox] if root else []

    def our_pair() -> list[np.ndarray]:
        if sends:
            wire.send(mine.view(np.uint8), wire.rank - 1)
        return [wire.recv(wire.rank + 1)] if receives else []

    def bare_pair() -> list[np.ndarray]:
        if sends:
            comm.Send(words, wire.rank - 1)
        if receives:
            comm.Recv(inbox, wire.rank + 1)
        return [inbox] if receives else []

    def our_alltoall() -> list[np.ndarray]:
        return wire.exchange(mine.view(np.uint8), [WORD * share for share in shares])

    def bare_alltoall() -> list[np.ndarray]:
        comm.Alltoallv([words, shares], [mixed, [shares[wire.rank]] * wire.size])
        return [mixed]

    sides: dict[str, dict[str, Work]] = {
        "meet": {"ours": our_meet, "bare": bare_meet},
        "bcast": {"ours": our_bcast, "bare": bare_bcast, "counted": counted_bcast},
        "gather": {"ours": our_gather, "bare": bare_gather, "counted": counted_gather},
        "near": {"ours": our_near, "bare": bare_gather},
        "reduce": {"ours": our_reduce, "bare": bare_reduce},
        "pair": {"ours": our_pair, "bare": bare_pair},
        "alltoall": {"ours": our_alltoall, "bare": bare_alltoall},
    }
    sides["gather"]["pickled"] = pickled_gather
    if wire is world:
        sides["bcast"] |= {way: partial(way_of, way) for way in OTHER_WAYS}
    return sides[collective]


def wanted(collective: str, size: int, ranks: int, rank: int) -> bytes:
    """What has to arrive on a rank."""
    if collective == "bcast":
        return np.full(size // 4, 1, "f4").tobytes()
    if collective == "pair":
        is_sent = rank % 2 == 0 and rank + 1 < ranks
        return np.full(size // 4, rank + 2, "f4").tobytes() if is_sent else b""
    if collective == "alltoall":
        share = size // WORD // ranks + (rank < size // WORD % ranks)
        return np.repeat(np.arange(1, ranks + 1, dtype="f4"), 2 * share).tobytes()
    if rank != ROOT or collective == "meet":
        return b""
    numbers = np.arange(1, ranks + 1, dtype="f4")
    return np.repeat(numbers.sum() if collective == "reduce" else numbers, size // 4).tobytes()


def loops(size: int) -> int:
    """Collectives in a turn with messages of so many bytes."""
    return next((count for most, count in LOOPS if size <= most), FEW)


class Bench:
    """The measurements of one job; all ranks make all calls together.

    Each measurement yields a row on the root, as `COLUMNS` has it, and nothing elsewhere.

    Args:
        job: this rank.
        repeats: turns that count.
    """

    def __init__(self, job: "Job", repeats: int) -> None:
        self.job, self.wire, self.clock, self.repeats = job, job.wire, job.clock, repeats
        self.levels, self.nodes, self.per_node = levels(job.wire)
        self.gloo = gloo.Gloo(job.wire)

    def collective(self, name: str, size: int) -> Iterator[Row]:
        """A collective with messages of one size, on every level.

        Raises:
            AssertionError: if a side brings something else.
        """
        for level in self.levels:
            if name == "near" and level.name != "near":
                continue
            sides: dict[str, Work] = {}
            if level.wire is not None:
                sides = works(level.wire, self.wire, name, size)
                right = wanted(name, size, level.wire.size, level.wire.rank)
            if name == "reduce" and level is self.levels[0] and not self.gloo.problem:
                sides["gloo"] = self.gloo.reduce(size)
            for side, work in sides.items():
                if b"".join(piece.tobytes() for piece in work()) != right:
                    raise AssertionError(f"{side}: a {name} of {size} bytes yields something else")
            about: Row = {"kind": "collective", "name": name, "level": level.name}
            about |= {"ranks": level.ranks, "bytes": size}
            # What lies in a node's memory is counted by the wire to all ranks.
            wire = self.wire if name == "near" else level.wire
            yield from self.sides(about, wire, sides, is_bare=name != "pair")

    def exchange(
        self, names: tuple[str, ...], size: int, sparsity: float, clients: int, positions: str
    ) -> Iterator[Row]:
        """Exchanges of messages that are ready, and their dense references.

        Args:
            names: the exchanges.
            size: bytes of a client's dense vector.
            sparsity: share of its values that are not sent.
            clients: of each rank but the root, if it is not alone.
            positions: own or agreed.

        Raises:
            AssertionError: if a side has another sum.
        """
        everyone = clients * max(1, self.wire.size - 1)
        uplink = exchange.Uplink(self.job, everyone, size // 4, sparsity)
        messages = [uplink.message(client, positions) for client in uplink.mine]
        ours: dict[str, Callable[[], exchange.Found]] = {
            name: partial(uplink.deliver(name, positions), messages) for name in names
        }
        dense = uplink.references()
        for name, work in ours.items():
            uplink.check(f"{name} {positions}", work())
        for name, work in dense.items():
            uplink.check(name, work())
        about: Row = {"kind": "exchange", "level": self.levels[0].name, "ranks": self.wire.size}
        about |= {"bytes": size, "sparsity": sparsity, "clients": clients, "positions": positions}
        called = {name: (name, "ours") for name in ours}
        called |= {name: ("dense", name) for name in dense}
        yield from self.sides(about, self.wire, ours | dense, names=called)

    def work(self, size: int, sparsity: float) -> Iterator[Row]:
        """Choosing, writing, reading and adding clients' vectors, on every rank or on one.

        What treats the messages of several clients in turn (`BUNDLED`) has the time of one.
        """
        x, kept = select.vector(size // 4), keep_round(size // 4, 1 - sparsity)
        clients = [x.roll(len(x) * client // BUNDLE) for client in range(BUNDLE)]
        chosen = [select.ours(each, kept) for each in clients]
        whole = [Block(Kind.GRADIENT, len(x), Coding.F4, each.numpy()) for each in clients]
        bundles = [[Message(0, [block]) for block in some] for some in (chosen, whole)]
        data, dense = (packed(each).data.copy() for each in bundles)
        heard, total, few = unpack(data)[0], x.clone(), np.zeros(len(x), "f4")
        for message, block in zip(heard, chosen, strict=True):
            pack.check(message.blocks[0], block)
        sums.put(few, chosen[0])
        room = np.empty(max(data.nbytes, dense.nbytes), np.uint8)

        def add(messages: Sequence[Message]) -> None:
            for message in messages:
                sparse.add(total, message.blocks[0], 1.0)

        steps: dict[str, Callable[[], object]] = {
            "select": lambda: select.ours(x, kept),
            "pack": lambda: packed(bundles[0], room),
            "pack dense": lambda: packed(bundles[1], room),
            "read": lambda: unpack(data),
            "read dense": lambda: unpack(dense),
            "add": lambda: add(heard),
            "add dense": lambda: add(bundles[1]),
            "scan": lambda: sums.block(few),
            "clear": total.zero_,
        }
        about: Row = {"kind": "work", "bytes": size, "sparsity": sparsity}
        names = {name: (name, "ours") for name in steps}
        for level, ranks in (("each", self.wire.size), ("root", 1)):
            is_mine = level == "each" or self.wire.is_root
            more = {"level": level, "ranks": ranks}
            yield from self.sides(
                about | more, self.wire, steps, names=names, is_mine=is_mine, bundles=BUNDLED
            )

    def sides(
        self,
        about: Row,
        wire: Wire | None,
        sides: Mapping[str, Callable[[], object]],
        is_bare: bool = False,
        names: Mapping[str, tuple[str, str]] | None = None,
        is_mine: bool = True,
        bundles: Mapping[str, int] | None = None,
    ) -> Iterator[Row]:
        """Lets the sides take turns, and yields a row of each on the root.

        Args:
            about: what the rows have in common.
            wire: to the ranks that take part; None on the others.
            sides: the work of each, by name; the root has all of them.
            is_bare: whether it is a collective with a barrier, in which our time is that of the
                transfer.
            names: name and side in the row of each; by default those of a collective.
            is_mine: whether this rank works, and does not only wait.
            bundles: messages of sides that treat several at once; times are those of one.
        """
        count, kept = loops(about["bytes"]), dict[str, list[np.ndarray]]()

        def turn(side: str) -> float:
            assert wire is not None
            is_ours = is_bare and side in ("ours", *OTHER_WAYS)
            found = self.loop(wire, sides[side] if is_mine else int, count, is_ours)
            found[0] /= (bundles or {}).get(side, 1)
            kept.setdefault(side, []).append(found)
            return 0.0

        if wire is not None:
            take_turns({side: partial(turn, side) for side in sides}, self.repeats)
        nothing = np.full(2 + len(PHASES), np.nan)
        for number in range(int(self.wire.publish(np.array([len(sides)]))[0])):
            side = list(sides)[number] if sides else ""
            took_part = wire is not None and is_mine
            found = np.median(kept[side][1:], 0) if took_part else nothing
            heard = np.array(self.wire.report(found))
            if self.wire.is_root:
                name, called = (names or {}).get(side, (about.get("name"), side))
                yield self.row({**about, "name": name, "side": called}, heard, count)

    def loop(self, wire: Wire, work: Callable[[], object], count: int, is_ours: bool) -> np.ndarray:
        """Means over many calls, on this rank: seconds, bytes, and seconds by phase.

        All ranks begin together. The seconds are those of the work, or if it is our collective,
        which has a barrier of its own, those of the transfer, or of the barrier where it is alone.
        """
        seconds, warm = 0.0, -(-count // WARM)
        for number in range(warm + count):
            if number == warm:
                self.clock.reset()
                wire.reset()
                seconds = 0.0
            if not is_ours:
                wire.settle()
            began = self.clock.elapsed()
            work()
            seconds += self.clock.elapsed() - began
        phases = self.clock.seconds
        if is_ours:
            seconds = phases[Phase.TRANSFER] + phases[Phase.EVALUATE]
        return np.array([seconds, wire.up + wire.down, *phases[list(PHASES.values())]]) / count

    def row(self, about: Row, heard: np.ndarray, count: int) -> Row:
        """A row of the table, from what all ranks report."""
        seconds = 1e6 * heard[:, 0]
        is_exchange = about["kind"] == "exchange" and about["side"] == "ours"
        phases = 1e6 * heard[ROOT, 2:] if is_exchange else np.full(len(PHASES), np.nan)
        found = {"positions": "", "clients": 0, "sparsity": 0.0, **about}
        found |= {"nodes": self.nodes, "per_node": self.per_node, "iterations": count}
        found |= {"moved": round(np.nansum(heard[:, 1])), "avg_us": float(np.nanmean(seconds))}
        found |= {"min_us": float(np.nanmin(seconds)), "max_us": float(np.nanmax(seconds))}
        found |= {f"{name}_us": float(us) for name, us in zip(PHASES, phases, strict=True)}
        return {name: found[name] for name in COLUMNS}


def say(rows: list[Row]) -> None:
    """Prints rows that differ in their bytes alone, in OSU's columns."""
    for _, some in groupby(sorted(rows, key=_title), _title):
        block = list(some)
        click.echo(f"\n# fedmpi bench mpi: {_title(block[0])}")
        click.echo("# " + "".join(f"{name:<20}" for name in HEAD).rstrip())
        for row in block:
            times = "".join(f"{row[name]:<20.2f}" for name in ("avg_us", "min_us", "max_us"))
            click.echo(f"{row['bytes']:<22}{times}{row['iterations']}")


def _title(row: Row) -> str:
    """What rows of one block have in common."""
    words = [f"{row['kind']} {row['name']}, {row['side']}"]
    if row["kind"] != "collective":
        words.append(f"sparsity {row['sparsity']:g}")
    if row["kind"] == "exchange":
        words.append(f"{row['positions']} positions, {row['clients']} clients a rank")
    nodes = "1 node" if row["nodes"] == 1 else f"{row['nodes']} nodes"
    words.append(f"{row['level']}: {row['ranks']} ranks, {nodes}")
    return ", ".join(words)


def line(row: Row) -> str:
    """A row as a JSON object; null where there is no number."""
    return json.dumps({name: None if value != value else value for name, value in row.items()})


def table(rows: list[Row]) -> np.ndarray:
    """Rows as a table."""
    forms = np.dtype([(name, form) for name, (form, _) in COLUMNS.items()])
    found = np.zeros(len(rows), forms)
    for place, row in enumerate(rows):
        found[place] = tuple(v.encode() if isinstance(v, str) else v for v in row.values())
    return found


@dataclass(frozen=True)
class Plan:
    """What to measure; each is empty if nothing of its kind is.

    Attributes:
        collectives: their names.
        exchanges: their names.
        steps: whether the work before and after is measured.
        sizes: bytes of a rank's message.
        vectors: bytes of a client's dense vector.
        sparsities: shares of values that are not sent.
        clients: numbers of clients a rank.
        positions: own, agreed, or both.
    """

    collectives: tuple[str, ...]
    exchanges: tuple[str, ...]
    steps: bool
    sizes: tuple[int, ...] = SIZES
    vectors: tuple[int, ...] = VECTORS
    sparsities: tuple[float, ...] = SPARSITIES
    clients: tuple[int, ...] = CLIENTS
    positions: tuple[str, ...] = ("own",)

    def measure(self, bench: Bench) -> Iterator[list[Row]]:
        """Yields the rows of each part, on the root; no rows elsewhere."""
        ranks = bench.wire.size
        for name in self.collectives:
            sizes = self.sizes[:1] if name == "meet" else self.sizes
            if name in ("gather", "near"):
                count = ranks if name == "gather" else bench.per_node
                sizes = fitting(bench.wire, sizes, count, name)
            yield [row for size in sizes for row in bench.collective(name, size)]
        cases = product(self.sparsities, self.clients, self.positions)
        for case in cases if self.exchanges else ():
            everyone = case[1] * max(1, ranks - 1)
            vectors = fitting(bench.wire, self.vectors, everyone, "dense vectors")
            rows = (bench.exchange(self.exchanges, size, *case) for size in vectors)
            yield [row for some in rows for row in some]
        for sparsity in self.sparsities if self.steps else ():
            yield [row for size in self.vectors for row in bench.work(size, sparsity)]


def fitting(wire: Wire, sizes: tuple[int, ...], count: int, what: str) -> tuple[int, ...]:
    """Those sizes of which one rank can get so many at once; says which ones are left out."""
    for size in sizes:
        if size * count >= MOST and wire.is_root:
            both = f"{size / 2**20:g} MiB from each of {count}"
            click.echo(f"# left out: {what}, {both}; wanted less than 2 GiB on a rank", err=True)
    return tuple(size for size in sizes if size * count < MOST)


@click.command()
@click.option(
    "--collective",
    "collectives",
    type=click.Choice(COLLECTIVES),
    multiple=True,
    help="Only this collective. Can be repeated, as all of these.",
)
@click.option(
    "--exchange",
    "exchanges",
    type=click.Choice(config.exchanges()),
    multiple=True,
    help="Only this exchange.",
)
@click.option("--work", "steps", is_flag=True, help="Only the work before and after.")
@click.option(
    "--bytes",
    "sizes",
    type=click.IntRange(min=1),
    multiple=True,
    help="Only messages and dense vectors of this size, up to whole words of 8 bytes.",
)
@click.option(
    "--sparsity",
    "sparsities",
    type=click.FloatRange(0, 1, max_open=True),
    multiple=True,
    default=SPARSITIES,
    show_default=True,
    help="Share of a client's values that are not sent.",
)
@click.option(
    "--clients",
    type=click.IntRange(min=1),
    multiple=True,
    default=CLIENTS,
    show_default=True,
    help="Clients of each rank but the root.",
)
@click.option(
    "--positions",
    type=click.Choice(exchange.POSITIONS),
    multiple=True,
    default=("own",),
    show_default=True,
    help="own: each client sends its largest values and their positions. agreed: values at "
    "positions that all ranks know.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of the results (HDF5).",
)
@REPEATS
@JSON
def command(
    collectives: tuple[str, ...],
    exchanges: tuple[str, ...],
    steps: bool,
    sizes: tuple[int, ...],
    sparsities: tuple[float, ...],
    clients: tuple[int, ...],
    positions: tuple[str, ...],
    out: Path | None,
    repeats: int,
    as_json: bool,
) -> None:
    """Measure collectives and exchanges on the ranks of a launcher.

    Start it on several ranks: mpirun -n 4 fedmpi bench mpi --out mpi.h5. Without --collective,
    --exchange and --work all of them are measured.
    """
    job = rank()
    if out is not None:
        job.check(lambda: record.try_rows(out, TABLE) if job.wire.is_root else None)
    some = tuple(-(-size // WORD) * WORD for size in sizes)
    if not (collectives or exchanges or steps):
        collectives, exchanges, steps = COLLECTIVES, tuple(config.exchanges()), True
    chosen = collectives, exchanges, steps, some or SIZES, some or VECTORS
    bench = Bench(job, repeats)
    if bench.gloo.problem and "reduce" in collectives and job.wire.is_root:
        click.echo(f"# no gloo: {bench.gloo.problem}", err=True)
    rows: list[Row] = []
    for part in Plan(*chosen, sparsities, clients, positions).measure(bench):
        rows += part
        if as_json:
            for row in part:
                click.echo(line(row))
        else:
            say(part)
    bench.gloo.end()
    if job.wire.is_root and out is not None:
        about = {**provenance.about(), "mpi": wires.library(), "host": wires.host()}
        record.save_rows(out, TABLE, table(rows), COLUMNS, about)
