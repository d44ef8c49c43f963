"""SSFL's scores and the overlap of its masks, with the Hessian by differences of gradients."""

from collections.abc import Sequence

import numpy as np
import pytest
from mpi4py import MPI
from numpy import ndarray

from fedmpi.engine import Engine
from fedmpi.streams import Purpose, stream
from tests.plain import play
from tests.small import alike, refusal, run, small
from tests.suites.oracles.reference import DEEP, Reference, largest

WORLD = MPI.COMM_WORLD
KINDS = ("snip", "grasp", "gradient", "magnitude")
NEAR = 1e-6
"""Length of the difference, relative to the gradient, by which H g is measured in float64."""


def ssfl(*words: str) -> tuple[Engine, Reference]:
    engine = Engine(small(*DEEP, "method.name=ssfl", "method.sparsity=0.8", *words))
    return engine, Reference(engine)


def curvature(reference: Reference, w: ndarray, some: ndarray) -> ndarray:
    """H g by a central difference."""
    g = reference.gradient(w, some)
    ends = [reference.gradient(w + sign * NEAR * g, some) for sign in (1, -1)]
    return (ends[0] - ends[1]) / (2 * NEAR)


def score(kind: str, reference: Reference, w: ndarray, some: ndarray) -> ndarray:
    """The score of each parameter by some samples, as a single minibatch."""
    g = reference.gradient(w, some)
    found = {"snip": np.abs(g * w), "gradient": np.abs(g), "magnitude": np.abs(w)}
    return w * curvature(reference, w, some) if kind == "grasp" else found[kind]


def alone(
    kind: str, reference: Reference, w: ndarray, client: int, ids: Sequence[int] = ()
) -> ndarray:
    """A client's mean score over its minibatches; `ids` belong to its stream."""
    settings, shard = reference.settings, reference.population.shards[client]
    random = stream(settings.seed, Purpose.SALIENCY, client, *ids)
    count = min(settings.method.batches * settings.batch, len(shard))
    some = random.choice(shard, count, replace=False)
    parts = np.split(some, range(settings.batch, count, settings.batch))
    return np.mean([score(kind, reference, w, part) for part in parts], axis=0)


def pooled(kind: str, reference: Reference, w: ndarray, ids: Sequence[int] = ()) -> ndarray:
    """All clients' scores, averaged by samples."""
    sizes = reference.sizes
    each = [alone(kind, reference, w, client, ids) for client in range(len(sizes))]
    return np.average(each, axis=0, weights=sizes)


def weighed(reference: Reference, scores: ndarray) -> ndarray:
    """Those of the weights, without biases."""
    return np.concatenate([scores[part] for part in reference.weights()])


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_scores(kind: str, batches: int) -> None:
    if kind == "magnitude" and batches > 1:
        assert "method.batches = 3: wanted" in refusal(
            "method.name=ssfl", "method.saliency=magnitude", "method.batches=3"
        )
        return
    engine, reference = ssfl(f"method.saliency={kind}", f"method.batches={batches}")
    w = reference.start
    next(play(engine))
    wanted = weighed(reference, pooled(kind, reference, w))
    found = engine.server.scores.total.double().numpy() / sum(reference.sizes)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=2e-5 * np.abs(wanted).max())
    mask = engine.server.mask.numpy()
    kept = np.concatenate([mask[part] for part in reference.weights()])
    assert (kept != largest(wanted, len(wanted) // 5)).sum() <= 4  # next to the threshold


def test_grasp_keeps_what_the_gradient_lives_on() -> None:
    """Less of a weight with a high score makes the gradient shorter, and of a low one longer."""
    engine, reference = ssfl("method.saliency=grasp", "clients=1", "participation=1.0")
    w, client = reference.start, 0
    next(play(engine))
    shard = reference.population.shards[client]
    random = stream(reference.settings.seed, Purpose.SALIENCY, client)
    some = random.choice(shard, reference.settings.batch, replace=False)
    scores = score("grasp", reference, w, some)
    places = np.concatenate([np.arange(part.start, part.stop) for part in reference.weights()])
    order = places[np.argsort(scores[places])]
    length = np.sum(reference.gradient(w, some) ** 2)
    for place, sign in ((order[-1], -1), (order[0], 1)):
        less = w.copy()
        less[place] *= 1 - 1e-5
        change = np.sum(reference.gradient(less, some) ** 2) - length
        assert change == pytest.approx(-2e-5 * scores[place], rel=1e-2)
        assert np.sign(change) == sign
    assert engine.server.mask[order[-1]] and not engine.server.mask[order[0]]


def test_masks_and_layers() -> None:
    """Every kind of overlap, and what each layer keeps."""
    engine, reference = ssfl("method.overlap=true", "method.batches=2", "method.rediscover=[1]")
    outcomes = {int(o.tables["rounds"]["round"][0]): o.tables for o in play(engine)}
    w, count = reference.start, 5
    size = len(weighed(reference, w))

    def choose(scores: ndarray) -> ndarray:
        return largest(weighed(reference, scores), size // 5)

    agreed = choose(pooled("snip", reference, w))
    again = choose(pooled("snip", reference, w, (-1, 1)))
    shards = np.concatenate(reference.population.shards)
    oracle = choose(score("snip", reference, w, shards))
    ours = [choose(alone("snip", reference, w, client)) for client in range(count)]
    others = [choose(alone("snip", reference, w, client, (-1, 1))) for client in range(count)]
    pairs = {("batches", -1, -1): (agreed, again), ("oracle", -1, -1): (agreed, oracle)}
    for i in range(count):
        pairs["agreed", i, -1] = ours[i], agreed
        pairs["batches", i, -1] = ours[i], others[i]
        pairs["oracle", i, -1] = ours[i], oracle
        pairs |= {("clients", i, j): (ours[i], ours[j]) for j in range(i + 1, count)}
    rows = outcomes[-1]["masks"]
    assert len(rows) == len(pairs)
    for row in rows:
        one, two = pairs[row["kind"].decode(), int(row["client"]), int(row["other"])]
        both = (one & two).sum()
        near = 4 / (size // 5)  # next to a threshold roundings decide
        assert row["common"] == pytest.approx(both / one.sum(), abs=near)
        assert row["jaccard"] == pytest.approx(both / (one | two).sum(), abs=near)
        assert 0.2 < row["common"] < 1
    assert not len(outcomes[0]["masks"]) and len(outcomes[1]["masks"]) == len(pairs)
    layers = outcomes[-1]["layers"]
    assert layers["weights"].tolist() == [64 * 12, 12 * 8, 8 * 10]
    assert layers["kept"].sum() == size // 5
    ends = np.cumsum(layers["weights"])[:-1]
    wanted = [part.sum() for part in np.split(agreed, ends)]
    np.testing.assert_allclose(layers["kept"], wanted, atol=4)
    assert not len(outcomes[0]["layers"]) and len(outcomes[1]["layers"]) == 3


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("kind", ["snip", "grasp"])
@pytest.mark.parametrize("server", ["dedicated", "shared"])
def test_measuring_changes_nothing_and_does_not_depend_on_ranks(kind: str, server: str) -> None:
    words = (*("method.name=ssfl", f"method.saliency={kind}", f"server={server}", "clients=4"),)
    words += ("method.rediscover=[1]", "rounds=3", "newcomers=1", "evaluate.final=evaluate")
    measured = small(*words, "method.overlap=true")
    found = run(measured, WORLD)
    if WORLD.rank == 0:
        assert len(found.tables["masks"]) == 2 * (3 + 3 * 3 + 2)
        alike(found, run(measured), but=("ranks", "clients"))
        alike(found, run(small(*words)), but=("ranks", "clients", "masks"))


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("method.sparsity=0.0",), "method.overlap = true: wanted method.sparsity above 0"),
        (("method.saliency=magnitude",), "method.overlap = true: wanted method.saliency = 'snip'"),
        (("statistics=local",), "method.overlap = true: wanted statistics = 'averaged'"),
    ],
)
def test_an_overlap_that_says_nothing_is_refused(words: tuple[str, ...], match: str) -> None:
    assert match in refusal("method.name=ssfl", "method.overlap=true", *words)
