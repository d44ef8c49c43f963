"""Shakespeare: 80 characters of a role and which one is next, 80 classes; natural clients: roles.

S. Caldas et al., *LEAF: A Benchmark for Federated Settings*, arXiv 1812.01097,
https://github.com/TalwalkarLab/leaf, after McMahan et al. (AISTATS 2017); the text is Project
Gutenberg's, in the public domain in the USA. Samples are symbols 0 .. 79, so a model of symbols is
wanted. Two layouts: what LEAF's `preprocess.sh` leaves, `train/*.json` and `test/*.json`, in a
folder whose path says shakespeare; or else the roles' text, one `.txt` for each, in a folder named
by_play_and_character, as LEAF makes it on the way.

Of a role's text, a break of the line is a space and several spaces are one, as in LEAF; each window
of 81 characters is a sample, the first four fifths of them train, and those test that have no
character in common with these. A role with too little text for both is left out.
Differs from the code: LEAF's first test window begins with the last training label.

A character that is not among the 80 counts as the last of them, `}`: LEAF looks it up with `find`,
and the -1 that it gets picks the last one of a label's 80 places.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fedmpi import config
from fedmpi.data import Dataset, cache
from fedmpi.data.files import DataError, contents, find, missing, places
from fedmpi.data.layouts import leaf

LETTERS = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
"""LEAF's vocabulary, in its order."""
LENGTH = 80
"""Characters of a sample."""
SPARE = LENGTH - 1
"""LEAF leaves so many of a role's windows out between training and testing, but in `num_samples` of
the test files they count."""
ROLES = "by_play_and_character"
NUMBERS = np.full(128, len(LETTERS) - 1, np.uint8)
"""Of each character's code; the last code stands for all above it."""
NUMBERS[[ord(letter) for letter in LETTERS]] = np.arange(len(LETTERS))


class Config(config.Data):
    """The folder, if not one of the usual places."""


def where(config: Config) -> Path:
    """The folder with `train` and `test`, or that with the roles; the first, if there are both.

    Raises:
        DataError: if there is neither.
    """
    homes = ("", "data/", "data/shakespeare/data/")
    roles = (f"{home}{above}{ROLES}" for home in homes for above in ("", "raw_data/"))

    def holds(folder: Path) -> bool:
        chosen = config.root is not None and folder == places(config.root)[0]
        is_roles = (folder.name == ROLES or chosen) and any(folder.glob("*.txt"))
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
    """The whole set, shape (80,), with roles; `seed` plays no part.

    Raises:
        DataError: if it is not there, or a file is damaged.
    """
    folder = where(config)
    train, test = leaf.paths(folder)
    roles = [] if train else sorted(folder.glob("*.txt"))

    def decode() -> Dataset:
        return roles_of(roles) if roles else leaf.dataset(train, test, take, len(LETTERS), SPARE)

    return cache.decoded(config, [*train, *test, *roles], {}, decode)


def numbers(text: str) -> np.ndarray:
    """The characters as symbols, uint8 [their number]."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return NUMBERS[np.minimum(codes, len(NUMBERS) - 1)]


def take(x: list[Any], y: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """A role's samples, uint8 [N, 80], and labels.

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
    """The set in text files, one for each role; its owners are the roles in the files' order.

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
    """A role's text, as LEAF has it."""
    try:
        text = contents(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: wanted text in UTF-8, found: {error}") from None
    return re.sub(" {2,}", " ", re.sub("\r\n?|\n", " ", text))


def split(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Windows of 81 characters, uint8 [N, 81], for training and testing; none if it is short."""
    symbols = numbers(text)
    count = len(symbols) - LENGTH
    train = 4 * count // 5
    if train + LENGTH >= count:
        none = np.empty((0, LENGTH + 1), np.uint8)
        return none, none
    windows = sliding_window_view(symbols, LENGTH + 1)
    return windows[:train], windows[train + LENGTH :]
