"""Split methods: what goes back and forth at a cut is what training in one place computes."""

from math import ceil

import numpy as np
import pytest
from numpy import ndarray

from tests.suites.oracles.reference import DEEP, Reference, agree, joined, trajectory


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


def by_magnitude(g: ndarray, sparsity: float, bits: int) -> ndarray:
    """The largest values of a batch's gradient as one tensor, by sign and coded magnitude."""
    flat, found = g.ravel(), np.zeros(g.size)
    count = max(1, ceil(round((1 - sparsity) * g.size, 6)))
    kept = np.argsort(-np.abs(flat), kind="stable")[:count]
    sizes = np.abs(flat[kept])
    if bits < 32 and sizes.max() > sizes.min():
        step = (sizes.max() - sizes.min()) / (2 ** (bits - 1) - 1)
        sizes = sizes.min() + step * np.round((sizes - sizes.min()) / step)
    found[kept] = np.sign(flat[kept]) * sizes
    return found.reshape(g.shape)


class Cut(Reference):
    """A front of one layer, trained by compressed gradients at the cut, with or without residuals.

    Attributes:
        rests: what was not sent of each sample's gradient of its own loss.
    """

    rests: dict[int, ndarray]
    is_on: bool

    def gradient(self, w: ndarray, some: ndarray) -> ndarray:
        """Of the whole model: the back's by true gradients, the front's by what was sent."""
        method, parts = self.settings.method, self.parts(w)
        front, bias, *back = parts
        x, kept = self.x[some], self.x
        inputs = np.maximum(x @ front.T + bias, 0)
        self.x = np.zeros((len(kept), inputs.shape[1]))
        self.x[some] = inputs
        behind = self.slope(back, some)
        self.x = kept
        # What the inputs of the back have: all of its layers' gradients by the chain rule.
        (w1, b1), (w2, b2) = back[:2], back[2:]
        hidden = np.maximum(inputs @ w1.T + b1, 0)
        logits = hidden @ w2.T + b2
        odds = np.exp(logits - logits.max(1, keepdims=True))
        odds /= odds.sum(1, keepdims=True)
        error = (odds - np.eye(len(w2))[self.y[some]]) / len(some)
        g = ((error @ w2) * (hidden > 0)) @ w1
        if self.is_on:
            g = g + np.stack([self.rests.get(i, np.zeros(g.shape[1])) for i in some]) / len(some)
        sent = by_magnitude(g, method.sparsity, method.bits)
        if self.is_on:
            self.rests |= dict(zip(some.tolist(), (g - sent) * len(some), strict=True))
        sent = sent * (inputs > 0)
        return joined([sent.T @ x, sent.sum(0), *behind])


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("bits", [8, 32])
def test_sgcfl_at_the_cut(bits: int, feedback: bool) -> None:
    """Residuals of samples' gradients last over epochs and rounds, and of batches of all sizes."""
    words = ("method.name=sgcfl", f"method.bits={bits}", "method.model_gradient=false", "lr=0.05")
    words += ("method.sparsity=0.7", "method.weight_rule=fedavg")
    words += ("method.codes=magnitude",) * (bits < 32) + ("method.cut_feedback=true",) * feedback
    engine, found = trajectory(*DEEP, *words, "participation=1.0")
    reference = Cut(engine)
    reference.rests, reference.is_on = {}, feedback

    def turn(w: ndarray, t: int, shares: dict[int, float]) -> ndarray:
        return sum(share * reference.train(w, t, client) for client, share in shares.items())

    # Where rounding decides between codes or places, single values differ.
    agree(found, reference.rounds(turn), reference.start, within=2e-5 if bits == 32 else 2e-3)
    if feedback:
        store = engine.server.residuals.store
        assert store.keys() == reference.rests.keys()
        ours = np.stack([store[i].double().numpy() for i in sorted(store)])
        theirs = np.stack([reference.rests[i] for i in sorted(store)])
        assert np.quantile(np.abs(ours - theirs), 0.99) < 1e-3 * np.abs(theirs).max()
