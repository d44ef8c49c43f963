"""Corrections of clients' gradients: SCAFFOLD, SPATL, which sends a part of them, and FedDyn."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy import ndarray

from tests.suites.oracles.reference import BASE, DEEP, Reference, agree, largest, trajectory
from tests.suites.oracles.test_averages import briefly, locally


class Controls:
    """c, and the c_k of all clients, as the server and clients of a run should have them.

    Attributes:
        shares: the weight of each client in the mean of all c_k.
        seen: the raw gradients of the last local training, with their rates.
    """

    def __init__(self, reference: Reference, is_equal: bool = False) -> None:
        sizes = np.array(reference.sizes)
        self.reference, zero = reference, np.zeros_like(reference.start)
        self.shares = np.full(len(sizes), 1 / len(sizes)) if is_equal else sizes / sizes.sum()
        self.c, self.own = zero, [zero for _ in sizes]

    def train(self, w: ndarray, t: int, client: int, where: ndarray | bool = True):
        """Training that follows g + c - c_k, and the mean of g, weighted by the steps' rates.

        Args:
            w: the model at which it starts.
            t: the round.
            client: who trains.
            where: what has control variates.
        """
        seen: list[ndarray] = []

        def change(g: ndarray, v: ndarray) -> ndarray:
            seen.append(g)
            return g + np.where(where, self.c - self.own[client], 0)

        local = self.reference.train(w, t, client, change)
        return local, np.average(seen, axis=0, weights=self.reference.rates(t, client))

    def train_apart(self, w: ndarray, t: int, client: int):
        """NIID-Bench's order: each step of the optimizer, then w -= rate (c - c_k); option II."""
        drift, total = self.c - self.own[client], sum(self.reference.rates(t, client))
        local = self.reference.train(w, t, client, after=lambda v, rate: v - rate * drift)
        return local, (w - local) / total - drift

    def move(self, changes: dict[int, ndarray]) -> None:
        """At the end of a round, c_k of its clients, and c by their shares."""
        for client, change in changes.items():
            self.own[client] = self.own[client] + change
            self.c = self.c + self.shares[client] * change

    def check(self, engine) -> None:
        """The run has the same c and c_k, and c is the mean of the c_k."""
        own = [engine.clients.variates.of(k).double().numpy() for k in range(len(self.own))]
        c = engine.server.control.double().numpy()
        largest = max(1.0, np.abs(own).max())
        for ours, theirs in zip([*own, c], [*self.own, self.c], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-5 * largest)
        np.testing.assert_allclose(c, self.shares @ np.array(own), rtol=0, atol=1e-5 * largest)
        assert np.abs(own).max() > 1e-3


def scaffold(reference: Reference, controls: Controls, train: Callable) -> list[ndarray]:
    """The server's models; weights of models are the shares of c_k, among the round's clients."""

    def turn(w: ndarray, t: int, shares: dict[int, float]) -> ndarray:
        weights = controls.shares[list(shares)] / controls.shares[list(shares)].sum()
        found = {client: train(w, t, client) for client in shares}
        controls.move({k: mean - controls.own[k] for k, (_, mean) in found.items()})
        return sum(p * found[k][0] for k, p in zip(shares, weights, strict=True))

    return reference.rounds(turn)


@locally
def test_scaffold(local: tuple[str, ...]) -> None:
    """c_k is the mean of the raw gradients, whatever the optimizer makes of them."""
    engine, found = trajectory(*BASE, "method.name=scaffold", "lr=0.05", *local)
    reference = Reference(engine)
    controls = Controls(reference)
    agree(found, scaffold(reference, controls, controls.train), reference.start, within=5e-5)
    controls.check(engine)


@briefly
def test_scaffold_with_equal_weights(local: tuple[str, ...]) -> None:
    """As in the paper: c moves by the sum of changes over the number of all clients."""
    words = ("method.name=scaffold", "aggregation.weights=equal", "lr=0.05")
    engine, found = trajectory(*BASE, *words, *local)
    reference = Reference(engine)
    controls = Controls(reference, is_equal=True)
    agree(found, scaffold(reference, controls, controls.train), reference.start, within=5e-5)
    controls.check(engine)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_scaffold_is_option_two_for_plain_sgd_and_not_with_momentum(momentum: float) -> None:
    """The paper's c_k - c + (w - w_k) / (sum of rates), with the correction in the gradient."""
    words = ("method.name=scaffold", f"momentum={momentum}", "lr=0.01")
    engine, found = trajectory(*BASE, *words)
    reference = Reference(engine)
    controls = Controls(reference)

    def train(w: ndarray, t: int, client: int) -> tuple[ndarray, ndarray]:
        local, _ = controls.train(w, t, client)
        total = sum(reference.rates(t, client))
        return local, (w - local) / total - (controls.c - controls.own[client])

    wanted = scaffold(reference, controls, train)
    if momentum:
        assert np.abs(found[-1] - wanted[-1]).max() > 0.1
    else:
        agree(found, wanted, reference.start)


@briefly
def test_scaffold_in_the_order_of_niid_bench(local: tuple[str, ...]) -> None:
    engine, found = trajectory(
        *BASE,
        "method.name=scaffold",
        "control=niid",
        "aggregation.weights=equal",
        "lr=0.05",
        *local,
    )
    reference = Reference(engine)
    controls = Controls(reference, is_equal=True)
    agree(found, scaffold(reference, controls, controls.train_apart), reference.start, within=5e-5)
    controls.check(engine)


SPATL = {
    "plain": ("momentum=0.0",),
    "momentum": ("momentum=0.9",),
    "weights": ("method.salience=weight", "momentum=0.9"),
    "whole encoder": ("method.sparsity=0.0",),
    "no control": ("control=none", "momentum=0.9"),
    "shared predictor": ("method.predictor=shared", "momentum=0.9"),
    "all off": ("control=none", "method.predictor=shared", "method.sparsity=0.0"),
}
"""SPATL with its parts, and with some of them off."""


@pytest.mark.parametrize("down", ["changes", "dense"])
@pytest.mark.parametrize("case", SPATL)
def test_spatl(case: str, down: str) -> None:
    """By index: values and c_k move where they are sent, and nowhere else.

    A channel of the encoder is a row of a weight with its bias. Half of each layer's are sent:
    those with the largest norms of the row's update, or of the row. A shared predictor is always
    sent.
    """
    words = ("method.name=spatl", "method.selection=uniform", "method.sparsity=0.5")
    engine, found = trajectory(*DEEP, *words, f"method.down={down}", "lr=0.02", *SPATL[case])
    reference = Reference(engine)
    controls, own = Controls(reference), dict[int, ndarray]()
    encoder = np.arange(len(reference.start)) < reference.weights()[-1].start
    shared = encoder | ("shared" in case or "all" in case)
    has_control = engine.settings.control != "none"
    share = 1 - engine.settings.method.sparsity

    def channels(w: ndarray) -> ndarray:
        """What the largest rows of each layer of the encoder own, and all behind: bool [n]."""
        mask = np.where(encoder, False, shared)
        parts, marks = reference.parts(w), reference.parts(mask)
        for layer in range(0, len(parts) - 2, 2):
            norms = np.linalg.norm(parts[layer], axis=1)
            some = largest(norms, round(len(norms) * share))
            marks[layer][some] = marks[layer + 1][some] = True
        return mask

    def turn(w: ndarray, t: int, shares: dict[int, float]) -> ndarray:
        total, votes, changes = np.zeros_like(w), np.zeros_like(w), {}
        for client in shares:
            start = np.where(shared, w, own.get(client, reference.start))
            local, mean = controls.train(start, t, client, shared)
            sent = channels(local if "weights" in case else local - start)
            changes[client] = (mean - controls.own[client]) * sent * has_control
            total += reference.sizes[client] * local * sent
            votes += reference.sizes[client] * sent
            own[client] = local
        controls.move(changes)
        return np.where(votes > 0, total / np.maximum(votes, 1), w)

    agree(found, reference.rounds(turn), reference.start, within=5e-5)
    if has_control:
        controls.check(engine)


@briefly
@pytest.mark.parametrize("weights", ["equal", "samples"])
def test_feddyn(weights: str, local: tuple[str, ...]) -> None:
    """Algorithm 1 with the server's h; by samples each client has an alpha of its own."""
    alpha = 0.3
    words = ("method.name=feddyn", f"method.alpha={alpha}", f"aggregation.weights={weights}")
    engine, found = trajectory(*BASE, *words, *local)
    reference, count = Reference(engine), 5
    sizes = np.array(reference.sizes)
    strengths = alpha * sizes.mean() / sizes if weights == "samples" else np.full(count, alpha)
    slopes = [np.zeros_like(reference.start) for _ in range(count)]
    scaled = np.zeros_like(reference.start)  # h / alpha, where all alphas are one

    def turn(w: ndarray, t: int, shares: dict[int, float]) -> ndarray:
        nonlocal scaled
        models = []
        for client in shares:

            def change(
                g: ndarray, v: ndarray, a: float = strengths[client], h: ndarray = slopes[client]
            ) -> ndarray:
                return g - h + a * (v - w)

            models.append(reference.train(w, t, client, change))
            slopes[client] = slopes[client] - strengths[client] * (models[-1] - w)
        scaled = scaled - sum(model - w for model in models) / count
        return sum(models) / len(models) - scaled

    agree(found, reference.rounds(turn), reference.start, within=5e-5)
    for client in range(count):
        ours = engine.clients.pull(client).double().numpy()
        np.testing.assert_allclose(ours, slopes[client], rtol=1e-3, atol=1e-4)
