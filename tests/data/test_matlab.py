"""Arrays come out of MATLAB's files as SciPy put them in, and damage is an error, never more."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from fedmpi.data.files import DataError
from fedmpi.data.layouts import matlab


def packed(folder: Path, **arrays: Any) -> bytes:
    """A file that SciPy wrote."""
    savemat(folder / "one.mat", arrays)
    return (folder / "one.mat").read_bytes()


@pytest.mark.parametrize("do_compression", [False, True])
@pytest.mark.parametrize("shape", [(7, 6), (1, 1), (0, 6), (2, 3, 4)], ids=str)
@pytest.mark.parametrize(
    "kind", ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">f8", ">i2"]
)
def test_arrays_of_numbers(
    tmp_path: Path, kind: str, shape: tuple[int, ...], do_compression: bool
) -> None:
    wanted = (np.random.default_rng(1).integers(0, 100, shape) / 3).astype(kind)
    others = {"a": "words", "b": {"c": wanted}, "d": [wanted, "cell"], "e": np.eye(2) * 1j}
    path = tmp_path / "one.mat"
    savemat(path, {**others, "x": wanted, "y": -wanted}, do_compression=do_compression)
    found = matlab.read(path, "x")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, wanted)


def element(kind: int, content: bytes, order: matlab.Order = "little") -> bytes:
    """An element, written from its description."""
    tag = kind.to_bytes(4, order) + len(content).to_bytes(4, order)
    return tag + content + bytes(-len(content) % 8)


def by_hand(order: matlab.Order, values: bytes, kind: int, sizes: tuple[int, ...]) -> bytes:
    """A file with an array `x` of class double."""
    parts = [
        element(6, (6).to_bytes(4, order) + bytes(4), order),
        element(5, b"".join(size.to_bytes(4, order, signed=True) for size in sizes), order),
        (1 << 16 | 1).to_bytes(4, order) + b"x\0\0\0",
        element(kind, values, order),
    ]
    end = {"little": b"\0\1IM", "big": b"\1\0MI"}[order]
    return b"MATLAB 5.0".ljust(124) + end + element(14, b"".join(parts), order)


@pytest.mark.parametrize("order", ["little", "big"])
def test_either_order_of_bytes(tmp_path: Path, order: matlab.Order) -> None:
    """And a double array whose values need no more than two bytes each."""
    values = b"".join(number.to_bytes(2, order) for number in (1, 2, 3, 400, 500, 600))
    path = tmp_path / "one.mat"
    path.write_bytes(by_hand(order, values, 4, (3, 2)))
    np.testing.assert_array_equal(matlab.read(path, "x"), [[1, 400], [2, 500], [3, 600]])


GOOD = np.ones((200, 6))
BOMB = zlib.compress(element(14, bytes(1 << 20)))
DEEP = by_hand("little", bytes(8), 9, (1, 1))[128:]
for _ in range(1200):
    DEEP = element(15, zlib.compress(DEEP, 0))
HEADER = b"MATLAB 5.0".ljust(124) + b"\0\1IM"
WRONG: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty": (lambda _: b"", "wanted a MATLAB file of level 5, found 0 bytes"),
    "text": (lambda _: b"1,2,3\n" * 100, "of level 5, found 600 bytes of something else"),
    "HDF5": (lambda _: b"MATLAB 7.3".ljust(124) + b"\0\2IM", "of level 5, found 128 bytes"),
    "cut": (lambda f: packed(f, x=GOOD)[:-99], "whole MATLAB file, found: an element of .* left"),
    "header": (lambda _: HEADER, "wanted an array of numbers 'x', found none"),
    "another": (lambda f: packed(f, y=GOOD), "wanted an array of numbers 'x', found none"),
    "words": (lambda f: packed(f, x="walk"), "wanted an array of numbers 'x', found none"),
    "struct": (lambda f: packed(f, x={"a": GOOD}), "wanted an array of numbers 'x', found none"),
    "cell": (lambda f: packed(f, x=[GOOD, "a"]), "wanted an array of numbers 'x', found none"),
    "complex": (lambda f: packed(f, x=GOOD * 1j), "wanted an array of numbers 'x', found none"),
    "shape": (lambda _: by_hand("little", bytes(16), 9, (3, 2)), "whole .* cannot reshape"),
    "negative": (lambda _: by_hand("little", bytes(16), 9, (-1, 1)), r"of shape \[-1, 1\]"),
    "odd": (lambda _: by_hand("little", bytes(15), 9, (2, 1)), "wanted a whole MATLAB file"),
    "packed": (lambda _: HEADER + element(15, b"nothing"), "whole .* decompress"),
    "packed often": (lambda _: HEADER + DEEP, "wanted an array of numbers 'x', found none"),
    "bomb": (lambda _: HEADER + element(15, BOMB), "whole .* an element of 1048576 bytes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matlab, "LARGEST", 1 << 16)
    make, match = WRONG[case]
    path = tmp_path / "a3t2.mat"
    path.write_bytes(make(tmp_path))
    with pytest.raises(DataError, match=match) as error:
        matlab.read(path, "x")
    assert str(error.value).startswith(f"{path}: ")


@given(
    st.integers(0, 1200),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=3),
    st.booleans(),
)
@settings(max_examples=500, deadline=None)
def test_damaged_files(
    tmp_path_factory: pytest.TempPathFactory,
    end: int,
    changes: list[tuple[int, int]],
    do_compression: bool,
) -> None:
    """There is a `DataError`, or there are numbers; SciPy would end the process at times."""
    path = tmp_path_factory.getbasetemp() / "damaged.mat"
    savemat(path, {"x": np.arange(120.0).reshape(20, 6) ** 9}, do_compression=do_compression)
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[place] = value
    for part in (bytes(content), bytes(content[:end])):
        path.write_bytes(part)
        try:
            found = matlab.read(path, "x")
        except DataError:
            continue
        assert found.dtype == np.float64
