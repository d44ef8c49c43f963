"""Shakespeare: the next character after 80 of a role, 80 classes; natural clients: roles.

S. Caldas et al., *LEAF: A Benchmark for Federated Settings*, arXiv 1812.01097,
https://github.com/TalwalkarLab/leaf, after McMahan et al. (AISTATS 2017); the text is Project
Gutenberg's, in the public domain in the USA. Samples are symbols 0 .. 79, which need a model of
symbols. Reads two layouts: the output of LEAF's `preprocess.sh`, `train/*.json` and `test/*.json`,
in a folder whose path contains shakespeare; or else the roles' text, one `.txt` for each, in a
folder named by_play_and_character, an intermediate result of LEAF.

In a role's text, line breaks and repeated spaces become one space, as in LEAF. Each window of 81
characters is a sample. The first four fifths of the windows are training samples; test samples are
those of the others that share no character with these. A role with too little text for both is left
out.
Differs from the code: LEAF's first test window begins with the last training label.

A character that is not among the 80 counts as the last of them, `}`: LEAF looks it up with `find`,
whose result -1 selects the last one of a label's 80 places.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fedmpi import config
from fedmpi.data import Dataset, cache
from fedmpi.data.files import DataError, all_of, contents, find, missing, places
from fedmpi.data.layouts import leaf

LETTERS = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
"""LEAF's vocabulary, in its order."""
LENGTH = 80
"""Characters of a sample."""
SPARE = LENGTH - 1
"""Windows of a role that LEAF omits between training and testing.

They are counted in `num_samples` of the test files nevertheless.
"""
ROLES = "by_play_and_character"
NUMBERS = np.full(128, len(LETTERS) - 1, np.uint8)
"""Symbol of each character code; the last code stands for all above it."""
NUMBERS[[ord(letter) for letter in LETTERS]] = np.arange(len(LETTERS))


class Config(config.Data):
    """Folder of the files; by default one of the usual places."""


def where(config: Config) -> Path:
    """Returns the folder with `train` and `test`, which is preferred, or that with the roles.

    Raises:
        DataError: if there is neither.
    """
    homes = ("", "data/", "data/shakespeare/data/")
    roles = (f"{home}{above}{ROLES}" for home in homes for above in ("", "raw_data/"))

    def holds(folder: Path) -> bool:
        chosen = config.root is not None and folder == places(config.root)[0]
        is_roles = (folder.name == ROLES or chosen) and bool(all_of(folder, "*.txt"))
        return is_roles or leaf.holds(folder, "shakespeare", config.root)

    folder = find(config.root, (*homes, *roles), holds)
    if folder is None:
        raise missing(
            "Shakespeare",
            config.root,
            "folders train and test with json files (in a path that says 'shakespeare', unless "
            f"data.root is the very folder of both), or {ROLES} with a text file for each role",
            "./preprocess.sh -s niid --sf 1.0 -k 0 -t sample --tf 0.8 in data/shakespeare of "
            "https://github.com/TalwalkarLab/leaf",
        )
    return folder


def load(config: Config, seed: int) -> Dataset:
    """Returns the set, samples of shape (80,), with roles; `seed` has no effect.

    Raises:
        DataError: if it is missing, or a file is damaged.
    """
    folder = where(config)
    train, test = leaf.paths(folder)
    roles = [] if train else all_of(folder, "*.txt")

    def decode() -> Dataset:
        return roles_of(roles) if roles else leaf.dataset(train, test, take, len(LETTERS), SPARE)

    return cache.decoded(config, [*train, *test, *roles], {}, decode)


def numbers(text: str) -> np.ndarray:
    """Maps characters to symbols, uint8 [number of characters]."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return NUMBERS[np.minimum(codes, len(NUMBERS) - 1)]


def take(x: list[Any], y: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a role's samples, uint8 [N, 80], and labels.

    Raises:
        ValueError: if they are no strings of that length.
    """
    for texts, length in ((x, LENGTH), (y, 1)):
        for sample, text in enumerate(texts):
            if not isinstance(text, str) or len(text) != length:
                found = len(text) if isinstance(text, str) else repr(text)
                raise ValueError(f"wanted {length} characters, found {found} in sample {sample}")
    return numbers("".join(x)).reshape(-1, LENGTH), numbers("".join(y)).astype(np.int64)


def roles_of(paths: Sequence[Path]) -> Dataset:
    """Returns the set in text files, one for each role; its owners are the roles in this order.

    Raises:
        DataError: if a file is no text, or if all are too short.
    """
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    owners: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for role, path in enumerate(paths):
        for part, whose, windows in zip(parts, owners, split(_text(path)), strict=True):
            part.append(windows)
            whose.append(np.full(len(windows), role, np.int64))
    train, test = (np.concatenate(part) for part in parts)
    if not len(train):
        raise DataError(
            f"{paths[0]}: wanted a role with more than {6 * LENGTH} characters, found none in the "
            f"{len(paths)} files of the folder"
        )
    train_owners, test_owners = (np.concatenate(whose) for whose in owners)
    return Dataset(
        train[:, :LENGTH],
        train[:, LENGTH].astype(np.int64),
        test[:, :LENGTH],
        test[:, LENGTH].astype(np.int64),
        len(LETTERS),
        train_owners,
        test_owners,
    )


def _text(path: Path) -> str:
    """Returns a role's text, with white space as in LEAF."""
    try:
        text = contents(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: wanted text in UTF-8, found: {error}") from None
    return re.sub(" {2,}", " ", re.sub("\r\n?|\n", " ", text))


def split(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns windows of 81 characters, uint8 [N, 81], for training and testing.

    Both are empty if the text is too short.
    """
    symbols = numbers(text)
    count = len(symbols) - LENGTH
    train = 4 * count // 5
    if train + LENGTH >= count:
        none = np.empty((0, LENGTH + 1), np.uint8)
        return none, none
    windows = sliding_window_view(symbols, LENGTH + 1)
    return windows[:train], windows[train + LENGTH :]
