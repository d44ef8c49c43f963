"""Slices of clients' models, against numbers worked out by hand."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from analysis import frames, slices
from fedmpi.results import tables
from tests.recorded import rounds, run, settings, write


def cut(path: Path, tree: dict[str, Any], shift: float = 0.0) -> Path:
    """A result with slices of two clients and of a newcomer, whose numbers count for nothing."""
    write(path, tree, rounds([0.9]))
    rows = tables.empty(tables.SLICES, 3)
    rows["client"], rows["newcomer"], rows["batch"] = range(3), [False, False, True], 16
    for name, values in {
        "channels": [0.5, 0.25, 1],
        "whole_accuracy": [0.8, 0.6, 0],
        "accuracy": [0.5 + shift, 0.3 + shift, 0],
        "tuned": [np.nan, 0.7, 0],
        "whole_flops": [4e6, 4e6, 1],
        "flops": [1e6, 2e6, 1],
        "whole_seconds": [2e-3, 4e-3, 1],
        "seconds": [1e-3, 1e-3, 1],
        "whole_batch_seconds": [0.02, 0.04, 1],
        "batch_seconds": [0.01, 0.03, 1],
    }.items():
        rows[name] = values
    with h5py.File(path, "r+") as file:
        file["slices"].resize(3, axis=0)
        file["slices"][:] = rows
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two seeds of one method, and a run of another one without slices."""
    for seed, shift in ((1, 0.0), (2, 0.2)):
        cut(tmp_path / f"s{seed}.h5", settings("spatl", seed), shift)
    write(tmp_path / "none.h5", settings("fedprox"), rounds([0.9]))
    return tmp_path


def test_means_over_clients_and_seeds(folder: Path) -> None:
    (row,) = slices.table(frames.runs(folder), frames.slices(folder)).to_dict("records")
    assert (row["variant"], row["n"]) == ("spatl", 2)
    for name, wanted in {
        "whole": 0.7,
        "sliced": 0.5,
        "tuned": 0.7,
        "channels": 0.375,
        "saved": 1 - 3 / 8,
        "one": 3.0,
        "batch": 1.5,
    }.items():
        assert row[f"{name}_mean"] == pytest.approx(wanted)
    assert row["sliced_std"] == pytest.approx(np.sqrt(0.02))
    assert row["saved_std"] == 0


def test_the_command(folder: Path) -> None:
    found = run(slices.main, folder)
    assert found.exit_code == 0, found.output
    (line,) = (line for line in found.output.splitlines() if line.split()[:1] == ["spatl"])
    for text in ("70.0", "50.0±14.1", "37.5", "62.5", "3.00 x", "1.50 x"):
        assert text in line


def test_results_without_slices(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", settings(), rounds([0.9]))
    found = run(slices.main, tmp_path)
    assert found.exit_code == 2 and "wanted evaluate.final = 'slice'" in found.output
