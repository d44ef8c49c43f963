"""CIFAR-10: 60,000 pictures of animals and vehicles, 32x32 RGB, 10 classes.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009;
https://www.cs.toronto.edu/~kriz/cifar.html, no licence stated, cite. Both official layouts of six
files: `cifar-10-batches-bin` (records of a label byte and 3,072 pixel bytes) and
`cifar-10-batches-py` (pickles of Python 2). A file may hold any number of records, so subsets load.
"""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from fedmpi import config
from fedmpi.data import DataError, Dataset, checked, contents, find, missing, normalise

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of the training pixels, by channel, scaled to 0 .. 1: the values in common use."""

BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
"""The official files; in the binary layout with the suffix `.bin`."""

PIXELS = 3 * 32 * 32


class Config(config.Data):
    """The folder, if not one of the usual places."""


def where(config: Config) -> Path:
    """The folder of the six files, in either layout; the binary one if it has both.

    Raises:
        DataError: if there is none.
    """
    inside = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
    folder = find(config.root, inside, lambda path: _suffix(path) is not None)
    if folder is None:
        raise missing(
            "CIFAR-10",
            config.root,
            "data_batch_1.bin (binary version) or data_batch_1 (Python version)",
            "either version from https://www.cs.toronto.edu/~kriz/cifar.html, unpacked",
        )
    return folder


def _suffix(folder: Path) -> str | None:
    """What the names of the files in a folder end in, or None if they are not there."""
    return next((end for end in (".bin", "") if os.path.isfile(folder / (BATCHES[0] + end))), None)


def load(config: Config, seed: int) -> Dataset:
    """The whole set, shape (3, 32, 32); `seed` plays no part.

    Raises:
        DataError: if it is not there, or a file is missing, damaged, or a pickle of anything else.
    """
    folder = where(config)
    suffix = _suffix(folder)
    read = read_bin if suffix else read_py
    *train, (test_x, test_y) = (read(folder / f"{name}{suffix}") for name in BATCHES)
    train_x, train_y = (np.concatenate(parts) for parts in zip(*train, strict=True))
    return Dataset(normalise(train_x, MEAN, STD), train_y, normalise(test_x, MEAN, STD), test_y, 10)


def read_bin(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A file of the binary layout: pixels uint8 [N, 3, 32, 32] and labels int64 [N].

    Raises:
        DataError: if it is not a whole number of records, or a label is not in 0 .. 9.
    """
    found = contents(path)
    if not found or len(found) % (1 + PIXELS):
        raise DataError(
            f"{path}: wanted whole records of {1 + PIXELS} bytes, found {len(found)} bytes"
        )
    records = np.frombuffer(found, np.uint8).reshape(-1, 1 + PIXELS)
    return records[:, 1:].reshape(-1, 3, 32, 32), checked(records[:, 0], 10, path)


def read_py(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A file of the Python layout: pixels uint8 [N, 3, 32, 32] and labels int64 [N].

    Raises:
        DataError: if it is no pickle, or of anything but a dictionary with the array `data` (uint8
            [N, 3072]) and the list `labels` (N whole numbers in 0 .. 9).
    """
    packed = contents(path)
    try:
        found = _Unpickler(io.BytesIO(packed), encoding="latin1").load()
    except Exception as error:  # a malformed pickle may raise nearly anything
        reason = str(error) if isinstance(error, pickle.UnpicklingError) else repr(error)
        raise DataError(f"{path}: wanted a pickle of an array and a list, found {reason}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: wanted a dictionary, found {type(found).__name__}")
    # Python 3 keeps the names as bytes if it packs again what it once read with encoding="bytes".
    named = {key.decode("latin1") if isinstance(key, bytes) else key: found[key] for key in found}
    if not {"data", "labels"} <= named.keys():
        raise DataError(f"{path}: wanted 'data' and 'labels', found {list(named)}")
    pixels, labels = named["data"], named["labels"]
    pixels = pixels.array() if isinstance(pixels, _Array) else None
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != PIXELS or not len(pixels):
        shape = "something else" if pixels is None else " x ".join(map(str, pixels.shape))
        raise DataError(f"{path}: wanted data of N x {PIXELS} bytes, found {shape}")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{path}: wanted a list of whole numbers as labels, found something else")
    if len(labels) != len(pixels):
        raise DataError(
            f"{path}: wanted a label for each of {len(pixels)} images, found {len(labels)}"
        )
    return pixels.reshape(-1, 3, 32, 32), checked(np.array(labels), 10, path)


class _Kind:
    """Stands in for `numpy.dtype`: remembers its name, such as "u1"."""

    def __init__(self, name: Any = None, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Ignores byte order and flags: bytes have none."""


class _Array:
    """Stands in for `numpy.ndarray`: remembers its state, and makes an array of bytes from it."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> np.ndarray | None:
        """The array, uint8 of any shape, or None if it is not one or its parts disagree."""
        match self.state:
            case (_, tuple(shape), _Kind(name="u1"), bool(fortran), str(text) | bytes(text)):
                # What is a string in Python 2 is text here, one character for each byte.
                try:
                    raw = text.encode("latin1") if isinstance(text, str) else text
                    flat = np.frombuffer(raw, np.uint8)
                    return flat.reshape(shape, order="F" if fortran else "C")
                except (TypeError, ValueError):
                    return None
        return None


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for `_codecs.encode`, by which Python 3 writes bytes in protocol 2."""
    return text.encode("latin1")


class _Unpickler(pickle._Unpickler):
    """Admits the names by which a pickle rebuilds an array, and binds them to the stand-ins.

    A pickle is a program, and may come from anyone. Nothing that it names is ever imported or
    called; not even numpy, whose dtypes and arrays trust the state that they are given. It is the
    unpickler in Python, because the one in C takes gigabytes if a damaged file has a large number
    in the wrong place; 10,000 records take a tenth of a second all the same.
    """

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct"):
                return _Array
            case ("numpy", "ndarray"):
                return _Array
            case ("numpy", "dtype"):
                return _Kind
            case ("_codecs", "encode"):
                return _encode
        raise pickle.UnpicklingError(f"{module}.{name}, which is not part of an array")
