"""hetiot: rounds against plain torch, bytes, FLOPs, and that a share of one is FedAvg."""

from itertools import pairwise
from math import ceil

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmpi.config import ConfigError
from fedmpi.engine import Engine
from fedmpi.methods.hetiot.compress import DAMPING
from fedmpi.streams import Purpose, stream
from tests.plain import CNN, EVERYTHING, play, positions, train
from tests.small import run, small

NAME = "method.name=hetiot"
WIDE = [64, 12, 8, 10]
ALL = sum(a * b for a, b in pairwise(WIDE))
BIASES = sum(WIDE[1:])

compressors = pytest.mark.parametrize("compressor", ["prune", "width", "quant", "lowrank"])


def near(found: np.ndarray | Tensor, wanted: np.ndarray | Tensor) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=1e-3, atol=1e-4)


@compressors
@pytest.mark.parametrize("aggregation", ["mean", "coverage"])
@pytest.mark.parametrize(
    "words",
    [("local_steps=1", "batch=1000"), EVERYTHING, (*CNN, *EVERYTHING, "participation=0.6")],
    ids=["fedsgd", "sgd", "cnn"],
)
def test_a_share_of_one_is_fedavg(
    compressor: str, aggregation: str, words: tuple[str, ...]
) -> None:
    mine = (f"method.compressor={compressor}", f"method.aggregation={aggregation}")
    found = run(small(NAME, *mine, "method.keeps=[1.0]", *words))
    near(found.model, run(small(*words)).model)


def pruned(engine: Engine, w: Tensor, keep: float) -> Tensor:
    """Which values stay: the largest weights, and all biases."""
    prunable = engine.flat.prunable()
    count = max(1, round(keep * int(prunable.sum())))
    limit = w[prunable].abs().sort().values[-count]
    return ~prunable | (w.abs() >= limit)


@pytest.mark.parametrize("aggregation", ["mean", "coverage"])
def test_pruned_rounds_are_masked_training(aggregation: str) -> None:
    """The mask is that of the round's model, and moves with it."""
    words = ("method.keeps=[0.5,0.2]", "participation=0.6", "momentum=0.5", "rounds=4")
    engine = Engine(small(NAME, f"method.aggregation={aggregation}", *words))
    w, masks = engine.server.w.clone(), []
    for t, _ in enumerate(play(engine)):
        total, weights, samples = torch.zeros_like(w), torch.zeros_like(w), 0
        for client in engine.population.sample(t):
            mask = pruned(engine, w, engine.clients.shares[client])
            local, _ = train(engine, t, client, w * mask, change=lambda g, m=mask: g * m)
            size = len(engine.population.shards[client])
            total += size * (local - w * mask)
            weights += size * mask
            samples += size
        masks.append(pruned(engine, w, 0.5))
        divisor = weights.clamp(min=1) if aggregation == "coverage" else samples
        near(engine.server.w, w + total / divisor)
        assert torch.equal(engine.server.w[weights == 0], w[weights == 0])
        assert (weights == 0).any()
        w = engine.server.w.clone()
    assert any(not torch.equal(one, other) for one, other in pairwise(masks))


def codes(x: np.ndarray, draws: np.ndarray | float) -> np.ndarray:
    """Eight bits a value between the least and the greatest one, as their values, in float64."""
    low, high = x.min(), x.max()
    step = np.float32((high - low) / np.float32(255))
    return low + step * np.floor((x.astype("f8") - low) / step + draws).clip(0, 255)


def test_running_statistics_travel_exactly_beside_codes() -> None:
    words = ("model.name=cnn", "model.channels=[3,4]", "model.kernel=3", "model.norm=batch")
    engine = Engine(small(NAME, "method.compressor=quant", *words))
    quant, flat = engine.server.compressor, engine.flat
    w = torch.from_numpy(np.random.default_rng(1).normal(size=flat.size).astype("f4"))
    random = np.random.default_rng(2)
    for blocks in (
        quant.blocks(w, 0.25),
        quant.local(quant.blocks(w, 0.25), 0.25).upload(w, random),
    ):
        found = quant.decode(blocks)
        places = flat.stat_positions
        assert len(places) and torch.equal(found[places], w[places])
        for piece in flat.parameters:
            part = w[piece.start : piece.stop]
            step = (part.max() - part.min()) / 255
            assert (found[piece.start : piece.stop] - part).abs().max() <= 1.001 * step


def test_quantized_rounds_train_from_the_grid_and_send_updates_in_as_many_bits() -> None:
    """The model is rounded to the nearest, an update up or down by the client's draws."""
    engine = Engine(small(NAME, "method.compressor=quant", "method.keeps=[0.25]", "rounds=3"))
    pieces = [slice(piece.start, piece.stop) for piece in engine.flat.parameters]
    w = engine.server.w.clone()
    for t, _ in enumerate(play(engine)):
        start = np.concatenate([codes(w[some].numpy(), 0.5) for some in pieces])
        start = torch.from_numpy(start.astype("f4"))
        total, samples = np.zeros(len(w)), 0
        for client in engine.population.sample(t):
            size = len(engine.population.shards[client])
            update = (train(engine, t, client, start)[0] - start).numpy()
            draws = stream(engine.settings.seed, Purpose.QUANTIZE, t, client).random(len(w))
            for some in pieces:
                total[some] += size * codes(update[some], draws[some])
            samples += size
        # Where training differs by a rounding, a code may be the next one.
        apart = np.abs(engine.server.w.numpy() - w.numpy() - total / samples)
        assert np.quantile(apart, 0.98) < 1e-5 and apart.max() < 0.02
        w = engine.server.w.clone()


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_bytes_of_pruned_models(scope: str) -> None:
    """Values both ways, and downwards a bit a weight or its number, whichever is shorter."""
    found = run(small(NAME, f"method.scope={scope}", "method.keeps=[0.5,0.01]"))
    for row in found.tables["clients"]:
        keep = found.engine.clients.shares[int(row["client"])]
        each = [ALL] if scope == "global" else [a * b for a, b in pairwise(WIDE)]
        kept = sum(max(1, round(keep * size)) for size in each)
        assert row["up_gradient"] == row["down_model"] == 4 * (kept + BIASES)
        assert row["down_mask"] == min(ceil(ALL / 8), 4 * kept)
        assert row["up_mask"] == 0


class Softmax:
    """Logistic regression with a weight B A, in float64: its gradient by hand, and one step.

    Args:
        w: the whole model: weight [10, 64] and bias [10].
        rank: of the factors.
    """

    def __init__(self, w: np.ndarray, rank: int) -> None:
        u, s, v = np.linalg.svd(w[:640].reshape(10, 64).astype("f8"), full_matrices=False)
        root = np.sqrt(s[:rank])
        self.a, self.b, self.bias = root[:, None] * v[:rank], u[:, :rank] * root, w[640:]

    def product(self) -> np.ndarray:
        return np.concatenate([(self.b @ self.a).ravel(), self.bias])

    def step(self, x: np.ndarray, y: np.ndarray, lr: float) -> None:
        logits = x @ self.a.T @ self.b.T + self.bias
        odds = np.exp(logits - logits.max(1, keepdims=True))
        error = (odds / odds.sum(1, keepdims=True) - np.eye(10)[y]) / len(y)
        g = error.T @ x  # of the whole weight
        grams = self.b.T @ self.b, self.a @ self.a.T
        inside, outside = (
            np.linalg.inv(c + DAMPING * c.trace() / len(c) * np.eye(len(c))) for c in grams
        )
        a, b = inside @ (self.b.T @ g), (g @ self.a.T) @ outside
        self.a, self.b = self.a - lr * a, self.b - lr * b
        self.bias = self.bias - lr * error.sum(0)


def test_factors_are_trained_by_scaled_gradients() -> None:
    words = ("model.hidden=[]", "method.keeps=[0.5]", "rounds=3", "lr=0.3")
    engine = Engine(small(NAME, "method.compressor=lowrank", *words))
    feed, w = engine.trainer.feed, engine.server.w.numpy().astype("f8")
    rank = int(0.5 * 640 / 74)
    for t, _ in enumerate(play(engine)):
        total, samples = np.zeros_like(w), 0
        for client in engine.population.sample(t):
            model = Softmax(w, rank)
            start = model.product()
            for some in positions(engine, t, client):
                x = feed.x[some].numpy().reshape(len(some), -1).astype("f8")
                model.step(x, feed.y[some].numpy(), 0.3)
            size = len(engine.population.shards[client])
            total, samples = total + size * (model.product() - start), samples + size
        w = w + total / samples
        np.testing.assert_allclose(engine.server.w, w, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "words", [("lr=0.3", "momentum=0.5"), ("lr=0.5",)], ids=["momentum", "sgd"]
)
def test_factors_do_not_diverge_at_rates_of_fedavg(words: tuple[str, ...]) -> None:
    """Plain gradients of factors grow with the factors."""
    mine = ("method.compressor=lowrank", "method.keeps=[0.5]")
    found = run(small(NAME, *mine, *words, "rounds=40", "evaluate=40"))
    losses = found.tables["rounds"]["loss"]
    assert len(losses) == 40 and losses[-5:].max() < 0.6


def test_a_model_that_is_not_finite_ends_the_run_as_ever() -> None:
    """It has no singular values, but no error hides that the run diverged."""
    mine = ("method.compressor=lowrank", "method.keeps=[0.5]", "lr=1e30", "rounds=4")
    assert len(run(small(NAME, *mine)).tables["rounds"]) < 4


def test_bytes_of_narrow_quantized_and_factored_models() -> None:
    keeps = "method.keeps=[0.5,0.1]"
    narrow, quant, rank = (
        run(small(NAME, f"method.compressor={kind}", keeps))
        for kind in ("width", "quant", "lowrank")
    )
    for found in (narrow, quant, rank):
        for row in found.tables["clients"]:
            keep = found.engine.clients.shares[int(row["client"])]
            if found is narrow:
                units = [64, ceil(12 * keep), ceil(8 * keep), 10]
                wanted = [4 * sum(a * b + b for a, b in pairwise(units))] * 2
            elif found is quant:
                bits = min(16, round(32 * keep))
                pieces = [p.stop - p.start for p in found.engine.flat.parameters]
                wanted = [ceil(bits * sum(pieces) / 8) + 8 * len(pieces)] * 2
            else:
                values = 0
                for a, b in pairwise(WIDE):
                    r = max(1, int(keep * a * b / (a + b)))
                    values += min(r * (a + b), a * b)
                wanted = [4 * (values + BIASES)] * 2
            assert [row["down_model"], row["up_gradient"]] == wanted


@compressors
def test_flops_fall_but_for_codes(compressor: str) -> None:
    tiers = "devices.tiers=[{name='a',share=0.4},{name='b',share=0.6,keep=0.25}]"
    found = run(small(NAME, f"method.compressor={compressor}", tiers, "rounds=1"))
    for row in found.tables["clients"]:
        keep = found.engine.fleet.tier(int(row["client"])).keep or 1.0
        each = 2 * ALL
        if keep < 1 and compressor == "prune":
            local = found.engine.clients.locals[int(row["client"])]
            prunable = found.engine.flat.prunable()
            assert int(local.mask[prunable].sum()) == round(0.25 * ALL)
            each = 2 * round(0.25 * ALL)
        elif keep < 1 and compressor == "width":
            each = sum(2 * a * b for a, b in pairwise([64, 3, 2, 10]))
        elif keep < 1 and compressor == "lowrank":
            ranks = [max(1, int(0.25 * a * b / (a + b))) for a, b in pairwise(WIDE)]
            each = sum(2 * r * (a + b) for r, (a, b) in zip(ranks, pairwise(WIDE), strict=True))
        assert row["flops"] == pytest.approx(3 * each * 2 * row["samples"])


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.scope = 'layer': wanted"):
        Engine(small(NAME, "method.compressor=width", "method.scope=layer"))
    tiers = "devices.tiers=[{name='a',share=0.4},{name='b',share=0.6,keep=0.25}]"
    with pytest.raises(ConfigError, match=r"method\.keeps = "):
        Engine(small(NAME, tiers, "method.keeps=[0.5]"))
