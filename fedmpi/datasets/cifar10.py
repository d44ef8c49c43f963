"""CIFAR-10: 60,000 images of animals and vehicles, 32x32 RGB, 10 classes.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009;
https://www.cs.toronto.edu/~kriz/cifar.html, no licence stated, cite. Reads both official formats of
six files: `cifar-10-batches-bin` (records of a label byte and 3,072 pixel bytes) and
`cifar-10-batches-py` (pickles of Python 2). A file may hold any number of records, so that subsets
can be read.
"""

from pathlib import Path

from fedmpi import config
from fedmpi.data import Dataset, cache
from fedmpi.data.files import Source, find, missing
from fedmpi.data.layouts import cifar

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Mean and standard deviation of the training pixels, by channel, scaled to 0 .. 1.

They are the values in common use.
"""

BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
"""Names of the official files; in the binary format with the suffix `.bin`."""

LABELS = {"labels": 10}
"""Kinds of labels in a record, with the number of classes."""

MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}

SOURCES = (
    Source(
        # The target to which the official address redirects, and that address.
        (
            "https://cave.cs.toronto.edu/kriz/cifar-10-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        ),
        "cifar-10-batches-py",
        "c58f30108f718f92721af3b95e74349a",
    ),
)


class Config(config.Images):
    """Folder of the files; by default one of the usual places."""


def where(config: Config) -> Path:
    """Returns the folder of the six files, in either format; the binary one is preferred.

    Raises:
        DataError: if there is none.
    """
    inside = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
    folder = find(config.root, inside, lambda path: cifar.suffix(path, BATCHES[0]) is not None)
    if folder is None:
        raise missing(
            "CIFAR-10",
            config.root,
            "data_batch_1.bin (binary version) or data_batch_1 (Python version)",
            "fedmpi data fetch cifar10, or "
            "either version from https://www.cs.toronto.edu/~kriz/cifar.html, unpacked",
            ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"),
        )
    return folder


def load(config: Config, seed: int) -> Dataset:
    """Returns the set, samples of shape (3, 32, 32); `seed` has no effect.

    Raises:
        DataError: if it is missing, or a file is missing, damaged, or another pickle.
    """
    paths = cifar.paths(where(config), BATCHES)
    moments = config.moments(MEAN, STD)
    return cache.decoded(
        config, paths, MD5, lambda: cifar.dataset(paths, "labels", LABELS, *moments)
    )
