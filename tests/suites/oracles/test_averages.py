"""FedAvg and methods that move the server's model by other means of the same updates."""

import numpy as np
import pytest
from numpy import ndarray

from tests.suites.oracles.reference import BASE, DEEP, Reference, agree, trajectory


def mean(reference: Reference, w: ndarray, t: int, shares: dict[int, float], mu: float = 0.0):
    """FedAvg's next model, by samples; with mu / 2 * ||v - w||^2 in the local loss."""
    return sum(
        share * reference.train(w, t, client, lambda g, v: g + mu * (v - w))
        for client, share in shares.items()
    )


@pytest.mark.parametrize("base", [BASE, DEEP], ids=["regression", "perceptron"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fedavg(base: tuple[str, ...], momentum: float) -> None:
    engine, found = trajectory(*base, f"momentum={momentum}", "lr=0.05")
    reference = Reference(engine)
    wanted = reference.rounds(lambda w, t, shares: mean(reference, w, t, shares))
    agree(found, wanted, reference.start)


def test_fedavg_with_equal_weights() -> None:
    engine, found = trajectory(*BASE, "aggregation.weights=equal")
    reference = Reference(engine)
    wanted = reference.rounds(
        lambda w, t, shares: mean(reference, w, t, dict.fromkeys(shares, 1 / len(shares)))
    )
    agree(found, wanted, reference.start)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fedprox(momentum: float) -> None:
    """As in NIID-Bench: the term is in the loss, and so passes through the momentum."""
    words = ("method.name=fedprox", "method.mu=0.5", f"momentum={momentum}", "lr=0.05")
    engine, found = trajectory(*BASE, *words)
    reference = Reference(engine)
    agree(
        found,
        reference.rounds(lambda w, t, shares: mean(reference, w, t, shares, 0.5)),
        reference.start,
    )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fednova(momentum: float) -> None:
    """As in JYWa/FedNova: a counter of the velocity's length is added up, step by step."""
    words = ("method.name=fednova", f"momentum={momentum}", "lr=0.02")
    engine, found = trajectory(*BASE, *words)
    reference = Reference(engine)

    def turn(w: ndarray, t: int, shares: dict[int, float]) -> ndarray:
        direction, effective = np.zeros_like(w), 0.0
        for client, share in shares.items():
            counter = steps = 0.0
            for _ in reference.batches(t, client):
                counter = counter * momentum + 1
                steps += counter
            direction += share * (w - reference.train(w, t, client)) / steps
            effective += share * steps
        return w - effective * direction

    agree(found, reference.rounds(turn), reference.start)


@pytest.mark.parametrize("rule", ["adam", "yogi", "adagrad", "momentum"])
def test_fedopt(rule: str) -> None:
    """S. J. Reddi et al., algorithm 2; FedAvgM for momentum."""
    rate, beta1, beta2, tau = 0.1, 0.9, 0.99, 1e-3
    words = (f"method.rule={rule}", f"method.lr={rate}", f"method.beta1={beta1}")
    engine, found = trajectory(*BASE, "method.name=fedopt", *words)
    reference = Reference(engine)
    first, second = np.zeros_like(reference.start), np.full_like(reference.start, tau**2)

    def turn(w: ndarray, t: int, shares: dict[int, float]) -> ndarray:
        nonlocal first, second
        delta = mean(reference, w, t, shares) - w
        if rule == "momentum":
            first = beta1 * first + delta
            return w + rate * first
        first = beta1 * first + (1 - beta1) * delta
        if rule == "adagrad":
            second = second + delta**2
        elif rule == "adam":
            second = beta2 * second + (1 - beta2) * delta**2
        else:
            second = second - (1 - beta2) * delta**2 * np.sign(second - delta**2)
        return w + rate * first / (np.sqrt(second) + tau)

    agree(found, reference.rounds(turn), reference.start)
