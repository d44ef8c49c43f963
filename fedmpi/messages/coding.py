"""The codec of updates: float32 blocks <-> blocks in another coding, whatever the method is.

A method hands over its blocks, of which the first has the update's values in float32. The codec
replaces this block by others, and the receiver gets a single block back, which stands for the same
values on both sides. They need not be float32: `sparse` reads and adds blocks of any coding. So
methods know nothing of codecs. Running statistics are no gradients: beside a lossy codec they are
sent exactly, in a block of their own, because a small error could make a variance negative.

Ternary values are those of TernGrad, unbiased: W. Wen, C. Xu, F. Yan, C. Wu, Y. Wang, Y. Chen,
H. Li, *TernGrad: Ternary Gradients to Reduce Communication in Distributed Deep Learning*, NeurIPS
2017, arXiv 1705.07878, eq. 3. Signs have the mean magnitude, as in EF-signSGD (see
`quantized.signs`).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedmpi.config import Coded
from fedmpi.messages import quantized, select, sparse
from fedmpi.messages.codec import Block, Coding, Kind, Places, WireError
from fedmpi.messages.select import Span

CODINGS = {"f2": Coding.F2, "bf16": Coding.BF16, "zstd": Coding.ZSTD}
PLACES = {
    "uint32": Places.POSITIONS,
    "bitmap": Places.BITMAP,
    "delta": Places.DELTA,
    "golomb": Places.GOLOMB,
}
"""Codings by the values of the settings; float32 and the shorter of two beside them."""


class Coder:
    """Writes updates as the settings say, and reads them, on both sides alike.

    Args:
        codec: the settings.
        spans: parameters of the network that updates are of, ascending.
        exact: positions of its running statistics, int64.
        size: length of an update.
        apart: whether the method sends running statistics by itself. Then values at their positions
            are zero, and are not sent.

    Attributes:
        has_exact: whether running statistics are taken out of an update's values.
        has_extra: whether they then are in a block of their own, the last one.
        blocks: number of blocks that replace the first one of an upload.
    """

    def __init__(
        self, codec: Coded, spans: Sequence[Span], exact: Tensor, size: int, apart: bool
    ) -> None:
        self.codec, self.size, self.apart = codec, size, apart
        self.stops = torch.tensor([span.stop for span in spans], dtype=torch.int64)
        self.exact = torch.zeros(size, dtype=torch.bool)
        self.exact[exact.cpu()] = True
        self.has_exact = len(exact) > 0 and (codec.is_lossy or apart)
        self.has_extra = self.has_exact and not apart
        self.is_plain = codec.values == "f4" and codec.positions == "auto"
        has_scales = codec.has_scales and codec.scales != "whole"
        self.blocks = 1 + has_scales + self.has_extra

    def encode(self, blocks: Sequence[Block], where: Tensor | None, key: np.ndarray) -> list[Block]:
        """Replaces the first of some blocks by others.

        Args:
            blocks: of an upload; the first has float32 values.
            where: positions of its values, int64 ascending; None if it has all values.
            key: rounds codes (`streams.key`).

        Returns:
            `self.blocks` blocks in place of the first one, and the rest as it was.

        Raises:
            WireError: if the first has other values than float32.
        """
        if self.is_plain:
            return list(blocks)
        first, *rest = blocks
        if first.coding != Coding.F4 or first.values is None:
            raise WireError(f"a codec takes float32 values, found {first.coding.name}")
        values, travels = torch.from_numpy(first.values), first.indices is not None
        if travels and self.codec.positions == "dense":
            values, where = sparse.vector(first, first.size, torch.device("cpu")), None
            travels = False
        is_exact = self._exact(where)
        extra = []
        if is_exact is not None:
            if self.has_extra:
                extra = [sparse.block(first.kind, values[is_exact], first.size)]
            values = values[~is_exact]
            where = (torch.arange(len(is_exact)) if where is None else where.cpu())[~is_exact]
        indices = where if travels else None
        coded = self._write(first.kind, values, first.size, indices, where, key)
        if travels:
            coded[0] = replace(coded[0], places=PLACES.get(self.codec.positions))
        return [*coded, *extra, *rest]

    def decode(self, blocks: Sequence[Block], where: Tensor | None) -> list[Block]:
        """Restores a single block of all values, the same on both sides.

        Args:
            blocks: as `encode` made them.
            where: as there; None also where values are sent as a dense vector.

        Returns:
            One block, of any coding, in place of the first `self.blocks`, and the rest.

        Raises:
            WireError: if the blocks are no such update.
        """
        if self.is_plain:
            return list(blocks)
        if len(blocks) < self.blocks:
            raise WireError(f"{len(blocks)} blocks, wanted at least {self.blocks}")
        coded, rest = list(blocks[: self.blocks]), blocks[self.blocks :]
        first = coded[0]
        extra = coded.pop() if self.has_extra else None
        is_exact = None
        if first.indices is None:
            wanted = self.size if where is None else len(where)
            is_exact = self._exact(where)
            # Before values are decoded: compressed ones can be far more than their bytes.
            if is_exact is None and first.count != wanted:
                raise WireError(f"{first.count} values, wanted {wanted}")
        if is_exact is None:
            return [self._read(coded, where), *rest]
        exact = int(is_exact.sum())
        if first.count != len(is_exact) - exact or (extra and extra.count != exact):
            raise WireError(f"{first.count} values, wanted {len(is_exact)}, {exact} exact")
        at = torch.arange(len(is_exact)) if where is None else where.cpu()
        found = torch.zeros(len(is_exact))
        found[~is_exact] = sparse.values(self._read(coded, at[~is_exact]))
        if extra is not None:
            found[is_exact] = sparse.values(extra)
        return [Block(first.kind, first.size, Coding.F4, found.numpy(), first.indices), *rest]

    def _exact(self, where: Tensor | None) -> Tensor | None:
        """Marks which values are taken out as running statistics; None if none can be."""
        if not self.has_exact:
            return None
        return self.exact if where is None else self.exact[where.cpu()]

    def _lengths(self, where: Tensor | None, count: int) -> list[int]:
        """How many of `count` values at some positions have each scale.

        There are at least two such parts but for `whole`, so that scales have a block of their own.
        """
        if self.codec.scales == "whole":
            return [count]
        if self.codec.scales == "bucket":
            whole, left = divmod(count, self.codec.bucket)
            lengths = [self.codec.bucket] * whole + [left] * (left > 0)
            return lengths + [0] * (2 - len(lengths))
        at = torch.arange(count) if where is None else where.cpu()
        lengths = select.numbers_within(self.stops, at)
        return lengths + [0] * (2 - len(lengths))

    def _write(
        self,
        kind: Kind,
        values: Tensor,
        size: int,
        indices: Tensor | None,
        where: Tensor | None,
        key: np.ndarray,
    ) -> list[Block]:
        """Encodes values: float32 [count], at the positions `where`, of which `indices` travel."""
        codec = self.codec
        if not codec.has_scales:
            coding = CODINGS.get(codec.values, Coding.F4)
            return [sparse.block(kind, values, size, indices, coding)]
        lengths = self._lengths(where, len(values))
        if codec.values == "uniform":
            given = key if codec.rounding == "stochastic" else None
            if codec.scales == "whole":
                about = indices, Coding.CODES, codec.bits, given
                return [sparse.block(kind, values, size, *about)]
            return quantized.ranges(kind, values, lengths, codec.bits, given, size, indices)
        if codec.values == "sign":
            return quantized.signs(kind, values, lengths, size, indices)
        return quantized.ternary(kind, values, lengths, size, indices, key)

    def _read(self, blocks: Sequence[Block], where: Tensor | None) -> Block:
        """Joins what `_write` encoded to one block of `count` values."""
        codec, first = self.codec, blocks[0]
        if not codec.has_scales or len(blocks) == 1:
            return first
        if codec.scales == "tensor" and first.indices is not None:
            where = sparse.indices(first)
        lengths = self._lengths(where, first.count)
        if codec.values == "uniform":
            return quantized.joined(blocks, lengths)
        return quantized.signed(blocks, lengths)
