"""Rows that are whole, and go forward and back through narrower networks of their own."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from fedmpi.config import Settings
from fedmpi.networks.flat import Flat
from fedmpi.networks.narrow import Narrow
from fedmpi.split.lockstep import WaveParts
from fedmpi.training.descent import Descent, descent
from fedmpi.training.feed import Feed
from fedmpi.training.rows import Rows


class Narrowed(Rows[Any]):
    """Models of one shape, of which each computes with some of its channels alone.

    Gradients are zero outside of these. Networks that are alike compute together.

    Args:
        flat: the shape.
        count: of rows.
        device: where they are.
        settings: of the run.
        make: rows of a smaller network.
    """

    def __init__(
        self,
        flat: Flat,
        count: int,
        device: torch.device,
        settings: Settings,
        make: Callable[[Flat, int], Rows[Any]],
    ) -> None:
        super().__init__(flat, count, device, settings)
        self.make = make
        self.inner: dict[Flat, Rows[Any]] = {}
        self.parts: Sequence[Narrow] = ()

    def place(self, parts: Sequence[Narrow]) -> None:
        """Gives the first rows their networks."""
        self.parts, flats = parts, [part.flat for part in parts]
        kept = {flat: rows for flat, rows in self.inner.items() if flat in flats}
        for flat in dict.fromkeys(flats):
            if flat not in kept or len(kept[flat]) < flats.count(flat):
                kept[flat] = self.make(flat, flats.count(flat))
        self.inner = kept

    def _together(self, count: int) -> Iterator[tuple[Rows[Any], list[tuple[int, Tensor]]]]:
        """Of the first rows those that are alike: the smaller ones, and rows and places of each."""
        for flat, rows in self.inner.items():
            alike = [row for row in range(count) if self.parts[row].flat is flat]
            if alike:
                yield rows, [(row, self.parts[row].positions.to(self.device)) for row in alike]

    def forward(self, xs: Sequence[Tensor], keys: Sequence[int] = ()) -> list[Tensor]:
        """See `Rows.forward`."""
        found: dict[int, Tensor] = {}
        for rows, some in self._together(len(xs)):
            stat_positions = rows.flat.stat_positions.to(self.device)
            for own, (row, places) in enumerate(some):
                rows.w[own] = self.w[row, places]
            batches = [xs[row] for row, _ in some]
            outputs = rows.forward(batches, [keys[row] for row, _ in some] if keys else ())
            for own, (row, places) in enumerate(some):
                found[row] = outputs[own]
                self.w[row, places[stat_positions]] = rows.w[own, stat_positions]
        return [found[row] for row in range(len(xs))]

    def backward(self, cotangents: Sequence[Tensor]) -> list[Tensor]:
        """See `Rows.backward`; inputs are samples, which want no gradients."""
        self.g[: len(cotangents)] = 0
        for rows, some in self._together(len(cotangents)):
            rows.backward([cotangents[row] for row, _ in some])
            gradients = rows.head(len(some))[1]
            for own, (row, places) in enumerate(some):
                self.g[row, places] = gradients[own]
        return []

    def losses(self, xs: Sequence[Tensor], ys: Sequence[Tensor], keys: Sequence[int]) -> NoReturn:
        """Nobody asks a front."""
        raise NotImplementedError("such rows are fronts, which have no loss")

    def lessons(self, feed: Feed, t: int, client: int, passes: int | None = None) -> NoReturn:
        """Likewise."""
        raise NotImplementedError("such rows are fronts, which have no loss")

    def backprop(self, feed: Feed, lessons: Sequence[Any]) -> NoReturn:
        """Likewise."""
        raise NotImplementedError("such rows are fronts, which have no loss")


class NarrowedWaveParts(WaveParts):
    """Fronts for all clients of a wave, which compute with narrower networks."""

    def made(self, count: int) -> Descent:
        """See `Parts.made`."""
        trainer = self.trainer

        def make(flat: Flat, count: int) -> Rows[Any]:
            return trainer.descent_of(flat, count).rows

        rows = Narrowed(self.flat, count, trainer.device, trainer.settings, make)
        return descent(trainer.settings, rows)

    def narrow(self, part: Callable[[int], Narrow]) -> None:
        """Gives the wave's clients their networks."""
        for party in self.parties:
            assert isinstance(party.rows, Narrowed)
            party.rows.place([part(client) for client in party.order])
