"""The largest values of a vector, by a histogram of their leading bits: exact, in linear time.

A float32 becomes a key, an unsigned integer that is the larger, the larger the value is. Keys with
the same leading 12 bits share a bin, and counts say in which bin the last of the largest lies.
Positions and bits from that bin on are written in a second pass over the vector, and what is too
much of that bin is removed from these, which are few. The result is in the order of positions.
If few of many values are wanted, a sample gives a bound that they are very likely beyond. One pass
then writes what is, and the largest are found among these; if too few or too many are beyond the
bound, the whole vector is counted after all. So the sample decides about time alone.
Of equal values those at the lowest positions are taken. Zeros of both signs are equal, and so is
all that is no number, which is larger than any other value.
"""

from typing import Any

import numpy as np

from fedmpi.messages.kernels import kernel, parts, run

BINS = 1 << 12
"""Bins of a histogram."""
SAMPLE = 1 << 14
"""Values of a sample."""
LONG = 1 << 17
"""Values of a vector, at least, from which a sample is taken."""
FEW = 32
"""One of so many values is wanted, at most, if a sample is taken."""
BLOCK = 16
"""Values that are compared at once: mostly none of them is wanted."""
UNSIGNED = 1, 2 * 0x7F800001
"""Shift and bound of keys of absolute values (see `_key`); twice the bits above those of infinity.
"""
AS_THEY_ARE = 0, 0xFFFFFFFF
"""Shift and bound of keys that `_ordered` made."""


def largest(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the `count` largest absolute values of a vector and their positions.

    Args:
        x: float32 [n], contiguous.
        count: 0 to n.

    Returns:
        Positions, uint32 [count], ascending, and the values there, float32 [count].
    """
    positions, found = _chosen(x.view(np.uint32), *UNSIGNED, count)
    return positions, found.view(np.float32)


def highest(x: np.ndarray, count: int) -> np.ndarray:
    """Returns positions of the `count` largest values of float32 [n], as `largest` does.

    Values are compared with their signs, not by their size.
    """
    return _chosen(_ordered(x.view(np.uint32)), *AS_THEY_ARE, count)[0]


def _chosen(bits: np.ndarray, shift: int, most: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns positions and bits of the largest keys, uint32 [count] each."""
    if not 0 < count < len(bits):
        positions = np.arange(len(bits) if count else 0, dtype=np.uint32)
        return positions, bits[: len(positions)].copy()
    if len(bits) >= LONG and FEW * count <= len(bits):
        likely = _likely(bits, shift, most, count)
        if likely is not None:
            among, found = _chosen(likely[1], shift, most, count)
            return likely[0][among], found
    pieces = parts(len(bits))
    counts = np.zeros((len(pieces), 4, BINS), np.uint32)
    run(_count, [(bits[a:b], shift, most, c) for (a, b), c in zip(pieces, counts, strict=True)])
    bin, above, within = _find(counts.reshape(-1, BINS), count)
    sizes = [above + within] if len(pieces) == 1 else counts[:, :, bin:].sum((1, 2)).tolist()
    positions, found = (np.empty(above + within, np.uint32) for _ in range(2))
    arguments, end = [], 0
    for (a, b), size in zip(pieces, sizes, strict=True):
        start, end = end, end + size
        room = positions[start:end], found[start:end]
        arguments.append((bits[a:b], shift, most, bin << 20, a, *room))
    run(_gather, arguments)
    if above + within > count:
        _narrow(shift, most, bin, count - above, within, positions, found)
        if above + within > 2 * count:  # a view would keep the memory of all
            return positions[:count].copy(), found[:count].copy()
    return positions[:count], found[:count]


def _likely(
    bits: np.ndarray, shift: int, most: int, count: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns positions and bits of `count` keys or more: all that are not below some bound.

    None if a sample gives no such bound, or one that too many keys are not below.
    """
    stride = len(bits) // SAMPLE | 1
    sample = np.minimum(bits[::stride] << np.uint32(shift), np.uint32(most))
    rank = count / stride
    rank = min(len(sample) - 1, int(rank + 4 * rank**0.5) + 1)
    least = np.partition(sample, len(sample) - 1 - rank)[len(sample) - 1 - rank]
    room, pieces = 2 * (rank + 16) * stride, parts(len(bits))
    # Of this room only as many pages are touched as values are found.
    rooms = [[np.empty(min(room, b - a) + BLOCK, np.uint32) for _ in range(2)] for a, b in pieces]
    arguments = [
        (bits[a:b], shift, least, a, *each) for (a, b), each in zip(pieces, rooms, strict=True)
    ]
    counts = run(_beyond, arguments)
    if min(counts) < 0 or sum(counts) < count:
        return None
    found = [[each[:n] for each in both] for both, n in zip(rooms, counts, strict=True)]
    if len(found) == 1:
        return found[0][0], found[0][1]
    positions, values = (np.concatenate(each) for each in zip(*found, strict=True))
    return positions, values


@kernel("int64(const uint32[::1], uint32, uint32, int64, uint32[::1], uint32[::1])")
def _beyond(
    bits: np.ndarray, shift: Any, least: Any, first: int, positions: np.ndarray, found: np.ndarray
) -> int:
    """Writes the bits of keys of at least `least`, and their positions, counted from `first`.

    Keys are not cut off at the most that a key can be, which is no less than `least`.

    Returns:
        How many there are; -1 if there is not enough room for them and a block.
    """
    c, last, n = 0, len(positions) - BLOCK, len(bits)
    for start in range(0, n, BLOCK):
        is_any = start + BLOCK > n
        if not is_any:
            for i in range(start, start + BLOCK):
                is_any |= np.uint32(bits[i] << shift) >= least
        if is_any:
            if c > last:
                return -1
            for i in range(start, min(n, start + BLOCK)):
                positions[c], found[c] = first + i, bits[i]
                c += np.uint32(bits[i] << shift) >= least
    return c


@kernel("uint32(uint32, uint32, uint32)")
def _key(bits: Any, shift: Any, most: Any) -> Any:
    """The key of a float32: its bits without the sign for a shift of 1, and at most `most`."""
    return min(np.uint32(bits << shift), most)


@kernel("void(const uint32[::1], uint32, uint32, uint32[:, ::1])")
def _count(bits: np.ndarray, shift: int, most: int, counts: np.ndarray) -> None:
    """Counts the keys of each bin; in four histograms, as a count waits for the one before it."""
    n = len(bits)
    for i in range(n >> 2):
        for j in range(4):
            counts[j, _key(bits[4 * i + j], shift, most) >> np.uint32(20)] += np.uint32(1)
    for i in range(n & ~3, n):
        counts[0, _key(bits[i], shift, most) >> np.uint32(20)] += np.uint32(1)


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


@kernel("void(const uint32[::1], uint32, uint32, uint32, int64, uint32[::1], uint32[::1])")
def _gather(
    bits: np.ndarray,
    shift: int,
    most: int,
    least: int,
    first: int,
    positions: np.ndarray,
    found: np.ndarray,
) -> None:
    """Writes the bits of keys of at least `least`, and their positions, counted from `first`.

    There are as many of them as there is room.
    """
    c, i = 0, 0
    while c < len(positions):
        # Written before it is known whether it counts: a wrong guess of a branch takes longer.
        positions[c], found[c] = first + i, bits[i]
        c += _key(bits[i], shift, most) >= least
        i += 1


@kernel("void(uint32, uint32, uint32, int64, int64, uint32[::1], uint32[::1])")
def _narrow(
    shift: int,
    most: int,
    bin: int,
    room: int,
    within: int,
    positions: np.ndarray,
    found: np.ndarray,
) -> None:
    """Moves to the front what is above a bin, and `room` of the `within` keys in it."""
    keys, c, i = np.empty(within, np.uint32), 0, 0
    while c < within:
        keys[c] = _key(found[i], shift, most)
        c += keys[c] >> np.uint32(20) == bin
        i += 1
    counts = np.zeros((1, BINS), np.uint32)
    for key in keys:
        counts[0, (key >> np.uint32(8)) & np.uint32(BINS - 1)] += np.uint32(1)
    middle, above, _ = _find(counts, room)
    room -= above
    prefix = np.uint32((bin << 12) | middle)
    counts[:] = 0
    for key in keys:
        if key >> np.uint32(8) == prefix:
            counts[0, key & np.uint32(255)] += np.uint32(1)
    last, above, _ = _find(counts, room)
    room -= above
    least = np.uint32((prefix << 8) | last)
    c = 0
    for i in range(len(found)):
        positions[c], found[c] = positions[i], found[i]
        key = _key(found[i], shift, most)
        is_last = key == least
        c += (key > least) | (is_last & (room > 0))
        room -= is_last


@kernel("uint32[::1](const uint32[::1])")
def _ordered(bits: np.ndarray) -> np.ndarray:
    """Keys of float32 values with their signs."""
    keys = np.empty(len(bits), np.uint32)
    for i in range(len(bits)):
        magnitude = bits[i] & np.uint32(0x7FFFFFFF)
        if magnitude > np.uint32(0x7F800000):
            keys[i] = np.uint32(0xFFFFFFFF)
        elif bits[i] > np.uint32(0x80000000):
            keys[i] = ~bits[i]
        else:
            keys[i] = magnitude | np.uint32(0x80000000)
    return keys
