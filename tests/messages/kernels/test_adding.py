"""Values added at positions: the bits of numpy, product first."""

import numpy as np
import pytest

from fedmpi.messages.kernels import adding


@pytest.mark.parametrize("weight", [1.0, 0.3, 1e-30, np.inf])
def test_added_values_are_rounded_twice(weight: float, threads: int) -> None:
    random = np.random.default_rng(0)
    target = random.standard_normal(3000).astype(np.float32)
    positions = np.flatnonzero(random.random(3000) < 0.4).astype(np.uint32)
    values = random.standard_normal(len(positions)).astype(np.float32)
    values[:3] = np.nan, np.inf, 1e-40
    wanted = target.copy()
    with np.errstate(all="ignore"):
        wanted[positions] += np.float32(weight) * values
    assert adding.add_at(target, positions, values, weight)
    assert target.tobytes() == wanted.tobytes()


def test_nothing_is_written_beyond_the_vector() -> None:
    memory = np.zeros(5, np.float32)
    ones = np.ones(2, np.float32)
    assert not adding.add_at(memory[:3], np.array([1, 3], np.uint32), ones, 1.0)
    assert memory.tolist() == [0, 1, 0, 0, 0]
    assert adding.add_at(memory, np.empty(0, np.uint32), np.empty(0, np.float32), 1.0)
    raw = np.zeros(17, np.uint8)[1:].view(np.float32)  # as of a buffer that lies askew
    assert adding.add_at(memory, np.arange(8, dtype=np.uint32)[:5][::-1][:4], raw, 1.0)


def test_a_difference_is_rounded_before_it_is_added(threads: int) -> None:
    """As numpy does it in two steps; a fused operation would differ in some last bits."""
    random = np.random.default_rng(5)
    target, after, before = random.normal(size=(3, 20_001)).astype(np.float32)
    wanted = target + (after - before)
    adding.add_difference(target, after, before)
    np.testing.assert_array_equal(target, wanted)
