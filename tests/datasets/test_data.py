"""Data sets are what they should be: classes, shapes, statistics, owners."""

import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pydantic
import pytest

from fedmpi import data
from fedmpi.config import ConfigError
from fedmpi.data.files import DataError
from fedmpi.data.layouts import jpeg as jpeg_layout
from fedmpi.datasets import (
    cifar10,
    cifar100,
    digits,
    mnist,
    synthetic,
    synthetic_fedprox,
    tiny_imagenet,
)
from tests.made import (
    SHARED,
    WNIDS,
    binary,
    idx,
    jpeg,
    pictures,
    python2,
    python3,
    read,
    real,
    sound,
    write,
    write_cifar10,
    write_cifar100,
    write_idx,
    write_qmnist,
    write_tiny_imagenet,
    writers,
)

pytestmark = pytest.mark.usefixtures("nowhere")


# ---- real files


@real("mnist")
def test_real_mnist() -> None:
    found = read(mnist, SHARED)
    sound(found, (1, 28, 28), 60_000, 10_000)
    np.testing.assert_array_equal(found.train_y[:8], [5, 0, 4, 1, 9, 2, 1, 3])
    np.testing.assert_array_equal(found.test_y[:8], [7, 2, 1, 0, 4, 1, 4, 9])
    assert np.bincount(found.train_y)[[0, 1]].tolist() == [5923, 6742]
    assert abs(found.train_x.mean()) < 1e-3 and abs(found.train_x.std() - 1) < 1e-3


@real("cifar10-12k")
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


def test_samples_in_both_sets_are_counted() -> None:
    train = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    test = np.concatenate([train[1:3], train[1:2], train[:1] + 0.5])
    assert data.repeated(train, test) == 3
    assert data.repeated(train[:0], test) == data.repeated(train, test[:0]) == 0


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


def test_digits_are_those_of_scikit_learn_which_is_not_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sklearn.datasets import load_digits

    wanted, labels = load_digits(return_X_y=True)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # nobody can
    found = read(digits)
    x = np.concatenate([found.train_x, found.test_x]).reshape(-1, 64)
    y = np.concatenate([found.train_y, found.test_y])
    pixels = np.rint(x * digits.STD + digits.MEAN)
    both = [np.column_stack([labels, wanted]), np.column_stack([y, pixels])]
    np.testing.assert_array_equal(*(rows[np.lexsort(rows.T)] for rows in both))


def test_digits_without_their_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = ModuleSpec("sklearn", None)
    found.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: found)
    with pytest.raises(DataError, match="wanted the data of scikit-learn, found no "):
        read(digits)


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


@pytest.mark.parametrize("module", [digits, synthetic, synthetic_fedprox])
def test_sets_without_files_are_nowhere(module: ModuleType, root: Path) -> None:
    assert module.where(module.Config(root=str(root / "lost"))) is None


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
    assert np.array_equal(read(cifar10, root, pixels="unit").test_x, np.float32(pixels))


def test_the_binary_layout_comes_first(root: Path) -> None:
    write_cifar10(root / "cifar-10-batches-py", python2)
    write_cifar10(root / "cifar-10-batches-bin", binary, ".bin")
    assert cifar10.where(cifar10.Config(root=str(root))) == root / "cifar-10-batches-bin"
    write_cifar10(root, binary, ".bin")
    write(root / "data_batch_1", b"not read")
    assert len(read(cifar10, root).train_y) == 15


# ---- MNIST by writer


@real("mnist")
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
    write(root / mnist.OWNERS[0], idx(TRAIN)[:-4], packed=True)
    with pytest.raises(DataError, match=r"train.*wanted 108 bytes for its 3 records, found 104"):
        read(mnist, root)


# ---- CIFAR-100

LAYOUTS = pytest.mark.parametrize(
    ("pack", "layout", "suffix"),
    [
        (binary, "cifar-100-binary", ".bin"),
        (python2, "cifar-100-python", ""),
        (python3(2, str.encode), "cifar-100-python", ""),
    ],
    ids=["bin", "py", "py by Python 3 in bytes"],
)


@LAYOUTS
def test_cifar100(root: Path, pack: Callable[..., bytes], layout: str, suffix: str) -> None:
    write_cifar100(root / layout, pack, suffix)
    fine, coarse = read(cifar100, root), read(cifar100, root, labels="coarse")
    for found in (fine, coarse):
        sound(found, (3, 32, 32), 3, 1)
        pixels = pictures(3, 1).reshape(3, 3, 32, 32) / 255
        for channel in range(3):
            wanted = (pixels[:, channel] - cifar100.MEAN[channel]) / cifar100.STD[channel]
            np.testing.assert_allclose(found.train_x[:, channel], wanted, rtol=1e-5, atol=1e-6)
    assert np.array_equal(read(cifar100, root, pixels="unit").train_x, np.float32(pixels))
    assert (fine.classes, coarse.classes) == (100, 20)
    assert fine.train_y.tolist() == [99, 0, 50] and fine.test_y.tolist() == [5]
    assert coarse.train_y.tolist() == [19, 3, 7] and coarse.test_y.tolist() == [2]
    assert fine.groups[[99, 0, 50, 5]].tolist() == [19, 3, 7, 2] and coarse.groups is None


def test_a_class_of_cifar100_in_two_groups(root: Path) -> None:
    for labels in ([1, 2], [1, 1]):
        for name, kinds in (("train.bin", labels), ("test.bin", [2])):
            content = binary(
                pictures(len(kinds)), coarse_labels=kinds, fine_labels=[7] * len(kinds)
            )
            write(root / "cifar-100-binary" / name, content)
        with pytest.raises(DataError, match="wanted one group for each class, found more of 7"):
            read(cifar100, root)


def test_cifar100_is_nothing_else(root: Path) -> None:
    """Files and folders of these names are everywhere."""
    write(root / "tiny-imagenet-200" / "train" / "n01" / "x.JPEG", b"")
    write(root / "other" / "train", b"something")
    write(root / "more" / "train.bin", b"something")
    write_cifar10(root / "cifar-10-batches-py", python2)
    with pytest.raises(DataError, match=r"no CIFAR-100; wanted train\.bin"):
        read(cifar100, root)
    write_cifar100(root / "plain", binary, ".bin")
    with pytest.raises(DataError, match="no CIFAR-100"):
        read(cifar100, root)
    assert read(cifar100, root / "plain").classes == 100, "the user says so"
    write(root / "plain" / "fine_label_names.txt", b"apple\n")
    assert cifar100.where(cifar100.Config(root=str(root))) == root / "plain"


@pytest.mark.parametrize(
    ("labels", "content", "match"),
    [
        ("fine", bytes(3073), "wanted whole records of 3074 bytes, found 3073"),
        ("fine", bytes([0, 100]) + bytes(3072), "wanted labels 0 to 99, found 100 in record 0"),
        ("coarse", bytes([20, 1]) + bytes(3072), "wanted labels 0 to 19, found 20 in record 0"),
    ],
)
def test_wrong_cifar100(root: Path, labels: str, content: bytes, match: str) -> None:
    write_cifar100(root, binary, ".bin")
    write(root / "train.bin", content)
    with pytest.raises(DataError, match=match) as error:
        read(cifar100, root, labels=labels)
    assert str(error.value).startswith(str(root / "train.bin"))


def test_cifar10_as_cifar100(root: Path) -> None:
    """Swapped files: records have another length, pickles no such key."""
    for name in ("train.bin", "test.bin"):
        write(root / name, binary(pictures(2), labels=[1, 2]))
    with pytest.raises(DataError, match="wanted whole records of 3074 bytes, found 6146"):
        read(cifar100, root)
    write(root / "py" / "train", python2(pictures(2), labels=[1, 2]))
    write(root / "py" / "test", python2(pictures(2), labels=[1, 2]))
    with pytest.raises(DataError, match="wanted 'data' and 'fine_labels', found"):
        read(cifar100, root / "py")


# ---- Tiny ImageNet


@pytest.mark.parametrize("below", ["", "tiny-imagenet-200", "a/b", "a/b/tiny-imagenet-200"])
def test_tiny_imagenet(root: Path, below: str) -> None:
    write_tiny_imagenet(root / below)
    assert tiny_imagenet.where(tiny_imagenet.Config(root=str(root))) == root / below
    found = read(tiny_imagenet, root)
    sound(found, (3, 64, 64), 6, 3)
    assert found.classes == 3
    # The class is the place among the sorted names.
    assert found.train_y.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.test_y.tolist() == [1, 2, 1]
    mean, std = (np.reshape(x, (3, 1, 1)) for x in (tiny_imagenet.MEAN, tiny_imagenet.STD))
    train, test = ((x * std + mean) * 255 for x in (found.train_x, found.test_x))
    # Grey pictures are alike in all channels; the first class is the second that was written.
    for place, shade in ((0, 100), (2, 150), (4, 50)):
        np.testing.assert_allclose(train[place], shade, atol=2)
    for place, blue in ((1, 20), (3, 30), (5, 10)):
        wanted = np.reshape([250, 0, blue], (3, 1, 1))
        np.testing.assert_allclose(train[place], np.broadcast_to(wanted, (3, 64, 64)), atol=4)
    np.testing.assert_allclose(test[:, 0, 5, 5], [100, 101, 102], atol=1)
    plain = read(tiny_imagenet, root, pixels="unit").train_x
    np.testing.assert_allclose(plain * 255, train, atol=1e-3)


@pytest.mark.parametrize("inside", ["images", ""])
@pytest.mark.parametrize("sorted_in", [None, "images", ""])
def test_tiny_imagenet_in_folders_of_classes(
    root: Path, inside: str, sorted_in: str | None
) -> None:
    """As tools sort it, for those who read a folder for each class: it is the same set."""
    write_tiny_imagenet(root / "official")
    write_tiny_imagenet(root / "sorted", inside, sorted_in)
    write(root / "sorted" / "train" / WNIDS[0] / inside / "._x.JPEG", b"\0\5\26\7 left by macOS")
    official, found = (read(tiny_imagenet, root / name) for name in ("official", "sorted"))
    assert found.test_y.tolist() == [1, 2, 1], "by number: 9, 10, 11"
    assert found.sha256 == official.sha256


def test_tiny_imagenet_sees_tests_come_and_go_in_folders_of_classes(root: Path) -> None:
    write_tiny_imagenet(root, sorted_in="")
    assert len(read(tiny_imagenet, root).test_y) == 3
    write(root / "val" / WNIDS[0] / "val_3.JPEG", jpeg(1))
    assert len(read(tiny_imagenet, root).test_y) == 4
    for path in (root / "val" / WNIDS[0]).iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"wanted pictures \*\.JPEG, found none"):
        read(tiny_imagenet, root)


@pytest.mark.parametrize(
    ("place", "like"),
    [
        ("val/images", "val/n00000002"),
        ("val", "val/n00000002"),
        (f"train/{WNIDS[1]}", f"train/{WNIDS[1]}/images"),
    ],
)
def test_tiny_imagenet_that_is_sorted_by_half(root: Path, place: str, like: str) -> None:
    write_tiny_imagenet(root, sorted_in="")
    assert len(read(tiny_imagenet, root).test_y) == 3
    write(root / place / "val_50.JPEG", jpeg(1))
    write(root / place / "val_51.JPEG", jpeg(2))
    with pytest.raises(DataError) as error:
        read(tiny_imagenet, root)
    assert str(error.value) == (
        f"{root / place}: wanted all pictures in folders like {root / like}, found 2 beside them, "
        "such as val_50.JPEG"
    )


def test_tiny_imagenet_whose_tests_were_copied_into_folders_of_classes(root: Path) -> None:
    write_tiny_imagenet(root, sorted_in="")
    for path in [*(root / "val").glob("*/val_*.JPEG")]:
        write(root / "val/images" / path.name, path.read_bytes())
    assert read(tiny_imagenet, root).test_y.tolist() == [1, 2, 1]


def test_tiny_imagenet_sees_pictures_come_and_go(root: Path) -> None:
    write_tiny_imagenet(root)
    assert len(read(tiny_imagenet, root).train_y) == 6
    folder = root / "train" / WNIDS[0] / "images"
    write(folder / "more.JPEG", jpeg(1))
    assert read(tiny_imagenet, root).train_y.tolist() == [0, 0, 1, 1, 2, 2, 2]
    (folder / "more.JPEG").unlink()
    os.utime(folder, ns=(1, 1))
    assert len(read(tiny_imagenet, root).train_y) == 6


IMAGE = f"train/{WNIDS[1]}/images/{WNIDS[1]}_0.JPEG"
HEADER = jpeg(9).index(b"\xff\xc0") + 5
BOMB = jpeg(9)[:HEADER] + b"\xff" * 4 + jpeg(9)[HEADER + 4 :]
"""Says of itself that it has 65,535 x 65,535 pixels."""
WRONG: dict[str, tuple[str, bytes | None, str]] = {
    "no JPEG": (IMAGE, b"GIF89a", "wanted a whole JPEG picture, found: something else"),
    "empty": (IMAGE, b"", "wanted a whole JPEG picture"),
    "cut": (IMAGE, jpeg(9)[:-20], "wanted a whole JPEG picture, found: image file is truncated"),
    "size": (IMAGE, jpeg(9, (64, 63)), "wanted 64 x 64 pixels, found 64 x 63"),
    "large": (IMAGE, jpeg(9, (20_000, 10)), "wanted 64 x 64 pixels, found 20000 x 10"),
    "bomb": (IMAGE, BOMB, "found: Image size .* exceeds limit"),
    "no picture": ("val/images/val_10.JPEG", None, "No such file"),
    "no classes": ("wnids.txt", b"\n", "wanted lines of text, found none"),
    "a class more": ("wnids.txt", b"n00000009\n", "No such file or directory"),
    "a class twice": ("wnids.txt", b"n00000003\nn00000003\n", "found n00000003 twice"),
    "a way out": ("wnids.txt", b"../../../etc\n", r"found '\.\./\.\./\.\./etc'"),
    "no notes": ("val/val_annotations.txt", None, "No such file"),
    "an unknown class": ("val/val_annotations.txt", b"val_0.JPEG\tn9\t0\n", "found 'val_0.*line 1"),
    "spaces": ("val/val_annotations.txt", b"val_0.JPEG n00000001 0\n", "wanted a picture, a tab"),
    "another way out": (
        "val/val_annotations.txt",
        b"../x.JPEG\tn00000001\n",
        "wanted a picture, a tab",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_tiny_imagenet(root: Path, case: str) -> None:
    name, content, match = WRONG[case]
    write_tiny_imagenet(root)
    (root / name).unlink()
    if content is not None:
        write(root / name, content)
    with pytest.raises(DataError, match=match) as error:
        read(tiny_imagenet, root)
    start = root / "train" / "n00000009" if case == "a class more" else root / name
    assert str(error.value).startswith(str(start))


def test_a_class_without_pictures(root: Path) -> None:
    write_tiny_imagenet(root)
    for path in (root / "train" / WNIDS[0] / "images").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"images: wanted pictures \*\.JPEG, found none"):
        read(tiny_imagenet, root)


def test_pictures_by_several_threads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, and the first wrong one is named, whoever finds another one sooner."""
    monkeypatch.setattr(jpeg_layout, "cores", lambda: 4)
    monkeypatch.setattr(jpeg_layout, "LOT", 2)
    paths = [root / f"{number}.JPEG" for number in range(21)]
    for number, path in enumerate(paths):
        write(path, jpeg(10 * number, (8, 8)))
    found = jpeg_layout.read_all(paths, 8, [0] * 3, [1] * 3)
    np.testing.assert_allclose(found[:, 2, 3, 4] * 255, np.arange(0, 210, 10), atol=1)
    for number in (5, 9, 20):
        write(paths[number], b"")
    with pytest.raises(DataError, match=r"5\.JPEG"):
        jpeg_layout.read_all(paths, 8, [0] * 3, [1] * 3)


# ---- FedProx's synthetic data


def devices(seed: int = 1, **given: Any) -> data.Dataset:
    return synthetic_fedprox.load(synthetic_fedprox.Config(**given), seed)


def test_synthetic_fedprox() -> None:
    found = devices()
    sound(found, (60,), len(found.train_y), len(found.test_y))
    assert found.classes == 10 and found.train_owners is not None
    train, test = np.bincount(found.train_owners), np.bincount(found.test_owners)
    assert len(train) == len(test) == 30
    assert (train + test).min() >= 50 and (train + test).max() > 1000
    np.testing.assert_array_equal(train, (0.9 * (train + test)).astype(int))
    again, other = devices(), devices(seed=2)
    np.testing.assert_array_equal(found.train_x, again.train_x)
    np.testing.assert_array_equal(found.test_y, again.test_y)
    assert not np.array_equal(found.train_x[:50], other.train_x[:50])
    few = devices(devices=3)
    np.testing.assert_array_equal(few.train_x, found.train_x[found.train_owners < 3])


def test_synthetic_fedprox_sizes_are_lognormal() -> None:
    found = devices(devices=2000, iid=True)
    sizes = np.bincount(found.train_owners) + np.bincount(found.test_owners) - 50
    logs = np.log(sizes + 0.5)
    # Rounding down costs the small ones something.
    assert abs(np.median(logs) - 4) < 0.15 and abs(logs.std() - 2) < 0.15


def moments(found: data.Dataset, owner: int) -> tuple[np.ndarray, np.ndarray]:
    x = found.train_x[found.train_owners == owner]
    return x.mean(axis=0), x.var(axis=0)


def largest(found: data.Dataset, count: int) -> np.ndarray:
    """The devices with most samples."""
    return np.argsort(np.bincount(found.train_owners))[-count:]


def test_synthetic_fedprox_inputs() -> None:
    """Of all devices: Sigma is the same; beta moves a device's mean as a whole."""
    spreads = []
    for beta in (0.0, 5.0):
        found = devices(devices=60, beta=beta)
        means = []
        for owner in largest(found, 20):
            mean, variance = moments(found, owner)
            np.testing.assert_allclose(variance, np.arange(1, 61) ** -1.2, rtol=0.35)
            means.append(mean)
        # Around its B_k a device's mean is N(0, 1) in each place.
        assert abs(np.std(means - np.mean(means, axis=1, keepdims=True)) - 1) < 0.1
        spreads.append(np.std(np.mean(means, axis=1)))
    assert spreads[0] < 0.3 and 2.5 < spreads[1] < 8


def fitted(found: data.Dataset, train: Any = slice(None), test: Any = slice(None)) -> float:
    """Accuracy of a linear model by least squares."""

    def inputs(x: np.ndarray) -> np.ndarray:
        return np.column_stack([x, np.ones(len(x))])

    wanted = np.eye(10)[found.train_y[train]]
    w = np.linalg.lstsq(inputs(found.train_x[train]), wanted, rcond=None)[0]
    return (np.argmax(inputs(found.test_x[test]) @ w, axis=1) == found.test_y[test]).mean()


def test_synthetic_fedprox_models() -> None:
    """What one device teaches holds on others if they are alike, else on itself alone."""
    for found, low, high in ((devices(iid=True), 0.6, 1.0), (devices(), 0.0, 0.35)):
        trains, tests = (
            [owners == owner for owner in largest(found, 3)]
            for owners in (found.train_owners, found.test_owners)
        )
        accuracies = np.array([[fitted(found, one, other) for other in tests] for one in trains])
        own = np.eye(3, dtype=bool)
        assert accuracies[own].min() > 0.65
        assert low <= accuracies[~own].min() and accuracies[~own].max() < high
    alike = devices(iid=True)
    np.testing.assert_allclose(moments(alike, largest(alike, 1)[0])[0], 0, atol=0.2)


def test_alpha_changes_no_label() -> None:
    one, other = devices(alpha=0.0), devices(alpha=7.0)
    np.testing.assert_array_equal(one.train_x, other.train_x)
    np.testing.assert_array_equal(one.train_y, other.train_y)


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_synthetic_fedprox_both_alike_and_different(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{name} = 0.5: wanted data\.iid = false"):
        devices(iid=True, **{name: 0.5})
