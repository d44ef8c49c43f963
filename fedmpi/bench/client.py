"""The fixed cost of a client: what a rank does for it in a round, its local steps aside.

One rank, which serves and hosts, goes through whole rounds of FedAvg without MPI: its wire leads
back to itself, and notes when messages pass. So a round falls into two halves:

    client   from being told until there is a buffer to send: unpack, receive, reset, draw batches,
             upload, message, pack
    server   from being sent that buffer until the model has moved: unpack, charge, absorb, step

With one client and with ten of them on the rank, because a round has costs of its own, which they
share. Clients make two steps, and the time from the one's gradient to the other's is that of a step
(a move, the next batch, forward and backward), of all clients of a chunk. So

    the fixed cost = the client half - 2 * that time

holds all that is not done anew in each step, be it done in the first one. The limit is 150
microseconds and two passes over the vector. A pass is one copy of a vector after each round, by
which time it has left the caches, as a client's vectors have when they are wanted.
"""

from collections.abc import Iterator, Sequence
from statistics import median
from time import perf_counter

import click
import numpy as np
import torch
from torch import Tensor

from fedmpi import config, loading
from fedmpi.bench import JSON, REPEATS, Result, chosen, weigh
from fedmpi.config import MOST, Settings, Tree
from fedmpi.engine import Engine
from fedmpi.messages.clock import Clock
from fedmpi.messages.wire import ROOT, Wire
from fedmpi.methods import fedavg
from fedmpi.runs import memory
from fedmpi.training.train import Trainer
from fedmpi.turns import take_turns

SIZES = {"10k": [12], "100k": [126], "1M": [1250], "10M": [4096, 1650]}
"""Names of the benchmark's models, by their parameters: the hidden layers of an mlp on 28x28."""
FIXED, PASSES = 150e-6, 2
"""The limit: seconds, and passes over the vector."""
BATCH, STEPS = 10, 2
"""Samples of a step, and steps; a client has samples enough for them."""
WINDOW = 1 << 20
"""MiB: all clients upload in one wave, so that a round has two halves."""
VALUES = 1 << 27
"""Values that a turn's vectors have together, so that a turn takes long enough to be timed."""
ROUNDS = (5, 200)
"""Least and largest number of rounds in a turn."""


class Loop(Wire):
    """The wire of a rank that is alone: it leads back to it, and times both halves of a round.

    Attributes:
        client: seconds from being told to having packed, this round.
        server: seconds from having heard until all is done, this round.
    """

    def __init__(self) -> None:
        self.rank, self.size, self.is_root = ROOT, 1, True
        self.inbox = np.empty(0, np.uint8)
        self.client = self.server = self.passed = 0.0
        self.reset()

    def bcast(self, data: np.ndarray | None, way: config.Way = "bcast") -> np.ndarray:
        """The buffer itself."""
        assert data is not None
        self.passed = perf_counter()
        return data

    def gather(self, data: np.ndarray) -> list[np.ndarray]:
        """A copy of the buffer, as it would be after a journey."""
        self.client = perf_counter() - self.passed
        if len(self.inbox) < len(data):
            self.inbox = np.empty_like(data)
        inbox = self.inbox[: len(data)]
        inbox[:] = data
        self.passed = perf_counter()
        return [inbox]

    def settle(self) -> None:
        """Nobody to wait for."""
        self.server = perf_counter() - self.passed

    def report(self, rows: np.ndarray) -> list[np.ndarray]:
        """The rows."""
        return [rows.copy()]


class Timed(fedavg.Clients):
    """FedAvg's clients, who note when they have the gradient of a step.

    Attributes:
        moments: when that was, chunk by chunk of clients that train together, step by step, this
            round.
    """

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.moments: list[float] = []

    def adjust(self, clients: Sequence[int], w: Tensor, g: Tensor) -> None:
        """Changes nothing."""
        self.moments.append(perf_counter())


class Lone:
    """Endless rounds of a rank that is alone with its clients."""

    def __init__(self, hidden: Sequence[int], clients: int) -> None:
        data = {"name": "synthetic", "shape": [1, 28, 28], "test_samples": 10}
        tree: Tree = {"clients": clients, "batch": BATCH, "local_steps": STEPS, "lr": 0.01}
        tree |= {"validation": 0.0, "rounds": MOST, "evaluate": {"every": MOST}}
        tree["model"] = {"hidden": hidden}
        tree["data"] = data | {"samples": STEPS * BATCH * clients}
        tree["exchange"] = {"window": WINDOW}
        self.engine, self.wire = Engine(loading.load(tree)), Loop()
        # So that each step gathers its own samples: they are no fixed cost.
        self.engine.trainer.feed.slab = 1
        self.clients = Timed(self.engine.settings, self.engine.trainer)
        self.engine.clients = self.clients
        self.rounds = self.engine.rounds(self.wire, Clock())

    def round(self) -> tuple[float, float]:
        """One round: the fixed cost of a client, and the server's half, in seconds a client."""
        self.clients.moments.clear()
        outcome, count = next(self.rounds), self.engine.settings.clients
        moments = np.reshape(self.clients.moments, (-1, STEPS))
        if outcome is None or not outcome.finite:
            raise AssertionError("a model that is not finite is not measured")
        steps = STEPS * np.diff(moments).sum()
        return (self.wire.client - steps) / count, self.wire.server / count


def measure(size: str, clients: int, repeats: int) -> Iterator[Result]:
    """The halves of a round with a model and so many clients, each against the limit."""
    memory.keep_freed_memory()
    lone = Lone(SIZES[size], clients)
    parameters = lone.engine.flat.size
    least, most = ROUNDS
    rounds = min(most, max(least, VALUES // (parameters * clients)))
    here, there = torch.ones(parameters), torch.zeros(parameters)
    halves: dict[str, float] = {}

    def turn() -> float:
        found = []
        for _ in range(rounds):
            client, server = lone.round()
            began = perf_counter()
            there.copy_(here)
            found.append((client, server, FIXED + PASSES * (perf_counter() - began)))
        names = ("client", "server", "limit")
        halves.update(zip(names, map(median, zip(*found, strict=True)), strict=True))
        return halves["client"]

    # One turn finds all three, because they belong to the same rounds.
    turns = {
        "client": turn,
        "server": lambda: halves["server"],
        "limit": lambda: halves["limit"],
    }
    seconds = take_turns(turns, repeats)
    also = {"limit_us": 1e6 * median(seconds["limit"])}
    for half in ("client", "server"):
        case = {"parameters": parameters, "clients": clients, "half": half}
        yield weigh("client", case, seconds, half, ["limit"], also)


@click.command()
@click.option("--size", "sizes", multiple=True, help="Only this model size. Can be repeated.")
@click.option(
    "--clients",
    "crowds",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1, 10),
    show_default=True,
    help="Number of clients on the rank. Can be repeated.",
)
@REPEATS
@JSON
def command(sizes: tuple[str, ...], crowds: tuple[int, ...], repeats: int, as_json: bool) -> None:
    """Measure the fixed cost of a client per round.

    The limit is 150 microseconds plus the time of two passes over the model's vector.
    """
    for size in chosen(sizes, SIZES):
        for clients in crowds:
            for result in measure(size, clients, repeats):
                result.say(as_json)
