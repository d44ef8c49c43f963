"""Rows that are whole models, each of which computes with a smaller network inside it.

A row's smaller network may change from step to step. Networks that are alike compute together.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from fedmpi.config import Settings
from fedmpi.networks.flat import Flat
from fedmpi.networks.narrow import Narrow
from fedmpi.training.feed import Feed
from fedmpi.training.rows import Rows

Make = Callable[[Flat, int], Rows[Any]]
"""Rows of a network: which, and how many."""


class Inner(Rows[tuple[Narrow, Any]]):
    """Models of one shape, of which each computes with some of its values alone.

    Gradients are zero outside of these values. Statistics that the smaller networks move are
    written back into the whole models.

    Args:
        flat: the shape.
        count: of rows.
        device: where they are.
        settings: of the run.
        make: makes rows of a smaller network.

    Attributes:
        parts: the smaller network of each of the first rows.
        inner: rows of the smaller networks.
    """

    def __init__(
        self, flat: Flat, count: int, device: torch.device, settings: Settings, make: Make
    ) -> None:
        super().__init__(flat, count, device, settings)
        self.make = make
        self.inner: dict[Flat, Rows[Any]] = {}
        self.parts: Sequence[Narrow] = ()

    def place(self, parts: Sequence[Narrow]) -> None:
        """Gives the first rows their networks, and forgets the networks that none of them has."""
        self.parts, flats = parts, [part.flat for part in parts]
        self.inner = {flat: rows for flat, rows in self.inner.items() if flat in flats}
        for flat in dict.fromkeys(flats):
            self.rows_of(flat, flats.count(flat))

    def rows_of(self, flat: Flat, count: int) -> Rows[Any]:
        """At least so many rows of a smaller network: the old ones, if they are enough."""
        if flat not in self.inner or len(self.inner[flat]) < count:
            self.inner[flat] = self.make(flat, count)
            self.inner[flat].train_mode(*self.mode)
        return self.inner[flat]

    def train_mode(self, on: bool, batch_statistics: bool = False) -> None:
        """Switches all inner networks between training and evaluation mode."""
        self.mode = (on, batch_statistics)
        for rows in self.inner.values():
            rows.train_mode(on, batch_statistics)

    def _alike(self, count: int) -> Iterator[tuple[Rows[Any], list[int]]]:
        """The first rows by their networks: the smaller rows, and which of the whole ones."""
        for flat in dict.fromkeys(part.flat for part in self.parts[:count]):
            some = [row for row in range(count) if self.parts[row].flat is flat]
            yield self.rows_of(flat, len(some)), some

    def _enter(self, rows: Rows[Any], some: Sequence[int]) -> None:
        """Copies values and local statistics of some whole rows into smaller ones."""
        for own, row in enumerate(some):
            places, local_stats = self._places(row)
            rows.w[own] = self.w[row, places]
            rows.local_stats[own] = self.local_stats[row, local_stats]

    def _leave(self, rows: Rows[Any], some: Sequence[int]) -> None:
        """Copies the statistics, which a way forward moves, back into the whole rows."""
        moved = rows.flat.stat_positions.to(self.device)
        for own, row in enumerate(some):
            places, local_stats = self._places(row)
            self.w[row, places[moved]] = rows.w[own, moved]
            self.local_stats[row, local_stats] = rows.local_stats[own]

    def _learn(self, rows: Rows[Any], some: Sequence[int]) -> None:
        """Copies the gradients of smaller rows into the whole ones."""
        gradients = rows.head(len(some))[1]
        for own, row in enumerate(some):
            self.g[row, self._places(row)[0]] = gradients[own]

    def _places(self, row: int) -> tuple[Tensor, Tensor]:
        """Where a row's smaller network has its values, and its local statistics."""
        part = self.parts[row]
        return part.positions.to(self.device), part.local_stats.to(self.device)

    def forward(self, xs: Sequence[Tensor], keys: Sequence[int] = ()) -> list[Tensor]:
        """Runs the networks that `place` gave forward on a batch per row."""
        found: dict[int, Tensor] = {}
        for rows, some in self._alike(len(xs)):
            self._enter(rows, some)
            outputs = rows.forward([xs[row] for row in some], [keys[row] for row in some if keys])
            self._leave(rows, some)
            found |= zip(some, outputs, strict=True)
        return [found[row] for row in range(len(xs))]

    def backward(self, cotangents: Sequence[Tensor]) -> list[Tensor]:
        """Backpropagates gradients of the outputs; inputs are samples and want none."""
        self.g[: len(cotangents)] = 0
        for rows, some in self._alike(len(cotangents)):
            rows.backward([cotangents[row] for row in some])
            self._learn(rows, some)
        return []

    def backprop(self, feed: Feed, lessons: Sequence[tuple[Narrow, Any]]) -> Tensor:
        """Computes losses and gradients of the networks that the lessons name."""
        losses = torch.empty(len(lessons), device=self.device)
        self.g[: len(lessons)] = 0
        self.parts = [part for part, _ in lessons]
        for rows, some in self._alike(len(lessons)):
            self._enter(rows, some)
            losses[some] = rows.backprop(feed, [lessons[row][1] for row in some])
            self._learn(rows, some)
            self._leave(rows, some)
        return losses

    def lessons(
        self, feed: Feed, t: int, client: int, passes: int | None = None
    ) -> Iterator[tuple[Narrow, Any]]:
        """Yields a client's lessons; a subclass says which network learns in which step."""
        raise NotImplementedError("nobody says which network takes which step")

    def losses(self, xs: Sequence[Tensor], ys: Sequence[Tensor], keys: Sequence[int]) -> NoReturn:
        """Models that learn through smaller ones are judged as whole ones."""
        raise NotImplementedError("such rows learn by lessons, or go forward and back")
