"""A part of a data set: some classes, and a share of the training samples."""

from typing import Any

import numpy as np
import pytest

from fedmpi import datasets
from fedmpi.config import ConfigError
from fedmpi.data import Dataset
from fedmpi.datasets import synthetic
from tests.small import run, small


def whole(**more: Any) -> Dataset:
    """Samples whose first value is their number."""
    train = np.arange(40, dtype=np.float32)[:, None]
    test = 100 + np.arange(20, dtype=np.float32)[:, None]
    return Dataset(train, np.arange(40) % 4, test, np.arange(20) % 4, 4, **more)


def part(of: Dataset, *words: str) -> Dataset:
    return datasets.part(of, small(*words).data.only)


def test_classes_are_numbered_in_the_order_in_which_they_are_named() -> None:
    owners = np.arange(40) // 3
    given = whole(train_owners=owners, groups=np.array([7, 5, 5, 6]), sha256="a", origin="official")
    found = part(given, "data.only.classes=[3,1]")
    assert found.train_x[:, 0].tolist() == [n for n in range(40) if n % 4 in (3, 1)]
    assert found.train_y.tolist() == [{3: 0, 1: 1}[n % 4] for n in range(40) if n % 4 in (3, 1)]
    assert found.test_x[:, 0].tolist() == [100 + n for n in range(20) if n % 4 in (3, 1)]
    assert found.test_y.tolist() == [{3: 0, 1: 1}[n % 4] for n in range(20) if n % 4 in (3, 1)]
    assert (found.classes, found.symbols, found.sha256) == (2, None, "a")
    assert found.train_owners is not None and found.test_owners is None
    assert found.train_owners.tolist() == [n // 3 for n in found.train_x[:, 0].astype(int)]
    assert found.groups is not None and found.groups.tolist() == [6, 5]


def test_shares_have_no_sample_in_common_whatever_the_seed() -> None:
    """Together they are all; test samples are the same."""
    found = [
        part(whole(), f"seed={seed}", f"data.only.share={share}")
        for seed, share in ((1, "[0.0,0.25]"), (2, "[0.25,0.6]"), (3, "[0.6,1.0]"))
    ]
    numbers = [set(one.train_x[:, 0].astype(int).tolist()) for one in found]
    assert [len(one) for one in numbers] == [10, 14, 16]
    assert set.union(*numbers) == set(range(40))
    assert numbers[0] != set(range(10)), "the order is no set's own"
    for one in found:
        np.testing.assert_array_equal(one.test_x, whole().test_x)
        np.testing.assert_array_equal(one.train_y, one.train_x[:, 0].astype(int) % 4)


def test_symbols_remain_where_they_were_the_labels() -> None:
    text = np.arange(40, dtype=np.uint8)[:, None] % 4
    given = Dataset(text, np.arange(40) % 4, text[:8], np.arange(8) % 4, 4)
    found = part(given, "data.only.classes=[0,2]")
    assert (found.classes, found.symbols, found.kind) == (2, 4, "symbols")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("data.only.classes=[0,4,9]",), "wanted classes 0 to 3, found 4\n.*found 9"),
        (("data.only.classes=[1,1]",), "wanted each class once"),
        (("data.only.share=[0.5,0.2]",), "found 0 for training and 20 for tests"),
    ],
)
def test_parts_that_are_not_there(words: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)data\.only.*{problem}"):
        part(whole(), *words)


def test_a_run_has_the_part_alone() -> None:
    words = ("data.only.classes=[9,0,5]", "data.only.share=[0.0,0.5]", "rounds=1")
    found = run(small(*words)).engine
    given = datasets.part(synthetic.load(small().data, 1), small(*words).data.only)
    population = found.population
    shards = np.sort(np.concatenate([population.held_out, *population.shards]))
    assert shards.tolist() == list(range(len(given.train_y)))
    assert found.about_data["train_samples"] == len(given.train_y) < 60
    assert found.about_data["classes"] == 3
    np.testing.assert_array_equal(found.trainer.feed.x.numpy(), given.train_x)


def test_all_is_no_other_run() -> None:
    every = small("data.only.share=[0.0,1.0]", "data.only.classes=[]")
    assert every.identity() == small().identity() != small("data.only.classes=[1,2]").identity()
