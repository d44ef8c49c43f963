"""USC-HAD: windows of an accelerometer and a gyroscope, 12 activities; natural clients: subjects.

M. Zhang, A. A. Sawchuk, *USC-HAD: A Daily Activity Dataset for Ubiquitous Activity Recognition
Using Wearable Sensors*, UbiComp 2012, https://sipi.usc.edu/had; "freely available", no licence
known, cite. 14 subjects did each activity in five trials, recorded at 100 Hz: `SubjectS/aAtT.mat`
holds trial T of activity A as `sensor_readings` (n, 6), acceleration and rotation along three axes.

A sample is 128 steps of one trial, (6, 128). The split is ours: test samples are those of the fifth
trials, so that no window is in both sets. Channels are normalized by mean and standard deviation of
all training windows.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import Field

from fedmpi import config
from fedmpi.data import Dataset, cache
from fedmpi.data.files import DataError, Source, find, missing
from fedmpi.data.layouts import matlab

SUBJECTS, ACTIVITIES, TRIALS = 14, 12, 5
KEY, CHANNELS, STEPS = "sensor_readings", 6, 128

SOURCES = (Source(("https://sipi.usc.edu/had/USC-HAD.zip",), "USC-HAD"),)


class Config(config.Data):
    stride: int = Field(STEPS, ge=1, le=STEPS)
    """Time steps between the starts of consecutive windows. Below 128, windows overlap."""


def where(config: Config) -> Path:
    """Returns the folder of the subjects' folders.

    Raises:
        DataError: if there is none.
    """
    folder = find(config.root, ("", "USC-HAD"), lambda path: _file(path, 1, 1, 1).is_file())
    if folder is None:
        raise missing(
            "USC-HAD",
            config.root,
            "Subject1/a1t1.mat",
            "fedmpi data fetch usc-had, or USC-HAD.zip from https://sipi.usc.edu/had, unpacked",
            [source.name for source in SOURCES],
        )
    return folder


def _file(folder: Path, subject: int, activity: int, trial: int) -> Path:
    return folder / f"Subject{subject}" / f"a{activity}t{trial}.mat"


def load(config: Config, seed: int) -> Dataset:
    """Returns the set, samples of shape (6, 128), with subjects; `seed` has no effect.

    Raises:
        DataError: if it is missing, or a file is missing or damaged.
    """
    folder, trials = where(config), range(1, TRIALS + 1)
    paths = [path for path, _, _ in _trials(folder, trials)]

    def decode() -> Dataset:
        train_x, train_y, train_owners = _part(folder, trials[:-1], config.stride)
        test_x, test_y, test_owners = _part(folder, trials[-1:], config.stride)
        mean = train_x.mean((0, 2), np.float64, keepdims=True)
        std = train_x.std((0, 2), np.float64, keepdims=True)
        # A constant channel has a deviation of zero.
        std[std == 0] = 1
        train_x, test_x = (((x - mean) / std).astype(np.float32) for x in (train_x, test_x))
        return Dataset(train_x, train_y, test_x, test_y, ACTIVITIES, train_owners, test_owners)

    return cache.decoded(config, paths, {}, decode)


def _trials(folder: Path, trials: Sequence[int]) -> list[tuple[Path, int, int]]:
    """Returns the files of some trials, with activity and subject, both counted from 0."""
    return [
        (_file(folder, subject + 1, activity + 1, trial), activity, subject)
        for subject, activity, trial in product(range(SUBJECTS), range(ACTIVITIES), trials)
    ]


def _part(
    folder: Path, trials: Sequence[int], stride: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads windows float64 [N, 6, 128] of some trials, with activities and subjects, int64 [N]."""
    files = _trials(folder, trials)
    found = [windows(read(path), stride) for path, _, _ in files]
    counts = [len(some) for some in found]
    if not sum(counts):
        raise DataError(
            f"{folder}: wanted a trial of at least {STEPS} steps, found none among the files "
            f"a*t{trials[0]}.mat{'' if len(trials) == 1 else f' to a*t{trials[-1]}.mat'}"
        )
    _, activities, subjects = zip(*files, strict=True)
    y, owners = (np.repeat(np.array(which), counts) for which in (activities, subjects))
    return np.concatenate(found), y, owners


def windows(readings: np.ndarray, stride: int) -> np.ndarray:
    """Cuts readings [n, 6] into windows [N, 6, 128], as many as fit."""
    if len(readings) < STEPS:
        return np.empty((0, CHANNELS, STEPS))
    return sliding_window_view(readings, STEPS, axis=0)[::stride]


def read(path: Path) -> np.ndarray:
    """Reads the readings in a file, float64 [n, 6].

    Raises:
        DataError: if it is missing, damaged, or without such readings.
    """
    found = matlab.read(path, KEY)
    if found.ndim != 2 or found.shape[1] != CHANNELS or not len(found):
        shape = " x ".join(map(str, found.shape))
        raise DataError(f"{path}: wanted N x {CHANNELS} readings, found {shape}")
    wrong = ~np.isfinite(found).all(1)
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"{path}: wanted finite readings, found {found[row].tolist()} in row {row}")
    return found
