"""Runs as they go on, seen from another terminal: `fedmpi watch`.

Only files are read: results, their locks and the folders of their checkpoints. A frame looks at
the time and size of each file, and reads those that have changed.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedmpi.results import checkpoint, lease, record
from fedmpi.results.record import RecordError
from fedmpi.terminal.folder import ACCURACIES, results
from fedmpi.terminal.style import COLOURS, console, grid, number
from fedmpi.units import amount, clock

HEADS = (
    *("result", "method", "state", "checkpoint", "round", "accuracy", "", "bytes", "a round"),
    "left",
)
SPARE = ("a round", "", "checkpoint", "bytes", "method")
"""Columns that a narrow terminal does without, in this order."""
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 16
"""Points of a sparkline."""
SHORTEST = 8
"""Letters of a file's name that are shown at least."""
LAST = 10
"""Rounds by which the time of the next ones is estimated."""
CUT = "cut short"
"""State of a run that nobody goes on with, and that is not finished."""
OFF_CLOCK = (b"evaluate", b"record", b"save")
"""Phases that are no part of a round's seconds, but of the time that it takes."""


@dataclass(frozen=True)
class Seen:
    """What a result says of its run.

    Attributes:
        method: its name.
        status: as it is recorded.
        done: rounds that are recorded.
        rounds: those that it is to have.
        accuracies: measured ones, of the first kind that there is, a value for each evaluation.
        bytes: of all clients, up and down.
        seconds: a round takes, as the last ones did, evaluation and recording included; NaN if
            unknown.
    """

    method: str
    status: str
    done: int
    rounds: int
    accuracies: Sequence[float]
    bytes: float
    seconds: float


def watch(paths: Sequence[Path], every: float, once: bool) -> None:
    """Shows results and those in folders, until Ctrl-C.

    Args:
        paths: results and folders.
        every: seconds between two looks.
        once: shows all of them once and ends.

    Raises:
        RecordError: if a path is not there, or there is nothing to show once.
    """
    for path in paths:
        if not os.path.lexists(path):
            raise RecordError(f"{path}: no such file or folder")
    watcher, out = Watcher(paths), console()
    if once:
        frame = watcher.frame(len(watcher.look()))
        if not watcher.seen:
            raise RecordError(f"{paths[0]}: no results; wanted files *.h5 or *.hdf5")
        if out.is_terminal:
            frame = watcher.frame(len(watcher.seen), out.width)
        else:
            out.width = max(out.width, out.measure(frame, options=_wide(out)).maximum)
        out.print(frame)
        return
    with Live(console=out, auto_refresh=False, screen=out.is_terminal) as live:
        while True:
            watcher.look()
            live.update(watcher.frame(max(1, out.height - 3), out.width), refresh=True)
            time.sleep(every)


def _wide(out: Console) -> Any:
    return out.options.update(width=10_000)


class Watcher:
    """Results among files and folders, each read when it has changed.

    Attributes:
        seen: what was read, by path; a sentence for what cannot be read.
        names: how each is called.
        versions: the file that it was read from: number, time and size.
        reads: how many files were read so far.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self.seen: dict[Path, Seen | str] = {}
        self.versions: dict[Path, tuple[int, int, int]] = {}
        self.names: dict[Path, str] = {}
        self.reads = 0

    def look(self) -> list[Path]:
        """Reads what has changed; returns all results that there are."""
        self.names = dict(self._there())
        found = list(self.names)
        for path in found:
            try:
                about = os.stat(path)
            except OSError:
                continue
            version = about.st_ino, about.st_mtime_ns, about.st_size
            if self.versions.get(path) != version:
                self.reads += 1
                try:
                    self.seen[path] = record.read(path, _seen)
                except RecordError as error:
                    self.seen[path] = str(error).removeprefix(f"{path}: ")
                self.versions[path] = version
        for gone in self.seen.keys() - set(found):
            del self.seen[gone], self.versions[gone]
        return found

    def _there(self) -> Iterator[tuple[Path, str]]:
        """Results, and how they are called: in a folder by their paths from there."""
        for path in self.paths:
            if path.is_dir():
                for one in results(path, lambda error: None):
                    yield one, str(one.relative_to(path))
            elif path.exists():
                yield path, str(path)

    def frame(self, height: int, width: int | None = None) -> RenderableType:
        """A table of at most so many runs, those under way first; and how many there are.

        Args:
            height: most rows.
            width: of the terminal; None if there is room for all.
        """
        states = {path: self._state(path, one) for path, one in self.seen.items()}
        order = sorted(
            self.seen,
            key=lambda path: (states[path] != record.RUNNING, -self.versions[path][1], str(path)),
        )
        shown = [self._row(path, states[path]) for path in order[:height]]
        table = _table(shown, HEADS)
        if width is not None:
            table = _fitted(shown, width)
        counts = Counter(states.values())
        lost = [
            Text(f"{self.names[path]}: {one}", "red")
            for path in order[:height]
            if isinstance(one := self.seen[path], str)
        ]
        parts = ", ".join(f"{count} {state}" for state, count in counts.most_common())
        hidden = f"; {len(order) - height} not shown" if len(order) > height else ""
        runs = "run" if len(order) == 1 else "runs"
        total = f"{len(order)} {runs}: {parts}{hidden}" if order else "no results yet"
        return Group(table, *lost, Text(total, "dim"))

    def _state(self, path: Path, one: Seen | str) -> str:
        """A run's state: its status, unless nobody goes on with one that is not finished."""
        if isinstance(one, str):
            return "unreadable"
        if one.status == record.RUNNING and lease.holder(path) is None:
            return CUT
        return one.status

    def _row(self, path: Path, state: str) -> dict[str, Text]:
        """The cells of a run, by the heads of their columns."""
        one = self.seen[path]
        if isinstance(one, str):
            return {"result": Text(self.names[path]), "state": Text(state, "red")}
        age = self._checkpoint(path)
        cells = (
            Text(self.names[path]),
            Text(one.method),
            Text(state, COLOURS.get(state, "red")),
            Text("" if age is None else f"{clock(age)} old"),
            Text(f"{one.done}/{one.rounds}"),
            Text(number(one.accuracies[-1]) if one.accuracies else "-"),
            Text(sparkline(one.accuracies), "cyan"),
            Text(amount(one.bytes)),
            Text(clock(one.seconds) if np.isfinite(one.seconds) else "-"),
            Text(clock(self._left(path, one)) if self._is_timed(one, state) else ""),
        )
        return dict(zip(HEADS, cells, strict=True))

    def _is_timed(self, one: Seen, state: str) -> bool:
        return state == record.RUNNING and bool(np.isfinite(one.seconds))

    def _left(self, path: Path, one: Seen) -> float:
        """Seconds that a run will still take, as its last rounds took."""
        since = max(0.0, time.time() - self.versions[path][1] / 1e9)
        return max(0.0, (one.rounds - one.done) * one.seconds - min(since, one.seconds))

    def _checkpoint(self, path: Path) -> float | None:
        """Age of a run's newest checkpoint in seconds; None if it has none."""
        found = []
        with suppress(OSError), os.scandir(checkpoint.folder_of(path)) as inside:
            for folder in inside:
                with suppress(OSError):
                    found.append(os.stat(os.path.join(folder.path, checkpoint.MANIFEST)).st_mtime)
        return max(0.0, time.time() - max(found)) if found else None


def _fitted(rows: Sequence[dict[str, Text]], width: int) -> Table:
    """The table of some runs, without what a terminal of that width lacks the room for.

    First the names of files are cut, then columns are left out.
    """
    names = [row["result"] for row in rows]
    most = max((cell_len(name.plain) for name in names), default=0)
    for count in range(len(SPARE) + 1):
        heads = [head for head in HEADS if head not in SPARE[:count]]
        lacks = console().measure(_table(rows, heads), options=_wide(console())).maximum - width
        if most - lacks >= SHORTEST or lacks <= 0:
            break
    for name in names:
        name.truncate(max(SHORTEST, most - max(0, lacks)), overflow="ellipsis")
    return _table(rows, heads)


def _table(rows: Sequence[dict[str, Text]], heads: Sequence[str]) -> Table:
    """A table of some columns; one that has nothing in it is left out."""
    found = [h for h in heads if h != "checkpoint" or any(row.get(h) for row in rows)]
    left = [found.index(head) for head in ("result", "method", "state", "") if head in found]
    table = grid(*found, left=tuple(left))
    for row in rows:
        table.add_row(*(row.get(head, Text("")) for head in found))
    return table


def _seen(file: Any) -> Seen:
    """Reads what is shown of a result."""
    about, rounds = dict(file.attrs), record.rows(file, "rounds")
    settings = record.parsed(about, "settings")
    regular = rounds[rounds["round"] >= 0]
    measured = (regular[name][np.isfinite(regular[name])] for name in ACCURACIES)
    accuracies: list[float] = next((values.tolist() for values in measured if len(values)), [])
    last = regular[-LAST:]
    seconds = float("nan")
    if len(last):
        # The last rows of phases are those of the last rounds: as many of each round.
        table = file["phases"]
        each = -(-len(table) // max(1, len(rounds)))
        phases = table[max(0, len(table) - each * len(last)) :]
        off = np.isin(phases["phase"], OFF_CLOCK) & np.isin(phases["round"], last["round"])
        by_rank = np.bincount(phases["rank"][off], phases["seconds"][off])
        aside = by_rank[0] / len(last) if len(by_rank) else 0.0
        seconds = float(np.median(last["seconds"]) + aside)
    return Seen(
        str(settings["method"]["name"]),
        str(about["status"]),
        len(regular),
        int(settings["rounds"]),
        accuracies,
        float(rounds["up"].sum() + rounds["down"].sum()),
        seconds,
    )


def sparkline(values: Sequence[float]) -> str:
    """Values as bars, the smallest the lowest; of many, evenly chosen ones with the last."""
    if not values:
        return ""
    places = np.linspace(0, len(values) - 1, min(len(values), WIDTH)).round().astype(int)
    chosen = np.asarray(values, float)[places]
    least, most = chosen.min(), chosen.max()
    scale = (len(BARS) - 1) / (most - least) if most > least else 0.0
    return "".join(BARS[round((value - least) * scale)] for value in chosen)
