"""What is true of each exchange that adds up sparse sums, beside what `star` yields on one rank."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedmpi import config, models
from fedmpi.messages import wire
from fedmpi.messages.clock import Clock
from fedmpi.messages.ledger import Ledger
from fedmpi.messages.wire import Wire
from fedmpi.runs import launch
from tests import PATIENCE
from tests.exchanges.added import ADDING, CASES, LOST, WORLD, Seen, both, bytes_of, close
from tests.small import refusal, run, small, smooth

on_ranks = pytest.mark.parallel([1, 2, 3, 4])
several = pytest.mark.parallel([2, 3, 4])
each = pytest.mark.parametrize("name", ["sparse", "sharded"])
DENSITIES = {
    "empty": lambda rank: 0.0,
    "sparse": lambda rank: 0.02,
    "bitmap": lambda rank: 0.3,
    "dense": lambda rank: 1.0,
    "one has all": lambda rank: float(rank == WORLD.size - 1),
    "of all sorts": lambda rank: rank / 3,
}


def whole(rank: int, size: int, density: float) -> np.ndarray:
    """A sum of whole numbers: however many are added up, float32 is exact."""
    random = np.random.default_rng((rank, size))
    values = random.integers(-99, 100, size).astype("f4")
    return values * (random.random(size) < density)


def merged(name: str, sums: list[np.ndarray]) -> list[np.ndarray]:
    """What becomes of sums, the second time that they are merged: slices have moved then."""
    exchange = config.module("exchange", name).Exchange(Wire(Clock(), WORLD), Clock(), Ledger(1))
    exchange.merge([each.copy() for each in sums])
    exchange.merge(sums)
    return sums


@on_ranks
@each
@pytest.mark.parametrize("case", DENSITIES)
def test_sums_of_whole_numbers_are_exact(case: str, name: str, nodes: int) -> None:
    """Vectors of several lengths, also of none, and one rank after the other has everything."""
    sizes = (1000, 0, 3, 4096)

    def sums(rank: int) -> list[np.ndarray]:
        density = DENSITIES[case](rank)
        return [*(whole(rank, size, density) for size in sizes), np.array([rank, 0.5])]

    found = merged(name, sums(WORLD.rank))
    if WORLD.rank == 0:
        wanted = [np.sum(some, 0) for some in zip(*map(sums, range(WORLD.size)), strict=True)]
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parallel([3])
@each
@pytest.mark.parametrize("method", ADDING)
def test_every_method(method: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one round, on two nodes."""
    monkeypatch.setenv(wire.NODES, "2")
    words = (f"method.name={method}", "rounds=1", "epochs=1")
    found, wanted, ours, theirs = both(f"exchange.name={name}", *words)
    if WORLD.rank == 0:
        close(ours, theirs, 5)
        for column, values in bytes_of(wanted).items():
            np.testing.assert_array_equal(bytes_of(found)[column], values, err_msg=column)


@on_ranks
@each
@pytest.mark.parametrize("case", CASES)
def test_settings_of_all_kinds(case: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rounds on two nodes: what was rounded once goes on."""
    monkeypatch.setenv(wire.NODES, str(min(2, WORLD.size)))
    if case == "statistics":
        monkeypatch.setattr(models, "build", smooth)
    words = (*CASES[case], "rounds=3", "epochs=1", "server=shared")
    found, wanted, ours, theirs = both(f"exchange.name={name}", *words)
    if WORLD.rank > 0:
        return
    if case != "stacked":
        first = [Seen(*(list(some)[:1] for some in vars(seen).values())) for seen in (ours, theirs)]
        close(*first, 1 if case == "one client" else 5)
    np.testing.assert_allclose(found.model, wanted.model, rtol=1e-2, atol=1e-4)
    assert len(ours.vectors) == 3


@several
@each
def test_lost_uploads_are_added_nowhere(name: str) -> None:
    words = (*LOST, "method.name=topk", "rounds=4", "epochs=1")
    found, wanted, ours, theirs = both(f"exchange.name={name}", *words)
    if WORLD.rank == 0:
        assert found.tables["clients"]["lost"].any()
        assert ours.numbers == theirs.numbers
        np.testing.assert_allclose(found.model, wanted.model, rtol=1e-2, atol=1e-4)


@several
@each
def test_if_all_are_lost_the_model_stays(name: str) -> None:
    words = (*LOST[:1], "devices.spectrum.outage=0.999", LOST[2], "rounds=2")
    found = run(small(*words, f"exchange.name={name}"), WORLD)
    if WORLD.rank == 0:
        assert found.tables["clients"]["lost"].all()
        np.testing.assert_array_equal(found.model, found.engine.flat.initial.numpy())


@each
def test_methods_that_need_each_upload_are_refused(name: str) -> None:
    why = refusal("method.name=dispfl", f"exchange.name={name}")
    assert f"exchange.name = '{name}': wanted a method" in why
    assert run(small(f"exchange.name={name}")).sha256 == run(small()).sha256


def test_seven_ranks() -> None:
    """Two of them host nobody: the same checks in a job of their own."""
    launcher, room = launch.find(), Path(__file__).parents[2]
    done = subprocess.run(
        launcher.command(7, [sys.executable, "-m", "tests.exchanges.seven"]),
        env=launcher.environment() | {"OMP_NUM_THREADS": "1"},
        cwd=room,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
