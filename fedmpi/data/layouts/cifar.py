"""CIFAR: records of labels and 32x32 RGB pixels, in the official binary and Python formats."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedmpi.data import Dataset, checked, normalise
from fedmpi.data.files import DataError, contents
from fedmpi.data.layouts import pickles

PIXELS = 3 * 32 * 32
"""Bytes of an image: its red, green and blue planes, row by row."""


def suffix(folder: Path, name: str) -> str | None:
    """Returns `.bin` if the folder has the file in the binary format, "" in the other, or None.

    The binary format is preferred.
    """
    return next((end for end in (".bin", "") if os.path.isfile(folder / (name + end))), None)


def paths(folder: Path, names: Sequence[str]) -> list[Path]:
    """Returns the paths of these files, in the format in which the folder has the first one."""
    end = suffix(folder, names[0]) or ""
    return [folder / (name + end) for name in names]


def dataset(
    paths: Sequence[Path],
    key: str,
    labels: dict[str, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> Dataset:
    """Returns the set in some files, the last of which is the test set (see `read`).

    Raises:
        DataError: if a file is missing, damaged, or something else.
    """
    *train, (test_x, test_y) = (read(path, key, labels) for path in paths)
    train_x, train_y = (np.concatenate(parts) for parts in zip(*train, strict=True))
    train_x, test_x = (normalise(x, mean, std) for x in (train_x, test_x))
    return Dataset(train_x, train_y, test_x, test_y, labels[key])


def groups(paths: Sequence[Path], inner: str, outer: str, labels: dict[str, int]) -> np.ndarray:
    """Returns the group of each class, int64 [classes]; 0 for a class without a sample.

    Args:
        paths: the files.
        inner: name of the labels that are classes.
        outer: name of the labels that are groups.
        labels: see `read`.

    Raises:
        DataError: if a class is in two groups, or a file is none.
    """
    found = np.full(labels[inner], -1)
    for path in paths:
        classes, kinds = (read(path, key, labels)[1] for key in (inner, outer))
        seen = np.full((labels[inner], 2), (labels[outer], -1))
        np.minimum.at(seen[:, 0], classes, kinds)
        np.maximum.at(seen[:, 1], classes, kinds)
        known = np.where(found < 0, seen[:, 1], found)
        apart = np.flatnonzero((seen[:, 1] >= 0) & ((seen != known[:, np.newaxis]).any(1)))
        if apart.size:
            raise DataError(f"{path}: wanted one group for each class, found more of {apart[0]}")
        found = known
    return np.maximum(found, 0)


def read(path: Path, key: str, labels: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Reads a file in either format: pixels uint8 [N, 3, 32, 32] and labels int64 [N].

    Args:
        path: the file; in the binary format its name ends in `.bin`.
        key: name of the labels to read.
        labels: number of classes for each kind of labels in a record, in their order in the binary
            format.

    Raises:
        DataError: if the file is missing, damaged, or something else.
    """
    if path.suffix == ".bin":
        return read_bin(path, list(labels).index(key), len(labels), labels[key])
    return read_py(path, key, labels[key])


def read_bin(path: Path, which: int, count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads a file in the binary format: pixels uint8 [N, 3, 32, 32] and labels int64 [N].

    Args:
        path: the file.
        which: index of the label to read, among those in a record.
        count: number of label bytes at the beginning of a record.
        classes: number of classes; labels are below that.

    Raises:
        DataError: if it is not a whole number of records, or a label is out of range.
    """
    found = contents(path)
    size = count + PIXELS
    if not found or len(found) % size:
        raise DataError(f"{path}: wanted whole records of {size} bytes, found {len(found)} bytes")
    records = np.frombuffer(found, np.uint8).reshape(-1, size)
    return records[:, count:].reshape(-1, 3, 32, 32), checked(records[:, which], classes, path)


def read_py(path: Path, key: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads a file in the Python format: pixels uint8 [N, 3, 32, 32] and labels int64 [N].

    Raises:
        DataError: if it is not a pickle of a dictionary with the array `data` (uint8 [N, 3072]) and
            the list `key` (N whole numbers, each below `classes`).
    """
    named = pickles.read(path, "data", key)
    pixels, labels = named["data"], named[key]
    pixels = pixels.array() if isinstance(pixels, pickles.Array) else None
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != PIXELS or not len(pixels):
        shape = "something else" if pixels is None else " x ".join(map(str, pixels.shape))
        raise DataError(f"{path}: wanted data of N x {PIXELS} bytes, found {shape}")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{path}: wanted a list of whole numbers as {key}, found something else")
    if len(labels) != len(pixels):
        raise DataError(
            f"{path}: wanted a label for each of {len(pixels)} images, found {len(labels)}"
        )
    return pixels.reshape(-1, 3, 32, 32), checked(np.array(labels), classes, path)
