"""Dropout at a cut: both sides draw which values are sent, so that no positions are.

A value is sent with probability 1 - share and divided by that. Its gradient is sent back for the
same values and divided likewise. Both are unbiased.
"""

from collections.abc import Sequence
from functools import cached_property

from pydantic import Field
from torch import Tensor

from fedmpi.messages import select, sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.split.cuts import Crossing, Cut
from fedmpi.split.sides import Side
from fedmpi.streams import Purpose, stream


class Leaky(Cut):
    """Settings of a cut with dropout."""

    dropout: float = Field(0.3, ge=0, lt=1)
    """Share of the values at a cut that are dropped in training, and not sent."""


class Dropping(Side):
    """A side of a cut with dropout; combined with other sides by inheritance."""

    method: Leaky

    def encode(self, crossing: Crossing, values: Tensor) -> list[Block]:
        """Sends the surviving values, scaled to be unbiased."""
        if not self.method.dropout:
            return super().encode(crossing, values)
        left = values.reshape(-1)[self._survivors(crossing, values.numel())]
        left = left / (1 - self.method.dropout)
        return [sparse.block(crossing.kind, left, values.numel())]

    def decode(self, crossing: Crossing, blocks: Sequence[Block]) -> Tensor:
        """Restores a batch, with zeros for dropped values."""
        if not self.method.dropout:
            return super().decode(crossing, blocks)
        size = blocks[0].size
        return sparse.vector(blocks[0], size, self.trainer.device, self._survivors(crossing, size))

    def _survivors(self, crossing: Crossing, size: int) -> Tensor:
        """Returns positions of the survivors, the same for a batch's activations and gradients."""
        kind, *batch = crossing
        where = self._drawn.pop(tuple(batch), None)
        if where is None:
            cut, *ids = batch
            random = stream(self.trainer.settings.seed, Purpose.SURVIVOR, *ids, cut)
            where = select.survivors(size, self.method.dropout, random).to(self.trainer.device)
        if kind == Kind.ACTIVATION:
            self._drawn[tuple(batch)] = where
        return where

    @cached_property
    def _drawn(self) -> dict[tuple[int, ...], Tensor]:
        """Positions drawn for batches whose gradients are outstanding; empty after each step."""
        return {}
