"""CIFAR-100: 60,000 images of things and living beings, 32x32 RGB, 100 classes in 20 groups.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009;
https://www.cs.toronto.edu/~kriz/cifar.html, no licence stated, cite. Reads both official formats of
two files: `cifar-100-binary` (records of a byte for the group, a byte for the class and 3,072 pixel
bytes) and `cifar-100-python` (pickles of Python 2). A file may hold any number of records.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from fedmpi import config
from fedmpi.data import Dataset, cache
from fedmpi.data.files import Source, find, missing, places
from fedmpi.data.layouts import cifar

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
"""Mean and standard deviation of the training pixels, by channel, scaled to 0 .. 1.

They are the values in common use.
"""

FILES = ("train", "test")
"""Names of the official files; in the binary format with the suffix `.bin`."""
FOLDERS = ("cifar-100-binary", "cifar-100-python")
"""Names of the folders in the official archives."""
BESIDE = ("meta", "fine_label_names.txt")
"""Another file in the folder, which identifies it if it has another name."""

LABELS = {"coarse_labels": 20, "fine_labels": 100}
"""Kinds of labels in a record, with the numbers of classes."""

MD5 = {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}

SOURCES = (
    Source(
        # The target to which the official address redirects, and that address.
        (
            "https://cave.cs.toronto.edu/kriz/cifar-100-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        ),
        "cifar-100-python",
        "eb9058c3a382ffc7106e4002c42a8d85",
    ),
)


class Config(config.Images):
    """Kind of labels, and folder of the files; by default one of the usual places."""

    labels: Literal["fine", "coarse"] = "fine"
    """fine: the 100 classes. coarse: their 20 superclasses."""


def where(config: Config) -> Path:
    """Returns the folder of the two files, in either format; the binary one is preferred.

    Their names are common, so that the folder must have its official name, or the file with the
    names of the classes. Only a `root` that holds the files itself needs neither, because the user
    chose it.

    Raises:
        DataError: if there is none.
    """

    def holds(folder: Path) -> bool:
        if cifar.suffix(folder, FILES[0]) is None:
            return False
        chosen = config.root is not None and folder == places(config.root)[0]
        known = any(os.path.isfile(folder / name) for name in BESIDE)
        return chosen or known or folder.name in FOLDERS

    folder = find(config.root, ("", *FOLDERS), holds)
    if folder is None:
        raise missing(
            "CIFAR-100",
            config.root,
            "train.bin (binary version) or train (Python version) in a folder cifar-100-binary or "
            "cifar-100-python",
            "fedmpi data fetch cifar100, or "
            "either version from https://www.cs.toronto.edu/~kriz/cifar.html, unpacked",
            ("cifar-100-binary.tar.gz", "cifar-100-python.tar.gz"),
        )
    return folder


def load(config: Config, seed: int) -> Dataset:
    """Returns the set, samples of shape (3, 32, 32); `seed` has no effect.

    The groups of the fine classes are their superclasses.

    Raises:
        DataError: if it is missing, or a file is missing, damaged, or another pickle.
    """
    paths, key = cifar.paths(where(config), FILES), f"{config.labels}_labels"

    def decode() -> Dataset:
        found = cifar.dataset(paths, key, LABELS, *config.moments(MEAN, STD))
        if config.labels == "coarse":
            return found
        return replace(found, groups=cifar.groups(paths, key, "coarse_labels", LABELS))

    return cache.decoded(config, paths, MD5, decode)
