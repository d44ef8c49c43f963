"""LEAF: json files of users with their samples, in a folder `train` and a folder `test`.

S. Caldas et al., *LEAF: A Benchmark for Federated Settings*, arXiv 1812.01097,
https://github.com/TalwalkarLab/leaf. A file is an object with the keys `users`, `num_samples` (of
each user) and `user_data`, which has the lists `x` and `y` for each user. The users of a folder are
those of all its files.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedmpi.data import Dataset
from fedmpi.data.files import DataError, all_of, contents, places

SETS = ("celeba", "femnist", "reddit", "sent140", "shakespeare", "synthetic")
"""LEAF's data sets, whose files have the same names."""
KEYS = ("users", "num_samples", "user_data")

Take = Callable[[list[Any], list[Any]], tuple[np.ndarray, np.ndarray]]
"""Decodes a user's lists `x` and `y` to samples [N, *shape] and labels int64 [N].

It raises a `ValueError` that says what was wanted and found.
"""


class Samples(NamedTuple):
    """Samples of all files in one folder.

    Attributes:
        users: names of those who have samples, in the order of the files.
        counts: number of samples of each user.
        x: samples [N, *shape], user by user.
        y: their labels, int64 [N].
    """

    users: list[str]
    counts: list[int]
    x: np.ndarray
    y: np.ndarray


def holds(folder: Path, name: str, root: str | None) -> bool:
    """Whether a folder is that of LEAF's set of this name, with `train` and `test` in it.

    The last name of a set in its path must be this one, because the files do not tell. Only a
    `root` that is the folder itself needs no such name.
    """
    if not all(paths(folder)):
        return False
    if root is not None and folder == places(root)[0]:
        return True
    for path in (folder, folder.resolve()):
        named = [known for part in path.parts for known in SETS if known in part.lower()]
        if named[-1:] == [name]:
            return True
    return False


def paths(folder: Path) -> tuple[list[Path], list[Path]]:
    """Returns the files of training and of test samples, sorted by name."""
    train, test = (all_of(folder / part, "*.json") for part in ("train", "test"))
    return train, test


def dataset(
    train: Sequence[Path], test: Sequence[Path], take: Take, classes: int, spare: int = 0
) -> Dataset:
    """Returns the set in these files, whose owners are the users, numbered by name.

    A user may have samples in only one of train and test, since LEAF can split by user.

    Args:
        train: files of training samples.
        test: files of test samples.
        take: decodes a user's samples.
        classes: number of labels.
        spare: number by which `num_samples` of the test files may be too large.

    Raises:
        DataError: as `read` raises.
    """
    ours, theirs = read(train, take), read(test, take, spare)
    numbers = {user: number for number, user in enumerate(sorted({*ours.users, *theirs.users}))}
    train_owners, test_owners = (
        np.repeat(np.array([numbers[user] for user in part.users], np.int64), part.counts)
        for part in (ours, theirs)
    )
    return Dataset(ours.x, ours.y, theirs.x, theirs.y, classes, train_owners, test_owners)


def read(paths: Sequence[Path], take: Take, spare: int = 0) -> Samples:
    """Reads the samples of all users in some files, one file after the other.

    Args:
        paths: the files.
        take: decodes a user's samples.
        spare: number by which `num_samples` may be too large.

    Raises:
        DataError: naming the file and, for faulty samples, the user: if it is no json or of another
            layout, if lists differ in length, if `take` raises, if a user is in two files, or if
            there are no samples at all.
    """
    place: dict[str, Path] = {}
    counts, xs, ys = [], [], []
    for path in paths:
        for user, x, y in _users(path, spare):
            if user in place:
                raise DataError(
                    f"{path}: wanted each user once, found {user!r} in {place[user].name}, too; "
                    "files of another preparation of the set should go"
                )
            try:
                samples, labels = take(x, y)
            except ValueError as error:
                raise DataError(f"{path}: user {user!r}: {error}") from None
            place[user] = path
            counts.append(len(labels))
            xs.append(samples)
            ys.append(labels)
    if not xs:
        raise DataError(f"{paths[0]}: wanted samples of a user, found none in any file beside it")
    return Samples(list(place), counts, np.concatenate(xs), np.concatenate(ys))


def _users(path: Path, spare: int) -> Iterator[tuple[str, list[Any], list[Any]]]:
    """Yields a file's users with their `x` and `y` of equal length; skips users without samples."""
    found = _object(path)
    if not isinstance(found, dict) or not found.keys() >= set(KEYS):
        kind = f"the keys {list(found)}" if isinstance(found, dict) else type(found).__name__
        raise DataError(f"{path}: wanted an object with the keys {list(KEYS)}, found {kind}")
    users, counts, data = (found[key] for key in KEYS)
    if not isinstance(users, list) or not all(isinstance(user, str) for user in users):
        raise DataError(f"{path}: wanted a list of names as users, found something else")
    if not isinstance(counts, list) or len(counts) != len(users):
        length = len(counts) if isinstance(counts, list) else "something else"
        raise DataError(f"{path}: wanted num_samples of {len(users)} users, found {length}")
    if not isinstance(data, dict):
        raise DataError(f"{path}: wanted an object as user_data, found {type(data).__name__}")
    for user, count in zip(users, counts, strict=True):
        theirs = data.get(user)
        x, y = (theirs.get(key) if isinstance(theirs, dict) else None for key in "xy")
        if not isinstance(x, list) or not isinstance(y, list):
            raise DataError(f"{path}: user {user!r}: wanted lists x and y, found something else")
        if len(x) != len(y):
            raise DataError(
                f"{path}: user {user!r}: wanted a label for each of {len(x)} samples, "
                f"found {len(y)}"
            )
        if count not in (len(y), len(y) + spare):
            raise DataError(
                f"{path}: user {user!r}: wanted {count} samples, as num_samples says, "
                f"found {len(y)}"
            )
        if y:
            yield user, x, y


def _object(path: Path) -> Any:
    """Returns the object in a json file."""
    # Equal pixels share one object, because separate ones would take six times the file's size.
    number = lru_cache(1 << 12)(float)
    try:
        return json.loads(contents(path), parse_float=number)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: wanted whole json, found: {error}") from None
