"""Values at some positions, or a difference of vectors, added to a vector in place."""

import numpy as np

from fedmpi.messages.kernels import kernel, spread


def add_at(target: np.ndarray, positions: np.ndarray, values: np.ndarray, weight: float) -> bool:
    """Adds weight * value at each position; both are rounded to float32, the product first.

    Args:
        target: float32 [n].
        positions: uint32 [count], no two alike.
        values: float32 [count].
        weight: a factor.

    Returns:
        Whether all positions lie in the vector; if not, what lies in it may have been added.
    """
    positions, values = _plain(positions), _plain(values)

    def part(start: int, stop: int) -> bool:
        return _add_at(target, positions[start:stop], values[start:stop], weight)

    return all(spread(part, len(positions)))


def add_difference(target: np.ndarray, after: np.ndarray, before: np.ndarray) -> None:
    """Adds after - before to a vector, all float32 [n]; the difference is rounded first.

    It takes one pass, where a vector for the difference would be written and read besides.
    """

    def part(start: int, stop: int) -> None:
        _add_difference(target[start:stop], after[start:stop], before[start:stop])

    spread(part, len(target))


def _plain(array: np.ndarray) -> np.ndarray:
    """As `np.require` with C and A, which takes longer than a kernel for a short vector."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else np.require(array, None, ["C", "A"])


@kernel("boolean(float32[::1], const uint32[::1], const float32[::1], float32)")
def _add_at(target: np.ndarray, positions: np.ndarray, values: np.ndarray, weight: float) -> bool:
    size = len(target)
    for i in range(len(positions)):
        position = positions[i]
        if position >= size:
            return False
        target[position] += weight * values[i]
    return True


@kernel("void(float32[::1], const float32[::1], const float32[::1])")
def _add_difference(target: np.ndarray, after: np.ndarray, before: np.ndarray) -> None:
    for i in range(len(target)):
        target[i] += after[i] - before[i]
