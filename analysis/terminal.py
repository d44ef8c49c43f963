"""Printed tables: a table for each group, a row for each method, means and deviations."""

import codecs
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.groups import is_unset

MISSING = "–"
LENIENT = "analysis"
"""Of the way in which an output treats what its encoding lacks."""
INSTEAD = {"±": "+-", "µ": "u", "–": "-"}
"""In ASCII, what is not in it."""
HIGHER = ("share", "factor")
"""Forms of numbers for which higher is better."""


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Attributes:
        name: name of the numbers; rows have `NAME_mean` and `NAME_std`.
        title: header of the column.
        form: share (shown in percent), bytes, seconds, joules, count, factor or number (three
            digits, of any size).
        missing: text for a missing number.
    """

    name: str
    title: str
    form: str
    missing: str = MISSING

    def best(self, rows: pd.DataFrame) -> set[int]:
        """Returns the positions in `rows` of the best means, compared by their shown digits.

        The set is empty if all means are equal, as with a single row, or if nothing was sent.
        """
        means = rows[f"{self.name}_mean"].to_numpy(float)
        if np.isnan(means).all():
            return set()
        top = np.nanmax(means) if self.form in HIGHER else np.nanmin(means)
        digits = self._text(top, 0.0)
        is_best = np.array([self._text(mean, 0.0) == digits for mean in means])
        if is_best[~np.isnan(means)].all() or (self.form not in HIGHER and top == 0):
            return set()
        return set(np.flatnonzero(is_best).tolist())

    def texts(self, rows: pd.DataFrame) -> list[str]:
        """Returns each row's mean, with its deviation if that is not 0 at the mean's digits."""
        pairs = zip(rows[f"{self.name}_mean"], rows[f"{self.name}_std"], strict=True)
        return [self._text(mean, 0.0 if np.isnan(std) else std) for mean, std in pairs]

    def _text(self, mean: float, std: float) -> str:
        return self.missing if np.isnan(mean) else FORMS[self.form](mean, std)


def _percent(mean: float, std: float) -> str:
    return f"{100 * mean:.1f}" + _deviation(f"{100 * std:.1f}")


def _bytes(mean: float, std: float) -> str:
    """Formats bytes in decimal units with three digits: 1 kB is 1000 B."""
    return _digits(mean, std, ("B", "kB", "MB", "GB", "TB", "PB"))


def _seconds(mean: float, std: float) -> str:
    if mean < 1:
        return _digits(1e6 * mean, 1e6 * std, ("µs", "ms", "s"))
    return _digits(mean, std, ("s",))


def _joules(mean: float, std: float) -> str:
    return _digits(mean, std, ("J", "kJ", "MJ", "GJ"))


def _count(mean: float, std: float) -> str:
    is_whole = mean == round(mean) and not std
    return f"{mean:.0f}" if is_whole else _digits(mean, std, ("",))


def _factor(mean: float, std: float) -> str:
    return _digits(mean, std, ("x",))


def _number(mean: float, std: float) -> str:
    return f"{mean:.3g}" + (f"±{std:.1g}" if std else "")


FORMS = {
    "share": _percent,
    "bytes": _bytes,
    "seconds": _seconds,
    "joules": _joules,
    "count": _count,
    "factor": _factor,
    "number": _number,
}


def _digits(mean: float, std: float, units: Sequence[str]) -> str:
    unit = 0
    while mean >= 999.5 and unit + 1 < len(units):
        mean, std, unit = mean / 1000, std / 1000, unit + 1
    whole = len(str(round(mean)))
    places = 0 if units[unit] == "B" and mean == round(mean) else max(0, 3 - whole)
    return f"{mean:.{places}f}{_deviation(f'{std:.{places}f}')} {units[unit]}".rstrip()


def _deviation(text: str) -> str:
    """Returns a standard deviation to follow its mean; "" if all of its digits are 0."""
    return f"±{text}" if float(text) else ""


def be_lenient() -> None:
    """Lets standard output and error write any text, whatever their encodings."""
    codecs.register_error(LENIENT, _instead)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=LENIENT)


def _instead(error: UnicodeError) -> tuple[str | bytes, int]:
    """Returns what is written for the first letter that cannot be, as Python calls it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    if 0xDC80 <= ord(letter) <= 0xDCFF:  # a byte of a path that is no text
        return bytes([ord(letter) - 0xDC00]), error.start + 1
    return INSTEAD.get(letter, "?"), error.start + 1


def console() -> Console:
    """Returns a console as wide as the terminal, which prints texts without markup."""
    width = shutil.get_terminal_size(fallback=(120, 24)).columns
    return Console(width=width, highlight=False, markup=False, emoji=False)


def show(
    console: Console,
    tables: Sequence[tuple[str, pd.DataFrame]],
    parts: Sequence[Sequence[Column]],
    count: str = "n",
    is_marked: bool = True,
) -> None:
    """Prints tables with equal columns; a table that is too wide is printed in several parts.

    Args:
        console: the console.
        tables: titles and rows: `variant`, `sparsity`, `n`, and the columns' means and deviations.
        parts: the columns, divided into the parts of a table that is too wide.
        count: header of the column `n`.
        is_marked: whether a table's best numbers are marked by a star.
    """
    whole = [column for part in parts for column in part]
    found = _tables(tables, whole, count, is_marked)
    if max(_width(console, table) for table in found) > console.width:
        pieces = [_tables(tables, part, count, is_marked) for part in parts]
        found = [table for some in zip(*pieces, strict=True) for table in some]
    narrow = console.width
    for table in found:
        # Wider than the terminal: that may wrap it, but nothing is cut.
        console.width = max(narrow, _width(console, table))
        console.print(table)
        console.print()
    console.width = narrow


def _width(console: Console, table: Table) -> int:
    return console.measure(table, options=console.options.update(width=10_000)).maximum


def _tables(
    tables: Sequence[tuple[str, pd.DataFrame]],
    columns: Sequence[Column],
    count: str,
    is_marked: bool,
) -> list[Table]:
    cells = {column.name: [column.texts(rows) for _, rows in tables] for column in columns}
    has_sparsity = any(rows["sparsity"].notna().any() for _, rows in tables)
    longest = max(int(rows["variant"].str.len().max()) for _, rows in tables)
    found = []
    for place, (title, rows) in enumerate(tables):
        table = Table(
            title=title, title_justify="left", title_style="bold",
            box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim",
        )  # fmt: skip
        table.add_column("method", min_width=longest, no_wrap=True)
        if has_sparsity:
            table.add_column("spar-\nsity", justify="right")
        table.add_column(count, justify="right", no_wrap=True)
        texts = []
        for column in columns:
            widest = max(len(text) for part in cells[column.name] for text in part)
            table.add_column(
                column.title.replace("\n", " \n") + " ", min_width=widest + 1, justify="right"
            )
            best = column.best(rows) if is_marked else set()
            marked = enumerate(cells[column.name][place])
            texts.append([_cell(t, i in best) for i, t in marked])
        for number, row in enumerate(rows.to_dict("records")):
            sparsity = [_sparsity(row["sparsity"])] if has_sparsity else []
            table.add_row(row["variant"], *sparsity, str(row["n"]), *(t[number] for t in texts))
        found.append(table)
    return found


def _cell(text: str, is_best: bool) -> Text:
    return Text(f"{text}*", style="bold") if is_best else Text(f"{text} ")


def _sparsity(value: Any) -> str:
    return MISSING if is_unset(value) else f"{value:g}"
