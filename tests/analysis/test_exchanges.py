"""Pictures of what `bench mpi` measured and `bench predict` predicted, from made-up files."""

import json
from pathlib import Path

import click
import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import collectives, scaling

WORDS = {"kind": "S12", "name": "S16", "side": "S16", "level": "S8", "positions": "S8"}
NUMBERS = {"ranks": "i4", "clients": "i4", "bytes": "i8", "sparsity": "f8", "max_us": "f8"}
SIZES = (1000, 10_000, 100_000)
MICROSECONDS = {
    ("star", b"ours"): 100, ("reduce", b"ours"): 300, ("dense", b"pickled"): 900,
    ("dense", b"gatherv"): 600,
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A gather with one reference, and exchanges; at the largest size reduce takes half of star."""
    rows = []
    for size in SIZES:
        for side, us in ((b"ours", 2.0), (b"bare", 1.0)):
            rows.append((b"collective", b"gather", side, b"near", b"", 4, 0, size, 0.0, us * size))
        for sparsity in (0.9, 0.99):
            for (name, side), us in MICROSECONDS.items():
                taken = 50 if name == "reduce" and size == SIZES[-1] else us
                case = (b"exchange", name.encode(), side, b"near", b"own", 4, 2)
                rows.append((*case, size, sparsity, float(taken)))
    forms = [*WORDS.items(), *NUMBERS.items()]
    path = tmp_path / "mpi.h5"
    with h5py.File(path, "w") as out:
        out["mpi"] = np.array(rows, forms)
    return path


def panels_of(figure: Figure) -> list[Axes]:
    return [panel for panel in figure.axes if panel.get_visible()]


def test_a_panel_is_a_collective(file: Path) -> None:
    (panel,) = panels_of(collectives.collectives(collectives.read((file,))))
    assert panel.get_title() == "gather, near: 4 ranks"
    found = {line.get_marker(): line.get_xydata().tolist() for line in panel.get_lines()}
    assert list(found.values()) == [[[s, k * s] for s in SIZES] for k in (2.0, 1.0)]


def test_a_line_is_an_exchange_at_a_sparsity(file: Path) -> None:
    figure = collectives.exchanges(collectives.read((file,)))
    (panel,) = panels_of(figure)
    assert len(panel.get_lines()) == 2 * 2 + 2
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["dense: gatherv", "dense: pickled",
                     "reduce, 0.9", "reduce, 0.99", "star, 0.9", "star, 0.99"]  # fmt: skip


def test_the_map_says_who_is_fastest(file: Path) -> None:
    found = collectives.winners(collectives.read((file,)))
    for row in found.to_dict("records"):
        is_large = row["bytes"] == SIZES[-1]
        assert row["name"] == ("reduce" if is_large else "star")
        assert row["lead"] == pytest.approx(2 if is_large else 3)
    assert len(found) == 6
    (panel,) = panels_of(collectives.chart(collectives.read((file,))))
    assert sorted(text.get_text() for text in panel.texts) == ["2"] * 2 + ["3"] * 4


def test_the_best_of_several_files_counts_by_its_median(file: Path) -> None:
    rows = collectives.read((file, file, file))
    rows.loc[rows.index[-4:], "max_us"] = 1e9  # one file's outliers
    found = collectives.winners(rows)
    assert found["name"].tolist() == collectives.winners(collectives.read((file,)))["name"].tolist()


@pytest.mark.parametrize("what", collectives.PICTURES)
def test_pictures_are_written(file: Path, what: str, tmp_path: Path) -> None:
    out = tmp_path / "picture.png"
    done = CliRunner().invoke(collectives.main, [str(file), "--draw", what, "--out", str(out)])
    assert (done.exit_code, done.output) == (0, f"{out}\n")
    assert out.stat().st_size > 1000


def test_another_file_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as out:
        out["rounds"] = [1]
    for path in (other, tmp_path / "none.h5"):
        with pytest.raises(click.UsageError, match="wanted a file of fedmpi bench mpi"):
            collectives.read((path,))
    with pytest.raises(click.UsageError, match="wanted lines of fedmpi bench predict"):
        scaling.read(other)
    rows = pd.DataFrame(columns=["kind", "name", "side", "bytes", "sparsity", *collectives.CASE])
    rows = rows.loc[:, ~rows.columns.duplicated()].assign(level=[], ranks=[], max_us=[])
    for draw in collectives.PICTURES.values():
        with pytest.raises(click.UsageError, match=r"wanted exchanges|nothing to draw"):
            draw(rows)


def test_predictions_are_lines_and_measurements_marks(tmp_path: Path) -> None:
    rows = [
        {"exchange": name, "clients": clients, "ranks": ranks, "nodes": 1, "sparsity": 0.9,
         "agreed": False, "predicted_seconds": clients * ranks * times,
         "measured_seconds": 7.0 if (name, clients, ranks) == ("star", 10, 4) else None}
        for name, times in (("star", 1.0), ("tree", 2.0))
        for clients in (100, 10)
        for ranks in (4, 2)
    ]  # fmt: skip
    path, out = tmp_path / "predicted.jsonl", tmp_path / "scaling.svg"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    two, four = panels_of(scaling.picture(scaling.read(path)))
    assert [two.get_title(), four.get_title()] == ["2 ranks on 1 node", "4 ranks on 1 node"]
    star, tree = (line.get_xydata().tolist() for line in two.get_lines())
    assert (star, tree) == ([[10, 20], [100, 200]], [[10, 40], [100, 400]])
    (mark,) = [line for line in four.get_lines() if line.get_linestyle() == "None"]
    assert mark.get_xydata().tolist() == [[10, 7]]
    one = scaling.read(path).query("clients == 10")
    (panel,) = panels_of(scaling.picture(one))
    star, tree = (line.get_xydata().tolist() for line in panel.get_lines()[:2])
    assert (panel.get_title(), star) == ("10 clients", [[2, 20], [4, 40]])
    done = CliRunner().invoke(scaling.main, [str(path), "--out", str(out)])
    assert (done.exit_code, done.output) == (0, f"{out}\n")
