"""Slices: where they begin, what each rank sends, and that results do not depend on them."""

from itertools import pairwise

import numpy as np
import pytest

from fedmpi.exchanges import sharded
from fedmpi.messages import partial
from fedmpi.messages.clock import Clock
from fedmpi.messages.ledger import Ledger
from fedmpi.messages.wire import Wire
from tests.exchanges.added import WORLD
from tests.exchanges.test_exchanges import whole

SIZE = 999

on_ranks = pytest.mark.parallel([1, 2, 3, 4])


def made() -> sharded.Exchange:
    clock = Clock()
    return sharded.Exchange(Wire(clock, WORLD), clock, Ledger(1))


def packed(*pieces: np.ndarray) -> int:
    """Bytes of a packed message with vectors, each in the shorter way."""
    found = 24 + 16
    for piece in pieces:
        count, size = np.count_nonzero(piece), len(piece)
        pairs = 4 * count + min(4 * count, -(-size // 8))
        coded = min(4 * count, -(-size // 8)) if pairs < 4 * size else 0
        values = 4 * count if pairs < 4 * size else 4 * size
        found += 32 + -(-coded // 8) * 8 + -(-values // 8) * 8
    return found


@pytest.mark.parallel([2, 3, 4])
def test_bytes_of_pieces_and_slices() -> None:
    """Slices have equal lengths at first, then equal numbers of the last sum's positions."""
    size, rank = WORLD.size, WORLD.rank
    sums = [[whole(one, SIZE, 0.1), np.full(50, 1 + one, "f4")] for one in range(size)]
    for one, _ in sums:
        one[SIZE // 4 :] = 0  # all in the first slices
    totals = [np.sum(each, 0) for each in zip(*sums, strict=True)]
    bounds = [[length * part // size for part in range(size + 1)] for length in (SIZE, 50)]
    exchange = made()
    for turn in range(3):
        exchange.wire.reset()
        exchange.merge([*(each.copy() for each in sums[rank]), np.zeros(2)])
        cuts = [list(pairwise(ends)) for ends in bounds]
        wanted = 24 + 16 * (rank > 0)
        for owner, spans in enumerate(zip(*cuts, strict=True)):
            if owner != rank:
                wanted += packed(
                    *(each[a:b] for each, (a, b) in zip(sums[rank], spans, strict=True))
                )
            elif rank == 0:
                wanted += 24 + 16
            else:
                wanted += packed(*(each[a:b] for each, (a, b) in zip(totals, spans, strict=True)))
        assert exchange.wire.up == wanted, turn
        assert exchange.wire.down == 8 * 2 * (size + 1)
        for number, total in enumerate(totals):
            where = np.flatnonzero(total)
            inner = [int(where[len(where) * part // size]) for part in range(1, size)]
            bounds[number] = [0, *inner, len(total)]
        if rank == 0:
            assert exchange.bounds.tolist() == bounds


@pytest.mark.parallel([2, 3, 4])
def test_bounds_change_no_bit() -> None:
    """Pieces are added in rank order, wherever the slices begin."""
    random = np.random.default_rng(WORLD.rank)
    given = random.standard_normal(SIZE).astype("f4") * (random.random(SIZE) < 0.6)
    found = []
    for ends in ([0, 0, 0, 0, SIZE], [0, 1, 500, 501, SIZE], [0, SIZE, SIZE, SIZE, SIZE]):
        exchange, vector = made(), given.copy()
        exchange.bounds = np.array([[*ends[: WORLD.size], SIZE]])
        exchange.merge([vector, np.zeros(1)])
        found.append(vector.tobytes())
    every = WORLD.gather(given)
    if WORLD.rank == 0:
        wanted = np.zeros(SIZE, "f4")
        for one in every:
            wanted += one
        assert set(found) == {wanted.tobytes()}


@on_ranks
def test_vectors_of_other_lengths_have_slices_of_their_own() -> None:
    """Such as those under a mask after it changed."""
    exchange = made()
    for sizes in ((40,), (30,), (30, 7), (0,)):
        vectors = [whole(WORLD.rank, size, 0.5) for size in sizes]
        exchange.merge([*vectors, np.zeros(1)])
        for vector, size in zip(vectors, sizes, strict=True):
            if WORLD.rank == 0:
                wanted = sum(whole(rank, size, 0.5) for rank in range(WORLD.size))
                np.testing.assert_array_equal(vector, wanted)


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("ends", [[0, 20, 40, 100], [0, 0, 0, 100], [0, 100, 100, 100]])
def test_balanced_slices(density: float, ends: list[int]) -> None:
    """Against the positions of the whole vector; without any the slices stay."""
    vector = whole(5, 100, density)
    blocks = [partial.block(piece) for piece in np.split(vector, ends[1:-1])]
    found = sharded.balanced(np.array(ends), blocks).tolist()
    where = np.flatnonzero(vector)
    if density == 1:  # dense blocks: all positions count, zeros as well
        where = np.arange(100)
    inner = [int(where[len(where) * part // 3]) for part in (1, 2)] if len(where) else ends[1:-1]
    assert found == [0, *inner, 100]
