"""Every partition tiles both sets, keeps its own promises, and refuses what cannot be."""

import itertools
import re
import sys
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi import partitions
from fedmpi.clients.heterogeneity import gini
from fedmpi.config import ConfigError
from fedmpi.partitions import (
    Samples,
    Shards,
    classes,
    dirichlet,
    dirichlet_balanced,
    iid,
    lognormal,
    natural,
    pachinko,
    quantity,
    shards,
)

few = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32)


def labels(totals: list[int], seed: int = 0) -> np.ndarray:
    """Labels in random order, `totals[c]` of class c."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(totals)), totals))


def some(found: np.ndarray, classes: int) -> Samples:
    """Samples with these labels; every third class belongs to the same group."""
    return Samples(found, classes, groups=np.arange(classes) % 3)


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
    both = some(y, len(train)), some(z, len(train))
    parts = module.divide(module.Config(**given), *both, clients, rng)
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
def test_clients_hold_as_many_classes_as_asked(problem: Problem, data: st.DataObject) -> None:
    kinds, clients = len(problem[0]), problem[2]
    wanted = data.draw(st.integers(-(-kinds // clients), kinds))
    train, test = divide(classes, *problem, classes_per_client=wanted)
    held = train > 0
    assert np.all(held.sum(axis=0) == wanted)
    assert np.all(held.any(axis=1)) and np.ptp(held.sum(axis=1)) <= 1
    assert all(np.ptp(row[row > 0]) <= 1 for row in train)
    follows(train, test)


@given(problems, st.integers(1, 4))
@few
def test_shards_are_pieces_of_the_sorted_samples(problem: Problem, each: int) -> None:
    """Dealt as the stream says: its first permutation."""
    train, test = divide(shards, *problem, shards_per_client=each)
    totals, _, clients, seed = problem
    pieces = np.array_split(np.repeat(np.arange(len(totals)), totals), clients * each)
    dealt = np.random.default_rng(seed).permutation(clients * each)
    for client, hand in enumerate(np.split(dealt, clients)):
        found = np.bincount(np.concatenate([pieces[one] for one in hand]), minlength=len(totals))
        np.testing.assert_array_equal(train[:, client], found)
    follows(train, test)


def test_mcmahans_shards() -> None:
    """200 shards of 300 samples, two for each of 100 clients."""
    train, _ = divide(shards, [6000] * 10, [0] * 10, 100)
    assert set(train.ravel()) == {0, 300, 600}
    held = (train > 0).sum(0)
    assert set(held) == {1, 2}, "some have the same class twice"
    with pytest.raises(ConfigError, match=r"= 3: 10 clients want 30 .* found 29; .* 1 to 2"):
        divide(shards, [29], [0], 10, shards_per_client=3)


@given(problems, st.sampled_from([1e-3, 0.1, 10.0]), st.sampled_from([0.0, 1.0]))
@few
def test_pachinko_fills_sizes(problem: Problem, alpha: float, sigma: float) -> None:
    train, test = divide(pachinko, *problem, alpha=alpha, beta=0.5, sigma=sigma)
    assert sigma or np.ptp(train.sum(axis=0)) <= 1
    follows(train, test)


CASES = [
    (iid, {}),
    (dirichlet, {"alpha": 0.3}),
    (dirichlet_balanced, {"alpha": 0.3}),
    (dirichlet_balanced, {"alpha": 0.3, "sigma": 1.0}),
    (quantity, {"alpha": 0.3, "minimum": 1}),
    (quantity, {"sigma": 1.0, "minimum": 1}),
    (classes, {}),
    (shards, {}),
    (pachinko, {}),
]


@pytest.mark.parametrize(("module", "given"), CASES)
def test_the_stream_alone_decides(module: ModuleType, given: dict[str, Any]) -> None:
    y = labels([100] * 10)
    first, again, other = (
        module.divide(
            module.Config(**given),
            some(y, 10),
            some(y[:300], 10),
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
        (classes, {}),
        (classes, {"dealing": "drawn"}),
        (shards, {}),
    ],
)
def test_many_clients(module: ModuleType, given: dict[str, Any]) -> None:
    """Work grows as they do, and not with their square: so do calls, of Python's and of numpy's."""
    y, z = np.arange(60_000) % 10, np.arange(10_000) % 10
    calls: Counter[int] = Counter()
    for clients in (1000, 10_000):
        rng, problem = np.random.default_rng(1), (some(y, 10), some(z, 10), clients)
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


def advised(refuse: Callable[..., object], *given: Any, **more: Any) -> str:
    """What is said to be possible where something is refused."""
    with pytest.raises(ConfigError) as caught:
        refuse(*given, **more)
    return str(caught.value).partition("possible are ")[2]


def test_a_minimum_that_is_advised_is_possible() -> None:
    """No minimum below 1, no number of clients below 1."""
    given = ([40, 40], [1, 1], 10)
    found = advised(divide, dirichlet, *given, alpha=0.1, minimum=8)
    best = re.match(r"partition\.minimum = (\d+), a larger alpha, fewer clients, or ", found)
    assert best is not None and 1 <= int(best[1]) < 8
    divide(dirichlet, *given, alpha=0.1, minimum=int(best[1]))
    found = advised(divide, dirichlet, [40, 40], [1, 1], 60, alpha=0.01, minimum=1)
    assert found == "a larger alpha, fewer clients, or partition.name = 'dirichlet-balanced'"
    assert advised(divide, quantity, *given, minimum=90) == "1 to 8"
    assert advised(divide, quantity, *given, minimum=79) == "1 to 8, or 1 to 1 clients"
    owners = [5, 5, 5, 6, 6, 7]
    for clients, minimum, wanted in (
        (2, 3, "1 to 1 clients, or partition.minimum = 1 to 2"),
        (3, 9, "partition.minimum = 1 to 1"),
        (4, 1, "1 to 3 clients"),
    ):
        assert advised(people, owners, [], clients, minimum=minimum) == wanted


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
        tuple(map(tuple, dirichlet_balanced.draw(priors, np.array(totals), [6, 6], rng).tolist()))
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
    kinds, clients, alpha = 4, 400, 1.0
    priors = rng.dirichlet(np.full(kinds, alpha), size=clients)
    totals = np.full(kinds, 20_000)
    shares = dirichlet_balanced.draw(priors, totals, np.full(clients, 200), rng) / 200
    mean = 1 / kinds
    np.testing.assert_allclose(shares.mean(axis=1), mean)
    variance = mean * (1 - mean) / (kinds * alpha + 1)
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
def test_classes_that_cannot_be(train: list[int], clients: int, wanted: int, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        divide(classes, train, [1] * len(train), clients, classes_per_client=wanted)


def test_classes_at_the_limit() -> None:
    train, _ = divide(classes, [9, 3], [1, 1], 6, classes_per_client=1)
    assert sorted(train[1]) == [0, 0, 0, 1, 1, 1]


def test_any_two_classes_may_meet() -> None:
    for dealing in ("even", "drawn"):
        given = {"classes_per_client": 2, "dealing": dealing}
        train, _ = divide(classes, [2000] * 5, [0] * 5, 500, **given)
        pairs = {tuple(np.flatnonzero(column)) for column in train.T}
        assert pairs == set(itertools.combinations(range(5), 2))


@pytest.mark.parametrize(("clients", "wanted"), [(10, 0.16), (50, 0.08)])
def test_drawn_classes_make_unequal_sizes(clients: int, wanted: float) -> None:
    """As in NIID-Bench's code: class k modulo 10, then others at random; classes split evenly."""
    coefficients, firsts = [], np.arange(clients) % 10
    for seed in range(200):
        train, test = divide(
            classes, [500] * 10, [100] * 10, clients, seed, classes_per_client=2, dealing="drawn"
        )
        held = train > 0
        assert np.all(held.sum(0) == 2) and held[firsts, np.arange(clients)].all()
        shares = 500 / held.sum(1, keepdims=True)
        assert np.all(np.abs(train - shares * held) < 1)
        follows(train, test)
        coefficients.append(gini(train.sum(0)))
    assert np.mean(coefficients) == pytest.approx(wanted, abs=0.015)


def test_drawn_classes_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"class \d was drawn by 0 clients.*1 to 20"):
        divide(classes, [20] * 9, [0] * 9, 5, classes_per_client=2, dealing="drawn")
    with pytest.raises(ConfigError, match=r"class 0 was drawn by 40 clients, and has 20 samples"):
        divide(classes, [20, 60], [0, 0], 40, classes_per_client=2, dealing="drawn")


def pachinko_one_by_one(
    groups: list[int],
    totals: list[int],
    sizes: list[int],
    concentrations: tuple[float, float],
    rng: np.random.Generator,
) -> np.ndarray:
    """The paper's algorithm as it is written, sample by sample: counts [classes, clients]."""
    alpha, beta = concentrations
    left, counts = list(totals), np.zeros((len(totals), len(sizes)), int)
    for client, size in enumerate(sizes):
        root = dict(zip(set(groups), rng.dirichlet([alpha] * len(set(groups))), strict=True))
        twigs = {}
        for group in root:
            members = [label for label, own in enumerate(groups) if own == group]
            chances = rng.dirichlet([beta] * len(members))
            twigs[group] = {
                label: p for label, p in zip(members, chances, strict=True) if left[label]
            }
        root = {group: p for group, p in root.items() if twigs[group]}
        for _ in range(size):
            where = list(root)
            group = where[rng.choice(len(where), p=np.array([*root.values()]) / sum(root.values()))]
            twig = twigs[group]
            chances = np.array([*twig.values()]) / sum(twig.values())
            label = list(twig)[rng.choice(len(twig), p=chances)]
            left[label] -= 1
            counts[label, client] += 1
            if not left[label]:
                del twig[label]
                if not twig:
                    del root[group]
    return counts


def test_pachinko_is_the_process_sample_by_sample() -> None:
    """Moments of all counts, where classes run out and groups, too."""
    groups, totals, sizes, times = [0, 1, 0, 1, 2], [4, 8, 6, 2, 5], [9, 6, 10], 1000
    rng = np.random.default_rng(5)
    given = np.array(groups), np.array(totals), np.array(sizes)
    fast = np.array([pachinko.draw(*given, 0.7, 1.5, rng) for _ in range(times)], float)
    slow = np.array(
        [pachinko_one_by_one(groups, totals, sizes, (0.7, 1.5), rng) for _ in range(times)], float
    )
    np.testing.assert_array_equal(fast.sum(1), slow.sum(1))
    for moment in (lambda x: x, np.square, lambda x: x * np.roll(x, 1, 1), lambda x: x == 0):
        one, other = moment(fast), moment(slow)
        error = np.sqrt((one.var(0) + other.var(0)) / times) + 1e-9
        assert np.abs((one.mean(0) - other.mean(0)) / error).max() < 4.5


def test_pachinko_wants_groups() -> None:
    one = Samples(np.zeros(9, np.int64), 1)
    with pytest.raises(ConfigError, match=r"whose classes have groups.*cifar100"):
        pachinko.divide(pachinko.Config(), one, one, 3, np.random.default_rng(0))


def test_a_small_alpha_gives_a_client_few_groups() -> None:
    groups = np.arange(10) % 3
    train, _ = divide(pachinko, [300] * 10, [0] * 10, 30, alpha=0.01, beta=100.0)
    of_group = np.stack([train[groups == group].sum(0) for group in range(3)])
    assert np.median(of_group.max(0) / of_group.sum(0)) > 0.95
    held = (train[:, :10] > 0).sum(0)
    assert held.min() >= 3, "all classes of a group"


@pytest.mark.parametrize("sigma", [0.3, 1.0])
@pytest.mark.parametrize("minimum", [1, 10])
def test_lognormal_sizes(sigma: float, minimum: int) -> None:
    """Logarithms of sizes beyond the minimum, apart from their mean, are N(0, sigma^2)."""
    logs = []
    for seed in range(50):
        sizes = lognormal(sigma, minimum, 10**7, 200, np.random.default_rng(seed))
        assert sizes.sum() == 10**7 and sizes.min() >= minimum
        found = np.log(sizes - minimum + 0.5)
        logs.append(found - found.mean())
    whole = np.concatenate(logs)
    assert whole.std() == pytest.approx(sigma, rel=0.03)
    assert abs((whole**3).mean()) < 0.1 * sigma**3
    assert (whole**4).mean() == pytest.approx(3 * sigma**4, rel=0.15)


@pytest.mark.parametrize("module", [dirichlet_balanced, quantity, pachinko])
def test_partitions_with_lognormal_sizes(module: ModuleType) -> None:
    train, _ = divide(module, [4000] * 6, [0] * 6, 100, sigma=0.5)
    found = np.log(train.sum(0))
    assert found.std() == pytest.approx(0.5, rel=0.25)
    if module is quantity:
        with pytest.raises(ConfigError, match=r"alpha = 0.3: wanted no partition.sigma, found 0.5"):
            divide(module, [40], [0], 2, alpha=0.3, sigma=0.5)


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
        (quantity, {"sigma": 0.0}),
        (classes, {"classes_per_client": 0}),
        (classes, {"dealing": "odd"}),
        (shards, {"shards_per_client": 0}),
        (pachinko, {"beta": 0.0}),
        (dirichlet_balanced, {"sigma": -1.0}),
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
