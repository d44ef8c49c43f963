"""Accuracy along a setting, against numbers worked out by hand."""

from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from analysis import along, frames, panels
from tests.recorded import appearances, fleet, rounds, run, settings, write

WEAK = "devices.tiers[weak].share"


@pytest.fixture
def alphas(tmp_path: Path) -> Path:
    """Fedavg (two seeds) and ssfl along alpha, for two numbers of clients; one even partition."""
    for clients in (2, 4):
        for alpha, accuracy in ((100.0, 0.8), (1.0, 0.6), (0.1, 0.4)):
            tree: dict[str, Any] = {"partition": {"name": "dirichlet", "alpha": alpha}}
            tree["clients"] = clients
            name = f"{clients}-{alpha}"
            for seed, shift in ((1, 0.0), (2, 0.1)):
                last = rounds([0.9, accuracy + shift], [0.9, 0.1])
                write(tmp_path / f"a{name}-{seed}.h5", settings(seed=seed) | tree, last)
            sparse = settings("ssfl", sparsity=0.5) | tree
            write(tmp_path / f"s{name}.h5", sparse, rounds([accuracy - 0.1 * clients]))
    write(tmp_path / "iid.h5", settings() | {"clients": 2}, rounds([0.9]))
    ill = settings() | {"clients": 2, "partition": {"name": "dirichlet", "alpha": 7.0}}
    write(tmp_path / "ill.h5", ill, rounds([0.9]), "failed")
    return tmp_path


@pytest.fixture
def fleets(tmp_path: Path) -> Path:
    """Heterofl with more and more weak devices, on two partitions; fedavg on strong ones alone."""
    for partition in ("iid", "natural"):
        for weak in (0.0, 0.25, 1.0):
            shares = {"strong": 1 - weak, "weak": weak}
            tree = fleet(**{name: share for name, share in shares.items() if share})
            tree |= {"method": {"name": "heterofl"}, "partition": {"name": partition}}
            write(tmp_path / f"{partition}{weak}.h5", tree, rounds([0.8 - weak / 2]))
        tree = fleet(strong=1.0) | {"partition": {"name": partition}}
        write(tmp_path / f"{partition}.h5", tree, rounds([0.7]))
    return tmp_path


def points(folder: Path, setting: str, *levels: str) -> pd.DataFrame:
    """`along.points` of a folder."""
    runs = frames.runs(folder)
    return along.points(runs, along.axis(runs, setting), levels)


def lines(panel: Axes) -> list[list[list[float]]]:
    """The corners of a panel's lines that have points."""
    found = [part for part in panel.containers if isinstance(part, ErrorbarContainer)]
    return [np.round(part.lines[0].get_xydata(), 6).tolist() for part in found]


def drawn(folder: Path, setting: str, *levels: str) -> Any:
    """The figure."""
    return along.picture(points(folder, setting, *levels), setting)


def test_accuracy_along_a_number(alphas: Path) -> None:
    figure = drawn(alphas, "partition.alpha")
    two, four = (panel for panel in figure.axes if panel.get_visible())
    assert [panel.get_title() for panel in (two, four)] == [
        "clients=2 dirichlet",
        "clients=4 dirichlet",
    ]
    fedavg = [[0.1, 45], [1, 65], [100, 85]]
    assert lines(two) == [fedavg, [[0.1, 20], [1, 40], [100, 60]]]
    assert lines(four) == [fedavg, [[0.1, 0], [1, 20], [100, 40]]]
    assert two.get_xscale() == four.get_xscale() == "log"
    bars = two.containers[0].lines[2][0].get_segments()
    assert len(bars) == 3
    np.testing.assert_allclose(bars[0][:, 1], [45 - 10 / 2**0.5, 45 + 10 / 2**0.5], 1e-6)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["fedavg", "ssfl 0.5"]
    figure.draw_without_rendering()
    assert [tick.get_text() for tick in four.get_xticklabels()] == ["0.1", "1", "100"]
    best = along.picture(points(alphas, "partition.alpha"), "partition.alpha", at="best")
    assert lines(best.axes[0])[0] == [[0.1, 90], [1, 90], [100, 90]]


def test_the_table_says_the_same(alphas: Path) -> None:
    result = run(along.main, alphas, "--setting", "partition.alpha", "--out", alphas / "t.png")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.output.splitlines()]
    assert ["spar-"] in rows and ["method", "sity", "n", "0.1", "1", "100"] in rows
    assert rows.count(["fedavg", "–", "2", "45.0±7.1*", "65.0±7.1*", "85.0±7.1*"]) == 2
    assert ["ssfl", "0.5", "1", "20.0", "40.0", "60.0"] in rows
    assert ["ssfl", "0.5", "1", "0.0", "20.0", "40.0"] in rows
    assert "Left out, for lack of partition.alpha: fedavg (clients=2 iid)." in result.output
    assert "--level" not in result.output  # a line across needs a panel
    assert (alphas / "t.png").read_bytes().startswith(b"\x89PNG")


def test_the_numbers_of_runs_differ(alphas: Path) -> None:
    (alphas / "a2-0.1-1.h5").unlink()
    rows = points(alphas, "partition.alpha")
    wide, columns = along.table(rows, "accuracy", "last")
    assert list(wide["n"]) == ["1-2", "1", "2", "1"]
    assert [column.title for column in columns] == ["0.1", "1", "100"]
    np.testing.assert_allclose(wide["0.1_mean"], [0.5, 0.2, 0.45, 0])


def test_a_table_of_settings_is_an_axis(alphas: Path) -> None:
    """Beside each other, as they were first run; files are read in the order of their names."""
    for path, started in (("iid", 0), ("a2-100.0-1", 1), ("a2-1.0-1", 2), ("a2-0.1-1", 3)):
        with h5py.File(alphas / f"{path}.h5", "r+") as file:
            file.attrs["started"] = f"2000-01-01T00:00:0{started}+00:00"
    figure = drawn(alphas, "partition")
    two, four = figure.axes
    assert two.get_title() == "clients=2"
    assert lines(two)[0] == [[0, 90], [1, 85], [2, 65], [3, 45]]
    assert lines(four)[0] == [[1, 85], [2, 65], [3, 45]]
    figure.draw_without_rendering()
    texts = [tick.get_text() for tick in two.get_xticklabels()]
    assert texts == ["iid", *(f"dirichlet alpha={alpha}" for alpha in (100.0, 1.0, 0.1))]
    # They would run into each other.
    assert {tick.get_rotation() for tick in two.get_xticklabels()} == {90}
    (alphas / "iid.h5").unlink()
    values = set(points(alphas, "partition")["value"])
    assert values == {f"dirichlet alpha={alpha}" for alpha in (100.0, 1.0, 0.1)}


def test_a_kind_of_devices_goes_by_its_name(fleets: Path) -> None:
    rows = points(fleets, WEAK)
    assert set(rows["group"]) == {"iid", "natural"}
    assert set(rows["variant"]) == {"fedavg", "heterofl"}
    iid, natural = drawn(fleets, WEAK).axes
    assert lines(iid) == lines(natural) == [[[0, 70]], [[0, 80], [0.25, 67.5], [1, 30]]]
    assert iid.get_xscale() == "linear"
    iid, _ = drawn(fleets, "devices.tiers[strong].share").axes
    assert lines(iid)[1] == [[0, 30], [0.75, 67.5], [1, 80]]


def test_shares_that_do_not_follow_are_problems_of_their_own(tmp_path: Path) -> None:
    for middle in (0.25, 0.5):
        for weak in (0.25, 0.375):
            tree = fleet(strong=1 - middle - weak, middle=middle, weak=weak)
            write(tmp_path / f"{middle}{weak}.h5", tree, rounds([weak]))
    rows = points(tmp_path, WEAK)
    titles = [f"iid devices.tiers[middle].share={middle}" for middle in (0.25, 0.5)]
    assert list(dict.fromkeys(rows["group"])) == titles
    assert list(rows["place"]) == [0.25, 0.375] * 2
    one = frames.runs(list(tmp_path.glob("0.25*")))
    columns = along.axis(one, WEAK).columns
    assert set(columns) == {f"devices.tiers[{n}].share" for n in ("strong", "middle", "weak")}


def test_a_level_is_a_line_across(fleets: Path) -> None:
    figure = drawn(fleets, WEAK, "fedavg")
    for panel in figure.axes:
        assert lines(panel) == [[[0, 80], [0.25, 67.5], [1, 30]]]
        (level,) = (line for line in panel.get_lines() if line.get_linestyle() == "--")
        assert list(level.get_xdata()) == [0, 1] and list(level.get_ydata()) == [70, 70]
        ends = level.get_transform().transform(level.get_xydata())
        np.testing.assert_allclose(ends[:, 0], panel.bbox.intervalx)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["fedavg", "heterofl"]
    words = ["--setting", WEAK, "--level", "fedavg", "--out", fleets / "t.png"]
    rows = [line.split() for line in run(along.main, fleets, *words).output.splitlines()]
    assert rows.count(["fedavg", "1", "70.0", "–", "–"]) == 2


def test_no_two_lines_look_alike(tmp_path: Path) -> None:
    """Methods with two sparsities, as lines and as levels."""
    for number in range(12):
        for sparsity in (0.5, 0.9):
            for rate in (0.1, 0.2, None):
                path = tmp_path / f"{number} {sparsity} {rate}.h5"
                write(path, settings(f"m{number}", sparsity=sparsity, rate=rate), rounds([0.5]))
    figure = drawn(tmp_path, "method.rate", *(f"m{number}" for number in range(12)))
    found = appearances(figure)
    assert len(set(found)) == len(found) == 12 * 2 * 2
    assert sum(is_hollow for *_, is_hollow in found) == 24


def test_what_is_not_set_is_left_out_or_a_level(tmp_path: Path) -> None:
    for bits, accuracy in ((2, 0.2), (4, 0.3), (8, 0.4), (None, 0.6)):
        path = tmp_path / f"{bits}.h5"
        write(path, settings("splitfed", bits=bits), rounds([accuracy]))
    for seed, accuracy in ((1, 0.7), (2, 0.8)):
        write(tmp_path / f"fedavg{seed}.h5", settings(seed=seed), rounds([accuracy]))
    words = [tmp_path, "--out", tmp_path / "t.png", "--setting", "method.bits"]
    output = run(along.main, *words).output
    assert "Left out, for lack of method.bits: fedavg, splitfed (iid)." in output
    assert "--level METHOD draws what is left out beside others as a line across." in output
    levels = ["--level", "fedavg", "--level", "splitfed", "--level", "splitfed"]
    output = run(along.main, *words, *levels).output
    rows = [line.split() for line in output.splitlines()]
    assert ["method", "n", "2", "4", "8", "unset"] in rows
    assert ["splitfed", "1", "20.0", "30.0", "40.0", "60.0"] in rows
    assert ["fedavg", "2", "–", "–", "–", "75.0±7.1*"] in rows
    assert "Left out" not in output
    figure = drawn(tmp_path, "method.bits", "fedavg", "splitfed")
    (panel,) = figure.axes
    assert lines(panel) == [[[2, 20], [4, 30], [8, 40]]]
    dashed = [line for line in panel.get_lines() if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in dashed] == [75, 60]
    (band,) = panel.patches
    height = band.get_extents().transformed(panel.transData.inverted()).height
    assert height == pytest.approx(2 * 10 / 2**0.5)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["fedavg", "splitfed", "splitfed (unset)"]


def test_sparsities_along_themselves(tmp_path: Path) -> None:
    for sparsity in (0.5, 0.9):
        tree = settings("ssfl", sparsity=sparsity)
        write(tmp_path / f"{sparsity}.h5", tree, rounds([1 - sparsity]))
    for partition in ("iid", "natural"):
        tree = settings() | {"partition": {"name": partition}}
        write(tmp_path / f"{partition}.h5", tree, rounds([0.6]))
    # Of the natural partition there is nothing but a level, which tells nothing.
    figure = drawn(tmp_path, "method.sparsity", "fedavg")
    (panel,) = figure.axes
    assert panel.get_title() == "iid"
    assert lines(panel) == [[[0.5, 50], [0.9, 10]]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fedavg", "ssfl"]


@pytest.mark.parametrize(
    ("values", "texts"),
    [([[8, 4], [16]], ["8,4", "16"]), ([True, False], ["True", "False"]), (["b", "a"], ["b", "a"])],
)
def test_what_is_no_number_has_places_side_by_side(
    tmp_path: Path, values: list[Any], texts: list[str]
) -> None:
    for number, value in enumerate(values):
        write(tmp_path / f"{number}.h5", settings("splitfed", cut=value), rounds([0.5]))
    rows = points(tmp_path, "method.cut").sort_values("place")
    assert list(rows["place"]) == [0, 1]
    assert along.ticks(rows)[1] == texts


def test_numbers_that_collide_lose_their_texts(tmp_path: Path) -> None:
    values = [100, 200, 201, 400]
    for value in values:
        write(tmp_path / f"{value}.h5", settings() | {"lr": float(value)}, rounds([0.5]))
    figure = drawn(tmp_path, "lr")
    figure.draw_without_rendering()
    panel = figure.axes[0]
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["100", "200", "", "400"]
    assert list(panel.get_xticks()) == values


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1, 1, 10, 100], True),
        ([2, 4, 8, 16, 32], True),
        ([0.1, 0.3, 1], True),
        ([0, 0.25, 0.5, 0.75, 1], False),
        ([0.5, 0.9, 0.95], False),
        ([1, 2, 3, 4], False),
        ([0, 1, 10, 100], False),
        ([0.1, 100], False),
    ],
)
def test_the_more_even_axis_is_taken(values: list[float], expected: bool) -> None:
    assert along.is_logarithmic(np.array(values)) == expected


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        ("partition.alpah", "none of that name"),
        ("part", "none of that name"),
        ("data.name", "one that does not"),
        ("seed", "one that does not"),
        ("method.name", "one that does not"),
        ("method", "one that does not"),
        ("about.ranks", "none of that name"),
    ],
)
def test_an_axis_is_a_setting_that_varies(alphas: Path, setting: str, found: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        along.axis(frames.runs(alphas), setting)
    assert f"found {found}; possible are: " in caught.value.message
    assert "clients" in caught.value.message and "partition.alpha" in caught.value.message
    result = run(along.main, alphas, "--setting", setting)
    assert result.exit_code == 2 and not (Path.cwd() / "along.png").exists()


def test_without_a_setting_that_varies_there_is_no_axis(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", settings(), rounds([0.5]))
    result = run(along.main, tmp_path, "--setting", "lr")
    assert result.exit_code == 2
    text = " ".join(result.output.split())
    assert text.endswith("found one that does not; nothing varies in these runs")


def test_a_level_has_one_value(fleets: Path) -> None:
    words = [fleets, "--setting", WEAK, "--out", fleets / "t.png", "--level"]
    result = run(along.main, *words, "heterofl")
    assert result.exit_code == 2
    assert "found 0, 0.25, 1 in iid" in " ".join(result.output.split())
    result = run(along.main, *words, "fedprox")
    assert result.exit_code == 2
    assert "no such method; there are: fedavg, heterofl" in " ".join(result.output.split())


def test_a_setting_that_only_failed_runs_vary(tmp_path: Path) -> None:
    for lr, status in ((0.1, "done"), (0.2, "failed")):
        write(tmp_path / f"{lr}.h5", settings() | {"lr": lr}, rounds([0.5]), status)
    assert list(points(tmp_path, "lr")["place"]) == [0.1]
    words = ["--setting", "lr", "--level", "fedavg", "--out", tmp_path / "t.png"]
    result = run(along.main, tmp_path, *words)
    assert result.exit_code == 2
    assert "no finished run with lr but levels" in result.output


def test_a_picture_whose_name_ends_in_capitals(tmp_path: Path) -> None:
    panels.save(Figure, tmp_path / "a.PNG")
    assert (tmp_path / "a.PNG").read_bytes().startswith(b"\x89PNG")
