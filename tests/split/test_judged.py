"""Accuracies with what a method does to activations at a cut, by numpy on plain torch's."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmpi import models
from fedmpi.engine import Engine
from fedmpi.training import probe
from tests.plain import network, play
from tests.small import refusal, run, small, smooth

LINK = "evaluate.link=link"
TAIL = ("model.hidden=[12,8,6]", "method.tail=hidden3")


def rounded(x: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """To the nearest of 2^bits levels between the least and the greatest value along an axis."""
    low, high = x.min(axis, keepdims=True), x.max(axis, keepdims=True)
    step = (high - low) / (2**bits - 1)
    return low + step * np.rint((x - low) / np.where(step > 0, step, 1))


def largest(x: np.ndarray, count: int) -> np.ndarray:
    """The largest values of each sample; the others are zero."""
    order = np.argsort(-np.abs(x), axis=1, kind="stable")[:, :count]
    kept = np.zeros_like(x)
    np.put_along_axis(kept, order, np.take_along_axis(x, order, 1), 1)
    return kept


LINKS: dict[str, tuple[tuple[str, ...], Callable[[np.ndarray], np.ndarray]]] = {
    "randtopk": (("method.sparsity=0.75",), lambda x: largest(x, round(0.25 * x.shape[1]))),
    "splitquant": (("method.bits=2", "method.rounding=random"), lambda x: rounded(x, 2, 1)),
    "splitfc": (("method.bits=3", "method.ratio=2.0"), lambda x: rounded(x, 3, 0)),
}
every_link = pytest.mark.parametrize("name", LINKS)


def wanted(engine: Engine, w: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The whole network's outputs on the test set, without and with what happens at each cut."""
    module, batch = network(engine, w), engine.settings.batch
    children, (_, change) = list(module.named_children()), LINKS[name]
    cuts = [children[0][0]]
    if engine.method.tail is not None:
        names = [child for child, _ in children]
        cuts.append(names[names.index(engine.method.tail) - 1])
    with torch.no_grad():
        x = engine.evaluation.test_x
        for child, stage in children:
            x = stage(x)
            if child in cuts:
                some = [change(part.double().numpy()) for part in x.split(batch)]
                x = torch.from_numpy(np.concatenate(some)).float()
        return module(engine.evaluation.test_x), x


@every_link
@pytest.mark.parametrize("more", [(), TAIL], ids=["front and back", "with a tail"])
def test_accuracies_are_those_with_what_happens_at_a_cut(name: str, more: tuple[str, ...]) -> None:
    words = (*LINKS[name][0], *more, "rounds=4", "lr=0.5", "data.separation=6.0")
    engine = Engine(small(f"method.name={name}", LINK, "batch=7", *words))
    for outcome in play(engine):
        exact, judged = wanted(engine, engine.server.w, name)
        (row,) = outcome.tables["rounds"]
        right = judged.argmax(1) == engine.evaluation.test_y
        assert row["accuracy"] == pytest.approx(float(right.float().mean()), abs=1e-6)
        by_shard = [float(right[shard].float().mean()) for shard in engine.population.test_shards]
        assert row["shard_mean"] == pytest.approx(np.mean(by_shard), abs=1e-6)
    assert not torch.equal(exact, judged)


@every_link
def test_judging_changes_nothing_but_accuracies(name: str) -> None:
    words = (f"method.name={name}", *LINKS[name][0], "evaluate.final=tune")
    found, other = run(small(*words, LINK)), run(small(*words))
    assert found.sha256 == other.sha256
    for column in ("loss", "up", "down"):
        both = (each.tables["rounds"][column] for each in (found, other))
        np.testing.assert_array_equal(*both)
    assert np.isfinite(found.tables["final"]["tuned"]).all()


def test_centroids_of_a_small_batch_are_its_vectors() -> None:
    """FedLite judges the network itself if there are as many centroids as vectors."""
    for centroids, is_exact in ((4096, True), (2, False)):
        engine = Engine(small("method.name=fedlite", f"method.centroids={centroids}", LINK))
        x = torch.randn(40, 12, generator=torch.Generator().manual_seed(1))
        found = engine.clients.carried(0, x)
        assert torch.equal(found, x) == is_exact
        assert torch.equal(found, engine.server.carried(0, x)), "nothing is random"


@pytest.mark.parametrize("statistics", ["averaged", "local"])
def test_a_network_in_parts_is_the_whole_one(
    statistics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With running statistics, too, those of the model or each client's own."""
    monkeypatch.setattr(models, "build", smooth)
    words = (f"statistics={statistics}", "rounds=2")
    engine = Engine(small("method.name=splitfed", "method.tail=head", *words))
    list(play(engine))
    w, some = engine.server.w, engine.evaluation
    chain = engine.clients.chain()
    assert len(chain.parts) == 3
    for owners in ((), (1,)):
        if owners:
            engine.trainer.statistics[1] = engine.flat.local_stats + 0.5
        given = (engine.trainer, [w], [some.test_x], [some.test_y], owners)
        whole, parts = (probe.correct(*given, chain=each)[0] for each in (None, chain))
        np.testing.assert_array_equal(parts, whole)


def test_what_is_refused() -> None:
    text = "evaluate.link = 'link': wanted a method that changes activations"
    for words in (
        ("method.name=fedavg",),
        ("method.name=splitfed",),
        ("method.name=fedsl",),
        ("method.name=randtopk", "method.sparsity=0.0"),
        ("method.name=splitquant", "method.bits=32"),
    ):
        assert text in refusal(*words, LINK), words
