"""Spans: which values of an update compete for being sent, and which share one scale.

Papers disagree, and so does their code: all parameters may be one vector, or each tensor is
compressed by itself. A large layer then cannot silence a small one, but has a scale more to send.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.config import Spans
from fedmpi.messages import select
from fedmpi.messages.counts import keep_round
from fedmpi.messages.select import Chosen
from fedmpi.networks.flat import Flat


class Config(config.Method):
    """Settings of a method that compresses updates as a whole, or tensor by tensor."""

    spans: Spans = "whole"
    """Which values compete for being sent, or share one scale. whole: those of all parameters.
    tensor: those of each weight or bias by itself, at least one of which is sent."""

    def largest(self, update: Tensor, flat: Flat, sparsity: float) -> Chosen:
        """Chooses the values to send.

        Args:
            update: [n], zero at running statistics.
            flat: the network.
            sparsity: share of the values that are not sent.
        """
        return largest(self.spans, update, flat, sparsity)

    def count(self, flat: Flat, sparsity: float) -> int:
        """How many positions `largest` returns."""
        if self.spans == "tensor":
            return sum(select.counts(flat.parameters, sparsity))
        return keep_round(flat.count, 1 - sparsity)

    def lengths(self, flat: Flat, positions: Tensor) -> Sequence[int]:
        """How many of some parameters' positions, int64 ascending, lie in each span."""
        return lengths(self.spans, flat, positions)


class Tensorwise(Config):
    """The same, tensor by tensor unless the settings say otherwise."""

    spans: Spans = Field("tensor", description=Config.model_fields["spans"].description)


def largest(spans: Spans, update: Tensor, flat: Flat, sparsity: float) -> Chosen:
    """Chooses the values to send; see `Config.largest`."""
    if spans == "tensor":
        return select.tops(update[None], flat.parameters, sparsity)
    return select.top(update, keep_round(flat.count, 1 - sparsity))


def lengths(spans: Spans, flat: Flat, positions: Tensor) -> Sequence[int]:
    """How many of some parameters' positions lie in each span; see `Config.lengths`."""
    if spans == "whole":
        return [len(positions)]
    stops = torch.tensor([piece.stop for piece in flat.parameters], device=positions.device)
    return select.numbers_within(stops, positions)
