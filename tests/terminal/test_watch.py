"""`fedmpi watch`: what runs are doing, from their files alone."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from fedmpi.__main__ import main
from fedmpi.results import lease, record
from fedmpi.results.record import DONE, FAILED
from fedmpi.terminal.watch import BARS, WIDTH, Watcher, sparkline
from fedmpi.units import clock
from tests.results.test_record import begin, finished, rows


def fedmpi(*words: str) -> Any:
    return CliRunner().invoke(main, words)


def cells(name: str | Path, text: str) -> list[str]:
    """A result's words in a frame."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return line.removeprefix(str(name)).split()


def test_a_run_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    file = begin(path)
    for t in range(2):
        found = rows(t, 0.5)
        found["rounds"]["accuracy"], found["rounds"]["seconds"] = [0.25, 0.5][t], 30.0
        found["rounds"]["up"] = found["rounds"]["down"] = 500
        found["phases"]["rank"], found["phases"]["seconds"] = range(7), 0.0
        found["phases"]["phase"] = "train"
        # The root's, off the clock; other ranks wait meanwhile.
        found["phases"]["phase"][:2], found["phases"]["rank"][:2] = ("evaluate", "record"), 0
        found["phases"]["seconds"][:2] = 4.0, 6.0
        file.append(found)
    shown = fedmpi("watch", "--once", str(tmp_path))
    assert (shown.exit_code, shown.stderr) == (0, "")
    what = cells("a.h5", shown.stdout)
    assert what[:5] == ["topk", "running", "2/3", "0.500", "▁█"]
    assert what[5:9] == ["2", "kB", "40.0", "s"]
    assert 0 < float(what[9]) <= 40 and what[10] == "s"
    assert shown.stdout.endswith("1 run: 1 running\n")
    file.held.release()
    assert cells(path, fedmpi("watch", "--once", str(path)).stdout)[1:3] == ["cut", "short"]
    file.file.close()
    record.mark_failed(path)
    assert cells(path, fedmpi("watch", "--once", str(path)).stdout)[1] == FAILED


def test_a_checkpoint_has_an_age(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    file = begin(path)
    manifest = tmp_path / "a.h5.checkpoints" / "round-000002" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.touch()
    (manifest.parent.parent / "round-000003").mkdir()  # unfinished
    os.utime(manifest, (0, manifest.stat().st_mtime - 7200))
    what = fedmpi("watch", "--once", str(path)).stdout
    file.fail()
    assert "2 h 0 m old" in what and "checkpoint" in what.splitlines()[0]


def test_what_has_not_changed_is_not_read_again(tmp_path: Path) -> None:
    """Of many files one is written; a frame then costs one of them."""
    for number in range(20):
        finished(tmp_path / f"{number}.h5", 0.1)
    file = begin(tmp_path / "live.h5")
    watcher = Watcher([tmp_path])
    assert len(watcher.look()) == watcher.reads == 21
    watcher.look()
    assert watcher.reads == 21
    for t in range(3):
        file.append(rows(t))
        watcher.look()
        assert watcher.reads == 22 + t
        assert watcher.seen[tmp_path / "live.h5"].done == t + 1  # type: ignore[union-attr]
    file.close(DONE)
    (tmp_path / "0.h5").unlink()
    assert len(watcher.look()) == len(watcher.seen) == 20
    assert watcher.seen[tmp_path / "live.h5"].status == DONE  # type: ignore[union-attr]


def test_runs_under_way_come_first_and_the_rest_is_counted(tmp_path: Path) -> None:
    for number in range(4):
        path = finished(tmp_path / f"{number}.h5", 0.1, status=[DONE, FAILED][number % 2])
        os.utime(path, (number, number))
    (tmp_path / "broken.h5").write_text("half")
    os.utime(tmp_path / "broken.h5", (9, 9))
    file = begin(tmp_path / "z.h5")
    os.utime(tmp_path / "z.h5", (1, 1))
    shown = fedmpi("watch", "--once", str(tmp_path)).stdout.splitlines()
    file.fail()
    names = [line.split()[0] for line in shown[1:-2]]
    assert names == ["z.h5", "broken.h5", "3.h5", "2.h5", "1.h5", "0.h5"]
    assert "unreadable" in shown[2]
    assert shown[-2] == "broken.h5: not an HDF5 file, or one that was cut off"
    counts = sorted(shown[-1].removeprefix("6 runs: ").split(", "))
    assert counts == ["1 running", "1 unreadable", "2 done", "2 failed"]
    watcher = Watcher([tmp_path])
    watcher.look()
    out = Console(width=200, file=io.StringIO())
    out.print(watcher.frame(2))
    assert "; 4 not shown" in out.file.getvalue()  # type: ignore[attr-defined]


def test_a_narrow_terminal_cuts_the_names_of_files_alone(tmp_path: Path) -> None:
    finished(tmp_path / f"{'long' * 20}.h5", 0.1)
    watcher, out = Watcher([tmp_path]), Console(width=80, file=io.StringIO())
    watcher.look()
    out.print(watcher.frame(9, 80))
    head, line, _ = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert head.split() == ["result", "method", "state", "round", "accuracy", "bytes", "a", "round",
                            "left"]  # fmt: skip
    assert line.split()[0].endswith("…") and line.count("…") == 1
    assert "topk" in line and "done" in line and "1/3" in line


@pytest.mark.parametrize("width", [40, 50, 60])
def test_a_very_narrow_terminal_does_without_some_columns(tmp_path: Path, width: int) -> None:
    """What is left can be read: the state and the rounds are whole at any width."""
    finished(tmp_path / f"{'long' * 20}.h5", 0.1)
    watcher, out = Watcher([tmp_path]), Console(width=width, file=io.StringIO())
    watcher.look()
    out.print(watcher.frame(9, width))
    head, line, _ = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert {"result", "state", "round"} <= set(head.split()) and "a round" not in head
    assert line.count("…") == 1 and "done" in line and "1/3" in line


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "a.h5", "no such file or folder"), (tmp_path, "no results")):
        shown = fedmpi("watch", "--once", str(path))
        assert (shown.exit_code, shown.stdout) == (2, "")
        assert shown.stderr.startswith(f"{path}: {said}")


def test_the_holder_decides_whether_a_run_goes_on(tmp_path: Path) -> None:
    path = finished(tmp_path / "a.h5", status=record.RUNNING)
    assert "cut short" in fedmpi("watch", "--once", str(path)).stdout
    with lease.take(path):
        assert " running " in fedmpi("watch", "--once", str(path)).stdout


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([], ""),
        ([0.3], BARS[0]),
        ([0.5, 0.5], BARS[0] * 2),
        ([0.0, 0.5, 1.0], "▁▅█"),
        (np.linspace(1, 0, 500).tolist(), "█▇▇▆▆▅▅▅▄▄▃▃▂▂▁▁"),
    ],
)
def test_sparkline(values: list[float], wanted: str) -> None:
    found = sparkline(values)
    assert len(found) == min(len(values), WIDTH)
    if len(values) <= WIDTH:
        assert found == wanted
    else:
        assert found[0] == BARS[-1] and found[-1] == BARS[0]
        assert [BARS.index(bar) for bar in found] == sorted(map(BARS.index, found), reverse=True)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12 ms"),
        (8.16, "8.2 s"),
        (59.97, "1 m 0 s"),
        (200.4, "3 m 20 s"),
        (3599.7, "1 h 0 m"),
        (7500, "2 h 5 m"),
        (90_000, "1 d 1 h"),
    ],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
