"""PruneFL: what clients sum up, which weights are worth their time, and what travels."""

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor

from fedmpi import models
from fedmpi.engine import Engine
from fedmpi.messages.counts import keep_floor
from fedmpi.methods.prunefl import worth
from fedmpi.networks import pruning
from tests.plain import CNN, play, train
from tests.small import run, small, smooth

networks = pytest.mark.parametrize("words", [(), CNN], ids=["mlp", "cnn"])


def greedy(squares: list[float], candidates: list[int], gain: float, time: float) -> set[int]:
    """One after the other, while the ratio rises."""
    found = set()
    for i in sorted(candidates, key=lambda i: -squares[i]):
        if (gain + squares[i]) / (time + 1) <= gain / time:
            break
        gain, time = gain + squares[i], time + 1
        found.add(i)
    return found


@pytest.mark.parametrize("constant", [0.5, 3.0, 30.0, 1000.0])
def test_weights_are_added_while_they_are_worth_their_time(constant: float) -> None:
    random = np.random.default_rng(3)
    sizes = set()
    for gain in (0.0, 1.0, 20.0, 1e6):
        squares = random.exponential(size=60).astype(np.float32)
        candidates = sorted(random.choice(60, 40, replace=False).tolist())
        found = worth(torch.from_numpy(squares), torch.tensor(candidates), gain, constant)
        assert set(found.tolist()) == greedy(squares.tolist(), candidates, gain, constant)
        sizes.add(len(found))
    assert len(sizes) > 1


def test_worth_is_the_best_of_all_subsets() -> None:
    """The ratio is as large as any choice of weights makes it."""
    squares = torch.tensor([0.1, 5.0, 2.0, 0.7, 3.0, 0.2, 1.4, 0.05])
    found = worth(squares, torch.arange(8), 2.0, 3.0).tolist()
    ratio = (2 + float(squares[found].sum())) / (3 + len(found))
    best = max(
        (2 + sum(float(squares[i]) for i in range(8) if bits >> i & 1)) / (3 + bits.bit_count())
        for bits in range(256)
    )
    assert ratio == pytest.approx(best)


def gradients(engine: Engine, t: int, client: int, w: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """The client's model after masked training, and the sum of the dense gradients on the way."""
    total = torch.zeros_like(w)

    def change(g: Tensor) -> Tensor:
        total.add_(g)
        return g * mask

    return train(engine, t, client, w, change=change)[0], total


@networks
@pytest.mark.parametrize("extra", [(), ("method.sparsity=0.5", "method.decrease=0.9")])
def test_reconfiguration(words: tuple[str, ...], extra: tuple[str, ...]) -> None:
    """Two rounds on a mask, then another: squares by plain torch, and the choice by a loop."""
    given = ("method.every=2", "method.start=0.4", "method.halving=3.0", "method.constant=0.7")
    given = (*given, "momentum=0.5", "participation=0.6", "rounds=6")
    engine = Engine(small("method.name=prunefl", *given, *extra, *words))
    method, prunable = engine.settings.method, engine.flat.prunable()
    total = int(prunable.sum())
    w, mask = engine.server.w.clone(), engine.server.mask.clone()
    squares: dict[int, Tensor] = {}
    densities = {float(mask.float().mean())}
    for t, _ in enumerate(play(engine)):
        model, samples = torch.zeros_like(w), 0
        for client in engine.population.sample(t):
            local, g = gradients(engine, t, client, w, mask)
            squares[client] = squares.get(client, torch.zeros_like(w)) + g.square()
            size = len(engine.population.shards[client])
            model, samples = model + size * local, samples + size
        mean = model / samples
        if t % 2 == 0:
            np.testing.assert_allclose(engine.server.w, mean, rtol=1e-3, atol=2e-5)
            assert torch.equal(engine.server.mask, mask)
        else:
            # Of those that took part; the others go on with what they have summed up.
            score = torch.zeros_like(w)
            for client in engine.population.sample(t):
                score += len(engine.population.shards[client]) * squares.pop(client)
            share, wanted = method.decrease * 0.5 ** (t / 3), ~prunable
            for piece in pruning.weights(engine.flat):
                kept = [i for i in range(piece.start, piece.stop) if mask[i]]
                order = sorted(kept, key=lambda i: -abs(float(mean[i])))
                wanted[order[: len(kept) - int(share * len(kept))]] = True
            protected = int((wanted & prunable).sum())
            gain, time = float(score[wanted].sum()), 0.7 * total + protected
            candidates = (prunable & ~wanted).nonzero().squeeze(1).tolist()
            added = greedy(score.tolist(), candidates, gain, time)
            room = max(0, keep_floor(total, 1 - method.sparsity) - protected)
            wanted[sorted(added, key=lambda i: -float(score[i]))[:room]] = True
            # Roundings decide next to the thresholds.
            assert int((engine.server.mask != wanted).sum()) <= 3
            both = wanted & engine.server.mask
            np.testing.assert_allclose(engine.server.w[both], mean[both], rtol=1e-3, atol=2e-5)
            fresh = engine.server.mask & ~mask
            assert (engine.server.w[fresh] == 0).all()
            densities.add(float(engine.server.mask.float().mean()))
        w, mask = engine.server.w.clone(), engine.server.mask.clone()
        assert (w[~mask] == 0).all()
    assert len(densities) > 2, "it adapts the size"


def test_without_a_reconfiguration_it_is_fedavg() -> None:
    found = run(small("method.name=prunefl", "momentum=0.9"))
    wanted = run(small("momentum=0.9"))
    np.testing.assert_allclose(found.model, wanted.model, rtol=1e-4, atol=2e-5)


def test_the_limit_is_kept_where_it_can_be() -> None:
    words = ("method.every=1", "method.sparsity=0.8", "method.decrease=1.0", "rounds=3")
    words += ("method.constant=100.0",)
    engine = Engine(small("method.name=prunefl", *words, "method.halving=1e9"))
    prunable = engine.flat.prunable()
    list(play(engine))
    assert 0 < int(engine.server.mask[prunable].sum()) <= keep_floor(int(prunable.sum()), 1 - 0.8)


def test_squares_and_masks_travel_when_they_are_due() -> None:
    words = ("method.every=2", "method.start=0.5", "rounds=6", "participation=0.4")
    engine = Engine(small("method.name=prunefl", *words))
    d, n = int(engine.flat.prunable().sum()), engine.flat.size
    has: dict[int, int] = {}
    masks = 0
    for t, outcome in enumerate(play(engine)):
        rows = outcome.tables["clients"]
        kept = int(engine.clients.mask.sum()) - (n - d)
        for row in rows:
            values = 4 * (kept + n - d)
            assert row["down_model"] == values
            assert row["up_gradient"] == values + (4 * n if t % 2 else 0)
            assert row["up_mask"] == 0
            is_new = has.get(int(row["client"]), 0) < t // 2
            assert row["down_mask"] == (min(4 * kept, -(-d // 8)) if is_new else 0)
            has[int(row["client"])] = t // 2
            masks += is_new
    assert engine.server.version == 3
    assert masks > 1


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("statistics", ["averaged", "local"])
def test_it_does_not_depend_on_ranks(statistics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "build", smooth)
    words = ("method.every=2", "method.start=0.3", "rounds=6", "participation=0.6")
    settings = small("method.name=prunefl", *words, f"statistics={statistics}", "momentum=0.5")
    found = run(settings, MPI.COMM_WORLD)
    if MPI.COMM_WORLD.rank == 0:
        alone = run(settings)
        assert found.sha256 == alone.sha256
        assert torch.equal(found.engine.server.mask, alone.engine.server.mask)
