"""Methods that train on masks which change on the way."""

import math

import numpy as np
import pytest
from numpy import ndarray

from fedmpi.networks import pruning
from tests.suites.oracles.reference import DEEP, Reference, agree, largest, trajectory


def on_mask(
    reference: Reference, w: ndarray, t: int, client: int, mask: ndarray
) -> tuple[ndarray, ndarray]:
    """A client's model after training on a mask [n], and the sum of the dense gradients."""
    seen = np.zeros_like(w)

    def change(g: ndarray, v: ndarray) -> ndarray:
        nonlocal seen
        seen = seen + g
        return g * mask

    return reference.train(w, t, client, change), seen


def kept(size: ndarray, mask: ndarray, count: int) -> ndarray:
    """Of a layer's mask the part with the largest sizes."""
    return largest(np.where(mask, size, -1.0), count)


def regrown(
    reference: Reference, w: ndarray, g: ndarray, mask: ndarray, counts: list[int], share: float
) -> ndarray:
    """The mask after the smallest weights of each layer made place for the largest gradients."""
    found = mask.copy()
    for part, count in zip(reference.weights(), counts, strict=True):
        stays = min(count, int(mask[part].sum())) - int(share * count)
        keep = kept(np.abs(w[part]), mask[part], stays)
        found[part] = keep | largest(np.where(keep, -1.0, np.abs(g[part])), count - stays)
    return found


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_feddst(momentum: float) -> None:
    """S. Bibikar et al., algorithms 1 and 2; zeros that tie are taken by votes, as documented."""
    sparsity, share, every, end = 0.7, 0.5, 2, 0.9
    words = (f"method.sparsity={sparsity}", f"method.every={every}", f"method.end={end}")
    more = (f"method.share={share}", f"momentum={momentum}", "lr=0.05")
    engine, found = trajectory(*DEEP, "method.name=feddst", *words, *more)
    reference, rounds = Reference(engine), engine.settings.rounds
    counts, layers = pruning.erk(engine.flat, sparsity), reference.weights()
    mask = np.ones(len(reference.start), bool)
    for part, count in zip(layers, counts, strict=True):
        mask[part] = largest(np.abs(reference.start[part]), count)

    def turn(w: ndarray, t: int, shares: dict[int, float]) -> ndarray:
        nonlocal mask
        is_due = t < end * rounds and (t - 1) % every == 0
        part_of = share / 2 * (1 + math.cos(math.pi * t / (end * rounds))) if is_due else 0.0
        total, votes = np.zeros_like(w), np.zeros_like(w)
        for client in shares:
            local, own = on_mask(reference, w * mask, t, client, mask)[0], mask
            if is_due:
                g = reference.gradient(local, reference.batches(t, client)[-1])
                own = regrown(reference, local, g, mask, counts, part_of)
            total += reference.sizes[client] * local * mask * own
            votes += reference.sizes[client] * own
        w = np.where(votes > 0, total / np.maximum(votes, 1), 0)
        if is_due:
            for part, count in zip(layers, counts, strict=True):
                size = np.where(votes[part] > 0, np.abs(w[part]), -1)
                order = np.lexsort((np.arange(len(size)), -votes[part], -size))[:count]
                mask = mask.copy()
                mask[part] = np.isin(np.arange(len(size)), order)
        return w * mask

    agree(found, reference.rounds(turn), reference.start * mask)


def test_dispfl() -> None:
    """R. Dai et al.: means of neighbours by weight, own masks, prune and regrow along a cosine."""
    engine, _ = trajectory(*DEEP, "method.name=dispfl")
    reference, method = Reference(engine), engine.settings.method
    seed, everyone, rounds = engine.settings.seed, range(5), engine.settings.rounds
    counts = pruning.erk(engine.flat, method.sparsity)
    masks = [method.mask(engine.flat, seed, client).numpy() for client in everyone]
    models, sent = [reference.start * mask for mask in masks], list(masks)
    for t in range(rounds):
        before, theirs = list(models), list(sent)
        for client in reference.population.sample(t):
            heard = [*method.neighbours_of(engine.settings, t, client), client]
            votes = sum(theirs[other].astype(float) for other in heard)
            total = sum(before[other] for other in heard)
            start = np.where(votes > 0, total / np.maximum(votes, 1), 0) * masks[client]
            local, _ = on_mask(reference, start, t, client, masks[client])
            models[client], sent[client] = local, masks[client]
            g = reference.gradient(local, reference.batches(t, client)[-1])
            share = method.share / 2 * (1 + math.cos(math.pi * t / rounds))
            masks[client] = regrown(reference, local, g, masks[client], counts, share)
    ours = [engine.clients.models[client][0].double().numpy() for client in everyone]
    agree(ours, models, reference.start * sent[0])


def test_prunefl() -> None:
    """As the main control of jiangyuang/PruneFL, where all weights take the same time."""
    every, decrease, halving, constant = 2, 0.3, 10000.0, 1.0
    words = (f"method.every={every}", f"method.decrease={decrease}", f"method.halving={halving}")
    more = ("method.start=0.0", "method.sparsity=0.0", f"method.constant={constant}")
    engine, found = trajectory(*DEEP, "method.name=prunefl", *words, *more)
    reference = Reference(engine)
    layers = reference.weights()
    prunable = np.zeros(len(reference.start), bool)
    for part in layers:
        prunable[part] = True
    mask = np.ones_like(prunable)
    squares = [np.zeros_like(reference.start) for _ in reference.sizes]
    densities = []

    def turn(w: ndarray, t: int, shares: dict[int, float]) -> ndarray:
        nonlocal mask
        total = np.zeros_like(w)
        for client, share in shares.items():
            local, seen = on_mask(reference, w, t, client, mask)
            squares[client] = squares[client] + seen**2
            total += share * local
        if (t + 1) % every:
            return total
        gains = sum(reference.sizes[client] * squares[client] for client in shares)
        for client in shares:
            squares[client] = np.zeros_like(w)
        new = ~prunable
        for part in layers:
            count = int(mask[part].sum())
            stays = count - int(decrease * 0.5 ** (t / halving) * count)
            new[part] = kept(np.abs(total[part]), mask[part], stays)
        gain = gains[new].sum()
        time = constant * prunable.sum() + (new & prunable).sum()
        candidates = np.flatnonzero(prunable & ~new)
        for place in candidates[np.argsort(-gains[candidates], kind="stable")]:
            if gains[place] <= gain / time:
                break
            new[place], gain, time = True, gain + gains[place], time + 1
        mask = new
        densities.append(mask[prunable].mean())
        return total * mask

    agree(found, reference.rounds(turn), reference.start)
    assert 0.1 < min(densities) < 0.95, "something is pruned"
