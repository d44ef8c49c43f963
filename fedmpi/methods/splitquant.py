"""SplitFed with quantized activations and, optionally, quantized gradients at the cut.

A plain baseline for other compressed split links: uniform quantization between the least and the
greatest value; all else as in SplitFed (C. Thapa et al., AAAI 2022, arXiv 2004.12088). With `bits`
and `gradient_bits` 32 it is SplitFed.

Reconstruction: it follows no paper's text; gradients pass the rounding unchanged
(straight-through).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from fedmpi import config
from fedmpi.config import EXACT, Settings
from fedmpi.messages import quantized
from fedmpi.messages.codec import Block, Kind
from fedmpi.methods import splitfed
from fedmpi.split import links
from fedmpi.split.cuts import Crossing
from fedmpi.streams import Purpose, key


class Config(splitfed.Config):
    bits: config.Bits = 8
    """Bits per activation. 32 sends floats."""
    gradient_bits: config.Bits = 32
    """Bits per gradient at the cut. 32 sends floats."""
    ranges: Literal["sample", "tensor"] = "sample"
    """Range of the quantization levels. sample: minimum and maximum of each sample. tensor: of the
    whole batch."""
    rounding: Literal["nearest", "random"] = "nearest"
    """nearest: to the nearest level. random: up or down at random, so that values are unbiased."""

    def idle(self, settings: Settings) -> dict[str, str]:
        """Names the settings that have no effect, and what would give them one."""
        found = super().idle(settings)
        if self.bits == self.gradient_bits == EXACT:
            both = "bits or gradient_bits below 32, found both 32, which are exact"
            found |= dict.fromkeys(("ranges", "rounding"), both)
        return found

    @property
    def has_link(self) -> bool:
        """Whether activations are quantized."""
        return self.bits != EXACT

    @property
    def keeps_zeros(self) -> bool:
        """Whether activations are sent as they are: a quantized zero is another number."""
        return not self.has_link


class Link(links.Link[int]):
    """The link on both sides; its memory is the number of values of a sample."""

    method: Config

    def coded(self, crossing: Crossing, x: Tensor, bits: int) -> list[Block]:
        """Quantizes x [B, D] to codes of `bits` bits, with their ranges."""
        secret = None
        if self.method.rounding == "random" and bits != EXACT:
            secret = key(self.trainer.settings.seed, Purpose.ROUND_CUT, *crossing.ids)
        return quantized.ranges(crossing.kind, x, self.lengths(*x.shape), bits, secret)

    def judged(self, cut: int, x: Tensor) -> Tensor:
        """Returns activations quantized to the nearest level."""
        lengths = self.lengths(*x.shape)
        blocks = quantized.ranges(Kind.ACTIVATION, x, lengths, self.method.bits, None)
        return self.decoded(blocks, x.shape[1])

    def lengths(self, batch: int, size: int) -> np.ndarray:
        """Returns the numbers of consecutive values that share a range."""
        if self.method.ranges == "tensor":
            return np.array([batch * size])
        return np.full(batch, size)

    def sent(self, crossing: Crossing, x: Tensor) -> tuple[list[Block], int]:
        """Sends quantized activations."""
        return self.coded(crossing, x, self.method.bits), x.shape[1]

    def arrived(self, crossing: Crossing, blocks: Sequence[Block]) -> tuple[Tensor, int]:
        """Restores activations from their codes."""
        return self.decoded(blocks, self.size), self.size

    def answered(self, crossing: Crossing, g: Tensor, memory: int) -> list[Block]:
        """Sends quantized gradients."""
        return self.coded(crossing, g, self.method.gradient_bits)

    def returned(self, crossing: Crossing, blocks: Sequence[Block], memory: int) -> Tensor:
        """Restores gradients from their codes."""
        return self.decoded(blocks, memory)

    def decoded(self, blocks: Sequence[Block], size: int) -> Tensor:
        """Restores a batch from its codes, where a sample has `size` values: [B * D]."""
        lengths = self.lengths(blocks[0].size // size, size)
        return quantized.ranged(blocks, lengths, self.trainer.device)


class Server(Link, splitfed.Server):
    """The server's half."""

    method: Config


class Clients(Link, splitfed.Clients):
    """The clients' half."""

    method: Config
