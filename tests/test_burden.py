"""FLOPs and memory against closed forms, of layers, masks, fronts and optimisers."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fedmpi import models
from fedmpi.burden import MIB, Burden, Meter, activations, forward
from fedmpi.engine import Engine
from fedmpi.flat import Flat
from tests.plain import METHODS, play
from tests.small import small, sorts

DEVICE = "devices.tiers=[{gflops=1.0}]"


def meter(stages: nn.Sequential, *words: str, shape: tuple[int, ...] = (2, 8, 8)) -> Meter:
    """A meter of that network."""
    return Meter(small(*words), shape, Flat(stages))


def test_flops_of_a_convolution_and_of_linear_layers() -> None:
    """Two for each weight and place of the output; biases and norms count nothing."""
    flat = Flat(sorts(3))
    found = forward(flat, torch.zeros(1, 2, 8, 8))
    wanted = {"conv.0.weight": 2 * 9 * 2 * 4 * 64, "dense.1.weight": 2 * 256 * 5}
    wanted["head.weight"] = 2 * 5 * 3
    assert {piece.name: flops for piece, flops in found.layers} == wanted
    assert found.all == sum(wanted.values())


@pytest.mark.parametrize("name", ["mlp", "cnn", "lenet", "resnet", "vgg"])
def test_all_flops_of_the_models_are_their_layers(name: str) -> None:
    """As `models.fronts` counts them; nothing is left that a mask could not reach."""
    settings = small(f"model.name={name}").model
    network = models.build(settings, (1, 32, 32), 10, seed=1)
    found = forward(Flat(network), torch.zeros(1, 1, 32, 32))
    assert found.all == models.fronts(network, (1, 32, 32))[-1].flops
    assert found.all == sum(flops for _, flops in found.layers)


def test_training_is_three_times_forward_for_each_sample() -> None:
    stages = nn.Sequential(nn.Flatten(), nn.Linear(128, 10))
    some = meter(stages)
    assert some.flops(Burden(some.whole, samples=7, batch=4)) == 3 * 7 * 2 * 1280


def test_pruned_weights_count_nothing() -> None:
    some = meter(sorts(3))
    flat, dense = some.whole, some.flops(Burden(some.whole, 10, 4))
    kept = torch.ones(flat.size)
    assert some.flops(Burden(flat, 10, 4, kept)) == dense
    pieces = {piece.name: piece for piece in flat.parameters}
    piece = pieces["conv.0.weight"]
    piece.of(kept)[0] = 0  # one of four filters
    piece = pieces["dense.1.weight"]
    piece.of(kept).view(-1)[:320] = 0  # a quarter of 1280 weights
    piece = pieces["conv.1.bias"]
    piece.of(kept)[:] = 0
    wanted = 3 / 4 * (2 * 9 * 2 * 4 * 64 + 2 * 1280) + 2 * 15
    assert some.flops(Burden(flat, 10, 4, kept)) == pytest.approx(3 * 10 * wanted)
    assert some.flops(Burden(flat, 10, 4, kept.bool())) == pytest.approx(3 * 10 * wanted)
    none = Burden(flat, 10, 4, torch.zeros(flat.size))
    assert some.flops(none) == pytest.approx(0, abs=1e-6)


def test_what_lies_behind_a_front() -> None:
    whole = Flat(sorts(3))
    front, back = whole.split("conv")
    some = Meter(small(), (2, 8, 8), whole)
    burden = Burden(front, 5, 4)
    assert some.flops(burden) == 15 * 2 * 9 * 2 * 4 * 64
    assert some.behind(burden) == 15 * 2 * (1280 + 15)
    assert some.behind(replace(burden, flat=whole)) == 0
    assert back.count == 1285 + 18


def test_activations_are_what_autograd_keeps() -> None:
    """A linear layer keeps its input, ReLU its output, tanh likewise; views are no copies."""
    x = torch.zeros(6, 2, 8, 8)
    only = Flat(nn.Sequential(nn.Flatten(), nn.Linear(128, 10)))
    assert activations(only, x) == 6 * 128 * 4
    two = Flat(nn.Sequential(nn.Flatten(), nn.Linear(128, 10), nn.ReLU(), nn.Linear(10, 3)))
    assert activations(two, x) == 6 * (128 + 10) * 4, "the ReLU's output is the layer's input"
    three = Flat(nn.Sequential(nn.Flatten(), nn.Linear(128, 10), nn.Tanh()))
    assert activations(three, x) == 6 * (128 + 10) * 4
    conv = Flat(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.MaxPool2d(2)))
    # Its input, its output, and an int64 for each maximum.
    assert activations(conv, x) == 6 * (2 * 64 * 4 + 4 * 64 * 4 + 4 * 16 * 8)


@pytest.mark.parametrize(
    ("words", "vectors"),
    [((), 2), (("momentum=0.9",), 3), (("optimizer=adam",), 4)],
    ids=["sgd", "momentum", "adam"],
)
def test_memory_is_vectors_and_activations(words: tuple[str, ...], vectors: int) -> None:
    some = meter(nn.Sequential(nn.Flatten(), nn.Linear(128, 10)), *words)
    flat, inputs = some.whole, 6 * 128 * 4
    assert some.memory(Burden(flat, 99, 6)) * MIB == vectors * 4 * 1290 + inputs
    kept = torch.zeros(1290)
    kept[:300] = 1
    found = some.memory(Burden(flat, 99, 6, kept)) * MIB
    assert found == pytest.approx(vectors * 4 * 300 + 1290 / 8 + inputs)
    assert some.memory(Burden(flat, 99, 3)) * MIB == vectors * 4 * 1290 + inputs / 2


@pytest.mark.parametrize("words", [("epochs=3",), ("local_steps=2",), ("local_steps=11",)])
@pytest.mark.parametrize("name", METHODS)
def test_samples_are_those_that_steps_saw(name: str, words: tuple[str, ...]) -> None:
    engine = Engine(small(f"method.name={name}", *words))
    for client in range(5):
        picks = list(engine.trainer.feed.picks(0, client))
        burden = engine.clients.burden(0, client)
        assert burden.samples == sum(len(pick.positions) for pick in picks)
        assert burden.batch == max(len(pick.positions) for pick in picks)


def test_ssfl_counts_what_it_keeps() -> None:
    """Dense on one batch for the scores; then each layer by the weights that are not zero."""
    engine = Engine(small("method.name=ssfl", "method.sparsity=0.8", DEVICE))
    layers = [(64, 12), (12, 8), (8, 10)]
    for outcome in play(engine):
        rows = outcome.tables["clients"]
        if rows["round"][0] < 0:
            dense = sum(2 * a * b for a, b in layers)
            assert rows["flops"].tolist() == [3 * dense * min(16, n) for n in rows["samples"]]
            continue
        weights = [p for p in engine.flat.parameters if len(p.shape) == 2]
        kept = [int((piece.of(engine.server.w) != 0).sum()) for piece in weights]
        assert 0 < sum(kept) < 0.3 * sum(a * b for a, b in layers)
        wanted = [3 * sum(2 * k for k in kept) * 2 * n for n in rows["samples"]]
        assert rows["flops"].tolist() == pytest.approx(wanted)


def test_a_tail_is_the_clients_burden() -> None:
    """FLOPs by layers; memory as if front and tail were networks of their own."""
    words = ("method.name=splitfed", "method.tail=head", DEVICE, "rounds=1", "momentum=0.9")
    engine = Engine(small(*words))
    (outcome,) = play(engine)
    rows, (row,) = outcome.tables["clients"], outcome.tables["rounds"]
    assert rows["flops"].tolist() == [3 * 2 * n * 2 * (64 * 12 + 8 * 10) for n in rows["samples"]]
    assert row["server_flops"] == 3 * 2 * rows["samples"].sum() * 2 * 12 * 8
    front, _, tail = engine.settings.method.parts(engine.flat)
    batches = [min(16, n) for n in rows["samples"].tolist()]
    wanted = [
        12 * (front.size + tail.size)
        + activations(front, torch.zeros(batch, 1, 8, 8))
        + activations(tail, torch.zeros(batch, 8))
        for batch in batches
    ]
    assert (rows["memory"] * MIB).tolist() == pytest.approx(wanted)


def test_splitfed_counts_its_halves() -> None:
    engine = Engine(small("method.name=splitfed", DEVICE, "rounds=1"))
    (outcome,) = play(engine)
    rows, (row,) = outcome.tables["clients"], outcome.tables["rounds"]
    assert rows["flops"].tolist() == [3 * 2 * n * 2 * 64 * 12 for n in rows["samples"]]
    behind = 2 * (12 * 8 + 8 * 10)
    assert row["server_flops"] == 3 * 2 * rows["samples"].sum() * behind
