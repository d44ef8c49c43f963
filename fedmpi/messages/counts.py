"""How many of some values remain at a density: the rules of rounding, side by side.

Methods follow their papers or the code of those, and these round differently. A density is the
share that remains, 1 - sparsity.
"""

from math import ceil

DIGITS = 6
"""Products are rounded to so many digits first: (1 - 0.9) * 1000 is a hair under 100, and its floor
would be 99; 10 * (1 - 0.7) is a hair over 3, and would be 4 rounded up."""


def keep_floor(size: int, density: float) -> int:
    """The product rounded down; zero is possible.

    Masks of single weights count so (`networks.pruning`), as SSFL's paper does: floor((1 - s) d).
    """
    return int(round(density * size, DIGITS))


def keep_round(size: int, density: float) -> int:
    """The product rounded to the nearest whole number, a half to the even one; at least one.

    Selections of an update's largest values count so (topk, randomk, dgc, stc, randtopk), so do the
    channels of a layer in SPATL, FedSL's single weights, and HetIoT's weights and bits.
    """
    return max(1, round(size * density))


def keep_ceil(size: int, density: float) -> int:
    """The product rounded up; at least one, but nothing of nothing.

    HeteroFL's code counts the channels of a layer so, and all methods of `networks.narrow` with it.
    So do selections in each tensor by itself (`select.counts`): no tensor falls silent.
    """
    return min(size, max(1, ceil(round(density * size, DIGITS))))


def part_floor(count: int, share: float) -> int:
    """The product truncated as it is, without rounding first.

    Where masks are readjusted it is the number of weights that are pruned first (`pruning.regrown`
    for DisPFL and FedDST; PruneFL).
    """
    return int(share * count)
