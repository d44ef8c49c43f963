"""Values <-> codes of 1 to 16 bits, packed into bytes, lowest bit first.

A `Grid` says which value a code stands for. Rounding, packing, unpacking and addition pass over a
vector once, in tiles that stay in a processor's first cache, so that no array of unpacked codes is
ever made. Bits of the result depend neither on tiles nor on threads: draws of stochastic rounding
are those of `philox` at a value's own position, and sums are taken value by value.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np

from fedmpi.messages.kernels import kernel, spread
from fedmpi.messages.kernels.philox import fractions

TILE = 2048
"""Values of a tile, a multiple of 8: so a tile's codes begin with a byte."""


class Form(IntEnum):
    """How a code q of b bits is read as a level; the value is low + step * level."""

    RANGE = 0
    """Level q, from 0 to 2^b - 1."""
    SIGN = 1
    """The highest bit is the sign of the value, the other bits are the level of its magnitude."""
    MIDDLE = 2
    """Level q - (2^(b - 1) - 1), of either sign, with `low` 0: no value is changed in sign."""


class Grid(NamedTuple):
    """The values that codes stand for, part by part.

    Attributes:
        bits: of a code.
        ends: where each part of the vector ends, int64 [parts].
        low: least value, or magnitude, of each part, float32 [parts].
        step: distance of levels, float32 [parts]; where it is not positive and finite, all codes of
            the part are of level 0.
        form: how codes are read.
    """

    bits: int
    ends: np.ndarray
    low: np.ndarray
    step: np.ndarray
    form: Form = Form.RANGE

    @property
    def size(self) -> int:
        """Number of values."""
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def length(self) -> int:
        """Bytes of their codes."""
        return -(-self.size * self.bits // 8)


# ---- Integers <-> bytes


@kernel("void(const uint16[::1], int64, uint8[::1])")
def _squeeze(codes: np.ndarray, bits: int, out: np.ndarray) -> None:
    """Packs codes; the last bits of `out` [ceil(count * bits / 8)] are zero."""
    count = len(codes)
    whole = count // 8
    for i in range(whole):
        # Eight codes fill `bits` bytes: two words of four codes each, joined.
        lower, upper = np.uint64(0), np.uint64(0)
        for j in range(4):
            lower |= np.uint64(codes[8 * i + j]) << np.uint64(j * bits)
            upper |= np.uint64(codes[8 * i + 4 + j]) << np.uint64(j * bits)
        if bits <= 8:
            lower |= upper << np.uint64(4 * bits)
            for j in range(bits):
                out[i * bits + j] = np.uint8(lower >> np.uint64(8 * j))
        else:
            if bits < 16:
                lower |= upper << np.uint64(4 * bits)
                upper >>= np.uint64(64 - 4 * bits)
            for j in range(8):
                out[i * bits + j] = np.uint8(lower >> np.uint64(8 * j))
            for j in range(bits - 8):
                out[i * bits + 8 + j] = np.uint8(upper >> np.uint64(8 * j))
    at, word, held = whole * bits, np.uint64(0), 0
    for i in range(8 * whole, count):
        word |= np.uint64(codes[i]) << np.uint64(held)
        held += bits
        while held >= 8:
            out[at] = np.uint8(word)
            word >>= np.uint64(8)
            at, held = at + 1, held - 8
    if held:
        out[at] = np.uint8(word)


@kernel("void(const uint8[::1], int64, uint16[::1])")
def _widen(data: np.ndarray, bits: int, out: np.ndarray) -> None:
    """Unpacks codes [count] that `_squeeze` packed."""
    count, mask = len(out), np.uint64((1 << bits) - 1)
    whole = count // 8
    for i in range(whole):
        lower, upper = np.uint64(0), np.uint64(0)
        for j in range(min(bits, 8)):
            lower |= np.uint64(data[i * bits + j]) << np.uint64(8 * j)
        for j in range(bits - 8):
            upper |= np.uint64(data[i * bits + 8 + j]) << np.uint64(8 * j)
        if bits <= 8:
            upper = lower >> np.uint64(4 * bits)
        elif bits < 16:
            upper = (upper << np.uint64(64 - 4 * bits)) | (lower >> np.uint64(4 * bits))
        for j in range(4):
            out[8 * i + j] = np.uint16((lower >> np.uint64(j * bits)) & mask)
            out[8 * i + 4 + j] = np.uint16((upper >> np.uint64(j * bits)) & mask)
    at, word, held = whole * bits, np.uint64(0), 0
    for i in range(8 * whole, count):
        while held < bits:
            word |= np.uint64(data[at]) << np.uint64(held)
            at, held = at + 1, held + 8
        out[i] = np.uint16(word & mask)
        word >>= np.uint64(bits)
        held -= bits


def squeeze(codes: np.ndarray, bits: int) -> np.ndarray:
    """Packs integers below 2^bits, uint16 [count], into bytes: uint8 [ceil(count * bits / 8)].

    Code i takes the bits from number i * bits on, the lowest bit of a byte first. `bits` is 1 to
    16.
    """
    out = np.empty(-(-len(codes) * bits // 8), np.uint8)
    _squeeze(np.ascontiguousarray(codes, np.uint16), bits, out)
    return out


def widen(data: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Unpacks `count` codes from uint8 [ceil(count * bits / 8)]: uint16 [count]."""
    out = np.empty(count, np.uint16)
    _widen(data, bits, out)
    return out


# ---- Ranges and lengths of parts


@kernel("void(const int32[::1], const int64[::1], boolean, int64, int64, int32[::1], int32[::1])")
def _bounds(
    x: np.ndarray,
    ends: np.ndarray,
    is_magnitude: bool,
    start: int,
    stop: int,
    least: np.ndarray,
    most: np.ndarray,
) -> None:
    """Takes x[start:stop] into the least and greatest values of its parts."""
    sign, number = np.int32(31), np.int32(0x7FFFFFFF)
    mask = number if is_magnitude else np.int32(-1)
    part, here = np.searchsorted(ends, start, "right"), start
    while here < stop:
        until = min(stop, ends[part])
        some, low, high = x[here:until], least[part], most[part]
        for i in range(len(some)):
            # As integers in the order of the floats; NaN is beyond all others, at either end.
            value = some[i] & mask
            value ^= (value >> sign) & number
            low, high = min(low, value), max(high, value)
        least[part], most[part] = low, high
        part, here = part + 1, until


def bounds(
    x: np.ndarray, ends: np.ndarray, is_magnitude: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the least and the greatest value of each part, float32 [parts].

    One of the two is NaN if a value of the part is. Both are 0 for a part without values.

    Args:
        x: float32 [count].
        ends: where each part ends, int64 [parts].
        is_magnitude: whether magnitudes are compared.
    """
    limits = np.iinfo(np.int32)

    def each(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        found = np.full(len(ends), limits.max, np.int32), np.full(len(ends), limits.min, np.int32)
        _bounds(x.view(np.int32), ends, is_magnitude, start, stop, *found)
        return found

    least, most = zip(*spread(each, len(x)), strict=True)
    low, high = np.minimum.reduce(least), np.maximum.reduce(most)
    empty = low > high
    for found in (low, high):
        found ^= (found >> 31) & 0x7FFFFFFF
        found[empty] = 0
    return low.view(np.float32), high.view(np.float32)


@kernel("void(const float32[::1], const int64[::1], int64, int64, float64[::1])")
def _squares(x: np.ndarray, ends: np.ndarray, first: int, last: int, out: np.ndarray) -> None:
    """Writes the sums of squares of the parts number first to last - 1."""
    for part in range(first, last):
        some = x[0 if part == 0 else ends[part - 1] : ends[part]]
        # Four sums at a time, because each waits for its last addition.
        a, b, c, d = 0.0, 0.0, 0.0, 0.0
        whole = len(some) // 4
        for i in range(whole):
            a += np.float64(some[4 * i]) ** 2
            b += np.float64(some[4 * i + 1]) ** 2
            c += np.float64(some[4 * i + 2]) ** 2
            d += np.float64(some[4 * i + 3]) ** 2
        for i in range(4 * whole, len(some)):
            a += np.float64(some[i]) ** 2
        out[part] = (a + b) + (c + d)


def norms(x: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Returns the Euclidean norm of each part, summed in float64: float32 [parts].

    Args:
        x: float32 [count].
        ends: where each part ends, int64 [parts].
    """
    out = np.empty(len(ends))
    _squares(x, ends, 0, len(ends), out)
    with np.errstate(over="ignore"):
        return np.sqrt(out).astype(np.float32)


# ---- Values -> codes


@kernel("void(const float32[::1], float64, float64, int64, int64, float64[::1], uint16[::1])")
def _round(
    x: np.ndarray,
    low: float,
    step: float,
    bits: int,
    form: int,
    draws: np.ndarray,
    codes: np.ndarray,
) -> None:
    """Rounds values of one part to codes, up by a draw in (0, 1).

    In float64: beside a code of 16 bits float32 has but 8 bits left for the fraction.
    """
    is_usual = step > 0 and step < np.inf
    if form == RANGE:
        top = np.float64((1 << bits) - 1)
        for i in range(len(x)):
            level = min((np.float64(x[i]) - low) / step + draws[i], top) if is_usual else 0.0
            codes[i] = np.uint16(np.int32(level))
        return
    half = 1 << (bits - 1)
    top = np.float64(half - 1)
    for i in range(len(x)):
        level = min((np.float64(abs(x[i])) - low) / step + draws[i], top) if is_usual else 0.0
        whole = np.int32(level)
        if form == SIGN:
            codes[i] = np.uint16(whole | (half if x[i] < 0 else 0))
        else:
            codes[i] = np.uint16(half - 1 + (-whole if x[i] < 0 else whole))


RANGE, SIGN = int(Form.RANGE), int(Form.SIGN)
MIDDLE = int(Form.MIDDLE)


@kernel(
    "void(const float32[::1], const int64[::1], const float32[::1], const float32[::1], int64, "
    "int64, boolean, const uint64[::1], int64, int64, uint8[::1])"
)
def _encode(
    x: np.ndarray,
    ends: np.ndarray,
    low: np.ndarray,
    step: np.ndarray,
    bits: int,
    form: int,
    is_random: bool,
    key: np.ndarray,
    start: int,
    stop: int,
    out: np.ndarray,
) -> None:
    """Writes the codes of x[start:stop]; `start` is a multiple of 8, `out` are all codes."""
    words, codes = np.empty(TILE, np.uint32), np.empty(TILE, np.uint16)
    draws = np.full(TILE, 0.5)
    part = np.searchsorted(ends, start, "right")
    for at in range(start, stop, TILE):
        end = min(at + TILE, stop)
        if is_random:
            fractions(key, at, words, draws[: end - at])
        here = at
        while here < end:
            while ends[part] <= here:
                part += 1
            until, inside = min(end, ends[part]), slice(here - at, min(end, ends[part]) - at)
            scale = np.float64(low[part]), np.float64(step[part])
            _round(x[here:until], scale[0], scale[1], bits, form, draws[inside], codes[inside])
            here = until
        _squeeze(codes[: end - at], bits, out[at * bits // 8 : -(-end * bits // 8)])


def _check(found: int, wanted: int) -> None:
    # A kernel does not look whether it is still inside an array.
    if found != wanted:
        raise ValueError(f"an array of {found} elements, wanted {wanted}")


NO_KEY = np.zeros(2, np.uint64)


def encode(x: np.ndarray, grid: Grid, key: np.ndarray | None = None) -> np.ndarray:
    """Rounds values to codes and packs them: uint8 [ceil(count * bits / 8)].

    code = floor((x - low) / step + 1 / 2), within the grid. With a key a uniform draw takes the
    place of 1 / 2: then the mean of a value is the value, if it lies within the grid, and its
    variance is at most step^2 / 4.

    Args:
        x: float32 [count].
        grid: the values that codes stand for.
        key: rounds stochastically (`streams.key`); value i by draw i. None rounds to the nearest.

    Raises:
        ValueError: if there are more or fewer values than the grid has.
    """
    _check(len(x), grid.size)
    out = np.empty(grid.length, np.uint8)
    given = grid.ends, grid.low, grid.step, grid.bits, int(grid.form), key is not None
    secret = NO_KEY if key is None else key
    spread(lambda start, stop: _encode(x, *given, secret, start, stop, out), len(x))
    return out


@kernel("void(const float32[::1], int64, int64, uint8[::1])")
def _signs(x: np.ndarray, start: int, stop: int, out: np.ndarray) -> None:
    codes = np.empty(TILE, np.uint16)
    for at in range(start, stop, TILE):
        end = min(at + TILE, stop)
        for i in range(at, end):
            codes[i - at] = x[i] >= 0
        _squeeze(codes[: end - at], 1, out[at // 8 : -(-end // 8)])


def signs(x: np.ndarray) -> np.ndarray:
    """Returns one bit for each value of float32 [count]: 1 if it is at least 0, packed."""
    out = np.empty(-(-len(x) // 8), np.uint8)
    spread(lambda start, stop: _signs(x, start, stop, out), len(x))
    return out


# ---- Codes -> values


@kernel(
    "void(const uint8[::1], const int64[::1], const float32[::1], const float32[::1], int64, "
    "int64, int64, int64, uint16[::1], float32[::1])"
)
def _tile(
    data: np.ndarray,
    ends: np.ndarray,
    low: np.ndarray,
    step: np.ndarray,
    bits: int,
    form: int,
    at: int,
    end: int,
    codes: np.ndarray,
    out: np.ndarray,
) -> None:
    """Writes values number at to end - 1; `at` is a multiple of 8, `data` are all codes."""
    _widen(data[at * bits // 8 :], bits, codes[: end - at])
    half = np.int32(1 << (bits - 1))
    zero = np.int32(half - 1 if form == MIDDLE else 0)
    part, here = np.searchsorted(ends, at, "right"), at
    while here < end:
        while ends[part] <= here:
            part += 1
        until, first, each = min(end, ends[part]), low[part], step[part]
        some, values = codes[here - at : until - at], out[here - at : until - at]
        if form == SIGN:
            for i in range(len(values)):
                code = np.int32(some[i])
                value = np.float32(code & (half - 1)) * each + first
                values[i] = -value if code >= half else value
        else:
            for i in range(len(values)):
                values[i] = np.float32(np.int32(some[i]) - zero) * each + first
        here = until


@kernel(
    "void(const uint8[::1], const int64[::1], const float32[::1], const float32[::1], int64, "
    "int64, int64, int64, float32[::1])"
)
def _decode(
    data: np.ndarray,
    ends: np.ndarray,
    low: np.ndarray,
    step: np.ndarray,
    bits: int,
    form: int,
    start: int,
    stop: int,
    out: np.ndarray,
) -> None:
    """Writes values number start to stop - 1 of all, to their places in `out`."""
    codes = np.empty(TILE, np.uint16)
    for at in range(start, stop, TILE):
        end = min(at + TILE, stop)
        _tile(data, ends, low, step, bits, form, at, end, codes, out[at:end])


def decode(data: np.ndarray, grid: Grid) -> np.ndarray:
    """Returns the values of packed codes, float32 [count], in float32: low + step * level.

    Args:
        data: uint8 [ceil(count * bits / 8)].
        grid: the values that codes stand for.

    Raises:
        ValueError: if there are more or fewer bytes.
    """
    _check(len(data), grid.length)
    out = np.empty(grid.size, np.float32)
    given = grid.ends, grid.low, grid.step, grid.bits, int(grid.form)
    spread(lambda start, stop: _decode(data, *given, start, stop, out), grid.size)
    return out


@kernel(
    "void(const uint8[::1], const int64[::1], const float32[::1], const float32[::1], int64, "
    "int64, float32, const uint32[::1], int64, int64, float32[::1])"
)
def _add(
    data: np.ndarray,
    ends: np.ndarray,
    low: np.ndarray,
    step: np.ndarray,
    bits: int,
    form: int,
    weight: float,
    places: np.ndarray,
    start: int,
    stop: int,
    target: np.ndarray,
) -> None:
    """Adds values number start to stop - 1 at their positions; value i to element i without."""
    codes, values = np.empty(TILE, np.uint16), np.empty(TILE, np.float32)
    for at in range(start, stop, TILE):
        end = min(at + TILE, stop)
        _tile(data, ends, low, step, bits, form, at, end, codes, values)
        if len(places):
            some = places[at:end]
            for i in range(len(some)):
                if some[i] >= len(target):
                    raise IndexError("a position beyond the vector")
                target[some[i]] += weight * values[i]
        else:
            here = target[at:end]
            for i in range(len(here)):
                here[i] += weight * values[i]


NOWHERE = np.zeros(0, np.uint32)
"""No positions: there is a value for each element."""


def add(
    target: np.ndarray,
    data: np.ndarray,
    grid: Grid,
    weight: float = 1.0,
    places: np.ndarray | None = None,
) -> None:
    """Adds weight * value for each packed code, in float32.

    Args:
        target: float32 [n], changed in place.
        data: the packed codes, uint8 [ceil(count * bits / 8)].
        grid: the values that they stand for.
        weight: a factor.
        places: their positions, uint32 [count], all different; None if count = n.

    Raises:
        IndexError: if a position is n or more.
        ValueError: if there are more or fewer bytes, positions or elements than the grid has.
    """
    _check(len(data), grid.length)
    _check(len(target) if places is None else len(places), grid.size)
    given = data, grid.ends, grid.low, grid.step, grid.bits, int(grid.form), weight
    where = NOWHERE if places is None else places
    spread(lambda start, stop: _add(*given, where, start, stop, target), grid.size)
