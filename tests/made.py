"""Small data sets in the upstream layouts, written from their descriptions."""

import gzip
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fedmpi import data
from fedmpi.data.layouts.idx import FILES
from fedmpi.datasets import cifar10, mnist

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Where real data sets may lie: beside the checkout."""


def real(name: str) -> pytest.MarkDecorator:
    """The mark of a test that needs the files in that folder of `SHARED`."""
    return pytest.mark.skipif(not (SHARED / name).is_dir(), reason=f"no {name} in {SHARED}")


def read(module: ModuleType, folder: Path | None = None, seed: int = 1, **given: Any):
    """The data set of a module, from a folder."""
    root = None if folder is None else str(folder)
    return module.load(module.Config(root=root, **given), seed)


def sound(found: data.Dataset, shape: tuple[int, ...], train: int, test: int) -> None:
    """Types and shapes as `Dataset` promises them."""
    assert found.shape == shape
    assert found.train_x.shape == (train, *shape) and found.test_x.shape == (test, *shape)
    assert found.train_y.shape == (train,) and found.test_y.shape == (test,)
    assert found.train_x.dtype == found.test_x.dtype == np.float32
    assert found.train_y.dtype == found.test_y.dtype == np.int64
    for y, owners in ((found.train_y, found.train_owners), (found.test_y, found.test_owners)):
        assert y.min() >= 0 and y.max() < found.classes
        if owners is not None:
            assert owners.shape == y.shape and owners.dtype == np.int64
    assert (found.train_owners is None) == (found.test_owners is None)


def write(path: Path, content: bytes, packed: bool = False) -> None:
    """A file, in a new folder if need be, with gzip or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if packed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


# ---- IDX


def idx(array: np.ndarray) -> bytes:
    """An IDX file of bytes, or of integers if the array is of more than bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    code, kind = (12, ">i4") if array.dtype == np.int32 else (8, "u1")
    return bytes((0, 0, code, array.ndim)) + sizes + array.astype(kind).tobytes()


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), np.uint8)


def write_idx(
    folder: Path, train: list[int], test: list[int], packed: bool = False, dot: str = "-"
) -> None:
    """A set in MNIST's layout with these labels; Kaggle's names have a dot in place of a dash."""
    for (x_name, y_name), y in zip((FILES[:2], FILES[2:]), (train, test), strict=True):
        write(folder / x_name.replace("-idx", f"{dot}idx"), idx(images(len(y))), packed)
        write(folder / y_name.replace("-idx", f"{dot}idx"), idx(np.array(y)), packed)


def writers(digits: list[int], owners: list[int]) -> np.ndarray:
    """The rows of a file of QMNIST: digit, series, writer, and five columns more."""
    rows = np.full((len(digits), 8), 77, np.int32)
    rows[:, 0], rows[:, 2] = digits, owners
    return rows


def write_qmnist(
    folder: Path, train: np.ndarray, test: np.ndarray, names: tuple[str, str] = mnist.OWNERS
) -> None:
    """QMNIST's two files, with gzip."""
    for name, rows in zip(names, (train, test), strict=True):
        write(folder / name, idx(rows), packed=True)


# ---- CIFAR


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


def python2(pixels: np.ndarray, **labels: list[int]) -> bytes:
    """A file of the Python layout, opcode by opcode what Python 2 with its numpy wrote."""
    dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + string(b"|") + b"NNN" + number(-1) + number(-1) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b")
    array += b"\x87R(K\x01" + number(pixels.shape[0]) + number(pixels.shape[1]) + b"\x86"
    array += dtype + b"\x89" + string(pixels.tobytes()) + b"tb"
    lists = [
        string(name.encode()) + b"](" + b"".join(map(number, y)) + b"e"
        for name, y in labels.items()
    ]
    names = b"](" + string(b"leptodactylus_pentadactylus_s_000004.png") + b"e"
    return (
        b"\x80\x02}("
        + (string(b"batch_label") + string(b"training batch 1 of 5"))
        + b"".join(lists)
        + (string(b"data") + array)
        + (string(b"filenames") + names)
        + b"u."
    )


def python3(protocol: int, key: Callable[[str], object] = str) -> Callable[..., bytes]:
    """The same, packed again by this Python."""

    def pack(pixels: np.ndarray, **labels: list[int]) -> bytes:
        named = {"data": pixels, **labels}
        return pickle.dumps({key(name): value for name, value in named.items()}, protocol)

    return pack


def binary(pixels: np.ndarray, **labels: list[int]) -> bytes:
    """A file of the binary layout: the labels in the order in which they are given."""
    columns = [np.array(y, np.uint8) for y in labels.values()]
    return np.column_stack([*columns, pixels]).tobytes()


def write_cifar10(folder: Path, pack: Callable[..., bytes], suffix: str = "") -> None:
    """Six files: training files of 1 to 5 records with labels 1 to 5, a test file of 2 with 9."""
    for count, name in enumerate(cifar10.BATCHES[:5], 1):
        content = pack(pictures(count, count), labels=[count] * count)
        write(folder / f"{name}{suffix}", content)
    write(folder / f"test_batch{suffix}", pack(pictures(2), labels=[9] * 2))


def write_cifar100(folder: Path, pack: Callable[..., bytes], suffix: str = "") -> None:
    """Two files: training records of class 99, 0, 50 in groups 19, 3, 7; a test record: 5 in 2."""
    train = pack(pictures(3, 1), coarse_labels=[19, 3, 7], fine_labels=[99, 0, 50])
    write(folder / f"train{suffix}", train)
    write(folder / f"test{suffix}", pack(pictures(1), coarse_labels=[2], fine_labels=[5]))


# ---- Tiny ImageNet


def jpeg(colour: tuple[int, int, int] | int, size: tuple[int, int] = (64, 64)) -> bytes:
    """A picture of one colour; of one shade of grey, without colours, if it is a number."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(file, "JPEG")
    return file.getvalue()


WNIDS = ("n00000003", "n00000001", "n00000002")
"""Not in order, as in the official file."""


def write_tiny_imagenet(folder: Path, inside: str = "images", sorted_in: str | None = None) -> None:
    """Three classes: two pictures each to train with, a grey one and a red one; three to test.

    Args:
        folder: where.
        inside: folder of a training class that holds its pictures; "" is the class's own.
        sorted_in: the same of a test class; if absent, `val` is as in the official set.
    """
    write(folder / "wnids.txt", "".join(f"{wnid}\n" for wnid in WNIDS).encode())
    for count, wnid in enumerate(WNIDS, 1):
        pictures = folder / "train" / wnid / inside
        write(pictures / f"{wnid}_0.JPEG", jpeg(50 * count))
        write(pictures / f"{wnid}_1.JPEG", jpeg((250, 0, 10 * count)))
        write(folder / "train" / wnid / f"{wnid}_boxes.txt", b"")
    lines = []
    for count, wnid in enumerate(("n00000002", "n00000003", "n00000002")):
        place = "images" if sorted_in is None else f"{wnid}/{sorted_in}"
        write(folder / "val" / place / f"val_{9 + count}.JPEG", jpeg(100 + count))
        lines.append(f"val_{9 + count}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    if sorted_in is None:
        write(folder / "val" / "val_annotations.txt", "".join(lines).encode())
