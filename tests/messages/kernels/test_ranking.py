"""The largest values of a vector, against a stable sort."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedmpi.messages.kernels import ranking
from fedmpi.messages.kernels.ranking import LONG
from tests.messages.test_select import ranked
from tests.messages.test_sparse import some


def check(x: np.ndarray, count: int) -> None:
    """Both choices against a sort of all values, the values bit by bit."""
    positions, values = ranking.largest(x, count)
    assert (positions.dtype, values.dtype) == (np.uint32, np.float32)
    assert positions.tolist() == sorted(ranked(np.abs(x))[:count])
    assert values.tobytes() == x[positions].tobytes()
    assert ranking.highest(x, count).tolist() == sorted(ranked(x)[:count])


def of_bits(bits: object) -> np.ndarray:
    return np.asarray(bits, np.uint32).view(np.float32)


ANY = arrays.arrays(np.uint32, st.integers(0, 300))
"""All bits there are: infinities, zeros of both signs, denormal values, and no numbers."""
NEAR = arrays.arrays(np.uint32, st.integers(0, 300), elements=st.integers(0x3F7FFFF0, 0x3F800010))
"""Values in two bins, most of them in one, which differ in their last bits and tie."""


@given(ANY | NEAR, st.data())
@some
def test_any_vector(bits: np.ndarray, data: st.DataObject) -> None:
    check(of_bits(bits), data.draw(st.integers(0, len(bits))))


KINDS = {
    "random": lambda r, n: r.standard_normal(n),
    "constant": lambda _, n: np.full(n, -2.5),
    "zeros": lambda r, n: r.choice([0.0, -0.0], n),
    "denormal": lambda r, n: r.integers(-1000, 1000, n) * 1e-45,
    "unknown": lambda r, n: np.where(r.random(n) < 0.3, np.nan, r.standard_normal(n)),
    "infinite": lambda r, n: r.choice([np.inf, -np.inf, np.nan, 1.0], n),
    "ascending": lambda _, n: np.linspace(-3, 5, n),
    "descending": lambda _, n: np.linspace(5, -3, n),
    "few": lambda r, n: r.choice([1.0, -1.0, 2.0], n),
    "last bits": lambda r, n: of_bits(0x40000000 + r.integers(0, 4, n, np.uint32)),
    "middle bits": lambda r, n: of_bits(0x40000000 + (r.integers(0, 9, n, np.uint32) << 8)),
    "bins": lambda r, n: of_bits(r.integers(0, 4096, n, np.uint32) << 20),
    "negative": lambda r, n: -r.random(n),
}


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_every_kind_for_every_count(kind: str, threads: int) -> None:
    x = KINDS[kind](np.random.default_rng(threads), 257).astype(np.float32)
    for count in range(len(x) + 1):
        check(x, count)


def test_what_is_no_number_ties_whatever_its_bits() -> None:
    x = of_bits([0x7F800000, 0x7F800001, 0xFFFFFFFF, 0x7FC00000, 0xFFC00000, 0x3F800000])
    assert ranking.largest(x, 2)[0].tolist() == ranking.highest(x, 2).tolist() == [1, 2]


def test_many_ties_leave_no_memory_of_theirs() -> None:
    positions, values = ranking.largest(np.ones(100_000, np.float32), 10)
    assert positions.tolist() == list(range(10))
    assert positions.base is None and values.base.base is None
    assert values.base.nbytes == values.nbytes


def test_a_vector_that_is_only_read() -> None:
    x = np.arange(9, dtype=np.float32)
    x.flags.writeable = False
    assert ranking.largest(x, 2)[0].tolist() == ranking.highest(x, 2).tolist() == [7, 8]


def test_a_long_vector(threads: int) -> None:
    x = np.random.default_rng(0).standard_normal(100_003).astype(np.float32)
    for count in (1, 1000, 50_000, 100_002):
        check(x, count)


STRIDE = max(ranking.STRIDE, LONG // ranking.SAMPLE) | 1


def beside(n: int) -> np.ndarray:
    """Marks a sixth of the positions, none of which is in the sample."""
    return (np.arange(n) % 6 == 1) & (np.arange(n) % STRIDE != 0)


SAMPLED = {
    **{kind: KINDS[kind] for kind in ("random", "constant", "zeros", "unknown")},
    **{kind: KINDS[kind] for kind in ("ascending", "descending", "infinite", "few", "last bits")},
    "sampled ones are large": lambda r, n: r.random(n) + 9 * (np.arange(n) % STRIDE == 0),
    "sampled ones are small": lambda r, n: r.random(n) + 9 * (np.arange(n) % STRIDE != 0),
    "large ones are not sampled": lambda r, n: r.random(n) + 9 * beside(n),
    "all at one end": lambda r, n: r.random(n) + 9 * (np.arange(n) < 5000),
    "all at the other": lambda r, n: r.random(n) + 9 * (np.arange(n) > n - 5000),
    "ties at the bound": lambda r, n: r.choice([1.0, 2.0], n, p=[0.96, 0.04]),
    "many zeros": lambda r, n: r.choice([0.0, 1.0], n, p=[0.7, 0.3]) * r.standard_normal(n),
}


@pytest.mark.parametrize("kind", SAMPLED)
def test_a_sample_decides_about_time_alone(kind: str, threads: int) -> None:
    x = SAMPLED[kind](np.random.default_rng(threads), LONG + 5).astype(np.float32)
    for count in (1, 17, LONG // 100, LONG // 10, LONG // 2, LONG + 4):
        check(x, count)


@given(ANY | NEAR, st.data())
@some
def test_any_vector_with_a_sample(bits: np.ndarray, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, 20))
    with mock.patch.multiple(ranking, LONG=1, STRIDE=stride):
        check(of_bits(bits), data.draw(st.integers(0, len(bits))))


@pytest.mark.parametrize(
    ("kind", "is_found"),
    [
        ("random", True),
        ("large ones are not sampled", True),
        ("constant", False),
        ("sampled ones are large", False),
        ("sampled ones are small", False),
    ],
)
def test_bounds_from_a_sample(kind: str, is_found: bool) -> None:
    """They leave few keys, or are known to be of no use."""
    x, count = SAMPLED[kind](np.random.default_rng(0), LONG).astype(np.float32), LONG // 10
    bits = x.view(np.int32)
    bounds = ranking._likely(bits, ranking.MAGNITUDE, count)
    found = bounds and ranking._candidates(bits, ranking.MAGNITUDE, bounds)
    assert (found is not None and len(found[0]) >= count) == is_found
    if is_found:
        assert count <= len(found[0]) <= 4 * count
        assert found[1].tobytes() == x[found[0]].tobytes()
        last = np.sort(abs(x))[-count].view(np.int32)
        assert (last <= bounds.high) == (kind == "random")
