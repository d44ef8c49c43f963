"""The table `variants`: the model that devices of each share hold, against numpy, by hand."""

from collections.abc import Callable
from itertools import pairwise
from math import ceil

import numpy as np
import pytest
from mpi4py import MPI

from fedmpi.engine import Engine
from fedmpi.messages.codec import BLOCK, MESSAGE
from fedmpi.streams import Purpose, stream
from tests.plain import play
from tests.small import run, small

WIDE = [64, 12, 8, 10]
HEADS = MESSAGE.size + BLOCK.size
"""Bytes of the head of a message with one block."""

Layers = list[tuple[np.ndarray, np.ndarray]]
"""Weights [out, in] and biases [out] of each layer."""
Cut = Callable[[Layers, float], Layers]
"""A smaller model: of a whole one, for a device of some share."""


def layers(engine: Engine) -> Layers:
    """The server's model in float64."""
    w, found, at = engine.server.w.numpy().astype("f8"), [], 0
    for inputs, outputs in pairwise(WIDE):
        weight = w[at : at + inputs * outputs].reshape(outputs, inputs)
        at += inputs * outputs
        found.append((weight, w[at : at + outputs]))
        at += outputs
    return found


def right(model: Layers, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which samples a model classifies correctly: linear layers with ReLUs between them."""
    x = x.reshape(len(x), -1).astype("f8")
    for number, (weight, bias) in enumerate(model, 1):
        x = x @ weight.T + bias
        x = x if number == len(model) else np.maximum(x, 0)
    return x.argmax(1) == y


def pruned(model: Layers, share: float) -> Layers:
    """The largest weights of all layers together."""
    sizes = np.concatenate([np.abs(weight).ravel() for weight, _ in model])
    least = np.sort(sizes)[-max(1, round(share * len(sizes)))]
    return [(np.where(np.abs(weight) >= least, weight, 0), bias) for weight, bias in model]


def quantized(model: Layers, share: float) -> Layers:
    """Each tensor on a grid between its least and its greatest value."""
    top = 2 ** min(16, round(32 * share)) - 1

    def grid(x: np.ndarray) -> np.ndarray:
        step = (x.max() - x.min()) / top
        return np.round((x - x.min()) / step) * step + x.min() if share < 1 else x

    return [(grid(weight), grid(bias)) for weight, bias in model]


def factored(model: Layers, share: float) -> Layers:
    """The nearest weights of a lower rank, where their factors have fewer values."""
    found = []
    for weight, bias in model:
        a, b = weight.shape
        rank = max(1, int(share * a * b / (a + b)))
        if share < 1 and rank * (a + b) < a * b:
            u, s, v = np.linalg.svd(weight, full_matrices=False)
            weight = (u[:, :rank] * s[:rank]) @ v[:rank]
        found.append((weight, bias))
    return found


def cut(model: Layers, kept: list[np.ndarray]) -> Layers:
    """Some units of each layer, those of the input first."""
    pairs = zip(model, pairwise(kept), strict=True)
    return [(weight[np.ix_(outs, ins)], bias[outs]) for (weight, bias), (ins, outs) in pairs]


def narrow(model: Layers, share: float, shift: int = 0) -> Layers:
    """The first units of each hidden layer, or a window of them that begins elsewhere."""
    hidden = [(np.arange(ceil(share * size)) + shift) % size for size in WIDE[1:-1]]
    return cut(model, [np.arange(64), *map(np.sort, hidden), np.arange(10)])


def rolled(model: Layers, share: float) -> Layers:
    """The window of round 2."""
    return narrow(model, share, 2)


def dropped(model: Layers, share: float) -> Layers:
    """What the first client of that share draws in round 2."""
    engine = Engine(small("method.name=federated-dropout", "method.rates=[0.75,0.5]"))
    client = engine.server.widths.rates.index(share)
    random = stream(engine.settings.seed, Purpose.CHANNELS, 2, client)
    hidden = [np.sort(random.permutation(size)[: ceil(share * size)]) for size in WIDE[1:-1]]
    return cut(model, [np.arange(64), *hidden, np.arange(10)])


CASES: dict[str, tuple[str, Cut]] = {
    "prune": ("method.name=hetiot method.keeps=", pruned),
    "width": ("method.name=hetiot method.compressor=width method.keeps=", narrow),
    "quant": ("method.name=hetiot method.compressor=quant method.keeps=", quantized),
    "lowrank": ("method.name=hetiot method.compressor=lowrank method.keeps=", factored),
    "heterofl": ("method.name=heterofl method.rates=", narrow),
    "fjord": ("method.name=fjord method.rates=", narrow),
    "fedrolex": ("method.name=fedrolex method.rates=", rolled),
    "federated-dropout": ("method.name=federated-dropout method.rates=", dropped),
}
cases = pytest.mark.parametrize("case", CASES)


def words(case: str, shares: str) -> tuple[str, ...]:
    first, *rest = CASES[case][0].split()
    return (first, *rest[:-1], rest[-1] + shares)


@cases
def test_each_share_is_judged_by_its_own_model(case: str) -> None:
    """Where nobody holds the whole model, what counts is the largest share that somebody holds."""
    shares = [0.75, 0.5] if case != "quant" else [0.25, 0.125]
    found = run(small(*words(case, str(shares)), "rounds=3", "lr=0.3", "epochs=4"))
    evaluation, model = found.engine.evaluation, layers(found.engine)
    rows = found.tables["variants"]
    assert rows["round"].tolist() == [0, 0, 1, 1, 2, 2]
    assert rows["share"].tolist() == shares * 3 and rows["clients"].tolist() == [3, 2] * 3
    models = [CASES[case][1](model, share) for share in shares]
    x, y = evaluation.test_x.numpy(), evaluation.test_y.numpy()
    for row, own in zip(rows[-2:], models, strict=True):
        assert row["accuracy"] == pytest.approx(right(own, x, y).mean())
    last, hits = found.tables["rounds"][-1], right(models[0], x, y)
    assert last["accuracy"] == pytest.approx(hits.mean())
    held = right(models[0], evaluation.held_x.numpy(), evaluation.held_y.numpy())
    assert last["validation"] == pytest.approx(held.mean())
    theirs = [hits[shard].mean() for shard in found.engine.population.test_shards if len(shard)]
    assert last["shard_mean"] == pytest.approx(np.mean(theirs))


@pytest.mark.parametrize("case", ["prune", "lowrank", "heterofl", "fedrolex"])
def test_whoever_holds_the_whole_model_is_judged_by_it(case: str) -> None:
    found = run(small(*words(case, "[0.5,1.0]"), "rounds=2", "lr=0.3"))
    evaluation = found.engine.evaluation
    hits = right(layers(found.engine), evaluation.test_x.numpy(), evaluation.test_y.numpy())
    assert found.tables["rounds"][-1]["accuracy"] == pytest.approx(hits.mean())
    whole, half = found.tables["variants"][-2:]
    assert (whole["share"], half["share"]) == (1, 0.5) and whole["bytes"] > half["bytes"]


@pytest.mark.parametrize("case", ["prune", "quant", "lowrank", "heterofl", "federated-dropout"])
def test_bytes_and_memory_are_those_of_a_client(case: str) -> None:
    """Messages of the next round carry this one's model; a device is whatever counts the cost."""
    tiers = "devices.tiers=[{name='a',share=0.4,keep=0.5},{name='b',share=0.6,keep=0.25}]"
    first, *rest = words(case, "")
    found = run(small(first, *rest[:-1], tiers, "rounds=2", "batch=8"))
    clients, variants = found.tables["clients"], found.tables["variants"]
    for row in clients[clients["round"] == 1]:
        keep = found.engine.fleet.tier(int(row["client"])).keep
        (own,) = variants[(variants["round"] == 0) & (variants["share"] == keep)]
        down = sum(row[n] for n in row.dtype.names if n.startswith("down_"))
        assert own["bytes"] == down - MESSAGE.size  # that of the round's empty broadcast
        assert own["memory"] == pytest.approx(row["memory"])
        assert own["flops"] * 2 * row["samples"] == pytest.approx(row["flops"])


def test_costs_by_hand() -> None:
    """Of a network with 6 and 4 hidden units, in float32."""
    (row,) = run(small(*words("heterofl", "[0.5]"), "rounds=1")).tables["variants"]
    sizes = [64, 6, 4, 10]
    values = sum(a * b + b for a, b in pairwise(sizes))
    assert row["bytes"] == HEADS + 4 * values
    assert row["flops"] == 3 * 2 * sum(a * b for a, b in pairwise(sizes))


def test_only_evaluated_rounds_and_only_devices_that_take_part() -> None:
    tiers = "devices.tiers=[{name='a',share=0.4,keep=0.5},{name='b',share=0.6,memory=0.001}]"
    found = run(
        small(
            *words("heterofl", "")[:1], tiers, "devices.unfit=rest", "rounds=4", "evaluate.every=3"
        )
    )
    rows = found.tables["variants"]
    assert rows["round"].tolist() == [2, 3]
    assert rows["share"].tolist() == [0.5, 0.5] and rows["clients"].tolist() == [2, 2]


def test_methods_without_shares_have_no_variants() -> None:
    for name in ("fedavg", "ssfl", "splitfed", "fedper"):
        assert len(run(small(f"method.name={name}", "rounds=1")).tables["variants"]) == 0


@pytest.mark.parallel([1, 3])
def test_the_same_on_any_ranks() -> None:
    settings = small(*words("prune", "[0.5,0.25]"), "rounds=2", "evaluate.every=2")
    found = run(settings, MPI.COMM_WORLD)
    if MPI.COMM_WORLD.rank == 0:
        alone = run(settings)
        assert np.array_equal(found.tables["variants"], alone.tables["variants"])
        assert len(found.tables["variants"]) == 2


def test_a_conv_net_is_judged_as_the_network_that_devices_have() -> None:
    """Its groups of channels are not cut through, as they are where zeros fill the whole model."""
    model = ("model.name=cnn", "model.channels=[6,4]", "model.kernel=3", "model.norm=group")
    settings = small(*words("width", "[0.5]"), *model, "model.groups=2", "rounds=2", "lr=0.5")
    engine = Engine(settings)
    list(play(engine))
    compressor = engine.server.compressors.made["width"]
    local = compressor.local(compressor.blocks(engine.server.w, 0.5), 0.5)
    network = local.part.flat.network(local.start, local.part.flat.local_stats).train(False)
    hits = network(engine.evaluation.test_x).argmax(1) == engine.evaluation.test_y
    (variant,) = engine.server.variants(1)
    verdict = engine.evaluation.evaluate(engine.server.w, [variant])
    assert verdict.accuracy == pytest.approx(float(hits.float().mean()))
