"""Positions of what is not zero, and positions as bytes: bitmaps, and gaps in Golomb or as varints.

Positions are uint32 [count], strictly ascending, and below the size of the vector. What is read may
be anything: a reader returns None unless its bytes are exactly what the writer makes of some
positions, and neither reads nor writes beyond its arrays.

A gap is the number of elements left out before a position. In Golomb code a gap g is a quotient
g >> width in unary code, that many zeros and a one, and a rest of `width` bits (S. W. Golomb,
*Run-Length Encodings*, IEEE Transactions on Information Theory, 1966; with powers of two it is
Rice's). A varint has 7 bits of a gap in each byte, the lowest first; the last byte is below 128
(LEB128).
"""

import numpy as np

from fedmpi.messages.kernels import kernel, parts, run, spread

_SET = [[bit for bit in range(8) if byte >> bit & 1] for byte in range(256)]
ONES = np.array([len(bits) for bits in _SET], np.uint8)
"""How many bits of a byte are set."""
SET = np.array([bits + [0] * (8 - len(bits)) for bits in _SET], np.uint32)
"""Which bits of a byte are set, ascending; zeros behind them. [256, 8]"""
UNSIGNED = np.uint32(0x7FFFFFFF)
"""Bits of a float32 that are not its sign: zeros have none of them."""
BLOCK = 16
"""Values that are compared with zero at once: mostly all of them are zero."""

TILE = 1 << 12
"""Bytes of a bitmap that are looked through at once."""


@kernel("boolean(const uint32[::1], uint64)")
def are_ascending(positions: np.ndarray, size: int) -> bool:
    """Whether positions are strictly ascending and below `size`."""
    if not len(positions):
        return True
    wrong = np.uint32(0)
    for i in range(1, len(positions)):
        wrong |= np.uint32(positions[i] <= positions[i - 1])
    return wrong == 0 and positions[-1] < size


def nonzero(vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions of values that are not zero, and the values.

    Args:
        vector: float32 [n].

    Returns:
        Positions, uint32 [count], ascending, and values, float32 [count].
    """
    found = spread(lambda start, stop: _found(vector[start:stop], start), len(vector))
    if len(found) == 1:
        return found[0]
    positions, values = (np.concatenate(pieces) for pieces in zip(*found, strict=True))
    return positions, values


def _found(vector: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    # Room for all values takes memory only where it is written.
    positions, values = np.empty(len(vector), np.uint32), np.empty(len(vector), np.float32)
    count = _find(vector.view(np.uint32), first, positions, values.view(np.uint32))
    return positions[:count], values[:count]


def bitmap(positions: np.ndarray, size: int) -> np.ndarray:
    """Returns a bit for each element, the lowest of a byte first: uint8 [ceil(size / 8)].

    Args:
        positions: of the bits that are set, uint32 [count], below `size`.
        size: elements of the vector.
    """
    found = np.zeros(-(-size // 8), np.uint8)
    _set_bits(positions, found)
    return found


def from_bitmap(data: np.ndarray, size: int) -> np.ndarray:
    """Returns the positions of the bits that are set among the first `size`: uint32 [count].

    Args:
        data: uint8 [ceil(size / 8)] at least.
        size: bits to read.
    """
    whole = data[: size >> 3]
    pieces = parts(len(whole))
    counts = run(_ones, [(whole[a:b],) for a, b in pieces])
    rest = int(data[size >> 3]) & (1 << size % 8) - 1 if size % 8 else 0
    positions = np.empty(sum(counts) + rest.bit_count(), np.uint32)
    end, arguments = 0, []
    for (a, b), ones in zip(pieces, counts, strict=True):
        start, end = end, end + ones
        arguments.append((whole[a:b], 8 * a, positions[start:end]))
    run(_bits_set, arguments)
    positions[end:] = [8 * len(whole) + bit for bit in _SET[rest]]
    return positions


def golomb(positions: np.ndarray, width: int) -> tuple[int, np.ndarray]:
    """Encodes gaps in Golomb code: first all quotients, then all rests.

    Args:
        positions: uint32 [count], strictly ascending.
        width: bits of a rest.

    Returns:
        The number of bits in unary code, and all bits, the lowest of a byte first: uint8
            [ceil((unary + count * width) / 8)].
    """
    unary = _unary(positions, width)
    found = np.zeros(-(-(unary + len(positions) * width) // 8), np.uint8)
    _write_gaps(positions, width, unary, found)
    return unary, found


def from_golomb(
    data: np.ndarray, size: int, count: int, width: int, unary: int
) -> np.ndarray | None:
    """Decodes what `golomb` encodes.

    Args:
        data: uint8, with as many bits as the numbers below say.
        size: elements of the vector.
        count: number of positions.
        width: bits of a rest.
        unary: bits in unary code.

    Returns:
        Positions, uint32 [count]; None if the bits are not those of positions below `size`.
    """
    positions = from_bitmap(data, unary)
    fits = len(positions) == count and _read_gaps(data, width, unary, size, positions)
    return positions if fits else None


def varints(positions: np.ndarray) -> np.ndarray:
    """Encodes the gaps of positions, uint32 [count], as varints of 1 to 5 bytes: uint8 [bytes]."""
    found = np.empty(_varint_bytes(positions), np.uint8)
    _write_varints(positions, found)
    return found


def from_varints(data: np.ndarray, size: int, count: int) -> np.ndarray | None:
    """Decodes `count` positions below `size` that are all of `data`: uint32 [count].

    None if there are no such positions.
    """
    positions = np.empty(count, np.uint32)
    return positions if _read_varints(data, size, positions) else None


@kernel("int64(const uint32[::1], uint32, uint32[::1], uint32[::1])")
def _find(bits: np.ndarray, first: int, positions: np.ndarray, values: np.ndarray) -> int:
    """Writes what is not zero, with positions counted from `first`; returns how many there are."""
    count, i, size = 0, 0, len(bits)
    while i + BLOCK <= size:
        some = np.uint32(0)
        for j in range(BLOCK):
            some |= bits[i + j]
        if some & UNSIGNED:
            for j in range(BLOCK):
                positions[count] = first + np.uint32(i + j)
                values[count] = bits[i + j]
                count += int(bits[i + j] & UNSIGNED != 0)
        i += BLOCK
    while i < size:
        positions[count] = first + np.uint32(i)
        values[count] = bits[i]
        count += int(bits[i] & UNSIGNED != 0)
        i += 1
    return count


@kernel("void(const uint32[::1], uint8[::1])")
def _set_bits(positions: np.ndarray, bits: np.ndarray) -> None:
    for position in positions:
        bits[position >> np.uint32(3)] |= np.uint8(1 << (position & np.uint32(7)))


@kernel("int64(const uint8[::1])")
def _ones(data: np.ndarray) -> int:
    """How many bits are set."""
    found = 0
    for byte in data:
        found += ONES[byte]
    return found


@kernel("void(const uint8[::1], uint32, uint32[::1])")
def _bits_set(data: np.ndarray, first: int, positions: np.ndarray) -> None:
    """Writes the positions of all bits that are set, counted from `first`; they fill the room."""
    c, last, some = 0, len(positions) - 8, np.empty(TILE, np.uint32)
    for start in range(0, len(data), TILE):
        part, k = data[start : start + TILE], 0
        for i in range(len(part)):  # bytes with a bit, which may be few
            some[k] = i
            k += part[i] != np.uint8(0)
        for i in some[:k]:
            base, byte = first + np.uint32(8 * (start + i)), part[i]
            if c <= last:
                # Eight are written, of which the next byte's replace those that are none.
                for j in range(8):
                    positions[c + j] = base + SET[byte, j]
                c += ONES[byte]
            else:
                for j in range(ONES[byte]):
                    positions[c] = base + SET[byte, j]
                    c += 1


@kernel("int64(const uint32[::1], uint32)")
def _unary(positions: np.ndarray, width: int) -> int:
    """Bits of all gaps' upper parts in unary code."""
    bits, before = 0, np.uint32(0xFFFFFFFF)
    for position in positions:
        gap = np.uint32(position - before - np.uint32(1))
        bits += int(gap >> width) + 1
        before = position
    return bits


@kernel("void(const uint32[::1], uint32, uint64, uint8[::1])")
def _write_gaps(positions: np.ndarray, width: int, unary: int, found: np.ndarray) -> None:
    """Sets the bits of gaps, among zeros."""
    end, at, before = np.uint64(0), np.uint64(unary), np.uint32(0xFFFFFFFF)
    for position in positions:
        gap = np.uint64(np.uint32(position - before - np.uint32(1)))
        before = position
        upper = gap >> np.uint64(width)
        end += upper + np.uint64(1)
        last = end - np.uint64(1)
        found[last >> np.uint64(3)] |= np.uint8(np.uint64(1) << (last & np.uint64(7)))
        lower = (gap - (upper << np.uint64(width))) << (at & np.uint64(7))
        byte = at >> np.uint64(3)
        while lower:
            found[byte] |= np.uint8(lower & np.uint64(255))
            lower >>= np.uint64(8)
            byte += np.uint64(1)
        at += np.uint64(width)


@kernel("boolean(const uint8[::1], uint32, uint64, uint64, uint32[::1])")
def _read_gaps(data: np.ndarray, width: int, unary: int, size: int, positions: np.ndarray) -> bool:
    """Turns the ends of gaps' upper parts into positions; whether they end where they should."""
    count = len(positions)
    if count and np.uint64(positions[-1]) != unary - np.uint64(1):
        return False
    at, left, bits = unary >> np.uint64(3), np.uint64(0), np.uint64(0)
    if unary & np.uint64(7) and width and count:
        bits = np.uint64(data[at]) >> (unary & np.uint64(7))
        left = np.uint64(8) - (unary & np.uint64(7))
        at += np.uint64(1)
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    end, next = np.uint64(0), np.uint64(0)
    for i in range(count):
        while left < np.uint64(width):
            bits |= np.uint64(data[at]) << left
            left += np.uint64(8)
            at += np.uint64(1)
        upper = np.uint64(positions[i]) - end
        end = np.uint64(positions[i]) + np.uint64(1)
        next += (upper << np.uint64(width)) + (bits & mask)
        if next >= size:
            return False
        positions[i] = np.uint32(next)
        next += np.uint64(1)
        bits >>= np.uint64(width)
        left -= np.uint64(width)
    return True


@kernel("int64(const uint32[::1])")
def _varint_bytes(positions: np.ndarray) -> int:
    """Bytes of all gaps as varints."""
    found, before = 0, np.uint32(0xFFFFFFFF)
    for position in positions:
        gap = np.uint32(position - before - np.uint32(1))
        before = position
        found += 1
        for bits in (7, 14, 21, 28):
            found += gap >> np.uint32(bits) != 0
    return found


@kernel("void(const uint32[::1], uint8[::1])")
def _write_varints(positions: np.ndarray, found: np.ndarray) -> None:
    at, before = 0, np.uint32(0xFFFFFFFF)
    for position in positions:
        gap = np.uint32(position - before - np.uint32(1))
        before = position
        while gap >= np.uint32(128):
            found[at] = np.uint8(gap & np.uint32(127)) | np.uint8(128)
            gap >>= np.uint32(7)
            at += 1
        found[at] = np.uint8(gap)
        at += 1


@kernel("boolean(const uint8[::1], uint64, uint32[::1])")
def _read_varints(data: np.ndarray, size: int, positions: np.ndarray) -> bool:
    """Reads gaps; whether they are all of the bytes, none is longer than it has to be."""
    at, next = 0, np.uint64(0)
    for i in range(len(positions)):
        shift = np.uint64(0)
        while True:
            if at >= len(data) or shift > np.uint64(28):
                return False
            byte = np.uint64(data[at])
            at += 1
            next += (byte & np.uint64(127)) << shift
            if byte < np.uint64(128):
                break
            shift += np.uint64(7)
        if (byte == np.uint64(0) and shift > np.uint64(0)) or next >= size:
            return False
        positions[i] = np.uint32(next)
        next += np.uint64(1)
    return at == len(data)
