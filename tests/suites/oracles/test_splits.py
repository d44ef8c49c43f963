"""Split methods: what goes back and forth at a cut is what training in one place computes."""

import numpy as np
import pytest
from numpy import ndarray

from tests.suites.oracles.reference import DEEP, Reference, agree, trajectory


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_splitfed_v1(momentum: float) -> None:
    """A back for each client: FedAvg."""
    engine, found = trajectory(*DEEP, "method.name=splitfed", f"momentum={momentum}", "lr=0.05")
    reference = Reference(engine)

    def turn(w: ndarray, t: int, shares: dict[int, float]) -> ndarray:
        return sum(share * reference.train(w, t, client) for client, share in shares.items())

    agree(found, reference.rounds(turn), reference.start)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_splitfed_v2(momentum: float) -> None:
    """One back learns from one client's batch after the other, in an order that is drawn."""
    words = ("method.name=splitfed", "method.version=v2", f"momentum={momentum}", "lr=0.01")
    engine, found = trajectory(*DEEP, *words)
    reference, rate = Reference(engine), engine.settings.lr
    front = np.zeros(len(reference.start), bool)
    front[: reference.weights()[1].start] = True

    def turn(w: ndarray, t: int, shares: dict[int, float]) -> ndarray:
        order = [k for half in engine.placement.halves(t, tuple(shares)) for k in half]
        fronts = dict.fromkeys(order, w)
        batches = {client: reference.batches(t, client) for client in order}
        velocity = {client: np.zeros_like(w) for client in order}
        back, pace = w, np.zeros_like(w)
        for step in range(max(map(len, batches.values()))):
            for client in order:
                if step >= len(batches[client]):
                    continue
                whole = np.where(front, fronts[client], back)
                g = reference.gradient(whole, batches[client][step])
                velocity[client] = momentum * velocity[client] + g
                pace = momentum * pace + g
                fronts[client] = fronts[client] - rate * velocity[client]
                back = back - rate * pace
        mean = sum(share * fronts[client] for client, share in shares.items())
        return np.where(front, mean, back)

    agree(found, reference.rounds(turn), reference.start)


def test_splitlearning() -> None:
    """One client after the other goes on where the last one ended, in an order that is drawn."""
    engine, found = trajectory(*DEEP, "method.name=splitlearning", "lr=0.05")
    reference = Reference(engine)

    def turn(w: ndarray, t: int, shares: dict[int, float]) -> ndarray:
        order = [client for wave in engine.placement.waves(t) for client in wave.clients]
        assert sorted(order) == list(shares)
        for client in order:
            w = reference.train(w, t, client)
        return w

    agree(found, reference.rounds(turn), reference.start)
