"""SplitFC: features that vary little over a batch are dropped, others cross the cut in few bits.

Y. Oh, J. Lee, C. G. Brinton, Y.-S. Jeon, *Communication-Efficient Split Learning via Adaptive
Feature-Wise Compression*, IEEE TNNLS, arXiv 2307.10805. A feature is one of a sample's D values at
the cut, a column of the batch. Gradients come back, in few bits as well, for the features that
went. With `ratio` 1 and 32 bits both ways it is SplitFed.

Differs from the paper: all features have as many bits, where there the number follows from a
feature's range; there are many clients, as in SplitFed.
Reconstruction: with which probability a feature goes (see `sparse.features`); it is divided by that
probability, and so is its gradient, so that the batch is right on average; codes lie between each
feature's least and greatest value and are rounded to the nearest.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.messages import quantized, sparse
from fedmpi.messages.codec import Block
from fedmpi.messages.quantized import Bits
from fedmpi.methods import splitfed
from fedmpi.split import links
from fedmpi.split.cuts import Crossing
from fedmpi.streams import Purpose


class Config(splitfed.Config):
    ratio: float = Field(4.0, ge=1, le=config.MOST)
    """Compression ratio: on average one of so many features crosses the cut. 1 sends all."""
    bits: Bits = 8
    """Bits per activation. 32 sends floats."""
    gradient_bits: Bits = 8
    """Bits per gradient at the cut. 32 sends floats."""


Went = tuple[tuple[int, int], Tensor, Tensor | None]
"""A batch's shape, the features that went, and at home what their gradients are divided by."""


class Link(links.Link[Went]):
    """Both sides."""

    method: Config

    def sent(self, crossing: Crossing, x: Tensor) -> tuple[list[Block], Went]:
        """Columns in codes, and which they are, unless all go."""
        size, places = x.shape[1], []
        kept, share = torch.arange(size, device=x.device), None
        if self.method.ratio > 1:
            random = self.random(Purpose.CHOICE, crossing)
            kept, share = sparse.features(x, self.method.ratio, random)
            x, places = x[:, kept] / share, [sparse.places(kept, size)]
        blocks = quantized.columns(crossing.kind, x, size, self.method.bits)
        return [*blocks, *places], ((len(x), size), kept, share)

    def arrived(self, crossing: Crossing, blocks: Sequence[Block]) -> tuple[Tensor, Went]:
        """Columns, and zeros where none came."""
        device, shape = self.trainer.device, (blocks[0].size // self.size, self.size)
        kept = torch.arange(self.size, device=device)
        if self.method.ratio > 1:
            *blocks, places = blocks
            kept = sparse.indices(places, device)
        return quantized.columned(blocks, kept, shape, device), (shape, kept, None)

    def answered(self, crossing: Crossing, g: Tensor, memory: Went) -> list[Block]:
        """Gradients by the columns that came."""
        _, kept, _ = memory
        bits = self.method.gradient_bits
        return quantized.columns(crossing.kind, g[:, kept], g.shape[1], bits)

    def returned(self, crossing: Crossing, blocks: Sequence[Block], memory: Went) -> Tensor:
        """Gradients, and zeros by the columns that did not go."""
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
