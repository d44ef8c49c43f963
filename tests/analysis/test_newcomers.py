"""New clients over epochs of training, against numbers worked out by hand."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from analysis import frames, newcomers
from fedmpi.results import tables
from tests.recorded import rounds, run, settings, write

MODEL = {"spatl": [[0.1, 0.5], [0.7, 0.6]], "fedavg": [[0.2, 0.3], [0.4, 0.5]]}
"""By method: the newcomers' accuracies after 0 and 1 epochs, for each of two newcomers."""
SCRATCH = [[0.05, 0.15], [0.1, 0.4]]


def new(path: Path, tree: dict[str, Any], shift: float = 0.0) -> Path:
    """A result with two newcomers; all accuracies from the model are higher by a number."""
    write(path, tree, rounds([0.9]))
    rows = tables.empty(tables.NEWCOMERS, 8)
    place = 0
    for start, values in (("scratch", SCRATCH), ("model", MODEL[tree["method"]["name"]])):
        for client, accuracies in enumerate(values):
            for epoch, accuracy in enumerate(accuracies):
                known = accuracy + shift * (start == "model")
                rows[place] = (8 + client, start, epoch, known)
                place += 1
    with h5py.File(path, "r+") as file:
        file["newcomers"].resize(8, axis=0)
        file["newcomers"][:] = rows[::-1]
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two methods, one with two seeds; a failed run, and one without newcomers."""
    for seed, shift in ((1, 0.0), (2, 0.2)):
        new(tmp_path / f"s{seed}.h5", settings("spatl", seed), shift)
    new(tmp_path / "f.h5", settings())
    write(tmp_path / "ill.h5", settings("fedper"), rounds([0.9]), "failed")
    write(tmp_path / "none.h5", settings("fedprox"), rounds([0.9]))
    return tmp_path


def rows_of(folder: Path) -> Any:
    """`newcomers.curves` of a folder, by method."""
    found = newcomers.curves(frames.runs(folder), frames.newcomers(folder))
    return {row["variant"]: row for row in found.to_dict("records")}


def test_curves_are_means_over_newcomers_for_each_seed(folder: Path) -> None:
    found = rows_of(folder)
    assert found.keys() == {"spatl", "fedavg"}
    np.testing.assert_allclose(found["fedavg"]["model"], [[0.3, 0.4]])
    np.testing.assert_allclose(found["spatl"]["model"], [[0.4, 0.55], [0.6, 0.75]])
    np.testing.assert_allclose(found["spatl"]["scratch"], [[0.075, 0.275]] * 2)


def test_the_transfer_ratio_is_a_quotient_of_means(folder: Path) -> None:
    found = rows_of(folder)["spatl"]
    wanted = [[0.4 / 0.075, 0.55 / 0.275], [0.6 / 0.075, 0.75 / 0.275]]
    np.testing.assert_allclose(newcomers.ratios(found), wanted)
    nothing = {"model": np.ones((1, 2)), "scratch": np.array([[0.0, 0.5]])}
    np.testing.assert_array_equal(newcomers.ratios(nothing), [[np.nan, 2.0]])


def test_the_picture(folder: Path) -> None:
    """One line a method, and one from scratch, which is the same for both."""
    found = newcomers.curves(frames.runs(folder), frames.newcomers(folder))
    figure = newcomers.picture(found)
    (panel,) = (one for one in figure.axes if one.get_visible())
    lines = [np.round(one.lines[0].get_xydata(), 6).tolist() for one in panel.containers]
    assert sorted(lines) == [
        [[0, 7.5], [1, 27.5]],
        [[0, 30], [1, 40]],
        [[0, 50], [1, 65]],
    ]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[-1] == "from scratch" and len(texts) == 3


def test_the_command(folder: Path) -> None:
    found = run(newcomers.main, folder, "--out", folder / "n.png")
    assert found.exit_code == 0, found.output
    assert (folder / "n.png").stat().st_size > 0
    (line,) = (line for line in found.output.splitlines() if line.split()[:1] == ["spatl"])
    for text in ("50.0±14.1", "65.0±14.1", "27.5", "2.36±0.51 x"):
        assert text in line
    (line,) = (line for line in found.output.splitlines() if line.split()[:1] == ["fedavg"])
    assert "40.0" in line and "1.45 x" in line


def test_results_without_newcomers(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", settings(), rounds([0.9]))
    found = run(newcomers.main, tmp_path)
    assert found.exit_code == 2 and "wanted newcomers above 0" in found.output
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        for table in tables.LATER:
            del file[table]  # as earlier versions
    assert run(newcomers.main, tmp_path).exit_code == 2
    for read in (frames.newcomers, frames.slices, frames.final, frames.variants):
        assert read(tmp_path).empty
