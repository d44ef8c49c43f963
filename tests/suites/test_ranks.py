"""The number of ranks never changes a result: models, bytes, losses and accuracies, bit for bit.

Every method is run in two scenarios that have most of what matters between them, on one rank and on
three: a rank for the server, or none, and more than one for clients. What scenarios there are
besides matters to the machinery, and that serves families of methods: one of each (`FAMILIES`) is
run in all of them. Where a scenario is about who hosts whom, or waits for whom, it is run on one to
four ranks. What clients compute knows no rank: there one and three stand for all.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from fedmpi import models
from fedmpi.config import Settings
from fedmpi.datasets import synthetic
from fedmpi.engine import Engine
from tests import KEPT
from tests.plain import (
    CHOICES,
    CNN,
    CODECS,
    EVERYTHING,
    FAMILIES,
    METHODS,
    RNN,
    allowed,
    codecs,
    families,
    member,
    place,
    play,
)
from tests.small import Run, refusal, run, small, smooth, text

on_ranks = pytest.mark.parallel([1, 2, 3, 4])
"""Each run is compared with the same on one rank."""
on_few_ranks = pytest.mark.parallel([1, 3])
both_servers = pytest.mark.parametrize("server", ["dedicated", "shared"])

WORLD = MPI.COMM_WORLD
MOVES = {"rounds": {"seconds", "server_seconds"}, "clients": {"seconds", "rank"}}
"""What depends on where clients are hosted."""

Arrays = dict[str, np.ndarray]


def of(family: str, *words: str) -> Settings:
    """The settings of a run of a family's member."""
    return small(*member(family, *words))


def alone(settings: Settings, make: Callable[[], Arrays]) -> Arrays:
    """What one rank makes of settings in this test: as it was made and kept, else made now."""
    if KEPT not in os.environ:
        return make()
    # A test may put a network or a data set in the place of another.
    test = os.environ["PYTEST_CURRENT_TEST"].partition("::")[2].partition("[")[0]
    path = Path(os.environ[KEPT]) / f"{test}-{settings.identity()}.npz"
    if not path.exists():
        # Where the test failed on one rank, several may make it now.
        part = path.with_suffix(f".{WORLD.rank}.npz")
        np.savez(part, **make())
        part.rename(path)
    with np.load(path) as kept:
        return dict(kept)


def arrays(found: Run) -> Arrays:
    """A run's final model, and every column of its tables that should not move."""
    columns = {
        f"{name}.{column}": found.tables[name][column]
        for name, moving in MOVES.items()
        for column in set(found.tables[name].dtype.names) - moving
    }
    return {"model": found.model, **columns}


def equal(found: Arrays, wanted: Arrays) -> None:
    """They agree, models in every bit."""
    assert found.keys() == wanted.keys()
    assert found["model"].tobytes() == wanted["model"].tobytes()
    assert np.isfinite(found["model"]).all()
    for column in found:
        np.testing.assert_array_equal(found[column], wanted[column], err_msg=column)


def compare(settings: Settings) -> Run:
    """Runs on all ranks; on one rank alone the results are the same."""
    found = run(settings, WORLD)
    if WORLD.rank == 0:
        mine = arrays(found)
        wanted = alone(settings, lambda: mine if WORLD.size == 1 else arrays(run(settings)))
        equal(mine, wanted)
    return found


def hosts(found: Run) -> dict[int, set[int]]:
    """On which ranks each client was."""
    rows = found.tables["clients"]
    return {
        c: set(rows["rank"][rows["client"] == c].tolist()) for c in set(rows["client"].tolist())
    }


def everyone_is_busy(found: Run) -> None:
    """Every rank that may host clients does."""
    busy = set().union(*hosts(found).values())
    first = 1 if found.engine.settings.server == "dedicated" and WORLD.size > 1 else 0
    assert busy == set(range(first, WORLD.size))


@on_few_ranks
@pytest.mark.parametrize("name", METHODS)
def test_every_method_in_waves(name: str) -> None:
    """A rank is the server's; three clients, then two."""
    words = ("model.hidden=[1024]", "exchange.window=1", "server=dedicated", "epochs=1")
    found = compare(small(f"method.name={name}", *words))
    if WORLD.rank == 0:
        everyone_is_busy(found)


@on_few_ranks
@pytest.mark.parametrize("name", METHODS)
def test_every_method_with_all_that_training_can_do_and_few_clients_a_round(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server shares its rank; convolutions, and layers that look beyond a sample."""
    monkeypatch.setattr(models, "build", smooth)
    words = (*EVERYTHING, "participation=0.4", "evaluate.every=2", "rounds=3", "server=shared")
    words = allowed(f"method.name={name}", *words, "augment=['crop', 'flip']")
    found = compare(small(*words))
    stays(found)


def stays(found: Run) -> None:
    """A client that keeps something is on one rank all the time."""
    if WORLD.rank == 0 and found.engine.settings.keeps_state:
        assert all(len(ranks) == 1 for ranks in hosts(found).values())


@on_ranks
@both_servers
@families
def test_both_places_of_the_server(family: str, server: str) -> None:
    found = compare(of(family, f"server={server}", "epochs=1"))
    if WORLD.rank == 0:
        everyone_is_busy(found)


@on_ranks
@families
def test_all_of_sgd_and_few_clients_a_round(family: str) -> None:
    words = (*EVERYTHING, "participation=0.4", "evaluate.every=2", "rounds=3")
    stays(compare(of(family, *words)))


@on_few_ranks
@pytest.mark.parametrize("choice", CHOICES, ids=" ".join)
def test_every_choice(choice: tuple[str, ...]) -> None:
    """Choices that want another setting, too, are seen through in `test_methods`."""
    words = (*choice, "participation=0.6", "rounds=3", "epochs=1", "server=shared")
    if not refusal(*words):
        compare(small(*words))


@on_few_ranks
@codecs
def test_every_codec(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a network with running statistics; some uploads are lost."""
    monkeypatch.setattr(models, "build", smooth)
    words = ("participation=0.6", "rounds=4", "devices.dropouts=0.3", "server=shared")
    compare(small(*CODECS[codec], *words))


@on_ranks
@families
def test_more_ranks_than_clients(family: str) -> None:
    compare(of(family, "clients=2", "local_steps=3"))


@pytest.mark.parallel([1, 2, 3, 4])
@both_servers
def test_a_hundred_clients_share_few_ranks_and_are_charged_one_by_one(server: str) -> None:
    """Equal shards: no rank hosts more than its part of them, rounded up."""
    words = ("clients=100", "partition.name=iid", "data.samples=1200", "rounds=2", "epochs=1")
    found = compare(small(*words, f"server={server}"))
    if WORLD.rank:
        return
    values = 4 * found.engine.flat.size
    ranks = WORLD.size - (server == "dedicated" and WORLD.size > 1)
    for t in range(2):
        rows = found.tables["clients"][found.tables["clients"]["round"] == t]
        assert rows["client"].tolist() == list(range(100))
        assert (rows["up_gradient"] == values).all() and (rows["down_model"] == values).all()
        counts = np.unique(rows["rank"], return_counts=True)[1]
        assert len(counts) == ranks and counts.max() <= -(-100 // ranks)


@on_few_ranks
@families
def test_convolutions(family: str) -> None:
    compare(of(family, *CNN, "momentum=0.9", "server=shared"))


@on_few_ranks
@pytest.mark.parametrize(
    ("family", "cell"), [*((family, "lstm") for family in FAMILIES), ("fedavg", "gru")]
)
def test_text(family: str, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "load", text)
    compare(of(family, *RNN, f"model.cell={cell}", "server=shared", "epochs=1"))


@on_few_ranks
@pytest.mark.parametrize("statistics", ["averaged", "local"])
@families
def test_layers_that_look_beyond_a_sample(
    family: str, statistics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "build", smooth)
    words = (f"statistics={statistics}", "augment=['crop', 'flip']")
    found = compare(of(family, *words, *EVERYTHING, "participation=0.6", "rounds=3"))
    assert found.engine.trainer.keeps_statistics == (statistics == "local")
    stays(found)


@on_few_ranks
@families
def test_stacked_rows(family: str) -> None:
    """All clients of a rank at once: then the same to rounding, because chunks differ."""
    settings = of(family, *CNN, "optimizer=adam", "lr=0.01", "rows=9", "server=shared")
    found = run(settings, WORLD)
    if WORLD.rank == 0:
        wanted = alone(settings, lambda: arrays(run(settings)))
        np.testing.assert_allclose(found.model, wanted["model"], rtol=0.01, atol=0.001)


SPLITS = {
    "v1": ("method.name=splitfed",),
    "v2": ("method.name=splitfed", "method.version=v2", "method.cut=hidden2"),
    "tail": ("method.name=splitfed", "method.tail=head"),
    "channels": (
        *("method.name=fedsl", "method.cut=hidden2", "method.structured=channels"),
        *("method.interval=2", "method.prune_every=2"),
    ),
    "sequential": ("method.name=splitlearning", "method.tail=head"),
}


@pytest.mark.parallel([1, 2, 3])
@both_servers
@pytest.mark.parametrize("case", SPLITS)
def test_who_works_while_another_is_served_does_not_matter(case: str, server: str) -> None:
    """In halves, or all at once; some clients are done long before the others."""
    words = (*SPLITS[case], f"server={server}", "clients=7", "partition.minimum=1", "rounds=3")
    given = ("participation=0.8", "momentum=0.9", "batch=8", "clip=1.0")
    found = compare(small(*words, *given))
    plainly = run(small(*words, *given, "exchange.pipeline=false"), WORLD)
    if WORLD.rank == 0:
        steps = {found.engine.population.steps(0, client) for client in range(7)}
        assert len(steps) > 2, "some are done before others"
        equal(arrays(found), arrays(plainly))


@on_ranks
def test_clients_without_state_move() -> None:
    """Otherwise it would show nothing that those with state stay."""
    found = compare(small("participation=0.6", "rounds=6", "server=shared"))
    if WORLD.rank == 0 and WORLD.size > 1:
        assert any(len(ranks) > 1 for ranks in hosts(found).values())


@on_ranks
@families
def test_waves(family: str) -> None:
    """Three clients, then two; on four ranks some then host nobody."""
    words = ("model.hidden=[1024,8]", "exchange.window=1", "rounds=1")
    compare(of(family, *words))


@on_few_ranks
@families
def test_every_skew_and_drawing_by_samples(family: str) -> None:
    words = ("skew.rotations=[0,90,180,270]", "skew.noise=0.5", "epochs=1")
    others = ("skew.colour=0.3", "skew.labels=0.1", "skew.labels_to=0.5", "sampling=samples")
    compare(of(family, *words, *others, "participation=0.6"))


def diverge(settings: Settings, comm: MPI.Intracomm) -> Arrays:
    """What a run yields: is the model finite, and its clients' losses; nothing off the root."""
    outcomes = list(play(Engine(settings, place(comm)), comm))
    # Every rank has been through the same rounds, and none waits for another.
    rounds = np.array([len(outcomes)])
    most, least = np.zeros_like(rounds), np.zeros_like(rounds)
    comm.Allreduce(rounds, most, MPI.MAX)
    comm.Allreduce(rounds, least, MPI.MIN)
    assert most == least
    assert all((outcome is None) == (comm.rank > 0) for outcome in outcomes)
    if comm.rank > 0:
        return {}
    rows = np.concatenate([outcome.tables["clients"] for outcome in outcomes])
    finite = np.array([outcome.finite for outcome in outcomes])
    return {"finite": finite, "round": rows["round"], "loss": rows["loss"]}


@on_ranks
@families
@pytest.mark.parametrize(
    "words",
    [
        ("server=dedicated", "lr=1e12"),
        # Two sound rounds come first, so that losses of before could be taken for today's.
        ("server=shared", "lr=1e8", "local_steps=1"),
    ],
    ids=["at once", "later"],
)
def test_divergence_ends_the_run_on_all_ranks(family: str, words: tuple[str, ...]) -> None:
    given = (*words, "participation=0.6", "rounds=20")

    def diverged() -> Arrays:
        # Not every seed's run diverges: where all units die the model stays finite for good.
        for seed in range(1, 9):
            found = diverge(of(family, *given, f"seed={seed}"), MPI.COMM_SELF)
            if not found["finite"][-1]:
                break
        return {"seed": np.array(seed), **found}

    wanted = alone(of(family, *given), diverged)
    found = diverge(of(family, *given, f"seed={wanted.pop('seed')}"), WORLD)
    if WORLD.rank > 0:
        return
    finite = found["finite"].tolist()
    assert all(finite[:-1])
    assert finite[-1] == (len(finite) == 20)
    # Some methods tame what grows: by a norm, or by parts that rest.
    assert not finite[-1] or "lr=1e8" in words
    for column in ("finite", "round", "loss"):
        np.testing.assert_array_equal(found[column], wanted[column], err_msg=column)
