"""MAT: tables of numbers in files of MATLAB, versions 5 to 7.2.

As described in "MAT-File Format", MathWorks: a header of 128 bytes, then elements, each with a kind
and a size; a matrix is an element of elements: flags, dimensions, name, numbers by columns. A file
may come from anyone, and readers in C, such as scipy's, crash on damaged ones; so this is one in
Python, which reads nothing but tables of real numbers.
"""

import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedmpi.files import DataError, contents

HEADER = 128
"""Bytes before the first element; the last four are a version and the order of bytes."""
ORDERS = {b"\0\1IM": "<", b"\1\0MI": ">"}
"""These four, and what numpy calls the order."""
MATRIX, PACKED, BYTES = 14, 15, 1
"""Kinds of elements: a matrix, an element packed with zlib, signed bytes."""
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}
"""Kinds of elements with numbers, and what numpy calls them."""
REAL = range(6, 14)
"""Classes of matrices with numbers, from double to uint32."""
COMPLEX = 0x800
"""The flag of complex ones."""
DIMENSIONS = 32
"""That a matrix may have."""
LIMIT = 2**28
"""Bytes that an element may have when it is unpacked."""


class _Malformed(Exception):
    """Says what is wrong with a file."""


def read(path: Path, name: str, columns: int) -> np.ndarray:
    """A table of numbers in a file, float32 [N, columns].

    Raises:
        DataError: if it is no such file, cut short, or has no such table of finite numbers.
    """
    packed = contents(path)
    try:
        order = ORDERS.get(packed[HEADER - 4 : HEADER])
        if order is None:
            raise _Malformed("no header of version 5")
        found = _matrix(packed[HEADER:], order, name)
    except _Malformed as error:
        raise DataError(f"{path}: wanted a file of MATLAB 5 to 7.2, found: {error}") from None
    if found is None:
        raise DataError(f"{path}: wanted real numbers named {name}, found none")
    if found.ndim != 2 or found.shape[1] != columns or not len(found):
        shape = " x ".join(map(str, found.shape))
        raise DataError(f"{path}: wanted {name} of N x {columns} numbers, found {shape}")
    with np.errstate(over="ignore"):
        table = found.astype(np.float32)
    if not np.isfinite(table).all():
        raise DataError(f"{path}: wanted finite numbers in {name}, found others")
    return table


def _elements(data: bytes, order: str, step: int = 8) -> Iterator[tuple[int, bytes]]:
    """The kinds and contents of elements, each of which begins at a multiple of `step` bytes."""
    place = 0
    while place < len(data):
        kind, size = _integers(data[place : place + 8], order, 2)
        start = place + 8
        if kind >> 16:  # so small that it follows its kind at once
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
        content = data[start : start + size]
        if len(content) < size:
            raise _Malformed(f"{len(content)} bytes of {size} in an element of kind {kind}")
        yield kind, content
        place = -(-(start + size) // step) * step


def _integers(data: bytes, order: str, count: int) -> list[int]:
    """As many 32-bit integers as there should be."""
    if len(data) != 4 * count:
        raise _Malformed(f"{len(data)} bytes in the place of {count} integers")
    return [int(number) for number in np.frombuffer(data, f"{order}u4")]


def _matrix(data: bytes, order: str, name: str) -> np.ndarray | None:
    """The matrix of that name among the elements of a file; None if there is none of numbers."""
    for kind, content in _outer(data, order):
        if kind != MATRIX:
            raise _Malformed(f"an element of kind {kind} in the place of a matrix")
        found = _numbers(content, order, name)
        if found is not None:
            return found
    return None


def _outer(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """The elements of a file, unpacked; they follow one another without gaps."""
    for kind, content in _elements(data, order, step=1):
        if kind == PACKED:
            # What is packed twice stays packed: some such data unpack to themselves.
            yield from _elements(_unpacked(content), order, step=1)
        else:
            yield kind, content


def _unpacked(content: bytes) -> bytes:
    try:
        unpacker = zlib.decompressobj()
        found = unpacker.decompress(content, LIMIT)
    except zlib.error as error:
        raise _Malformed(error) from None
    if not unpacker.eof:
        raise _Malformed("a packed element that is cut or too large")
    return found


def _numbers(content: bytes, order: str, name: str) -> np.ndarray | None:
    """A matrix from its element; None if it has another name, or something else than numbers."""
    parts = list(_elements(content, order))
    if len(parts) < 3:
        return None  # an object of another sort
    (_, flags), (_, sizes), (kind, letters), *values = parts
    if kind != BYTES or letters.decode("latin1") != name:
        return None
    flag, _ = _integers(flags, order, 2)
    if flag & 0xFF not in REAL or flag & COMPLEX or len(values) != 1:
        return None
    shape = _integers(sizes, order, len(sizes) // 4)
    kind, data = values[0]
    if kind not in NUMBERS:
        raise _Malformed(f"an element of kind {kind} in the place of numbers")
    if len(shape) > DIMENSIONS:
        raise _Malformed(f"{len(shape)} dimensions")
    dtype = np.dtype(order + NUMBERS[kind])
    if len(data) != dtype.itemsize * math.prod(shape):
        raise _Malformed(f"{len(data)} bytes for {' x '.join(map(str, shape))} numbers")
    return np.frombuffer(data, dtype).reshape(shape, order="F")
