"""hetiot: rounds against plain torch, bytes, FLOPs, and that a share of one is FedAvg."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor

from fedmpi.clients.burden import activations
from fedmpi.config import ConfigError
from fedmpi.engine import Engine
from fedmpi.messages.codec import Block
from fedmpi.methods.hetiot.compress import DAMPING, LowRank, Prune, Quant, Width
from fedmpi.streams import Purpose, key
from fedmpi.training.train import Hooks
from tests import coded
from tests.plain import CNN, EVERYTHING, play, positions, train
from tests.small import alike, refusal, run, small

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
            mask = pruned(engine, w, engine.clients.compressors.plans[client].keep)
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
    quant, flat = engine.server.compressors.made["quant"], engine.flat
    w = torch.from_numpy(np.random.default_rng(1).normal(size=flat.size).astype("f4"))
    secret = key(2, Purpose.ROUND, 0, 0)
    for blocks in (
        quant.blocks(w, 0.25),
        quant.local(quant.blocks(w, 0.25), 0.25).upload(w, secret),
    ):
        found = quant.codes.decode(blocks)
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
            draws = coded.draws(key(engine.settings.seed, Purpose.ROUND, t, client), len(w))
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
        keep = found.engine.clients.compressors.plans[int(row["client"])].keep
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
    found = run(small(NAME, *mine, *words, "rounds=40", "evaluate.every=40"))
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
            keep = found.engine.clients.compressors.plans[int(row["client"])].keep
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


FOUR = (
    "devices.tiers=[{name='a',share=0.2},{name='p',share=0.2,keep=0.5,compressor='prune'},"
    "{name='w',share=0.2,keep=0.5,compressor='width'},"
    "{name='q',share=0.2,keep=0.25,compressor='quant'},"
    "{name='r',share=0.2,keep=0.5,compressor='lowrank'}]"
)
"""A device of each kind."""


def alone(engine: Engine, t: int, client: int, w: Tensor, kind: str, keep: float) -> Tensor:
    """What one client adds to w, by compressors that know of no other, [n]."""
    flat, device = engine.flat, torch.device("cpu")
    compressor = {
        "prune": lambda: Prune(flat, device),
        "width": lambda: Width(flat, device, (1, 8, 8)),
        "quant": lambda: Quant(flat, device),
        "lowrank": lambda: LowRank(flat, device),
    }[kind]()
    local = compressor.local(compressor.blocks(w, keep), keep)
    part = None if local.part is None else local.part

    def adjust(clients: Sequence[int], values: Tensor, g: Tensor) -> None:
        local.adjust(values[0], g[0])

    hooks = Hooks(adjust=adjust)
    (trained,) = engine.trainer.train_apart(t, [client], [local.start], [part], hooks)
    secret = key(engine.settings.seed, Purpose.ROUND, t, client)
    blocks = local.upload(trained - local.start, secret)
    return local.lifted(local.sent(blocks, device), flat.size)


def test_devices_of_one_run_have_compressors_of_their_own() -> None:
    """Each client's share of the round is what it would be if all had its compressor."""
    engine = Engine(small(NAME, FOUR, "rounds=3", "evaluate.every=3"))
    tiers = [engine.fleet.tier(client) for client in range(5)]
    assert {tier.name for tier in tiers} == set("apwqr")
    w = engine.server.w.clone()
    outcomes = []
    for t, outcome in enumerate(play(engine)):
        outcomes.append(outcome)
        changes = [
            alone(engine, t, client, w, tier.compressor or "prune", tier.keep or 1.0)
            for client, tier in enumerate(tiers)
        ]
        sizes = [len(shard) for shard in engine.population.shards]
        total = sum(size * change for size, change in zip(sizes, changes, strict=True))
        near(engine.server.w, w + total / sum(sizes))
        w = engine.server.w.clone()
    rows = outcomes[-1].tables["variants"]
    pairs = list(zip(rows["share"].tolist(), rows["kind"].tolist(), strict=True))
    wanted = [(1.0, b"prune"), (0.5, b"width"), (0.5, b"prune"), (0.5, b"lowrank")]
    assert pairs == [*wanted, (0.25, b"quant")]
    assert rows["clients"].tolist() == [1] * 5
    flops = dict(zip(pairs, rows["flops"].tolist(), strict=True))
    assert flops[1.0, b"prune"] == flops[0.25, b"quant"] > flops[0.5, b"prune"]
    assert flops[0.5, b"width"] < flops[0.5, b"prune"]
    assert rows["accuracy"][0] == outcomes[-1].tables["rounds"]["accuracy"][0]


@pytest.mark.parametrize("compressor", ["prune", "width", "quant", "lowrank"])
def test_a_compressor_of_all_devices_is_that_of_the_method(compressor: str) -> None:
    tiers = "devices.tiers=[{name='a',share=0.4,keep=1.0X},{name='b',share=0.6,keep=0.25X}]"
    of_tiers, of_method = (
        run(small(NAME, tiers.replace("X", own), *words))
        for own, words in (
            (f",compressor='{compressor}'", ()),
            ("", (f"method.compressor={compressor}",)),
        )
    )
    alike(of_tiers, of_method)


@pytest.mark.parametrize("kind", ["prune", "width", "lowrank", "quant"])
def test_updates_in_few_bits(kind: str) -> None:
    """Of each tensor's values that are sent those on the grid beside, right on average."""
    words = (NAME, f"method.compressor={kind}", "method.keeps=[0.5]", "rounds=1", "clients=1")
    exact, rough = (Engine(small(*words, f"method.bits={bits}")) for bits in (32, 4))
    sent: dict[Engine, tuple[Any, ...]] = {}

    def watch(engine: Engine, t: int, client: int, w: Tensor) -> list[Block]:
        local = engine.clients.locals[client]
        update = w - local.start
        values = update if local.mask is None else update[local.places]
        blocks = type(engine.clients).upload(engine.clients, t, client, w)
        found = local.sent(blocks, torch.device("cpu"))
        sent[engine] = local, values.numpy().astype("f8"), found.numpy()
        return blocks

    for engine in (exact, rough):
        engine.clients.upload = partial(watch, engine)
        (outcome,) = play(engine)
        sent[engine] += (int(outcome.tables["clients"]["up_gradient"][0]),)
    if kind != "quant":
        assert np.array_equal(sent[exact][1].astype("f4"), sent[exact][2])
    local, values, found, length = sent[rough]
    places = np.arange(local.shape.size) if local.mask is None else local.places.numpy()
    draws = coded.draws(key(1, Purpose.ROUND, 0, 0), len(values))
    wanted = np.empty(len(values))
    for piece in local.shape.parameters:
        some = (places >= piece.start) & (places < piece.stop)
        if some.any():
            part = values[some]
            low, high = (np.float32(end) for end in (part.min(), part.max()))
            step = (high - low) / np.float32(15)
            codes = np.floor((part - low) / (step or 1) + draws[some]).clip(0, 15)
            wanted[some] = low + step * codes
    assert np.mean(np.abs(found - wanted) > 1e-6) < 0.02
    tensors = len(local.shape.parameters)
    assert length == ceil(4 * len(values) / 8) + 8 * tensors


def held(kind: str, keep: float) -> tuple[float, float]:
    """Bytes of weights, gradients and a mask, and FLOPs of a sample, of a network of 64, 40, 10."""
    sizes, biases = [(64, 40), (40, 10)], 50
    if kind == "width":
        units = ceil(40 * keep - 1e-9)
        sizes, biases = [(64, units), (units, 10)], units + 10
    weights, mask = sum(a * b for a, b in sizes), 0.0
    if kind == "prune":
        weights, mask = round(keep * weights), (weights + biases) / 8
    if kind == "lowrank" and keep < 1:
        thin = [max(1, int(keep * a * b / (a + b))) * (a + b) for a, b in sizes]
        weights = sum(min(n, a * b) for n, (a, b) in zip(thin, sizes, strict=True))
    return 8 * (weights + biases) + mask, 6 * weights


@pytest.mark.parametrize("limit", [0.017, 0.021, 0.026])
@pytest.mark.parametrize(
    "words",
    [("prune",), ("width",), ("lowrank",), ("width", "method.name=heterofl")],
    ids=["prune", "width", "lowrank", "heterofl"],
)
def test_the_largest_share_whose_memory_fits(words: tuple[str, ...], limit: float) -> None:
    kind, *name = words
    name = name or [NAME, f"method.compressor={kind}"]
    tiers = f"devices.tiers=[{{name='a',share=0.6,memory={limit},fit=true}},{{name='b',share=0.4}}]"
    found = run(small(*name, tiers, "model.hidden=[40]", "rounds=1", "devices.unfit=rest"))
    engine = found.engine

    def needs(keep: float) -> float:
        """MiB, with what autograd keeps of a batch, which has tests of its own."""
        flat, _ = engine.method.held(engine.trainer)(engine.fleet.tiers[0], keep)
        return (held(kind, keep)[0] + activations(flat, torch.zeros(16, 1, 8, 8))) / 2**20

    share = engine.fleet.fitted["a"]
    assert 0.05 < share < 1
    assert needs(share) <= limit
    larger = [step / 20 for step in range(round(20 * share) + 1, 21)]
    assert all(needs(keep) > limit for keep in larger)
    rows = found.tables["variants"]
    assert rows["share"].tolist() == [1.0, share]
    assert rows["memory"][1] == pytest.approx(needs(share))
    assert engine.population.excluded == frozenset()


@pytest.mark.parametrize("kind", ["prune", "width", "lowrank"])
def test_the_largest_share_whose_time_fits(kind: str) -> None:
    """Training at 1 MFLOP/s, and twice the values over a link, by the client with most samples."""
    link = "link={kind='fixed',up=1.0,down=2.0,latency=0.25}"
    tiers = f"devices.tiers=[{{name='a',gflops=0.001,fit=true,{link}}}]"
    words = (NAME, f"method.compressor={kind}", "model.hidden=[40]", "rounds=1")
    engine = Engine(small(*words, tiers, "devices.deadline=2.0"))
    samples = 2 * int(engine.population.sizes.max())

    def seconds(keep: float) -> float:
        size, flops = held(kind, keep)
        mask = (64 * 40 + 40 * 10 + 50) / 8 if kind == "prune" else 0
        bits = 8 * (size - mask) / 2
        return 0.5 + samples * flops / 1e6 + bits * 1e-6 + bits * 0.5e-6

    share = engine.fleet.fitted["a"]
    assert 0.05 < share < 1
    assert seconds(share) <= 2.0
    assert all(seconds(step / 20) > 2.0 for step in range(round(20 * share) + 1, 21))


def test_what_does_not_fit_has_the_smallest_share_and_is_refused_or_rests() -> None:
    tiers = "devices.tiers=[{name='a',share=0.4,memory=0.001,fit=true},{name='b',share=0.6}]"
    with pytest.raises(ConfigError, match=r"is a 'a': wanted at most its memory, 0\.001 MiB"):
        Engine(small(NAME, tiers))
    engine = Engine(small(NAME, tiers, "devices.unfit=rest"))
    assert engine.fleet.fitted == {"a": 0.05}
    assert len(engine.population.excluded) == 2


@pytest.mark.parallel([1, 2, 3])
def test_mixed_fitted_devices_are_the_same_on_all_ranks() -> None:
    tiers = (
        "devices.tiers=[{name='p',share=0.4,fit=true,memory=0.008,compressor='prune'},"
        "{name='w',share=0.2,fit=true,memory=0.01,compressor='width'},"
        "{name='q',share=0.2,keep=0.25,compressor='quant'},"
        "{name='r',share=0.2,keep=0.5,compressor='lowrank'}]"
    )
    settings = small(NAME, tiers, "method.bits=6", "devices.unfit=rest", "rounds=3")
    found = run(settings, MPI.COMM_WORLD)
    if MPI.COMM_WORLD.rank == 0:
        alike(found, run(settings), but=("ranks", "clients"))


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (
            ("devices.tiers=[{fit=true}]",),
            "devices.tiers.0.fit = true: wanted the device's memory, or devices.deadline",
        ),
        (
            ("devices.tiers=[{fit=true,keep=0.5,memory=1.0}]",),
            "devices.tiers.0.fit = true: wanted no keep beside it, found 0.5",
        ),
        (
            ("devices.tiers=[{fit=true,memory=1.0,compressor='quant'}]",),
            "devices.tiers.0.fit = true: wanted the compressor 'prune', 'width' or 'lowrank'",
        ),
        (
            ("devices.tiers=[{fit=true,memory=1.0}]", "method.name=fedsl"),
            "devices.tiers.0.fit = true: wanted a method whose memory and FLOPs follow from",
        ),
        (
            (
                *("devices.tiers=[{fit=true,memory=1.0}]", "method.name=heterofl"),
                "method.assignment=dynamic",
            ),
            "method.assignment = 'dynamic': wanted devices.tiers without fit",
        ),
        (
            ("devices.tiers=[{compressor='width'}]", "method.compressor=lowrank"),
            "method.compressor = 'lowrank': wanted the default beside devices.tiers that all have",
        ),
        (
            ("devices.tiers=[{compressor='wide'}]",),
            "devices.tiers.0.compressor = 'wide': wanted 'prune', 'width', 'quant' or 'lowrank'",
        ),
    ],
)
def test_devices_that_contradict_themselves(words: tuple[str, ...], match: str) -> None:
    assert match in refusal(NAME, *words)


def test_methods_that_fit_no_model_ignore_what_fits() -> None:
    tiers = "devices.tiers=[{memory=1.0FIT}]"
    both = (run(small(tiers.replace("FIT", fit))) for fit in (",fit=true,compressor='width'", ""))
    alike(*both)
