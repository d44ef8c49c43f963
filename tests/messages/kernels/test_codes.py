"""Rounding, packing, unpacking and adding in one pass, against numpy that does one at a time."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from fedmpi.messages import kernels
from fedmpi.messages.kernels import codes
from fedmpi.messages.kernels.codes import Form, Grid
from fedmpi.streams import Purpose, key
from tests import coded

WIDTHS = range(1, 17)
COUNTS = [0, 1, 2, 7, 8, 9, 63, 65, 2047, 2048, 2049, 4100]
"""Around a byte's and a tile's end."""
SECRET = key(5, Purpose.ROUND, 1, 2)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """So many threads, even for short vectors."""
    monkeypatch.setattr(kernels, "LEAST", 1)
    kernels.use_threads(request.param)
    yield request.param
    kernels.use_threads(1)


def vector(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_normal(count) * 10.0 ** random.uniform(-2, 2, count)).astype("f4")


def cut(count: int, lengths: Sequence[int]) -> np.ndarray:
    """Ends of parts of these lengths, again and again, up to `count`."""
    if count == 0:
        return np.zeros(1, np.int64)
    ends = np.cumsum(np.resize(lengths, count + len(lengths)))
    return np.append(ends[ends < count], count).astype(np.int64)


PARTS = [(10**9,), (5, 0, 3, 700, 1, 1), (512,), (2048, 1)]


def limits(x: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and greatest value of each part, 0 of none."""
    parts = np.split(x, ends[:-1])
    low = [part.min() if len(part) else 0 for part in parts]
    return np.array(low, "f4"), np.array([p.max() if len(p) else 0 for p in parts], "f4")


def reference(x: np.ndarray, grid: Grid, draws: np.ndarray | float) -> np.ndarray:
    """The codes of values, in float64: int64 [count]."""
    lengths = np.diff(grid.ends, prepend=0)
    low, step = (np.repeat(each.astype(float), lengths) for each in (grid.low, grid.step))
    usual, bits = (step > 0) & np.isfinite(step), grid.bits
    given = x if grid.form == Form.RANGE else np.abs(x)
    with np.errstate(invalid="ignore", over="ignore"):
        exact = (given.astype(float) - low) / np.where(usual, step, 1) + draws
    top = (1 << bits) - 1 if grid.form == Form.RANGE else (1 << bits - 1) - 1
    level = np.where(usual, np.floor(exact).clip(0, top), 0).astype(np.int64)
    if grid.form == Form.RANGE:
        return level
    if grid.form == Form.SIGN:
        return level + (x < 0) * (1 << bits - 1)
    return top + np.where(x < 0, -level, level)


def values(found: np.ndarray, grid: Grid) -> np.ndarray:
    """What codes stand for, in float32, operation by operation."""
    lengths = np.diff(grid.ends, prepend=0)
    low, step = (np.repeat(each, lengths) for each in (grid.low, grid.step))
    half = 1 << grid.bits - 1
    if grid.form == Form.SIGN:
        size = (found % half).astype("f4") * step + low
        return np.where(found >= half, -size, size)
    zero = half - 1 if grid.form == Form.MIDDLE else 0
    return (found - zero).astype("f4") * step + low


def grid(x: np.ndarray, bits: int, form: Form, lengths: Sequence[int]) -> Grid:
    """Levels between the least and the greatest value or magnitude; from 0 for MIDDLE."""
    ends = cut(len(x), lengths)
    low, high = limits(x if form == Form.RANGE else np.abs(x), ends)
    if form == Form.MIDDLE:
        low = np.zeros_like(low)
    top = (1 << bits) - 1 if form == Form.RANGE else (1 << bits - 1) - 1
    return Grid(bits, ends, low, (high - low) / np.float32(top), form)


@pytest.mark.parametrize("bits", WIDTHS)
def test_integers_are_packed_lowest_bit_first(bits: int) -> None:
    """Against one large integer of Python."""
    for count in COUNTS:
        given = np.random.default_rng(count).integers(2**bits, size=count)
        whole = sum(int(code) << i * bits for i, code in enumerate(given))
        found = codes.squeeze(given, bits)
        assert found.tobytes() == whole.to_bytes(-(-count * bits // 8), "little")
        np.testing.assert_array_equal(codes.widen(found, bits, count), given)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("is_random", [False, True])
def test_codes_are_those_of_the_formula(
    bits: int, form: Form, is_random: bool, threads: int
) -> None:
    if form != Form.RANGE and bits == 1:
        return
    for count, lengths in itertools.product((0, 1, 9, 2049, 4100), PARTS):
        x = vector(count, count)
        levels = grid(x, bits, form, lengths)
        draws = coded.draws(SECRET, count) if is_random else 0.5
        wanted = reference(x, levels, draws)
        found = codes.encode(x, levels, SECRET if is_random else None)
        assert found.tobytes() == coded.packed(wanted, bits).tobytes(), (count, lengths)
        decoded = codes.decode(found, levels)
        assert decoded.tobytes() == values(wanted, levels).astype("f4").tobytes()


@pytest.mark.parametrize("bits", [1, 3, 8, 13])
@pytest.mark.parametrize("form", Form)
def test_sums_are_those_of_decoded_values(bits: int, form: Form, threads: int) -> None:
    """At all positions and at some, in float32: two roundings a value."""
    if form != Form.RANGE and bits == 1:
        return
    for count, lengths in itertools.product((0, 1, 9, 4100), PARTS):
        x, before = vector(count, 1), vector(count + 50, 2)
        levels = grid(x, bits, form, lengths)
        data = codes.encode(x, levels, SECRET)
        product = np.float32(0.3) * codes.decode(data, levels)
        target = before[:count].copy()
        codes.add(target, data, levels, 0.3)
        assert target.tobytes() == (before[:count] + product).tobytes()
        places = np.random.default_rng(3).permutation(count + 50)[:count].astype(np.uint32)
        target, wanted = before.copy(), before.copy()
        codes.add(target, data, levels, 0.3, places)
        wanted[places] += product
        assert target.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("is_magnitude", [False, True])
def test_bounds_are_the_least_and_the_greatest(is_magnitude: bool, threads: int) -> None:
    for count, lengths in itertools.product((0, 1, 9, 2049, 4100), PARTS):
        x, ends = vector(count, 4), cut(count, lengths)
        low, high = codes.bounds(x, ends, is_magnitude)
        wanted = limits(np.abs(x) if is_magnitude else x, ends)
        np.testing.assert_array_equal([low, high], wanted)
        assert low.dtype == high.dtype == np.float32


@pytest.mark.parametrize("sign", [1, -1])
def test_bounds_show_what_is_no_number(sign: int, threads: int) -> None:
    x, ends = vector(300), np.array([100, 200, 300])
    bits = x.view(np.uint32)
    bits[150] = 0x7FC00001 if sign > 0 else 0xFFC00001
    low, high = codes.bounds(x, ends)
    assert np.isnan([low[1], high[1]]).any() and np.isfinite([low[::2], high[::2]]).all()
    x[150] = sign * np.inf
    low, high = codes.bounds(x, ends)
    assert (high[1] if sign > 0 else low[1]) == sign * np.inf
    assert codes.bounds(x, ends, True)[1][1] == np.inf


def test_bounds_of_zeros_do_not_depend_on_threads(threads: int) -> None:
    """-0 is less than 0."""
    x = np.where(np.arange(500) % 3, 0.0, -0.0).astype("f4")
    low, high = codes.bounds(x, np.array([500]))
    assert np.signbit(low) and not np.signbit(high)


def test_norms_are_those_of_float64() -> None:
    for count, lengths in itertools.product((0, 1, 9, 4100), PARTS):
        x, ends = vector(count, 6), cut(count, lengths)
        wanted = [np.linalg.norm(part.astype(float)) for part in np.split(x, ends[:-1])]
        np.testing.assert_allclose(codes.norms(x, ends), wanted, rtol=1e-7)
    large = np.full(9, 3e38, "f4")
    assert codes.norms(large, np.array([1, 9])).tolist() == [np.float32(3e38), np.inf]


def test_signs_are_one_bit(threads: int) -> None:
    for count in COUNTS:
        x = vector(count, 7)
        x[::5], x[1::7] = 0, np.nan
        with np.errstate(invalid="ignore"):
            wanted = np.packbits(x >= 0, bitorder="little")
        assert codes.signs(x).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_values_are_right_on_average(bits: int, form: Form) -> None:
    """A mean of 40,000 draws is within six standard deviations, and rounding to 2^-33 of a step.

    The deviation of a value between two levels is at most half a step.
    """
    draws, x = 40_000, np.array([0.11, -0.7, 0.9, 1.0, -0.33, 0.5], "f4")
    one = grid(x, bits, form, (6,))
    many = one._replace(ends=np.array([draws * len(x)]))
    found = codes.decode(codes.encode(np.tile(x, draws), many, SECRET), many)
    mean, step = found.reshape(draws, -1).astype(float).mean(0), float(one.step[0])
    assert (np.abs(mean - x) <= 6 * step / 2 / draws**0.5 + 2**-23).all()
    nearest = codes.decode(codes.encode(x, one), one)
    assert bits > 8 or (np.abs(nearest - x) > 6 * step / 2 / draws**0.5 + 2**-23).any()


def test_arrays_that_do_not_fit_are_refused() -> None:
    """Kernels do not look where an array ends."""
    x = vector(9)
    levels = grid(x, 3, Form.RANGE, (4,))
    data, target = codes.encode(x, levels), np.zeros(20, "f4")
    with pytest.raises(ValueError, match="8 elements, wanted 9"):
        codes.encode(x[:8], levels)
    with pytest.raises(ValueError, match="3 elements, wanted 4"):
        codes.decode(data[:3], levels)
    with pytest.raises(ValueError, match="20 elements, wanted 9"):
        codes.add(target, data, levels)
    with pytest.raises(ValueError, match="8 elements, wanted 9"):
        codes.add(target, data, levels, 1.0, np.arange(8, dtype=np.uint32))
    with pytest.raises(IndexError, match="beyond the vector"):
        codes.add(target, data, levels, 1.0, np.arange(12, 21, dtype=np.uint32))
