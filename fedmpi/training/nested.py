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
        aside: where its local statistics lie in the whole network's; theirs in its are `asides`.
        draw: which of the smaller ones takes each of a client's steps in a round.
    """

    flat: Flat
    positions: Tensor
    aside: Tensor
    flats: Sequence[Flat]
    places: Sequence[Tensor]
    asides: Sequence[Tensor]
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
        self.inner, self.draw, self.asides = inner, nest.draw, nest.asides
        self.places = [places.to(self.device) for places in nest.places]
        self.stills = [rows.flat.still.to(self.device) for rows in inner]

    def learning(self, is_so: bool, by_batch: bool = False) -> None:
        """See `Rows.learning`."""
        for rows in self.inner:
            rows.learning(is_so, by_batch)

    def lessons(
        self, feed: Feed, t: int, client: int, passes: int | None = None
    ) -> Iterator[tuple[int, Any]]:
        """See `Rows.lessons`."""
        inner = self.inner[0].lessons(feed, t, client, passes)
        return zip(self.draw(t, client), inner, strict=False)

    def learn(self, feed: Feed, lessons: Sequence[tuple[int, Any]]) -> Tensor:
        """See `Rows.learn`; gradients are zero outside of the sub-models."""
        losses = torch.empty(len(lessons), device=self.device)
        self.g[: len(lessons)] = 0
        for which, rows in enumerate(self.inner):
            some = [row for row, (drawn, _) in enumerate(lessons) if drawn == which]
            if not some:
                continue
            places, still, aside = self.places[which], self.stills[which], self.asides[which]
            for own, row in enumerate(some):
                rows.w[own] = self.w[row, places]
                rows.aside[own] = self.aside[row, aside]
            losses[some] = rows.learn(feed, [lessons[row][1] for row in some])
            gradients = rows.first(len(some))[1]
            for own, row in enumerate(some):
                self.g[row, places] = gradients[own]
                self.w[row, places[still]] = rows.w[own, still]
                self.aside[row, aside] = rows.aside[own]
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
