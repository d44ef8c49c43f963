"""Masks that follow from the seed: for all clients the same, or one for each."""

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor

from fedmpi.engine import Engine
from fedmpi.networks import pruning
from tests.plain import CNN, EVERYTHING, average, play, train
from tests.small import run, small

MASKS = ["random", "layerwise", "magnitude"]
networks = pytest.mark.parametrize("words", [(), CNN], ids=["mlp", "cnn"])
every_mask = pytest.mark.parametrize("mask", MASKS)


def engine_of(mask: str, *words: str, sparsity: float = 0.6) -> Engine:
    """An engine that has not begun."""
    name = "clientmask" if mask == "clientwise" else "staticmask"
    own = () if mask == "clientwise" else (f"method.mask={mask}",)
    return Engine(small(f"method.name={name}", f"method.sparsity={sparsity}", *own, *words))


def counts(engine: Engine, mask: Tensor) -> list[int]:
    """Weights that a mask keeps in each layer."""
    return [int(piece.of(mask).sum()) for piece in pruning.weights(engine.flat)]


@networks
@every_mask
def test_the_mask_keeps_what_it_says(mask: str, words: tuple[str, ...]) -> None:
    engine = engine_of(mask, *words)
    found, prunable = engine.server.mask, engine.server.prunable
    assert torch.equal(found, engine.clients.mask), "both halves draw the same"
    assert found[~prunable].all()
    sizes = [piece.stop - piece.start for piece in pruning.weights(engine.flat)]
    if mask == "layerwise":
        assert counts(engine, found) == [int(round(0.4 * size, 6)) for size in sizes]
    else:
        assert sum(counts(engine, found)) == int(round(0.4 * sum(sizes), 6))
    if mask == "magnitude":
        values = engine.flat.initial[prunable].abs()
        assert values[found[prunable]].min() >= values[~found[prunable]].max()
    else:
        other = engine_of(mask, *words, "seed=2").server.mask
        assert not torch.equal(found, other)


@networks
@every_mask
def test_rounds_are_fedavg_on_the_mask(mask: str, words: tuple[str, ...]) -> None:
    engine = engine_of(mask, *words, *EVERYTHING, "participation=0.6", "rounds=3")
    kept = engine.server.mask
    w = engine.flat.initial * kept
    assert torch.equal(engine.server.w, w)
    for t, _ in enumerate(play(engine)):
        w = average(engine, t, w, change=lambda g: g * kept)
        np.testing.assert_allclose(engine.server.w, w, rtol=1e-4, atol=2e-5)
        assert (engine.server.w[~kept] == 0).all()
        w = engine.server.w.clone()


@every_mask
def test_only_values_travel(mask: str) -> None:
    found = run(small("method.name=staticmask", f"method.mask={mask}", "method.sparsity=0.9"))
    rows, active = found.tables["clients"], int(found.engine.server.mask.sum())
    for column in ("up_gradient", "down_model"):
        assert set(rows[column].tolist()) == {4 * active}
    assert not rows["up_mask"].any() and not rows["down_mask"].any()


def test_without_sparsity_it_is_fedavg() -> None:
    for name in ("staticmask", "clientmask"):
        found = run(small(f"method.name={name}", "method.sparsity=0.0", *EVERYTHING))
        np.testing.assert_allclose(found.model, run(small(*EVERYTHING)).model, rtol=1e-4, atol=2e-5)


# ---- clientmask


def masks(engine: Engine) -> list[Tensor]:
    """Each client's mask."""
    method, seed = engine.settings.method, engine.settings.seed
    return [method.mask(engine.flat, seed, c) for c in range(engine.settings.clients)]


def test_each_client_has_a_mask_of_its_own_density() -> None:
    engine = engine_of("clientwise")
    found = masks(engine)
    wanted = pruning.uniform(engine.flat, 0.6)
    assert all(counts(engine, mask) == wanted for mask in found)
    apart = torch.stack(found)[:, engine.flat.prunable()].float()
    assert ((apart - apart[0]).abs().sum(1)[1:] > 0).all()
    assert abs(float(apart.mean()) - 0.4) < 0.02


@networks
def test_clients_prune_by_their_own_masks_and_zeros_are_averaged(words: tuple[str, ...]) -> None:
    """By plain torch: the mean over all of the round's clients, whoever has the weight."""
    engine = engine_of("clientwise", *words, *EVERYTHING, "participation=0.6", "rounds=3")
    own, w = masks(engine), engine.flat.initial.clone()
    for t, _ in enumerate(play(engine)):
        total, samples = torch.zeros_like(w), 0
        for client in engine.population.sample(t):
            kept = own[client]
            local, _ = train(engine, t, client, w * kept, change=lambda g, kept=kept: g * kept)
            size = len(engine.population.shards[client])
            total, samples = total + size * local * kept, samples + size
        np.testing.assert_allclose(engine.server.w, total / samples, rtol=1e-3, atol=2e-5)
        nobody = ~torch.stack([own[c] for c in engine.population.sample(t)]).any(0)
        assert nobody.any() and (engine.server.w[nobody] == 0).all()
        w = engine.server.w.clone()


@pytest.mark.parallel([1, 2, 3])
def test_masks_are_the_same_on_all_ranks() -> None:
    engine = engine_of("layerwise")
    mine = engine.clients.mask.numpy().astype(np.uint8)
    theirs = MPI.COMM_WORLD.allgather(mine.tobytes())
    assert len(set(theirs)) == 1
