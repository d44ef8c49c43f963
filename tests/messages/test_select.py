"""Which values are chosen to be sent: the largest, those drawn, and features that vary."""

from collections import Counter
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedmpi.messages import select
from fedmpi.networks import flat, layers
from tests.messages.test_sparse import random, some, vectors


def ranked(values: np.ndarray) -> np.ndarray:
    """Positions from the largest to the smallest, equal ones in order; no number comes first."""
    unknown = np.isnan(values)
    falling = -np.where(unknown, 0, values.astype(np.float64))
    return np.lexsort((np.arange(len(values)), falling, ~unknown))


def first(values: np.ndarray, count: int) -> np.ndarray:
    """Marks so many of each row."""
    marks = np.zeros(values.shape, bool)
    for mark, row in zip(marks, values, strict=True):
        mark[ranked(row)[:count]] = True
    return marks


SPECIAL = np.array([0, -0.0, 1, -1, 2, 1e-40, 3e38, np.inf, -np.inf, np.nan], np.float32)
"""So few values that most of them tie."""


@pytest.mark.parametrize("part", range(4))
def test_every_choice_is_a_stable_sorts(part: int) -> None:
    """Ties, infinities, zeros and what is no number; none, some or all; one row or several."""
    source = np.random.default_rng(part)
    for _ in range(1000):
        rows, size, kinds = source.integers(1, [4, 30, len(SPECIAL) + 1])
        values = source.choice(source.permutation(SPECIAL)[:kinds], (rows, size))
        count = int(source.integers(size + 1))
        x = torch.from_numpy(values)
        found = select.largest(x, count)
        np.testing.assert_array_equal(found.numpy(), first(values, count))
        assert select.positions(found).tolist() == np.flatnonzero(found.numpy()).tolist()
        wanted = np.flatnonzero(first(abs(values), count)).tolist()
        places = [size * row + select.top(one, count).positions for row, one in enumerate(x)]
        assert torch.cat(places).tolist() == wanted
        assert select.random_tops(x, count, 0.0, source).tolist() == wanted
        if count:
            assert select.tops(x, [range(size)], 1 - count / size).places.tolist() == wanted


@given(vectors, st.data())
@some
def test_top_are_the_largest(vector: Tensor, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(vector)))
    chosen = select.top(vector, count)
    assert (chosen.places.dtype, chosen.places.shape) == (np.uint32, (count,))
    found = chosen.positions
    assert found.dtype == torch.int64 and torch.equal(chosen.values, vector[found])
    assert (found.diff() > 0).all()
    left = torch.ones(len(vector), dtype=torch.bool)
    left[found] = False
    if 0 < count < len(vector):
        assert vector[found].abs().min() >= vector[left].abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [1e-5, 0.001, 0.01, 0.1, 0.3, 1])
@pytest.mark.parametrize("kind", ["random", "equal", "few", "ascending", "periodic", "nan"])
def test_top_of_a_long_vector_is_exact(kind: str, share: float, dtype: torch.dtype) -> None:
    """Compiled code, and torch's operations; also where a sample misleads, or tells nothing."""
    size = 5 * select.SAMPLE + 17
    vector = {
        "random": lambda: random(size),
        "equal": lambda: torch.ones(size),
        "few": lambda: torch.zeros(size).index_fill_(0, torch.arange(7, 900), -2.0),
        "ascending": lambda: torch.arange(size) - size / 3,
        "periodic": lambda: (torch.arange(size) % 5 == 0) * random(size),
        "nan": lambda: random(size).index_fill_(0, torch.tensor([5, 77]), torch.nan),
    }[kind]().to(dtype)
    count = max(1, int(size * share))
    found = select.top(vector, count).positions
    assert found.shape == (count,)
    assert (found.diff() > 0).all()
    assert found.tolist() == sorted(ranked(vector.abs().numpy())[:count].tolist())
    both = torch.stack([vector, vector.flip(0)])
    rows = select.tops(both, [range(size)], 1 - count / size)
    other = sorted(ranked(vector.flip(0).abs().numpy())[:count].tolist())
    assert rows.places.tolist() == found.tolist() + [size + place for place in other]
    assert rows.values.numpy().tobytes() == both.view(-1)[rows.positions].numpy().tobytes()


def test_top_looks_at_absolute_values() -> None:
    chosen = select.top(torch.tensor([1.0, -5.0, 3.0, -0.5, 4.0]), 3)
    assert (chosen.places.tolist(), chosen.values.tolist()) == ([1, 2, 4], [-5, 3, 4])


@pytest.mark.parametrize("count", range(7))
def test_ties_do_not_change_the_count(count: int) -> None:
    vector = torch.tensor([2.0, -2.0, 2.0, 2.0, -2.0, 3.0])
    found = select.top(vector, count).places.tolist()
    assert found == sorted([5, 0, 1, 2, 3, 4][:count])


@given(st.data(), st.integers(1, 4), st.sampled_from([0.0, 0.3, 0.5, 0.9]))
@some
def test_tops_are_the_largest_of_each_part(data: st.DataObject, rows: int, sparsity: float) -> None:
    sizes = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    x = random(rows * (sum(sizes) + 2), 3).view(rows, -1)
    bounds = np.cumsum([1, *sizes])
    spans = [range(a, b) for a, b in pairwise(bounds)]
    found = select.tops(x, spans, sparsity).positions
    chosen = torch.zeros(x.numel()).index_fill_(0, found, 1).view(x.shape)
    assert (found.diff() > 0).all()
    assert not chosen[:, 0].any() and not chosen[:, -1].any(), "in no part"
    for span in spans:
        size = len(span)
        count = min(size, max(1, -(-size * round(10 * (1 - sparsity)) // 10)))
        for row, whole in zip(chosen, x, strict=True):
            where, part = row[span.start : span.stop].bool(), whole[span.start : span.stop].abs()
            assert int(where.sum()) == count
            if 0 < count < size:
                assert part[where].min() >= part[~where].max()


def test_parts_are_pieces_of_a_network_and_statistics_are_in_none() -> None:
    stages = torch.nn.Sequential(torch.nn.Linear(3, 4), layers.BatchNorm(4), torch.nn.Linear(4, 2))
    shape = flat.Flat(stages)
    found = select.tops(random(2 * shape.size).view(2, -1), shape.parameters, 0.5).positions
    assert not set((found % shape.size).tolist()) & set(shape.stat_positions.tolist())
    assert len(found) == 2 * (6 + 2 + 2 + 2 + 4 + 1)


@pytest.mark.parametrize("size", [50, 2 * select.SAMPLE + 1])
def test_tops_do_not_depend_on_who_stands_beside(size: int) -> None:
    """Nor where values are equal."""
    x = (random(3 * size) * 2).round().view(3, size)
    spans = [range(20), range(20, size)]
    together = select.tops(x, spans, 0.9).positions.view(3, -1)
    for number, row in enumerate(x):
        alone = select.tops(row[None], spans, 0.9).positions
        assert torch.equal(together[number] - number * size, alone)


def test_random_tops_without_chance_are_tops() -> None:
    x = random(300).view(5, 60)
    for count in (1, 7, 60):
        found = select.random_tops(x, count, 0.0, np.random.default_rng(0))
        assert torch.equal(found, select.tops(x, [range(60)], 1 - count / 60).positions)
    assert len(select.random_tops(x, 60, 0.3, np.random.default_rng(0))) == 300


def test_random_tops_are_drawn_one_after_the_other() -> None:
    """Against all orders of drawing 2 of 5, written out; within 5 standard deviations."""
    draws, alpha, row = 40_000, 0.4, torch.tensor([0.1, -3.0, 0.2, 2.0, 0.0])
    weight = [alpha / 3, (1 - alpha) / 2, alpha / 3, (1 - alpha) / 2, alpha / 3]
    wanted: dict[tuple[int, ...], float] = {}
    for a, b in permutations(range(5), 2):
        both = tuple(sorted((a, b)))
        wanted[both] = wanted.get(both, 0) + weight[a] * weight[b] / (1 - weight[a])
    assert sum(wanted.values()) == pytest.approx(1)
    found = select.random_tops(row.expand(draws, 5), 2, alpha, np.random.default_rng(4))
    pairs = (found.view(draws, 2) - 5 * torch.arange(draws)[:, None]).tolist()
    seen = Counter(map(tuple, pairs))
    for both, p in wanted.items():
        assert abs(seen[both] / draws - p) < 5 * (p * (1 - p) / draws) ** 0.5


def test_random_tops_follow_their_stream() -> None:
    x = random(300).view(5, 60)
    first, again, other = (
        select.random_tops(x, 9, 0.3, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first.diff() > 0).all() and (first.view(5, 9) // 60).unique(dim=1).shape == (5, 1)


def test_survivors_are_a_share_drawn_anew() -> None:
    n, share = 100_000, 0.3
    found = [select.survivors(n, share, np.random.default_rng(seed)) for seed in range(3)]
    for each in found:
        assert abs(len(each) - 0.7 * n) < 5 * (n * share * (1 - share)) ** 0.5
        assert (each.diff() > 0).all() and each[-1] < n and each.dtype == torch.int64
    both = np.intersect1d(found[0], found[1])
    assert abs(len(both) - 0.49 * n) < 5 * (n * 0.49 * 0.51) ** 0.5
    assert torch.equal(select.survivors(9, 0.0, np.random.default_rng(0)), torch.arange(9))
    assert select.survivors(0, 0.5, np.random.default_rng(0)).shape == (0,)


def test_features_are_right_on_average() -> None:
    """Means over draws within 5 of their standard deviations, whatever the probabilities."""
    x = random(16 * 40).view(16, 40) * torch.linspace(0, 3, 40) + 1
    x[:, 7] = 5  # does not vary, and counts nevertheless
    rng, draws = np.random.default_rng(0), 4000
    total, count, shares = torch.zeros_like(x), 0, torch.zeros(40)
    for _ in range(draws):
        kept, share = select.features(x, 4, rng)
        assert kept.dtype == torch.int64 and share.dtype == torch.float32
        shares[kept] = share
        total[:, kept] += x[:, kept] / share
        count += len(kept)
    assert shares.sum() == pytest.approx(10, rel=1e-5), "each was kept once, at least"
    assert abs(count / draws - 10) < 5 * (10 / draws) ** 0.5
    deviation = x.abs() * ((1 - shares) / shares / draws).sqrt()
    assert ((total / draws - x).abs() <= 5 * deviation + 1e-4).all()
    spread = x.std(0, correction=0)
    weight = spread + 0.1 * spread.mean()
    free = shares < 1
    ratio = shares[free] / weight[free]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=0)


def test_features_that_vary_most_are_certain() -> None:
    x = random(16 * 20).view(16, 20)
    x[:, [3, 11]] *= 1000
    for seed in range(20):
        kept, share = select.features(x, 4, np.random.default_rng(seed))
        chance = dict(zip(kept.tolist(), share.tolist(), strict=True))
        assert chance[3] == chance[11] == 1
        assert all(value < 1 for place, value in chance.items() if place not in (3, 11))


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30), st.floats(0.01, 1))
@some
def test_inclusion_adds_up(weights: list[float], share: float) -> None:
    wanted = share * len(weights)
    found = select._inclusion(np.array(weights), wanted)
    assert found.sum() == pytest.approx(wanted, rel=1e-6)
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found[np.argsort(weights)]) >= -1e-12).all()


@pytest.mark.parametrize("x", [torch.zeros(4, 50), torch.full((4, 50), 2.5), torch.ones(1, 50)])
def test_features_that_do_not_vary_are_alike(x: Tensor) -> None:
    kept, share = select.features(x, 5, np.random.default_rng(0))
    assert 0 < len(kept) < 50
    torch.testing.assert_close(share, torch.full_like(share, 0.2))


def test_features_that_are_no_numbers_are_kept() -> None:
    x = random(80).view(4, 20)
    x[0, 4], x[1, 9] = torch.nan, torch.inf
    for seed in range(10):
        kept, share = select.features(x, 20, np.random.default_rng(seed))
        assert {4, 9} <= set(kept.tolist()) and share.isfinite().all()
    kept, share = select.features(x, 1, np.random.default_rng(0))
    assert len(kept) == 20 and (share == 1).all()
    assert len(select.features(torch.empty(3, 0), 2, np.random.default_rng(0))[0]) == 0
