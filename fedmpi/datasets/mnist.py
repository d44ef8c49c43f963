"""MNIST: 70,000 handwritten digits, 28x28 grey, 10 classes; natural clients: writers.

LeCun, Cortes, Burges, http://yann.lecun.com/exdb/mnist; no licence is stated there. Reads the four
IDX files, gzipped or not, under their official names or Kaggle's, in any folder whose path does not
name another set with files of the same names.

The writers are known from QMNIST: Yadav, Bottou, "Cold Case: The Lost MNIST Digits", NeurIPS 2019,
arXiv 1905.10498, https://github.com/facebookresearch/qmnist, BSD-style licence. Its two label files
(539 writers of the training digits, 297 others of the test digits) lie beside MNIST's, in the same
folder or as MNIST/raw and QMNIST/raw. Only partition.name=natural needs them.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from fedmpi import config
from fedmpi.data import Dataset, cache
from fedmpi.data.files import DataError, Source, either, missing, one
from fedmpi.data.layouts import idx

MEAN, STD = (0.1307,), (0.3081,)
"""Mean and standard deviation of the training pixels, scaled to 0 .. 1, as in common use."""

NAMESAKES = ("fashion", "kmnist", "kuzushiji")
"""Words in the paths of other sets whose files have the same names."""

OWNERS = ("qmnist-train-labels-idx2-int", "qmnist-test-labels-idx2-int")
"""QMNIST's files, each with or without `.gz`."""
LABEL, WRITER, COLUMNS = 0, 2, 8
"""Columns in these files of the digit and the writer, and the number of columns."""

MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    "qmnist-train-labels-idx2-int.gz": "0058f8dd561b90ffdd0f734c6a30e5e4",
    "qmnist-test-labels-idx2-int.gz": "5b5b05890a5e13444e108efe57b788aa",
}

PACKED = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
"""MD5 digests of the compressed files."""
SOURCES = (
    *(
        Source(
            # The official address often lacks the files; the other one is torchvision's.
            (
                f"http://yann.lecun.com/exdb/mnist/{name}",
                f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}",
            ),
            f"mnist/{name}",
            digest,
        )
        for name, digest in PACKED.items()
    ),
    *(
        Source(
            (f"https://raw.githubusercontent.com/facebookresearch/qmnist/master/{name}.gz",),
            f"mnist/{name}.gz",
            MD5[f"{name}.gz"],
        )
        for name in OWNERS
    ),
)


class Config(config.Images):
    """Folder of the files; by default one of the usual places."""


def where(config: Config) -> Path:
    """Returns the folder of the four files.

    Raises:
        DataError: if there is none.
    """
    folder = idx.search(config.root, _fits)
    if folder is None:
        raise missing(
            "MNIST",
            config.root,
            "train-images-idx3-ubyte or train-images.idx3-ubyte, with or without .gz "
            "(and not below a folder named like one "
            f"of {', '.join(NAMESAKES)}, unless data.root is the very folder of the files)",
            "fedmpi data fetch mnist, or "
            "four files from http://yann.lecun.com/exdb/mnist, kept together in one folder",
        )
    return folder


def _fits(folder: Path) -> bool:
    """Whether no part of the path names another set, with or without following links."""
    text = f"{folder} {folder.resolve()}".lower()
    return not any(word in text for word in NAMESAKES)


def load(config: Config, seed: int) -> Dataset:
    """Returns the set, samples of shape (1, 28, 28), with writers if known; `seed` has no effect.

    Raises:
        DataError: if it is missing, or a file is damaged.
    """
    folder = where(config)
    paths, owners = idx.paths(folder), _owners(folder)
    sources = [*paths, *owners, *(copy for path in (*paths, *owners) for copy in idx.copies(path))]

    def decode() -> Dataset:
        found = idx.images(paths, *config.moments(MEAN, STD))
        if not owners:
            return found
        train, test = writers(owners[0], found.train_y), writers(owners[1], found.test_y)
        return replace(found, train_owners=train, test_owners=test)

    return cache.decoded(config, sources, idx.known(MD5), decode)


def _owners(folder: Path) -> list[Path]:
    """Returns QMNIST's two files, if they are in MNIST's folder or beside it as in torchvision."""
    for above in (folder, folder.parent, folder.parent.parent):
        for below in ("", "raw", "QMNIST", "QMNIST/raw"):
            if any(either(above / below, name) for name in OWNERS):
                return [one(above / below, name) for name in OWNERS]
    return []


def writers(path: Path, labels: np.ndarray) -> np.ndarray:
    """Reads the writer of each of MNIST's digits, int64 [N], from a file of QMNIST.

    Its rows are in MNIST's order; the test file has 50,000 more.

    Raises:
        DataError: if the file is damaged, or its digits are not MNIST's.
    """
    rows = idx.read(path, (COLUMNS,), idx.INTEGERS)
    if len(rows) < len(labels):
        raise DataError(
            f"{path}: wanted a writer for each of {len(labels)} digits, found {len(rows)} rows"
        )
    differ = np.flatnonzero(rows[: len(labels), LABEL] != labels)
    if differ.size:
        first = differ[0]
        raise DataError(
            f"{path}: wanted the digits of MNIST, found {rows[first, LABEL]} for "
            f"{labels[first]} in row {first}"
        )
    return rows[: len(labels), WRITER].astype(np.int64)
