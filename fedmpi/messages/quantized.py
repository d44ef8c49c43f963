"""Tensor <-> blocks of quantized values, with their scales in a second block.

If all codes have one scale, a single block is enough, as of `sparse.block`. Encoding passes over
the values twice: one pass finds the scales, one rounds and packs. Decoded values are bit-identical
on both sides. With `bits = EXACT` values are sent unquantized, in one block.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import nan, prod

import numpy as np
import torch
from torch import Tensor

from fedmpi.config import EXACT, ConfigError
from fedmpi.messages import select, sparse
from fedmpi.messages.codec import INTEGERS, Block, Coding, Kind, Places, Scale, WireError
from fedmpi.messages.kernels import codes
from fedmpi.messages.kernels.codes import Form, Grid
from fedmpi.messages.select import Span


def ranges(
    kind: Kind,
    values: Tensor,
    lengths: Sequence[int] | np.ndarray,
    bits: int,
    key: np.ndarray | None = None,
    size: int | None = None,
    indices: Tensor | np.ndarray | None = None,
    by_sign: bool = False,
) -> list[Block]:
    """Quantizes each part uniformly between its least and its greatest value.

    The levels are those of `sparse.uniform`. The second block has each part's least value and
    step. With `by_sign` they are those of magnitudes with one bit less, and the highest bit is set
    if the value is negative. Bytes: ceil(count * bits / 8), and 8 a part.

    Args:
        kind: content of the values.
        values: [count] or a shape with as many elements, part by part.
        lengths: lengths of the parts, such as the samples of a batch.
        bits: 1 to 16, or EXACT; with `by_sign` 2 at least.
        key: rounds stochastically and unbiased (`streams.key`); None rounds to the nearest.
        size: length of the whole vector; by default that of `values`.
        indices: positions of the values, ascending, [count]; None if the receiver knows them.
        by_sign: whether codes are a sign and a magnitude.
    """
    if bits == EXACT:
        return [sparse.block(kind, values, size, indices)]
    given = sparse.host(values)
    grid = sparse.uniform(given, lengths, bits, Form.SIGN if by_sign else Form.RANGE)
    size = len(given) if size is None else size
    data = codes.encode(given, grid, key)
    return [
        _coded(kind, size, data, bits, len(given), indices=indices),
        Block(kind, 2 * len(grid.ends), Coding.F4, np.concatenate([grid.low, grid.step])),
    ]


def _coded(
    kind: Kind,
    size: int,
    data: np.ndarray,
    bits: int,
    count: int,
    scale: Scale = INTEGERS,
    indices: Tensor | np.ndarray | None = None,
    places: Places | None = None,
) -> Block:
    """The block of packed codes."""
    where = None if indices is None else sparse.uint32(indices)
    return Block(kind, size, Coding.CODES, data, where, bits, scale, places, count)


def ranged(
    blocks: Sequence[Block],
    lengths: Sequence[int] | np.ndarray,
    device: torch.device | None = None,
    by_sign: bool = False,
) -> Tensor:
    """Decodes blocks of `ranges`, [count].

    Raises:
        WireError: if the blocks do not fit parts of these lengths.
    """
    return sparse.values(joined(blocks, lengths, by_sign), device)


def joined(
    blocks: Sequence[Block], lengths: Sequence[int] | np.ndarray, by_sign: bool = False
) -> Block:
    """The blocks of `ranges` as a single one, which knows what its codes stand for.

    Raises:
        WireError: if the blocks do not fit parts of these lengths.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    if blocks[0].count != total:
        raise WireError(f"{blocks[0].count} values, wanted {total} of {len(ends)} parts")
    if blocks[0].coding != Coding.CODES:
        return blocks[0]
    if len(blocks) != 2:
        raise WireError(f"{len(blocks)} blocks, wanted codes and ranges")
    scales = sparse.values(blocks[1]).numpy()
    if len(scales) != 2 * len(ends):
        raise WireError(f"{len(scales)} values of ranges, wanted {2 * len(ends)}")
    low, step = scales.reshape(2, -1)
    form = Form.SIGN if by_sign else Form.RANGE
    return replace(blocks[0], grid=Grid(blocks[0].bits, ends, low, step, form))


def strongest(
    kind: Kind,
    x: Tensor,
    spans: Sequence[Span],
    sparsity: float,
    bits: int,
    key: np.ndarray | None = None,
    by_sign: bool = False,
) -> list[Block]:
    """Sparse gradient quantization (SGQ): quantizes the largest values of each part.

    The blocks also hold the values' positions and each part's range. Li, He, Chen, *Federated
    Collaborative Learning with Sparse Gradients for Heterogeneous Data on Resource-Constrained
    Devices*, Entropy 2024, 26(12), 1099.
    Reconstruction: of a part's n values the k = max(1, ceil((1 - sparsity) n)) of largest magnitude
    are kept, and quantized uniformly between the least and the greatest of them: s = (hi - lo) /
    (2^b - 1), q = round((v - lo) / s). Bytes: the smaller of ceil(size / 8) and 4 count for
    positions, none if all values are kept; ceil(count * b / 8) for codes; 8 a part.

    Args:
        kind: content of the values.
        x: [rows, n]; a vector, or a batch as one tensor, is one row, or each sample is one.
        spans: parts of a row with a range of their own, such as `flat.parameters`, ascending and
            disjoint; values outside of all spans are not sent.
        sparsity: share of each part's values that are left out.
        bits: 1 to 16, or EXACT.
        key: rounds kept values stochastically and unbiased; None rounds to the nearest.
        by_sign: whether codes are a sign and a magnitude (see `ranges`).
    """
    chosen = select.tops(x, spans, sparsity)
    lengths = np.tile(select.counts(spans, sparsity), len(x))
    travel = chosen.places if sparsity else None
    return ranges(kind, chosen.values, lengths, bits, key, x.numel(), travel, by_sign)


def restored(
    blocks: Sequence[Block],
    shape: tuple[int, int],
    spans: Sequence[Span],
    sparsity: float,
    device: torch.device | None = None,
    by_sign: bool = False,
) -> Tensor:
    """Dequantization (DQ): decodes `strongest` to a dense tensor [rows, n], zero elsewhere.

    Raises:
        WireError: if the blocks do not fit such a tensor.
    """
    if blocks[0].size != prod(shape):
        raise WireError(f"a block of a tensor of {blocks[0].size}, wanted {prod(shape)}")
    lengths = np.tile(select.counts(spans, sparsity), shape[0])
    dense = torch.zeros(shape, device=device)
    if sparsity:
        sparse.add(dense.view(-1), joined(blocks, lengths, by_sign))
    else:
        found = ranged(blocks, lengths, device, by_sign)
        counts = select.counts(spans, sparsity)
        parts = found.view(shape[0], sum(counts)).split(counts, 1)
        for span, part in zip(spans, parts, strict=True):
            dense[:, span.start : span.stop] = part
    return dense


def signs(
    kind: Kind,
    values: Tensor,
    lengths: Sequence[int],
    size: int,
    indices: Tensor | np.ndarray | None = None,
) -> list[Block]:
    """One bit a value: its sign, times the mean absolute value of its part.

    Bytes: ceil(count / 8), and 4 a part in a second block. The scale of a single part is in the
    header of the first block, and there is no other.

    Args:
        kind: what the values are.
        values: [count], part by part; zero counts as positive.
        lengths: of the parts, which the receiver knows or can tell from the positions.
        size: length of the whole vector.
        indices: positions, ascending, which travel in Golomb's code; None where both sides know
            them.
    """
    means = torch.stack([v.abs().mean() if len(v) else v.sum() for v in values.split(lengths)])
    given = sparse.host(values)
    return _scaled(kind, codes.signs(given), 1, means, 2.0, lengths, size, indices, Places.GOLOMB)


def ternary(
    kind: Kind,
    values: Tensor,
    lengths: Sequence[int],
    size: int,
    indices: Tensor | np.ndarray | None = None,
    key: np.ndarray | None = None,
) -> list[Block]:
    """Two bits a value: -1, 0 or 1 times the largest magnitude s of its part, as in TernGrad.

    W. Wen, C. Xu, F. Yan, C. Wu, Y. Wang, Y. Chen, H. Li, *TernGrad: Ternary Gradients to Reduce
    Communication in Distributed Deep Learning*, NeurIPS 2017, arXiv 1705.07878, eq. 3: a value v is
    sign(v) s with the probability |v| / s, else 0. Bytes: ceil(count / 4), and 4 a part as those
    of `signs`. A part with a value that is not finite becomes NaN.

    Args:
        kind: what the values are.
        values: [count], part by part.
        lengths: of the parts, which the receiver knows or can tell from the positions.
        size: length of the whole vector.
        indices: positions, ascending; None where both sides know them.
        key: rounds unbiased (`streams.key`); None rounds to the nearest.
    """
    given = sparse.host(values)
    ends = np.cumsum(lengths, dtype=np.int64)
    tops = codes.bounds(given, ends, is_magnitude=True)[1]
    tops = np.where(np.isfinite(tops), tops, np.float32(np.nan))
    data = codes.encode(given, Grid(2, ends, np.zeros_like(tops), tops, Form.MIDDLE), key)
    return _scaled(kind, data, 2, torch.from_numpy(tops), 1.0, lengths, size, indices, None)


def _scaled(
    kind: Kind,
    data: np.ndarray,
    bits: int,
    scales: Tensor,
    step: float,
    lengths: Sequence[int],
    size: int,
    indices: Tensor | np.ndarray | None,
    places: Places | None,
) -> list[Block]:
    """Blocks of codes that stand for (step * code - 1) times the scale of their part."""
    one = float(scales[0]) if len(lengths) == 1 else 1.0
    scale, count = Scale(-one, step * one), int(np.sum(lengths, dtype=np.int64))
    first = _coded(kind, size, data, bits, count, scale, indices, places)
    return [first] if len(lengths) == 1 else [first, sparse.block(kind, scales)]


def signed(blocks: Sequence[Block], lengths: Sequence[int]) -> Block:
    """The blocks of `signs` or `ternary` as a single one, which knows what its codes stand for.

    Raises:
        WireError: if the blocks do not fit parts of these lengths.
    """
    first, *others = blocks
    total = int(np.sum(lengths, dtype=np.int64))
    if first.count != total or len(others) != (len(lengths) > 1):
        raise WireError(f"{first.count} signs, wanted {total} of {len(lengths)} parts")
    if not others:
        return first
    scales = sparse.values(others[0]).numpy()
    if len(scales) != len(lengths):
        raise WireError(f"{len(scales)} scales, wanted {len(lengths)}")
    low, step = (scales * np.float32(each) for each in first.scale)
    return replace(first, grid=Grid(first.bits, np.cumsum(lengths, dtype=np.int64), low, step))


def unbiased(g: Tensor, bits: int, draws: Tensor) -> Tensor:
    """Rounds each magnitude stochastically to one of 2^bits - 1 levels, unbiased: [..., n].

    J. Zhang, W. Ni, D. Wang, *Federated Split Learning with Model Pruning and Gradient Quantization
    in Wireless Networks*, arXiv 2412.06414.
    Reconstruction: levels are c_u = min|g| + u step for u = 0 .. 2^bits - 2 and step = (max|g| -
    min|g|) / (2^bits - 2), over the last dimension. |g| between c_u and c_{u+1} becomes c_{u+1}
    with the probability (|g| - c_u) / step, else c_u, and keeps its sign. So E[Q(g)] = g, and the
    variance of a value, p (1 - p) step^2, is at most step^2 / 4.
    A row with a value that is not finite becomes NaN, so that a divergence stays visible.

    Args:
        g: [..., n], row by row.
        bits: 2 to 16, or EXACT, which is the identity.
        draws: uniform random numbers in [0, 1), of the shape of g.
    """
    if bits == EXACT or not g.numel():
        return g
    level, low, step = _magnitudes(g, bits, draws)
    return (level.float() * step + low).copysign(g)


def expected_error(g: Tensor, bits: int) -> float:
    """Returns E||Q(g) - g||^2 of `unbiased`: the sum of p (1 - p) step^2 over all values.

    It is NaN if a value is not finite.
    """
    if bits == EXACT or not g.numel():
        return 0.0
    if not g.isfinite().all():
        return nan
    below, low, step = (part.double() for part in _magnitudes(g, bits, torch.zeros_like(g)))
    rest = torch.where(step > 0, (g.abs().double() - low) / step - below, 0)
    return float((rest * (1 - rest) * step.square()).sum())


def _magnitudes(g: Tensor, bits: int, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the levels of `unbiased`, float64 [..., n], least magnitudes and steps, [..., 1]."""
    magnitude, most = g.abs(), (1 << bits) - 2
    low, high = torch.aminmax(magnitude, dim=-1, keepdim=True)
    step = (high - low) / most
    usual = (step > 0) & step.isfinite()
    # In float64, as in `kernels.codes`.
    exact = magnitude.double().sub_(low).div_(torch.where(usual, step, 1)).add_(draws)
    level = torch.where(usual, exact.floor_().clamp_(0, most), 0)
    return level, torch.where(step.isfinite(), low, torch.nan), torch.where(usual, step, 0)


def levels(kind: Kind, values: Tensor, bits: int, bucket: int, key: np.ndarray) -> list[Block]:
    """Encodes values as signed levels of their bucket's norm (QSGD), unbiased: levels and norms.

    v_i becomes ||v|| * sign(v_i) * l / s, with s = 2^(bits - 1) - 1 levels. l is the level below or
    above s |v_i| / ||v||, drawn such that the mean is v_i (Alistarh et al., arXiv 1610.02132, eq. 2
    and 3). A bucket whose norm is not finite becomes NaN, so that a divergence stays visible.

    Args:
        kind: content of the values.
        values: [count].
        bits: bits of a level with its sign, 2 to 16.
        bucket: number of values that share a norm.
        key: rounds stochastically (`streams.key`).
    """
    given = sparse.host(values)
    ends = _buckets(len(given), bucket)
    norms = codes.norms(given, ends)
    grid = _level_grid(bits, ends, norms)
    data, scale = codes.encode(given, grid, key), Scale(1.0 - (1 << bits - 1), 1.0)
    return [
        _coded(kind, len(given), data, bits, len(given), scale),
        sparse.block(kind, torch.from_numpy(norms)),
    ]


def leveled(blocks: Sequence[Block], bucket: int) -> Block:
    """The blocks of `levels` as a single one, which knows what its codes stand for.

    Raises:
        WireError: if the blocks do not fit buckets of that length.
    """
    first, norms = blocks[0], sparse.values(blocks[1]).numpy()
    ends = _buckets(first.count, bucket)
    if len(norms) != len(ends):
        raise WireError(f"{len(norms)} norms, wanted {len(ends)}")
    return replace(first, grid=_level_grid(first.bits, ends, norms))


def _buckets(count: int, bucket: int) -> np.ndarray:
    return np.minimum(np.arange(bucket, count + bucket, bucket), count)


def _level_grid(bits: int, ends: np.ndarray, norms: np.ndarray) -> Grid:
    step = norms / np.float32((1 << bits - 1) - 1)
    return Grid(bits, ends, np.zeros_like(step), step, Form.MIDDLE)


def columns(
    kind: Kind,
    x: Tensor,
    features: int,
    bits: int,
    key: np.ndarray | None = None,
) -> list[Block]:
    """Quantizes columns of a batch uniformly, each between its least and its greatest value.

    The second half of SplitFC; the first is `select.features`.
    Differs from the paper: all columns have the same number of bits, where the paper derives it
    from a column's range.
    Bytes: ceil(kept * B * bits / 8), and 8 a column. The columns' numbers are not included;
    `sparse.places` encodes them.

    Args:
        kind: content of the values.
        x: the columns that are sent, [B, kept].
        features: number of columns of the whole batch, D.
        bits: 1 to 16, or EXACT.
        key: rounds stochastically and unbiased (`streams.key`); None rounds to the nearest.
    """
    batch, kept = x.shape
    return ranges(kind, x.t(), np.full(kept, batch), bits, key, batch * features)


def columned(
    blocks: Sequence[Block],
    kept: Tensor,
    shape: tuple[int, int],
    device: torch.device | None = None,
) -> Tensor:
    """Decodes blocks of `columns` to a batch [B, D], zero in columns that were dropped.

    Raises:
        WireError: if the blocks do not fit these columns of such a batch.
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
    """Product quantization: encodes a batch as codebooks of centroids and codes of the nearest.

    J. Wang, H. Qi, A. S. Rawat, S. Reddi, S. Waghmare, F. X. Yu, G. Joshi, *FedLite: A Scalable
    Approach for Federated Learning on Resource-constrained Clients*, arXiv 2201.11865. A sample's d
    values are divided into q = `vectors` vectors in R = `groups` groups. The batch's vectors of a
    group are clustered together, and the group's codebook is the L centroids. Bytes: 4 R L d / q
    for codebooks in float32, and ceil(B q ceil(log2 L) / 8).
    Reconstruction: a vector is d / q consecutive values, a group q / R consecutive vectors.
    Reconstruction: vectors are clustered by S. Lloyd's algorithm (*Least Squares Quantization in
    PCM*, 1982). It starts from L of the vectors, those of the same samples and places in each
    group; the centroid of an empty cluster stays. If there are at most L vectors, each is a
    centroid, and exact.
    A group with a value that is not finite becomes NaN, so that a divergence stays visible.

    Args:
        kind: content of the values.
        x: a batch, [B, d].
        vectors: vectors of a sample, a divisor of d.
        groups: codebooks, a divisor of `vectors`.
        centroids: centroids of a codebook, 2 to 65536.
        random: draws the initial centroids.
        iterations: iterations of Lloyd's algorithm, at least 0.

    Raises:
        ConfigError: if `vectors` does not divide d, or `groups` does not divide `vectors`.
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
    count, data = len(nearest), codes.squeeze(nearest, bits)
    return [sparse.block(kind, books), _coded(kind, count, data, bits, count)]


def clustered(
    blocks: Sequence[Block],
    shape: tuple[int, int],
    vectors: int,
    groups: int,
    device: torch.device | None = None,
) -> Tensor:
    """Decodes blocks of `clusters` to a batch [B, d].

    Raises:
        WireError: if the blocks do not fit such a batch.
    """
    books, nearest = (sparse.values(block, device) for block in blocks)
    size, centroids = shape[1] // vectors, len(books) // (groups * (shape[1] // vectors))
    if len(nearest) != shape[0] * vectors or len(books) != groups * centroids * size:
        raise WireError(
            f"{len(books)} and {len(nearest)} values, wanted codebooks of {list(shape)}"
        )
    if len(nearest) and nearest.max() >= centroids:
        raise WireError(f"code {int(nearest.max())} of a codebook of {centroids}")
    place = nearest.long().view(groups, shape[0] * (vectors // groups), 1)
    found = books.view(groups, centroids, size).gather(1, place.expand(-1, -1, size))
    return found.view(groups, shape[0], shape[1] // groups).transpose(0, 1).reshape(shape)


def _points(x: Tensor, vectors: int, groups: int) -> Tensor:
    """Returns the vectors of each group, [groups, B * vectors / groups, d / vectors]."""
    batch, size = x.shape
    if size % vectors or vectors % groups:
        raise ConfigError(
            f"{vectors} vectors in {groups} groups: wanted a divisor of a sample's {size} values, "
            "and a divisor of that"
        )
    rows = x.reshape(batch, groups, size // groups).transpose(0, 1)
    return rows.reshape(groups, batch * (vectors // groups), size // vectors)


def _nearest(books: Tensor, points: Tensor) -> Tensor:
    """Returns the nearest centroid of each point: int64 [groups, points]."""
    groups, count, _ = books.shape
    if not count:
        return points.new_zeros(points.shape[:2], dtype=torch.int64)
    # |p - c|^2 without |p|^2, which is the same for all centroids; in chunks that fit into memory.
    # Relative to the centroids' mean, because a large common offset would cost precision.
    here = books.mean(1, keepdim=True)
    books = books - here
    squares, turned = books.square().sum(2)[:, None], books.transpose(1, 2)
    chunks = (p - here for p in points.split(max(1, DISTANCES // (groups * count)), 1))
    return torch.cat([torch.baddbmm(squares, p, turned, alpha=-2).argmin(2) for p in chunks], 1)


DISTANCES = 1 << 24
"""Number of distances that are held in memory at a time."""


def _moved(books: Tensor, points: Tensor, nearest: Tensor) -> Tensor:
    """Moves each centroid to the mean of its points; a centroid without points stays."""
    groups, count, size = books.shape
    place = (nearest + count * torch.arange(groups, device=books.device)[:, None]).view(-1)
    sums = points.new_zeros(groups * count, size).index_add_(0, place, points.reshape(-1, size))
    owned = place.bincount(minlength=groups * count)[:, None]
    means = sums / owned.clamp(min=1)
    return torch.where(owned > 0, means, books.view(-1, size)).view(books.shape)
