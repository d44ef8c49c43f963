"""Positions as bytes, against the definitions of the codes in plain Python."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmpi.messages.kernels import places
from tests.messages.test_sparse import some

MOST = 2**32 - 1
"""The size of the longest vector."""


def packed(bits: list[int]) -> bytes:
    """Bits in whole bytes, the lowest first."""
    bits = bits + [0] * (-len(bits) % 8)
    return bytes(sum(bits[i + j] << j for j in range(8)) for i in range(0, len(bits), 8))


def gaps(positions: list[int]) -> list[int]:
    return [b - a - 1 for a, b in zip([-1, *positions], positions, strict=False)]


def golomb(positions: list[int], width: int) -> tuple[int, bytes]:
    unary = [bit for gap in gaps(positions) for bit in [0] * (gap >> width) + [1]]
    lower = [gap >> bit & 1 for gap in gaps(positions) for bit in range(width)]
    return len(unary), packed(unary + lower)


def varints(positions: list[int]) -> bytes:
    found = []
    for gap in gaps(positions):
        while gap >= 128:
            found.append(gap % 128 + 128)
            gap //= 128
        found.append(gap)
    return bytes(found)


def array(positions: list[int]) -> np.ndarray:
    return np.array(positions, np.uint32)


def data(raw: bytes) -> np.ndarray:
    return np.frombuffer(raw, np.uint8)


some_positions = st.lists(
    st.integers(0, 600) | st.integers(0, 2**21), max_size=80, unique=True
).map(sorted)
sparse = st.lists(st.integers(0, MOST - 1), max_size=9, unique=True).map(sorted)


@given(st.lists(st.sampled_from([0.0, -0.0, 1.5, -2.0, float("nan"), float("inf")]), max_size=99))
@some
def test_what_is_not_zero(values: list[float]) -> None:
    vector = np.array(values, np.float32)
    positions, found = places.nonzero(vector)
    wanted = [i for i, value in enumerate(values) if value != 0]
    assert (positions.tolist(), positions.dtype) == (wanted, np.uint32)
    assert found.tobytes() == vector[wanted].tobytes()


def test_what_is_not_zero_in_threads(threads: int) -> None:
    vector = np.zeros(1000, np.float32)
    vector[::7] = np.arange(143)
    positions, found = places.nonzero(vector)
    assert positions.tolist() == list(range(7, 1000, 7))
    assert found.tolist() == list(range(1, 143))


@given(some_positions, st.integers(0, 70))
@some
def test_bitmaps(positions: list[int], behind: int) -> None:
    positions = [p for p in positions if p < 600]
    size = (positions[-1] + 1 if positions else 0) + behind
    kept = set(positions)
    wanted = packed([int(i in kept) for i in range(size)])
    assert places.bitmap(array(positions), size).tobytes() == wanted
    found = places.from_bitmap(data(wanted), size)
    assert (found.dtype, found.tolist()) == (np.uint32, positions)
    # What lies behind the last bit belongs to others.
    noisy = data(wanted + b"\xff").copy()
    if size % 8:
        noisy[size // 8] |= 256 - (1 << size % 8)
    assert places.from_bitmap(noisy, size).tolist() == positions


def test_bitmaps_in_threads(threads: int) -> None:
    random = np.random.default_rng(threads)
    for share in (0.0, 0.01, 0.5, 0.99, 1.0):
        for size in (511, 4096, 5000):
            kept = random.random(size) < share
            wanted = np.flatnonzero(kept)
            found = places.bitmap(wanted.astype(np.uint32), size)
            assert found.tobytes() == np.packbits(kept, bitorder="little").tobytes()
            assert places.from_bitmap(found, size).tolist() == wanted.tolist()


@given(some_positions | sparse, st.integers(0, 31))
@some
def test_golomb_code(positions: list[int], width: int) -> None:
    if sum(gap >> width for gap in gaps(positions)) > 10_000:
        return  # nobody would write that
    unary, wanted = golomb(positions, width)
    size, count = (positions[-1] + 1 if positions else 0), len(positions)
    length, found = places.golomb(array(positions), width)
    assert (length, found.tobytes()) == (unary, wanted)
    again = places.from_golomb(found, size, count, width, unary)
    assert again is not None and again.tolist() == positions
    if positions:
        assert places.from_golomb(found, size - 1, count, width, unary) is None


@given(some_positions | sparse)
@some
def test_varints(positions: list[int]) -> None:
    wanted = varints(positions)
    assert places.varints(array(positions)).tobytes() == wanted
    size, count = (positions[-1] + 1 if positions else 0), len(positions)
    found = places.from_varints(data(wanted), size, count)
    assert found is not None and found.tolist() == positions
    if positions:
        assert places.from_varints(data(wanted), size - 1, count) is None
        assert places.from_varints(data(wanted[:-1]), size, count) is None
        assert places.from_varints(data(wanted), size, count - 1) is None
    assert places.from_varints(data(wanted + b"\0"), MOST, count) is None
    assert places.from_varints(data(wanted), MOST, count + 1) is None


@pytest.mark.parametrize(
    "raw",
    ["8000", "ff00", "808000", "ffffffffff", "ffffffffff01", "ffffffff10", "80", "ffffffff7f"],
)
def test_varints_are_as_short_as_can_be_and_no_gap_is_beyond_32_bits(raw: str) -> None:
    assert places.from_varints(data(bytes.fromhex(raw)), MOST, 1) is None
    assert places.from_varints(data(bytes.fromhex("feffffff0f")), MOST, 1).tolist() == [MOST - 1]


@given(st.lists(st.integers(0, 20), max_size=20), st.integers(0, 20))
@some
def test_ascending(positions: list[int], size: int) -> None:
    wanted = positions == sorted(set(positions)) and all(p < size for p in positions)
    assert places.are_ascending(array(positions), size) == wanted
