"""IDX: arrays with a header, the format of MNIST and its successors.

As described at http://yann.lecun.com/exdb/mnist: two zero bytes, the type of the values, the number
of dimensions, each dimension as a big-endian int32, the values, big-endian.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from fedmpi.data import Dataset, checked, normalise
from fedmpi.data.files import DataError, contents, either, find, places

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
"""MNIST's files, each with or without `.gz`; its successors use the same names.

Where they come from Kaggle, a dot stands before `idx`.
"""

BYTES, INTEGERS = np.dtype("u1"), np.dtype(">i4")
"""Supported types of values."""
CODES = {BYTES: 0x08, INTEGERS: 0x0C}
"""Codes of these types in a header."""


def search(root: str | None, fits: Callable[[Path], bool]) -> Path | None:
    """Returns the folder with the files of MNIST, or of a successor.

    Since the files have the same names, the folder's path must tell which set it is. Only a `root`
    that holds the files itself needs no such name, because the user chose it.

    Args:
        root: the setting (see `files.places`).
        fits: whether a folder with such files may be the set's.
    """

    def holds(folder: Path) -> bool:
        if _file(folder, FILES[0]) is None:
            return False
        chosen = root is not None and folder == places(root)[0]
        return chosen or fits(folder)

    return find(root, ("", "raw"), holds)


def paths(folder: Path) -> list[Path]:
    """Returns the paths of MNIST's files in a folder.

    Raises:
        DataError: if one is missing.
    """
    found = {name: _file(folder, name) for name in FILES}
    for name, path in found.items():
        if path is None:
            raise DataError(
                f"{folder}: wanted a file {name} or {_dotted(name)}, with or without .gz, found "
                "neither"
            )
    return [path for path in found.values() if path is not None]


def known(official: Mapping[str, str]) -> dict[str, str]:
    """Returns MD5 digests of official files by each of the names that a file may have."""
    return {**official, **{_dotted(name): md5 for name, md5 in official.items()}}


def _dotted(name: str) -> str:
    return name.replace("-idx", ".idx")


def _file(folder: Path, name: str) -> Path | None:
    """Returns the path of one of the files under any of its names, the official one first."""
    return either(folder, name) or either(folder, _dotted(name))


def copies(path: Path) -> list[Path]:
    """Returns the other files in the folder that hold the same part under another name."""
    plain = path.name.removesuffix(".gz").replace(".idx", "-idx")
    names = (name + end for name in (plain, _dotted(plain)) for end in ("", ".gz"))
    found = (path.parent / name for name in names)
    return [other for other in found if other != path and os.path.isfile(other)]


def images(
    files: list[Path], mean: Sequence[float], std: Sequence[float], classes: int = 10
) -> Dataset:
    """Reads a set of 28x28 images from the four files of MNIST's format.

    Raises:
        DataError: if one is damaged, or images and labels differ in number.
    """

    def part(x_path: Path, y_path: Path) -> tuple[np.ndarray, np.ndarray]:
        x, y = read(x_path, (28, 28)), read(y_path, ())
        if len(x) != len(y):
            raise DataError(f"{y_path}: wanted a label for each of {len(x)} images, found {len(y)}")
        return normalise(x[:, np.newaxis], mean, std), checked(y, classes, y_path)

    train_x, train_y = part(*files[:2])
    test_x, test_y = part(*files[2:])
    return Dataset(train_x, train_y, test_x, test_y, classes)


def read(path: Path, shape: tuple[int, ...], kind: np.dtype = BYTES) -> np.ndarray:
    """Reads an IDX file as an array [N, *shape] of that type, a read-only view.

    Raises:
        DataError: if magic number, shape or length are wrong, or it is empty, or if there are
            `copies` with other content.
    """
    found = contents(path)
    for other in copies(path):
        if contents(other) != found:
            raise DataError(
                f"{other}: wanted the same content as {path.name} beside it, found another; remove "
                "one of them"
            )
    dimensions = 1 + len(shape)
    start = 4 * (1 + dimensions)
    magic = bytes((0, 0, CODES[kind], dimensions))
    if len(found) < start or found[:4] != magic:
        raise DataError(
            f"{path}: wanted an IDX file that begins with {magic.hex()} and has a header of "
            f"{start} bytes, found {found[:4].hex() or 'nothing'}, {len(found)} bytes"
        )
    sizes = tuple(int(size) for size in np.frombuffer(found, ">u4", dimensions, offset=4))
    if sizes[1:] != shape or sizes[0] == 0:
        wanted = " x ".join(("N", *map(str, shape)))
        raise DataError(f"{path}: wanted {wanted} values, found {' x '.join(map(str, sizes))}")
    wanted_bytes = start + kind.itemsize * math.prod(sizes)
    if len(found) != wanted_bytes:
        raise DataError(
            f"{path}: wanted {wanted_bytes} bytes for its {sizes[0]} records, found {len(found)}"
        )
    return np.frombuffer(found, kind, offset=start).reshape(sizes)
