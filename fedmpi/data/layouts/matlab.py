"""MATLAB files of level 5: reads arrays of numbers by name, and nothing else.

The format is that of MathWorks' *MAT-File Format*: a header of 128 bytes, then elements with type,
length and content, each of which may be compressed. This is a reader of our own, because SciPy's
crashes the process on some damaged files.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from fedmpi.data.files import DataError, contents

Order = Literal["little", "big"]

HEADER = 128
ORDERS: dict[bytes, Order] = {b"\0\1IM": "little", b"\1\0MI": "big"}
"""End of the header: version 1.0, and byte order."""
MATRIX, COMPRESSED = 14, 15
"""Types of elements."""
NUMBERS = {
    **{1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4"},
    **{7: "f4", 9: "f8", 12: "i8", 13: "u8"},
}
"""Types of elements with numbers; an array may be stored in a smaller type than its class."""
CLASSES = range(6, 16)
"""Classes of arrays of numbers: double, single, and integers."""
COMPLEX = 0x800
"""Flag of an array that has an imaginary part."""
LARGEST = 1 << 28
"""Maximum bytes of a decompressed element, because a few bytes could claim any size."""


def read(path: Path, key: str) -> np.ndarray:
    """Reads the real array of that name, float64 of any shape.

    Raises:
        DataError: if the file cannot be read, is damaged, or has no such array.
    """
    packed = contents(path)
    order = ORDERS.get(packed[HEADER - 4 : HEADER])
    if order is None:
        raise DataError(
            f"{path}: wanted a MATLAB file of level 5, found {len(packed)} bytes of something else"
        )
    try:
        for kind, content in _elements(packed[HEADER:], order, unpacks=True):
            found = _array(content, order, key) if kind == MATRIX else None
            if found is not None:
                return found
    except (ValueError, zlib.error) as error:
        raise DataError(f"{path}: wanted a whole MATLAB file, found: {error}") from None
    raise DataError(f"{path}: wanted an array of numbers '{key}', found none")


def _elements(data: bytes, order: Order, unpacks: bool = False) -> Iterator[tuple[int, bytes]]:
    """Yields type and content of each element; decompresses once if `unpacks`.

    Real files never compress twice, and some bytes decompress to themselves for ever.
    """
    place = 0
    while place < len(data):
        kind = int.from_bytes(data[place : place + 4], order)
        if kind >> 16:  # a small one: type and length in four bytes, and up to four of content
            size, start, end = kind >> 16, place + 4, place + 8
            kind &= 0xFFFF
        else:
            size, start = int.from_bytes(data[place + 4 : place + 8], order), place + 8
            end = start + size + (0 if kind == COMPRESSED else -size % 8)
        content = data[start : start + size]
        if len(content) < size or start + size > end:
            raise ValueError(f"an element of {size} bytes where {len(content)} are left")
        place = end
        if kind == COMPRESSED and unpacks:
            inner = zlib.decompressobj().decompress(content, LARGEST)
            yield from _elements(inner, order)
        else:
            yield kind, content


def _array(content: bytes, order: Order, key: str) -> np.ndarray | None:
    """Returns a matrix if it has this name and is of real numbers, else None."""
    parts = list(_elements(content, order))
    if len(parts) < 4 or parts[2][1] != key.encode():
        return None
    (_, flags), (_, sizes), _, (kind, values) = parts[:4]
    about = int.from_bytes(flags[:4], order)
    if about & 0xFF not in CLASSES or about & COMPLEX or kind not in NUMBERS:
        return None
    sign = "<" if order == "little" else ">"
    shape = np.frombuffer(sizes, f"{sign}i4")
    if (shape < 0).any():
        raise ValueError(f"an array of shape {shape.tolist()}")
    numbers = np.frombuffer(values, f"{sign}{NUMBERS[kind]}").astype(np.float64)
    return numbers.reshape(shape.tolist(), order="F")
