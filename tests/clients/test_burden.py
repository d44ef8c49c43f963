"""FLOPs and memory against closed forms, of layers, masks, fronts and optimisers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.clients.burden import MIB, Burden, Meter, activations
from fedmpi.engine import Engine
from fedmpi.networks import pruning
from fedmpi.networks.flat import Flat
from tests.plain import CNN, METHODS, allowed, families, member, play
from tests.small import run, small, sorts

DEVICE = "devices.tiers=[{gflops=1.0}]"


def meter(stages: nn.Sequential, *words: str, shape: tuple[int, ...] = (2, 8, 8)) -> Meter:
    """A meter of that network."""
    return Meter(small(*words), shape, Flat(stages))


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
    assert some.memory(Burden(flat, 99, 6)).total * MIB == vectors * 4 * 1290 + inputs
    kept = torch.zeros(1290)
    kept[:300] = 1
    found = some.memory(Burden(flat, 99, 6, kept)).total * MIB
    assert found == pytest.approx(vectors * 4 * 300 + 1290 / 8 + inputs)
    assert some.memory(Burden(flat, 99, 3)).total * MIB == vectors * 4 * 1290 + inputs / 2


PARTS = ("weights", "gradients", "optimizer", "activations")


@pytest.mark.parametrize(
    ("words", "held", "trained"),
    [
        ((), "all", 780 + 104 + 90),
        (("model.train=head",), "all", 90),
        (("model.train=adapters", "model.lora.rank=2"), "adapters", 2 * 76 + 2 * 20 + 90),
        (("method.name=splitfed", "method.cut=hidden1"), "front", 780),
        (("method.name=splitfed", "model.train=head", "method.cut=hidden1"), "front", 0),
        (("method.name=splitfed", "method.tail=head"), "ends", 780 + 90),
    ],
)
@pytest.mark.parametrize(("optimizer", "vectors"), [("sgd", 0), ("adam", 2)])
def test_memory_by_part_is_by_hand(
    words: tuple[str, ...], held: str, trained: int, optimizer: str, vectors: int
) -> None:
    """Of 64-12-8-10: all of it, a part that trains, adapters beside it, and what is cut off."""
    layers = (64 * 12 + 12, 12 * 8 + 8, 8 * 10 + 10)
    weights = {
        "all": sum(layers),
        "adapters": sum(layers) + 2 * (64 + 12) + 2 * (12 + 8),
        "front": layers[0],
        "ends": layers[0] + layers[2],
    }[held]
    rows = run(small(*words, DEVICE, "rounds=1", f"optimizer={optimizer}")).tables["clients"]
    wanted = {"weights": weights, "gradients": trained, "optimizer": vectors * trained}
    for part, count in wanted.items():
        assert (rows[f"memory_{part}"] * MIB).tolist() == [4 * count] * len(rows), part
    assert (rows["memory_activations"] > 0).all() or trained == 0
    np.testing.assert_array_equal(sum(rows[f"memory_{part}"] for part in PARTS), rows["memory"])


@pytest.mark.parametrize("name", METHODS)
def test_samples_are_those_that_steps_saw(name: str) -> None:
    seen(f"method.name={name}", "epochs=3")


@pytest.mark.parametrize("steps", [2, 11])
@families
def test_samples_are_those_that_so_many_steps_saw(family: str, steps: int) -> None:
    seen(*member(family, f"local_steps={steps}"))


def seen(*words: str) -> None:
    """As often as steps were really taken: a method may train more than one model."""
    engine = Engine(small("rounds=1", *words))
    list(play(engine))
    for client in range(5):
        picks = list(engine.trainer.feed.picks(0, client))
        burden, (_, steps) = engine.clients.burden(0, client), engine.trainer.losses[client]
        models, rest = divmod(steps, len(picks))
        assert burden.samples == models * sum(len(pick.positions) for pick in picks)
        assert models > 0 and rest == 0
        assert burden.batch == max(len(pick.positions) for pick in picks)


CONV = (*CNN, "batch=16", "epochs=2", "rounds=1", DEVICE)
PLACES = {"conv1": 64, "conv2": 16}
"""Of an output of each convolution of `CNN` on 8x8 pixels, which it pools to 4x4 and to 2x2."""


def by_hand(kept: dict[str, int]) -> int:
    """A sample's FLOPs in training, where of each layer so many weights are not zero.

    Two for each weight and place of the output, and that three times: for the way forward, and for
    the gradients by inputs and by weights (SSFL and DisPFL count so).
    """
    return 3 * sum(2 * PLACES.get(layer, 1) * count for layer, count in kept.items())


def test_training_a_convolutional_network_by_hand() -> None:
    engine = Engine(small(*CONV))
    (outcome,) = play(engine)
    each = by_hand({"conv1": 9 * 3, "conv2": 9 * 3 * 4, "dense": 4 * 4 * 10, "head": 10 * 10})
    assert each == 3 * 2 * (64 * 27 + 16 * 108 + 160 + 100)
    rows = outcome.tables["clients"]
    assert rows["flops"].tolist() == [each * 2 * samples for samples in rows["samples"]]
    assert outcome.tables["rounds"]["flops"][0] == each * 2 * rows["samples"].sum()


@pytest.mark.parametrize("mask", ["random", "layerwise", "magnitude"])
def test_training_a_masked_convolutional_network_by_hand(mask: str) -> None:
    """By what is left in each layer, and not of all of them together: places count."""
    mine = ("method.name=staticmask", "method.sparsity=0.7", f"method.mask={mask}")
    engine = Engine(small(*mine, *CONV))
    (outcome,) = play(engine)
    pieces = {p.name.partition(".")[0]: p for p in pruning.weights(engine.flat)}
    left = {layer: int(piece.of(engine.server.mask).sum()) for layer, piece in pieces.items()}
    assert set(left) == {"conv1", "conv2", "dense", "head"}
    assert sum(left.values()) == pytest.approx(0.3 * (27 + 108 + 160 + 100), abs=3)
    rows = outcome.tables["clients"]
    wanted = [by_hand(left) * 2 * samples for samples in rows["samples"]]
    assert rows["flops"].tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("name", METHODS)
def test_what_counts_nothing_is_not_trained(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No method says that it prunes what it trains, and none counts more than all of the model."""
    words = ("rounds=3", "participation=0.6", "momentum=0.9")
    engine = Engine(small(*allowed(f"method.name={name}", *words)))
    clients, flops, work = engine.clients, engine.meter.flops, engine.clients.work

    def watch(t: int, some: tuple[int, ...]) -> Tensor:
        found = work(t, some)
        for client, w in zip(some, found, strict=True):
            burden = clients.burden(t, client)
            if not engine.population.is_agreement(t) and burden.kept is not None:
                assert not w[burden.kept == 0].any()
            whole = Burden(engine.flat, burden.samples, burden.batch)
            assert 0 < flops(burden) <= flops(whole)
        return found

    monkeypatch.setattr(clients, "work", watch)
    list(play(engine))


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


@pytest.mark.parametrize("device", [(DEVICE,), ()], ids=["devices", "none"])
def test_splitfed_counts_its_halves(device: tuple[str, ...]) -> None:
    """With devices or without, beside what FedAvg would take: that is what it splits for."""
    engine = Engine(small("method.name=splitfed", *device, "rounds=1"))
    (outcome,) = play(engine)
    rows, (row,) = outcome.tables["clients"], outcome.tables["rounds"]
    front, behind = 2 * 64 * 12, 2 * (12 * 8 + 8 * 10)
    assert rows["flops"].tolist() == [3 * 2 * n * front for n in rows["samples"]]
    assert rows["whole_flops"].tolist() == [3 * 2 * n * (front + behind) for n in rows["samples"]]
    assert row["server_flops"] == 3 * 2 * rows["samples"].sum() * behind
    assert row["flops"] == rows["flops"].sum()
    (whole,) = play(Engine(small(DEVICE, "rounds=1")))
    np.testing.assert_array_equal(rows["whole_memory"], whole.tables["clients"]["memory"])
    np.testing.assert_array_equal(rows["whole_flops"], whole.tables["clients"]["flops"])
    assert (rows["memory"] < rows["whole_memory"]).all()
