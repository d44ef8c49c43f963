"""Partial sums on their way: a dense vector <-> a block of its values that are not zero.

A sum that few uploads with few values were added to is mostly zeros. It is written with the
positions of the others as long as that is shorter than all of its values. With pairs of a position
and a value of 4 bytes each the two are equal at a density of isize / (c + isize) = 1/2: C. Renggli,
S. Ashkboos, M. Aghagolzadeh, D. Alistarh, T. Hoefler, *SparCML: High-Performance Sparse
Communication for Machine Learning*, SC 2019, arXiv 1802.08021, section 5.1. Here positions are a
bitmap where that is shorter, an eighth of a byte for each element, and the two are equal at 31/32.
"""

import numpy as np

from fedmpi.messages.codec import Block, Coding, Kind
from fedmpi.messages.kernels import adding, places


def block(vector: np.ndarray) -> Block:
    """Encodes a sum, float32 [n], in the shorter way; a dense block is a view of it."""
    positions, values = places.nonzero(vector)
    about = Kind.GRADIENT, len(vector), Coding.F4
    if is_sparse(len(positions), len(vector)):
        return Block(*about, values, positions)
    return Block(*about, vector)


def is_sparse(count: float, size: int) -> bool:
    """Whether so many values of a sum with their positions are shorter than all of them."""
    return 4 * count + min(4 * count, -(-size // 8)) < 4 * size


def add(vector: np.ndarray, block: Block) -> None:
    """Adds a sum to another, float32 [n], in place."""
    values, positions = block.values, block.indices
    assert values is not None and block.size == len(vector)
    if positions is None:
        vector += values
    else:
        adding.add_at(vector, positions, values, 1.0)


def put(vector: np.ndarray, block: Block) -> None:
    """Overwrites a vector, float32 [n], with a sum."""
    if block.indices is None:
        vector[:] = block.values
    else:
        vector[:] = 0
        add(vector, block)
