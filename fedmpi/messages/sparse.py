"""Conversion between tensors and blocks: values at some positions of a vector, in some bits.

Which positions these are, `select` chooses. Codes with a scale for each part of the values are in
`quantized`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedmpi.config import EXACT
from fedmpi.messages import lossless
from fedmpi.messages.codec import Block, Coding, Kind, Scale, WireError
from fedmpi.messages.kernels import adding, codes
from fedmpi.messages.kernels.codes import Form, Grid


def block(
    kind: Kind,
    values: Tensor,
    size: int | None = None,
    indices: Tensor | np.ndarray | None = None,
    coding: Coding = Coding.F4,
    bits: int = 0,
    key: np.ndarray | None = None,
) -> Block:
    """Values of a vector as a block; only they cross from the device to the host.

    Args:
        kind: what the values are.
        values: the values to send, [count].
        size: length of the whole vector; by default `values` is all of it.
        indices: their positions, ascending, [count]: an int64 tensor, or uint32 on the host; None
            where the receiver knows them.
        coding: how to write them; CODES quantizes to `bits` bits, ZSTD wants its package.
        bits: bits a value, 1 to 16, for CODES; with EXACT values travel in float32 after all.
        key: rounds codes up or down at random, so that they are right on average (`streams.key`);
            without it codes are rounded to the nearest.
    """
    if values.requires_grad or values.dim() != 1:
        values = values.detach().reshape(-1)
    where = None if indices is None else uint32(indices)
    size = values.numel() if size is None else size
    if coding == Coding.CODES and bits == EXACT:
        coding = Coding.F4
    if coding == Coding.CODES:
        given = host(values)
        grid = uniform(given, [len(given)], bits)
        scale = Scale(float(grid.low[0]), float(grid.step[0]))
        data = codes.encode(given, grid, key)
        return Block(kind, size, coding, data, where, bits, scale, count=len(given))
    if coding == Coding.ZSTD:
        frame = lossless.encode(host(values))
        return Block(kind, size, coding, frame, where, count=len(values))
    if coding == Coding.BF16:
        array = values.to(torch.bfloat16).cpu().view(torch.int16).numpy().view(np.uint16)
    else:
        array = values.to("cpu", _TORCH[coding]).numpy()
    return Block(kind, size, coding, array, where)


def uint32(indices: Tensor | np.ndarray) -> np.ndarray:
    """Positions as a block has them, uint32 [count]: those of a tensor, or as they are."""
    if isinstance(indices, np.ndarray):
        return indices
    return indices.cpu().numpy().astype(np.uint32)


_TORCH = {
    Coding.F4: torch.float32,
    Coding.F2: torch.float16,
    Coding.U1: torch.uint8,
    Coding.U2: torch.uint16,
    Coding.U4: torch.uint32,
}


def labels(y: Tensor, classes: int) -> Block:
    """Labels [B] in the narrowest coding that holds `classes` of them."""
    coding = Coding.U1 if classes <= 1 << 8 else Coding.U2 if classes <= 1 << 16 else Coding.U4
    return block(Kind.LABEL, y, coding=coding)


def places(indices: Tensor, size: int) -> Block:
    """An index set as a block without values: int64 [count], ascending."""
    return Block(Kind.MASK, size, Coding.NONE, None, uint32(indices))


def host(values: Tensor) -> np.ndarray:
    """Values in the memory of the host, contiguous: float32 [count]."""
    return values.detach().reshape(-1).to("cpu", torch.float32).contiguous().numpy()


def uniform(
    values: np.ndarray,
    lengths: Sequence[int] | np.ndarray,
    bits: int,
    form: Form = Form.RANGE,
) -> Grid:
    """Uniform levels between the smallest and the largest value, or magnitude, of each part.

    step = (max - min) / (2**bits - 1), code = round((value - min) / step), as in SGQ (see
    `quantized.strongest`); levels of magnitudes have one bit less.
    Where a value is not finite, or the range is not, all of the part become NaN: nothing is hidden.

    Args:
        values: float32 [count], part by part.
        lengths: of the parts.
        bits: bits of a code, 1 to 16; 2 at least with a sign.
        form: RANGE, or SIGN for magnitudes.
    """
    ends, is_signed = np.cumsum(lengths, dtype=np.int64), form == Form.SIGN
    low, high = codes.bounds(values, ends, is_signed)
    with np.errstate(over="ignore", invalid="ignore"):
        step = (high - low) / np.float32((1 << bits - is_signed) - 1)
    usual = (step > 0) & (step < np.inf)
    low = np.where(usual | (step == 0), low, np.float32(np.nan))
    return Grid(bits, ends, low, np.where(usual, step, np.float32(0)), form)


def values(block: Block, device: torch.device | None = None) -> Tensor:
    """The values of a block as float32 (labels as int64), dequantized: a tensor of its own.

    It is aligned: a buffer's sections are so to 8 bytes only, and results of a matrix product may
    depend on alignment, that is on who else shares the buffer.

    Args:
        block: the block.
        device: where the tensor is to be.

    Raises:
        WireError: if the block has no values, or not those that its head says.
    """
    found = _values(block)
    copied = found.to(device)
    is_view = block.coding == Coding.F4 and copied.data_ptr() == found.data_ptr()
    return copied.clone() if is_view else copied


def _values(block: Block) -> Tensor:
    """Returns the values of a block, as a view of the buffer where they are float32 already."""
    given = block.values
    if given is None:
        raise WireError("wanted a block with values, found positions alone")
    if block.coding == Coding.CODES:
        return torch.from_numpy(codes.decode(given, _grid(block)))
    if block.coding == Coding.ZSTD:
        return torch.from_numpy(lossless.decode(given, block.count))
    if block.coding == Coding.BF16:
        return torch.from_numpy(given.view(np.int16).copy()).view(torch.bfloat16).float()
    if block.coding == Coding.F4:
        return torch.from_numpy(given)
    return torch.from_numpy(given.astype(np.float32 if block.coding == Coding.F2 else np.int64))


def _grid(block: Block) -> Grid:
    """Returns what the codes of a block stand for; a single scale is in its header."""
    if block.grid is not None:
        return block.grid
    ends, (low, step) = np.array([block.count]), np.array(block.scale, np.float32)[:, np.newaxis]
    return Grid(block.bits, ends, low, step)


def indices(block: Block, device: torch.device | None = None) -> Tensor:
    """The positions that a block carries: int64 [count]."""
    if block.indices is None:
        raise WireError("wanted a block with positions, found one without")
    return torch.from_numpy(block.indices.astype(np.int64)).to(device)


def add(target: Tensor, block: Block, weight: float = 1.0, agreed: Tensor | None = None) -> None:
    """Target += weight * vector, where `block` gives the vector's values.

    On a CPU codes are added as they are unpacked, and no vector of their values is made.

    Args:
        target: [size], changed in place.
        block: the vector; without positions it gives all values, or those at `agreed`.
        weight: a factor.
        agreed: the positions that both sides know, int64 [count].

    Raises:
        WireError: if the block is not of a vector of that length, or has another count.
    """
    size, where = target.numel(), block.indices  # `len` of a tensor takes several times as long
    if block.size != size:
        raise WireError(f"a block of a vector of {block.size}, wanted {size}")
    known = size if agreed is None else agreed.numel()
    wanted = known if where is None else len(where)
    if block.count != wanted:
        raise WireError(f"{block.count} values, wanted {wanted}")
    is_host = not target.is_cuda
    if is_host and block.coding == Coding.CODES:
        assert block.values is not None
        if where is None and agreed is not None:
            where = uint32(agreed)
        codes.add(target.numpy(), block.values, _grid(block), weight, where)
        return
    if is_host and where is not None:
        # The same as below, and faster.
        found = block.values if block.coding == Coding.F4 else _values(block).numpy()
        assert found is not None
        if not adding.add_at(target.numpy(), where, found, weight):
            raise WireError(f"positions beyond a vector of {size}")
        return
    given = _values(block).to(target.device)
    if where is not None:
        agreed = indices(block, target.device)
    if agreed is None:
        target.add_(given, alpha=weight)
    else:
        target.index_add_(0, agreed, given, alpha=weight)


def scaled(block: Block, weight: float, count: int, device: torch.device) -> Tensor:
    """Returns weight * value of each value of a block, [count]: what `add_values` adds to zeros.

    Raises:
        WireError: if the block has another count.
    """
    if block.coding == Coding.F4 and device.type == "cpu":
        _check(block, count)
        given = _values(block)
        # Added to zero, so that no zero keeps a sign.
        return torch.add(given.new_zeros(()), given, alpha=weight)
    found = torch.zeros(count, device=device)
    add_values(found, block, weight)
    return found


def add_values(target: Tensor, block: Block, weight: float = 1.0) -> None:
    """Adds weight * value of each value of a block; the bits are those of `add` at positions.

    Args:
        target: [count], changed in place.
        block: the values; its positions do not matter.
        weight: a factor.

    Raises:
        WireError: if the block has another count.
    """
    _check(block, target.numel())
    if block.coding == Coding.CODES and not target.is_cuda:
        assert block.values is not None
        codes.add(target.numpy(), block.values, _grid(block), weight)
        return
    target.add_(_values(block).to(target.device) * weight)


def _check(block: Block, count: int) -> None:
    if block.count != count:
        raise WireError(f"{block.count} values, wanted {count}")


def mean(total: Tensor, weights: Tensor) -> Tensor:
    """Each position's mean over those who have it, [n]; zero where nobody has.

    Args:
        total: their values, each times a weight, [n]; zero where nobody has any.
        weights: the sums of their weights, [n].
    """
    return total / torch.where(weights > 0, weights, 1)


def vector(block: Block, size: int, device: torch.device, agreed: Tensor | None = None) -> Tensor:
    """The dense vector [size] that a block stands for: zeros where it gives nothing."""
    if block.count == size == block.size and agreed is None:
        return values(block, device)
    target = torch.empty(size, device=device)
    fill(target, block, agreed)
    return target


def fill(target: Tensor, block: Block, agreed: Tensor | None = None) -> None:
    """Writes the dense vector that a block stands for, as `vector` does, to memory that is there.

    New memory takes several times as long.

    Args:
        target: [size], whose values are replaced.
        block: the vector.
        agreed: the positions that both sides know, int64 [count].

    Raises:
        WireError: if the block is not of a vector of that length, or has another count.
    """
    if block.count == target.numel() == block.size and agreed is None:
        target.copy_(_values(block))
    else:
        target.zero_()
        add(target, block, agreed=agreed)
