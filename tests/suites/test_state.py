"""State: what an engine says that a round depends on is all that it depends on.

A run stops after some rounds, and another engine goes on from what a checkpoint has of it. The
result is that of a run that was not interrupted, for every method: the model, every table, and all
that the engines hold in the end.
"""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from mpi4py import MPI
from pydantic import BaseModel
from torch import nn

from fedmpi import models
from fedmpi.config import ConfigError, Settings
from fedmpi.engine import Engine
from fedmpi.messages.clock import Clock
from fedmpi.messages.wire import Wire
from fedmpi.methods.spatl import agent
from fedmpi.results import checkpoint
from fedmpi.results.outcome import Outcome
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
    ("method.name=sgcfl", "method.cut_feedback=true", "method.tail=head"),
    ("method.name=splitcom", "method.gradient_threshold=0.9", "method.tail=head"),
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


def alike(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> None:
    """Asserts that tables are the same, all but measured seconds."""
    assert ours.keys() == theirs.keys()
    for table, rows in ours.items():
        for column in rows.dtype.names or ():
            if "seconds" not in column or column.startswith("sim_"):
                both = rows[column], theirs[table][column]
                np.testing.assert_array_equal(*both, err_msg=f"{table}.{column}")


def play(engine: Engine, first: int | None = None) -> list[Outcome | None]:
    """All rounds of the engine, or those from `first` on, on this rank alone."""
    clock = Clock()
    return list(engine.rounds(Wire(clock, MPI.COMM_SELF), clock, first))


def resumed(settings: Settings, stopped: Engine) -> Engine:
    """A new engine with the state of one that has stopped, by way of a file."""
    engine = Engine(settings)
    with TemporaryDirectory() as folder:
        content = checkpoint.Content(stopped.state())
        copied = content.copied(checkpoint.room(checkpoint.BLOCK))
        checkpoint.write(Path(folder), 0, copied)
        engine.restore(checkpoint.read(Path(folder), 1, engine.wants))
    ours, theirs = engine.state(), stopped.state()
    assert ours.arrays.keys() == theirs.arrays.keys()
    for name, array in ours.arrays.items():
        np.testing.assert_array_equal(array, theirs.arrays[name], err_msg=name)
    assert {k: [*some] for k, some in ours.vectors.items()} == {
        k: [*some] for k, some in theirs.vectors.items()
    }
    return engine


SKIPPED = {
    *("began", "seconds", "clock", "keeper"),  # measured times
    *("wire", "exchange", "buffers"),  # memory for messages
    *("descent", "descents", "parties", "others", "drawn", "_epochs", "slabs"),  # for local steps
    *("meter", "nests", "flats", "initial", "homes", "owners"),  # made when they are first needed
    *("start", "history"),  # in the memory of a message that is gone; written as it is sent
    "judged",  # of a client's last round, and no other
    "scores",  # of an agreement that is over; the next one begins with none
}
"""Attributes of an engine, and of what it holds, that no round depends on."""
Held = str | float | np.ndarray | None


def holdings(thing: Any, path: str, found: dict[str, Held], seen: set[int]) -> None:
    """Adds every number and vector in an object of this program, and in what it holds.

    Args:
        thing: the object.
        path: how it is reached.
        found: what there is, by path.
        seen: objects that need not be looked at again.
    """
    if thing is None or isinstance(thing, str | float | int | np.generic):
        found[path] = thing
    elif isinstance(thing, torch.Tensor):
        found[path] = thing.detach().numpy()
    elif isinstance(thing, np.ndarray):
        found[path] = thing
    elif isinstance(thing, tuple):
        for place, one in enumerate(thing):
            holdings(one, f"{path}[{place}]", found, seen)
    elif id(thing) not in seen and not isinstance(thing, BaseModel | nn.Module):
        seen.add(id(thing))
        if isinstance(thing, Mapping):
            for key in thing:
                if isinstance(key, str | int | tuple):  # by networks there are caches alone
                    holdings(thing[key], f"{path}[{key}]", found, seen)
        elif isinstance(thing, list | tuple | set | frozenset):
            for place, one in enumerate(
                thing if isinstance(thing, list | tuple) else sorted(thing)
            ):
                holdings(one, f"{path}[{place}]", found, seen)
        elif type(thing).__module__.startswith("fedmpi."):
            for name, one in vars(thing).items():
                if name not in SKIPPED:
                    holdings(one, f"{path}.{name}", found, seen)


def differences(one: Engine, other: Engine) -> list[str]:
    """Where two engines hold different numbers or vectors."""
    both: tuple[dict[str, Held], dict[str, Held]] = {}, {}
    for engine, found in zip((one, other), both, strict=True):
        holdings(engine, "engine", found, {id(engine.trainer.feed.eras)})
    ours, theirs = both
    names = ours.keys() ^ theirs.keys()
    for name in ours.keys() & theirs.keys():
        pair = np.asarray(ours[name]), np.asarray(theirs[name])
        is_real = pair[0].dtype.kind == "f"
        if not np.array_equal(*pair, equal_nan=is_real):
            names.add(name)
    return sorted(names)


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
        assert found.ends == wanted.ends
        alike(found.tables, wanted.tables)
    assert differences(whole, other) == []


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
