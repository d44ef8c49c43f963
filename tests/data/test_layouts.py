"""Readers take the upstream layouts, and name what is wrong with a file."""

import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.data import files
from fedmpi.data.files import DataError
from fedmpi.data.layouts import cifar, jpeg
from fedmpi.data.layouts.idx import FILES
from fedmpi.datasets import cifar10, fashion_mnist, mnist
from tests.made import (
    binary,
    idx,
    images,
    pictures,
    python2,
    python3,
    read,
    sound,
    write,
    write_cifar10,
    write_idx,
)
from tests.made import (
    jpeg as jpeg_picture,
)

pytestmark = pytest.mark.usefixtures("nowhere")


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
        plain = read(module, root, pixels="unit")
        assert np.array_equal(plain.train_x, np.float32(images(train)[:, np.newaxis]) / 255)
        assert plain.sha256 != found.sha256


X, Y = FILES[:2]
DOTTED = "train-labels.idx1-ubyte"
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
    with pytest.raises(DataError, match=f"wanted a file {Y} or {DOTTED}, with or without .gz"):
        read(mnist, root)


@pytest.mark.parametrize("packed", [False, True])
def test_names_with_a_dot(root: Path, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kaggle's. They are known as the official files all the same."""
    write_idx(root / "official", [0, 1, 2], [3], packed)
    write_idx(root / "kaggle", [0, 1, 2], [3], packed, dot=".")
    # Such an archive has folders with the other names, too.
    (root / "kaggle" / X).mkdir()
    digests = {name: files.md5(root / "official" / f"{name}{'.gz' * packed}") for name in FILES}
    monkeypatch.setattr(mnist, "MD5", {f"{n}{'.gz' * packed}": md5 for n, md5 in digests.items()})
    found = [read(mnist, root / name) for name in ("official", "kaggle")]
    assert found[0].sha256 == found[1].sha256
    if not packed:  # gzip writes the time and the name
        assert found[1].origin == "official"
    mixed = root / "kaggle" / f"{DOTTED}{'.gz' * packed}"
    mixed.rename(mixed.with_name(f"{Y}{'.gz' * packed}"))
    assert read(mnist, root / "kaggle").sha256 == found[0].sha256


@pytest.mark.parametrize("module", [mnist, fashion_mnist], ids=["mnist", "fashion"])
@pytest.mark.parametrize(
    ("name", "packed"), [(X, True), (DOTTED, False), (DOTTED, True)], ids=["gz", "dot", "dot, gz"]
)
@pytest.mark.parametrize("late", [False, True])
def test_a_part_under_two_names(
    root: Path, module: Any, name: str, packed: bool, late: bool
) -> None:
    """The same content may be there twice; which of two is meant, nobody knows."""
    write_idx(root, [0, 1, 2], [3])
    first = read(module, root) if late else None
    part = X if name == X else Y
    whole = (root / part).read_bytes()
    write(root / name, whole, packed)
    found = read(module, root)
    assert first is None or first.sha256 == found.sha256
    write(root / name, whole[:-1] + bytes([whole[-1] ^ 1]), packed)
    other = root / f"{name}{'.gz' * packed}"
    os.utime(other, ns=(1, 1))
    with pytest.raises(DataError) as error:
        read(module, root)
    assert str(error.value) == (
        f"{other}: wanted the same content as {part} beside it, found another; remove one of them"
    )


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


# ---- CIFAR


def test_the_pickles_of_these_tests_are_real() -> None:
    """Python's own unpickler reads them too, with the real numpy."""
    pixels = pictures(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy.core is an old name
        found = pickle.loads(python2(pixels, labels=[1, 2, 3]), encoding="latin1")
    np.testing.assert_array_equal(found["data"], pixels)
    assert found["labels"] == [1, 2, 3]


def test_columns_first(root: Path) -> None:
    path, pixels = root / "batch", pictures(3)
    write(path, python3(4)(np.asfortranarray(pixels), labels=[1, 2, 3]))
    np.testing.assert_array_equal(cifar.read_py(path, "labels", 10)[0].reshape(3, -1), pixels)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "wanted whole records of 3073 bytes, found 0 bytes"),
        (bytes(3072), "wanted whole records of 3073 bytes, found 3072 bytes"),
        (bytes(2 * 3073 + 1), "found 6147 bytes"),
        (binary(pictures(2), labels=[0, 200]), "wanted labels 0 to 9, found 200 in record 1"),
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
        (python2(pictures(2), labels=[1, 2])[:3000], "wanted a pickle"),
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


GOOD = python2(pictures(1), labels=[5])


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


# ---- JPEG


@given(
    end=st.integers(0, 1000),
    damage=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
)
@settings(max_examples=300, deadline=None)
def test_damaged_jpeg(
    tmp_path_factory: pytest.TempPathFactory, end: int, damage: list[tuple[int, int]]
) -> None:
    content = bytearray(jpeg_picture((200, 100, 0)))
    for place, value in damage:
        content[place % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.jpeg"
    for damaged in (bytes(content), bytes(content[:end])):
        path.write_bytes(damaged)
        try:
            found = jpeg.read(path, 64)
        except DataError:
            continue
        assert found.shape == (3, 64, 64) and found.dtype == np.uint8
