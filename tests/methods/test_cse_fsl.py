"""CSE-FSL's algebra by numpy in float64: clients learn from heads, the back from some batches."""

from collections.abc import Iterator

import numpy as np
import pytest
from mpi4py import MPI

from fedmpi.engine import Engine
from fedmpi.methods import cse_fsl
from tests import plain
from tests.plain import play
from tests.small import refusal, run, small

NAME = "method.name=cse-fsl"
SHAPES = ((12, 64), (12,), (8, 12), (8,), (10, 8), (10,))
Pieces = list[np.ndarray]


def cut(vector: np.ndarray, shapes: tuple[tuple[int, ...], ...]) -> Pieces:
    ends = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
    parts = zip(np.split(vector.astype("f8"), ends), shapes, strict=True)
    return [part.reshape(shape) for part, shape in parts]


def errors(outputs: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """The gradient of the mean cross-entropy at the outputs, and the loss."""
    p = np.exp(outputs - outputs.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -np.log(p[np.arange(len(y)), y]).mean()
    return (p - np.eye(10)[y]) / len(y), float(loss)


def moved(w: Pieces, gradients: Pieces, speed: Pieces, rate: float, momentum: float) -> None:
    """A step of SGD with momentum, in place."""
    for piece, g, v in zip(w, gradients, speed, strict=True):
        v *= momentum
        v += g
        piece -= rate * v


def rounds(engine: Engine) -> Iterator[tuple[np.ndarray, np.ndarray, dict[int, float]]]:
    """Model, head and the clients' losses after each round, as the docstring says."""
    settings, feed, population = engine.settings, engine.trainer.feed, engine.population
    every, about = settings.method.every, (settings.lr, settings.momentum)
    w = cut(engine.flat.initial.numpy(), SHAPES)
    head = engine.method.head(*cse_fsl.about(engine.trainer)).initial.numpy()
    shared = [*w[:2], *cut(head, ((10, 12), (10,)))]
    back = w[2:]
    for t in range(settings.rounds):
        clients = engine.population.sample(t)
        order = sum(engine.placement.halves(t, clients), ())
        left = {c: list(plain.positions(engine, t, c)) for c in clients}
        own = {c: [piece.copy() for piece in shared] for c in clients}
        speeds = {c: [np.zeros_like(piece) for piece in shared] for c in clients}
        speed, heard = [np.zeros_like(piece) for piece in back], {c: [] for c in clients}
        for step in range(max(map(len, left.values()))):
            told = {}
            for c in clients:
                if step >= len(left[c]):
                    continue
                front, bias, head, shift = own[c]
                x = feed.x[left[c][step]].flatten(1).numpy().astype("f8")
                y = feed.y[left[c][step]].numpy()
                a = np.maximum(x @ front.T + bias, 0)
                told[c] = a, y
                z, loss = errors(a @ head.T + shift, y)
                heard[c].append(loss)
                d = (z @ head) * (a > 0)
                moved(own[c], [d.T @ x, d.sum(0), z.T @ a, z.sum(0)], speeds[c], *about)
            for c in order if step % every == 0 else ():
                if c in told:
                    a, y = told[c]
                    h = np.maximum(a @ back[0].T + back[1], 0)
                    z, _ = errors(h @ back[2].T + back[3], y)
                    d = (z @ back[2]) * (h > 0)
                    moved(back, [d.T @ a, d.sum(0), z.T @ h, z.sum(0)], speed, *about)
        weights = np.array([population.weight(t, c) for c in clients])
        shares = dict(zip(clients, weights / weights.sum(), strict=True))
        shared = [sum(shares[c] * own[c][i] for c in clients) for i in range(4)]
        model = np.concatenate([piece.ravel() for piece in (*shared[:2], *back)])
        head = np.concatenate([piece.ravel() for piece in shared[2:]])
        yield model, head, {c: float(np.mean(some)) for c, some in heard.items()}


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(
    "words",
    [
        (),
        ("participation=0.6", "aggregation.weights=equal", "epochs=1"),
        ("momentum=0.9", "local_steps=4", "batch=7", "lr=0.05"),
        ("rows=3",),
    ],
    ids=" ".join,
)
def test_rounds_by_the_formulas(every: int, words: tuple[str, ...]) -> None:
    engine = Engine(small(NAME, f"method.every={every}", "rounds=3", "lr=0.2", *words))
    wanted = rounds(engine)
    for outcome in play(engine):
        model, head, losses = next(wanted)
        # Of the whole vectors: by a rounding a unit may be on the other side of its kink.
        for found, known in ((engine.server.w, model), (engine.server.head, head)):
            far = np.linalg.norm(np.asarray(found) - np.asarray(known))
            assert far <= 5e-3 * np.linalg.norm(np.asarray(known))
        rows = outcome.tables["clients"]
        expected = [losses[c] for c in rows["client"].tolist()]
        np.testing.assert_allclose(rows["loss"], expected, rtol=1e-4)


@pytest.mark.parametrize("every", [1, 3, 100])
def test_bytes(every: int) -> None:
    """Activations and labels of every h-th batch go up, and nothing but front and head comes."""
    found = run(small(NAME, f"method.every={every}", "epochs=2"))
    held = 64 * 12 + 12 + 12 * 10 + 10
    for row in found.tables["clients"]:
        batches = list(plain.positions(found.engine, int(row["round"]), int(row["client"])))
        samples = sum(map(len, batches[::every]))
        wanted = {
            "up_activation": 4 * 12 * samples,
            "up_label": samples,
            "up_gradient": 4 * held,
            "down_model": 4 * held,
        }
        for name in row.dtype.names:
            if name.startswith(("up_", "down_")) and not name.endswith("_header"):
                assert row[name] == wanted.get(name, 0), name


def test_flops_are_those_of_front_and_head_and_of_the_batches_that_are_sent() -> None:
    devices = "devices.tiers=[{name='box'}]"
    found = run(small(NAME, "method.every=3", "epochs=1", "rounds=1", devices))
    rows, served = found.tables["clients"], 0
    for row in rows:
        assert row["flops"] == 3 * 2 * (64 * 12 + 12 * 10) * row["samples"]
        batches = list(plain.positions(found.engine, 0, int(row["client"])))
        served += 3 * 2 * (12 * 8 + 8 * 10) * sum(map(len, batches[::3]))
    assert found.tables["rounds"]["server_flops"][0] == served


def test_a_lost_upload_is_in_no_average() -> None:
    """Neither its front nor its head, but the back has learnt from it."""
    words = (NAME, "devices.dropouts=1.0", "rounds=1")
    found, start = run(small(*words)), Engine(small(*words))
    assert np.array_equal(found.engine.server.head, start.server.head)
    found = run(small(NAME, "devices.dropouts=0.5", "rounds=4"))
    assert 0 < found.tables["rounds"]["lost"].sum() < 20
    assert np.isfinite(found.model).all()
    assert not np.array_equal(found.engine.server.head, start.server.head)


@pytest.mark.parallel([1, 3])
@pytest.mark.parametrize("every", [1, 3])
def test_any_ranks_compute_the_same(every: int) -> None:
    words = (NAME, f"method.every={every}", "participation=0.8", "rounds=3", "momentum=0.9")
    settings = small(*words)
    found, wanted = run(settings, MPI.COMM_WORLD), run(settings)
    if MPI.COMM_WORLD.rank == 0:
        assert found.sha256 == wanted.sha256
        assert np.array_equal(found.engine.server.head, wanted.engine.server.head)


def test_what_is_refused() -> None:
    assert "method.tail = 'head': wanted another method" in refusal(NAME, "method.tail=head")
    assert "whole updates" in refusal(NAME, "aggregation.rule=median")
    assert "method.every = 0" in refusal(NAME, "method.every=0")
