"""Data sets: one module each, with a `Config` and

    load(config, seed) -> Dataset
    where(config) -> Path | None

`where` is the folder that `load` reads, found without reading it, or None if the set needs no
files. Both raise `DataError` if there is no such folder; `load` also if a file in it is damaged.
`seed` is the run's; only sets that are made up depend on it, so that results compare. A module's
docstring is its description in `fedmpi list data`. Nothing is ever downloaded at run time.

Files are searched for in `places`: in each of these folders, and in their folders to two levels
below. The functions here are what several sets need: `find` and `missing` for the search,
`contents`, `checked` and `normalise` for the files, and `find_idx` and `load_idx` for sets in
MNIST's layout.
"""

import gzip
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedmpi.errors import BadInput

USUAL = (
    "data",
    "../data",
    "../shared/data",
    "~/data",
    "~/.cache/fedmpi",
    "/usr/share/datasets",
)
"""Where data sets are searched for when the settings name no folder."""

DEPTH = 2
"""Levels of folders that are searched below each of the places."""


class DataError(BadInput):
    """Files that are missing or not what they should be; says where was looked, and the mend."""


@dataclass(frozen=True)
class Dataset:
    """Samples ready for training.

    Attributes:
        train_x: float32 [N, *shape], normalised; or, of text, uint8 [N, steps]: symbols of the same
            vocabulary as the labels.
        train_y: int64 [N], labels 0 .. classes - 1.
        test_x: [M, *shape], likewise.
        test_y: int64 [M].
        classes: how many labels there are.
    """

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, channels first."""
        return self.train_x.shape[1:]

    @property
    def kind(self) -> str:
        """What samples are made of: numbers or symbols."""
        return "symbols" if self.train_x.dtype == np.uint8 else "numbers"


def places(root: str | None) -> list[Path]:
    """The folders to search, in order: `root` alone, or else `$FEDMPI_DATA` and the usual ones."""
    named = os.environ.get("FEDMPI_DATA")
    texts = (root,) if root is not None else (*([named] if named else []), *USUAL)
    return [Path(os.path.abspath(os.path.expanduser(text))) for text in texts]


def find(root: str | None, inside: Sequence[str], holds: Callable[[Path], bool]) -> Path | None:
    """The first folder that `holds` a data set, or None.

    Args:
        root: the setting, see `places`.
        inside: paths below a searched folder that the set's layout may add, such as "raw"; "" is
            the folder itself.
        holds: whether a folder is the one.
    """
    for place in places(root):
        for folder in _folders(place, DEPTH):
            for path in inside:
                if holds(folder / path):
                    return folder / path
    return None


def _folders(top: Path, depth: int) -> Iterator[Path]:
    """A folder and those below it, nearer ones first, in the order of their names."""
    level = [top]
    for _ in range(depth + 1):
        yield from level
        level = [below for folder in level for below in _inner(folder)]


def _inner(folder: Path) -> list[Path]:
    """The folders in a folder that can be read, or none."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if _is_folder(entry))
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # `entry.is_dir()` alone would raise for a link that leads nowhere one may go.
    linked = entry.is_symlink() and os.path.isdir(entry.path)
    return linked or entry.is_dir(follow_symlinks=False)


def missing(title: str, root: str | None, wanted: str, source: str) -> DataError:
    """The error for a set that `find` did not find: what was wanted, where, and how to get it."""
    looked = "".join(
        f"\n  {place}" + ("" if os.path.isdir(place) else " (no such folder)")
        for place in places(root)
    )
    return DataError(
        f"no {title}; wanted {wanted}, looked in these folders and {DEPTH} levels below:{looked}\n"
        f"To get it: {source}; then set data.root or $FEDMPI_DATA to the folder."
    )


def contents(path: Path) -> bytes:
    """The bytes of a file, unpacked if its name ends in `.gz`.

    Raises:
        DataError: if it cannot be read, is not gzip, or is cut short.
    """
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            return file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: wanted a whole gzip file, found: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def checked(labels: np.ndarray, classes: int, path: Path) -> np.ndarray:
    """Labels as int64.

    Raises:
        DataError: naming the file, if one of them is not in 0 .. classes - 1.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise DataError(
            f"{path}: wanted labels 0 to {classes - 1}, found {labels[wrong[0]]} "
            f"in record {wrong[0]}"
        )
    return labels.astype(np.int64)


def normalise(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """uint8 [N, channels, height, width] as float32: (pixel / 255 - mean) / std by channel.

    It works in place after one conversion, so that a set is never held in float64.
    """
    scaled = pixels.astype(np.float32)
    by_channel = (-1, 1, 1)
    scaled -= np.reshape(255 * np.asarray(mean), by_channel).astype(np.float32)
    scaled /= np.reshape(255 * np.asarray(std), by_channel).astype(np.float32)
    return scaled


IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
"""MNIST's files, each as it is or with `.gz`; its successors have files of the same names."""


def find_idx(root: str | None, fits: Callable[[Path], bool]) -> Path | None:
    """The folder with MNIST's files, or those of a successor.

    Because the files have the same names, the path must tell which set it is. Only a `root` that
    holds the files itself needs no such name: there it is the user who says so.

    Args:
        root: the setting, see `places`.
        fits: whether a folder that holds such files may be the set's.
    """

    def holds(folder: Path) -> bool:
        if _either(folder, IDX_FILES[0]) is None:
            return False
        chosen = root is not None and folder == places(root)[0]
        return chosen or fits(folder)

    return find(root, ("", "raw"), holds)


def load_idx(folder: Path, mean: float, std: float, classes: int = 10) -> Dataset:
    """A set of 28x28 images in MNIST's layout.

    Raises:
        DataError: if a file is missing or damaged, or images and labels are not equally many.
    """

    def part(images: str, labels: str) -> tuple[np.ndarray, np.ndarray]:
        x_path, y_path = _one(folder, images), _one(folder, labels)
        x, y = read_idx(x_path, (28, 28)), read_idx(y_path, ())
        if len(x) != len(y):
            raise DataError(f"{y_path}: wanted a label for each of {len(x)} images, found {len(y)}")
        return normalise(x[:, np.newaxis], [mean], [std]), checked(y, classes, y_path)

    train_x, train_y = part(*IDX_FILES[:2])
    test_x, test_y = part(*IDX_FILES[2:])
    return Dataset(train_x, train_y, test_x, test_y, classes)


def _either(folder: Path, name: str) -> Path | None:
    """The file of that name, or the one packed with gzip, or None."""
    # Unlike the method of Path, `isfile` is false in a folder that one may not enter.
    return next((p for p in (folder / name, folder / f"{name}.gz") if os.path.isfile(p)), None)


def _one(folder: Path, name: str) -> Path:
    path = _either(folder, name)
    if path is None:
        raise DataError(f"{folder}: wanted a file {name} or {name}.gz, found neither")
    return path


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An IDX file of bytes as uint8 [N, *shape], a view that cannot be written to.

    The layout is that of http://yann.lecun.com/exdb/mnist: two zero bytes, the type of the values
    (8 for bytes), the number of dimensions, each dimension as a big-endian int32, the values.

    Raises:
        DataError: if magic number, shape or length are not as they should be, or it is empty.
    """
    found = contents(path)
    dimensions = 1 + len(shape)
    start = 4 * (1 + dimensions)
    magic = 0x800 + dimensions
    if len(found) < start or int.from_bytes(found[:4], "big") != magic:
        raise DataError(
            f"{path}: wanted an IDX file that begins with {magic.to_bytes(4, 'big').hex()} and has "
            f"a header of {start} bytes, found {found[:4].hex() or 'nothing'}, {len(found)} bytes"
        )
    sizes = tuple(int(size) for size in np.frombuffer(found, ">u4", dimensions, offset=4))
    if sizes[1:] != shape or sizes[0] == 0:
        wanted = " x ".join(("N", *map(str, shape)))
        raise DataError(f"{path}: wanted {wanted} values, found {' x '.join(map(str, sizes))}")
    if len(found) != start + math.prod(sizes):
        raise DataError(
            f"{path}: wanted {start + math.prod(sizes)} bytes for its {sizes[0]} records, "
            f"found {len(found)}"
        )
    return np.frombuffer(found, np.uint8, offset=start).reshape(sizes)
