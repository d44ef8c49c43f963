"""Rows of clients through their local steps.

On a CPU a chunk is one row and clients train one after the other, because the caches like it; the
interface is that of many rows, so that methods cannot tell.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from fedmpi.config import Settings
from fedmpi.data import Dataset
from fedmpi.flat import Flat, Rows
from fedmpi.population import Population
from fedmpi.streams import Purpose, stream

Adjust = Callable[[Sequence[int], Tensor, Tensor], None]
"""Changes gradients in place before a step: clients of the rows, w [C, n], g [C, n]."""

EVALUATION_BATCH = 1024


class Descent:
    """Stochastic gradient descent on rows: clip, weight decay, momentum, step; all row-wise."""

    def __init__(self, settings: Settings, rows: Rows) -> None:
        self.settings, self.rows = settings, rows
        self.velocity = torch.zeros_like(rows.w) if settings.momentum else None

    def reset(self, start: Tensor) -> None:
        """All rows begin at `start`, [n] or [C, n], at rest."""
        self.rows.w.copy_(start)
        if self.velocity is not None:
            self.velocity.zero_()

    def step(self, t: int, part: slice = slice(None)) -> None:
        """Moves the rows in `part` against their gradients, at round t's learning rate."""
        settings, w, g = self.settings, self.rows.w[part], self.rows.g[part]
        if settings.clip:
            norms = torch.linalg.vector_norm(g, dim=1, keepdim=True)
            g.mul_((settings.clip / (norms + 1e-6)).clamp(max=1))
        if settings.weight_decay:
            g.add_(w, alpha=settings.weight_decay)
        if self.velocity is not None:
            g = self.velocity[part].mul_(settings.momentum).add_(g)
        w.add_(g, alpha=-rate(settings, t))


def rate(settings: Settings, t: int) -> float:
    """The learning rate of round t."""
    return settings.lr * settings.lr_decay ** max(t, 0)


class Trainer:
    """The samples, the network and the local steps of one rank.

    Attributes:
        classes: number of labels.
        losses: each client's losses in local training, this round: their sum and their number.
        seconds: each client's time in local training, and in preparing its upload, this round.
    """

    def __init__(
        self,
        settings: Settings,
        flat: Flat,
        data: Dataset,
        population: Population,
        device: torch.device,
    ) -> None:
        self.settings, self.flat, self.population, self.device = settings, flat, population, device
        self.x = torch.from_numpy(data.train_x).to(device)
        self.y = torch.from_numpy(data.train_y).to(device)
        self.descent = self.descent_of(flat, 1)
        self.rows = self.descent.rows
        self.classes = data.classes
        self.begin()

    def begin(self) -> None:
        """A round begins."""
        self.losses: dict[int, tuple[Tensor, int]] = {}
        self.seconds: dict[int, float] = {}

    def descent_of(self, flat: Flat, count: int) -> Descent:
        """`count` models of a shape, the whole network's or a part's, and what moves them."""
        return Descent(self.settings, Rows(flat, count, self.device))

    def note(self, client: int, loss: Tensor) -> None:
        """Takes down the loss of one of the client's steps."""
        total, count = self.losses.get(client, (torch.zeros((), device=self.device), 0))
        self.losses[client] = total + loss, count + 1

    def loss(self, client: int) -> float:
        """The client's mean loss, as far as this rank has seen its steps; else NaN."""
        total, count = self.losses.get(client, (torch.nan, 1))
        return float(total) / count

    @contextmanager
    def timed(self, client: int) -> Iterator[None]:
        """Adds the time inside to the client's seconds."""
        start = perf_counter()
        yield
        self.seconds[client] = self.seconds.get(client, 0.0) + perf_counter() - start

    def chunks(self, clients: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """The groups in which clients train together: single clients, on a CPU."""
        return ((client,) for client in clients)

    def batches(self, t: int, client: int) -> Iterator[Tensor]:
        """Positions of the samples of each of the client's steps in round t, pass by pass."""
        random = stream(self.settings.seed, Purpose.BATCH, t, client)
        shard, batch = self.population.shards[client], self.settings.batch
        left = self.population.steps(client)
        while left:
            order = torch.from_numpy(shard[random.permutation(len(shard))]).to(self.device)
            for positions in order.split(batch)[:left]:
                yield positions
                left -= 1

    def train(self, t: int, clients: Sequence[int], start: Tensor, adjust: Adjust) -> Tensor:
        """Round t's local steps of the clients, all from `start` [n].

        Returns:
            Their models, [C, n], until the next call.
        """
        assert len(clients) == len(self.rows), "a chunk is as long as there are rows"
        self.descent.reset(start)
        for row, client in enumerate(clients):
            part = slice(row, row + 1)
            with self.timed(client):
                for positions in self.batches(t, client):
                    loss = self.rows.loss(row, self.x[positions], self.y[positions])
                    adjust((client,), self.rows.w[part], self.rows.g[part])
                    self.descent.step(t, part)
                    self.note(client, loss)
        return self.rows.w

    def gradient(self, w: Tensor, positions: np.ndarray) -> Tensor:
        """The mean loss's gradient on those training samples at w [n]: [n], until the next call."""
        self.rows.w[0] = w
        self.rows.loss(0, self.x[positions], self.y[positions])
        return self.rows.g[0]

    @torch.no_grad()
    def correct(self, w: Tensor, x: Tensor, y: Tensor) -> np.ndarray:
        """Which samples the model w [n] classifies rightly: bool [len(x)]."""
        self.rows.w[0] = w
        network, pieces = (
            self.rows.networks[0],
            zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True),
        )
        found = [(network(some).argmax(1) == labels).cpu() for some, labels in pieces]
        return torch.cat(found).numpy() if found else np.zeros(0, bool)
