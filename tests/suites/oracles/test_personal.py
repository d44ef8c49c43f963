"""Methods whose clients keep a model, or a part of it, for themselves."""

import numpy as np
import pytest
from numpy import ndarray

from tests.suites.oracles.reference import BASE, DEEP, Reference, agree, trajectory


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_ditto(momentum: float) -> None:
    """T. Li et al., algorithm 1; both models take their steps on the same batches."""
    pull = 0.7
    words = ("method.name=ditto", f"method.pull={pull}", f"momentum={momentum}", "lr=0.05")
    engine, found = trajectory(*BASE, *words)
    reference, own = Reference(engine), dict[int, ndarray]()

    def turn(w: ndarray, t: int, shares: dict[int, float]) -> ndarray:
        for client in shares:
            start = own.get(client, reference.start)
            own[client] = reference.train(start, t, client, lambda g, v: g + pull * (v - w))
        return sum(share * reference.train(w, t, client) for client, share in shares.items())

    agree(found, reference.rounds(turn), reference.start)
    ours = [engine.clients.models[client].double().numpy() for client in own]
    agree(ours, list(own.values()), reference.start)


@pytest.mark.parametrize("head", [None, 0.5], ids=["fedper", "fedrep"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fedper_and_fedrep(head: float | None, momentum: float) -> None:
    """The last layer stays: trained with the others, or first, and then the others alone.

    The part that a step does not train rests: it follows no momentum, either.
    """
    words = ("method.name=fedper",)
    if head is not None:
        words = ("method.name=fedrep", f"method.head={head}")
    engine, found = trajectory(*DEEP, *words, f"momentum={momentum}", "lr=0.05")
    reference, rate = Reference(engine), engine.settings.lr
    private = np.zeros(len(reference.start), bool)
    private[reference.weights()[-1].start :] = True
    own: dict[int, ndarray] = {}

    def turn(w: ndarray, t: int, shares: dict[int, float]) -> ndarray:
        total = np.zeros_like(w)
        for client, share in shares.items():
            local = np.where(private, own.get(client, reference.start), w)
            batches, velocity = reference.batches(t, client), np.zeros_like(w)
            for step, some in enumerate(batches):
                moving = np.ones_like(private)
                if head is not None:
                    moving = private if step < round(head * len(batches)) else ~private
                g = reference.gradient(local, some)
                velocity = np.where(moving, momentum * velocity + g, velocity)
                local = np.where(moving, local - rate * velocity, local)
            own[client] = local
            total += share * local
        return np.where(private, w, total)

    agree(found, reference.rounds(turn), reference.start)
