"""Dropout at a cut: some of what would cross it does not, and both sides know which without a word.

A value survives with probability 1 - share and is divided by that, and so is its gradient, which
travels where the value did: both are right on average.
"""

from collections.abc import Sequence
from functools import cached_property

from pydantic import Field
from torch import Tensor

from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.split.cuts import Crossing, Cut
from fedmpi.split.sides import Side
from fedmpi.streams import Purpose, stream


class Leaky(Cut):
    """The settings of such a cut."""

    dropout: float = Field(0.3, ge=0, lt=1)
    """Share of the values at a cut that are dropped in training, and not sent."""


class Dropping(Side):
    """A side of such a cut, beside what else it is."""

    method: Leaky

    def encode(self, crossing: Crossing, values: Tensor) -> list[Block]:
        """The values that survive."""
        if not self.method.dropout:
            return super().encode(crossing, values)
        left = values.reshape(-1)[self._survivors(crossing, values.numel())]
        left = left / (1 - self.method.dropout)
        return [sparse.block(crossing.kind, left, values.numel())]

    def decode(self, crossing: Crossing, blocks: Sequence[Block]) -> Tensor:
        """These, and zeros for the others."""
        if not self.method.dropout:
            return super().decode(crossing, blocks)
        size = blocks[0].size
        return sparse.vector(blocks[0], size, self.trainer.device, self._survivors(crossing, size))

    def _survivors(self, crossing: Crossing, size: int) -> Tensor:
        """Positions, of a batch's activations and of their gradients alike: drawn once for both."""
        kind, *batch = crossing
        where = self._drawn.pop(tuple(batch), None)
        if where is None:
            cut, *ids = batch
            random = stream(self.trainer.settings.seed, Purpose.SURVIVOR, *ids, cut)
            where = sparse.survivors(size, self.method.dropout, random).to(self.trainer.device)
        if kind == Kind.ACTIVATION:
            self._drawn[tuple(batch)] = where
        return where

    @cached_property
    def _drawn(self) -> dict[tuple[int, ...], Tensor]:
        """Of batches that have no gradients yet; empty after each step."""
        return {}
