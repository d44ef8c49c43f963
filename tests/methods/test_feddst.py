"""FedDST: what clients prune and regrow, what the server makes of it, and what travels."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedmpi import models
from fedmpi.engine import Engine
from fedmpi.networks import pruning
from tests.plain import CNN, EVERYTHING, network, play, positions, train
from tests.small import run, small, smooth

ALWAYS = ("method.name=feddst", "method.every=1", "method.end=1.0", "method.sparsity=0.7")
networks = pytest.mark.parametrize("words", [(), CNN], ids=["mlp", "cnn"])


def layers(engine: Engine) -> list[tuple[int, int]]:
    """Where the weights of each layer that can be pruned begin and end."""
    return [(piece.start, piece.stop) for piece in pruning.weights(engine.flat)]


def top(scores: dict[int, tuple[float, ...]], count: int) -> set[int]:
    """The positions with the largest scores."""
    return set(sorted(scores, key=lambda i: scores[i], reverse=True)[:count])


def regrown(engine: Engine, w: Tensor, g: Tensor, mask: Tensor, share: float) -> Tensor:
    """Prunes and regrows position by position."""
    found = mask.clone()
    for (start, stop), count in zip(
        layers(engine), pruning.erk(engine.flat, engine.settings.method.sparsity), strict=True
    ):
        old = {i: (abs(float(w[i])),) for i in range(start, stop) if mask[i]}
        stays = top(old, count - int(share * count))
        rest = {i: (abs(float(g[i])),) for i in range(start, stop) if i not in stays}
        found[start:stop] = False
        found[sorted(stays | top(rest, count - len(stays)))] = True
    return found


def near_masks(found: Tensor, wanted: Tensor) -> None:
    """Equal but for a weight or two, where roundings decide."""
    assert int((found != wanted).sum()) <= 2


@networks
def test_readjustment_is_pruning_regrowing_averaging_and_pruning(words: tuple[str, ...]) -> None:
    engine = Engine(small(*ALWAYS, *words, *EVERYTHING, "participation=0.6", "rounds=3"))
    counts, method = pruning.erk(engine.flat, 0.7), engine.settings.method
    w, mask = engine.server.w.clone(), engine.server.mask.clone()
    for t, _ in enumerate(play(engine)):
        share = method.share / 2 * (1 + np.cos(np.pi * t / 3))
        total, votes = torch.zeros_like(w), torch.zeros_like(w)
        for client in engine.population.sample(t):
            local, _ = train(engine, t, client, w, change=lambda g, mask=mask: g * mask)
            *_, last = positions(engine, t, client)
            module = network(engine, local)
            cross_entropy(
                module(engine.trainer.feed.x[last]), engine.trainer.feed.y[last]
            ).backward()
            g = torch.cat([p.grad.flatten() for p in module.parameters()])
            own = regrown(engine, local, g, mask, share)
            size = len(engine.population.shards[client])
            total += size * local * (own & mask)
            votes += size * own
        mean = torch.where(votes > 0, total / votes, 0)
        wanted = torch.ones_like(mask)
        for (start, stop), count in zip(layers(engine), counts, strict=True):
            scores = {
                i: (abs(float(mean[i])), float(votes[i]), -i)
                for i in range(start, stop)
                if votes[i] > 0
            }
            wanted[start:stop] = False
            wanted[sorted(top(scores, count))] = True
        near_masks(engine.server.mask, wanted)
        both = engine.server.mask & wanted
        np.testing.assert_allclose(engine.server.w[both], mean[both], rtol=1e-3, atol=2e-5)
        assert not torch.equal(engine.server.mask, mask)
        w, mask = engine.server.w.clone(), engine.server.mask.clone()
        assert (w[~mask] == 0).all()


@networks
def test_between_readjustments_it_is_fedavg_on_the_mask(words: tuple[str, ...]) -> None:
    given = (*words, *EVERYTHING, "rounds=2", "participation=0.6")
    engine = Engine(small("method.name=feddst", "method.every=5", *given))
    w, mask = engine.server.w.clone(), engine.server.mask
    for t, _ in enumerate(play(engine)):
        total, samples = torch.zeros_like(w), 0
        for client in engine.population.sample(t):
            local, _ = train(engine, t, client, w, change=lambda g: g * mask)
            size = len(engine.population.shards[client])
            total, samples = total + size * local, samples + size
        np.testing.assert_allclose(engine.server.w, total / samples, rtol=1e-4, atol=2e-5)
        w = engine.server.w.clone()
    assert engine.server.version == 0


@networks
def test_without_sparsity_it_is_fedavg(words: tuple[str, ...]) -> None:
    """What is pruned grows again at once: there is nothing else."""
    given = (*words, *EVERYTHING, "rounds=3")
    found = run(small("method.name=feddst", "method.sparsity=0.0", *given))
    np.testing.assert_allclose(found.model, run(small(*given)).model, rtol=1e-4, atol=2e-5)


def test_it_begins_on_each_layers_largest_weights() -> None:
    engine = Engine(small("method.name=feddst", "method.sparsity=0.9"))
    mask, start = engine.server.mask, engine.flat.initial
    assert torch.equal(mask, engine.clients.mask)
    for (first, stop), count in zip(layers(engine), pruning.erk(engine.flat, 0.9), strict=True):
        kept, size = mask[first:stop], start[first:stop].abs()
        assert int(kept.sum()) == count
        assert size[kept].min() >= size[~kept].max()
    assert torch.equal(engine.server.w, start * mask)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((), [1, 11]),
        (("method.every=7", "method.end=1.0"), [1, 8, 15, 22, 29, 36]),
        (("method.share=0.0",), []),
    ],
)
def test_when_masks_change(words: tuple[str, ...], wanted: list[int]) -> None:
    method = small("method.name=feddst", *words).method
    assert [t for t in range(40) if method.replaced(t, 40)] == wanted


def test_layers_keep_their_counts() -> None:
    engine = Engine(small(*ALWAYS, "rounds=5", "participation=0.4"))
    for _ in play(engine):
        found = [int(engine.server.mask[start:stop].sum()) for start, stop in layers(engine)]
        assert found == pruning.erk(engine.flat, 0.7)


def test_values_travel_and_masks_when_they_changed() -> None:
    """A client that was not sampled gets the mask when it comes again, once."""
    words = ("method.every=3", "method.end=1.0", "rounds=9", "participation=0.4")
    found = run(small("method.name=feddst", "method.sparsity=0.9", *words))
    engine, rows = found.engine, found.tables["clients"]
    d = int(engine.flat.prunable().sum())
    kept = sum(pruning.erk(engine.flat, 0.9))
    values = 4 * (kept + engine.flat.size - d)
    mask = min(4 * kept, -(-d // 8))
    has: dict[int, int] = {}
    version = 0
    for t in range(9):
        for row in rows[rows["round"] == t]:
            client = int(row["client"])
            assert row["down_model"] == row["up_gradient"] == values
            assert row["up_mask"] == (mask if t % 3 == 1 else 0)
            assert row["down_mask"] == (mask if has.get(client, 0) < version else 0)
            has[client] = version
        version += t % 3 == 1
    assert engine.server.version == 3
    assert len({tuple(pair) for pair in pairwise(rows["down_mask"].tolist())}) > 2


def test_what_is_lost_leaves_the_model_on_its_mask() -> None:
    words = (*ALWAYS, "devices.tiers=[{gflops=1.0}]", "devices.dropouts=0.6", "rounds=6")
    engine = Engine(small(*words))
    for _ in play(engine):
        assert (engine.server.w[~engine.server.mask] == 0).all()
        assert engine.server.w.isfinite().all()


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("statistics", ["averaged", "local"])
@pytest.mark.parametrize("server", ["dedicated", "shared"])
def test_masks_that_change_do_not_depend_on_ranks(
    server: str, statistics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "build", smooth)
    words = (*ALWAYS, "rounds=4", "participation=0.6", "momentum=0.5", f"statistics={statistics}")
    found = run(small(*words, f"server={server}"), MPI.COMM_WORLD)
    if MPI.COMM_WORLD.rank == 0:
        alone = run(small(*words, f"server={server}"))
        assert found.sha256 == alone.sha256
        assert torch.equal(found.engine.server.mask, alone.engine.server.mask)
        np.testing.assert_array_equal(
            found.tables["clients"]["personal"], alone.tables["clients"]["personal"]
        )
