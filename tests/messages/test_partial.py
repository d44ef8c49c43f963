"""Partial sums as blocks: the shorter way, and what they add up to."""

import numpy as np
import pytest

from fedmpi.messages import partial
from fedmpi.messages.codec import Message, pack, unpack


def vector(size: int, count: int) -> np.ndarray:
    """Float32 [size], of which the first `count` at random positions are not zero."""
    random = np.random.default_rng(count)
    found = np.zeros(size, "f4")
    found[random.permutation(size)[:count]] = random.standard_normal(count) + 9
    return found


@pytest.mark.parametrize("size", [0, 1, 64, 999, 1024])
def test_the_shorter_way_is_taken(size: int) -> None:
    """Against the lengths of both; equal ones are dense, which is faster to read."""
    for count in range(0, size + 1, 1 if size < 100 else 31):
        given = vector(size, count)
        block = partial.block(given)
        pairs = 4 * count + min(4 * count, (size + 7) // 8)
        assert (block.indices is None) == (pairs >= 4 * size)
        assert block.count == (size if block.indices is None else count)


@pytest.mark.parametrize("count", [0, 1, 30, 500, 990, 1024])
def test_blocks_are_added_and_put(count: int) -> None:
    given, other = vector(1024, count), vector(1024, 77)
    ((message,), _) = unpack(pack([Message(0, [partial.block(given)])]).data)
    added, overwritten = other.copy(), other.copy()
    partial.add(added, message.blocks[0])
    partial.put(overwritten, message.blocks[0])
    np.testing.assert_array_equal(added, other + given)
    np.testing.assert_array_equal(overwritten, given)
