"""Tensor <-> blocks: codes of few bits, and in a block of their own what they stand for.

Codes of one scale are a single block: `sparse.block`, `sparse.signs`. Encoding is a few passes over
the values on the host, never a loop over samples; what is decoded is the same on both sides, to the
bit. With `bits = sparse.EXACT` values travel as they are, in one block.
"""

from collections.abc import Sequence
from math import prod
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedmpi.config import ConfigError
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Coding, Kind, Scale, WireError, code_dtype
from fedmpi.messages.sparse import EXACT, Span

Bits = Literal[2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 32]
"""Of a value, as a setting; 32 is EXACT."""


def ranges(
    kind: Kind,
    values: Tensor,
    lengths: Sequence[int] | np.ndarray,
    bits: int,
    random: np.random.Generator | None = None,
    size: int | None = None,
    indices: Tensor | None = None,
) -> list[Block]:
    """Uniform codes between the least and the greatest value of each part, and these ranges.

    See `sparse.quantize_parts` for the codes. Bytes: ceil(count * bits / 8), and 8 a part.

    Args:
        kind: what the values are.
        values: [count] or a shape of that many, part by part.
        lengths: of the parts; samples of a batch are parts of one length.
        bits: 1 to 16, or EXACT.
        random: rounds up or down, right on average; without it to the nearest.
        size: length of the whole vector; by default `values` is all of it.
        indices: their positions, ascending, [count]; None where the receiver knows them.
    """
    if bits == EXACT:
        return [sparse.block(kind, values, size, indices)]
    given = values.detach().reshape(-1).to("cpu", torch.float32).numpy()
    codes, low, step = sparse.quantize_parts(given, lengths, bits, random)
    size = len(given) if size is None else size
    where = None if indices is None else indices.cpu().numpy().astype(np.uint32)
    scale = Scale(0.0, 1.0)
    return [
        Block(kind, size, Coding.CODES, codes, where, bits, scale),
        Block(kind, 2 * len(low), Coding.F4, np.concatenate([low, step])),
    ]


def ranged(
    blocks: Sequence[Block],
    lengths: Sequence[int] | np.ndarray,
    device: torch.device | None = None,
) -> Tensor:
    """What `ranges` stands for, [count].

    Raises:
        WireError: if the blocks are not those of parts of that length.
    """
    parts = torch.as_tensor(np.asarray(lengths, np.int64))
    found = sparse.values(blocks[0], device)
    if len(found) != int(parts.sum()):
        raise WireError(f"{len(found)} values, wanted {int(parts.sum())} of {len(parts)} parts")
    if blocks[0].coding != Coding.CODES:
        return found
    if len(blocks) != 2:
        raise WireError(f"{len(blocks)} blocks, wanted codes and ranges")
    scales = sparse.values(blocks[1], device)
    if len(scales) != 2 * len(parts):
        raise WireError(f"{len(scales)} values of ranges, wanted {2 * len(parts)}")
    low, step = scales.view(2, -1)
    if len(found) and bool((parts == parts[0]).all()):
        rows = found.view(len(parts), -1)
        return rows.mul_(step[:, None]).add_(low[:, None]).view(-1)
    parts = parts.to(found.device)
    return found.mul_(step.repeat_interleave(parts)).add_(low.repeat_interleave(parts))


def strongest(
    kind: Kind,
    x: Tensor,
    spans: Sequence[Span],
    sparsity: float,
    bits: int,
    random: np.random.Generator | None = None,
) -> list[Block]:
    """SGQ: the largest values of each part in codes, their positions, and the codes' ranges.

    Li, He, Chen, *Federated Collaborative Learning with Sparse Gradients for Heterogeneous Data on
    Resource-Constrained Devices*, Entropy 2024, 26(12), 1099.
    Reconstruction: of a part's n values the k = max(1, ceil((1 - sparsity) n)) of largest magnitude
    are kept, and quantized uniformly between the least and the greatest of them: s = (hi - lo) /
    (2^b - 1), q = round((v - lo) / s). Bytes: the smaller of ceil(size / 8) and 4 count for
    positions (none if nothing is left out); ceil(count * b / 8); 8 a part.

    Args:
        kind: what the values are.
        x: [rows, n]: a vector, or a batch as one tensor, is one row; samples are rows of a batch.
        spans: parts of a row with a range of their own, such as `flat.parameters`, ascending and
            apart; what is in none of them does not travel.
        sparsity: share of each part's values that are left out.
        bits: 1 to 16, or EXACT.
        random: rounds up or down, right on average where values are kept; without it to the
            nearest.
    """
    where = sparse.tops(x, spans, sparsity)
    lengths = np.tile(sparse.counts(spans, sparsity), len(x))
    travel = where if sparsity else None
    values = x.detach().reshape(-1)[where]
    return ranges(kind, values, lengths, bits, random, x.numel(), travel)


def restored(
    blocks: Sequence[Block],
    shape: tuple[int, int],
    spans: Sequence[Span],
    sparsity: float,
    device: torch.device | None = None,
) -> Tensor:
    """DQ: the dense tensor [rows, n] that `strongest` stands for, lo + s q, and zeros elsewhere.

    Raises:
        WireError: if the blocks are not those of such a tensor.
    """
    if blocks[0].size != prod(shape):
        raise WireError(f"a block of a tensor of {blocks[0].size}, wanted {prod(shape)}")
    lengths = np.tile(sparse.counts(spans, sparsity), shape[0])
    found = ranged(blocks, lengths, device)
    dense = torch.zeros(shape, device=device)
    if sparsity:
        dense.view(-1)[sparse.indices(blocks[0], device)] = found
    else:
        counts = sparse.counts(spans, sparsity)
        parts = found.view(shape[0], sum(counts)).split(counts, 1)
        for span, part in zip(spans, parts, strict=True):
            dense[:, span.start : span.stop] = part
    return dense


def unbiased(g: Tensor, bits: int, draws: Tensor) -> Tensor:
    """Each value at one of the 2^bits - 1 magnitudes beside it, right on average: [..., n].

    J. Zhang, W. Ni, D. Wang, *Federated Split Learning with Model Pruning and Gradient Quantization
    in Wireless Networks*, arXiv 2412.06414.
    Reconstruction: magnitudes c_u = min|g| + u step for u = 0 .. 2^bits - 2 and step = (max|g| -
    min|g|) / (2^bits - 2), over the last dimension. |g| between c_u and c_{u+1} becomes c_{u+1}
    with the probability (|g| - c_u) / step, else c_u, and keeps its sign. So E[Q(g)] = g, and the
    variance of a value, p (1 - p) step^2, is at most step^2 / 4.
    A row with a value that is not finite becomes NaN: nothing is hidden.

    Args:
        g: [..., n], row by row.
        bits: 2 to 16, or EXACT, which is the identity.
        draws: random numbers from 0 to 1, 1 excluded, of the shape of g.
    """
    if bits == EXACT or not g.numel():
        return g
    level, low, step = _magnitudes(g, bits, draws)
    return (level.float() * step + low).copysign(g)


def _magnitudes(g: Tensor, bits: int, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Levels of `unbiased`, float64 [..., n]; the least magnitude and the step, [..., 1]."""
    magnitude, most = g.abs(), (1 << bits) - 2
    low, high = torch.aminmax(magnitude, dim=-1, keepdim=True)
    step = (high - low) / most
    usual = (step > 0) & step.isfinite()
    # In float64, as in `sparse.quantize_parts`.
    exact = magnitude.double().sub_(low).div_(torch.where(usual, step, 1)).add_(draws)
    level = torch.where(usual, exact.floor_().clamp_(0, most), 0)
    return level, torch.where(step.isfinite(), low, torch.nan), torch.where(usual, step, 0)


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
        sparse.block(kind, torch.from_numpy(norms.ravel())),
    ]


def leveled(codes: Block, norms: Block, bucket: int, device: torch.device) -> Tensor:
    """What `levels` stands for, [count]."""
    top = (1 << codes.bits - 1) - 1
    found = sparse.values(codes, device) / top
    return found * sparse.values(norms, device).repeat_interleave(bucket)[: len(found)]


def columns(
    kind: Kind,
    x: Tensor,
    features: int,
    bits: int,
    random: np.random.Generator | None = None,
) -> list[Block]:
    """Some columns of a batch in uniform codes, each between its least and its greatest value.

    The second half of SplitFC (see `sparse.features`).
    Differs from the paper: all columns have codes of the same number of bits, where the paper's
    number follows from a column's range.
    Bytes: ceil(kept * B * bits / 8), and 8 a column. Which columns they are is `sparse.places`, for
    those who do not know.

    Args:
        kind: what the values are.
        x: the columns that travel, [B, kept].
        features: columns of the whole batch, D.
        bits: 1 to 16, or EXACT.
        random: rounds up or down, right on average; without it to the nearest.
    """
    batch, kept = x.shape
    return ranges(kind, x.t(), np.full(kept, batch), bits, random, batch * features)


def columned(
    blocks: Sequence[Block],
    kept: Tensor,
    shape: tuple[int, int],
    device: torch.device | None = None,
) -> Tensor:
    """The batch [B, D] that `columns` stands for: zeros where a column was dropped.

    Raises:
        WireError: if the blocks are not those of so many columns of such a batch.
    """
    if blocks[0].size != prod(shape):
        raise WireError(f"a block of a batch of {blocks[0].size}, wanted {prod(shape)}")
    found = ranged(blocks, np.full(len(kept), shape[0]), device).view(len(kept), shape[0])
    dense = torch.zeros(shape, device=device)
    dense[:, kept.to(dense.device)] = found.t()
    return dense


def clusters(
    kind: Kind,
    x: Tensor,
    vectors: int,
    groups: int,
    centroids: int,
    random: np.random.Generator,
    iterations: int = 10,
) -> list[Block]:
    """Product quantization: codebooks of centroids, and for each part of a sample its nearest.

    J. Wang, H. Qi, A. S. Rawat, S. Reddi, S. Waghmare, F. X. Yu, G. Joshi, *FedLite: A Scalable
    Approach for Federated Learning on Resource-constrained Clients*, arXiv 2201.11865. A sample's d
    values are q = `vectors` vectors in R = `groups` groups, each with a codebook of L centroids, to
    which the batch's vectors of the group are clustered together. Bytes: 4 R L d / q for codebooks
    in float32, and ceil(B q ceil(log2 L) / 8).
    Reconstruction: a vector is d / q values behind each other, a group q / R neighbours.
    Reconstruction: clusters by S. Lloyd's algorithm (*Least Squares Quantization in PCM*, 1982),
    which begins at L of the vectors, those of the same samples and places in each group; an empty
    cluster stays where it was. Of no more than L vectors each is a centroid, and exact.
    A group with a value that is not finite becomes NaN: nothing is hidden.

    Args:
        kind: what the values are.
        x: a batch, [B, d].
        vectors: vectors of a sample, a divisor of d.
        groups: codebooks, a divisor of `vectors`.
        centroids: of a codebook, 2 to 65536.
        random: chooses where clusters begin.
        iterations: of Lloyd's algorithm, at least 0.

    Raises:
        ConfigError: if something does not divide.
    """
    points = _points(x.detach().float(), vectors, groups)
    count = points.shape[1]
    centroids = min(centroids, count)
    first = np.sort(random.permutation(count)[:centroids])
    books = points[:, torch.from_numpy(first).to(x.device)]
    if centroids < count:
        for _ in range(iterations):
            books = _moved(books, points, _nearest(books, points))
        nearest = _nearest(books, points).to("cpu", torch.int32).numpy().ravel()
    else:  # its own: among neighbours a rounded distance may be less
        nearest = np.tile(np.arange(count, dtype=np.int32), groups)
    books = torch.where(points.isfinite().all(2).all(1)[:, None, None], books, torch.nan)
    bits = max(1, (centroids - 1).bit_length())
    codes, scale = nearest.astype(code_dtype(bits)), Scale(0.0, 1.0)
    return [
        sparse.block(kind, books),
        Block(kind, len(codes), Coding.CODES, codes, None, bits, scale),
    ]


def clustered(
    blocks: Sequence[Block],
    shape: tuple[int, int],
    vectors: int,
    groups: int,
    device: torch.device | None = None,
) -> Tensor:
    """The batch [B, d] that `clusters` stands for.

    Raises:
        WireError: if the blocks are not those of such a batch.
    """
    books, codes = (sparse.values(block, device) for block in blocks)
    size, centroids = shape[1] // vectors, len(books) // (groups * (shape[1] // vectors))
    if len(codes) != shape[0] * vectors or len(books) != groups * centroids * size:
        raise WireError(f"{len(books)} and {len(codes)} values, wanted codebooks of {list(shape)}")
    if len(codes) and codes.max() >= centroids:
        raise WireError(f"code {int(codes.max())} of a codebook of {centroids}")
    nearest = codes.long().view(groups, shape[0] * (vectors // groups), 1)
    found = books.view(groups, centroids, size).gather(1, nearest.expand(-1, -1, size))
    return found.view(groups, shape[0], shape[1] // groups).transpose(0, 1).reshape(shape)


def _points(x: Tensor, vectors: int, groups: int) -> Tensor:
    """The vectors of each group, [groups, B * vectors / groups, d / vectors]."""
    batch, size = x.shape
    if size % vectors or vectors % groups:
        raise ConfigError(
            f"{vectors} vectors in {groups} groups: wanted a divisor of a sample's {size} values, "
            "and a divisor of that"
        )
    rows = x.reshape(batch, groups, size // groups).transpose(0, 1)
    return rows.reshape(groups, batch * (vectors // groups), size // vectors)


def _nearest(books: Tensor, points: Tensor) -> Tensor:
    """The nearest centroid of each point: int64 [groups, points]."""
    groups, count, _ = books.shape
    if not count:
        return points.new_zeros(points.shape[:2], dtype=torch.int64)
    # |p - c|^2 but for |p|^2, which does not matter; so many at a time that they fit into memory.
    # Seen from among the centroids, since squares of what all have in common would drown the rest.
    here = books.mean(1, keepdim=True)
    books = books - here
    squares, turned = books.square().sum(2)[:, None], books.transpose(1, 2)
    chunks = (p - here for p in points.split(max(1, DISTANCES // (groups * count)), 1))
    return torch.cat([torch.baddbmm(squares, p, turned, alpha=-2).argmin(2) for p in chunks], 1)


DISTANCES = 1 << 24
"""Distances that are held at a time."""


def _moved(books: Tensor, points: Tensor, nearest: Tensor) -> Tensor:
    """The mean of each centroid's points; where there is none, the centroid."""
    groups, count, size = books.shape
    place = (nearest + count * torch.arange(groups, device=books.device)[:, None]).view(-1)
    sums = points.new_zeros(groups * count, size).index_add_(0, place, points.reshape(-1, size))
    owned = place.bincount(minlength=groups * count)[:, None]
    means = sums / owned.clamp(min=1)
    return torch.where(owned > 0, means, books.view(-1, size)).view(books.shape)
