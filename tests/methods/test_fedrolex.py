"""FedRolex and Federated Dropout: HeteroFL with other channels; which ones, and who has them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmpi.engine import Engine
from tests.plain import EVERYTHING, play, train
from tests.small import run, small

SIZES = [64, 12, 8, 10]
PLAIN = ("method.scaler=false", "method.masked=false")

both = pytest.mark.parametrize("name", ["fedrolex", "federated-dropout"])


def inside(engine: Engine, units: list[set[int]]) -> Tensor:
    """Which positions of the small network have to do with these units of its hidden layers."""
    kept = [set(range(64)), *units, set(range(10))]
    found, place = torch.zeros(engine.flat.size, dtype=torch.bool), 0
    for layer in range(3):
        inputs, outputs = SIZES[layer], SIZES[layer + 1]
        for row in range(outputs):
            for column in range(inputs):
                found[place] = row in kept[layer + 1] and column in kept[layer]
                place += 1
        for row in range(outputs):
            found[place] = row in kept[layer + 1]
            place += 1
    assert place == engine.flat.size
    return found


def units(engine: Engine, t: int, client: int) -> list[set[int]]:
    """The units of the client's sub-model, read off the biases."""
    pieces = {p.name: p for p in engine.flat.parameters}
    positions = set(engine.clients.widths.of(t, client).positions.tolist())
    names = [name for name in pieces if name.endswith("bias")][:2]
    return [
        {u for u in range(size) if pieces[name].start + u in positions}
        for name, size in zip(names, SIZES[1:3], strict=True)
    ]


def test_windows_roll_by_a_channel_a_round() -> None:
    engine = Engine(small("method.name=fedrolex", "method.rates=[0.5]"))
    for t in (0, 1, 5, 9, 100):
        wanted = [{(t + i) % size for i in range(size // 2)} for size in (12, 8)]
        assert all(units(engine, t, client) == wanted for client in range(5))


def test_all_channels_are_trained_in_turn() -> None:
    engine = Engine(small("method.name=fedrolex", "method.rates=[0.25]", "rounds=12"))
    list(play(engine))
    moved = engine.server.w != engine.flat.initial
    biases = [p for p in engine.flat.parameters if len(p.shape) == 1]
    for piece in biases:
        assert piece.of(moved).float().mean() > 0.8, "but for units that are dead"


def test_dropped_channels_are_drawn_anew_and_both_sides_know() -> None:
    engine = Engine(small("method.name=federated-dropout", "method.rates=[0.5]"))
    drawn = {(t, c): units(engine, t, c) for t in range(20) for c in range(5)}
    for some in drawn.values():
        assert [len(layer) for layer in some] == [6, 4]
    shares = [np.mean([unit in some[0] for some in drawn.values()]) for unit in range(12)]
    assert min(shares) > 0.3 and max(shares) < 0.7
    assert len({tuple(sorted(some[0])) for some in drawn.values()}) > 50
    for t, client in ((0, 1), (3, 2)):
        server, ours = (half.widths.of(t, client) for half in (engine.server, engine.clients))
        assert torch.equal(server.positions, ours.positions)


@both
def test_rounds_are_means_of_masked_training(name: str) -> None:
    """A network without norms under a mask is the narrow one."""
    words = ("method.rates=[0.75,0.5]", "participation=0.6", "momentum=0.5", "rounds=3")
    engine = Engine(small(f"method.name={name}", *PLAIN, *words))
    w = engine.server.w.clone()
    for t, _ in enumerate(play(engine)):
        total, weights = torch.zeros_like(w), torch.zeros_like(w)
        for client in engine.population.sample(t):
            mask = inside(engine, units(engine, t, client))
            local, _ = train(engine, t, client, w * mask, change=lambda g, m=mask: g * m)
            size = len(engine.population.shards[client])
            total += size * (local - w * mask)
            weights += size * mask
        wanted = w + total / weights.clamp(min=1)
        np.testing.assert_allclose(engine.server.w, wanted, rtol=1e-3, atol=1e-4)
        assert torch.equal(engine.server.w[weights == 0], w[weights == 0])
        w = engine.server.w.clone()


@both
def test_with_all_rates_one_it_is_fedavg(name: str) -> None:
    mine = (f"method.name={name}", "method.rates=[1.0]", "method.masked=false")
    found = run(small(*mine, *EVERYTHING))
    np.testing.assert_allclose(found.model, run(small(*EVERYTHING)).model, rtol=1e-4, atol=2e-5)


@both
def test_bytes_and_flops_are_those_of_the_narrow_network(name: str) -> None:
    tiers = "devices.tiers=[{name='a',keep=0.5}]"
    found = run(small(f"method.name={name}", *PLAIN, tiers))
    values = 64 * 6 + 6 + 6 * 4 + 4 + 4 * 10 + 10
    flops = 2 * (64 * 6 + 6 * 4 + 4 * 10)
    for row in found.tables["clients"]:
        assert row["down_model"] == row["up_gradient"] == 4 * values
        assert row["down_mask"] == row["up_mask"] == 0, "both sides know the channels"
        assert row["flops"] == 3 * flops * 2 * row["samples"]


@both
def test_shortcuts_without_parameters_train(name: str) -> None:
    words = ("model.name=resnet", "model.depth=20", "data.shape=[1,4,4]", "lr=0.01", "epochs=1")
    found = run(small(f"method.name={name}", *words, "clients=2", "method.rates=[0.3]"))
    assert np.isfinite(found.model).all()
