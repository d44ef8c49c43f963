"""Methods whose clients keep a part of the model, or all: what stays, what travels, and why."""

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from fedmpi import models
from fedmpi.engine import Engine
from fedmpi.messages.codec import Message, pack
from fedmpi.results.outcome import Outcome
from tests.plain import (
    METHODS,
    accuracy,
    average,
    network,
    optimiser,
    play,
    positions,
    train,
    vector,
)
from tests.small import run, small, smooth

FEW = ("participation=0.6", "rounds=4", "momentum=0.5")


def near(found: Tensor, wanted: Tensor) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def private(engine: Engine) -> Tensor:
    """Which positions stay with the clients: bool [n]."""
    return engine.clients.private


@pytest.mark.parametrize("name", METHODS)
def test_what_is_private_costs_no_bytes_and_never_travels(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FedPer's head, FedBN's norms, SPATL's predictor: whatever clients make of it."""
    monkeypatch.setattr(models, "build", smooth)
    engine = Engine(small(f"method.name={name}", "rounds=3"))
    own = getattr(engine.clients, "private", None)
    if own is None:
        return
    list(play(engine))
    assert torch.equal(engine.server.w[own], engine.flat.initial[own])
    w, said, count = engine.server.w + 0.1, [], int(own.sum())
    assert 0 < count < engine.flat.size
    for _ in range(2):
        w[own] += torch.randn(count)
        blocks = engine.clients.upload(3, 1, w.clone())
        said.append(pack([Message(1, blocks)]).data.tobytes())
    assert said[0] == said[1]
    (told,) = {len(b.values) for b in engine.server.broadcast(3)}
    assert told == engine.flat.size - count


# ---- local


def test_local_is_training_alone() -> None:
    engine = Engine(small("method.name=local", *FEW))
    own: dict[int, Tensor] = {}
    for t, _ in enumerate(play(engine)):
        for client in engine.population.sample(t):
            own[client], _ = train(engine, t, client, own.get(client, engine.flat.initial))
            near(engine.clients.models[client], own[client])
            own[client] = engine.clients.models[client].clone()
    assert torch.equal(engine.server.w, engine.flat.initial)


@pytest.mark.parametrize("name", ["local", "fedper", "fedrep", "fedbn", "spatl"])
def test_there_is_no_global_model_to_judge(name: str) -> None:
    found = run(small(f"method.name={name}"))
    rounds, clients = found.tables["rounds"], found.tables["clients"]
    for column in ("accuracy", "validation"):
        assert np.isnan(rounds[column]).all()
    for column in ("shard_mean", "shard_std", "shard_min", "personal_mean"):
        assert np.isfinite(rounds[column]).all()
    assert np.isfinite(clients["accuracy"]).all()


# ---- what clients have after a round


def shard_accuracies(engine: Engine, models: list[Tensor]) -> np.ndarray:
    """Each client's, of these models [n], by plain torch."""
    x, y, found = engine.evaluation.test_x, engine.evaluation.test_y, []
    for w, shard in zip(models, engine.population.test_shards, strict=True):
        found.append(accuracy(network(engine, w), x[shard], y[shard]))
    return np.array(found)


def check_deployed(outcome: Outcome | None, wanted: np.ndarray) -> None:
    """An outcome's accuracies are the wanted ones, [clients]."""
    assert outcome is not None
    rows, (row,) = outcome.tables["clients"], outcome.tables["rounds"]
    np.testing.assert_allclose(rows["accuracy"], wanted[rows["client"]], atol=1e-6)
    found = [row[column] for column in ("shard_mean", "shard_std", "shard_min")]
    np.testing.assert_allclose(found, [wanted.mean(), wanted.std(), wanted.min()], atol=1e-6)


REST = "devices.tiers=[{name='big', share=0.6}, {name='tiny', share=0.4, memory=1e-3}]"


@pytest.mark.parametrize(
    "words", [("participation=0.4",), (REST, "devices.unfit=rest")], ids=["few", "rest"]
)
@pytest.mark.parametrize("name", ["fedper", "fedrep", "spatl", "local"])
def test_clients_have_the_new_shared_part_and_their_own(name: str, words: tuple[str, ...]) -> None:
    """By plain torch. Who did not take part has its old own part, and at first the initial one."""
    given = ("rounds=4", "lr=0.5", "epochs=3", "data.separation=6.0")
    engine = Engine(small(f"method.name={name}", *given, *words))
    stays = torch.ones(engine.flat.size) > 0 if name == "local" else private(engine)
    own, w, stale = engine.flat.initial.repeat(5, 1), engine.flat.initial, False
    store = engine.clients.models if name == "local" else engine.clients.own
    for t, outcome in enumerate(play(engine)):
        for client in engine.population.sample(t):
            own[client, stays] = store[client]
        before, w = w, engine.server.w.clone()
        wanted = shard_accuracies(engine, list(torch.where(stays, own, w)))
        check_deployed(outcome, wanted)
        # The shared part of before the round would give other accuracies.
        old = shard_accuracies(engine, list(torch.where(stays, own, before)))
        stale = stale or not np.array_equal(old, wanted)
        assert not np.isin(range(5), engine.population.sample(t)).all()
    assert stale == (name != "local")


def test_clients_whose_uploads_are_all_lost_have_changed_all_the_same() -> None:
    """The shared part is as it was; their own is new."""
    words = ("devices.tiers=[{gflops=1.0}]", "devices.dropouts=0.9", "participation=0.4")
    engine = Engine(small("method.name=fedper", *words, "rounds=5", "lr=0.5"))
    stays, own, void = private(engine), engine.flat.initial.repeat(5, 1), 0
    for t, outcome in enumerate(play(engine)):
        assert outcome is not None
        for client in engine.population.sample(t):
            own[client, stays] = engine.clients.own[client]
        check_deployed(
            outcome, shard_accuracies(engine, list(torch.where(stays, own, engine.server.w)))
        )
        void += bool(outcome.tables["clients"]["lost"].all())
    assert void > 1


def test_for_local_models_both_accuracies_are_one() -> None:
    clients = run(small("method.name=local", "participation=0.6")).tables["clients"]
    np.testing.assert_array_equal(clients["accuracy"], clients["personal"])


@pytest.mark.parallel([2, 3, 4])
@pytest.mark.parametrize("server", ["dedicated", "shared"])
@pytest.mark.parametrize("name", ["fedper", "spatl", "local"])
def test_what_clients_have_does_not_depend_on_ranks(name: str, server: str) -> None:
    """Most take no part in a round, and some in none: yet each is judged where it lives."""
    words = (f"method.name={name}", "participation=0.2", "rounds=4", "lr=0.5", f"server={server}")
    settings = small(*words, REST, "devices.unfit=rest")
    found = run(settings, MPI.COMM_WORLD)
    if MPI.COMM_WORLD.rank == 0:
        alone = run(settings)
        for table, column in (
            *(("rounds", column) for column in ("shard_mean", "shard_std", "shard_min")),
            ("clients", "accuracy"),
        ):
            assert np.isfinite(found.tables[table][column]).all()
            np.testing.assert_array_equal(found.tables[table][column], alone.tables[table][column])


def test_local_sends_headers_alone() -> None:
    clients = run(small("method.name=local")).tables["clients"]
    for column in clients.dtype.names:
        if column.startswith(("up_", "down_")):
            assert (clients[column] == (16 if column.endswith("header") else 0)).all()


# ---- FedPer


@pytest.mark.parametrize("cut", ["hidden1", "hidden2"])
def test_fedper_averages_the_front_and_leaves_the_rest(cut: str) -> None:
    engine = Engine(small("method.name=fedper", f"method.cut={cut}", *FEW))
    stays = private(engine)
    assert 0 < int(stays.sum()) < engine.flat.size
    w, own = engine.server.w.clone(), {}
    for t, _ in enumerate(play(engine)):
        total, samples = torch.zeros_like(w), 0
        for client in engine.population.sample(t):
            start = w.clone()
            start[stays] = own.get(client, engine.flat.initial[stays])
            local, _ = train(engine, t, client, start)
            near(engine.clients.own[client], local[stays])
            own[client] = engine.clients.own[client].clone()
            size = len(engine.population.shards[client])
            total, samples = total + size * local, samples + size
        near(engine.server.w[~stays], (total / samples)[~stays])
        assert torch.equal(engine.server.w[stays], engine.flat.initial[stays])
        w = engine.server.w.clone()


def test_fedper_never_sends_what_is_private() -> None:
    found = run(small("method.name=fedper"))
    shared = found.engine.flat.size - int(private(found.engine).sum())
    assert shared == 12 * 64 + 12 + 8 * 12 + 8, "all but the head"
    clients = found.tables["clients"]
    assert set(clients["up_gradient"].tolist()) == {4 * shared}
    assert set(clients["down_model"].tolist()) == {4 * shared}


def test_personal_accuracy_is_of_both_parts_together() -> None:
    found = run(small("method.name=fedper", "rounds=1"))
    engine, rows = found.engine, found.tables["clients"]
    clients = engine.clients
    for row in rows:
        client = int(row["client"])
        shard = engine.population.test_shards[client]
        if not len(shard):
            continue
        w = engine.flat.initial.clone()
        w[private(engine)] = clients.own[client]
        w[~private(engine)] = train(engine, 0, client, engine.flat.initial)[0][~private(engine)]
        module = network(engine, w)
        x, y = engine.evaluation.test_x[shard], engine.evaluation.test_y[shard]
        right = (module(x).argmax(1) == y).float().mean()
        assert row["personal"] == pytest.approx(float(right.detach()), abs=1e-6)


# ---- FedRep


LOCAL = {
    "sgd": (),
    "momentum": ("momentum=0.9", "weight_decay=0.1", "lr=0.03"),
    "adam": ("optimizer=adam", "lr=0.003", "weight_decay=0.1", "clip=0.5"),
}


def frozen(engine: Engine, client: int, share: float) -> Tensor:
    """A client's model after round 0 of FedRep, by torch: frozen parameters get no gradient.

    Torch's optimizers skip them. Only those that train count for the clip.
    """
    module = network(engine, engine.flat.initial)
    steps, feed = engine.population.steps(0, client), engine.trainer.feed
    head, body = (list(part.parameters()) for part in (module[-1], module[:-1]))
    optimizers = [optimiser(engine, nn.ParameterList(part), 0) for part in (head, body)]
    for step, some in enumerate(positions(engine, 0, client)):
        is_head = step < round(share * steps)
        for parameter in head:
            parameter.requires_grad_(is_head)
        for parameter in body:
            parameter.requires_grad_(not is_head)
        optimizer, part = optimizers[0 if is_head else 1], head if is_head else body
        optimizer.zero_grad()
        cross_entropy(module(feed.x[some]), feed.y[some]).backward()
        if engine.settings.clip:
            clip_grad_norm_(part, engine.settings.clip)
        optimizer.step()
    return vector(module)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("way", LOCAL)
@pytest.mark.parametrize("rows", [1, 3])
def test_fedrep_trains_the_head_first_and_what_rests_rests(
    rows: int, way: str, share: float
) -> None:
    """No decay and no momentum moves the other part; Adam knows nothing of its rest."""
    words = ("method.name=fedrep", f"method.head={share}", "epochs=3", "rounds=1")
    engine = Engine(small(*words, *LOCAL[way], f"rows={rows}"))
    list(play(engine))
    stays, start = private(engine), engine.flat.initial
    total, samples = torch.zeros_like(start), 0
    for client in range(5):
        local = frozen(engine, client, share)
        near(engine.clients.own[client], local[stays])
        size = len(engine.population.shards[client])
        total, samples = total + size * local, samples + size
    near(engine.server.w[~stays], (total / samples)[~stays])
    assert torch.equal(engine.server.w[~stays], start[~stays]) == (share == 1)
    moved = [not torch.equal(engine.clients.own[client], start[stays]) for client in range(5)]
    assert all(moved) if share else not any(moved)


def test_statistics_of_what_rests_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "build", smooth)
    engine = Engine(small("method.name=fedrep", "method.head=1.0", "method.cut=conv", "rounds=2"))
    list(play(engine))
    shared = ~private(engine)
    assert engine.flat.stat_positions.max() > int(shared.sum())
    assert torch.equal(engine.server.w[shared], engine.flat.initial[shared])
    own = engine.clients.own[0]
    assert (own != engine.flat.initial[~shared]).float().mean() > 0.9


# ---- FedBN


def test_fedbn_keeps_norms_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "build", smooth)
    engine = Engine(small("method.name=fedbn", "rounds=3"))
    stays = private(engine)
    assert int(stays.sum()) == 4 * (4 + 6), "scale, shift, mean and variance of two norms"
    list(play(engine))
    assert torch.equal(engine.server.w[stays], engine.flat.initial[stays])
    assert not torch.equal(engine.server.w[~stays], engine.flat.initial[~stays])
    own = torch.stack([engine.clients.own[client] for client in range(5)])
    assert (own.std(0) > 0).all(), "each client has its own"


def test_fedbn_without_norms_is_fedavg() -> None:
    found, wanted = run(small("method.name=fedbn", *FEW)), run(small(*FEW))
    np.testing.assert_allclose(found.model, wanted.model, rtol=1e-4, atol=2e-5)
    rows = (one.tables["rounds"]["shard_mean"] for one in (found, wanted))
    np.testing.assert_allclose(*rows, atol=0.02, err_msg="what clients have is the global model")


# ---- Ditto


def test_dittos_global_model_is_fedavgs() -> None:
    ditto, plain = run(small("method.name=ditto", *FEW)), run(small(*FEW))
    assert ditto.sha256 == plain.sha256
    for name in ("up", "down", "accuracy"):
        np.testing.assert_array_equal(ditto.tables["rounds"][name], plain.tables["rounds"][name])


@pytest.mark.parametrize("pull", [0.0, 0.7])
def test_dittos_own_models_are_drawn_to_the_global_one(pull: float) -> None:
    engine = Engine(small("method.name=ditto", f"method.pull={pull}", *FEW))
    own: dict[int, Tensor] = {}
    w = engine.server.w.clone()
    for t, outcome in enumerate(play(engine)):
        clients = engine.population.sample(t)
        for client in clients:
            near(engine.clients.models[client], alone(engine, t, client, own, w, pull))
            own[client] = engine.clients.models[client].clone()
            row = outcome.tables["clients"][clients.index(client)]
            shard = engine.population.test_shards[client]
            x, y = engine.evaluation.test_x[shard], engine.evaluation.test_y[shard]
            wanted = accuracy(network(engine, own[client]), x, y)
            np.testing.assert_allclose(row["personal"], wanted, atol=1e-6)
        near(engine.server.w, average(engine, t, w))
        w = engine.server.w.clone()


def alone(
    engine: Engine, t: int, client: int, own: dict[int, Tensor], w: Tensor, pull: float
) -> Tensor:
    """An own model after plain training on the loss with the term lambda / 2 * ||v - w||^2."""
    module = network(engine, own.get(client, engine.flat.initial))
    parameters = list(module.parameters())
    steps = torch.optim.SGD(parameters, lr=engine.settings.lr, momentum=0.5)
    x, y = engine.trainer.feed.x, engine.trainer.feed.y
    for pick in engine.trainer.feed.picks(t, client):
        steps.zero_grad()
        v = torch.cat([parameter.reshape(-1) for parameter in parameters])
        loss = cross_entropy(module(x[pick.positions]), y[pick.positions])
        (loss + pull / 2 * (v - w).square().sum()).backward()
        steps.step()
    return torch.cat([parameter.detach().reshape(-1) for parameter in parameters])


# ---- fine-tuning


def test_fine_tuning_is_fedavg_and_a_last_measurement() -> None:
    words = (*FEW, "evaluate.final_epochs=2")
    found = run(small("method.name=finetune", *words))
    wanted = run(small(*words, "evaluate.final=tune"))
    assert found.sha256 == wanted.sha256 == run(small(*FEW)).sha256
    np.testing.assert_array_equal(found.tables["final"], wanted.tables["final"])
    assert small("method.name=finetune").evaluate.final_epochs == 5
