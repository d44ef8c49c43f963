"""Loaders read the upstream layouts, find the right files, and name what is wrong with others."""

import gzip
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi import data, files
from fedmpi.data import cifar10, digits, fashion_mnist, mnist, synthetic
from fedmpi.files import DataError
from fedmpi.layouts import cifar
from fedmpi.layouts.idx import FILES

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason=f"there are no real data sets in {SHARED}")


@pytest.fixture(autouse=True)
def nowhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, which is home as well; nothing is found that a test did not make."""
    folder = tmp_path_factory.mktemp("nowhere") / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("FEDMPI_DATA", raising=False)
    monkeypatch.setenv("FEDMPI_CACHE", str(folder.parent / "cache"))
    monkeypatch.setattr(files, "USUAL", files.USUAL[:-1])
    return folder


@pytest.fixture
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose path, unlike `tmp_path`, does not hold the name of the test."""
    return tmp_path_factory.mktemp("sets")


def write(path: Path, content: bytes, packed: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if packed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


def idx(array: np.ndarray) -> bytes:
    """An IDX file of bytes, written from its description."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.astype(np.uint8).tobytes()


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), np.uint8)


def write_idx(folder: Path, train: list[int], test: list[int], packed: bool = False) -> None:
    """A set in MNIST's layout with these labels."""
    for (x_name, y_name), y in zip((FILES[:2], FILES[2:]), (train, test), strict=True):
        write(folder / x_name, idx(images(len(y))), packed)
        write(folder / y_name, idx(np.array(y)), packed)


def read(module: ModuleType, folder: Path | None = None, seed: int = 1) -> data.Dataset:
    return module.load(module.Config(root=None if folder is None else str(folder)), seed)


def sound(found: data.Dataset, shape: tuple[int, ...], train: int, test: int) -> None:
    """Types and shapes as `Dataset` promises them."""
    assert found.shape == shape
    assert found.train_x.shape == (train, *shape) and found.test_x.shape == (test, *shape)
    assert found.train_y.shape == (train,) and found.test_y.shape == (test,)
    assert found.train_x.dtype == found.test_x.dtype == np.float32
    assert found.train_y.dtype == found.test_y.dtype == np.int64


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


# ---- finding


def test_places(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.places("~/mine") == [nowhere / "mine"]
    usual = [
        nowhere / "data",
        nowhere.parent / "data",
        nowhere.parent / "shared" / "data",
        nowhere / "data",
        nowhere / ".cache" / "fedmpi",
    ]
    assert files.places(None) == usual
    monkeypatch.setenv("FEDMPI_DATA", "~/theirs")
    assert files.places(None) == [nowhere / "theirs", *usual]
    assert files.places("mine") == [nowhere / "mine"]


def test_the_first_place_wins(nowhere: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for count, place in enumerate((root, nowhere / "data", nowhere.parent / "shared" / "data"), 1):
        write_idx(place / "mnist", [0] * count, [0])
    assert len(read(mnist).train_y) == 2
    monkeypatch.setenv("FEDMPI_DATA", str(root))
    assert len(read(mnist).train_y) == 1
    assert len(read(mnist, nowhere.parent / "shared").train_y) == 3
    with pytest.raises(DataError, match="no MNIST"):
        read(mnist, nowhere / "elsewhere")


@pytest.mark.parametrize(
    "below", ["", "raw", "MNIST/raw", "mnist/MNIST/raw", "mnist", "sets/mnist"]
)
def test_folders_of_a_set(root: Path, below: str) -> None:
    write_idx(root / below, [3], [4], packed=True)
    assert mnist.where(mnist.Config(root=str(root))) == root / below
    assert read(mnist, root).train_y.tolist() == [3]


@pytest.mark.parametrize("below", ["a/b/c", "a/b/c/raw"])
def test_folders_too_deep(root: Path, below: str) -> None:
    write_idx(root / below, [3], [4])
    with pytest.raises(DataError, match="2 levels below"):
        read(mnist, root)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ("mnist", "fashion-mnist"),
        ("MNIST/raw", "FashionMNIST/raw"),
        ("z", "a/Fashion"),
        ("numbers", "fashion_mnist/raw"),
    ],
)
def test_sets_with_the_same_files(root: Path, mine: str, theirs: str) -> None:
    write_idx(root / mine, [1], [1])
    write_idx(root / theirs, [2], [2])
    write_idx(root / "KMNIST" / "raw", [3], [3])
    assert read(mnist, root).train_y.tolist() == [1]
    assert read(fashion_mnist, root).train_y.tolist() == [2]


def test_a_set_never_stands_in_for_another(root: Path) -> None:
    # A project of this name holds both sets; MNIST's own folder must not pass for the other one.
    write_idx(root / "fashion" / "MNIST" / "raw", [1], [1])
    write_idx(root / "KMNIST", [3], [3])
    for module in (mnist, fashion_mnist):
        with pytest.raises(DataError, match="very folder of the files"):
            read(module, root)
    direct = root / "fashion" / "MNIST" / "raw"
    assert read(mnist, direct).train_y.tolist() == [1]
    assert read(fashion_mnist, direct).train_y.tolist() == [1]


def test_the_environment_is_not_the_user(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(root / "fashion", [2], [2])
    monkeypatch.setenv("FEDMPI_DATA", str(root / "fashion"))
    assert read(fashion_mnist).train_y.tolist() == [2]
    with pytest.raises(DataError, match="no MNIST"):
        read(mnist)


def test_links_are_followed(root: Path) -> None:
    write_idx(root / "far" / "fashion-mnist", [2], [2])
    (root / "near").mkdir()
    (root / "near" / "clothes").symlink_to(root / "far" / "fashion-mnist")
    assert read(fashion_mnist, root / "near").train_y.tolist() == [2]
    with pytest.raises(DataError, match="no MNIST"):
        read(mnist, root / "near")


def test_a_link_that_leads_nowhere(root: Path) -> None:
    (root / "a").symlink_to(root / "a")
    (root / "b").symlink_to(root / "c")
    write_idx(root / "mnist", [1], [1])
    assert read(mnist, root).train_y.tolist() == [1]


@pytest.mark.parametrize(
    ("module", "wanted", "source"),
    [
        (mnist, "train-images-idx3-ubyte", "yann.lecun.com/exdb/mnist"),
        (fashion_mnist, "train-images-idx3-ubyte", "package dataset-fashion-mnist"),
        (cifar10, "data_batch_1.bin", "www.cs.toronto.edu/~kriz/cifar.html"),
    ],
)
def test_missing(
    nowhere: Path,
    module: ModuleType,
    wanted: str,
    source: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (nowhere / "data" / "other").mkdir(parents=True)
    monkeypatch.setenv("FEDMPI_DATA", "/nonexistent")
    with pytest.raises(DataError) as error:
        module.where(module.Config())
    text = str(error.value)
    assert wanted in text and source in text and "data.root or $FEDMPI_DATA" in text
    assert all(f"\n  {place}" in text for place in files.places(None))
    assert "/nonexistent (no such folder)" in text and f"{nowhere / 'data'}\n" in text
    with pytest.raises(DataError) as error:
        read(module, nowhere)
    assert "/nonexistent" not in str(error.value)


# ---- IDX


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("train", "test"), [(3, 2), (2, 3)])
def test_idx(root: Path, packed: bool, train: int, test: int) -> None:
    write_idx(root, list(range(train)), [9] * test, packed)
    for module in (mnist, fashion_mnist):
        found = read(module, root)
        sound(found, (1, 28, 28), train, test)
        assert found.train_y.tolist() == list(range(train)) and found.classes == 10
        pixels = images(train).astype(np.float64)[:, np.newaxis] / 255
        np.testing.assert_allclose(
            found.train_x, (pixels - module.MEAN) / module.STD, rtol=1e-5, atol=1e-6
        )


X, Y = FILES[:2]
WRONG_IDX: dict[str, tuple[str, bytes, str]] = {
    "empty": (X, b"", "begins with 00000803 .* found nothing, 0 bytes"),
    "short header": (X, idx(images(3))[:9], "header of 16 bytes, found 00000803, 9 bytes"),
    "labels as images": (X, idx(np.zeros(3)), "begins with 00000803 .* found 00000801"),
    "images as labels": (Y, idx(images(3)), "begins with 00000801 .* found 00000803"),
    "int32": (Y, b"\0\0\x0c\x01" + bytes(8), "begins with 00000801 .* found 00000c01"),
    "shape": (X, idx(np.zeros((3, 28, 27))), "wanted N x 28 x 28 values, found 3 x 28 x 27"),
    "no records": (X, idx(images(0)), "wanted N x 28 x 28 values, found 0 x 28 x 28"),
    "cut": (X, idx(images(3))[:-1], "wanted 2368 bytes for its 3 records, found 2367"),
    "long": (Y, idx(np.zeros(3)) + b"\0", "wanted 11 bytes for its 3 records, found 12"),
    "huge": (Y, b"\0\0\x08\x01" + b"\xff" * 4, "wanted 4294967303 bytes .* found 8"),
    "counts": (Y, idx(np.zeros(2)), "wanted a label for each of 3 images, found 2"),
    "label": (Y, idx(np.array([0, 9, 10])), "wanted labels 0 to 9, found 10 in record 2"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("case", WRONG_IDX)
def test_wrong_idx(root: Path, case: str, packed: bool) -> None:
    name, content, match = WRONG_IDX[case]
    write_idx(root, [0, 1, 2], [0], packed)
    write(root / name, content, packed)
    with pytest.raises(DataError, match=match) as error:
        read(mnist, root)
    assert str(error.value).startswith(str(root / name))


def test_a_part_of_the_files(root: Path) -> None:
    write_idx(root, [0], [0])
    (root / Y).unlink()
    with pytest.raises(DataError, match=f"wanted a file {Y} or {Y}.gz, found neither"):
        read(mnist, root)


def _flipped(packed: bytes) -> bytes:
    return packed[:-8] + bytes((packed[-8] ^ 1,)) + packed[-7:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: b"not gzip",
        lambda packed: packed[: len(packed) // 2],
        lambda packed: packed[:10] + b"\xff" + packed[11:],
        _flipped,
    ],
    ids=["another format", "cut", "impossible block", "wrong checksum"],
)
def test_wrong_gzip(root: Path, damage: Callable[[bytes], bytes]) -> None:
    write_idx(root, [0, 1, 2], [0], packed=True)
    path = root / f"{X}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="wanted a whole gzip file") as error:
        read(mnist, root)
    assert str(error.value).startswith(str(path))


# ---- CIFAR-10


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), np.uint8)


def string(content: bytes) -> bytes:
    """A string as Python 2 pickles it: SHORT_BINSTRING or BINSTRING."""
    if len(content) < 256:
        return b"U" + bytes((len(content),)) + content
    return b"T" + len(content).to_bytes(4, "little") + content


def number(value: int) -> bytes:
    """BININT."""
    return b"J" + value.to_bytes(4, "little", signed=True)


def python2(pixels: np.ndarray, y: list[int]) -> bytes:
    """A file of the Python layout, opcode by opcode what Python 2 with its numpy wrote."""
    dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + string(b"|") + b"NNN" + number(-1) + number(-1) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b")
    array += b"\x87R(K\x01" + number(pixels.shape[0]) + number(pixels.shape[1]) + b"\x86"
    array += dtype + b"\x89" + string(pixels.tobytes()) + b"tb"
    labels = b"](" + b"".join(map(number, y)) + b"e"
    names = b"](" + string(b"leptodactylus_pentadactylus_s_000004.png") + b"e"
    return (
        b"\x80\x02}("
        + (string(b"batch_label") + string(b"training batch 1 of 5"))
        + (string(b"labels") + labels)
        + (string(b"data") + array)
        + (string(b"filenames") + names)
        + b"u."
    )


def python3(protocol: int, key: Callable[[str], object] = str) -> Callable[..., bytes]:
    """The same, packed again by this Python."""
    return lambda pixels, y: pickle.dumps({key("data"): pixels, key("labels"): y}, protocol)


def binary(pixels: np.ndarray, y: list[int]) -> bytes:
    return np.column_stack([np.array(y, np.uint8), pixels]).tobytes()


def write_cifar10(folder: Path, pack: Callable[..., bytes], suffix: str = "") -> None:
    """Six files: training files of 1 to 5 records with labels 1 to 5, a test file of 2 with 9."""
    for count, name in enumerate(cifar10.BATCHES[:5], 1):
        write(folder / f"{name}{suffix}", pack(pictures(count, count), [count] * count))
    write(folder / f"test_batch{suffix}", pack(pictures(2), [9] * 2))


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


def test_the_pickles_of_these_tests_are_real() -> None:
    """Python's own unpickler reads them too, with the real numpy."""
    pixels = pictures(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy.core is an old name
        found = pickle.loads(python2(pixels, [1, 2, 3]), encoding="latin1")
    np.testing.assert_array_equal(found["data"], pixels)
    assert found["labels"] == [1, 2, 3]


def test_columns_first(root: Path) -> None:
    path, pixels = root / "batch", pictures(3)
    write(path, python3(4)(np.asfortranarray(pixels), [1, 2, 3]))
    np.testing.assert_array_equal(cifar.read_py(path, "labels", 10)[0].reshape(3, -1), pixels)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "wanted whole records of 3073 bytes, found 0 bytes"),
        (bytes(3072), "wanted whole records of 3073 bytes, found 3072 bytes"),
        (bytes(2 * 3073 + 1), "found 6147 bytes"),
        (binary(pictures(2), [0, 200]), "wanted labels 0 to 9, found 200 in record 1"),
    ],
)
def test_wrong_binary(root: Path, content: bytes, match: str) -> None:
    write_cifar10(root, binary, ".bin")
    write(root / "data_batch_3.bin", content)
    with pytest.raises(DataError, match=match) as error:
        read(cifar10, root)
    assert str(error.value).startswith(str(root / "data_batch_3.bin"))


def test_a_batch_is_missing(root: Path) -> None:
    write_cifar10(root, binary, ".bin")
    (root / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"test_batch\.bin: No such file"):
        read(cifar10, root)


class Making:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_never_executes(root: Path, protocol: int) -> None:
    trap = root / "trap"
    content = pickle.dumps({"data": Making(trap), "labels": [1]}, protocol)
    write_cifar10(root, python2)
    write(root / "data_batch_2", content)
    with pytest.raises(DataError, match=r"mkdir, which is not part of an array") as error:
        read(cifar10, root)
    assert str(error.value).startswith(str(root / "data_batch_2"))
    assert not trap.exists()
    pickle.loads(content)
    assert trap.exists()


@pytest.mark.parametrize(
    "name", ["builtins\neval", "__builtin__\nexec", "os\nsystem", "numpy\nload", "numpy\nfromfile"]
)
def test_names_in_a_pickle(root: Path, name: str) -> None:
    write(root / "batch", b"\x80\x02c" + name.encode() + b"\n.")
    with pytest.raises(DataError, match=name.replace("\n", r"\.") + ", which is not part"):
        cifar.read_py(root / "batch", "labels", 10)


def batch(**changes: Any) -> bytes:
    return pickle.dumps({"data": pictures(2), "labels": [1, 2], **changes}, 4)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "wanted a pickle of an array and a list, found EOFError"),
        (b"no pickle", "wanted a pickle"),
        (python2(pictures(2), [1, 2])[:3000], "wanted a pickle"),
        (pickle.dumps([1, 2], 2), "wanted a dictionary, found list"),
        (pickle.dumps({"data": 1}, 2), r"wanted 'data' and 'labels', found \['data'\]"),
        (batch(data=1), "wanted data of N x 3072 bytes, found something else"),
        (batch(data=pictures(2)[:, 1:]), "found 2 x 3071"),
        (batch(data=pictures(2)[0]), "found 3072"),
        (batch(data=pictures(0), labels=[]), "found 0 x 3072"),
        (batch(data=pictures(2).astype(np.float32)), "found something else"),
        (batch(data=pictures(2).astype(object)), "found something else"),
        (batch(labels=[1, 2.0]), "wanted a list of whole numbers"),
        (batch(labels=(1, 2)), "wanted a list of whole numbers"),
        (batch(labels=[1]), "wanted a label for each of 2 images, found 1"),
        (batch(labels=[1, 10]), "wanted labels 0 to 9, found 10 in record 1"),
        (batch(labels=[-1, 1]), "wanted labels 0 to 9, found -1 in record 0"),
        (batch(labels=[1, 2**70]), "wanted labels 0 to 9, found 1180591620717411303424"),
    ],
)
def test_wrong_pickles(root: Path, content: bytes, match: str) -> None:
    write(root / "batch", content)
    with pytest.raises(DataError, match=match) as error:
        cifar.read_py(root / "batch", "labels", 10)
    assert str(error.value).startswith(str(root / "batch"))


GOOD = python2(pictures(1), [5])


@given(
    st.integers(0, len(GOOD)),
    st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=3),
    st.lists(st.tuples(st.integers(1, 120), st.integers(0, 255)), max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_damaged_pickles(
    tmp_path_factory: pytest.TempPathFactory,
    end: int,
    front: list[tuple[int, int]],
    back: list[tuple[int, int]],
) -> None:
    """Whatever happens to the bytes around the pixels, there is a `DataError` or a whole batch."""
    damaged = bytearray(GOOD)
    for place, value in front:
        damaged[place] = value
    for place, value in back:
        damaged[-place] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    for content in (bytes(damaged), bytes(damaged[:end])):
        path.write_bytes(content)
        try:
            pixels, y = cifar.read_py(path, "labels", 10)
        except DataError:
            continue
        assert pixels.shape == (len(y), 3, 32, 32) and pixels.dtype == np.uint8
        assert len(y) > 0 and np.all((y >= 0) & (y < 10))
