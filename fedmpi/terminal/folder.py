"""All results in a folder, a line each: `fedmpi show FOLDER`."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rich.text import Text

from fedmpi.errors import sentence
from fedmpi.results import record
from fedmpi.results.record import Damaged, RecordError
from fedmpi.terminal.style import COLOURS, console, grid, number
from fedmpi.units import amount

ACCURACIES = ("accuracy", "shard_mean", "personal_mean")
"""Columns of a result, of which the first that was measured is listed."""
HEADS = ("method", "status", "rounds", "accuracy", "bytes", "started", "result")
LEGEND = """\
accuracy: of the global model on the test set, when last measured,
          else the mean over clients' test shards
bytes: of all clients, up and down"""
DAMAGE = (RecordError, OSError, LookupError, ValueError, RuntimeError, AttributeError, TypeError)
"""What reading a file raises that is no whole result."""


def show_folder(folder: Path) -> None:
    """Prints a line for each result in a folder, at any depth, and names damaged ones.

    Raises:
        RecordError: if there is none.
    """
    table = grid(*HEADS, left=(0, 1, 6))
    lost: list[str] = []

    def unreadable(error: OSError) -> None:
        lost.append(f"unreadable: {sentence(os.path.relpath(error.filename, folder), error)}")

    paths = list(results(folder, unreadable))
    for path in paths:
        name = str(path.relative_to(folder))
        try:
            table.add_row(*_line(path), Text(name))
        except DAMAGE as error:
            is_damage = isinstance(error, Damaged) or not isinstance(error, RecordError)
            said = str(error).removeprefix(f"{path}: ")
            lost.append(f"{'damaged' if is_damage else 'unreadable'}: {name}: {said}")
    if not (paths or lost):
        raise RecordError(f"{folder}: no results in this folder; wanted files *.h5 or *.hdf5")
    out = console()
    if table.row_count:
        # Nothing is cut: a terminal that is too narrow wraps the names of files.
        widest = out.measure(table, options=out.options.update(width=10_000)).maximum
        out.width = max(out.width, widest)
        out.print(table)
        out.print("", Text(LEGEND, "dim"), sep="\n")
    for line in lost:
        out.print(Text(line, "red"), soft_wrap=True)


def results(folder: Path, unreadable: Callable[[OSError], None]) -> Iterator[Path]:
    """The results in a folder and those below it, by their names, in order.

    Args:
        folder: where to look.
        unreadable: told of folders that cannot be looked into.
    """
    for place, inner, names in os.walk(folder, onerror=unreadable):
        inner.sort()
        for path in (Path(place) / name for name in sorted(names)):
            if record.is_named(path):
                yield path


def _line(path: Path) -> Iterator[str | Text]:
    """A result's cells in front of its name."""
    about, rounds = record.read(path, lambda file: (dict(file.attrs), record.rows(file, "rounds")))
    settings, status = record.parsed(about, "settings"), str(about["status"])
    regular = rounds[rounds["round"] >= 0]
    yield settings["method"]["name"]
    yield Text(status, COLOURS.get(status, "red"))
    yield f"{len(regular)} of {settings['rounds']}"
    measured = (regular[name][np.isfinite(regular[name])] for name in ACCURACIES)
    yield next((number(values[-1]) for values in measured if len(values)), "-")
    yield amount(float(rounds["up"].sum() + rounds["down"].sum()))
    yield str(about["started"])[:16].replace("T", " ")
