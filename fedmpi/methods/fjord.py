"""FjORD: ordered dropout; each local step is taken by the first channels, and how many is drawn.

S. Horvath, S. Laskaridis, M. Almeida, I. Leontiadis, S. I. Venieris, N. D. Lane, *FjORD: Fair and
Accurate Federated Learning under heterogeneous targets with Ordered Dropout*, NeurIPS 2021, arXiv
2102.13451, algorithm 1. A client of rate p_max has the first channels of that share; each of its
steps draws a rate p <= p_max, all alike, and changes the first channels of share p alone. Of each
value the mean of those is taken who have it, by samples.

Differs from the paper: no knowledge is distilled from the width p_max to the width p.
Differs from the code: Flower's baseline has norms of its own for each p; here they are shared, and
GroupNorm's groups keep their size. Momentum goes on outside of a step's channels, as there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice

import torch
from pydantic import Field

from fedmpi.clients.burden import Burden
from fedmpi.config import Settings
from fedmpi.messages.codec import Block
from fedmpi.methods import heterofl
from fedmpi.methods.heterofl import Rate, Server
from fedmpi.streams import Purpose, stream
from fedmpi.training.nested import Nest
from fedmpi.training.train import Trainer

__all__ = ["Clients", "Config", "Server"]


class Config(heterofl.Config):
    rates: tuple[Rate, ...] = Field((0.2, 0.4, 0.6, 0.8, 1.0), min_length=1, strict=False)
    """Shares of the channels from which local steps draw, up to the client's own share. Clients are
    spread evenly over them. If devices have a keep, steps draw from those values instead."""
    scaler: bool | None = False
    """Divide the outputs of hidden layers by the client's share in training. If absent, only in
    models with normalisation."""
    masked: bool = False
    """Ignore classes that a client has no samples of in its training: their logits are set to 0."""


class Clients(heterofl.Clients):
    """Attributes: `nests`, for each rate its sub-model and those in it."""

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.nests: dict[float, Nest] = {}

    def smaller(self, rate: float) -> list[float]:
        """The rates that a client of such a rate draws from, ascending."""
        own, theirs = set(self.method.rates), set(self.widths.rates)
        levels = own if theirs <= own else theirs
        return sorted(level for level in levels if level <= rate)

    def draw(self, t: int, client: int) -> Iterator[int]:
        """Which of them takes each of the client's steps in round t."""
        random = stream(self.settings.seed, Purpose.CHANNELS, t, client)
        count = len(self.smaller(self.widths.rate(t, client)))
        while True:
            yield int(random.integers(count))

    def accept(self, t: int, client: int, blocks: Sequence[Block]) -> None:
        """The client's sub-model, and the smaller ones in it."""
        super().accept(t, client, blocks)
        rate = self.widths.rate(t, client)
        if rate not in self.nests:
            whole = self.widths.prefix(rate)
            parts = [self.widths.prefix(level) for level in self.smaller(rate)]
            places, local_stats_of = (
                [torch.searchsorted(getattr(whole, name), getattr(part, name)) for part in parts]
                for name in ("positions", "local_stats")
            )
            flats = [part.flat for part in parts]
            own = whole.flat, whole.positions, whole.local_stats
            self.nests[rate] = Nest(*own, flats, places, local_stats_of, self.draw)
        self.parts[client] = self.nests[rate]

    def burden(self, t: int, client: int) -> Burden:
        """The memory of the client's sub-model, and the steps of those in it."""
        size, batch = int(self.trainer.population.sizes[client]), self.settings.batch
        sizes = cycle(min(batch, size - first) for first in range(0, size, batch))
        levels = self.smaller(self.widths.rate(t, client))
        seen = dict.fromkeys(levels, 0)
        steps = self.trainer.population.steps(client)
        for which, samples in islice(zip(self.draw(t, client), sizes, strict=False), steps):
            seen[levels[which]] += samples
        shared = tuple((self.widths.prefix(level).flat, n) for level, n in seen.items())
        return replace(super().burden(t, client), shared=shared)
