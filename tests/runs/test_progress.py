"""What a job shows of its rounds, on a terminal and in a log."""

import re
from typing import Any

import numpy as np
import pytest
from rich.progress import Progress

from fedmpi.results import tables
from fedmpi.runs import launch, progress
from fedmpi.runs.progress import Rounds, line


def row(t: int = 4) -> np.void:
    rows = tables.empty(tables.ROUNDS, 1)
    rows["round"], rows["loss"], rows["accuracy"] = t, 1.25, 0.5
    rows["up"], rows["down"], rows["seconds"] = 1_234_567, 890, 0.0625
    return rows[0]


def plain(text: str) -> str:
    """What a terminal shows, one behind the other."""
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)


class Eager(Progress):
    """Shows each change at once."""

    def update(self, *words: Any, **named: Any) -> None:
        super().update(*words, **named, refresh=True)


@pytest.fixture
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "Progress", Eager)
    monkeypatch.setenv(launch.PROGRESS, "1")
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still."""
    time = [1000.0]
    monkeypatch.setattr(progress, "monotonic", lambda: time[0])
    return time


def test_a_line_for_people() -> None:
    found = row()
    assert line(found) == "loss 1.250  accuracy 0.500  up 1.23 MB  down 890 B  62.5 ms"
    found["accuracy"] = np.nan
    assert line(found) == "loss 1.250  up 1.23 MB  down 890 B  62.5 ms"
    found["round"], found["loss"] = -1, np.nan
    assert line(found) == "agreement  up 1.23 MB  down 890 B  62.5 ms"


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Rounds([7], is_root=True).run(0, None) as show:
        show(row())
    assert capsys.readouterr().err == f"round 5/7  {line(row())}\n"


def test_nothing_but_on_the_root(capsys: pytest.CaptureFixture[str]) -> None:
    with Rounds([7], is_root=False).run(0, None) as show:
        show(row())
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("_terminal")
def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], now: list[float]) -> None:
    """The first round of a checkpoint counts neither as done here, nor in the time left."""
    with Rounds([7], is_root=True).run(0, 4) as show:
        now[0] += 90
        show(row())
    said = capsys.readouterr().err
    assert "\x1b[" in said
    assert re.search(r"5/7 \S+ 0:01:30 left 0:03:00 loss 1.250", plain(said))
    assert "rounds of all" not in said


@pytest.mark.usefixtures("_terminal")
def test_a_second_bar_of_all_runs(capsys: pytest.CaptureFixture[str], now: list[float]) -> None:
    """The first run was finished before, and the second one ends early: it diverges."""
    rounds = Rounds([30, 10, 6], is_root=True)
    with rounds.run(1, None) as show:
        now[0] += 60
        show(row(-1))
        assert rounds.done == 0
        show(row(0))
    said = plain(capsys.readouterr().err)
    assert re.search(r"1/16 \S+ 0:01:00 left 0:15:00 rounds of all, run 2 of 3", said)
    now[0] += 60
    with rounds.run(2, None) as show:
        show(row(0))
    said = plain(capsys.readouterr().err)
    assert re.search(r"2/7 \S+ 0:02:00 left 0:05:00 rounds of all, run 3 of 3", said)
    assert said.count("\n") and "rounds of all" not in said.splitlines()[-1]


def test_titles_say_how_long_a_sweep_will_take(now: list[float]) -> None:
    assert Rounds([7], is_root=True).title(0) == ""
    rounds = Rounds([30, 10, 10, 5], is_root=True)
    assert [rounds.title(place) for place in (0, 1)] == ["[1/4] ", "[2/4] "]
    with rounds.run(1, 5) as show:
        for t in range(5, 10):
            now[0] += 20
            show(row(t))
    assert rounds.title(2) == "[3/4, 1 m 40 s gone, about 5 m 0 s left] "
