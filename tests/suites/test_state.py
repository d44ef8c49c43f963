"""State: what server and clients say that a round depends on is all that it depends on.

A run stops after some rounds, and another engine goes on from its states and stores. The result is
that of a run that was not interrupted, for every method.
"""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from mpi4py import MPI

from fedmpi import models
from fedmpi.config import ConfigError, Settings
from fedmpi.engine import Engine
from fedmpi.messages.clock import Clock
from fedmpi.messages.wire import Wire
from fedmpi.methods.spatl import agent
from fedmpi.results.outcome import Outcome
from fedmpi.training.store import Stores
from tests.coded import wants_zstd
from tests.plain import CHOICES, CNN, CODECS, METHODS
from tests.small import small, smooth

CASES = [
    *((f"method.name={name}",) for name in METHODS),
    *CHOICES,
    ("method.name=feddst", "method.every=1", "method.end=1.0"),
    ("method.name=feddst", "method.every=2", "method.end=1.0"),
    ("method.name=prunefl", "method.every=1"),
    ("method.name=prunefl", "method.every=2"),
    ("method.name=prunefl", "method.every=3"),
    ("method.name=ssfl", "method.warmup=1"),
    ("method.name=ssfl", "method.rediscover=[2]"),
    ("method.name=ssfl", "method.rediscover=[3]"),
    ("method.name=stc", "method.sparsity=0.5"),
    ("method.name=stc", "method.sparsity=0.9", "method.spans=tensor"),
    ("method.name=fedsl", "method.interval=2"),
    ("method.name=fedsl", "method.interval=3"),
    ("method.name=fedsl", "method.interval=3", "method.structured=channels"),
    ("method.name=splitlearning", "devices.dropouts=0.9"),
    ("codec.down.values=uniform", "codec.down.scales=tensor", "codec.down.rounding=stochastic"),
    ("method.name=topk", "codec.down.values=f4", "codec.down.sparsity=0.9", "control=mean"),
    *(words for name, words in CODECS.items() if name != "zstd"),
    pytest.param(CODECS["zstd"], marks=wants_zstd),
]
"""Every method, each of its choices, and those whose states move within four rounds."""
MANY = ("clients=40", "participation=0.1", "partition.name=iid")
LATER = {
    3: [
        ("method.name=feddst", "method.every=2", "method.end=1.0"),
        ("method.name=feddst", "method.every=2", "method.end=1.0", "participation=1.0"),
        ("method.name=prunefl", "method.every=2"),
        ("method.name=prunefl", "method.every=2", "participation=1.0"),
        ("method.name=fedsl", "method.prune_every=2"),
        ("method.name=fedsl", "method.interval=5", "method.prune_every=2"),
    ],
    40: [("method.name=stc", "method.sparsity=0.0", *MANY)],
}
"""Rounds before the interruption, and cases whose states matter then: clients that know a mask,
masks that are older than a round, and updates that the server has forgotten."""
FEW = ("participation=0.6", "momentum=0.5", "batch=32")


def play(engine: Engine, first: int | None = None) -> list[Outcome | None]:
    """All rounds of the engine, or those from `first` on, on this rank alone."""
    clock = Clock()
    return list(engine.rounds(Wire(clock, MPI.COMM_SELF), clock, first))


def copy(stores: Stores, others: Stores) -> None:
    """Puts what other stores hold into these, which have the same names."""
    assert {k: (v.size, v.dtype) for k, v in stores.items()} == {
        k: (v.size, v.dtype) for k, v in others.items()
    }
    for name, store in stores.items():
        for client, vector in others[name].items():
            store[client] = vector


def resumed(settings: Settings, stopped: Engine) -> Engine:
    """A new engine with the states and the stores of one that has stopped."""
    engine = Engine(settings)
    assert engine.server is not None
    assert stopped.server is not None
    for new, old in ((engine.server, stopped.server), (engine.clients, stopped.clients)):
        state = {name: tensor.clone() for name, tensor in old.state().items()}
        new.restore(state)
        assert new.state().keys() == state.keys()
        for name, tensor in new.state().items():
            assert torch.equal(tensor, state[name]), name
    copy(engine.server.stores, stopped.server.stores)
    copy(engine.trainer.stores, stopped.trainer.stores)
    return engine


def check(words: tuple[str, ...], stop: int = 2) -> None:
    """A run that is interrupted ends as one that is not, in its model and in each client's row.

    Args:
        words: of the settings.
        stop: rounds before the interruption, and two less than all; an agreement before round 0
            does not count.
    """
    try:
        settings = small(*FEW, *words, f"rounds={stop + 2}")
        whole = Engine(settings)
    except ConfigError:  # some choices want more settings, and some networks
        return
    outcomes = play(whole)
    stopped, clock = Engine(settings), Clock()
    before = stop - stopped.population.first_round
    list(islice(stopped.rounds(Wire(clock, MPI.COMM_SELF), clock), before))
    other = resumed(settings, stopped)
    again = play(other, stop)
    assert len(again) == 2
    assert other.model_sha256() == whole.model_sha256()
    for found, wanted in zip(again, outcomes[before:], strict=True):
        assert found is not None
        assert wanted is not None
        ours, theirs = found.tables["clients"], wanted.tables["clients"]
        for column in set(ours.dtype.names or ()) - {"seconds"}:
            np.testing.assert_array_equal(ours[column], theirs[column], err_msg=column)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_run_goes_on_from_its_state(case: tuple[str, ...]) -> None:
    check(case)


@pytest.mark.parametrize(
    ("stop", "case"), [(stop, case) for stop, cases in LATER.items() for case in cases], ids=str
)
def test_a_run_goes_on_later(stop: int, case: tuple[str, ...]) -> None:
    check(case, stop)


def test_agents_are_told_once(tmp_path: Path) -> None:
    agent.save(agent.born(5), tmp_path / "agent.npy")
    given = ("method.selection=agent", f"method.agent={tmp_path / 'agent.npy'}")
    check(("method.name=spatl", *given, *CNN))


@pytest.mark.parametrize("name", METHODS)
def test_local_statistics_are_state(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "build", smooth)
    check((f"method.name={name}", "statistics=local"))


@pytest.mark.parametrize("name", METHODS)
def test_a_state_is_named_tensors_of_the_server(name: str) -> None:
    engine = Engine(small(f"method.name={name}"))
    assert engine.server is not None
    state = engine.server.state()
    assert state["w"] is engine.server.w
    for half in (state, engine.clients.state()):
        assert all(isinstance(tensor, torch.Tensor) for tensor in half.values())
