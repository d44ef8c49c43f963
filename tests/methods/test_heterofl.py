"""HeteroFL against plain torch: networks built narrow, logits masked, means over those who have."""

from itertools import pairwise
from math import ceil

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedmpi import models
from fedmpi.config import ConfigError
from fedmpi.engine import Engine
from tests import plain
from tests.plain import CNN, EVERYTHING, play
from tests.small import run, small, smooth

NAME = "method.name=heterofl"
WIDE = [64, 12, 8, 10]
"""Inputs, units and classes of the small network."""


def near(found: np.ndarray | Tensor, wanted: np.ndarray | Tensor) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=1e-3, atol=1e-4)


def widths(rate: float) -> list[int]:
    """Those of a sub-model."""
    return [64, *(ceil(rate * units) for units in WIDE[1:-1]), 10]


def tensors(w: Tensor) -> list[Tensor]:
    """Weights and biases of the small network in w [n], views."""
    found, place = [], 0
    for inputs, outputs in pairwise(WIDE):
        for shape in ((outputs, inputs), (outputs,)):
            count = int(np.prod(shape))
            found.append(w[place : place + count].view(shape))
            place += count
    return found


def windows(rate: float) -> list[tuple[slice, ...]]:
    """What a sub-model has of each of them."""
    found: list[tuple[slice, ...]] = []
    for inputs, outputs in pairwise(widths(rate)):
        found += [(slice(outputs), slice(inputs)), (slice(outputs),)]
    return found


def train(
    engine: Engine, t: int, client: int, w: Tensor, rate: float, scale: float, masked: bool
) -> list[Tensor]:
    """The sub-model after local training, from definitions: dense layers, ReLU, masked logits."""
    parts = [p[cut].clone() for p, cut in zip(tensors(w), windows(rate), strict=True)]
    for part in parts:
        part.requires_grad_()
    settings, feed = engine.settings, engine.trainer.feed
    steps = torch.optim.SGD(parts, lr=settings.lr, momentum=settings.momentum)
    y = feed.y[torch.from_numpy(engine.population.shards[client])]
    present = torch.zeros(10).index_fill_(0, y, 1)
    for some in plain.positions(engine, t, client):
        x = feed.x[some].flatten(1)
        for weight, bias in zip(parts[0:4:2], parts[1:4:2], strict=True):
            x = ((x @ weight.T + bias) * scale).relu()
        logits = x @ parts[4].T + parts[5]
        if masked:
            logits = logits.masked_fill(present == 0, 0)
        steps.zero_grad()
        cross_entropy(logits, feed.y[some]).backward()
        steps.step()
    return [part.detach() for part in parts]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("scaler", [True, False])
def test_rounds_are_means_over_those_who_have_a_value(masked: bool, scaler: bool) -> None:
    words = [f"method.masked={str(masked).lower()}", f"method.scaler={str(scaler).lower()}"]
    rates = "method.rates=[0.75,0.5,0.25]"
    engine = Engine(small(NAME, *words, rates, "participation=0.6", "momentum=0.5", "rounds=4"))
    own, w = engine.clients.widths.rates, engine.server.w.clone()
    assert sorted(set(own)) == [0.25, 0.5, 0.75]
    for t, _ in enumerate(play(engine)):
        total, weights = torch.zeros_like(w), torch.zeros_like(w)
        for client in engine.population.sample(t):
            rate, size = own[client], len(engine.population.shards[client])
            scale = 1 / rate if scaler else 1.0
            trained = train(engine, t, client, w, rate, scale, masked)
            y = engine.trainer.feed.y[torch.from_numpy(engine.population.shards[client])]
            for place, cut in enumerate(windows(rate)):
                rows = y.unique() if place > 3 and masked else torch.arange(WIDE[place // 2 + 1])
                for row in rows.tolist():
                    if row < len(trained[place]):
                        at = (row, *cut[1:])
                        tensors(total)[place][at] += size * trained[place][row]
                        tensors(weights)[place][at] += size
        wanted = torch.where(weights > 0, total / weights, w)
        near(engine.server.w, wanted)
        assert torch.equal(engine.server.w[weights == 0], w[weights == 0])
        assert 0 < int((weights == 0).sum()) < len(w)
        w = engine.server.w.clone()


@pytest.mark.parametrize("words", [(), EVERYTHING, (*CNN, *EVERYTHING, "participation=0.6")])
def test_with_all_rates_one_it_is_fedavg(words: tuple[str, ...]) -> None:
    found = run(small(NAME, "method.rates=[1.0]", "method.masked=false", *words))
    near(found.model, run(small(*words)).model)


def test_with_all_classes_everywhere_the_mask_is_no_mask() -> None:
    words = ("method.rates=[1.0]", "partition.name=iid", "data.classes=2")
    near(run(small(NAME, *words)).model, run(small(*words[1:])).model)


def test_bytes_are_those_of_sub_models_and_of_classes() -> None:
    found = run(small(NAME, "method.rates=[1.0,0.5]"))
    engine = found.engine
    for row in found.tables["clients"]:
        client = int(row["client"])
        rate = engine.clients.widths.rates[client]
        units = widths(rate)
        size = sum(a * b + b for a, b in pairwise(units))
        held = len(engine.clients.labels(client))
        assert row["down_model"] == 4 * size
        up = 4 * (size - (10 - held) * (units[-2] + 1))
        assert row["up_gradient"] == up
        assert row["up_mask"] == 2, "a bit a class"


def test_flops_and_memory_are_those_of_the_narrow_network() -> None:
    tiers = "devices.tiers=[{name='a',share=0.4},{name='b',share=0.6,keep=0.25}]"
    found = run(small(NAME, tiers, "rounds=1"))
    engine, memory = found.engine, {}
    for row in found.tables["clients"]:
        rate = engine.fleet.tier(int(row["client"])).keep or 1.0
        units = widths(rate)
        each = sum(2 * a * b for a, b in pairwise(units))
        assert row["flops"] == 3 * each * 2 * row["samples"]
        memory[rate] = row["memory"]
    assert memory[0.25] < 0.5 * memory[1.0]


def test_devices_say_how_much_they_take_unless_the_method_does() -> None:
    tiers = "devices.tiers=[{name='a',share=0.4},{name='b',share=0.6,keep=0.25}]"
    engine = Engine(small(NAME, tiers))
    kept = [engine.fleet.tier(client).keep or 1.0 for client in range(5)]
    assert sorted(kept) == [0.25, 0.25, 0.25, 1.0, 1.0]
    assert engine.clients.widths.rates == engine.server.widths.rates == kept
    with pytest.raises(ConfigError, match="wanted the default beside"):
        Engine(small(NAME, tiers, "method.rates=[0.5]"))
    assert sorted(Engine(small(NAME)).clients.widths.rates) == [0.0625, 0.125, 0.25, 0.5, 1.0]


def test_dynamic_rates_change_and_both_sides_know() -> None:
    engine = Engine(small(NAME, "method.assignment=dynamic", "method.rates=[1.0,0.5]"))
    drawn = [[engine.clients.widths.rate(t, client) for client in range(5)] for t in range(20)]
    assert 0.3 < np.mean(np.array(drawn) == 1.0) < 0.7
    assert drawn == [[engine.server.widths.rate(t, c) for c in range(5)] for t in range(20)]
    assert any(drawn[0] != other for other in drawn[1:])
    for t, outcome in enumerate(play(engine)):
        down = outcome.tables["clients"]["down_model"]
        assert len(set(zip(drawn[t], down.tolist(), strict=True))) == len(set(drawn[t]))


def test_local_accuracy_is_the_sub_models() -> None:
    engine = Engine(small(NAME, "method.rates=[0.5]", "rounds=1"))
    start = engine.server.w.clone()
    (outcome,) = play(engine)
    for row in outcome.tables["clients"]:
        client = int(row["client"])
        shard = engine.population.test_shards[client]
        parts = train(engine, 0, client, start, 0.5, 1.0, True)
        x, y = engine.evaluation.test_x[shard].flatten(1), engine.evaluation.test_y[shard]
        ours = engine.trainer.feed.y[torch.from_numpy(engine.population.shards[client])]
        for weight, bias in zip(parts[0:4:2], parts[1:4:2], strict=True):
            x = (x @ weight.T + bias).relu()
        logits = (x @ parts[4].T + parts[5]) * torch.zeros(10).index_fill_(0, ours, 1)
        wanted = float((logits.argmax(1) == y).float().mean()) if len(y) else np.nan
        np.testing.assert_allclose(row["personal"], wanted, atol=1e-6)


@pytest.mark.parametrize("statistics", ["averaged", "local"])
def test_statistics_are_those_of_kept_channels(
    statistics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has the second half: statistics stay as they were there, and move elsewhere."""
    monkeypatch.setattr(models, "build", smooth)
    engine = Engine(small(NAME, "method.rates=[0.5]", f"statistics={statistics}", "clients=2"))
    list(play(engine))
    (piece, *_) = [p for p in engine.flat.statistics if p.name == "conv.1.running_mean"]
    if statistics == "averaged":
        vectors = [engine.server.w]
    else:
        vectors = [engine.trainer.statistics[client] for client in range(2)]
    for vector in vectors:
        moved = piece.of(vector) != 0
        assert moved.tolist() == [True, True, False, False]


def test_lost_uploads_leave_what_nobody_sent() -> None:
    found = run(small(NAME, "devices.dropouts=0.5", "rounds=4"))
    assert found.tables["clients"]["lost"].any()
    assert np.isfinite(found.model).all()
