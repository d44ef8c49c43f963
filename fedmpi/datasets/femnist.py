"""FEMNIST: handwritten digits and letters, 28x28 grey, 62 classes; natural clients: writers.

S. Caldas et al., *LEAF: A Benchmark for Federated Settings*, arXiv 1812.01097,
https://github.com/TalwalkarLab/leaf, from NIST Special Database 19, a work of the US government.
Reads the output of LEAF's `preprocess.sh`: `train/*.json` and `test/*.json`, in a folder whose path
contains femnist. Labels 0 to 9 are digits, 10 to 35 capitals, 36 to 61 small letters. Pixels are
those of LEAF: from 0, which is ink, to 1, which is paper.
"""

from pathlib import Path
from typing import Any

import numpy as np

from fedmpi import config
from fedmpi.data import Dataset, cache
from fedmpi.data.files import find, missing
from fedmpi.data.layouts import leaf

CLASSES, SIDE = 62, 28


class Config(config.Data):
    """Folder of the files; by default one of the usual places."""


def where(config: Config) -> Path:
    """Returns the folder with `train` and `test`.

    Raises:
        DataError: if there is none.
    """
    inside = ("", "data", "data/femnist/data")
    folder = find(config.root, inside, lambda path: leaf.holds(path, "femnist", config.root))
    if folder is None:
        raise missing(
            "FEMNIST",
            config.root,
            "folders train and test with json files (in a path that says 'femnist', unless "
            "data.root is the very folder of both)",
            "./preprocess.sh -s niid --sf 1.0 -k 0 -t sample in data/femnist of "
            "https://github.com/TalwalkarLab/leaf",
        )
    return folder


def load(config: Config, seed: int) -> Dataset:
    """Returns the set, samples of shape (1, 28, 28), with writers; `seed` has no effect.

    Raises:
        DataError: if it is missing, or a file is damaged.
    """
    train, test = leaf.paths(where(config))

    def decode() -> Dataset:
        return leaf.dataset(train, test, take, CLASSES)

    return cache.decoded(config, [*train, *test], {}, decode)


def take(x: list[Any], y: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a writer's pixels, float32 [N, 1, 28, 28], and labels.

    Raises:
        ValueError: if they are malformed.
    """
    try:
        pixels = np.array(x)
    except ValueError:  # lists of different lengths
        pixels = np.empty(0)
    if pixels.dtype.kind not in "fiu" or pixels.shape != (len(x), SIDE * SIDE):
        raise ValueError(f"wanted {SIDE * SIDE} numbers a sample, found something else")
    wrong = ~((pixels >= 0) & (pixels <= 1)).all(1)
    if wrong.any():
        first = int(wrong.argmax())
        raise ValueError(
            f"wanted pixels from 0 to 1, found {pixels[first].min()} to {pixels[first].max()} in "
            f"sample {first}"
        )
    for sample, label in enumerate(y):
        if type(label) is not int or not 0 <= label < CLASSES:
            raise ValueError(
                f"wanted labels 0 to {CLASSES - 1}, found {label!r} in sample {sample}"
            )
    return pixels.astype(np.float32).reshape(-1, 1, SIDE, SIDE), np.array(y, np.int64)
