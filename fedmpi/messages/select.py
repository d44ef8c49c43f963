"""Choice of positions: which values of a vector are sent.

The largest values, the largest of each part, values drawn at random, or whole features of a batch.
How many values these are is in `counts`. Every choice by size, also of what a sparse network keeps,
is made by `largest`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedmpi.messages.counts import keep_ceil
from fedmpi.messages.kernels import ranking

SHORT = 1 << 12
"""Values of a vector on a CPU, at least, for which compiled code is faster than NumPy."""
SAMPLE = 1 << 16
"""Values in the sample by which torch's selection from a long vector begins."""
EVEN = 0.1
"""Share of the mean deviation that is added to the deviation of each feature."""


def largest(x: Tensor, count: int) -> Tensor:
    """Marks the `count` largest values of each row of x [..., n]: bool [..., n].

    This is the one rule for every choice by size: of equal values those at the lowest positions are
    chosen, whatever the device. A value that is no number is larger than any other.
    """
    x, size = x.detach(), x.shape[-1]
    if not 0 < count < size:
        return torch.full(x.shape, count > 0, dtype=torch.bool, device=x.device)
    if _is_long(x):
        marks = np.zeros((x.numel() // size, size), bool)
        for mark, row in zip(marks, x.reshape(-1, size).numpy(), strict=True):
            mark[ranking.highest(row, count)] = True
        return torch.from_numpy(marks).view(x.shape)
    least = _ranked(x, count)
    chosen, equal = ~(x < least), least.isnan()
    if equal.any():
        chosen = torch.where(equal, x.isnan(), chosen)
    if int(chosen.count_nonzero()) > count * (x.numel() // size):
        # More are equal to the least of them than there is room for: the last ones have to go.
        equal = torch.where(equal, chosen, x == least)
        room = count - (chosen & ~equal).count_nonzero(-1).unsqueeze(-1)
        chosen &= ~equal | (equal.cumsum(-1, dtype=torch.int32) <= room)
    return chosen


def _is_long(x: Tensor) -> bool:
    """Whether compiled code takes over: its rule is the same."""
    return not x.is_cuda and x.dtype == torch.float32 and x.shape[-1] >= SHORT


def _ranked(x: Tensor, count: int) -> Tensor:
    """The last of each row's `count` largest values, [..., 1], for 0 < count < n."""
    if x.is_cuda:
        return x.topk(count).values[..., -1:]
    place = x.shape[-1] - count
    # NumPy does this several times faster than torch.
    return torch.from_numpy(np.partition(x.numpy(), place)[..., place : place + 1])


def positions(mask: Tensor) -> Tensor:
    """Positions in a mask, as one vector, that are true, ascending: int64."""
    if mask.is_cuda:
        return mask.view(-1).nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(mask.numpy()))  # faster than torch, too


@dataclass(frozen=True)
class Chosen:
    """Some values of a vector, in the order of their positions.

    Attributes:
        places: their positions as messages have them, uint32 [count], on the host.
        values: the values, [count], in memory of their own, where the vector is.
    """

    places: np.ndarray
    values: Tensor

    @property
    def positions(self) -> Tensor:
        """The positions as tensors are indexed: int64 [count], where the values are."""
        return torch.from_numpy(self.places.astype(np.int64)).to(self.values.device)


def at(vector: Tensor, where: Tensor) -> Chosen:
    """Chooses the values at some positions, int64 [count], ascending."""
    return Chosen(where.cpu().numpy().astype(np.uint32), vector.detach()[where])


def top(vector: Tensor, count: int) -> Chosen:
    """Chooses the `count` largest absolute values of a vector [n]."""
    if _is_long(vector):
        places, values = ranking.largest(vector.detach().contiguous().numpy(), count)
        return Chosen(places, torch.from_numpy(values))
    return at(vector, _top(vector.detach().abs(), count))


def _top(magnitude: Tensor, count: int) -> Tensor:
    """Returns the positions of the `count` largest of some values, ascending, by torch: int64."""
    stride = len(magnitude) // SAMPLE
    if stride > 1 and 0 < count <= len(magnitude) // 4:
        # A regular sample gives a threshold, and only the few values above it are compared. If
        # these are fewer than `count`, all values are.
        sample = magnitude[::stride]
        rank = count / stride
        likely = _ranked(sample, min(len(sample) - 1, int(rank + 4 * rank**0.5) + 1))
        # Not below, rather than above: so that a value that is no number is found, too.
        beyond = positions(~(magnitude < likely))
        if len(beyond) >= count:
            return beyond[positions(largest(magnitude[beyond], count))]
    return positions(largest(magnitude, count))


class Span(Protocol):
    """A part of a vector, such as a `range` or a `flat.Piece`."""

    @property
    def start(self) -> int:
        """The first position."""

    @property
    def stop(self) -> int:
        """The position behind the last."""


def counts(spans: Sequence[Span], sparsity: float) -> list[int]:
    """Numbers of values that remain of each part, by the rule of `keep_ceil`."""
    return [keep_ceil(span.stop - span.start, 1 - sparsity) for span in spans]


def numbers_within(stops: Tensor, where: Tensor) -> list[int]:
    """How many of some positions lie in each part of a vector.

    Args:
        stops: the position behind the last of each part, int64 ascending; parts leave no gap.
        where: the positions, int64 ascending, below the last stop.
    """
    before = torch.searchsorted(where.contiguous(), stops)
    return before.diff(prepend=before.new_zeros(1)).tolist()


def tops(x: Tensor, spans: Sequence[Span], sparsity: float) -> Chosen:
    """Chooses the largest absolute values of each row's parts.

    Args:
        x: [rows, n]; positions are those in it as one vector [rows * n].
        spans: the parts, ascending and apart.
        sparsity: share of each part's values that are left out (see `counts`).
    """
    numbers = counts(spans, sparsity)
    if x.shape[1] >= (2 * SAMPLE if x.is_cuda else SHORT):
        if not (len(x) and numbers):
            return Chosen(np.empty(0, np.uint32), x.new_empty(0))
        found, places = [], []
        for number, row in enumerate(x):
            for span, count in zip(spans, numbers, strict=True):
                found.append(top(row[span.start : span.stop], count))
                places.append(found[-1].places + np.uint32(number * x.shape[1] + span.start))
        return Chosen(np.concatenate(places), torch.cat([each.values for each in found]))
    chosen = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
    for span, count in zip(spans, numbers, strict=True):
        part, mine = (each[:, span.start : span.stop] for each in (x, chosen))
        mine.copy_(largest(part.abs(), count))
    return at(x.reshape(-1), positions(chosen))


def random_tops(x: Tensor, count: int, alpha: float, random: np.random.Generator) -> Tensor:
    """Positions of `count` values of each row, nearly the largest: int64 [rows * count], ascending.

    F. Zheng, C. Chen, L. Lyu, B. Yao, *Reducing Communication for Split Learning by Randomized
    Top-k Sparsification*, IJCAI 2023, arXiv 2305.18469: values are drawn one after the other,
    without replacement. The weight of each of the largest is (1 - alpha) / count, and that of each
    other value alpha / (n - count), as in `NaiveRandomTopKModifier` of the released code. The
    values themselves are not changed.

    Args:
        x: [rows, n]; positions are those in it as one vector [rows * n].
        count: values of a row to choose, at most n.
        alpha: weight of all other values together, at least 0 and below 1; with 0 none is chosen.
        random: the source of randomness.
    """
    rows, size = x.shape
    is_large = largest(x.abs(), count).cpu().numpy()
    within, beyond = (1 - alpha) / max(1, count), alpha / max(1, size - count)
    weights = np.where(is_large, np.float32(within), np.float32(beyond))
    # Of exponential times with these rates, the first ones are such a draw (B. Efraimidis, P.
    # Spirakis, *Weighted Random Sampling with a Reservoir*, 2006); a rate of zero never comes.
    times = random.standard_exponential((rows, size), np.float32)
    times = np.divide(times, weights, out=np.full_like(times, np.inf), where=weights > 0)
    earliest = largest(-torch.from_numpy(times), count)
    return positions(earliest).to(x.device)


def survivors(size: int, share: float, random: np.random.Generator) -> Tensor:
    """Positions that a dropout of `share` leaves, ascending: int64 [about (1 - share) size].

    Two sides that draw from the same stream need not send the positions. Values at these positions,
    divided by 1 - share, are unbiased, and so are gradients that are divided by it.
    """
    drawn = random.random(size, np.float32) >= share
    return torch.from_numpy(np.flatnonzero(drawn))


def features(x: Tensor, ratio: float, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Chooses columns of a batch at random; those that vary little are likely to be dropped.

    After SplitFC: Y. Oh, J. Lee, C. G. Brinton, Y.-S. Jeon, *Communication-Efficient Split Learning
    via Adaptive Feature-Wise Compression*, IEEE TNNLS, arXiv 2307.10805: a feature is dropped
    with a probability that its standard deviation over the batch determines.
    Reconstruction: each feature is kept with the probability min(1, c s), independently. Here s is
    its deviation plus a tenth of the mean deviation, so that no feature is dropped with certainty,
    and c is such that D / ratio features are kept on average. Features whose deviation is not
    finite are kept.

    Args:
        x: a batch, [B, D].
        ratio: features for one that is kept, at least 1.
        random: the source of randomness.

    Returns:
        The positions of the features that remain, int64 [kept], ascending, and the probabilities
        of remaining, float32 [kept]. Values and gradients that are divided by them are unbiased.
    """
    size = x.shape[1]
    x = x.detach()
    deviation = (x - x.mean(0)).square().mean(0).sqrt().double().cpu().numpy()
    likely = np.ones(size)
    varies = np.flatnonzero(np.isfinite(deviation))
    if len(varies):
        weight = deviation[varies] + EVEN * deviation[varies].mean()
        wanted = max(0.0, size / ratio - (size - len(varies)))
        likely[varies] = _inclusion(weight if weight.any() else weight + 1, wanted)
    kept = np.flatnonzero(random.random(size) < likely)
    found = torch.from_numpy(kept), torch.from_numpy(likely[kept].astype(np.float32))
    return found[0].to(x.device), found[1].to(x.device)


def _inclusion(weight: np.ndarray, wanted: float) -> np.ndarray:
    """Probabilities min(1, c weight) whose sum is `wanted`, for positive weights [n]."""
    falling = -np.sort(-weight)
    rest = np.cumsum(falling[::-1])[::-1]
    # If the first m are certain, c is (wanted - m) / the others' sum; m is the least that does.
    factors = (wanted - np.arange(len(weight))) / rest
    certain = np.argmax(factors * falling <= 1 + 1e-9)
    return np.minimum(1, factors[certain] * weight)
