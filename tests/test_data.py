"""Data sets are what they should be: classes, shapes, statistics, owners."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pydantic
import pytest

from fedmpi import data
from fedmpi.data import cifar10, digits, mnist, synthetic
from fedmpi.files import DataError
from tests.made import (
    SHARED,
    binary,
    idx,
    pictures,
    python2,
    python3,
    read,
    real,
    sound,
    write,
    write_cifar10,
    write_idx,
    write_qmnist,
    writers,
)

pytestmark = pytest.mark.usefixtures("nowhere")


# ---- real files


@real
def test_real_mnist() -> None:
    found = read(mnist, SHARED)
    sound(found, (1, 28, 28), 60_000, 10_000)
    np.testing.assert_array_equal(found.train_y[:8], [5, 0, 4, 1, 9, 2, 1, 3])
    np.testing.assert_array_equal(found.test_y[:8], [7, 2, 1, 0, 4, 1, 4, 9])
    assert np.bincount(found.train_y)[[0, 1]].tolist() == [5923, 6742]
    assert abs(found.train_x.mean()) < 1e-3 and abs(found.train_x.std() - 1) < 1e-3


@real
def test_real_cifar10() -> None:
    found = read(cifar10, SHARED)
    sound(found, (3, 32, 32), 10_000, 2_000)
    assert np.bincount(found.train_y).tolist() == [1000] * 10
    assert np.bincount(found.test_y).tolist() == [200] * 10
    np.testing.assert_allclose(found.train_x.mean(axis=(0, 2, 3)), 0, atol=0.01)
    np.testing.assert_allclose(found.train_x.std(axis=(0, 2, 3)), 1, atol=0.01)
    folder = cifar10.where(cifar10.Config(root=str(SHARED)))
    record = np.fromfile(folder / "data_batch_2.bin", np.uint8, 3073)
    assert found.train_y[2000] == record[0]
    pixels = found.train_x[2000] * np.reshape(cifar10.STD, (3, 1, 1))
    pixels = 255 * (pixels + np.reshape(cifar10.MEAN, (3, 1, 1)))
    np.testing.assert_allclose(pixels.ravel(), record[1:], atol=1e-3)


# ---- sets without files


def test_digits() -> None:
    found = read(digits)
    sound(found, (1, 8, 8), 1442, 355)
    pixels = np.concatenate([found.train_x, found.test_x])
    assert abs(pixels.mean()) < 1e-3 and abs(pixels.std() - 1) < 1e-3
    # Stratified: in each class a fifth, rounded down.
    whole = np.bincount(found.train_y) + np.bincount(found.test_y)
    assert whole.sum() == 1797
    np.testing.assert_array_equal(np.bincount(found.test_y), whole // 5)
    np.testing.assert_array_equal(found.test_x, read(digits, seed=2).test_x)


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="wanted the package scikit-learn"):
        read(digits)


def make(seed: int = 1, **given: Any) -> data.Dataset:
    return synthetic.load(synthetic.Config(**given), seed)


def test_synthetic() -> None:
    given: dict[str, Any] = {"samples": 1003, "test_samples": 500, "classes": 4, "shape": (3, 8, 8)}
    found = make(**given)
    sound(found, (3, 8, 8), 1003, 500)
    assert np.bincount(found.train_y).tolist() == [251, 251, 251, 250]
    again, other = make(**given), make(seed=2, **given)
    np.testing.assert_array_equal(found.train_x, again.train_x)
    np.testing.assert_array_equal(found.test_x, again.test_x)
    assert not np.array_equal(found.train_x, other.train_x)


def test_synthetic_separation_is_the_distance_in_noise() -> None:
    found = make(samples=8000, test_samples=4000, classes=4, shape=(50,), separation=2.0)
    centres = np.stack([found.train_x[found.train_y == c].mean(axis=0) for c in range(4)])
    # An estimated centre is off by a normal vector of variance 50 / 2000.
    np.testing.assert_allclose((centres**2).sum(axis=1), 4 + 50 / 2000, rtol=0.1)
    noise = found.train_x - centres[found.train_y]
    assert abs(noise.std() - 1) < 0.01
    distances = ((found.test_x[:, np.newaxis] - centres) ** 2).sum(axis=2)
    accuracy = (distances.argmin(axis=1) == found.test_y).mean()
    # Three other classes, each with probability Phi(-1.4) = 0.08 if their centres are orthogonal.
    assert 0.70 < accuracy < 0.90


def test_synthetic_classes_without_separation_are_alike() -> None:
    found = make(samples=4000, classes=2, shape=(5,), separation=0.0)
    centres = [found.train_x[found.train_y == c].mean(axis=0) for c in range(2)]
    np.testing.assert_allclose(centres[0], centres[1], atol=0.15)


def test_synthetic_settings_from_a_file() -> None:
    assert synthetic.Config.model_validate({"shape": [3, 4, 4]}).shape == (3, 4, 4)
    for wrong in ([], [1, 0], [1, 2.0], ["1"], [True]):
        with pytest.raises(pydantic.ValidationError, match="shape"):
            synthetic.Config.model_validate({"shape": wrong})


@pytest.mark.parametrize("module", [digits, synthetic])
def test_sets_without_files_are_nowhere(module: ModuleType) -> None:
    assert module.where(module.Config(root="/nonexistent")) is None


# ---- CIFAR-10


@pytest.mark.parametrize("below", ["", "set", "set/inner"])
@pytest.mark.parametrize(
    ("pack", "layout", "suffix"),
    [
        (binary, "cifar-10-batches-bin", ".bin"),
        (python2, "cifar-10-batches-py", ""),
        (python3(2), "cifar-10-batches-py", ""),
        (python3(2, str.encode), "cifar-10-batches-py", ""),
        (python3(4), "cifar-10-batches-py", ""),
    ],
    ids=["bin", "py", "py by Python 3", "py by Python 3 in bytes", "py in protocol 4"],
)
def test_cifar10(
    root: Path, below: str, pack: Callable[..., bytes], layout: str, suffix: str
) -> None:
    folder = root / below / layout
    write_cifar10(folder, pack, suffix)
    assert cifar10.where(cifar10.Config(root=str(root))) == folder
    found = read(cifar10, root)
    sound(found, (3, 32, 32), 15, 2)
    assert np.bincount(found.train_y).tolist() == [0, 1, 2, 3, 4, 5]
    assert found.test_y.tolist() == [9, 9] and found.classes == 10
    pixels = pictures(2).reshape(2, 3, 32, 32) / 255
    for channel in range(3):
        wanted = (pixels[:, channel] - cifar10.MEAN[channel]) / cifar10.STD[channel]
        np.testing.assert_allclose(found.test_x[:, channel], wanted, rtol=1e-5, atol=1e-6)


def test_the_binary_layout_comes_first(root: Path) -> None:
    write_cifar10(root / "cifar-10-batches-py", python2)
    write_cifar10(root / "cifar-10-batches-bin", binary, ".bin")
    assert cifar10.where(cifar10.Config(root=str(root))) == root / "cifar-10-batches-bin"
    write_cifar10(root, binary, ".bin")
    write(root / "data_batch_1", b"not read")
    assert len(read(cifar10, root).train_y) == 15


# ---- MNIST by writer


@real
def test_real_writers() -> None:
    found = read(mnist, SHARED)
    train, test = (
        np.unique(x, return_counts=True) for x in (found.train_owners, found.test_owners)
    )
    assert len(train[0]) == 539 and (train[1].min(), train[1].max()) == (19, 131)
    assert len(test[0]) == 297 and not set(train[0]) & set(test[0])
    assert train[1].sum() == 60_000 and test[1].sum() == 10_000


TRAIN, TEST = writers([1, 2, 3], [70, 80, 70]), writers([4, 5, 6], [90, 91, 92])


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ("", ""),
        ("mnist", "mnist"),
        ("mnist", ""),
        ("MNIST/raw", "QMNIST/raw"),
        ("mnist", "QMNIST"),
        ("raw", "raw"),
    ],
)
def test_writers(root: Path, mine: str, theirs: str) -> None:
    write_idx(root / mine, [1, 2, 3], [4, 5])
    write_qmnist(root / theirs, TRAIN, TEST)
    found = read(mnist, root)
    sound(found, (1, 28, 28), 3, 2)
    assert found.train_owners.tolist() == [70, 80, 70]
    assert found.test_owners.tolist() == [90, 91], "the test file has rows that MNIST has not"


def test_nobody_knows_the_writers(root: Path) -> None:
    write_idx(root, [1, 2, 3], [4, 5])
    found = read(mnist, root)
    assert found.train_owners is None and found.test_owners is None
    write_qmnist(root, TRAIN, TEST)
    assert read(mnist, root).train_owners is not None, "the cache sees the new files"


@pytest.mark.parametrize(
    ("train", "test", "match"),
    [
        (TEST, TRAIN, "train-.*: wanted the digits of MNIST, found 4 for 1 in row 0"),
        (
            TRAIN,
            writers([4, 6], [9, 9]),
            "test-.*: wanted the digits of MNIST, found 6 for 5 in row",
        ),
        (TRAIN[:2], TEST, "train-.*: wanted a writer for each of 3 digits, found 2 rows"),
        (TRAIN[:, :7], TEST, "train-.*: wanted N x 8 values, found 3 x 7"),
        (TRAIN.astype(np.uint8), TEST, "train-.*: wanted an IDX file that begins with 00000c02"),
    ],
    ids=["swapped", "other digits", "short", "columns", "bytes"],
)
def test_wrong_writers(root: Path, train: np.ndarray, test: np.ndarray, match: str) -> None:
    write_idx(root, [1, 2, 3], [4, 5])
    write_qmnist(root, train, test)
    with pytest.raises(DataError, match=match) as error:
        read(mnist, root)
    assert str(error.value).startswith(f"{root}/qmnist-")


@pytest.mark.parametrize("lost", [0, 1])
def test_one_file_of_writers(root: Path, lost: int) -> None:
    write_idx(root, [1, 2, 3], [4, 5])
    write_qmnist(root, TRAIN, TEST)
    (root / f"{mnist.OWNERS[lost]}.gz").unlink()
    with pytest.raises(DataError, match=f"wanted a file {mnist.OWNERS[lost]} or .*found neither"):
        read(mnist, root)


def test_a_file_of_writers_that_is_cut(root: Path) -> None:
    write_idx(root, [1, 2, 3], [4, 5])
    write_qmnist(root, TRAIN, TEST)
    write(root / mnist.OWNERS[0], idx(TRAIN)[:-4])
    with pytest.raises(DataError, match=r"train.*wanted 108 bytes for its 3 records, found 104"):
        read(mnist, root)
