"""SplitFC: features that vary little over a batch are dropped, the others are quantized at the cut.

Y. Oh, J. Lee, C. G. Brinton, Y.-S. Jeon, *Communication-Efficient Split Learning via Adaptive
Feature-Wise Compression*, IEEE TNNLS, arXiv 2307.10805. A feature is one of a sample's D values at
the cut, that is a column of the batch. Gradients are sent back, quantized too, for the features
that were sent. With `ratio` 1 and 32 bits both ways this is SplitFed.

Differs from the paper: all features have the same number of bits, where the paper derives it from a
feature's range; there are many clients, as in SplitFed.
Reconstruction: the probability with which a feature is sent is that of `select.features`.
Activations and gradients are divided by it, so that they are unbiased. Codes lie between each
feature's least and greatest value and are rounded to the nearest.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.messages import quantized, select, sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.methods import splitfed
from fedmpi.split import links
from fedmpi.split.cuts import Crossing
from fedmpi.streams import Purpose


class Config(splitfed.Config):
    ratio: float = Field(4.0, ge=1, le=config.MOST)
    """Compression ratio: on average one of so many features crosses the cut. 1 sends all."""
    bits: config.Bits = 8
    """Bits per activation. 32 sends floats."""
    gradient_bits: config.Bits = 8
    """Bits per gradient at the cut. 32 sends floats."""

    @property
    def has_link(self) -> bool:
        """Whether activations are quantized; dropping features is for training alone."""
        return self.bits != config.EXACT

    @property
    def keeps_zeros(self) -> bool:
        """Whether activations are sent as they are: a quantized zero is another number."""
        return not self.has_link


Went = tuple[tuple[int, int], Tensor, Tensor | None]
"""A batch's shape, the features sent, and on the sender's side the divisors of their gradients."""


class Link(links.Link[Went]):
    """The link on both sides."""

    method: Config

    def sent(self, crossing: Crossing, x: Tensor) -> tuple[list[Block], Went]:
        """Sends quantized columns and their numbers; no numbers if all columns are sent."""
        size, places = x.shape[1], []
        kept, share = torch.arange(size, device=x.device), None
        if self.method.ratio > 1:
            random = self.random(Purpose.CHOICE, crossing)
            kept, share = select.features(x, self.method.ratio, random)
            x, places = x[:, kept] / share, [sparse.places(kept, size)]
        blocks = quantized.columns(crossing.kind, x, size, self.method.bits)
        return [*blocks, *places], ((len(x), size), kept, share)

    def judged(self, cut: int, x: Tensor) -> Tensor:
        """Returns all features, quantized. None is dropped, as with dropout."""
        everything = torch.arange(x.shape[1], device=x.device)
        blocks = quantized.columns(Kind.ACTIVATION, x, x.shape[1], self.method.bits)
        return quantized.columned(blocks, everything, (len(x), x.shape[1]), x.device)

    def arrived(self, crossing: Crossing, blocks: Sequence[Block]) -> tuple[Tensor, Went]:
        """Restores the columns, with zeros for those that were dropped."""
        device, shape = self.trainer.device, (blocks[0].size // self.size, self.size)
        kept = torch.arange(self.size, device=device)
        if self.method.ratio > 1:
            *blocks, places = blocks
            kept = sparse.indices(places, device)
        return quantized.columned(blocks, kept, shape, device), (shape, kept, None)

    def answered(self, crossing: Crossing, g: Tensor, memory: Went) -> list[Block]:
        """Sends the quantized gradients of the columns that were received."""
        _, kept, _ = memory
        bits = self.method.gradient_bits
        return quantized.columns(crossing.kind, g[:, kept], g.shape[1], bits)

    def returned(self, crossing: Crossing, blocks: Sequence[Block], memory: Went) -> Tensor:
        """Restores the gradients, with zeros for dropped columns."""
        shape, kept, share = memory
        dense = quantized.columned(blocks, kept, shape, self.trainer.device)
        if share is not None:
            dense[:, kept] /= share
        return dense


class Server(Link, splitfed.Server):
    """The server's half."""

    method: Config


class Clients(Link, splitfed.Clients):
    """The clients' half."""

    method: Config
