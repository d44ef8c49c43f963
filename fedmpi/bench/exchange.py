"""All of a round's uplink by each exchange: select, pack, move, unpack and add, on several ranks.

Every client has an update of so many parameters, and sends its largest values with their positions
(own), or those at positions that all ranks know (agreed). References: pickled dense vectors
gathered and added up; dense vectors by one Gatherv and added up; dense vectors added up on each
rank, then one Reduce; and bare collectives alone: a Gatherv of the bytes that `star` hands over,
and a Gatherv of dense vectors. All sums are held against float64 before times count. All candidates
take turns in one job; a time is that of rank 0, which alone has the result.
An exchange has done its work when rank 0 has the `Sum`. With agreed positions that is the sum of
the values there: the server moves its model at these positions alone.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np
import torch

from fedmpi import config
from fedmpi.bench import JSON, REPEATS, Result, apart, rank, weigh
from fedmpi.messages import select, sparse
from fedmpi.messages.codec import Kind, Message, pack
from fedmpi.messages.counts import keep_round
from fedmpi.messages.ledger import Ledger
from fedmpi.messages.sums import Addends, Sum
from fedmpi.messages.wire import ROOT
from fedmpi.runs import launch
from fedmpi.runs.job import Job
from fedmpi.turns import take_turns

POSITIONS = ("own", "agreed")
Found = Sum | np.ndarray
"""What a candidate leaves on rank 0: a sum, in one of two forms; bytes of a bare collective."""
DENSE = ("pickled", "gatherv", "dense reduce")
"""References that do all of the work, with dense vectors."""


def update(client: int, parameters: int) -> torch.Tensor:
    """A client's update, float32 [parameters]."""
    random = np.random.default_rng((1, client))
    return torch.from_numpy(random.standard_normal(parameters, dtype="f4"))


class Uplink:
    """One rank's part of all candidates.

    Args:
        job: this rank.
        clients: number of clients of all ranks; rank 0 hosts some only if it is alone.
        parameters: length of an update.
        sparsity: share of an update's values that are not sent.
    """

    def __init__(self, job: Job, clients: int, parameters: int, sparsity: float) -> None:
        self.wire, self.clock, self.job = job.wire, job.clock, job
        self.clients, self.parameters = clients, parameters
        self.kept = keep_round(parameters, 1 - sparsity)
        hosts = max(1, self.wire.size - 1)
        self.mine = [c for c in range(clients) if self.wire.size - 1 - c % hosts == self.wire.rank]
        self.updates = {client: update(client, parameters) for client in self.mine}
        # Those at agreed positions stay sums of the values there.
        self.sums = {way: Sum(parameters, torch.device("cpu")) for way in POSITIONS}
        random = np.random.default_rng(2)
        drawn = np.sort(random.choice(parameters, self.kept, replace=False))
        self.agreed = torch.from_numpy(drawn)

    @cached_property
    def dense(self) -> np.ndarray:
        """This rank's updates, float32 [clients, parameters]; its first use is collective."""
        dense = np.zeros((len(self.mine), self.parameters), "f4")
        for row, client in zip(dense, self.mine, strict=True):
            row[:] = self.updates[client].numpy()
        self.counts = [int(count[0]) for count in self.wire.report(np.array([dense.size]))]
        self.inbox = np.empty(sum(self.counts), "f4")
        return dense

    def message(self, client: int, positions: str) -> Message:
        """A client's upload, with the values that it selects."""
        whole = self.updates[client]
        if positions == "agreed":
            block = sparse.block(Kind.GRADIENT, whole.index_select(0, self.agreed), self.parameters)
        else:
            chosen = select.top(whole, self.kept)
            block = sparse.block(Kind.GRADIENT, chosen.values, self.parameters, chosen.places)
        return Message(client, [block], 1.0)

    def ours(self, name: str, positions: str) -> Callable[[], Found]:
        """The work of an exchange, with choosing the values; on the root it returns the sum."""
        deliver = self.deliver(name, positions)
        return lambda: deliver([self.message(client, positions) for client in self.mine])

    def deliver(self, name: str, positions: str) -> Callable[[list[Message]], Found]:
        """The work of an exchange with this rank's messages; on the root it returns the sum."""
        chosen = config.module("exchange", name)
        exchange = chosen.Exchange(self.wire, self.clock, Ledger(self.clients))
        where = self.agreed if positions == "agreed" else None
        total = self.sums[positions]

        def work(messages: list[Message]) -> Found:
            total.clear()
            for message in exchange.gather(messages):
                total.add(message.blocks[0], message.weight, where)
            if chosen.Config.adds:
                addends = Addends([total], [], where)
                buffers = addends.buffers()
                exchange.merge(buffers)
                if self.wire.is_root:
                    addends.fill(buffers)
                else:
                    addends.clear()
            return total

        return work

    def pickled(self) -> np.ndarray:
        """Dense vectors, pickled, gathered and added up."""
        heard = self.wire.comm.gather(list(self.dense), ROOT)
        total = np.zeros(self.parameters, "f4")
        for vector in (vector for some in heard or () for vector in some):
            total += vector
        return total

    def gatherv_only(self) -> np.ndarray:
        """Dense vectors by one Gatherv."""
        receive = [self.inbox, self.counts] if self.wire.is_root else None
        self.wire.comm.Gatherv(self.dense.reshape(-1), receive, ROOT)
        return self.inbox

    def gatherv(self) -> np.ndarray:
        """The same, and added up."""
        total = np.zeros(self.parameters, "f4")
        for vector in self.gatherv_only().reshape(-1, self.parameters):
            total += vector
        return total

    def dense_reduce(self) -> np.ndarray:
        """Dense vectors added up on each rank, and one Reduce."""
        total = np.zeros(self.parameters, "f4")
        for vector in self.dense:
            total += vector
        inbox = np.empty_like(total) if self.wire.is_root else None
        self.wire.comm.Reduce(total, inbox, root=ROOT)
        return total if inbox is None else inbox

    def transfer_only(self) -> np.ndarray:
        """The bytes of `star` by one Gatherv."""
        receive = [self.bytes, self.lengths] if self.wire.is_root else None
        self.wire.comm.Gatherv(self.packed, receive, ROOT)
        return self.bytes

    def references(self) -> dict[str, Callable[[], Found]]:
        """Those that do all of the work with dense vectors; all ranks ask for them together."""
        assert self.dense.ndim == 2
        return dict(zip(DENSE, (self.pickled, self.gatherv, self.dense_reduce), strict=True))

    def candidates(self, exchanges: tuple[str, ...]) -> dict[str, Callable[[], Found]]:
        """All of them, by name."""
        self.packed = pack([self.message(client, "own") for client in self.mine]).data.copy()
        self.lengths = [int(n[0]) for n in self.wire.report(np.array([len(self.packed)]))]
        self.bytes = np.empty(sum(self.lengths), np.uint8)
        found: dict[str, Callable[[], Found]]
        found = {f"{n} {p}": self.ours(n, p) for n in exchanges for p in POSITIONS}
        found |= self.references()
        return found | {"transfer": self.transfer_only, "dense transfer": self.gatherv_only}

    def check(self, name: str, found: Found) -> None:
        """Compares a sum with float64's, to the rounding of `reduce`."""
        if not self.wire.is_root or name.endswith("transfer"):
            return
        vector = found.total.numpy() if isinstance(found, Sum) else found
        total, size = np.zeros(self.parameters), np.zeros(self.parameters)
        for client in range(self.clients):
            whole = update(client, self.parameters)
            where: Any = slice(None)
            if name.endswith("own"):
                where = select.top(whole, self.kept).places
            elif name.endswith("agreed"):
                where = self.agreed.numpy()
            total[where] += whole.numpy()[where]
            size[where] += abs(whole.numpy()[where])
        if not (abs(vector - total) <= self.clients * 2**-24 * size).all():
            raise AssertionError(f"{name}: not the sum of the updates")

    def turn(self, work: Callable[[], Found]) -> float:
        """The seconds of one candidate's work; all ranks begin together."""
        self.wire.settle()
        began = perf_counter()
        work()
        return perf_counter() - began


def main(given: dict[str, Any], out: Path) -> None:
    """All turns of a case, on these ranks: leaves the seconds of each candidate, and bytes."""
    job = rank()
    shape = given["clients"], given["parameters"], given["sparsity"]
    uplink = Uplink(job, *shape)
    candidates, moved = uplink.candidates(tuple(given["exchanges"])), {}
    for name, work in candidates.items():
        job.wire.reset()
        uplink.check(name, work())
        moved[name] = sum(int(up[0]) for up in job.wire.report(np.array([job.wire.up])))
    turns = {name: partial(uplink.turn, work) for name, work in candidates.items()}
    seconds = take_turns(turns, given["repeats"])
    if job.wire.is_root:
        found = json.dumps({"seconds": seconds, "bytes": moved})
        out.write_text(found, encoding="utf-8")


def measure(given: dict[str, Any], ranks: int) -> list[Result]:
    """One case: each exchange with each kind of positions, against the references."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        apart("fedmpi.bench.exchange", [json.dumps(given), str(out)], launch.find(), ranks)
        found = json.loads(out.read_text(encoding="utf-8"))
    results, seconds = [], found["seconds"]
    for name in given["exchanges"]:
        for positions in POSITIONS:
            case = {"exchange": name, "positions": positions, "ranks": ranks}
            case |= {key: given[key] for key in ("clients", "parameters", "sparsity")}
            also = {"mib": found["bytes"][f"{name} {positions}"] / 2**20}
            results.append(weigh("exchange", case, seconds, f"{name} {positions}", DENSE, also))
    case = {"exchange": "bare", "positions": "own", "ranks": ranks}
    case |= {key: given[key] for key in ("clients", "parameters", "sparsity")}
    return [*results, weigh("exchange", case, seconds, "transfer", ["dense transfer"])]


@click.command()
@click.option(
    "--exchange",
    "exchanges",
    type=click.Choice(config.exchanges()),
    multiple=True,
    help="Only this exchange. Can be repeated.",
)
@click.option("--clients", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--parameters", type=click.IntRange(min=8), default=11_000_000, show_default=True)
@click.option(
    "--sparsity",
    type=click.FloatRange(min=0, max=1, max_open=True),
    default=0.99,
    show_default=True,
    help="Share of an update's values that are not sent.",
)
@click.option(
    "--ranks",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Number of MPI ranks.",
)
@REPEATS
@JSON
def command(
    exchanges: tuple[str, ...],
    clients: int,
    parameters: int,
    sparsity: float,
    ranks: int,
    repeats: int,
    as_json: bool,
) -> None:
    """Measure all of a round's uplink with each exchange.

    References send dense vectors: pickled, by one Gatherv, or by one Reduce.
    """
    given: dict[str, Any] = {"exchanges": list(exchanges or config.exchanges())}
    given |= {"clients": clients, "parameters": parameters, "sparsity": sparsity}
    for result in measure(given | {"repeats": repeats}, ranks):
        result.say(as_json)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
