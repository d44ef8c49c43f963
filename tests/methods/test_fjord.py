"""FjORD against plain torch: whose steps move what, means, bytes and FLOPs."""

from itertools import pairwise
from math import ceil

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedmpi import models
from fedmpi.engine import Engine
from fedmpi.methods import fjord
from tests import plain
from tests.plain import EVERYTHING, network, optimiser, play, vector
from tests.small import run, small, smooth

NAME = "method.name=fjord"


def inside(engine: Engine, rate: float) -> Tensor:
    """Which values of the small network a sub-model has: float [n]."""
    found = torch.zeros(engine.flat.size)
    units = [64, ceil(12 * rate), ceil(8 * rate), 10]
    for number, piece in enumerate(engine.flat.parameters):
        rows, columns = units[number // 2 + 1], units[number // 2]
        tensor = piece.of(found)
        tensor[(slice(rows), slice(columns))[: tensor.dim()]] = 1
    return found


def train(engine: Engine, t: int, client: int, w: Tensor, rate: float) -> Tensor:
    """Each step's loss is that of the model under the mask of the width that it draws.

    Gradients are zero outside, and the optimiser goes on there by what it remembers.
    """
    whole = inside(engine, rate)
    module = network(engine, w * whole)
    steps, parameters = optimiser(engine, module, t), list(module.parameters())
    levels, draws = engine.clients.smaller(rate), engine.clients.draw(t, client)
    for some in plain.positions(engine, t, client):
        mask = inside(engine, levels[next(draws)])
        narrow = network(engine, vector(module) * mask)
        x, y = engine.trainer.feed.x[some], engine.trainer.feed.y[some]
        loss = cross_entropy(narrow(x), y)
        gradients = torch.autograd.grad(loss, list(narrow.parameters()))
        masks = [piece.of(mask) for piece in engine.flat.parameters]
        for parameter, gradient, part in zip(parameters, gradients, masks, strict=True):
            parameter.grad = gradient * part
        steps.step()
    return vector(module)


@pytest.mark.parametrize("words", [(), ("momentum=0.5",)], ids=["plain", "momentum"])
@pytest.mark.parametrize("rows", [1, 3])
def test_rounds_are_means_of_ordered_dropout(rows: int, words: tuple[str, ...]) -> None:
    rates = "method.rates=[0.25,0.5,1.0]"
    engine = Engine(small(NAME, rates, "participation=0.6", "rounds=3", f"rows={rows}", *words))
    w = engine.server.w.clone()
    for t, _ in enumerate(play(engine)):
        total, weights = torch.zeros_like(w), torch.zeros_like(w)
        for client in engine.population.sample(t):
            rate = engine.clients.widths.rates[client]
            mask, size = inside(engine, rate), len(engine.population.shards[client])
            total += size * (train(engine, t, client, w, rate) - w * mask)
            weights += size * mask
        wanted = w + total / weights.clamp(min=1)
        np.testing.assert_allclose(engine.server.w, wanted, rtol=1e-3, atol=1e-4)
        assert torch.equal(engine.server.w[weights == 0], w[weights == 0])
        w = engine.server.w.clone()


def test_a_single_rate_of_one_is_fedavg() -> None:
    found = run(small(NAME, "method.rates=[1.0]", *EVERYTHING))
    np.testing.assert_allclose(found.model, run(small(*EVERYTHING)).model, rtol=1e-4, atol=2e-5)


def test_steps_draw_all_widths_that_a_client_has_alike() -> None:
    engine = Engine(small(NAME, "method.rates=[0.25,0.5,1.0]", "local_steps=600"))
    for client in range(5):
        rate = engine.clients.widths.rates[client]
        levels = engine.clients.smaller(rate)
        assert levels == [level for level in (0.25, 0.5, 1.0) if level <= rate]
        draws = engine.clients.draw(0, client)
        counts = np.bincount([next(draws) for _ in range(600)])
        assert len(counts) == len(levels)
        assert counts.min() > 500 / len(levels)
    largest = list(engine.clients.widths.rates).index(1.0)
    first, other = (engine.clients.draw(t, largest) for t in (0, 1))
    assert [next(first) for _ in range(50)] != [next(other) for _ in range(50)]


def test_devices_say_which_widths_there_are() -> None:
    tiers = "devices.tiers=[{name='a',share=0.4},{name='b',share=0.6,keep=0.3}]"
    clients = Engine(small(NAME, tiers)).clients
    assert isinstance(clients, fjord.Clients)
    assert clients.smaller(1.0) == [0.3, 1.0]
    assert clients.smaller(0.3) == [0.3]


def test_bytes_are_those_of_what_a_client_has_at_most() -> None:
    found = run(small(NAME))
    for row in found.tables["clients"]:
        rate = found.engine.clients.widths.rates[int(row["client"])]
        size = int(inside(found.engine, rate).sum())
        assert row["down_model"] == row["up_gradient"] == 4 * size
        assert row["up_mask"] == row["down_mask"] == 0


def test_flops_are_those_of_the_widths_that_were_drawn() -> None:
    tiers = "devices.tiers=[{name='a',share=0.4},{name='b',share=0.6,keep=0.25}]"
    found = run(small(NAME, tiers, "epochs=1", "rounds=1"))
    engine, cheap = found.engine, 0
    for row in found.tables["clients"]:
        client = int(row["client"])
        levels = engine.clients.smaller(engine.fleet.tier(client).keep or 1.0)
        wanted, draws = 0, engine.clients.draw(0, client)
        for some in plain.positions(engine, 0, client):
            rate = levels[next(draws)]
            units = [64, ceil(12 * rate), ceil(8 * rate), 10]
            wanted += 3 * len(some) * sum(2 * a * b for a, b in pairwise(units))
        assert row["flops"] == wanted
        cheap += wanted < 3 * row["samples"] * 2 * (64 * 12 + 12 * 8 + 8 * 10)
    assert cheap >= 3


@pytest.mark.parametrize("statistics", ["averaged", "local"])
def test_statistics_outside_of_a_step_stay(
    statistics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that has the whole network, and draws half of it alone."""
    monkeypatch.setattr(models, "build", smooth)
    engine = Engine(small(NAME, "method.rates=[0.5,1.0]", f"statistics={statistics}", "clients=2"))
    engine.clients.draw = lambda t, client: iter([0] * 999)
    list(play(engine))
    (piece, *_) = [p for p in engine.flat.statistics if p.name == "conv.1.running_mean"]
    vectors = [engine.server.w]
    if statistics == "local":
        vectors = [engine.trainer.statistics[client] for client in range(2)]
    for found in vectors:
        assert (piece.of(found) != 0).tolist() == [True, True, False, False]
