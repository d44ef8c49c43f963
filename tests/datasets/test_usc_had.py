"""USC-HAD: trials in MATLAB files become windows; no file can do more than hold numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from fedmpi.data import Dataset
from fedmpi.data.files import DataError
from fedmpi.datasets import usc_had
from tests.small import run, small

LENGTHS = (300, 127, 128, 256, 400)
"""Steps of the five trials: 2, 0, 1, 2 windows to train with, and 3 to test."""


def readings(subject: int, activity: int, trial: int) -> np.ndarray:
    """Steps that tell where they are from: the subject, ..., the step, and a constant."""
    steps = np.arange(LENGTHS[trial - 1], dtype=np.float64)
    about = (subject, activity, trial)
    constant = [np.full_like(steps, number) for number in about]
    return np.stack([*constant, steps, -steps, 0 * steps], 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole set."""
    folder = tmp_path_factory.mktemp("sets") / "USC-HAD"
    for subject in range(1, 15):
        (folder / f"Subject{subject}").mkdir(parents=True)
        for activity in range(1, 13):
            for trial in range(1, 6):
                path = folder / f"Subject{subject}" / f"a{activity}t{trial}.mat"
                about = {"activity": "walk", "sensor_readings": readings(subject, activity, trial)}
                savemat(path, about, do_compression=trial % 2 == 0)
    return folder


def load(root: Path, **given: Any) -> Dataset:
    return usc_had.load(usc_had.Config(root=str(root), **given), 1)


def test_windows_of_trials(root: Path) -> None:
    assert usc_had.where(usc_had.Config(root=str(root.parent))) == root
    found = load(root)
    assert found.shape == (6, 128) and found.classes == 12 and found.kind == "numbers"
    assert len(found.train_y) == 14 * 12 * 5 and len(found.test_y) == 14 * 12 * 3
    assert (found.train_x.dtype, found.train_y.dtype) == (np.float32, np.int64)
    assert np.bincount(found.train_y).tolist() == [14 * 5] * 12
    train_owners, test_owners = found.train_owners, found.test_owners
    assert train_owners is not None and test_owners is not None
    assert train_owners.dtype == np.int64
    assert np.bincount(train_owners).tolist() == [12 * 5] * 14
    assert np.bincount(test_owners).tolist() == [12 * 3] * 14

    # By the way back: the moments are those of the training windows alone.
    raw = [
        readings(subject, activity, trial)[first : first + 128].T
        for subject in range(1, 15)
        for activity in range(1, 13)
        for trial, first in ((1, 0), (1, 128), (3, 0), (4, 0), (4, 128))
    ]
    mean, std = (getattr(np.array(raw), name)((0, 2))[:, np.newaxis] for name in ("mean", "std"))
    std[5] = 1
    np.testing.assert_allclose(found.train_x, (np.array(raw) - mean) / std, atol=1e-5)
    back = found.test_x * std + mean
    np.testing.assert_allclose(back[:, 0].T, np.tile(test_owners + 1, (128, 1)), atol=1e-4)
    np.testing.assert_allclose(back[:, 1].T, np.tile(found.test_y + 1, (128, 1)), atol=1e-4)
    np.testing.assert_allclose(back[:, 2], 5, atol=1e-4)
    np.testing.assert_allclose(back[:3, 3, 0], [0, 128, 256], atol=1e-3)
    assert (found.train_x[:, 5] == 0).all(), "what is constant stays finite"


def test_windows_may_overlap(root: Path) -> None:
    found = load(root, stride=64)
    assert len(found.train_y) == 14 * 12 * (3 + 1 + 3)
    assert len(found.test_y) == 14 * 12 * 5


@pytest.mark.parametrize(
    ("steps", "stride", "wanted"),
    [(127, 128, []), (128, 1, [0]), (130, 1, [0, 1, 2]), (255, 128, [0]), (256, 128, [0, 128])],
)
def test_as_many_windows_as_fit(steps: int, stride: int, wanted: list[int]) -> None:
    trial = np.arange(6 * steps, dtype=np.float64).reshape(steps, 6)
    found = usc_had.windows(trial, stride)
    assert found.shape == (len(wanted), 6, 128)
    for window, first in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(window, trial[first : first + 128].T)


@pytest.mark.parametrize(
    ("found", "match"),
    [
        (np.ones((200, 5)), "wanted N x 6 readings, found 200 x 5"),
        (np.ones((6, 200)), "wanted N x 6 readings, found 6 x 200"),
        (np.ones((0, 6)), "wanted N x 6 readings, found 0 x 6"),
        (np.ones((1, 200, 6)), "wanted N x 6 readings, found 1 x 200 x 6"),
        (np.diag([1, 1, np.nan, 1, 1, 1]), r"finite readings, found \[0.0, 0.0, nan, .* in row 2"),
        (np.full((9, 6), -np.inf), "wanted finite readings, found .* in row 0"),
    ],
)
def test_wrong_readings(tmp_path: Path, found: np.ndarray, match: str) -> None:
    path = tmp_path / "a3t2.mat"
    savemat(path, {"sensor_readings": found})
    with pytest.raises(DataError, match=match) as error:
        usc_had.read(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_file_is_missing(root: Path) -> None:
    path = root / "Subject9" / "a12t5.mat"
    content = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(DataError, match=r"Subject9/a12t5\.mat: No such file"):
            load(root)
    finally:
        path.write_bytes(content)


def test_all_are_too_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usc_had, "read", lambda path: np.ones((127, 6)))
    for trials, names in ((range(5, 6), r"a\*t5\.mat"), (range(1, 5), r"a\*t1\.mat to a\*t4\.mat")):
        with pytest.raises(DataError, match=rf"at least 128 steps, found none .* {names}$"):
            usc_had._part(tmp_path, trials, 128)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no USC-HAD; wanted Subject1/a1t1\.mat, looked"):
        usc_had.where(usc_had.Config(root=str(tmp_path)))


def test_a_run(root: Path) -> None:
    words = ("data.name=usc-had", f"data.root={root}", "partition.name=iid", "clients=3")
    model = ("model.name=cnn1d", "model.channels=[4]", "model.hidden=8", "rounds=1", "epochs=1")
    assert np.isfinite(run(small(*words, *model)).model).all()
