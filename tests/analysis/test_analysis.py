"""What is computed from result files, against numbers worked out by hand."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from analysis import (
    along,
    compare,
    frames,
    groups,
    newcomers,
    panels,
    slices,
    targets,
    terminal,
    tradeoff,
    trajectory,
)
from fedmpi import config, loading
from fedmpi.results import tables
from tests.recorded import appearances, fleet, rounds, run, settings, simulated, write

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two seeds of fedavg, two sparsities of ssfl, on two partitions; three runs that ended ill."""
    for partition in ({"name": "iid"}, {"name": "dirichlet", "alpha": 0.1}):
        name, shift = partition["name"], 0.0 if partition["name"] == "iid" else 0.1
        for seed, accuracy in ((1, 0.8), (2, 0.9)):
            tree = settings(seed=seed) | {"partition": partition}
            last = rounds([0.5, 0.6, accuracy - shift])
            write(tmp_path / name / f"fedavg{seed}.h5", tree, last)
        for sparsity, accuracy in ((0.5, 0.7), (0.9, 0.6)):
            tree = settings("ssfl", sparsity=sparsity) | {"partition": partition}
            last = rounds([0.4, 0.5, accuracy - shift], up=round(100 * (1 - sparsity)), once=500)
            write(tmp_path / name / f"ssfl{sparsity}.h5", tree, last)
    for seed, status in ((3, "running"), (4, "failed"), (5, "diverged")):
        write(tmp_path / f"{status}.h5", settings(seed=seed), rounds([0.1, 0.0]), status)
    return tmp_path


def test_the_best_round_is_the_one_of_validation(tmp_path: Path) -> None:
    rows = rounds([0.5, 0.9, 0.6, 0.7], validation=[0.2, 0.4, 0.8, 0.8])
    one = frames.runs(write(tmp_path / "a.h5", settings(), rows)).iloc[0]
    assert one["best_round"] == 2  # the first of two; on the test set it would be round 1
    assert one["accuracy_best"] == 0.6
    assert one["accuracy_last"] == 0.7
    assert one["shard_min_best"] == 0.5
    assert one["personal_mean_last"] == pytest.approx(0.5)
    assert np.isnan(one["shard_std_last"])


def test_what_cannot_be_read_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A link in a circle, and a folder of somebody else: others are compared."""
    everything = len(frames.runs(folder))
    (folder / "circle.h5").symlink_to("circle.h5")
    scan = os.scandir

    def scandir(place: str) -> Any:
        if str(place).endswith("iid"):
            raise PermissionError(errno.EACCES, "Permission denied", place)
        return scan(place)

    monkeypatch.setattr(os, "scandir", scandir)
    assert len(frames.runs(folder)) == everything - 4
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"{folder}/iid: left out: permission denied",
        f"{folder}/circle.h5: left out: too many levels of symbolic links",
    ]


def test_a_pipe_is_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is open at its other end here, for a reader that tries it to fail and not to wait."""
    (tmp_path / "null.h5").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "pipe.h5")
    other_end = os.open(tmp_path / "pipe.h5", os.O_RDWR)
    try:
        assert frames.find(tmp_path) == []
    finally:
        os.close(other_end)
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path}/{name}.h5: left out: no plain file; wanted a result (HDF5)"
        for name in ("null", "pipe")
    ]


def test_without_validation_there_is_no_best_round(tmp_path: Path) -> None:
    rows = rounds([0.5, 0.9], validation=[np.nan, np.nan])
    one = frames.runs(write(tmp_path / "a.h5", settings(), rows)).iloc[0]
    assert one["best_round"] is pd.NA
    assert np.isnan(one["accuracy_best"])


def test_the_last_accuracy_is_the_last_that_was_measured(tmp_path: Path) -> None:
    one = frames.runs(write(tmp_path / "a.h5", settings(), rounds([np.nan, 0.3, np.nan]))).iloc[0]
    assert one["accuracy_last"] == 0.3
    assert one["rounds_done"] == 3


def test_without_a_global_model_the_last_local_accuracies_count(tmp_path: Path) -> None:
    rows = rounds([0.1, 0.2, 0.3])
    for name in ("accuracy", "validation", "shard_mean", "shard_std", "shard_min"):
        rows[name] = np.nan
    rows["personal_mean"] = [0.5, 0.6, np.nan]
    (one,) = frames.runs(write(tmp_path / "a.h5", settings("fedper"), rows)).to_dict("records")
    assert np.isnan(one["accuracy_last"]) and one["personal_mean_last"] == 0.6


def test_what_is_paid_once_is_kept_apart(tmp_path: Path) -> None:
    rows = rounds([0.5, 0.6, 0.7], up=60, once=500)
    rows["up"][-1] = 90
    one = frames.runs(write(tmp_path / "a.h5", settings("ssfl"), rows)).iloc[0]
    assert (one["up_once"], one["down_once"], one["bytes_once"]) == (500, 1000, 1500)
    assert (one["up_rounds"], one["down_rounds"]) == (210, 3000)
    assert (one["up_round"], one["down_round"]) == (70, 1000)
    assert (one["up_total"], one["down_total"], one["bytes_total"]) == (710, 4000, 4710)
    assert one["rounds_done"] == 3


def test_the_warm_up_is_not_timed(tmp_path: Path) -> None:
    rows = rounds([0.5] * 4, once=500)
    rows["seconds"][-1] = 4
    one = frames.runs(write(tmp_path / "a.h5", settings("ssfl"), rows)).iloc[0]
    assert one["seconds_once"] == 1
    assert one["seconds_round"] == 1
    assert one["seconds_total"] == 1 + 1 + 1 + 4
    only = frames.runs(write(tmp_path / "b.h5", settings(), rounds([0.5]))).iloc[0]
    assert np.isnan(only["seconds_round"])
    assert np.isnan(only["seconds_total"])


def test_settings_keep_their_types_where_some_runs_lack_them(folder: Path) -> None:
    runs = frames.runs(folder)
    assert len(runs) == 11
    dense = runs[runs["method.name"] == "fedavg"].iloc[0]
    assert dense["method.sparsity"] is pd.NA
    assert dense["local_steps"] is pd.NA
    assert runs["rounds"].dtype == "Int64"
    assert runs["partition.alpha"].dtype == "Float64"
    assert dense["data.shape"] == (1, 8, 8)
    assert dense["about.hosts"] == ("a",)
    assert dense["about.ranks"] == 1
    assert set(runs["status"]) == {"done", "running", "failed", "diverged"}
    assert set(frames.RESULTS) <= set(runs.columns)


def test_settings_vary_that_differ(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "a.h5", settings(lr=1) | {"lr": 0.1}, rounds([0.5])),
        write(tmp_path / "b.h5", settings("ssfl", sparsity=0.5) | {"lr": 0.2}, rounds([0.5])),
        write(tmp_path / "c.h5", settings("splitfed", cut=None) | {"lr": 0.2}, rounds([0.5])),
    ]
    # Only one method has a sparsity, and only one value of it.
    assert frames.varying(frames.runs(paths)) == ["lr", "method.name"]
    cut = write(tmp_path / "d.h5", settings("splitfed", cut="act1") | {"lr": 0.2}, rounds([0.5]))
    assert frames.varying(frames.runs([*paths, cut])) == ["lr", "method.name", "method.cut"]
    steps = write(tmp_path / "e.h5", settings() | {"local_steps": 5}, rounds([0.5]))
    assert "local_steps" in frames.varying(frames.runs([*paths, steps]))


def test_tables_are_joined_with_the_settings_that_vary(folder: Path) -> None:
    found = frames.rounds(folder)
    head = ["run", "status", "path", "seed", "partition.name", "method.name", "method.sparsity"]
    assert list(found.columns) == [*head, *tables.ROUNDS]
    runs = frames.runs(folder)
    assert len(found) == (runs["rounds_done"] + (runs["up_once"] > 0)).sum()
    sums = found.groupby("path")["up"].sum()
    pd.testing.assert_series_equal(sums, runs.set_index("path")["up_total"].sort_index(), **LAX)
    assert set(frames.phases(folder)["phase"]) == {"train", "serve"}
    assert len(frames.clients(folder)) == 2 * len(frames.ranks(folder)) == 2 * len(found)


LAX: dict[str, Any] = {"check_names": False, "check_index_type": False}


def test_a_setting_named_like_a_column_is_told_apart(tmp_path: Path) -> None:
    for seed in (1, 2):
        tree = settings(seed=seed) | {"validation": seed / 10}
        write(tmp_path / f"{seed}.h5", tree, rounds([0.5], validation=[0.75]))
    found = frames.rounds(tmp_path)
    assert list(found["settings.validation"]) == [0.1, 0.2]
    assert list(found["validation"]) == [0.75, 0.75]


def test_a_round_that_was_cut_short_does_not_count(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", settings(), rounds([0.5, 0.6]), "running")
    with h5py.File(path, "r+") as file:
        file["rounds"].resize(1, axis=0)
    assert set(frames.clients(path)["round"]) == {0}


def test_a_run_without_a_round_can_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", settings(), rounds([])[:0], "running")
    one = frames.runs(path).iloc[0]
    assert one["rounds_done"] == 0
    assert one["bytes_total"] == 0
    assert np.isnan(one["up_round"])
    assert frames.phases(path).empty


def test_other_files_are_named_once_and_left_out(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "text.h5").write_text("no HDF5")
    with h5py.File(folder / "other.h5", "w") as file:
        file["rounds"] = [1]
    assert len(frames.find([folder, folder / "running.h5"])) == 11
    frames.runs(folder)
    said = capfd.readouterr().err
    assert said.count("text.h5") == said.count("other.h5") == 1
    assert "no settings" in said
    with pytest.raises(FileNotFoundError, match="nowhere"):
        frames.find(folder / "nowhere")


def test_seeds_are_averaged_and_what_ended_ill_is_not(folder: Path) -> None:
    rows = groups.summary(frames.runs(folder))
    assert list(rows["group"]) == ["iid"] * 3 + ["dirichlet alpha=0.1"] * 3
    assert list(rows["variant"]) == ["fedavg", "ssfl", "ssfl"] * 2
    assert list(rows["n"]) == [2, 1, 1] * 2
    assert rows["seeds"][0] == "1 2"
    np.testing.assert_allclose(rows["accuracy_last_mean"], [0.85, 0.7, 0.6, 0.75, 0.6, 0.5])
    np.testing.assert_allclose(rows["accuracy_last_std"][:2], [0.1 / 2**0.5, np.nan])
    np.testing.assert_allclose(rows["up_round_mean"][:3], [100, 50, 10])
    np.testing.assert_allclose(rows["bytes_total_mean"][:3], [3300, 4650, 4530])


def test_a_run_that_is_there_twice_counts_once(folder: Path) -> None:
    later = write(folder / "again.h5", settings(seed=1), rounds([0.5, 0.6, 0.4]), ranks=4)
    with h5py.File(later, "r+") as file:
        file.attrs["finished"] = "2999-01-01T00:00:00+00:00"
    first = groups.summary(frames.runs(folder)).iloc[0]
    assert first["n"] == 2
    assert first["accuracy_last_mean"] == pytest.approx((0.4 + 0.9) / 2)
    outside = groups.labelled(frames.runs(folder)).query("reason == 'repeated'")
    assert [Path(path).name for path in outside["path"]] == ["fedavg1.h5"]
    rows = groups.summary(frames.runs(folder), by=["about.ranks"])
    assert list(rows["variant"][:2]) == ["fedavg ranks=1", "fedavg ranks=4"]
    assert list(rows["n"][:2]) == [2, 1]
    assert "about.ranks is 1, 4" in run(compare.main, folder).output


def test_an_unknown_number_is_not_averaged_away(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", settings(seed=1), rounds([0.5]))
    write(tmp_path / "b.h5", settings(seed=2), rounds([0.5], validation=[np.nan]))
    row = groups.summary(frames.runs(tmp_path)).iloc[0]
    assert row["n"] == 2
    assert np.isnan(row["accuracy_best_mean"])


def test_the_table(folder: Path) -> None:
    result = run(compare.main, folder)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert max(map(len, lines)) <= 120
    iid = lines[lines.index(next(line for line in lines if line.strip() == "iid")) :]
    row = next(line for line in iid if line.startswith("fedavg")).split()
    # Seeds of 80 % and 90 %; no bytes once, so that nothing is best at it.
    accuracies = ["85.0±7.1*", "85.0±7.1*", "86.0±7.1*", "75.0±7.1*", "65.0±7.1*"]
    cost = ["100", "B", "1.00", "kB", "0", "B", "3.30", "kB*", "1.00", "s"]
    assert row == ["fedavg", "–", "2", *accuracies, *cost]
    assert "0.9" in iid[5]
    assert "10 B*" in iid[5]
    assert "1.50 kB" in iid[5]
    ill = lines[lines.index("Not in the tables (3):") + 1 :]
    assert [line.split()[0] for line in ill] == ["running", "failed", "diverged"]
    assert all("2 of 3 rounds" in line for line in ill)


def test_runs_on_different_samples_are_not_comparable(tmp_path: Path) -> None:
    for method, seed, shards in (("a", 1, "x"), ("b", 1, "x"), ("a", 2, "x"), ("b", 2, "y")):
        tree = settings(method, seed=seed)
        write(tmp_path / f"{method}{seed}.h5", tree, rounds([0.5]), partition_sha256=shards)
    notes = [line for line in run(compare.main, tmp_path).output.splitlines() if "Not comp" in line]
    assert notes == ["Not comparable: iid, seed 2: clients' samples differ."]


def test_a_narrow_terminal_gets_two_tables(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run(compare.main, folder).output.splitlines()
    assert sum(line.startswith("fedavg") for line in lines) == 4
    assert max(len(line.rstrip()) for line in lines if "ssfl" in line) <= 80


def test_a_sparsity_that_is_not_used_is_not_shown(tmp_path: Path) -> None:
    """With method.saved SPATL's method.sparsity has no effect."""
    for name, more in (("a", {}), ("b", {"saved": 0.4})):
        tree = settings("spatl", sparsity=0.5, **more)
        write(tmp_path / f"{name}.h5", tree, rounds([0.5]))
    known = groups.labelled(frames.runs(tmp_path)).set_index("variant")["sparsity"]
    assert known["spatl"] == 0.5 and pd.isna(known["spatl saved=0.4"])


def test_a_terminal_that_is_too_narrow_wraps_and_nothing_is_cut(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for columns in ("100", "20"):
        monkeypatch.setenv("COLUMNS", columns)
        lines = run(compare.main, folder).output.splitlines()
        found.append([line.split() for line in lines if line.startswith(("fedavg", "ssfl"))])
    assert found[0] == found[1] and len(found[0]) > 2


def test_the_best_are_marked() -> None:
    rows = pd.DataFrame({"up_round_mean": [5.0, 3.0, 3.0], "up_round_std": np.nan})
    column = terminal.Column("up_round", "", "bytes")
    assert column.best(rows) == {1, 2}
    assert column.best(rows[1:]) == set()  # all are equal
    assert column.best(rows.assign(up_round_mean=[0.0, 0.0, 2.0])) == set()  # nothing was sent
    shares = pd.DataFrame({"accuracy_last_mean": [0.90001, 0.9, np.nan, 0.8]})
    assert terminal.Column("accuracy_last", "", "share").best(shares) == {0, 1}


def test_numbers_are_readable() -> None:
    numbers = [(0, 0), (999, 0), (999.6, 0), (12345, 0), (123456, 1000), (1e9, 0), (np.nan, 0)]
    rows = pd.DataFrame(numbers, columns=["up_round_mean", "up_round_std"])
    texts = terminal.Column("up_round", "", "bytes").texts(rows)
    assert texts == ["0 B", "999 B", "1.00 kB", "12.3 kB", "123±1 kB", "1.00 GB", "–"]
    rows.columns = pd.Index(["seconds_round_mean", "seconds_round_std"])
    rows["seconds_round_mean"] = [1e-5, 0.01234, 0.9996, 12.34, 3600.0, 1.0, np.nan]
    rows["seconds_round_std"] = 0.0
    texts = terminal.Column("seconds_round", "", "seconds").texts(rows)
    assert texts == ["10.0 µs", "12.3 ms", "1.00 s", "12.3 s", "3600 s", "1.00 s", "–"]


def test_all_numbers_as_csv_and_json(folder: Path) -> None:
    result = run(compare.main, folder, "--csv", folder / "deep" / "t.csv", "--json")
    found = json.loads(result.stdout)
    rows = groups.summary(frames.runs(folder))
    means = [row["accuracy_last_mean"] for row in found]
    np.testing.assert_allclose(means, rows["accuracy_last_mean"])
    assert found[0]["sparsity"] is None
    assert found[1]["method.sparsity"] == 0.5
    table = pd.read_csv(folder / "deep" / "t.csv")
    assert list(table.columns) == list(rows.columns)
    np.testing.assert_allclose(table["bytes_total_mean"], rows["bytes_total_mean"])


def test_the_picture(folder: Path) -> None:
    figure = tradeoff.picture(groups.summary(frames.runs(folder)), way="up")
    left, right = figure.axes
    assert [panel.get_title() for panel in (left, right)] == ["iid", "dirichlet alpha=0.1"]
    assert left.get_shared_y_axes().joined(left, right)
    assert left.get_xscale() == "log"
    fedavg, ssfl = (part for part in left.containers if isinstance(part, ErrorbarContainer))
    # 3 rounds of 100 bytes, and 500 once with 3 rounds of 50 or 10.
    np.testing.assert_allclose(fedavg.lines[0].get_xydata(), [[300, 85]])
    np.testing.assert_allclose(ssfl.lines[0].get_xydata(), [[650, 70], [530, 60]])
    assert fedavg.lines[0].get_linestyle() == "None"
    assert ssfl.lines[0].get_linestyle() == "-"
    assert fedavg.lines[0].get_marker() != ssfl.lines[0].get_marker()
    (bar,) = fedavg.lines[2][0].get_segments()
    np.testing.assert_allclose(bar[:, 1], [85 - 10 / 2**0.5, 85 + 10 / 2**0.5])
    assert [text.get_text() for text in left.texts] == ["0.5", "0.9"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["fedavg", "ssfl"]
    figure.draw_without_rendering()
    for panel in figure.axes:
        assert not legend.get_window_extent().overlaps(panel.get_window_extent())


def test_long_names_stay_in_the_picture() -> None:
    """They were cut off on both sides."""
    figure, (panel,) = panels.figure([""], 2)
    long = " ".join(["method.setting=value"] * 9)
    names = {name: panel.plot([0, 1])[0] for name in ("short", long)}
    panels.legend(figure, names)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height
    assert not box.overlaps(panel.get_window_extent())
    assert [text.get_text().replace("\n", " ") for text in legend.get_texts()] == ["short", long]


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_the_picture_is_written(folder: Path, suffix: str) -> None:
    out = folder / "pictures" / f"t.{suffix}"
    words = ["--bytes", "total", "--accuracy", "personal_mean", "--at", "best", "--out", out]
    result = run(tradeoff.main, folder, *words)
    assert result.exit_code == 0, result.output
    assert out.read_bytes().startswith({"png": b"\x89PNG", "pdf": b"%PDF"}[suffix])


@pytest.mark.parametrize("place", ["file/t", "folder", "n" * 260, "link", "/dev/full"])
@pytest.mark.parametrize("option", ["--csv", "--out"])
def test_places_that_take_no_file(
    folder: Path, place: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence, and nothing is left there."""
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.chdir(there)
    suffix = {"--csv": ".csv", "--out": ".png"}[option]
    Path("file").touch()
    Path(f"folder{suffix}").mkdir()
    Path(f"link{suffix}").symlink_to("nowhere")
    if place == "/dev/full":
        Path(f"full{suffix}").symlink_to(place)
        place = "full"
    before = sorted(Path().iterdir())
    command = {"--csv": compare.main, "--out": tradeoff.main}[option]
    found = run(command, folder, option, f"{place}{suffix}")
    assert found.exit_code == 2
    assert place[:50] in found.output.replace("\n", "")
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("command", "option", "name"),
    [
        (compare.main, "--csv", "iid/fedavg1.h5"),
        (compare.main, "--csv", "trace.csv"),
        (compare.main, "--csv", "settings.toml"),
        (tradeoff.main, "--out", "notes.pdf"),
        (tradeoff.main, "--out", "iid/fedavg1.h5"),
    ],
)
def test_what_is_something_else_is_not_replaced(
    command: Any, option: str, name: str, folder: Path
) -> None:
    """A result, one of those that are compared; a device trace, settings, and notes."""
    for other in ("trace.csv", "settings.toml", "notes.pdf"):
        (folder / other).write_text("round,client\n0,1\n")
    before = (folder / name).read_bytes()
    found = run(command, folder, option, folder / name)
    assert found.exit_code == 2
    assert re.search(r"is not replaced|wanted a name that ends in", found.output)
    assert (folder / name).read_bytes() == before


@pytest.mark.parametrize("name", ["t.CSV", "t.PNG", "t.pdf", "t.svg"])
def test_what_a_command_wrote_is_replaced(name: str, folder: Path) -> None:
    """So is an empty file, which `mktemp` may have made; whatever case the suffix is in."""
    command, option = (compare.main, "--csv") if "CSV" in name else (tradeoff.main, "--out")
    (folder / name).touch()
    for _ in range(2):
        found = run(command, folder, option, folder / name)
        assert found.exit_code == 0, found.output
        assert (folder / name).stat().st_size > 0


@pytest.mark.parametrize("command", [targets.main, trajectory.main])
@pytest.mark.parametrize("share", ["nan", "-nan", "1.1", "inf"])
def test_a_target_is_a_share(command: Any, share: str, folder: Path) -> None:
    found = run(command, folder, f"--target={share}")
    assert found.exit_code == 2
    assert f"{share} is not in the range" in found.output


@pytest.mark.parametrize("name", ["", " ", "t/", "new/t.csv/"])
@pytest.mark.parametrize(("command", "option"), [(compare.main, "--csv"), (tradeoff.main, "--out")])
def test_what_names_no_file(
    command: Any, option: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    found = run(command, folder, option, name)
    assert found.exit_code == 2
    assert f"Wanted the name of a file, found {name!r}" in found.output
    assert sorted(folder.rglob("*")) == before


def test_many_methods_and_panels(folder: Path) -> None:
    rows = groups.summary(frames.runs(folder))
    rows = pd.concat([rows.assign(variant=rows["variant"] + f" lr={lr}") for lr in range(5)])
    rows = pd.concat([rows.assign(group=rows["group"] + f" clients={n}") for n in range(3)])
    figure = tradeoff.picture(rows)
    assert sum(panel.get_visible() for panel in figure.axes) == 6
    (legend,) = figure.legends
    looks = {(line.get_color(), line.get_marker()) for line in legend.get_lines()}
    assert len(looks) == len(legend.get_texts()) == 10
    figure.draw_without_rendering()
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


@pytest.mark.parametrize("lines", [1, 10])
def test_a_long_legend_takes_no_room_from_a_panel(lines: int) -> None:
    figure, (panel,) = panels.figure(["alone"], lines)
    handles = {
        f"a rather long name of a method {i:60}": panel.plot([0, 1])[0] for i in range(lines)
    }
    panels.legend(figure, handles)
    figure.draw_without_rendering()
    assert panel.get_window_extent().height / figure.dpi > 2


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (compare.main, []),
        (tradeoff.main, []),
        (trajectory.main, []),
        (targets.main, ["--target", "0.5"]),
        (along.main, ["--setting", "lr"]),
        (newcomers.main, []),
        (slices.main, []),
    ],
)
def test_bad_input_is_an_error_that_says_so(command: Any, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, message in (("empty", "no results"), ("nowhere", "does not exist")):
        result = run(command, tmp_path / path, *words)
        assert result.exit_code == 2
        assert message in result.output
    write(tmp_path / "a.h5", settings(), rounds([0.5]), "failed")
    result = run(command, tmp_path / "a.h5", *words)
    assert re.search("no finished run", result.output)
    assert result.exit_code == (0 if command is compare.main else 2)


def test_more_bad_input(folder: Path) -> None:
    result = run(compare.main, folder, "--by", "about.rank")
    assert result.exit_code == 2
    assert "about.ranks" in result.output
    result = run(tradeoff.main, folder, "--out", folder / "t.xyz")
    assert result.exit_code == 2
    assert ".pdf" in result.output


@pytest.fixture
def simulations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of fedavg, of 4 s and 6 s a round; an ssfl of 1 s, which begins with one more."""
    home = tmp_path_factory.mktemp("simulations")
    for seed, seconds, accuracy in ((1, 4.0, [0.2, 0.6, 0.8]), (2, 6.0, [0.4, 0.5, 0.9])):
        tree = settings(seed=seed)
        write(home / f"fedavg{seed}.h5", tree, simulated(rounds(accuracy), seconds))
    rows = simulated(rounds([0.1, 0.5, 0.7], once=500), 1.0)
    write(home / "ssfl.h5", settings("ssfl", sparsity=0.5), rows)
    return home


def test_what_devices_took_is_summed_up(simulations: Path, folder: Path) -> None:
    runs = frames.runs(simulations / "ssfl.h5").iloc[0]
    assert (runs["sim_seconds_total"], runs["sim_joules_total"]) == (4, 40)
    assert (runs["flops_total"], runs["lost_total"]) == (28, 4)
    without = frames.runs(folder / "iid" / "fedavg1.h5").iloc[0]
    assert np.isnan(without["sim_seconds_total"]) and np.isnan(without["flops_total"])
    found = run(compare.main, *simulations.glob("*.h5")).output
    assert "sim. energy" in found and "4.00 s*" in found and "40.0 J*" in found
    assert "sim." not in run(compare.main, folder / "iid" / "fedavg1.h5").output


def test_results_of_earlier_versions_know_no_devices(simulations: Path) -> None:
    path = simulations / "ssfl.h5"
    with h5py.File(path, "r+") as file:
        rows = file["rounds"][:]
        known = [n for n in rows.dtype.names if not n.startswith(("sim_", "lost"))]
        kept = np.empty(len(rows), [(name, rows.dtype[name]) for name in known])
        for name in known:
            kept[name] = rows[name]
        del file["rounds"]
        file["rounds"] = kept
    one = frames.runs(path).iloc[0]
    assert np.isnan(one["sim_seconds_total"]) and np.isnan(one["lost_total"])
    assert run(compare.main, path).exit_code == 0
    rows = trajectory.curves(frames.runs(path), frames.rounds(path), "time", "accuracy")
    assert rows.empty


def test_runs_on_other_data_are_not_averaged(tmp_path: Path) -> None:
    """Nor on another trace at the same path: both differ as if by a setting."""
    tree = settings() | {"trace": "a.csv"}
    for number, (data, trace) in enumerate(
        [("aa", "11"), ("bb", "11"), ("aa", "22"), ("aa", "11")]
    ):
        about = {"data_sha256": data * 32, "files_sha256": json.dumps({"trace": trace * 32})}
        write(tmp_path / f"{number}.h5", tree | {"seed": number}, rounds([0.5]), **about)
    runs = frames.runs(tmp_path)
    assert {"sha256.data", "sha256.trace"} <= set(frames.varying(runs))
    rows = groups.summary(runs)
    assert sorted(rows["n"]) == [1, 1, 2]
    assert any("sha256.data=bbbbbbbb" in group for group in rows["group"])
    # Two data sets differ by their names alone.
    tree["data"] = {"name": "another"}
    about = {"data_sha256": "cc" * 32}
    write(tmp_path / "1.h5", tree, rounds([0.5]), **about)
    assert "sha256.data" not in frames.varying(frames.runs([tmp_path / "0.h5", tmp_path / "1.h5"]))


def test_runs_on_other_machines_are_averaged(tmp_path: Path) -> None:
    """Settings of the machine make no other run, nor does the path of the same file."""
    own = set(config.marked(config.Settings, config.MACHINE))
    for table in config.AXES:
        for name in config.names(table):
            kind = config.schema(table, name)
            own |= {f"{table}.{path}" for path in config.marked(kind, config.MACHINE)}
    assert set(frames.MACHINE) == own
    about = {"files_sha256": json.dumps({"trace": "11" * 32})}
    for seed in range(3):
        tree = settings(seed=seed) | {"threads": seed, "trace": f"{seed}.csv"}
        tree |= {"exchange": {"window": seed + 1}, "state": {"memory": seed, "folder": f"/{seed}"}}
        tree["data"] |= {"root": f"/{seed}", "cache": None}
        write(tmp_path / f"{seed}.h5", tree, rounds([0.5]), **about)
    runs = frames.runs(tmp_path)
    assert frames.varying(runs) == ["seed"]
    assert runs["threads"].tolist() == [0, 1, 2], "they are there all the same"
    assert groups.summary(runs)["n"].tolist() == [3]
    for seed, threads in ((0, 1), (1, 2), (2, 2)):
        with h5py.File(tmp_path / f"{seed}.h5", "r+") as file:
            file.attrs["threads_per_rank"] = threads
    said = run(compare.main, tmp_path).output
    assert "not of one kind: about.threads_per_rank is 1, 2. See --by" in " ".join(said.split())
    rows = groups.summary(frames.runs(tmp_path), ["about.threads_per_rank"])
    assert rows["n"].tolist() == [1, 2]


def test_results_of_earlier_versions_have_no_variants(tmp_path: Path) -> None:
    new, old = (write(tmp_path / f"{n}.h5", settings(), rounds([0.5, 0.6])) for n in ("new", "old"))
    with h5py.File(new, "r+") as file:
        row = tables.empty(tables.VARIANTS, 1)
        row["round"], row["share"], row["accuracy"] = 1, 0.25, 0.75
        del file["variants"]
        file["variants"] = row
    with h5py.File(old, "r+") as file:
        del file["variants"]
    found = frames.variants(tmp_path)
    assert found[["path", "round", "share", "accuracy"]].values.tolist() == [
        [str(new), 1, 0.25, 0.75]
    ]
    assert len(frames.variants(old)) == 0 and len(frames.runs(tmp_path)) == 2


@pytest.mark.parametrize("name", ["layers", "masks"])
def test_results_of_earlier_versions_have_no_agreements_in_detail(
    name: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.h5", settings(), rounds([0.5, 0.6]))
    read = getattr(frames, name)
    with h5py.File(path, "r+") as file:
        row = tables.empty(tables.TABLES[name], 1)
        row["round"] = 1
        del file[name]
        file[name] = row
    assert read(path)["round"].tolist() == [1]
    with h5py.File(path, "r+") as file:
        del file[name]
    assert len(read(path)) == 0


def test_devices_are_settings_and_part_of_the_problem(tmp_path: Path) -> None:
    """A list of tables: each goes by its name."""
    for number, up in enumerate((1.0, 2.0)):
        tree = fleet(weak=0.5, strong=0.5)
        tree["devices"]["tiers"][0]["link"] = {"kind": "fixed", "up": up}
        write(tmp_path / f"{number}.h5", tree, rounds([0.5]))
    runs = frames.runs(tmp_path)
    assert frames.varying(runs) == ["devices.tiers[weak].link.up"]
    assert list(runs["devices.tiers[strong].name"]) == ["strong", "strong"]
    titles = set(groups.summary(runs)["group"])
    assert titles == {f"iid devices.tiers[weak].link.up={up}" for up in (1.0, 2.0)}


def test_devices_that_a_run_has_not_are_a_share_of_none(tmp_path: Path) -> None:
    trees = [settings(), fleet(weak=1.0), fleet(strong=0.75, weak=0.25), fleet(strong=1.0)]
    trees[0]["devices"] = {"tiers": [], "dropouts": 0.0}
    paths = [write(tmp_path / f"{i}.h5", tree, rounds([0.5])) for i, tree in enumerate(trees)]
    runs = frames.runs(paths[1:])
    assert list(runs["devices.tiers[weak].share"]) == [1, 0.25, 0]
    assert list(runs["devices.tiers[strong].share"]) == [0, 0.75, 1]
    # That a run knows nothing of a kind's link says no more than that it has none of the kind.
    shares = ["devices.tiers[weak].share", "devices.tiers[strong].share"]
    assert frames.varying(runs) == shares
    assert len(set(groups.labelled(runs)["group"])) == 3
    without = frames.runs(paths[:1] + paths[3:])
    assert list(without["devices.tiers[strong].share"].isna()) == [True, False]
    tables = [{"rate": 0.1}, {"rate": 0.2}]
    nameless = write(tmp_path / "4.h5", settings() | {"steps": tables}, rounds([0.5]))
    assert frames.runs(nameless)["steps[1].rate"][0] == 0.2


def test_curves(simulations: Path) -> None:
    runs, table = frames.runs(simulations), frames.rounds(simulations)
    fedavg, ssfl = trajectory.curves(runs, table, "time", "accuracy")["curves"]
    np.testing.assert_allclose(fedavg[0], [[4, 8, 12], [0.2, 0.6, 0.8]])
    np.testing.assert_allclose(fedavg[1], [[6, 12, 18], [0.4, 0.5, 0.9]])
    np.testing.assert_allclose(ssfl, [[[2, 3, 4], [0.1, 0.5, 0.7]]])
    _, ssfl = trajectory.curves(runs, table, "rounds", "accuracy")["curves"]
    np.testing.assert_allclose(ssfl[0][0], [1, 2, 3])
    _, ssfl = trajectory.curves(runs, table, "bytes", "shard_min")["curves"]
    np.testing.assert_allclose(ssfl, [[[2600, 3700, 4800], [0.0, 0.4, 0.6]]])
    # Both have begun after 6 s, and one has ended after 12; in between each keeps what it has.
    grid, mean, spread = trajectory.mean(fedavg)
    np.testing.assert_allclose(grid, [6, 8, 12])
    np.testing.assert_allclose(mean, [(0.2 + 0.4) / 2, (0.6 + 0.4) / 2, (0.8 + 0.5) / 2])
    np.testing.assert_allclose(spread, np.array([0.2, 0.2, 0.3]) / 2**0.5)


def test_the_trajectory(simulations: Path) -> None:
    rows = trajectory.curves(
        frames.runs(simulations), frames.rounds(simulations), "time", "accuracy"
    )
    (panel,) = trajectory.picture(rows, "time", "accuracy", 0.5).axes
    fedavg, ssfl, target = panel.get_lines()
    np.testing.assert_allclose(fedavg.get_xydata(), [[6, 30], [8, 50], [12, 65]])
    np.testing.assert_allclose(ssfl.get_xydata(), [[2, 10], [3, 50], [4, 70]])
    assert set(target.get_ydata()) == {50}
    assert fedavg.get_color() != ssfl.get_color()
    assert panel.get_xscale() == "log"
    (legend,) = panel.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["fedavg", "ssfl 0.5"]
    assert trajectory.picture(rows, "rounds").axes[0].get_xscale() == "linear"


def crowd(variants: int, sparsities: int) -> pd.DataFrame:
    """Curves of so many methods and sparsities, two of which are equal but for their look."""
    shares = [None, *np.linspace(0.1, 0.9, sparsities - 1)]
    rows = [
        {"group": "iid", "variant": f"m{number}", "sparsity": share, "curves": [(x, y)] * 2}
        for number in range(variants)
        for share in shares
        for x, y in [(np.arange(1.0, 9.0), np.linspace(0.1, 0.9 - number / 100, 8))]
    ]
    return pd.DataFrame(rows).astype({"sparsity": "Float64"})


@pytest.mark.parametrize(("variants", "sparsities"), [(45, 8), (77, 1)])
def test_no_two_lines_of_a_trajectory_look_alike(variants: int, sparsities: int) -> None:
    rows = crowd(variants, sparsities)
    assert len(set(panels.looks(rows).values())) == len(rows)
    found = appearances(trajectory.picture(rows, "rounds"))
    assert len(set(found)) == len(found) == len(rows)


def test_no_two_methods_of_a_tradeoff_look_alike(folder: Path) -> None:
    rows = groups.summary(frames.runs(folder))
    one = rows[rows["group"] == rows["group"].iloc[0]].iloc[:1]
    rows = pd.concat([one.assign(variant=f"m{number}") for number in range(77)])
    found = appearances(tradeoff.picture(rows))
    assert len(set(found)) == len(found) == 77


@pytest.mark.parametrize(
    ("variants", "sparsities", "match"),
    [
        (78, 1, "78 methods or variants in one picture: wanted at most 77"),
        (1, 9, "9 sparsities of m0 in one picture: wanted at most 8"),
    ],
)
def test_more_lines_than_can_be_told_apart(variants: int, sparsities: int, match: str) -> None:
    with pytest.raises(click.UsageError, match=match):
        trajectory.picture(crowd(variants, sparsities), "rounds")


def test_without_devices_there_is_no_time(folder: Path) -> None:
    result = run(trajectory.main, folder, "--out", folder / "t.png")
    assert result.exit_code == 2
    assert "possible are --x bytes" in " ".join(result.output.split())
    assert run(trajectory.main, folder, "--x", "bytes", "--out", folder / "t.png").exit_code == 0


def test_amounts() -> None:
    found = [panels.amount(count, panels.BYTES, 3) for count in (0, 12, 1234, 5e6)]
    assert found == ["0 B", "12 B", "1.23 kB", "5 MB"]
    assert panels.amount(20, ((1, ""),)) == "20"


BLOCKED = """
import runpy, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("fedmpi", "torch", "mpi4py", "pydantic"):
            raise ImportError(f"{name}: results outlive code")
sys.meta_path.insert(0, Block())
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("compare", []),
        ("targets", ["--target", "0.5"]),
        ("tradeoff", ["--out", "t.png"]),
        ("trajectory", ["--out", "t.png", "--x", "rounds"]),
        ("along", ["--out", "t.png", "--setting", "partition"]),
    ],
)
def test_files_are_enough(folder: Path, module: str, words: list[str]) -> None:
    words = [str(folder / word) if word == "t.png" else word for word in words]
    command = [sys.executable, "-c", BLOCKED, f"analysis.{module}", folder, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    helped = subprocess.run([*command[:4], "--help"], cwd=ROOT, capture_output=True, text=True)
    assert helped.returncode == 0
    assert "Usage" in helped.stdout


def test_a_methods_name_says_what_it_stands_for(tmp_path: Path) -> None:
    """And what another method adds of it is said, so that methods are compared, not settings."""
    given = [
        ("fedavg", {}),
        ("scaffold", {"control": "mean"}),
        ("fedopt", {"aggregation": {"server": "adam"}}),
        ("topk", {"aggregation": {"server": "adam"}}),
        ("qsgd", {"control": "mean"}),
        ("fedprox", {"proximal": 0.1}),
        ("fedprox", {"proximal": 1.0}),
    ]
    for number, (method, more) in enumerate(given):
        plain = {"control": "none", "proximal": 0.0, "aggregation": {"server": "none"}}
        write(tmp_path / f"{number}.h5", settings(method) | plain | more, rounds([0.5]))
    rows = groups.labelled(frames.runs(tmp_path))
    assert sorted(rows["variant"]) == [
        "fedavg",
        "fedopt",
        "fedprox proximal=0.1",
        "fedprox proximal=1.0",
        "qsgd control=mean",
        "scaffold",
        "topk aggregation.server=adam",
    ]
    assert set(rows["others"]) == {""}
    same = write(tmp_path / "same" / "0.h5", settings("topk") | {"control": "mean"}, rounds([0.5]))
    assert list(groups.labelled(frames.runs(same))["variant"]) == ["topk control=mean"]


def test_labels_have_codecs_and_feedback_where_there_are_some(tmp_path: Path) -> None:
    """A method that stands for feedback is not said to have it, and none is said to have none."""
    given = [
        ("fedavg", {}),
        ("fedavg", {"codec": {"values": "sign"}, "feedback": "ef21"}),
        ("topk", {"feedback": "classic"}),
        ("stc", {"feedback": "classic"}),
        ("fedprox", {"codec": {"values": "f4", "down": {"values": "f4", "sparsity": 0.9}}}),
    ]
    for number, (method, more) in enumerate(given):
        plain = {"feedback": "none", "codec": {"values": "f4", "down": {"values": "none"}}}
        write(tmp_path / f"{number}.h5", settings(method) | plain | more, rounds([0.5]))
    rows = groups.labelled(frames.runs(tmp_path))
    assert sorted(rows["variant"]) == [
        "fedavg",
        "fedavg feedback=ef21 codec.values=sign",
        "fedprox codec.down.values=f4 codec.down.sparsity=0.9",
        "stc",
        "topk",
    ]


def test_labels_have_what_trains_and_where_it_begins(tmp_path: Path) -> None:
    """They are no problem of their own, unless they are the model's shape."""
    given = [
        {"train": ["all"], "initial": None},
        {"train": ["all"], "initial": "a.safetensors", "fresh": ["head"]},
        {"train": ["adapters"], "initial": "a.safetensors", "lora": {"rank": 4}},
        {"train": ["block2", "head"], "initial": None},
        {"train": ["all"], "initial": None, "depth": 3},
    ]
    for number, model in enumerate(given):
        own = {"model": {"name": "vit", "depth": 2} | model}
        write(tmp_path / f"{number}.h5", settings("fedavg") | own, rounds([0.5]))
    rows = groups.labelled(frames.runs(tmp_path))
    assert sorted(rows["variant"]) == [
        "fedavg",
        "fedavg",
        "fedavg model.initial=a.safetensors model.fresh=head",
        "fedavg model.initial=a.safetensors model.train=adapters model.lora.rank=4",
        "fedavg model.train=block2,head",
    ]
    assert rows["group"].nunique() == 2
    assert rows["group"].str.contains("depth=").all()


def test_what_labels_leave_out_are_the_defaults() -> None:
    """Analysis outlives the program, and repeats its defaults."""
    tree = loading.load({}).tree()
    for path, value in groups.COMPOSED.items():
        at = tree
        for name in path.split("."):
            at = at[name]
        assert (tuple(at) if isinstance(at, list) else at) == value, path


def test_a_list_of_nothing_is_not_in_a_label(tmp_path: Path) -> None:
    """As a setting that is not set: an empty text behind `=` said nothing."""
    for place, value in enumerate(([], [30], [10, 20])):
        tree = settings("ssfl", sparsity=0.5, rediscover=value)
        write(tmp_path / f"{place}.h5", tree, rounds([0.1, 0.2]))
    found = groups.labelled(frames.runs(tmp_path))
    wanted = ["ssfl", "ssfl rediscover=10,20", "ssfl rediscover=30"]
    assert sorted(found["variant"]) == wanted and set(found["reason"]) == {""}


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("wide", [8, 14, 16, 22, 40, 99, 101, 1000])
def test_an_axis_has_several_ticks(columns: int, wide: float) -> None:
    """One number alone does not tell the scale of a logarithmic axis."""
    figure = Figure()
    panel = figure.subplots(1, columns, squeeze=False)[0][0]
    low = 1.1e6
    panel.set_xlim(low, wide * low)
    panels.scale(panel, panels.BYTES)
    panel.set_xlim(low, wide * low)
    seen = [one for one in panel.xaxis.get_majorticklocs() if low <= one <= wide * low]
    assert 2 <= len(seen) <= 7
