"""Digits: 1,797 handwritten digits, 8x8 grey, 10 classes; comes with scikit-learn.

Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
1998, CC BY 4.0: its test part, as in scikit-learn's wheel, so that it needs no files. Every fifth
sample of a class is a test sample (355 of 1,797); this split is ours, and the same in every run.
"""

import importlib.util
from pathlib import Path

import numpy as np

from fedmpi import config
from fedmpi.data import Dataset, repeated
from fedmpi.data.files import DataError

MEAN, STD = 4.884, 6.017
"""Mean and standard deviation of all pixels, which are 0 .. 16."""


class Config(config.Data):
    """No settings; `root` has no effect."""


def where(config: Config) -> None:
    """Returns None, because the set needs no files of the user's.

    Raises:
        DataError: if scikit-learn is not installed.
    """
    file()


def file() -> Path:
    """Where scikit-learn keeps the set, 64 pixels and a label a line; it is not imported for that.

    Importing it would take each rank as long as torch does.

    Raises:
        DataError: if scikit-learn is not installed, or without its data.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise DataError("no digits; wanted the package scikit-learn, which is not installed")
    path = Path(found.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    if not path.is_file():
        raise DataError(f"no digits; wanted the data of scikit-learn, found no {path}")
    return path


def load(config: Config, seed: int) -> Dataset:
    """Returns the set, samples of shape (1, 8, 8); `seed` has no effect.

    Raises:
        DataError: if scikit-learn is not installed, or without its data.
    """
    lines = np.loadtxt(file(), delimiter=",")
    pixels, labels = lines[:, :-1], lines[:, -1]
    x = ((pixels - MEAN) / STD).astype(np.float32).reshape(-1, 1, 8, 8)
    y = labels.astype(np.int64)
    test = np.zeros(len(y), bool)
    for label in range(10):
        test[np.flatnonzero(y == label)[4::5]] = True
    train_x, test_x = x[~test], x[test]
    again = repeated(train_x, test_x)
    return Dataset(train_x, y[~test], test_x, y[test], 10, repeated=again)
