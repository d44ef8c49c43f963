"""Measures of heterogeneity, against numbers worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedmpi.clients.heterogeneity import effective_classes, gini, measures, total_variation
from fedmpi.partitions import counted

few = effort(max_examples=80, deadline=None)
tables = st.tuples(st.integers(1, 6), st.integers(1, 7)).flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.integers(0, 9))
)


def inhabited(counts: np.ndarray) -> np.ndarray:
    """The same, with a sample of the first class for everyone who has none."""
    counts[0] += counts.sum(axis=0) == 0
    return counts


def test_counted() -> None:
    labels = np.array([2, 0, 0, 1, 2, 2])
    shards = [np.array([0, 1]), np.array([4, 5]), np.array([2])]
    assert counted(shards, labels, 4).tolist() == [[1, 0, 1], [0, 0, 0], [1, 2, 0], [0, 0, 0]]


def test_total_variation() -> None:
    # Sizes 4, 4, 8 of 16; the whole is (10, 6) / 16 = (0.625, 0.375).
    counts = np.array([[4, 2, 4], [0, 2, 4]])
    np.testing.assert_allclose(total_variation(counts), [0.375, 0.125, 0.125])
    # Nobody shares a class: 1 - n_k / n.
    np.testing.assert_allclose(total_variation(np.diag([1, 2, 5])), [7 / 8, 6 / 8, 3 / 8])
    assert total_variation(np.array([[3, 30], [1, 10]])).tolist() == [0, 0]
    assert total_variation(np.array([[7], [0], [2]])).tolist() == [0], "alone"


def test_gini() -> None:
    assert gini(np.array([5, 5, 5])) == 0
    assert gini(np.array([7])) == 0
    # |1 - 3| twice, over 2 * 2 * 4.
    assert gini(np.array([3, 1])) == pytest.approx(0.25)
    # 2 * (1 + 2 + 3 + 1 + 2 + 1) over 2 * 4 * 10.
    assert gini(np.array([4, 2, 1, 3])) == pytest.approx(0.25)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(3 / 4)


def test_effective_classes() -> None:
    counts = np.array([[4, 5, 1, 2], [0, 5, 1, 1], [0, 0, 1, 1], [0, 0, 1, 0]])
    # Halves and two quarters: an entropy of 1.5 bits.
    np.testing.assert_allclose(effective_classes(counts), [1, 2, 4, 2**1.5])


def test_measures() -> None:
    found = measures(np.array([[4, 2, 4], [0, 2, 4]]))
    assert found == {
        "partition_tv_mean": pytest.approx(0.625 / 3),
        "partition_tv_max": pytest.approx(0.375),
        # Sizes 4, 4, 8: 2 * (4 + 4) over 2 * 3 * 16.
        "partition_gini": pytest.approx(1 / 6),
        "partition_classes": pytest.approx(5 / 3),
    }
    assert all(type(value) is float for value in found.values())


@few
@given(tables.map(inhabited))
def test_bounds_and_definitions(counts: np.ndarray) -> None:
    """Each against its formula, term by term."""
    classes, clients = counts.shape
    sizes, whole = counts.sum(axis=0), int(counts.sum())
    by_class = counts.sum(axis=1)
    for k, (distance, effective) in enumerate(
        zip(total_variation(counts), effective_classes(counts), strict=True)
    ):
        shares = [counts[c, k] / sizes[k] for c in range(classes)]
        terms = [abs(shares[c] - by_class[c] / whole) for c in range(classes)]
        assert distance == pytest.approx(sum(terms) / 2, abs=1e-12)
        assert -1e-12 <= distance <= 1 - sizes[k] / whole + 1e-12
        entropy = -sum(p * math.log(p) for p in shares if p)
        assert effective == pytest.approx(math.exp(entropy))
        assert 1 - 1e-12 <= effective <= classes + 1e-9
    pairs = sum(abs(int(a) - int(b)) for a in sizes for b in sizes)
    assert gini(sizes) == pytest.approx(pairs / (2 * clients * whole), abs=1e-12)
