"""MNIST: 70,000 handwritten digits, 28x28 grey, 10 classes.

LeCun, Cortes, Burges, http://yann.lecun.com/exdb/mnist; no licence is stated there. The four IDX
files, gzipped or not, in any folder whose path does not name a set with files of the same names.
"""

from pathlib import Path

from fedmpi import config
from fedmpi.data import Dataset, find_idx, load_idx, missing

MEAN, STD = 0.1307, 0.3081
"""Of the training pixels, scaled to 0 .. 1: the values in common use."""

NAMESAKES = ("fashion", "kmnist", "kuzushiji")
"""Words in the paths of other sets whose files have the same names."""


class Config(config.Data):
    """The folder, if not one of the usual places."""


def where(config: Config) -> Path:
    """The folder of the four files.

    Raises:
        DataError: if there is none.
    """
    folder = find_idx(config.root, _fits)
    if folder is None:
        raise missing(
            "MNIST",
            config.root,
            "train-images-idx3-ubyte, with or without .gz (and not below a folder named like one "
            f"of {', '.join(NAMESAKES)}, unless data.root is the very folder of the files)",
            "four files from http://yann.lecun.com/exdb/mnist, kept together in one folder",
        )
    return folder


def _fits(folder: Path) -> bool:
    """Whether no part of the path names another set, followed through links or not."""
    text = f"{folder} {folder.resolve()}".lower()
    return not any(word in text for word in NAMESAKES)


def load(config: Config, seed: int) -> Dataset:
    """The whole set, shape (1, 28, 28); `seed` plays no part.

    Raises:
        DataError: if it is not there, or a file is damaged.
    """
    return load_idx(where(config), MEAN, STD)
