"""FjORD: ordered dropout; each local step trains the first channels, a share that is drawn anew.

S. Horvath, S. Laskaridis, M. Almeida, I. Leontiadis, S. I. Venieris, N. D. Lane, *FjORD: Fair and
Accurate Federated Learning under heterogeneous targets with Ordered Dropout*, NeurIPS 2021, arXiv
2102.13451, algorithm 1. A client of rate p_max has the first channels of that share. Each of its
steps draws a rate p <= p_max, with equal probability, and trains only the first channels of share
p. Each value is averaged, by samples, over the clients that have it.

Differs from the paper: no knowledge is distilled from the width p_max to the width p.
Values of the paper: those of Flower's baseline.
Differs from the code: Flower's baseline has separate norms for each p; here they are shared, and
GroupNorm's groups keep their size. As there, momentum goes on outside of a step's channels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any, ClassVar

import torch
from pydantic import Field

from fedmpi.clients.burden import Burden
from fedmpi.config import Settings
from fedmpi.messages.codec import Block
from fedmpi.methods import heterofl
from fedmpi.methods.heterofl import Rate, Server
from fedmpi.networks.narrow import Narrow
from fedmpi.streams import Purpose, stream
from fedmpi.training.feed import Feed
from fedmpi.training.inner import Inner
from fedmpi.training.train import Trainer

__all__ = ["Clients", "Config", "Server"]


class Config(heterofl.Config):
    paper: ClassVar[Mapping[str, Any]] = {
        "clients": 100,
        "participation": 0.1,
        "epochs": 1,
        "batch": 32,
        "lr": 0.1,
        "weight_decay": 0.0001,
        "method.rates": [0.2, 0.4, 0.6, 0.8, 1.0],
    }

    rates: tuple[Rate, ...] = Field((0.2, 0.4, 0.6, 0.8, 1.0), min_length=1, strict=False)
    """Shares of the channels from which local steps draw, up to the client's own share. Clients are
    spread evenly over them. If devices have a keep, steps draw from those values instead."""
    scaler: bool | None = False
    """Divide the outputs of hidden layers by the client's share in training. If absent, only in
    models with normalisation."""
    masked: bool = False
    """Ignore classes that a client has no samples of in its training: their logits are set to 0."""


@dataclass(frozen=True, eq=False)
class Nest(Narrow):
    """A sub-model that learns through smaller ones in it.

    Attributes:
        levels: the smaller ones; their positions are those in this one.
        draw: which of them takes each of a client's steps in a round, by round and client.
    """

    levels: Sequence[Narrow]
    draw: Callable[[int, int], Iterator[int]]

    def rows(self, trainer: Trainer, count: int) -> "NestRows":
        """Makes so many rows whose steps are taken by the smaller sub-models."""
        return NestRows(self, trainer, count)


class NestRows(Inner):
    """Models of a nest's shape, each step of which is taken by one of its levels."""

    def __init__(self, nest: Nest, trainer: Trainer, count: int) -> None:
        super().__init__(
            nest.flat,
            count,
            trainer.device,
            trainer.settings,
            lambda flat, _: trainer.descent_of(flat, count).rows,
        )
        self.nest = nest

    def lessons(
        self, feed: Feed, t: int, client: int, passes: int | None = None
    ) -> Iterator[tuple[Narrow, Any]]:
        """Yields each step's samples with the sub-model that takes the step."""
        levels = self.nest.levels
        kinds = [type(self.rows_of(level.flat, 1)) for level in levels]
        # Levels of different kinds take a step's samples in different forms.
        lessons = {
            kind: self.rows_of(level.flat, 1).lessons(feed, t, client, passes)
            for kind, level in zip(kinds, levels, strict=True)
        }
        for which, *given in zip(self.nest.draw(t, client), *lessons.values(), strict=False):
            yield levels[which], dict(zip(lessons, given, strict=True))[kinds[which]]


class Clients(heterofl.Clients):
    """HeteroFL's clients, whose steps train nested sub-models.

    Attributes:
        nests: for each rate its sub-model and the smaller ones nested in it.
    """

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.nests: dict[float, Nest] = {}

    def smaller(self, rate: float) -> list[float]:
        """Returns the rates that a client of the given rate draws from, ascending."""
        own, theirs = set(self.method.rates), set(self.widths.rates)
        levels = own if theirs <= own else theirs
        return sorted(level for level in levels if level <= rate)

    def draw(self, t: int, client: int) -> Iterator[int]:
        """Yields for each of the client's steps in round t the index of its rate in `smaller`."""
        random = stream(self.settings.seed, Purpose.CHANNELS, t, client)
        count = len(self.smaller(self.widths.rate(t, client)))
        while True:
            yield int(random.integers(count))

    def accept(self, t: int, client: int, blocks: Sequence[Block]) -> None:
        """Receives the client's sub-model, and builds the smaller ones nested in it."""
        super().accept(t, client, blocks)
        rate = self.widths.rate(t, client)
        if rate not in self.nests:
            whole = self.widths.prefix(rate)
            parts = [self.widths.prefix(level) for level in self.smaller(rate)]
            levels = [self.level(whole, part) for part in parts]
            own = whole.flat, whole.positions, whole.local_stats
            self.nests[rate] = Nest(*own, levels, self.draw)
        self.parts[client] = self.nests[rate]

    def level(self, whole: Narrow, part: Narrow) -> Narrow:
        """A sub-model of the whole network, as one of a larger sub-model."""
        pairs = (whole.positions, part.positions), (whole.local_stats, part.local_stats)
        places = (torch.searchsorted(*pair).to(self.trainer.device) for pair in pairs)
        return Narrow(part.flat, *places)

    def burden(self, t: int, client: int) -> Burden:
        """Returns the cost: memory of the client's sub-model, FLOPs of the smaller ones by step."""
        size, batch = int(self.trainer.population.sizes[client]), self.settings.batch
        sizes = cycle(min(batch, size - first) for first in range(0, size, batch))
        levels = self.smaller(self.widths.rate(t, client))
        seen = dict.fromkeys(levels, 0)
        steps = self.trainer.population.steps(t, client)
        for which, samples in islice(zip(self.draw(t, client), sizes, strict=False), steps):
            seen[levels[which]] += samples
        shared = tuple((self.widths.prefix(level).flat, n) for level, n in seen.items())
        return replace(super().burden(t, client), shared=shared)
