"""Compressed links over a cut, whose backward messages depend on the forward ones.

The sender of a batch's activations receives their gradients, and the receiver sends them. A method
implements both ends in one class. With a tail the server is the receiver at the first cut and the
sender at the second, and clients the other way round.
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
"""State of a batch that a side keeps from the forward to the backward message."""


class Link(Side, Generic[Memory]):
    """One side of a link; a batch is x [B, D], with gradients of the same shape."""

    def sent(self, crossing: Crossing, x: Tensor) -> tuple[list[Block], Memory]:
        """Sender: encodes activations; returns blocks, and the state for `returned`."""
        raise NotImplementedError

    def arrived(self, crossing: Crossing, blocks: Sequence[Block]) -> tuple[Tensor, Memory]:
        """Receiver: decodes activations to any shape; returns them and the state for `answered`."""
        raise NotImplementedError

    def answered(self, crossing: Crossing, g: Tensor, memory: Memory) -> list[Block]:
        """Receiver: encodes gradients; by default as they are."""
        return [sparse.block(crossing.kind, g)]

    def returned(self, crossing: Crossing, blocks: Sequence[Block], memory: Memory) -> Tensor:
        """Sender: decodes gradients to any shape; by default as they are."""
        return sparse.values(blocks[0], self.trainer.device)

    def encode(self, crossing: Crossing, values: Tensor) -> list[Block]:
        """Encodes activations by `sent`, and gradients by `answered`."""
        rows, batch = values.detach().flatten(1), (crossing.cut, crossing.client)
        if crossing.kind == Kind.GRADIENT:
            return self.answered(crossing, rows, self._open.pop(batch))
        blocks, self._open[batch] = self.sent(crossing, rows)
        return blocks

    def decode(self, crossing: Crossing, blocks: Sequence[Block]) -> Tensor:
        """Decodes activations by `arrived`, and gradients by `returned`."""
        batch = crossing.cut, crossing.client
        if crossing.kind == Kind.GRADIENT:
            return self.returned(crossing, blocks, self._open.pop(batch))
        values, self._open[batch] = self.arrived(crossing, blocks)
        return values

    def random(self, purpose: Purpose, crossing: Crossing) -> np.random.Generator:
        """Returns the random generator of one batch, cut and direction."""
        return stream(self.trainer.settings.seed, purpose, *crossing.ids)

    @property
    def size(self) -> int:
        """Number of values of a sample that arrives, D."""
        return prod(self.shape)

    @cached_property
    def _open(self) -> dict[tuple[int, int], Memory]:
        """State of batches whose gradients are outstanding, by cut and client.

        It is empty after each step.
        """
        return {}
