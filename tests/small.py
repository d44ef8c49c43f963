"""A small federation: settings that run in a blink, and a run of them on some ranks."""

from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from torch import nn

from fedmpi import config, loading
from fedmpi.config import ConfigError, Model, Settings
from fedmpi.data import Dataset
from fedmpi.engine import Engine
from fedmpi.messages.clock import Clock
from fedmpi.messages.wire import Wire
from fedmpi.networks.layers import BatchNorm, Dropout, check

SMALL = {
    "rounds": 2,
    "clients": 5,
    "batch": 16,
    "data": {"name": "synthetic", "samples": 300, "test_samples": 60, "shape": [1, 8, 8]},
    "partition": {"name": "dirichlet", "alpha": 0.5, "minimum": 5},
    "model": {"name": "mlp", "hidden": [12, 8]},
}
"""Seconds matter: the suite runs hundreds of such runs. Unequal shards, two split points."""


def small(*words: str) -> Settings:
    """The small run's settings, with `key=value` words on top; a new name empties its table."""
    tree: dict[str, Any] = {k: dict(v) if isinstance(v, dict) else v for k, v in SMALL.items()}
    for word in words:
        table, _, rest = word.partition(".")
        if rest.startswith("name="):
            tree[table] = {}
    loading.override(tree, words)
    return loading.load(tree)


def reads(model: str) -> str:
    """What the samples of a family of networks are made of: numbers or symbols."""
    return getattr(config.module("model", model), "READS", "numbers")


def smooth(
    settings: Model, shape: tuple[int, ...], classes: int, seed: int, *_: str
) -> nn.Sequential:
    """In place of `models.build`: no kinks, and layers that look beyond a sample around a cut."""
    torch.manual_seed(seed)
    stages = OrderedDict(
        conv=nn.Sequential(nn.Conv2d(1, 4, 3, 2), BatchNorm(4), nn.Tanh()),
        dense=nn.Sequential(nn.Flatten(), nn.Linear(36, 6), BatchNorm(6), nn.Tanh(), Dropout(0.2)),
        head=nn.Linear(6, classes),
    )
    network = nn.Sequential(stages)
    check(network)
    return network


def text(given: Any, seed: int) -> Dataset:
    """In place of `synthetic.load`: sequences of 9 of 7 symbols, of which the last tells the next.

    Args:
        given: says how many.
        seed: of the run.
    """
    symbols = np.random.default_rng(seed).integers(7, size=(given.samples, 9), dtype=np.uint8)
    labels = (symbols[:, -1] + 1).astype(np.int64) % 7
    test = given.test_samples
    return Dataset(symbols, labels, symbols[:test], labels[:test], 7)


def sorts(classes: int) -> nn.Sequential:
    """Stages of all sorts, for samples of 2x8x8; the same each time."""
    torch.manual_seed(0)
    stages = OrderedDict(
        conv=nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU()),
        dense=nn.Sequential(nn.Flatten(), nn.Linear(256, 5), nn.Tanh()),
        head=nn.Linear(5, classes),
    )
    return nn.Sequential(stages)


@dataclass
class Run:
    """A finished run; tables and model are on the root alone."""

    engine: Engine
    tables: dict[str, np.ndarray]

    @property
    def model(self) -> np.ndarray:
        """The final global model, [n]."""
        return self.engine.server.w.numpy()

    @property
    def sha256(self) -> str:
        """Its hash."""
        return self.engine.model_sha256()


def refusal(*words: str) -> str:
    """Why the small run with such words is refused, when read or when built; empty if it is not."""
    try:
        Engine(small(*words))
    except ConfigError as error:
        return str(error)
    return ""


def run(
    settings: Settings,
    comm: MPI.Intracomm = MPI.COMM_SELF,
    prepare: Callable[[Engine], None] = lambda engine: None,
) -> Run:
    """Runs settings on the ranks of a communicator; by default on this rank alone.

    Args:
        settings: of the run.
        comm: the ranks.
        prepare: changes the engine before it begins.
    """
    clock = Clock()
    wire = Wire(clock, comm)
    engine = Engine(settings, wire.place)
    prepare(engine)
    outcomes = [outcome for outcome in engine.rounds(wire, clock) if outcome is not None]
    names = outcomes[0].tables if outcomes else {}
    found = {n: np.concatenate([o.tables[n] for o in outcomes]) for n in names}
    return Run(engine, found | engine.final())


def alike(one: Run, other: Run, but: Collection[str] = ()) -> None:
    """Asserts that two runs have the same model and tables, bit for bit, all but measured seconds.

    Args:
        one: a run.
        other: another one.
        but: tables that may differ.
    """
    assert one.sha256 == other.sha256
    assert one.tables.keys() == other.tables.keys()
    for table in one.tables.keys() - {"phases", *but}:
        for column in one.tables[table].dtype.names:
            if "seconds" not in column or column.startswith("sim_"):
                both = (found.tables[table][column] for found in (one, other))
                np.testing.assert_array_equal(*both, err_msg=f"{table}.{column}")
