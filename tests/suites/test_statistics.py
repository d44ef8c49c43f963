"""BatchNorm's running statistics, averaged or local, against plain torch modules."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedmpi import models
from fedmpi.config import ConfigError
from fedmpi.engine import Engine
from fedmpi.messages.codec import Block
from fedmpi.networks.layers import BatchNorm, Dropout
from fedmpi.training import probe
from tests import plain
from tests.plain import METHODS, play
from tests.small import run, small, smooth

WORDS = ("rounds=3", "participation=0.6", "momentum=0.9", "weight_decay=0.01", "epochs=2")

NORMS = ("conv.1.", "dense.2.")
"""Beginnings of the names of what belongs to norms."""


@pytest.fixture(autouse=True)
def _network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "build", smooth)


def torchs(engine: Engine) -> nn.Sequential:
    """The engine's initial network with torch's own norms, and without dropout."""
    network = copy.deepcopy(engine.flat.stages)
    for stage in network.children():
        for name, module in list(stage.named_children()):
            if isinstance(module, BatchNorm):
                channels = len(module.weight)
                kind = nn.BatchNorm2d if name == "1" else nn.BatchNorm1d
                setattr(stage, name, kind(channels))
                getattr(stage, name).load_state_dict(module.state_dict(), strict=False)
    return network


def engine_of(*words: str) -> Engine:
    """An engine whose network drops nothing."""
    engine = Engine(small(*WORDS, *words))
    for network in (engine.flat.stages, *engine.trainer.rows.networks):
        for module in network.modules():
            if isinstance(module, Dropout):
                module.share = 0.0
    return engine


def train(
    engine: Engine, t: int, client: int, module: nn.Sequential, passes: int | None = None
) -> None:
    feed, steps = engine.trainer.feed, plain.optimiser(engine, module, t)
    for pick in feed.picks(t, client, passes):
        steps.zero_grad()
        cross_entropy(module(feed.x[pick.positions]), feed.y[pick.positions]).backward()
        steps.step()


def vector(module: nn.Sequential, statistics: bool) -> torch.Tensor:
    """The state that floats: parameters, and statistics beside them in the order of modules."""
    names = [name for name, _ in module.named_parameters()]
    state = module.state_dict()
    chosen = [name for name in state if name in names or statistics]
    return torch.cat([state[n].reshape(-1) for n in chosen if state[n].is_floating_point()])


def test_averaged_statistics_are_averaged_state_dicts() -> None:
    engine = engine_of()
    shared = torchs(engine)
    assert torch.equal(vector(shared, statistics=True), engine.server.w)
    for t, _ in enumerate(play(engine)):
        clients = engine.population.sample(t)
        weights = (
            engine.population.sizes[list(clients)] / engine.population.sizes[list(clients)].sum()
        )
        states = []
        for client in clients:
            own = copy.deepcopy(shared)
            train(engine, t, client, own)
            states.append(own.state_dict())
        mean = {
            name: sum(w * state[name] for w, state in zip(weights, states, strict=True))
            for name, value in states[0].items()
            if value.is_floating_point()
        }
        shared.load_state_dict(mean, strict=False)
        np.testing.assert_allclose(engine.server.w, vector(shared, True), rtol=1e-4, atol=1e-5)
        shared.train(False)
        x, y = engine.evaluation.test_x, engine.evaluation.test_y
        verdict = engine.evaluation.evaluate(engine.server.w)
        assert verdict.accuracy == pytest.approx(plain.accuracy(shared, x, y))
        shared.train(True)


def test_local_statistics_stay_with_their_clients() -> None:
    engine = engine_of("statistics=local")
    shared, own = torchs(engine), {}
    assert torch.equal(vector(shared, statistics=False), engine.server.w)
    names = {name for name, _ in shared.named_parameters()}
    for t, outcome in enumerate(play(engine)):
        clients = engine.population.sample(t)
        mean = dict.fromkeys(names, 0)
        sizes = engine.population.sizes
        for client in clients:
            module = own.setdefault(client, copy.deepcopy(shared))
            module.load_state_dict(dict(shared.named_parameters()), strict=False)
            train(engine, t, client, module)
            for name, parameter in module.named_parameters():
                mean[name] += sizes[client] / sizes[list(clients)].sum() * parameter.detach()
            module.train(False)
            shard = engine.population.test_shards[client]
            x, y = engine.evaluation.test_x[shard], engine.evaluation.test_y[shard]
            row = outcome.tables["clients"][clients.index(client)]
            np.testing.assert_allclose(row["personal"], plain.accuracy(module, x, y), atol=1e-6)
            module.train(True)
        shared.load_state_dict(mean, strict=False)
        np.testing.assert_allclose(engine.server.w, vector(shared, False), rtol=1e-4, atol=1e-5)
        # The global model has no statistics: a batch is normalised by its own.
        x, y = engine.evaluation.test_x, engine.evaluation.test_y
        verdict = engine.evaluation.evaluate(engine.server.w)
        assert verdict.accuracy == pytest.approx(plain.accuracy(copy.deepcopy(shared), x, y))


@pytest.mark.parametrize("statistics", ["averaged", "local"])
def test_a_tuned_model_is_judged_with_its_own_statistics(statistics: str) -> None:
    """Local ones begin where the client's local training left them, and go nowhere."""
    tune = ("evaluate.final=tune", "evaluate.final_epochs=3")
    engine = engine_of(f"statistics={statistics}", *tune)
    is_local, own, last = statistics == "local", {}, 0
    shared = torchs(engine)
    for t, _ in enumerate(play(engine)):
        for client in engine.population.sample(t):
            trained = copy.deepcopy(own.get(client, shared)) if is_local else copy.deepcopy(shared)
            trained.load_state_dict(dict(shared.named_parameters()), strict=False)
            train(engine, t, client, trained)
            own[client] = trained
        state = engine.flat.network(engine.server.w.clone()).state_dict()
        shared.load_state_dict(state, strict=False)
        last = t
    rows = engine.final()["final"]
    for client in own:
        module = copy.deepcopy(own[client] if is_local else shared)
        module.load_state_dict(dict(shared.named_parameters()), strict=False)
        shard = engine.population.test_shards[client]
        x, y = engine.evaluation.test_x[shard], engine.evaluation.test_y[shard]
        for column, passes in (("accuracy", 0), ("tuned", 3)):
            if passes:
                module.train(True)
                train(engine, last, client, module, passes=passes)
            module.train(False)
            found = rows[column][client]
            np.testing.assert_allclose(found, plain.accuracy(module, x, y), atol=1e-6)
        if is_local:
            found = engine.trainer.tuned[client], engine.trainer.statistics[client]
            for some, wanted in zip(found, (module, own[client]), strict=True):
                np.testing.assert_allclose(some, local_stats(wanted), rtol=1e-3, atol=1e-4)


def local_stats(module: nn.Sequential) -> torch.Tensor:
    """The running statistics, in the order of modules."""
    return torch.cat([b for b in module.buffers() if b.is_floating_point()])


@pytest.mark.parametrize("statistics", ["averaged", "local"])
def test_what_clients_of_fedbn_have_after_a_round(statistics: str) -> None:
    """All but norms as averaged, and their own norms; who has no statistics yet takes a batch's."""
    engine = engine_of("method.name=fedbn", f"statistics={statistics}", "participation=0.4")
    first, own = torchs(engine), {}
    shared = {name: value for name, value in first.named_parameters() if not name.startswith(NORMS)}
    for t, outcome in enumerate(play(engine)):
        clients = engine.population.sample(t)
        sizes = engine.population.sizes[list(clients)]
        for client in clients:
            module = own.setdefault(client, copy.deepcopy(first))
            module.load_state_dict(shared, strict=False)
            train(engine, t, client, module)
        states = [own[client].state_dict() for client in clients]
        shared = {
            name: sum(n * state[name] for n, state in zip(sizes, states, strict=True)) / sizes.sum()
            for name in shared
        }
        wanted = np.zeros(5)
        for client, shard in enumerate(engine.population.test_shards):
            module = copy.deepcopy(own.get(client, first))
            module.load_state_dict(shared, strict=False)
            module.train(statistics == "local" and client not in own)
            x, y = engine.evaluation.test_x[shard], engine.evaluation.test_y[shard]
            wanted[client] = plain.accuracy(module, x, y)
        rows, (row,) = outcome.tables["clients"], outcome.tables["rounds"]
        np.testing.assert_allclose(rows["accuracy"], wanted[list(clients)], atol=1e-6)
        found = [row[column] for column in ("shard_mean", "shard_std", "shard_min")]
        np.testing.assert_allclose(found, [wanted.mean(), wanted.std(), wanted.min()], atol=1e-6)
        assert t > 0 or len(own) < 5


@pytest.mark.parametrize("rows", [2, 5])
def test_who_has_no_statistics_yet_does_not_change_how_others_are_judged(rows: int) -> None:
    """Stacked together or one by one."""
    words = ("method.name=fedbn", "statistics=local", "lr=0.3", "data.separation=6.0")
    found, wanted = (run(small(*WORDS, *words, f"rows={count}")) for count in (rows, 1))
    assert len(set(found.tables["clients"]["client"][:3].tolist())) < 5
    for column in ("shard_mean", "shard_std", "shard_min"):
        rows_of = (each.tables["rounds"][column] for each in (found, wanted))
        np.testing.assert_allclose(*rows_of, atol=0.02)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("batch", [1, 7])
def test_lone_values_are_normalised(batch: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a batch of one sample meets a feature map of one pixel, torch's own layer raises."""
    monkeypatch.undo()
    words = ("model.name=resnet", "model.norm=batch", "data.shape=[1,4,4]", f"batch={batch}")
    given = ("data.samples=31", "data.test_samples=5", "clients=3", "partition.minimum=1")
    found = run(small(*words, *given, "lr=0.01", "validation=0.0", "rounds=1", f"rows={rows}"))
    assert np.isfinite(found.model).all()
    assert (found.engine.population.sizes % batch == 1 % batch).any(), "one sample is left over"


def test_without_statistics_none_are_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="statistics = 'local': the model has no running"):
        Engine(small("statistics=local"))


@pytest.mark.parametrize(("statistics", "extra"), [("averaged", 20), ("local", 0)])
def test_what_is_local_does_not_travel(statistics: str, extra: int) -> None:
    found = run(small(f"statistics={statistics}"))
    rows, flat = found.tables["clients"], found.engine.flat
    assert flat.size == flat.count + extra
    assert set(rows["down_model"].tolist()) == {4 * flat.size}
    assert set(rows["up_gradient"].tolist()) == {4 * flat.size}


def test_scores_are_those_of_the_network_as_it_is_judged() -> None:
    """SSFL's saliency: nothing is dropped, and no statistic moves."""
    engine = Engine(small("method.name=ssfl"))
    before = engine.server.w.clone()
    positions = engine.population.shards[0][:16]
    found = probe.gradient(engine.trainer, 0, before, positions).clone()
    assert torch.equal(engine.trainer.rows.w[0], before)
    module = torchs(engine).train(False)
    for layer in module.modules():
        if isinstance(layer, Dropout):
            layer.share = 0.0
    x, y = engine.trainer.feed.x[positions], engine.trainer.feed.y[positions]
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(cross_entropy(module(x), y), parameters)
    wanted = torch.cat([gradient.reshape(-1) for gradient in gradients])
    np.testing.assert_allclose(found[engine.flat.moving > 0], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_averages_statistics_as_they_are(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By samples, whatever becomes of the rest of an update on its way.

    Where clients have whole models and share them; other methods' own tests look at the others.
    """
    engine, own = Engine(small(f"method.name={name}", "rounds=3", "participation=0.6")), {}
    upload, before, stat_positions = (
        engine.clients.upload,
        engine.flat.initial.clone(),
        engine.flat.stat_positions,
    )

    def watch(t: int, client: int, w: Tensor) -> list[Block]:
        own[client] = w.clone()
        return upload(t, client, w)

    monkeypatch.setattr(engine.clients, "upload", watch)
    for outcome in play(engine):
        if not engine.method.is_global or any(len(w) != engine.flat.size for w in own.values()):
            return
        if outcome.tables["rounds"]["round"][0] >= 0:
            weights = torch.from_numpy(engine.population.sizes[list(own)]).float()
            wanted = weights @ torch.stack(list(own.values()))[:, stat_positions] / weights.sum()
            np.testing.assert_allclose(
                engine.server.w[stat_positions], wanted, rtol=1e-4, atol=1e-6
            )
            assert (wanted != before[stat_positions]).all()
        before = engine.server.w.clone()
        own.clear()


@pytest.mark.parametrize("statistics", ["averaged", "local"])
def test_halves_of_a_network_average_theirs_as_a_whole_one(statistics: str) -> None:
    words = (f"statistics={statistics}", "rounds=3", "momentum=0.9")
    split, whole = (run(small(*words, *name)) for name in (("method.name=splitfed",), ()))
    np.testing.assert_allclose(split.model, whole.model, rtol=1e-3, atol=1e-4)
