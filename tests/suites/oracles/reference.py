"""What all references share: a perceptron with its gradients, local training, and comparison."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy import ndarray

from fedmpi.engine import Engine
from tests.plain import play
from tests.small import small

BASE = (
    *("data.name=digits", "partition.name=dirichlet", "partition.alpha=0.3", "model.hidden=[]"),
    *("rounds=4", "clients=5", "participation=0.6", "epochs=2", "evaluate.every=4"),
)
"""Softmax regression on digits; unequal shards, and three of five clients in a round."""
DEEP = (*BASE, "model.hidden=[12,8]")
"""The same with two hidden layers of ReLU."""

Change = Callable[[ndarray, ndarray], ndarray]
"""Makes the gradient that is followed of one [n] at a model [n]."""
Parts = list[ndarray]
"""A network: weight [outputs, inputs] and bias [outputs] of each layer."""


def trajectory(*words: str) -> tuple[Engine, list[ndarray]]:
    """The engine after a run, and the server's model [n] after each round."""
    engine, models = Engine(small(*words)), []
    for _ in play(engine):
        models.append(engine.server.w.double().numpy().copy())
    return engine, models


def agree(
    ours: Sequence[ndarray], theirs: Sequence[ndarray], start: ndarray, within: float = 2e-5
) -> None:
    """Models equal those of a reference, but for rounding, and have left the start [n].

    Args:
        ours: of the package, each [n].
        theirs: of the reference, each [n].
        start: the model that training began with.
        within: largest difference, where models move by 1 or less.
    """
    moved = max(np.abs(one - start).max() for one in ours)
    apart = [np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)]
    assert moved > 1e-3
    assert max(apart) <= within * max(1.0, moved), apart


class Reference:
    """The data, the clients, and a perceptron with ReLU between its layers.

    Attributes:
        settings: of the run.
        population: knows who takes part.
        widths: units of the network's layers, from the inputs to the classes.
        sizes: samples of each client.
        start: the initial model, [n]: weight and bias of one layer after the other.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.settings = engine, engine.settings
        self.population, feed = engine.population, engine.trainer.feed
        self.x = feed.x.reshape(len(feed.x), -1).double().numpy()
        self.y = feed.y.numpy()
        self.widths = [self.x.shape[1], *self.settings.model.hidden, feed.classes]
        self.sizes = [len(shard) for shard in self.population.shards]
        self.start = engine.flat.initial.double().numpy().copy()

    def parts(self, w: ndarray) -> Parts:
        """The network in a model [n]: views of it."""
        found, place = [], 0
        for inputs, outputs in pairwise(self.widths):
            for shape in ((outputs, inputs), (outputs,)):
                size = int(np.prod(shape))
                found.append(w[place : place + size].reshape(shape))
                place += size
        assert place == len(w)
        return found

    def weights(self) -> list[slice]:
        """Where the weight of each layer lies in a model."""
        ends = np.cumsum([part.size for part in self.parts(self.start)])
        return [
            slice(int(end) - part.size, int(end))
            for end, part in zip(ends, self.parts(self.start), strict=True)
            if part.ndim > 1
        ]

    def slope(self, parts: Parts, some: ndarray, classes: ndarray | None = None) -> Parts:
        """The gradient of the mean cross-entropy over some samples.

        Args:
            parts: the network, of any width.
            some: positions of the samples.
            classes: the only ones whose logits are not set to zero.
        """
        weights, biases = parts[::2], parts[1::2]
        inputs = [self.x[some]]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            inputs.append(np.maximum(inputs[-1] @ weight.T + bias, 0))
        logits = inputs[-1] @ weights[-1].T + biases[-1]
        absent = np.ones(logits.shape[1], bool)
        absent[slice(None) if classes is None else classes] = False
        logits[:, absent] = 0
        error = np.exp(logits - logits.max(1, keepdims=True))
        error /= error.sum(1, keepdims=True)
        error[np.arange(len(some)), self.y[some]] -= 1
        error /= len(some)
        error[:, absent] = 0
        found: Parts = []
        for layer in reversed(range(len(weights))):
            found = [error.T @ inputs[layer], error.sum(0), *found]
            error = (error @ weights[layer]) * (inputs[layer] > 0)
        return found

    def gradient(self, w: ndarray, some: ndarray) -> ndarray:
        """The same of a whole model [n]."""
        return joined(self.slope(self.parts(w), some))

    def batches(self, t: int, client: int) -> list[ndarray]:
        """Positions of the samples of each of the client's steps in round t."""
        return [pick.positions.numpy() for pick in self.engine.trainer.feed.picks(t, client)]

    def rates(self, t: int, client: int) -> list[float]:
        """The learning rate of each of those steps."""
        settings, count = self.settings, len(self.batches(t, client))
        if settings.schedule in ("decay", "steps"):
            passed = t if settings.schedule == "decay" else sum(t >= r for r in settings.lr_steps)
            return [settings.lr * settings.lr_decay**passed] * count
        each = -(-self.sizes[client] // settings.batch)
        way = [t / settings.rounds] * count
        if settings.schedule == "restarts":
            way = [step // each / -(-count // each) for step in range(count)]
        low, high = settings.lr_min, settings.lr
        return [low + (high - low) / 2 * (1 + np.cos(np.pi * share)) for share in way]

    def train(
        self,
        w: ndarray,
        t: int,
        client: int,
        change: Change = lambda g, w: g,
        after: Callable[[ndarray, float], ndarray] = lambda w, rate: w,
    ) -> ndarray:
        """A client's model after its local steps in round t, as the settings have them.

        Args:
            w: the model at which it starts, [n].
            t: the round.
            client: who trains.
            change: makes the gradient that is followed; clip and decay come afterwards.
            after: changes the model after each step of that rate.
        """
        settings = self.settings
        velocity, square = np.zeros_like(w), np.zeros_like(w)
        beta1, beta2 = settings.beta1, settings.beta2
        steps = zip(self.batches(t, client), self.rates(t, client), strict=True)
        for step, (some, rate) in enumerate(steps, 1):
            g = change(self.gradient(w, some), w)
            if settings.clip:
                g = g * min(1.0, settings.clip / np.linalg.norm(g))
            g = g + settings.weight_decay * w
            if settings.optimizer == "adam":
                velocity = beta1 * velocity + (1 - beta1) * g
                square = beta2 * square + (1 - beta2) * g**2
                size = np.sqrt(square / (1 - beta2**step)) + settings.epsilon
                way = velocity / (1 - beta1**step) / size
            else:
                way = velocity = settings.momentum * velocity + g
            w = after(w - rate * way, rate)
        return w

    def rounds(self, turn: Callable[[ndarray, int, dict[int, float]], ndarray]) -> list[ndarray]:
        """The server's models, if each round is `turn(w, t, {client: share of the samples})`."""
        w, found = self.start, []
        for t in range(self.settings.rounds):
            clients = self.population.sample(t)
            total = sum(self.sizes[client] for client in clients)
            w = turn(w, t, {client: self.sizes[client] / total for client in clients})
            found.append(w)
        return found


def joined(parts: Iterable[ndarray]) -> ndarray:
    """The network as a model, [n]."""
    return np.concatenate([part.ravel() for part in parts])


def largest(scores: ndarray, count: int) -> ndarray:
    """The mask of the `count` largest values; of equal ones the first are taken."""
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.ravel(), kind="stable")[:count]] = True
    return mask.reshape(scores.shape)
