"""How many values remain, by each rule, where rules differ and where floating point misleads."""

import pytest

from fedmpi.messages.counts import keep_ceil, keep_floor, keep_round, part_floor


@pytest.mark.parametrize(
    ("sparsity", "size", "wanted"), [(0.9, 1000, 100), (0.7, 10, 3), (0.5, 5, 2), (0.0, 7, 7)]
)
def test_the_floor_of_the_exact_product(sparsity: float, size: int, wanted: int) -> None:
    assert keep_floor(size, 1 - sparsity) == wanted


@pytest.mark.parametrize(
    ("size", "sparsity", "wanted"),
    [
        *((1000, 0.9, 100), (1000, 0.0, 1000), (1000, 0.999, 1), (1000, 0.99951, 1)),
        *((10, 0.99, 1), (1, 0.5, 1), (7, 0.5, 4), (1_663_370, 0.9, 166_337)),
    ],
)
def test_the_nearest_number_and_at_least_one(size: int, sparsity: float, wanted: int) -> None:
    assert keep_round(size, 1 - sparsity) == wanted


@pytest.mark.parametrize(
    ("size", "sparsity", "wanted"),
    [
        *((1000, 0.9, 100), (1001, 0.9, 101), (10, 0.7, 3), (7, 0.5, 4), (5, 0.0, 5)),
        *((3, 0.99, 1), (1, 0.5, 1), (0, 0.5, 0), (10_000_000, 0.9, 1_000_000)),
    ],
)
def test_rounded_up_and_nothing_of_nothing(size: int, sparsity: float, wanted: int) -> None:
    assert keep_ceil(size, 1 - sparsity) == wanted


@pytest.mark.parametrize(("rate", "width", "wanted"), [(0.1, 10, 1), (0.5, 7, 4), (0.0625, 3, 1)])
def test_shares_of_channels_are_rounded_up(rate: float, width: int, wanted: int) -> None:
    assert keep_ceil(width, rate) == wanted


@pytest.mark.parametrize(("count", "share", "wanted"), [(10, 0.25, 2), (9, 0.0, 0), (8, 1.0, 8)])
def test_a_part_is_truncated(count: int, share: float, wanted: int) -> None:
    assert part_floor(count, share) == wanted
