"""The largest values of a vector, by bounds on the last of them: exact, in linear time.

A float32 becomes a key, an integer that is the larger, the larger the value is. Bounds say between
which keys the last of the largest lies. A first pass writes positions and bits of all keys that are
not below the lower bound. The last one is found among those of them that are not above the upper
bound, which are few, and what is too much is removed. The result is in the order of positions.
The bounds come from a sample, and are very likely right. If they are not, or if too many keys are
not below the lower one, all keys are counted by their leading bits: the last one's bin is known
then. So the sample decides about time alone.
Of equal values those at the lowest positions are taken. Zeros of both signs are equal, and so is
all that is no number, which is larger than any other value.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedmpi.messages.kernels import kernel, parts, run
from fedmpi.messages.kernels.places import ONES, SET

BINS = 1 << 12
"""Bins of a histogram."""
LONG = 1 << 16
"""Values of a vector, at least, from which a sample is taken."""
SAMPLE = 1 << 14
"""Values of a sample, about, at most."""
STRIDE = 64
"""One of so many values is in a sample, at most."""
TILE = 1 << 12
"""Values that are compared at once."""
FEW = 3
"""If at most one in so many groups of eight flags has any, the flags are looked for one by one."""
MOST = 0x7F800001
"""The largest key, of all that is no number: one more than that of infinity."""
MAGNITUDE = 0x7FFFFFFF
"""The bits of a float32 that are the key of its absolute value, if it is a number."""
AS_IT_IS = -1
"""All bits: of keys that `_ordered` made."""


def largest(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the `count` largest absolute values of a vector and their positions.

    Args:
        x: float32 [n], contiguous.
        count: 0 to n.

    Returns:
        Positions, uint32 [count], ascending, and the values there, float32 [count].
    """
    positions, found = _chosen(x.view(np.int32), MAGNITUDE, count)
    return positions, found.view(np.float32)


def highest(x: np.ndarray, count: int) -> np.ndarray:
    """Returns positions of the `count` largest values of float32 [n], as `largest` does.

    Values are compared with their signs, not by their size.
    """
    return _chosen(_ordered(x.view(np.int32)), AS_IT_IS, count)[0]


class _Bounds(NamedTuple):
    """What is known of the last of the largest keys.

    Attributes:
        low: it is no smaller.
        high: it is no larger.
        rooms: most keys of at least `low` in each part of the vector.
    """

    low: int
    high: int
    rooms: list[int]


def _chosen(bits: np.ndarray, mask: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns positions and bits of the `count` largest keys, uint32 and int32 [count]."""
    if not 0 < count < len(bits):
        positions = np.arange(len(bits) if count else 0, dtype=np.uint32)
        return positions, bits[: len(positions)].copy()
    bounds, candidates = _likely(bits, mask, count), None
    if bounds is not None:
        candidates = _candidates(bits, mask, bounds)
    if bounds is None or candidates is None or len(candidates[0]) < count:
        bounds = _certain(bits, mask, count)
        candidates = _candidates(bits, mask, bounds)
        assert candidates is not None
    positions, found = candidates
    if len(found) > count:
        _narrow(positions, found, mask, bounds, count)
    if len(found) > 2 * count:  # a view would keep the memory of all
        return positions[:count].copy(), found[:count].copy()
    return positions[:count], found[:count]


def _likely(bits: np.ndarray, mask: int, count: int) -> _Bounds | None:
    """Bounds from a sample; they may be wrong.

    None if the vector is short, or if the sample has many more values in the bounds than wanted.
    """
    if len(bits) < LONG:
        return None
    stride = max(STRIDE, len(bits) // SAMPLE) | 1
    sample = _keys(bits[::stride], mask)
    rank, last = count / stride, len(sample) - 1
    error = 4 * rank**0.5 + 1
    low, high = last - min(last, int(rank + error)), last - max(0, int(rank - error))
    sample.partition((low, high))
    least, likely = sample[low], 2 * (int(rank + error) + 16)
    if np.count_nonzero(sample >= least) > likely:
        return None
    # Of this room only as many pages are touched as values are found.
    rooms = [min(likely * stride, b - a) for a, b in parts(len(bits))]
    return _Bounds(int(least), int(sample[high]) if rank > error else MOST, rooms)


def _certain(bits: np.ndarray, mask: int, count: int) -> _Bounds:
    """Bounds from a histogram of all keys: those of a bin."""
    pieces, (lowest, shift) = parts(len(bits)), (0, 19) if mask == MAGNITUDE else (-MOST, 20)
    counts = np.zeros((len(pieces), 4, BINS), np.uint32)
    run(
        _count,
        [(bits[a:b], mask, lowest, shift, c) for (a, b), c in zip(pieces, counts, strict=True)],
    )
    bin, *_ = _find(counts.reshape(-1, BINS), count)
    low = lowest + (bin << shift)
    return _Bounds(low, min(MOST, low + (1 << shift) - 1), counts[:, :, bin:].sum((1, 2)).tolist())


def _candidates(
    bits: np.ndarray, mask: int, bounds: _Bounds
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns positions and bits of all keys that are not below the lower bound.

    None if there is not enough room for them in some part.
    """
    found = [(np.empty(room, np.uint32), np.empty(room, np.int32)) for room in bounds.rooms]
    pieces = zip(parts(len(bits)), found, strict=True)
    counts = run(_gather, [(bits[a:b], mask, bounds.low, a, *room) for (a, b), room in pieces])
    if min(counts) < 0:
        return None
    if len(found) == 1:
        return found[0][0][: counts[0]], found[0][1][: counts[0]]
    positions, values = zip(*found, strict=True)
    return _joined(positions, counts), _joined(values, counts)


def _joined(rooms: Sequence[np.ndarray], counts: Sequence[int]) -> np.ndarray:
    """Returns the first values of each of some rooms, one after the other."""
    return np.concatenate([room[:count] for room, count in zip(rooms, counts, strict=True)])


def _narrow(
    positions: np.ndarray, found: np.ndarray, mask: int, bounds: _Bounds, count: int
) -> None:
    """Moves the `count` largest of the candidates to the front."""
    keys = np.empty(len(found), np.int32)
    within, above = _between(found, mask, bounds.low, bounds.high, keys)
    if above >= count:
        within, above = _between(found, mask, bounds.low, MOST, keys)
    least, room, equal = _last(keys[:within], count - above)
    cut = len(found)
    if room < equal:  # of those that equal the last one, the first ones are kept
        cut = int(np.flatnonzero(_keys(found, mask) == least)[room])
    kept = _keep(positions, found, mask, least, 0, cut, 0)
    _keep(positions, found, mask, least + 1, cut, len(found), kept)


def _keys(bits: np.ndarray, mask: int) -> np.ndarray:
    """The keys of float32 values, as `_key` makes them."""
    return np.minimum(bits & np.int32(mask), np.int32(MOST))


@kernel("int32(int32, int32)")
def _key(bits: Any, mask: Any) -> Any:
    """The key of a float32."""
    return min(np.int32(bits & mask), np.int32(MOST))


@kernel("int64(const uint8[::1], uint32[::1])")
def _marked(flags: np.ndarray, offsets: np.ndarray) -> int:
    """Writes the offsets of flags that are one, not zero; returns their number.

    Args:
        flags: [TILE].
        offsets: [TILE + 8].
    """
    words, some, k = flags.view(np.uint64), np.empty(TILE >> 3, np.uint32), 0
    for i in range(len(words)):
        some[k] = i
        k += words[i] != np.uint64(0)
    c = 0
    if k <= len(words) // FEW:  # then most of them have a single flag
        for word in some[:k]:
            left = words[word]
            while left != np.uint64(0):
                lowest = left & (~left + np.uint64(1))
                # The product has the number of the lowest flag as its last byte.
                at = (lowest * np.uint64(0x0001020304050607)) >> np.uint64(56)
                offsets[c] = np.uint32(word << np.uint32(3)) + np.uint32(at)
                c += 1
                left ^= lowest
        return c
    for word in some[:k]:
        # The product has the eight flags, the first one lowest, as its last byte.
        byte = (words[word] * np.uint64(0x0102040810204080)) >> np.uint64(56)
        eight = offsets[c : c + 8]
        for j in range(8):
            eight[j] = np.uint32(word << np.uint32(3)) + SET[byte, j]
        c += ONES[byte]
    return c


@kernel("int64(const int32[::1], int32, int32, int64, uint32[::1], int32[::1])")
def _gather(
    bits: np.ndarray, mask: Any, least: Any, first: int, positions: np.ndarray, found: np.ndarray
) -> int:
    """Writes the bits of keys of at least `least`, and their positions, counted from `first`.

    Returns:
        How many there are; -1 if there is not enough room for them.
    """
    flags, offsets, c = np.zeros(TILE, np.uint8), np.empty(TILE + 8, np.uint32), 0
    for start in range(0, len(bits), TILE):
        part = bits[start : start + TILE]
        for i in range(len(part)):
            flags[i] = _key(part[i], mask) >= least
        for i in range(len(part), TILE):
            flags[i] = 0
        count = _marked(flags, offsets)
        where, what = positions[c : c + count], found[c : c + count]
        if len(where) < count:
            return -1
        for i in range(count):
            where[i] = np.uint32(first + start) + offsets[i]
        for i in range(count):
            what[i] = part[offsets[i]]
        c += count
    return c


@kernel("UniTuple(int64, 2)(const int32[::1], int32, int32, int32, int32[::1])")
def _between(
    found: np.ndarray, mask: Any, low: Any, high: Any, keys: np.ndarray
) -> tuple[int, int]:
    """Writes all keys from `low` to `high`; returns their number, and how many are above."""
    flags, offsets, c, above = np.zeros(TILE, np.uint8), np.empty(TILE + 8, np.uint32), 0, 0
    for start in range(0, len(found), TILE):
        part = found[start : start + TILE]
        for i in range(len(part)):
            flags[i] = (_key(part[i], mask) >= low) & (_key(part[i], mask) <= high)
        for i in range(len(part)):
            above += _key(part[i], mask) > high
        for i in range(len(part), TILE):
            flags[i] = 0
        count = _marked(flags, offsets)
        some = keys[c : c + count]
        for i in range(count):
            some[i] = _key(part[offsets[i]], mask)
        c += count
    return c, above


@kernel("UniTuple(int64, 3)(const int32[::1], int64)")
def _last(keys: np.ndarray, rank: int) -> tuple[int, int, int]:
    """The key at a rank, 1 for the largest, which of the equal ones it is, and their number."""
    low, high, equal = int(keys[0]), int(keys[0]), len(keys)
    for key in keys:
        low, high = min(low, key), max(high, key)
    counts = np.empty((1, BINS), np.uint32)
    while low < high:
        shift = 0
        while (high - low) >> shift >= BINS:
            shift += 1
        for i in range(BINS):
            counts[0, i] = 0
        for key in keys:
            if low <= key <= high:
                counts[0, (key - low) >> shift] += np.uint32(1)
        bin, above, equal = _find(counts, rank)
        rank -= above
        low += bin << shift
        high = min(high, low + (1 << shift) - 1)
    return low, rank, equal


@kernel("int64(uint32[::1], int32[::1], int32, int32, int64, int64, int64)")
def _keep(
    positions: np.ndarray, found: np.ndarray, mask: Any, least: Any, start: int, stop: int, end: int
) -> int:
    """Moves keys of at least `least` from a part to `end`, which is no later; returns their end."""
    flags, offsets = np.zeros(TILE, np.uint8), np.empty(TILE + 8, np.uint32)
    for at in range(start, stop, TILE):
        part, places = found[at : min(stop, at + TILE)], positions[at : min(stop, at + TILE)]
        for i in range(len(part)):
            flags[i] = _key(part[i], mask) >= least
        for i in range(len(part), TILE):
            flags[i] = 0
        count = _marked(flags, offsets)
        where, what = positions[end : end + count], found[end : end + count]
        for i in range(count):
            where[i] = places[offsets[i]]
        for i in range(count):
            what[i] = part[offsets[i]]
        end += count
    return end


@kernel("void(const int32[::1], int32, int32, uint32, uint32[:, ::1])")
def _count(bits: np.ndarray, mask: Any, lowest: Any, shift: Any, counts: np.ndarray) -> None:
    """Counts the keys of each bin; in four histograms, as a count waits for the one before it."""
    n = len(bits)
    for i in range(n >> 2):
        for j in range(4):
            counts[j, np.uint32(_key(bits[4 * i + j], mask) - lowest) >> shift] += np.uint32(1)
    for i in range(n & ~3, n):
        counts[0, np.uint32(_key(bits[i], mask) - lowest) >> shift] += np.uint32(1)


@kernel("UniTuple(int64, 3)(const uint32[:, ::1], int64)")
def _find(counts: np.ndarray, count: int) -> tuple[int, int, int]:
    """The bin of the key at rank `count`, and how many keys lie in the bins above it and in it."""
    above, within, bin = 0, 0, counts.shape[1]
    while above + within < count:
        above += within
        bin -= 1
        within = 0
        for each in range(counts.shape[0]):
            within += counts[each, bin]
    return bin, above, within


@kernel("int32[::1](const int32[::1])")
def _ordered(bits: np.ndarray) -> np.ndarray:
    """Keys of float32 values with their signs."""
    keys = np.empty(len(bits), np.int32)
    for i in range(len(bits)):
        magnitude = np.int32(bits[i] & np.int32(MAGNITUDE))
        key = magnitude if bits[i] >= 0 else np.int32(-magnitude)
        keys[i] = np.int32(MOST) if magnitude > np.int32(MOST - 1) else key
    return keys
