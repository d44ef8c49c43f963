"""USC-HAD: daily activities by motion, 6x128, 12 classes; natural clients: subjects.

Zhang, Sawchuk, "USC-HAD: A Daily Activity Dataset for Ubiquitous Activity Recognition Using
Wearable Sensors", UbiComp 2012 workshops; https://sipi.usc.edu/had, freely available, no licence
stated, cite. The official files `SubjectS/aAtT.mat`: 14 subjects, 12 activities, 5 trials of each.
Each subject has samples of both parts.

Readings of 3 axes of acceleration (g) and 3 of rotation (degrees/s), 100 a second, are cut into
windows of 128, each half over the one before; no window reaches beyond its trial, and what is left
over at its end is dropped. Fewer subjects, activities or trials load, too.
Reconstruction: the fifth trial of each activity tests and the others train; each channel has mean 0
and deviation 1 over the readings that train.
"""

import os
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from pydantic import Field

from fedmpi import cache, config
from fedmpi.data import Dataset
from fedmpi.files import DataError, Source, find, missing
from fedmpi.layouts import mat

SUBJECTS, ACTIVITIES, TRIALS = 14, 12, 5
TESTS = 5
"""The trial that tests."""
WINDOW, CHANNELS = 128, 6
"""Shape of a sample: readings, and numbers in each."""
READINGS = "sensor_readings"
"""What they are called in a file."""

SOURCES = (Source(("https://sipi.usc.edu/had/USC-HAD.zip",), "USC-HAD"),)


class Config(config.Data):
    """How windows overlap, and the folder, if not one of the usual places."""

    step: int = Field(64, ge=1, le=WINDOW)
    """Readings from the beginning of a window to that of the next; 128: they do not overlap."""


def where(config: Config) -> Path:
    """The folder of the subjects' folders.

    Raises:
        DataError: if there is none.
    """

    def holds(folder: Path) -> bool:
        # Not to ask every folder for 840 files.
        subjects = (folder / f"Subject{subject}" for subject in range(1, SUBJECTS + 1))
        return any(map(os.path.isdir, subjects)) and bool(_trials(folder))

    folder = find(config.root, ("", "USC-HAD"), holds)
    if folder is None:
        raise missing(
            "USC-HAD",
            config.root,
            "folders Subject1 to Subject14 with files a1t1.mat and the like",
            "fedmpi data fetch uschad, or https://sipi.usc.edu/had/USC-HAD.zip, unpacked",
        )
    return folder


def load(config: Config, seed: int) -> Dataset:
    """The whole set, shape (6, 128), with subjects; `seed` plays no part.

    Raises:
        DataError: if it is not there, a file is damaged, or one part would have no window.
    """
    folder = where(config)
    trials = _trials(folder)

    def decode() -> Dataset:
        readings = [mat.read(trial.path, READINGS, CHANNELS) for trial in trials]
        pairs = list(zip(trials, readings, strict=True))
        train = [(trial, table) for trial, table in pairs if trial.number != TESTS]
        test = [(trial, table) for trial, table in pairs if trial.number == TESTS]
        train_x, train_y, train_owners = _joined(folder, train, config.step)
        test_x, test_y, test_owners = _joined(folder, test, config.step)
        mean, std = _statistics([table for _, table in train])
        for x in (train_x, test_x):
            x -= mean[:, np.newaxis]
            x /= std[:, np.newaxis]
        return Dataset(train_x, train_y, test_x, test_y, ACTIVITIES, train_owners, test_owners)

    return cache.decoded(config, [trial.path for trial in trials], {}, decode)


@dataclass(frozen=True)
class Trial:
    """One of the official files: who did what, and for which time."""

    path: Path
    subject: int
    activity: int
    number: int


def _trials(folder: Path) -> list[Trial]:
    """The trials of which a folder has a file, in the order of subjects, activities, trials."""
    everything = product(range(1, SUBJECTS + 1), range(1, ACTIVITIES + 1), range(1, TRIALS + 1))
    files = (Trial(folder / f"Subject{s}" / f"a{a}t{t}.mat", s, a, t) for s, a, t in everything)
    return [trial for trial in files if os.path.isfile(trial.path)]


def _statistics(tables: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column of all tables, float32 [CHANNELS]."""
    whole = np.concatenate(tables)
    mean, std = whole.mean(axis=0, dtype=np.float64), whole.std(axis=0, dtype=np.float64)
    std[std == 0] = 1  # a sensor that was off
    return mean.astype(np.float32), std.astype(np.float32)


def _windows(table: np.ndarray, step: int) -> np.ndarray:
    """The windows of a trial's readings, [windows, CHANNELS, WINDOW]; none if it is too short."""
    if len(table) < WINDOW:
        return np.empty((0, CHANNELS, WINDOW), np.float32)
    return np.lib.stride_tricks.sliding_window_view(table, WINDOW, axis=0)[::step]


def _joined(
    folder: Path, part: list[tuple[Trial, np.ndarray]], step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows, activities from 0 on, and subjects, of the trials of one part.

    Raises:
        DataError: if there is no window.
    """
    cut = [_windows(table, step) for _, table in part]
    counts = [len(windows) for windows in cut]
    if not sum(counts):
        raise DataError(
            f"{folder}: wanted a trial of {WINDOW} readings or more to train and one to test (the "
            "fifth), found none for one of them"
        )
    activities = np.array([trial.activity - 1 for trial, _ in part], np.int64)
    subjects = np.array([trial.subject for trial, _ in part], np.int64)
    return np.concatenate(cut), np.repeat(activities, counts), np.repeat(subjects, counts)
