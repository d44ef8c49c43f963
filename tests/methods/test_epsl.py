"""EPSL's algebra by numpy in float64: one back, all clients' batches at once, mean gradients."""

from collections.abc import Iterator
from math import ceil

import numpy as np
import pytest
from mpi4py import MPI

from fedmpi.engine import Engine
from tests import plain
from tests.plain import play
from tests.small import refusal, run, small

SHAPES = ((12, 64), (12,), (8, 12), (8,), (10, 8), (10,))
Pieces = list[np.ndarray]


def engine_of(*words: str) -> Engine:
    return Engine(small("method.name=epsl", *words))


def pieces(w: np.ndarray) -> Pieces:
    """Weights and biases of the three layers, of which the first is the front."""
    ends = np.cumsum([np.prod(shape) for shape in SHAPES])[:-1]
    parts = zip(np.split(w, ends), SHAPES, strict=True)
    return [part.reshape(shape).astype("f8") for part, shape in parts]


def ahead(w: Pieces, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hidden values and the outputs of a back."""
    h = np.maximum(a @ w[2].T + w[3], 0)
    return h, h @ w[4].T + w[5]


def errors(outputs: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """The gradient of the mean cross-entropy at the outputs, and the loss."""
    p = np.exp(outputs - outputs.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -np.log(p[np.arange(len(y)), y]).mean()
    return (p - np.eye(10)[y]) / len(y), float(loss)


def behind(w: Pieces, a: np.ndarray, h: np.ndarray, z: np.ndarray) -> tuple[Pieces, np.ndarray]:
    """The gradients of a back, and those of its inputs, for z at its outputs."""
    d = (z @ w[4]) * (h > 0)
    return [d.T @ a, d.sum(0), z.T @ h, z.sum(0)], d @ w[2]


def rounds(engine: Engine) -> Iterator[tuple[np.ndarray, dict[int, float]]]:
    """The model after each round, and the clients' mean losses, as the docstring says."""
    settings, feed, population = engine.settings, engine.trainer.feed, engine.population
    w = pieces(engine.flat.initial.numpy())
    for t in range(settings.rounds):
        clients = engine.population.sample(t)
        left = {c: list(plain.positions(engine, t, c)) for c in clients}
        fronts = {c: [w[0].copy(), w[1].copy()] for c in clients}
        back, heard = [None, None, *(piece.copy() for piece in w[2:])], {c: [] for c in clients}
        speed = [np.zeros_like(piece) for piece in back[2:]]
        for step in range(max(map(len, left.values()))):
            busy = [c for c in clients if step < len(left[c])]
            weights = np.array([population.weight(t, c) for c in busy])
            lambdas = dict(zip(busy, weights / weights.sum(), strict=True))
            x = {c: feed.x[left[c][step]].flatten(1).numpy().astype("f8") for c in busy}
            y = {c: feed.y[left[c][step]].numpy() for c in busy}
            a = {c: np.maximum(x[c] @ fronts[c][0].T + fronts[c][1], 0) for c in busy}
            count = ceil(settings.method.aggregated * min(len(y[c]) for c in busy))
            total, mean_z = [np.zeros_like(piece) for piece in back[2:]], 0.0
            g = {}
            for c in busy:
                h, outputs = ahead(back, a[c])
                z, loss = errors(outputs, y[c])
                heard[c].append(loss)
                mean_z = mean_z + lambdas[c] * z[:count]
                z[:count] = 0
                own, g[c] = behind(back, a[c], h, z)
                total = [one + lambdas[c] * other for one, other in zip(total, own, strict=True)]
            mean_a = sum(lambdas[c] * a[c][:count] for c in busy)
            h, _ = ahead(back, mean_a)
            own, common = behind(back, mean_a, h, mean_z)
            speed = [
                settings.momentum * v + one + other
                for v, one, other in zip(speed, total, own, strict=True)
            ]
            back[2:] = [piece - settings.lr * v for piece, v in zip(back[2:], speed, strict=True)]
            for c in busy:
                g[c][:count] = common
                d = g[c] * (a[c] > 0)
                fronts[c][0] -= settings.lr * d.T @ x[c]
                fronts[c][1] -= settings.lr * d.sum(0)
        weights = np.array([population.weight(t, c) for c in clients])
        weights /= weights.sum()
        shares = dict(zip(clients, weights, strict=True))
        means = [sum(shares[c] * fronts[c][i] for c in clients) for i in (0, 1)]
        w = [*means, *back[2:]]
        yield (
            np.concatenate([piece.ravel() for piece in w]),
            {c: float(np.mean(some)) for c, some in heard.items()},
        )


@pytest.mark.parametrize("aggregated", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(
    "words",
    [
        (),
        ("participation=0.6", "aggregation.weights=equal", "epochs=1"),
        ("local_steps=4", "batch=7"),
        ("rows=3",),
    ],
    ids=" ".join,
)
def test_rounds_by_the_formulas(aggregated: float, words: tuple[str, ...]) -> None:
    engine = engine_of(f"method.aggregated={aggregated}", "rounds=3", "lr=0.3", *words)
    for outcome, (wanted, losses) in zip(play(engine), rounds(engine), strict=True):
        np.testing.assert_allclose(engine.server.w, wanted, rtol=1e-3, atol=2e-5)
        rows = outcome.tables["clients"]
        np.testing.assert_allclose(
            rows["loss"], [losses[c] for c in rows["client"].tolist()], rtol=1e-4
        )


def test_one_client_without_aggregation_is_splitfed() -> None:
    words = ("clients=1", "rounds=3", "momentum=0.9", "weight_decay=0.01", "method.version=v2")
    wanted = run(small("method.name=splitfed", *words))
    found = run(small("method.name=epsl", "method.aggregated=0.0", *words[:-1]))
    np.testing.assert_allclose(found.model, wanted.model, rtol=1e-3, atol=1e-5)
    alike = run(small("method.name=epsl", "method.aggregated=1.0", *words[:-1]))
    np.testing.assert_allclose(alike.model, wanted.model, rtol=1e-3, atol=1e-5)


def test_every_client_gets_the_same_gradients_for_what_is_aggregated() -> None:
    """And in bytes it costs what it costs without."""
    engine = engine_of("method.aggregated=0.5", "local_steps=2", "rounds=1", "partition.name=iid")
    step, told = engine.server.step_last, []

    def watch(*given: object) -> list:
        told.append(step(*given))
        return told[-1]

    engine.server.step_last = watch
    list(play(engine))
    assert len(told) == 2
    for messages in told:
        assert len(messages) == 5
        values = [message.blocks[0].values.view("f4").reshape(16, 12) for message in messages]
        for some in values[1:]:
            np.testing.assert_array_equal(some[:8], values[0][:8])
            assert (some[8:] != values[0][8:]).any(1).all()
    found, other = (run(small("method.name=epsl", f"method.aggregated={s}")) for s in (0.0, 1.0))
    for way in ("up", "down"):
        both = (each.tables["rounds"][way] for each in (found, other))
        np.testing.assert_array_equal(*both)


@pytest.mark.parallel([1, 3])
def test_any_ranks_compute_the_same() -> None:
    settings = small("method.name=epsl", "participation=0.8", "rounds=3", "momentum=0.9")
    found, wanted = run(settings, MPI.COMM_WORLD), run(settings)
    if MPI.COMM_WORLD.rank == 0:
        assert found.sha256 == wanted.sha256


def test_what_is_refused() -> None:
    assert "method.tail = 'head': wanted another method" in refusal(
        "method.name=epsl", "method.tail=head"
    )
    assert "whole updates" in refusal("method.name=epsl", "aggregation.rule=median")
    assert "method.aggregated = 1.5" in refusal("method.name=epsl", "method.aggregated=1.5")
