"""Methods whose clients train some of the channels: means over those who have a value."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from numpy import ndarray

from tests.suites.oracles.reference import DEEP, Parts, Reference, agree, trajectory

Choose = Callable[[int, int, int], ndarray]
"""Of so many units those that a client has, if it has so many, in a round."""

RATES = "method.rates=[1.0,0.5,0.25]"


def first(units: int, count: int, t: int) -> ndarray:
    """HeteroFL: the first ones."""
    return np.arange(count)


def rolling(units: int, count: int, t: int) -> ndarray:
    """FedRolex, section 3: from unit t on, and behind the last one from the first on again."""
    return np.array([unit for unit in range(units) if (unit - t) % units < count])


def rounds(
    reference: Reference, rates: list[float], choose: Choose, is_masked: bool, is_equal: bool
) -> list[ndarray]:
    """The server's models: a value is the mean of those who have it, or stays."""
    settings, widths = reference.settings, reference.widths
    w, found = reference.start, []
    for t in range(settings.rounds):
        total, weights = np.zeros_like(w), np.zeros_like(w)
        sums, counts = reference.parts(total), reference.parts(weights)
        for client in reference.population.sample(t):
            kept = [np.arange(widths[0])]
            for units in widths[1:-1]:
                kept.append(choose(units, math.ceil(round(rates[client] * units, 9)), t))
            kept.append(np.arange(widths[-1]))
            index = []
            for inputs, outputs in pairwise(kept):
                index += [np.ix_(outputs, inputs), (outputs,)]
            shard = reference.population.shards[client]
            classes = np.unique(reference.y[shard]) if is_masked else None
            local: Parts = [
                part[where] for part, where in zip(reference.parts(w), index, strict=True)
            ]
            for some in reference.batches(t, client):
                slope = reference.slope(local, some, classes)
                local = [p - settings.lr * g for p, g in zip(local, slope, strict=True)]
            if classes is not None:
                index[-2:] = [np.ix_(classes, kept[-2]), (classes,)]
                local[-2:] = [part[classes] for part in local[-2:]]
            weight = 1 if is_equal else reference.sizes[client]
            for part, where, value in zip(sums, index, local, strict=True):
                part[where] += weight * value
            for part, where in zip(counts, index, strict=True):
                part[where] += weight
        w = np.where(weights > 0, total / np.maximum(weights, 1), w)
        found.append(w)
    return found


@pytest.mark.parametrize("is_masked", [True, False], ids=["masked", "unmasked"])
@pytest.mark.parametrize("weights", ["equal", "samples"])
def test_heterofl(is_masked: bool, weights: str) -> None:
    words = ("method.name=heterofl", RATES, f"method.masked={str(is_masked).lower()}")
    engine, found = trajectory(*DEEP, *words, f"aggregation.weights={weights}")
    reference = Reference(engine)
    rates = [engine.clients.widths.rate(0, client) for client in range(5)]
    assert len(set(rates)) == 3
    wanted = rounds(reference, rates, first, is_masked, weights == "equal")
    agree(found, wanted, reference.start)


def test_fedrolex() -> None:
    """By the paper's window, which rolls the other way than the code's."""
    words = ("method.name=fedrolex", RATES, "aggregation.weights=equal")
    engine, found = trajectory(*DEEP, *words)
    reference = Reference(engine)
    rates = [engine.clients.widths.rate(0, client) for client in range(5)]
    agree(found, rounds(reference, rates, rolling, True, True), reference.start)
