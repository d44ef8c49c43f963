"""Tensor <-> block: which values of a vector travel, and in how many bits."""

import numpy as np
import torch
from torch import Tensor

from fedmpi.codec import Block, Coding, Kind, Scale, WireError, code_dtype


def top(vector: Tensor, count: int) -> Tensor:
    """Positions of the `count` largest absolute values, ascending: int64 [count].

    The result is exact. Of a long vector a regular sample tells from where on to look, and only
    the few values beyond are selected from; if they are too few after all, all are.
    """
    magnitude = vector.abs()
    stride = len(vector) // SAMPLE
    if stride > 1 and 0 < count <= len(vector) // 4:
        sample = magnitude[::stride]
        rank = count / stride
        likely = sample.topk(min(len(sample), int(rank + 4 * rank**0.5) + 1)).values[-1]
        # Not below, rather than above: so that a value that is no number is found, too.
        beyond = (~(magnitude < likely)).nonzero().squeeze(1)
        if len(beyond) >= count:
            _, found = torch.topk(magnitude[beyond], count, sorted=False)
            return beyond[found].sort().values
    _, found = torch.topk(magnitude, count, sorted=False)
    return found.sort().values


SAMPLE = 1 << 16
"""Values in a sample that a selection begins with."""


def kept(size: int, sparsity: float) -> int:
    """How many of `size` values remain at that share of zeros: at least one."""
    return max(1, round(size * (1 - sparsity)))


def block(
    kind: Kind,
    values: Tensor,
    size: int | None = None,
    indices: Tensor | None = None,
    coding: Coding = Coding.F4,
    bits: int = 0,
    random: np.random.Generator | None = None,
    golomb: bool = False,
) -> Block:
    """Values of a vector as a block; only they cross from the device to the host.

    Args:
        kind: what the values are.
        values: the values to send, [count].
        size: length of the whole vector; by default `values` is all of it.
        indices: their positions, ascending, [count]; None where the receiver knows them.
        coding: how to write them; CODES quantizes to `bits` bits.
        bits: bits a value, 1 to 16, for CODES.
        random: rounds codes up or down at random, so that they are right on average; without it
            codes are rounded to the nearest.
        golomb: write positions in Golomb's code.
    """
    values = values.detach().reshape(-1)
    where = None if indices is None else indices.to("cpu", torch.int64).numpy().astype(np.uint32)
    size = len(values) if size is None else size
    if coding == Coding.CODES:
        codes, scale = quantize(values.to("cpu", torch.float32).numpy(), bits, random)
        return Block(kind, size, coding, codes, where, bits, scale, golomb)
    if coding == Coding.BF16:
        array = values.to(torch.bfloat16).cpu().view(torch.int16).numpy().view(np.uint16)
    else:
        array = values.to(_TORCH[coding]).cpu().numpy()
    return Block(kind, size, coding, array, where, golomb=golomb)


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
    return Block(Kind.MASK, size, Coding.NONE, None, indices.cpu().numpy().astype(np.uint32))


def quantize(
    values: np.ndarray, bits: int, random: np.random.Generator | None = None
) -> tuple[np.ndarray, Scale]:
    """Uniform b-bit codes between the smallest and the largest value (METHODS: SGQ).

    step = (max - min) / (2**bits - 1), code = round((value - min) / step). With `random` the
    rounding is up with the probability of the fraction, so that E[low + step * code] = value.
    Where a value is not finite, or the range is not, all values become NaN: nothing is hidden.
    """
    if not len(values):
        return np.empty(0, code_dtype(bits)), Scale(0.0, 0.0)
    low, high = np.float32(values.min()), np.float32(values.max())
    with np.errstate(over="ignore", invalid="ignore"):
        step = np.float32((high - low) / np.float32((1 << bits) - 1))
    if not 0 < step < np.inf:  # all values equal, or not finite: one code stands for all
        one = float(low) if step == 0 else np.nan
        return np.zeros(len(values), code_dtype(bits)), Scale(one, 0.0)
    # In float64: beside a code of 16 bits float32 has but 8 bits left for the fraction.
    exact = (values.astype(np.float64) - low) / step
    codes = np.floor(exact + (0.5 if random is None else random.random(len(values)))).clip(
        0, (1 << bits) - 1
    )
    return codes.astype(code_dtype(bits)), Scale(float(low), float(step))


def signs(kind: Kind, values: Tensor, size: int, indices: Tensor | None = None) -> Block:
    """One bit a value: its sign, times the mean absolute value of all.

    Args:
        kind: what the values are.
        values: [count]; zero counts as positive.
        size: length of the whole vector.
        indices: their positions, which travel in Golomb's code; None where both sides know them.
    """
    mean = float(values.abs().mean()) if len(values) else 0.0
    codes = (values >= 0).to("cpu", torch.uint8).numpy()
    where = None if indices is None else indices.cpu().numpy().astype(np.uint32)
    return Block(kind, size, Coding.CODES, codes, where, 1, Scale(-mean, 2 * mean), True)


def levels(
    kind: Kind, values: Tensor, bits: int, bucket: int, random: np.random.Generator
) -> list[Block]:
    """Values in signed levels of their bucket's norm, right on average, and the norms: two blocks.

    QSGD: v_i becomes ||v|| * sign(v_i) * l / s, with s = 2^(bits - 1) - 1 levels and l the level
    below or above s |v_i| / ||v||, by the probability that makes the mean v_i (Alistarh et al., eq.
    2 and 3). A bucket whose norm is not finite becomes NaN: nothing is hidden.

    Args:
        kind: what the values are.
        values: [count].
        bits: bits of a level with its sign, 2 to 16.
        bucket: values that share a norm.
        random: rounds up or down.
    """
    top = (1 << bits - 1) - 1
    given = values.detach().to("cpu", torch.float64).numpy()
    buckets = np.pad(given, (0, -len(given) % bucket)).reshape(-1, bucket)
    norms = np.linalg.norm(buckets, axis=1, keepdims=True).astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        exact = np.where(norms > 0, top * np.abs(buckets) / norms, 0)
    exact = np.where(np.isfinite(norms), exact, 0)
    level = np.floor(exact + random.random(exact.shape)).clip(0, top)
    codes = (top + np.sign(np.nan_to_num(buckets)) * level).ravel()[: len(given)]
    integers = codes.astype(code_dtype(bits))
    scale = Scale(-float(top), 1.0)
    return [
        Block(kind, len(given), Coding.CODES, integers, None, bits, scale),
        block(kind, torch.from_numpy(norms.ravel())),
    ]


def leveled(codes: Block, norms: Block, bucket: int, device: torch.device) -> Tensor:
    """What `levels` stands for, [count]."""
    top = (1 << codes.bits - 1) - 1
    found = values(codes, device) / top
    return found * values(norms, device).repeat_interleave(bucket)[: len(found)]


def values(block: Block, device: torch.device | None = None) -> Tensor:
    """The values of a block as float32 (labels as int64), dequantized: a tensor of its own.

    It is aligned: a buffer's sections are so to 8 bytes only, and results of a matrix product may
    depend on alignment, that is on who else shares the buffer.
    """
    found = _values(block)
    copied = found.to(device)
    is_view = block.coding == Coding.F4 and copied.data_ptr() == found.data_ptr()
    return copied.clone() if is_view else copied


def _values(block: Block) -> Tensor:
    """The same, but a view of the buffer where its values are float32 already."""
    given = block.values
    if given is None:
        raise WireError("wanted a block with values, found positions alone")
    if block.coding == Coding.CODES:
        return torch.from_numpy(given.astype(np.float32)) * block.scale.step + block.scale.low
    if block.coding == Coding.BF16:
        return torch.from_numpy(given.view(np.int16).copy()).view(torch.bfloat16).float()
    if block.coding == Coding.F4:
        return torch.from_numpy(given)
    return torch.from_numpy(given.astype(np.float32 if block.coding == Coding.F2 else np.int64))


def indices(block: Block, device: torch.device | None = None) -> Tensor:
    """The positions that a block carries: int64 [count]."""
    if block.indices is None:
        raise WireError("wanted a block with positions, found one without")
    return torch.from_numpy(block.indices.astype(np.int64)).to(device)


def add(target: Tensor, block: Block, weight: float = 1.0, agreed: Tensor | None = None) -> None:
    """Target += weight * vector, where `block` gives the vector's values.

    Args:
        target: [size], changed in place.
        block: the vector; without positions it gives all values, or those at `agreed`.
        weight: a factor.
        agreed: the positions that both sides know, int64 [count].

    Raises:
        WireError: if the block is not of a vector of that length, or has another count.
    """
    if block.size != len(target):
        raise WireError(f"a block of a vector of {block.size}, wanted {len(target)}")
    found = _values(block).to(target.device)
    where = indices(block, target.device) if block.indices is not None else agreed
    wanted = len(target) if where is None else len(where)
    if len(found) != wanted:
        raise WireError(f"{len(found)} values, wanted {wanted}")
    if where is None:
        target.add_(found, alpha=weight)
    else:
        target.index_add_(0, where, found, alpha=weight)


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
    target = torch.zeros(size, device=device)
    add(target, block, agreed=agreed)
    return target
