"""Rows whose every step is taken by a narrower network of theirs, drawn anew: ordered dropout."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from fedmpi.config import Settings
from fedmpi.networks.flat import Flat
from fedmpi.training.feed import Feed
from fedmpi.training.rows import Rows

Draw = Callable[[int, int], Iterator[int]]
"""Which sub-model takes each of a client's steps in a round: round, client."""


@dataclass(frozen=True, eq=False)
class Nest:
    """A sub-model that learns through smaller ones in it.

    Attributes:
        flat: its network; the smaller ones' are `flats`.
        positions: where its values lie in the whole model; theirs in it are `places`, int64.
        local_stats: where its local statistics lie in the whole network's; theirs in its are
            `local_stats_of`.
        draw: which of the smaller ones takes each of a client's steps in a round.
    """

    flat: Flat
    positions: Tensor
    local_stats: Tensor
    flats: Sequence[Flat]
    places: Sequence[Tensor]
    local_stats_of: Sequence[Tensor]
    draw: Draw


class Nested(Rows[tuple[int, Any]]):
    """Models of one shape that learn through smaller ones.

    Args:
        nest: the shape, and those in it.
        inner: rows of each of the smaller ones, as many as there are of these.
        settings: of the run.
    """

    def __init__(self, nest: Nest, inner: Sequence[Rows[Any]], settings: Settings) -> None:
        super().__init__(nest.flat, len(inner[0]), inner[0].device, settings)
        self.inner, self.draw, self.local_stats_of = inner, nest.draw, nest.local_stats_of
        self.places = [places.to(self.device) for places in nest.places]
        self.stat_positions_of = [rows.flat.stat_positions.to(self.device) for rows in inner]

    def train_mode(self, on: bool, batch_statistics: bool = False) -> None:
        """See `Rows.train_mode`."""
        for rows in self.inner:
            rows.train_mode(on, batch_statistics)

    def lessons(
        self, feed: Feed, t: int, client: int, passes: int | None = None
    ) -> Iterator[tuple[int, Any]]:
        """See `Rows.lessons`."""
        inner = self.inner[0].lessons(feed, t, client, passes)
        return zip(self.draw(t, client), inner, strict=False)

    def backprop(self, feed: Feed, lessons: Sequence[tuple[int, Any]]) -> Tensor:
        """See `Rows.backprop`; gradients are zero outside of the sub-models."""
        losses = torch.empty(len(lessons), device=self.device)
        self.g[: len(lessons)] = 0
        for which, rows in enumerate(self.inner):
            some = [row for row, (drawn, _) in enumerate(lessons) if drawn == which]
            if not some:
                continue
            places, local_stats = self.places[which], self.local_stats_of[which]
            stat_positions = self.stat_positions_of[which]
            for own, row in enumerate(some):
                rows.w[own] = self.w[row, places]
                rows.local_stats[own] = self.local_stats[row, local_stats]
            losses[some] = rows.backprop(feed, [lessons[row][1] for row in some])
            gradients = rows.head(len(some))[1]
            for own, row in enumerate(some):
                self.g[row, places] = gradients[own]
                self.w[row, places[stat_positions]] = rows.w[own, stat_positions]
                self.local_stats[row, local_stats] = rows.local_stats[own]
        return losses

    def forward(self, xs: Sequence[Tensor], keys: Sequence[int] = ()) -> NoReturn:
        """Nobody asks for outputs: models are judged as whole ones."""
        raise NotImplementedError("such rows learn, and nothing else")

    def backward(self, cotangents: Sequence[Tensor]) -> NoReturn:
        """Likewise."""
        raise NotImplementedError("such rows learn, and nothing else")

    def losses(self, xs: Sequence[Tensor], ys: Sequence[Tensor], keys: Sequence[int]) -> NoReturn:
        """Likewise."""
        raise NotImplementedError("such rows learn, and nothing else")
