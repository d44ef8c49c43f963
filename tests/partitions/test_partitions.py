"""Every partition tiles both sets, keeps its own promises, and refuses what cannot be."""

import itertools
import sys
from collections import Counter
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi import partitions
from fedmpi.config import ConfigError
from fedmpi.partitions import (
    Samples,
    Shards,
    dirichlet,
    dirichlet_balanced,
    iid,
    natural,
    quantity,
    shards,
)

few = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32)


def labels(totals: list[int], seed: int = 0) -> np.ndarray:
    """Labels in random order, `totals[c]` of class c."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(totals)), totals))


def divide(
    module: ModuleType,
    train: list[int],
    test: list[int],
    clients: int,
    seed: int = 0,
    **given: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """The counts [classes, clients] in both sets, after a check that the shards tile them."""
    y, z = labels(train), labels(test, 1)
    rng = np.random.default_rng(seed)
    parts = module.divide(
        module.Config(**given), Samples(y, len(train)), Samples(z, len(train)), clients, rng
    )
    for part, found in zip(parts, (y, z), strict=True):
        tiles(part, len(found), clients)
    assert all(len(shard) > 0 for shard in parts[0])
    return counted(parts[0], y, len(train)), counted(parts[1], z, len(train))


def tiles(part: Shards, samples: int, clients: int) -> None:
    """Each sample is in exactly one shard, and each shard is int64 and ascending."""
    assert len(part) == clients
    assert all(shard.dtype == np.int64 and np.all(np.diff(shard) > 0) for shard in part)
    np.testing.assert_array_equal(np.sort(np.concatenate(part)), np.arange(samples))


def counted(part: Shards, found: np.ndarray, classes: int) -> np.ndarray:
    return np.stack([np.bincount(found[shard], minlength=classes) for shard in part], axis=1)


def follows(train: np.ndarray, test: np.ndarray) -> None:
    """Each client's part of a class in the test set is its share in training, to a rounding."""
    weights = np.where(train.sum(1, keepdims=True) > 0, train, train.sum(0))
    quota = weights / weights.sum(1, keepdims=True) * test.sum(1, keepdims=True)
    assert np.all(np.abs(test - quota) < 1)


totals = st.lists(st.integers(20, 60), min_size=1, max_size=6)
problems = totals.flatmap(
    lambda train: st.tuples(
        st.just(train),
        st.lists(st.integers(0, 30), min_size=len(train), max_size=len(train)),
        st.integers(1, 5),
        seeds,
    )
)
Problem = tuple[list[int], list[int], int, int]


@given(problems)
@few
def test_iid_shards_are_equal(problem: Problem) -> None:
    for counts in divide(iid, *problem):
        assert np.ptp(counts.sum(axis=0)) <= 1


@given(problems, st.sampled_from([0.5, 1.0, 100.0]), st.integers(1, 2))
@few
def test_dirichlet_keeps_the_minimum(problem: Problem, alpha: float, minimum: int) -> None:
    train, test = divide(dirichlet, *problem, alpha=alpha, minimum=minimum)
    assert train.sum(axis=0).min() >= minimum
    follows(train, test)


@given(problems, st.sampled_from([1e-300, 1e-4, 0.1, 0.5, 100.0]))
@few
def test_dirichlet_balanced_shards_are_equal(problem: Problem, alpha: float) -> None:
    train, test = divide(dirichlet_balanced, *problem, alpha=alpha)
    assert np.ptp(train.sum(axis=0)) <= 1
    follows(train, test)


@given(problems, st.sampled_from([5e-324, 1e-4, 0.1, 1.0, 3e38]), st.integers(1, 4))
@few
def test_quantity_keeps_the_minimum(problem: Problem, alpha: float, minimum: int) -> None:
    train, test = divide(quantity, *problem, alpha=alpha, minimum=minimum)
    assert train.sum(axis=0).min() >= minimum
    follows(train.sum(axis=0, keepdims=True), test.sum(axis=0, keepdims=True))


@given(problems, st.data())
@few
def test_shards_hold_as_many_classes_as_asked(problem: Problem, data: st.DataObject) -> None:
    classes, clients = len(problem[0]), problem[2]
    wanted = data.draw(st.integers(-(-classes // clients), classes))
    train, test = divide(shards, *problem, classes_per_client=wanted)
    held = train > 0
    assert np.all(held.sum(axis=0) == wanted)
    assert np.all(held.any(axis=1)) and np.ptp(held.sum(axis=1)) <= 1
    assert all(np.ptp(row[row > 0]) <= 1 for row in train)
    follows(train, test)


CASES = [
    (iid, {}),
    (dirichlet, {"alpha": 0.3}),
    (dirichlet_balanced, {"alpha": 0.3}),
    (quantity, {"alpha": 0.3, "minimum": 1}),
    (shards, {}),
]


@pytest.mark.parametrize(("module", "given"), CASES)
def test_the_stream_alone_decides(module: ModuleType, given: dict[str, Any]) -> None:
    y = labels([100] * 10)
    first, again, other = (
        module.divide(
            module.Config(**given),
            Samples(y, 10),
            Samples(y[:300], 10),
            5,
            np.random.default_rng(seed),
        )
        for seed in (7, 7, 8)
    )
    for one, same, different in zip(first, again, other, strict=True):
        assert all(map(np.array_equal, one, same))
        assert not all(map(np.array_equal, one, different))


@pytest.mark.parametrize(
    ("module", "given"),
    [
        (iid, {}),
        (dirichlet, {"alpha": 50.0, "minimum": 1}),
        (dirichlet_balanced, {}),
        (quantity, {"minimum": 5}),
        (shards, {}),
    ],
)
def test_many_clients(module: ModuleType, given: dict[str, Any]) -> None:
    """Work grows as they do, and not with their square: so do calls, of Python's and of numpy's."""
    y, z = np.arange(60_000) % 10, np.arange(10_000) % 10
    calls: Counter[int] = Counter()
    for clients in (1000, 10_000):
        rng, problem = np.random.default_rng(1), (Samples(y, 10), Samples(z, 10), clients)
        sys.setprofile(lambda *_, clients=clients: calls.update([clients]))
        try:
            parts = module.divide(module.Config(**given), *problem, rng)
        finally:
            sys.setprofile(None)
        tiles(parts[0], 60_000, clients)
        tiles(parts[1], 10_000, clients)
    assert calls[10_000] < 20 * calls[1000]


@pytest.mark.parametrize(("module", "given"), CASES)
def test_more_clients_than_samples(module: ModuleType, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"clients = 9: .* found 8 samples; .* 1 to 8"):
        divide(module, [4, 4], [1, 1], 9, **given)


@pytest.mark.parametrize("module", [iid, dirichlet_balanced])
def test_as_many_clients_as_samples(module: ModuleType) -> None:
    train, _ = divide(module, [4, 4], [2, 2], 8)
    assert np.all(train.sum(axis=0) == 1)


@pytest.mark.parametrize(("module", "given"), CASES)
def test_a_class_that_training_lacks_is_tested(module: ModuleType, given: dict[str, Any]) -> None:
    train, test = divide(module, [40, 0, 40], [5, 60, 5], 4, **given)
    assert test[1].sum() == 60
    if module not in (iid, quantity):
        follows(train, test)


def test_an_empty_test_set() -> None:
    _, test = divide(shards, [40, 40], [0, 0], 4)
    assert test.sum() == 0


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=3, max_size=3),
    st.lists(st.integers(0, 30), min_size=3, max_size=3),
    seeds,
)
@few
def test_following_rounds_to_a_neighbour(
    counts: list[list[int]], test: list[int], seed: int
) -> None:
    train = np.array(counts)
    train[0, 0] += 1
    z = labels(test)
    part = partitions.follow(z, train, np.random.default_rng(seed))
    tiles(part, len(z), 4)
    follows(train, counted(part, z, 3))


def test_following_is_exact_on_average() -> None:
    train, z, rng = np.array([[1, 2, 0, 5]]), labels([3]), np.random.default_rng(0)
    rounds = 4000
    parts = [partitions.follow(z, train, rng) for _ in range(rounds)]
    mean = np.mean([counted(part, z, 1)[0] for part in parts], axis=0)
    # Four standard errors of a rounding that is right on average.
    np.testing.assert_allclose(mean, 3 * train[0] / 8, atol=4 * 0.5 / rounds**0.5)


def test_dirichlet_moments() -> None:
    """The first class is free of the rule of even shares: its proportions are Dir(alpha)."""
    clients, alpha, rng = 5, 0.5, np.random.default_rng(0)
    shares = np.array(
        [dirichlet.draw(np.array([10_000, 0]), clients, alpha, rng)[0] for _ in range(1000)]
    )
    shares = shares / 10_000
    mean = 1 / clients
    np.testing.assert_allclose(shares.mean(axis=0), mean, atol=0.04)
    variance = mean * (1 - mean) / (clients * alpha + 1)
    np.testing.assert_allclose(shares.var(axis=0), variance, rtol=0.2)


@given(st.lists(st.integers(0, 50), min_size=2, max_size=8), st.integers(1, 6), seeds)
@few
def test_dirichlet_gives_no_more_to_a_client_with_its_share(
    totals: list[int], clients: int, seed: int
) -> None:
    for alpha in (1e-300, 0.1, 1.0):
        rng = np.random.default_rng(seed)
        counts = dirichlet.draw(np.array(totals), clients, alpha, rng)
        np.testing.assert_array_equal(counts.sum(axis=1), totals)
        before = np.cumsum(counts, axis=0) - counts
        assert counts.min() >= 0
        assert not np.any(counts[before * clients >= sum(totals)])


def test_dirichlet_minimum_out_of_reach() -> None:
    with pytest.raises(
        ConfigError, match=r"minimum = 10: 9 clients want 90 .* found 80; .* 1 to 8,"
    ):
        divide(dirichlet, [40, 40], [1, 1], 9)
    with pytest.raises(ConfigError, match=r"minimum = 8: in 1000 draws of 10 clients .* at best"):
        divide(dirichlet, [40, 40], [1, 1], 10, alpha=0.1, minimum=8)


def test_quantity_moments() -> None:
    """Sizes beyond the minimum are Dir(alpha), and labels are as in the whole, give or take."""
    clients, alpha, minimum = 5, 0.5, 100
    sizes, distances = [], []
    for seed in range(400):
        train, _ = divide(
            quantity, [2000, 1000], [0, 0], clients, seed, alpha=alpha, minimum=minimum
        )
        sizes.append(train.sum(axis=0))
        # Standard errors of a share of 2/3 in so many samples.
        share = train[0] / sizes[-1]
        distances.append((share - 2 / 3) / np.sqrt(2 / 9 / sizes[-1]))
    shares = (np.array(sizes) - minimum) / (3000 - clients * minimum)
    mean = 1 / clients
    np.testing.assert_allclose(shares.mean(axis=0), mean, atol=0.06)
    variance = mean * (1 - mean) / (clients * alpha + 1)
    np.testing.assert_allclose(shares.var(axis=0), variance, rtol=0.3)
    assert abs(np.mean(distances)) < 0.2 and np.var(distances) < 1.2


def test_quantity_at_the_limit() -> None:
    train, _ = divide(quantity, [40, 40], [1, 1], 8, minimum=10)
    assert np.all(train.sum(axis=0) == 10)
    with pytest.raises(ConfigError, match=r"minimum = 11: 8 clients want 88 .* found 80; .* 7 cli"):
        divide(quantity, [40, 40], [1, 1], 8, minimum=11)


def one_by_one(
    priors: np.ndarray, totals: list[int], rng: np.random.Generator
) -> tuple[tuple[int, ...], ...]:
    """The balanced partition as the paper's code draws it, sample by sample."""
    clients, classes = priors.shape
    left, counts = list(totals), np.zeros((classes, clients), int)
    places = np.resize(np.arange(clients), sum(totals))
    for client in rng.permutation(places):
        label = rng.choice(classes, p=priors[client])
        while left[label] == 0:
            label = rng.choice(classes, p=priors[client])
        left[label] -= 1
        counts[label, client] += 1
    return tuple(map(tuple, counts.tolist()))


def test_dirichlet_balanced_is_the_process_sample_by_sample() -> None:
    priors, totals = np.array([[0.7, 0.2, 0.1], [0.15, 0.15, 0.7]]), [8, 2, 2]
    rng, times = np.random.default_rng(3), 3000
    fast = Counter(
        tuple(map(tuple, dirichlet_balanced.draw(priors, np.array(totals), rng).tolist()))
        for _ in range(times)
    )
    slow = Counter(one_by_one(priors, totals, rng) for _ in range(times))
    distance = sum(abs(fast[key] - slow[key]) for key in fast | slow) / (2 * times)
    # Two samples of that size from one distribution differ by about 0.02 here; with turns in order,
    # or classes weighted by what is left of them, it is 0.05 and more.
    assert distance < 0.04


def test_dirichlet_balanced_moments() -> None:
    """Where classes do not run out early, a client's shares vary as its prior does."""
    rng = np.random.default_rng(0)
    classes, clients, alpha = 4, 400, 1.0
    priors = rng.dirichlet(np.full(classes, alpha), size=clients)
    shares = dirichlet_balanced.draw(priors, np.full(classes, 20_000), rng) / 200
    mean = 1 / classes
    np.testing.assert_allclose(shares.mean(axis=1), mean)
    variance = mean * (1 - mean) / (classes * alpha + 1)
    np.testing.assert_allclose(shares.var(axis=1), variance, rtol=0.25)
    assert np.corrcoef(shares.ravel(), priors.T.ravel())[0, 1] > 0.95


def test_the_two_dirichlet_partitions_are_different_ones() -> None:
    """NIID-Bench's divides each class over clients, so that sizes differ; SSFL's gives every client
    a mixture of classes and as many samples.
    """
    sizes = {}
    for module in (dirichlet, dirichlet_balanced):
        train, _ = divide(module, [200] * 10, [0] * 10, 10, alpha=0.3)
        sizes[module] = train.sum(axis=0)
        assert train.sum() == 2000
    assert np.ptp(sizes[dirichlet_balanced]) == 0
    assert sizes[dirichlet].max() > 2 * sizes[dirichlet].min()


def test_more_concentration_is_less_skew() -> None:
    def largest_share(module: ModuleType, alpha: float) -> float:
        train, _ = divide(module, [200] * 10, [0] * 10, 10, alpha=alpha)
        return float((train.max(axis=0) / train.sum(axis=0)).mean())

    for module in (dirichlet, dirichlet_balanced):
        low, middle, high = (largest_share(module, alpha) for alpha in (0.1, 1.0, 1000.0))
        assert low > middle + 0.1 > high + 0.2


def test_more_concentration_is_less_difference_of_sizes() -> None:
    def largest(alpha: float) -> float:
        train, _ = divide(quantity, [200] * 10, [0] * 10, 10, alpha=alpha)
        return float(train.sum(axis=0).max() / 2000)

    assert largest(0.01) > largest(1.0) + 0.2 > largest(1e9) + 0.25
    assert largest(1e9) < 0.11


@pytest.mark.parametrize(
    ("train", "clients", "wanted", "match"),
    [
        ([20, 20, 20], 4, 4, "per_client = 4: the training set has 3 classes; possible are 1 to 3"),
        ([20, 0, 20], 4, 3, "per_client = 3: the training set has 2 classes; possible are 1 to 2"),
        ([20, 20, 20, 20, 20], 2, 2, "hold 4 of 5 classes, .* possible are 3 to 5"),
        ([9, 3], 8, 1, "up to 4 of 8 clients, .* has 3 samples; possible are up to 6 clients"),
    ],
)
def test_shards_that_cannot_be(train: list[int], clients: int, wanted: int, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        divide(shards, train, [1] * len(train), clients, classes_per_client=wanted)


def test_shards_at_the_limit() -> None:
    train, _ = divide(shards, [9, 3], [1, 1], 6, classes_per_client=1)
    assert sorted(train[1]) == [0, 0, 0, 1, 1, 1]


def test_any_two_classes_may_meet() -> None:
    train, _ = divide(shards, [2000] * 5, [0] * 5, 500, classes_per_client=2)
    pairs = {tuple(np.flatnonzero(column)) for column in train.T}
    assert pairs == set(itertools.combinations(range(5), 2))


@pytest.mark.parametrize(
    ("module", "given"),
    [
        (dirichlet, {"alpha": 0.0}),
        (dirichlet, {"alpha": float("inf")}),
        (dirichlet, {"minimum": 0}),
        (dirichlet_balanced, {"alpha": -1.0}),
        (quantity, {"alpha": 0.0}),
        (quantity, {"alpha": 1e308}),
        (quantity, {"minimum": 0}),
        (shards, {"classes_per_client": 0}),
        (iid, {"alpha": 1.0}),
    ],
)
def test_settings_out_of_range(module: ModuleType, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        module.Config(**given)


# ---- natural


def people(
    train: list[int], test: list[int], clients: int, seed: int = 0, **given: Any
) -> tuple[Shards, Shards]:
    """Shards of samples whose owners are these; labels are the owners modulo 3."""
    both = [np.array(who, np.int64) for who in (train, test)]
    parts = [Samples(who % 3, 3, who) for who in both]
    rng = np.random.default_rng(seed)
    return natural.divide(natural.Config(**given), *parts, clients, rng)


def owners_of(part: Shards, owners: list[int]) -> list[set[int]]:
    return [set(np.array(owners, np.int64)[shard].tolist()) for shard in part]


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=80),
    st.lists(st.integers(0, 25), max_size=30),
    st.data(),
    seeds,
)
@few
def test_natural_clients_are_groups_of_people(
    train: list[int], test: list[int], data: st.DataObject, seed: int
) -> None:
    everybody = set(train)
    clients = data.draw(st.integers(1, len(everybody)))
    shards, test_shards = people(train, test, clients, seed)
    tiles(shards, len(train), clients)
    tiles(test_shards, len(test), clients)
    groups = owners_of(shards, train)
    assert sum(map(len, groups)) == len(everybody) == len(set().union(*groups))
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    # A test sample is with whoever made it, if that one trains.
    for group, tested in zip(groups, owners_of(test_shards, test), strict=True):
        assert tested & everybody <= group


def test_natural_clients_may_be_drawn() -> None:
    train, test = [7] * 5 + [8] * 2 + [9] * 6 + [4] * 3, [7, 8, 9, 4, 4]
    seen = set()
    for seed in range(20):
        shards, test_shards = people(train, test, 2, seed, people="drawn", minimum=3)
        groups = owners_of(shards, train)
        assert [len(group) for group in groups] == [1, 1]
        assert owners_of(test_shards, test) == groups
        for group, shard in zip(groups, shards, strict=True):
            assert len(shard) == train.count(*group)
        seen |= set.union(*groups)
    assert seen == {7, 9, 4}


def test_strangers_in_the_test_set_follow_the_labels() -> None:
    # Person k has label k alone; the test samples are by others.
    shards, test_shards = people([0] * 9 + [1] * 9 + [2] * 9, [30] * 4 + [31] * 5 + [32] * 6, 3)
    for shard, theirs in zip(shards, test_shards, strict=True):
        (label,) = {int(np.array([0] * 9 + [1] * 9 + [2] * 9)[i]) for i in shard}
        wanted = {0: range(4), 1: range(4, 9), 2: range(9, 15)}[label]
        assert theirs.tolist() == list(wanted)


def test_natural_needs_people() -> None:
    none = Samples(np.zeros(4, np.int64), 1)
    with pytest.raises(ConfigError, match="wanted data whose makers are known, found none"):
        natural.divide(natural.Config(), none, none, 2, np.random.default_rng(0))
    with pytest.raises(ConfigError, match=r"found 1 with at least partition.minimum = 2 .* of 2"):
        people([5, 5, 6], [], 2, minimum=2)
