"""What a job shows of its rounds: bars on a terminal, else one plain line a round; on the root."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from time import monotonic

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
)
from rich.text import Text

from fedmpi.runs import launch
from fedmpi.units import amount, clock, duration


class Rounds:
    """Shows the rounds of a job's runs, one run after the other.

    With several runs, it also shows how far all of them are: the time left is estimated by rounds,
    as if a round took the same time in every run.

    Args:
        rounds: of each run, in their order.
        is_root: whether this rank shows anything.
    """

    def __init__(self, rounds: Sequence[int], is_root: bool) -> None:
        self.rounds, self.is_root = rounds, is_root
        self.done, self.begun = 0, monotonic()
        wanted = os.environ.get(launch.PROGRESS, str(int(sys.stderr.isatty())))
        self.has_bars = wanted == "1"

    def title(self, place: int) -> str:
        """Says which run begins; empty if there is one alone.

        Args:
            place: the run's, from 0.
        """
        count = len(self.rounds)
        if count < 2:
            return ""
        left = _left(self.begun, self.done, sum(self.rounds[place:]))
        if left is None:
            return f"[{place + 1}/{count}] "
        gone = monotonic() - self.begun
        return f"[{place + 1}/{count}, {clock(gone)} gone, about {clock(left)} left] "

    @contextmanager
    def run(self, place: int, first: int | None) -> Iterator[Callable[[np.void], None]]:
        """Shows the rounds of a run; what it gives takes each row of the table `rounds`.

        Args:
            place: the run's, from 0.
            first: the round with which it goes on from a checkpoint.
        """
        total, before = self.rounds[place], max(0, first or 0)
        if not self.is_root:
            yield lambda row: None
        elif self.has_bars:
            with self._bars(place, total, before) as show:
                yield lambda row: show(self._count(row), row)
        else:
            yield lambda row: say(f"round {self._count(row)}/{total}  {line(row)}")

    def _count(self, row: np.void) -> int:
        """Counts a round; returns how many its run has done, 0 after an agreement."""
        found = int(row["round"]) + 1
        self.done += found > 0
        return found

    @contextmanager
    def _bars(
        self, place: int, total: int, before: int
    ) -> Iterator[Callable[[int, np.void], None]]:
        """Bars of a run and, if there are several, of all; the latter goes when the run ends."""
        count, done = len(self.rounds), self.done
        columns = (MofNCompleteColumn(), BarColumn(16), _Times(), TextColumn("{task.description}"))
        # Forced, because the launcher stands between this process and the terminal.
        err = Console(stderr=True, force_terminal=True)
        with Progress(*columns, console=err, get_time=monotonic) as bars:
            one = bars.add_task("", total=total, completed=before, left=None)
            begun, every = monotonic(), None
            if count > 1:
                title = f"rounds of all, run {place + 1} of {count}"
                whole = done + sum(self.rounds[place:]) - before
                every = bars.add_task(title, total=whole, completed=done, left=None)
                bars.tasks[-1].start_time = self.begun

            def show(completed: int, row: np.void) -> None:
                left = _left(begun, self.done - done, total - completed)
                bars.update(one, completed=completed, description=line(row), left=left)
                if every is not None:
                    left = _left(self.begun, self.done, whole - self.done)
                    bars.update(every, completed=self.done, left=left)

            try:
                yield show
            finally:
                if every is not None:
                    bars.remove_task(every)


class _Times(ProgressColumn):
    """The time that has gone, and the time left."""

    def render(self, task: Task) -> Text:
        left = task.fields["left"]
        known = "-:--:--" if left is None else timedelta(seconds=round(left))
        return Text(f"{timedelta(seconds=int(task.elapsed or 0))} left {known}", "cyan")


def _left(begun: float, done: int, left: int) -> float | None:
    """Seconds for the rounds left, if they take as long as those since `begun`."""
    return (monotonic() - begun) / done * left if done else None


def say(text: str) -> None:
    """Prints a line on standard error; a log on a full disk loses it, and not the run."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def line(row: np.void) -> str:
    """A row of the table `rounds`, for people."""
    lost = "agreement" if row["round"] < 0 else f"loss {row['loss']:.3f}"
    seen = "" if np.isnan(row["accuracy"]) else f"accuracy {row['accuracy']:.3f}  "
    moved = f"up {amount(row['up'])}  down {amount(row['down'])}"
    return f"{lost}  {seen}{moved}  {duration(row['seconds'])}"
