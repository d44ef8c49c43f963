"""FedAvg and methods that move the server's model by other means of the same updates."""

import numpy as np
import pytest
from numpy import ndarray

from tests.suites.oracles.reference import BASE, DEEP, Reference, agree, trajectory

Shares = dict[int, float]
"""Of the round's clients the shares of the samples."""

LOCAL = {
    "plain": (),
    "momentum": ("momentum=0.9", "lr=0.02"),
    "adam": ("optimizer=adam", "lr=0.003"),
    "clip": ("clip=0.5",),
    "decay": ("weight_decay=0.05", "lr_decay=0.8"),
    "steps": ("schedule=steps", "lr_steps=[2,4]", "lr_decay=0.3"),
    "cosine": ("schedule=cosine", "lr_min=0.01"),
    "restarts": ("schedule=restarts", "lr_min=0.01", "momentum=0.5"),
    "unequal": ("epochs_to=5", "momentum=0.5"),
    "all": ("clip=0.5", "momentum=0.9", "weight_decay=0.01", "schedule=restarts", "lr=0.02"),
}
"""Settings of local steps."""

locally = pytest.mark.parametrize("local", LOCAL.values(), ids=LOCAL)
FEW = ("momentum", "unequal", "all")
briefly = pytest.mark.parametrize("local", [LOCAL[name] for name in FEW], ids=FEW)


def trained(
    reference: Reference, w: ndarray, t: int, shares: Shares, mu: float = 0.0
) -> dict[int, ndarray]:
    """The clients' models, with mu / 2 * ||v - w||^2 in the local loss."""
    pull = lambda g, v: g + mu * (v - w)  # noqa: E731
    return {client: reference.train(w, t, client, pull) for client in shares}


def mean(reference: Reference, w: ndarray, t: int, shares: Shares, mu: float = 0.0) -> ndarray:
    """FedAvg's next model."""
    models = trained(reference, w, t, shares, mu)
    return sum(share * models[client] for client, share in shares.items())


@locally
def test_fedavg(local: tuple[str, ...]) -> None:
    engine, found = trajectory(*DEEP, "lr=0.05", *local)
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


@pytest.mark.parametrize("name", ["method.name=fedprox", "method.name=fedavg"])
@pytest.mark.parametrize("work", [(), ("epochs_to=8",)], ids=["equal", "unequal"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fedprox(name: str, momentum: float, work: tuple[str, ...]) -> None:
    """As in NIID-Bench: the term is in the loss, and so passes through the momentum.

    The paper's own setting is that of clients with unequal numbers of epochs.
    """
    words = (name, "proximal=0.5", f"momentum={momentum}", "lr=0.05", *work)
    engine, found = trajectory(*BASE, *words)
    reference = Reference(engine)
    wanted = reference.rounds(lambda w, t, shares: mean(reference, w, t, shares, 0.5))
    agree(found, wanted, reference.start)


@pytest.mark.parametrize("work", [(), ("epochs_to=8",)], ids=["equal", "unequal"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fednova(momentum: float, work: tuple[str, ...]) -> None:
    """As in JYWa/FedNova: a counter of the velocity's length is added up, step by step.

    The paper's own setting is that of clients whose numbers of epochs are drawn.
    """
    words = (*work, "method.name=fednova", f"momentum={momentum}", "lr=0.02")
    engine, found = trajectory(*BASE, *words)
    reference = Reference(engine)

    def turn(w: ndarray, t: int, shares: Shares) -> ndarray:
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
    fedavg = reference.rounds(lambda w, t, shares: mean(reference, w, t, shares))
    assert np.abs(found[-1] - fedavg[-1]).max() > 0.01


@pytest.mark.parametrize("rule", ["adam", "yogi", "adagrad", "momentum"])
def test_fedopt(rule: str) -> None:
    """S. J. Reddi et al., algorithm 2, with the authors' values; FedAvgM for momentum."""
    rate = 1.0 if rule == "momentum" else 0.1
    beta1, beta2, tau = 0.0 if rule == "adagrad" else 0.9, 0.99, 1e-3
    engine, found = trajectory(*BASE, "method.name=fedopt", f"aggregation.server={rule}")
    reference = Reference(engine)
    first, second = np.zeros_like(reference.start), np.full_like(reference.start, tau**2)

    def turn(w: ndarray, t: int, shares: Shares) -> ndarray:
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


def test_fedexp() -> None:
    """D. Jhunjhunwala et al., algorithm 1, by samples."""
    words = ("aggregation.server=fedexp", "epochs=5", "lr=0.2")
    engine, found = trajectory(*BASE, *words)
    reference, faster = Reference(engine), []

    def turn(w: ndarray, t: int, shares: Shares) -> ndarray:
        updates = {k: v - w for k, v in trained(reference, w, t, shares).items()}
        delta = sum(share * updates[client] for client, share in shares.items())
        squares = sum(share * updates[client] @ updates[client] for client, share in shares.items())
        faster.append(max(1.0, squares / (2 * (delta @ delta + 1e-3))))
        return w + faster[-1] * delta

    agree(found, reference.rounds(turn), reference.start)
    assert max(faster) > 1
