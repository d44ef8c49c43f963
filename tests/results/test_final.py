"""What is measured once after the last round: of every client, and of those that are new then."""

from collections.abc import Sequence
from math import cos, pi

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedmpi.engine import Engine
from tests import plain
from tests.plain import METHODS, network, play, vector
from tests.small import refusal, run, small

TUNE = ("evaluate.final=tune", "evaluate.final_epochs=3")
NEW = ("newcomers=2", *TUNE)


def on_shard(engine: Engine, client: int, w: Tensor) -> float:
    """Accuracy of a model [n] on a client's test shard."""
    shard = engine.population.test_shards[client]
    x, y = engine.evaluation.test_x[shard], engine.evaluation.test_y[shard]
    return plain.accuracy(network(engine, w), x, y)


def tuned(engine: Engine, t: int, client: int, w: Tensor, passes: int, free: Tensor) -> Tensor:
    """A model [n] after plain steps in so many passes, in the order of the round, where free."""
    settings, feed = engine.settings, engine.trainer.feed
    for pick in feed.picks(t, client, passes):
        module = network(engine, w)
        x, y = feed.take(pick.positions)
        pieces = torch.autograd.grad(cross_entropy(module(x), y), list(module.parameters()))
        g = torch.cat([piece.reshape(-1) for piece in pieces])
        w = vector(module) - settings.lr * settings.lr_decay**t * g * free
    return w


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_measured_and_no_book_is_changed(name: str) -> None:
    """What clients have after the last round is what its table says of them, if it says it."""
    words = (f"method.name={name}", "rounds=2", "epochs=1")
    found, wanted = run(small(*words, *TUNE)), run(small(*words, "evaluate.final=none"))
    assert found.sha256 == wanted.sha256
    for column in ("up", "down", "loss", "accuracy", "shard_mean", "personal_mean"):
        both = (each.tables["rounds"][column] for each in (found, wanted))
        np.testing.assert_array_equal(*both)
    final, clients = found.tables["final"], found.tables["clients"]
    assert final["client"].tolist() == list(range(5))
    assert not final["newcomer"].any()
    assert np.isfinite(final["accuracy"]).all()
    assert np.isfinite(final["tuned"]).all()
    after = clients["accuracy"][clients["round"] == 1]
    if name == "ditto":
        after = clients["personal"][clients["round"] == 1]
    if "variants" in found.tables and len(found.tables["variants"]):
        return  # see the next test
    if not np.isnan(after).all():
        np.testing.assert_array_equal(final["accuracy"], after)


VARIANTS = {
    "heterofl": ("method.rates=[1.0,0.5]",),
    "fedrolex": ("method.rates=[0.7,0.4]",),
    "federated-dropout": ("method.rates=[1.0,0.5]",),
    "fjord": ("method.rates=[1.0,0.5]",),
    "hetiot": ("method.keeps=[1.0,0.3]",),
    "hetiot lowrank": ("method.compressor=lowrank", "method.keeps=[1.0,0.5]"),
}


@pytest.mark.parametrize("case", VARIANTS)
def test_a_client_is_judged_by_the_share_that_its_device_holds(case: str) -> None:
    words = (f"method.name={case.split()[0]}", *VARIANTS[case], "rounds=3", *TUNE)
    engine = Engine(small(*words, "lr=0.3", "data.separation=4.0"))
    list(play(engine))
    rows, variants = engine.final()["final"], engine.server.variants(2)
    assert len(variants) == 2
    if case.startswith("hetiot"):
        shares = [plan.keep for plan in engine.clients.compressors.plans]
    else:
        shares = getattr(engine.clients, "widths", engine.clients).rates
    evaluation, unlike = engine.evaluation, 0
    for client in range(5):
        (mine,) = [one for one in variants if one.share == shares[client]]
        x, y = evaluation.shard(client)
        wanted = float(evaluation._right(x, y, mine.w, mine.part).mean())
        if case != "federated-dropout":  # there each client's channels are its own
            assert rows["accuracy"][client] == pytest.approx(wanted, abs=1e-6)
        unlike += rows["accuracy"][client] != rows["tuned"][client]
        model = engine.clients.owned(2, client, engine.server.w)
        (found,) = engine.clients.tune(2, (client,), model.view(1, -1))
        gone = (model == 0) & engine.flat.prunable()
        assert (found[gone] == 0).all()
    assert unlike


@pytest.mark.parametrize("words", [(), ("lr_decay=0.5", "participation=0.4")], ids=str)
def test_tuning_is_plain_training_from_the_last_model(words: Sequence[str]) -> None:
    engine = Engine(small("rounds=3", "lr=0.3", "data.separation=4.0", *TUNE, *words))
    list(play(engine))
    w, rows = engine.server.w.clone(), engine.final()["final"]
    free = torch.ones(len(w))
    wanted = [tuned(engine, 2, client, w, 3, free) for client in range(5)]
    for client, model in enumerate(wanted):
        (found,) = engine.clients.tune(2, (client,), w.view(1, -1))
        torch.testing.assert_close(found, model, rtol=1e-4, atol=1e-5)
        assert rows["accuracy"][client] == pytest.approx(on_shard(engine, client, w), abs=1e-6)
    accuracies = [on_shard(engine, client, model) for client, model in enumerate(wanted)]
    np.testing.assert_allclose(rows["tuned"], accuracies, atol=1e-6)
    assert not np.array_equal(rows["tuned"], rows["accuracy"])
    assert torch.equal(engine.server.w, w)


@pytest.mark.parametrize("name", ["ssfl", "staticmask", "dispfl", "feddst", "prunefl"])
def test_what_is_pruned_stays_pruned(name: str) -> None:
    engine = Engine(small(f"method.name={name}", "rounds=2", "weight_decay=0.01", *TUNE))
    list(play(engine))
    w, prunable = engine.server.w, engine.flat.prunable()
    for client in range(5):
        model = engine.clients.owned(engine.last, client, w).clone()
        (found,) = engine.clients.tune(1, (client,), model.view(1, -1))
        gone = (model == 0) & prunable
        if name != "prunefl":
            assert gone.any()
        assert (found[gone] == 0).all()
        assert (found[~gone] != model[~gone]).any()


def test_a_personal_model_is_what_a_client_of_ditto_has() -> None:
    found = run(small("method.name=ditto", "method.pull=1.0", "rounds=3", "participation=0.4"))
    engine = found.engine
    for client in range(5):
        own, w = engine.clients.owned(engine.last, client, engine.server.w), engine.server.w
        took_part = client in found.tables["clients"]["client"]
        assert torch.equal(own, w) != took_part


# ---- newcomers


@pytest.mark.parametrize("name", ["fedavg", "fedper", "fedrep", "fedbn", "ditto", "local", "ssfl"])
def test_newcomers_never_take_part_and_are_measured_apart(name: str) -> None:
    words = (f"method.name={name}", "rounds=3", "momentum=0.9", "weight_decay=0.01")
    found = run(small(*words, *NEW, "participation=0.6"))
    clients, rounds, final = (found.tables[n] for n in ("clients", "rounds", "final"))
    assert set(clients["client"].tolist()) <= {0, 1, 2}
    assert (rounds["sampled"][rounds["round"] >= 0] == 2).all(), "0.6 of three"
    assert final["newcomer"].tolist() == [False] * 3 + [True] * 2
    assert np.isfinite(final["tuned"]).all()
    if name != "ditto":
        assert rounds["shard_mean"][-1] == pytest.approx(final["accuracy"][:3].mean())


@pytest.mark.parametrize("name", ["fedper", "fedrep", "spatl"])
def test_newcomers_train_their_own_part_alone(name: str) -> None:
    engine = Engine(small(f"method.name={name}", "rounds=2", *NEW, "lr=0.3"))
    list(play(engine))
    clients, w = engine.clients, engine.server.w
    own = clients.private
    for client in (3, 4):
        model = clients.owned(engine.last, client, w)
        assert torch.equal(model[own], engine.flat.initial[own])
        assert torch.equal(model[~own], w[~own])
        (found,) = clients.tune(1, (client,), model.view(1, -1))
        torch.testing.assert_close(found, tuned(engine, 1, client, model, 3, own.float()))
        assert torch.equal(found[~own], w[~own])
    (found,) = clients.tune(1, (0,), clients.owned(engine.last, 0, w).view(1, -1))
    assert (found[~own] != w[~own]).float().mean() > 0.5


@pytest.mark.parametrize("words", [(), ("schedule=restarts", "lr_min=0.01")], ids=str)
@pytest.mark.parametrize("name", ["fedavg", "spatl", "ssfl"])
def test_newcomers_are_measured_after_each_epoch(name: str, words: Sequence[str]) -> None:
    """From what they have, of which some train a part; and all of it from the initial model."""
    given = (f"method.name={name}", "rounds=2", *NEW, "lr=0.3", "data.separation=4.0", *words)
    engine = Engine(small(*given))
    list(play(engine))
    tables = engine.final()
    rows, clients, unlike = tables["newcomers"], engine.clients, 0
    assert rows["client"].tolist() == [3] * 8 + [4] * 8
    everything = torch.ones(engine.flat.size)
    for client in (3, 4):
        mine = rows[rows["client"] == client]
        begun = {
            b"model": clients.owned(engine.last, client, engine.server.w),
            b"scratch": engine.flat.initial,
        }
        assert [row["start"] for row in mine] == [b"model"] * 4 + [b"scratch"] * 4
        for start, w in begun.items():
            some = mine[mine["start"] == start]
            assert some["epoch"].tolist() == [0, 1, 2, 3]
            free = everything
            if start == b"model" and name == "spatl":
                free = clients.private.float()
            if start == b"model" and name == "ssfl":
                free = 1 - ((w == 0) & engine.flat.prunable()).float()
            for row in some:
                model = w if not row["epoch"] else after(engine, client, w, row["epoch"], free)
                assert row["accuracy"] == pytest.approx(on_shard(engine, client, model), abs=1e-6)
            unlike += len(set(some["accuracy"].tolist()))
        (final,) = tables["final"][tables["final"]["client"] == client]
        from_model = mine[mine["start"] == b"model"]["accuracy"]
        assert (final["accuracy"], final["tuned"]) == (from_model[0], from_model[-1])
    assert unlike > 4


def after(engine: Engine, client: int, w: Tensor, epochs: int, free: Tensor) -> Tensor:
    """A newcomer's model [n] after the first epochs of three, at the rates of all three."""
    settings, feed = engine.settings, engine.trainer.feed
    each = -(-len(engine.population.shards[client]) // settings.batch)
    for step, pick in enumerate(feed.picks(1, client, 3)):
        if step == epochs * each:
            break
        rate, least = settings.lr, settings.lr_min
        if settings.schedule == "restarts":
            rate = least + (rate - least) * (1 + cos(pi * (step // each) / 3)) / 2
        module = network(engine, w)
        x, y = feed.take(pick.positions)
        pieces = torch.autograd.grad(cross_entropy(module(x), y), list(module.parameters()))
        w = vector(module) - rate * free * torch.cat([piece.reshape(-1) for piece in pieces])
    return w


@pytest.mark.parametrize("rows", [1, 3])
def test_nobody_but_newcomers_is_watched(rows: int) -> None:
    words = ("method.name=fedper", "rounds=1", f"rows={rows}")
    found = run(small(*words, *NEW)).tables
    assert set(found["newcomers"]["client"].tolist()) == {3, 4}
    assert len(found["newcomers"]) == 2 * 2 * 4
    assert not len(run(small(*words, *TUNE)).tables["newcomers"])
    assert not len(found["slices"])


def test_what_rests_rests_under_decay_and_momentum() -> None:
    words = ("weight_decay=0.1", "momentum=0.9")
    engine = Engine(small("method.name=fedper", "rounds=1", *NEW, *words))
    list(play(engine))
    clients, w = engine.clients, engine.server.w
    (found,) = clients.tune(0, (4,), clients.owned(engine.last, 4, w).view(1, -1))
    assert torch.equal(found[~clients.private], w[~clients.private])


# ---- ranks, rows and refusals


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("name", ["fedavg", "fedper", "ditto", "splitfed"])
def test_any_ranks_measure_the_same(name: str) -> None:
    settings = small(f"method.name={name}", *NEW, "participation=0.6", "rounds=2")
    found, wanted = run(settings, MPI.COMM_WORLD), run(settings)
    if MPI.COMM_WORLD.rank == 0:
        for table in ("final", "newcomers"):
            np.testing.assert_array_equal(found.tables[table], wanted.tables[table])


@pytest.mark.parametrize("name", ["fedavg", "fedper"])
def test_stacked_is_one_by_one(name: str) -> None:
    words = (f"method.name={name}", *NEW, "rounds=2", "local_steps=3")
    found, wanted = (run(small(*words, f"rows={rows}")) for rows in (3, 1))
    for column in ("accuracy", "tuned"):
        one, other = (each.tables["final"][column] for each in (found, wanted))
        np.testing.assert_allclose(one, other, atol=0.1)


@pytest.mark.parallel([1, 3])
def test_a_run_that_a_budget_ends_is_measured_as_a_short_one() -> None:
    words, world = ("method.name=fedper", *TUNE), MPI.COMM_WORLD
    short, budget = run(small(*words, "rounds=3"), world), None
    if world.rank == 0:
        budget = f"up_bytes:{int(short.tables['rounds']['up'].sum())}B"
    found = run(small(*words, "rounds=9", f"budget={world.bcast(budget)}"), world)
    if world.rank == 0:
        np.testing.assert_array_equal(found.tables["final"], short.tables["final"])


def test_what_is_refused() -> None:
    assert "newcomers = 5: wanted less than clients = 5" in refusal("newcomers=5", *TUNE)
    assert "newcomers = 1: wanted evaluate.final" in refusal("newcomers=1")
    assert "wanted evaluate.final = 'tune' or 'slice'" in refusal("evaluate.final_epochs=7")
