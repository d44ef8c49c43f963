"""Data sets: one module each, with a `Config` and

    load(config, seed) -> Dataset
    where(config) -> Path | None

`where` returns the folder that `load` reads, found without reading it, or None if the set needs no
files. Both raise `DataError` if there is no such folder; `load` also if a file in it is damaged.
`seed` is the run's. Only synthetic sets depend on it, so that results of real sets compare. A
module's docstring is its description in `fedmpi list data`. Nothing is ever downloaded at run time.

`SOURCES`, if a module has it, lists the official files that `fetch` downloads (see `files.Source`).

A set with files uses `cache.decoded`, which decodes its files once for all runs and ranks. `files`
searches for the files, and the modules of `data.layouts` read them.

`load` below reads the set of a run, or the part of it that the settings name (`data.only`).
"""

from dataclasses import replace

import numpy as np

from fedmpi import config
from fedmpi.config import ConfigError, Only, Settings
from fedmpi.data import Dataset
from fedmpi.streams import Purpose, stream


def load(settings: Settings) -> Dataset:
    """Returns the data set of a run, or the part of it that is used.

    Raises:
        DataError: if the set is missing, or a file of it is damaged.
        ConfigError: if it has no such part.
    """
    module = config.module("data", settings.data.name)
    found: Dataset = module.load(settings.data, settings.seed)
    only = settings.data.only
    return found if only.is_all else part(found, only)


def part(whole: Dataset, only: Only) -> Dataset:
    """Returns a part of a data set, a copy.

    The hash and the origin are the whole set's.

    Raises:
        ConfigError: if a class is named twice or is none of the set's, or if no training sample or
            no test sample is left.
    """
    wanted = list(only.classes) or list(range(whole.classes))
    problems = [
        f"data.only.classes: wanted classes 0 to {whole.classes - 1}, found {label}"
        for label in wanted
        if label >= whole.classes
    ]
    if len(set(wanted)) < len(wanted):
        problems.append("data.only.classes: wanted each class once, found one twice")
    if problems:
        raise ConfigError(*problems)
    number = np.full(whole.classes, -1, np.int64)
    number[wanted] = np.arange(len(wanted))
    count = len(whole.train_y)
    first, last = (round(share * count) for share in only.share)
    drawn = np.sort(stream(0, Purpose.PART).permutation(count)[first:last])
    train = drawn[number[whole.train_y[drawn]] >= 0]
    test = np.flatnonzero(number[whole.test_y] >= 0)
    if not len(train) or not len(test):
        raise ConfigError(
            f"data.only: wanted samples, found {len(train)} for training and {len(test)} for tests"
        )

    def taken(values: np.ndarray | None, places: np.ndarray) -> np.ndarray | None:
        return None if values is None else values[places]

    is_text = whole.kind == "symbols"
    return replace(
        whole,
        train_x=whole.train_x[train],
        train_y=number[whole.train_y[train]],
        test_x=whole.test_x[test],
        test_y=number[whole.test_y[test]],
        classes=len(wanted),
        train_owners=taken(whole.train_owners, train),
        test_owners=taken(whole.test_owners, test),
        groups=taken(whole.groups, np.array(wanted)),
        symbols=(whole.symbols or whole.classes) if is_text else None,
        repeated=None,
    )
