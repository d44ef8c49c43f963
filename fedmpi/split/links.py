"""Links over a cut that carry less than a batch: what goes there, and what comes back for it.

The side before the cut sends activations and gets their gradients; the side behind it gets the one
and answers with the other. A method says here what both do. With a tail the server stands behind
the first cut and before the second, and clients the other way round.
"""

from collections.abc import Sequence
from functools import cached_property
from math import prod
from typing import Generic, TypeVar

import numpy as np
from torch import Tensor

from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.split.cuts import Crossing
from fedmpi.split.sides import Side
from fedmpi.streams import Purpose, stream

Memory = TypeVar("Memory")
"""What a side remembers of a batch from its way forward to its way back."""


class Link(Side, Generic[Memory]):
    """A side whose messages depend on each other: batches are rows x [B, D], gradients likewise."""

    def sent(self, crossing: Crossing, x: Tensor) -> tuple[list[Block], Memory]:
        """Before the cut: blocks for activations, and what is needed when their gradients come."""
        raise NotImplementedError

    def arrived(self, crossing: Crossing, blocks: Sequence[Block]) -> tuple[Tensor, Memory]:
        """Behind the cut: the activations in any shape, and what is needed for the answer."""
        raise NotImplementedError

    def answered(self, crossing: Crossing, g: Tensor, memory: Memory) -> list[Block]:
        """Behind the cut: blocks for gradients; by default as they are."""
        return [sparse.block(crossing.kind, g)]

    def returned(self, crossing: Crossing, blocks: Sequence[Block], memory: Memory) -> Tensor:
        """Before the cut: the gradients in any shape; by default as they are."""
        return sparse.values(blocks[0], self.trainer.device)

    def encode(self, crossing: Crossing, values: Tensor) -> list[Block]:
        """See `sent` and `answered`."""
        rows, batch = values.detach().flatten(1), (crossing.cut, crossing.client)
        if crossing.kind == Kind.GRADIENT:
            return self.answered(crossing, rows, self._open.pop(batch))
        blocks, self._open[batch] = self.sent(crossing, rows)
        return blocks

    def decode(self, crossing: Crossing, blocks: Sequence[Block]) -> Tensor:
        """See `arrived` and `returned`."""
        batch = crossing.cut, crossing.client
        if crossing.kind == Kind.GRADIENT:
            return self.returned(crossing, blocks, self._open.pop(batch))
        values, self._open[batch] = self.arrived(crossing, blocks)
        return values

    def random(self, purpose: Purpose, crossing: Crossing) -> np.random.Generator:
        """What is drawn for one batch on its way over one cut, in one direction."""
        kind, cut, *ids = crossing
        way = 2 * cut + (kind == Kind.GRADIENT)
        return stream(self.trainer.settings.seed, purpose, *ids, way)

    @property
    def size(self) -> int:
        """Values of a sample that arrives, D."""
        return prod(self.shape)

    @cached_property
    def _open(self) -> dict[tuple[int, int], Memory]:
        """Of batches that have no gradients yet, by cut and client; empty after each step."""
        return {}
