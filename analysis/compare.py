"""Methods side by side, in the terminal: accuracy, bytes and seconds, for each heterogeneity.

What makes a group and a row is in `groups`. Runs that are not averaged are listed below the tables.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis import frames
from analysis.groups import DONE, is_unset, label, labelled, summary

MACHINE = ("about.cpu", "about.device", "about.ranks")
"""Where these differ, seconds do not tell methods apart."""
SHARDS = "about.partition_sha256"
"""Hash of which client holds which samples: a group's runs of one seed should share it."""
MISSING = "–"


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Attributes:
        name: of the numbers, in `NUMBERS`.
        title: what stands above it.
        form: share (shown in percent), bytes, seconds or joules.
    """

    name: str
    title: str
    form: str

    def best(self, rows: pd.DataFrame) -> set[int]:
        """Places of the best means, as far as the digits tell, in `rows`.

        There are none if all are equal, or if nothing was sent.
        """
        means = rows[f"{self.name}_mean"].to_numpy(float)
        if np.isnan(means).all():
            return set()
        top = np.nanmax(means) if self.form == "share" else np.nanmin(means)
        digits = self._form(top, 0.0)
        is_best = np.array([self._form(mean, 0.0) == digits for mean in means])
        if is_best.all() or (self.form != "share" and top == 0):
            return set()
        return set(np.flatnonzero(is_best).tolist())

    def texts(self, rows: pd.DataFrame) -> list[str]:
        """Each row's number: its mean, and its deviation if that shows at the mean's digits."""
        pairs = zip(rows[f"{self.name}_mean"], rows[f"{self.name}_std"], strict=True)
        return [self._form(mean, 0.0 if np.isnan(std) else std) for mean, std in pairs]

    def _form(self, mean: float, std: float) -> str:
        forms = {"share": _percent, "bytes": _bytes, "seconds": _seconds, "joules": _joules}
        return forms[self.form](mean, std)


def _percent(mean: float, std: float) -> str:
    if np.isnan(mean):
        return MISSING
    return f"{100 * mean:.1f}" + _deviation(f"{100 * std:.1f}")


def _bytes(mean: float, std: float) -> str:
    """Decimal units, three digits: 1 kB is 1000 B."""
    return _digits(mean, std, ("B", "kB", "MB", "GB", "TB", "PB"))


def _seconds(mean: float, std: float) -> str:
    if mean < 1:
        return _digits(1e6 * mean, 1e6 * std, ("µs", "ms", "s"))
    return _digits(mean, std, ("s",))


def _joules(mean: float, std: float) -> str:
    return _digits(mean, std, ("J", "kJ", "MJ", "GJ"))


def _digits(mean: float, std: float, units: Sequence[str]) -> str:
    if np.isnan(mean):
        return MISSING
    unit = 0
    while mean >= 999.5 and unit + 1 < len(units):
        mean, std, unit = mean / 1000, std / 1000, unit + 1
    whole = len(str(round(mean)))
    places = 0 if units[unit] == "B" and mean == round(mean) else max(0, 3 - whole)
    return f"{mean:.{places}f}{_deviation(f'{std:.{places}f}')} {units[unit]}"


def _deviation(text: str) -> str:
    """A standard deviation behind its mean; nothing if all of its digits are 0."""
    return f"±{text}" if float(text) else ""


def columns(at: str, has_devices: bool) -> tuple[list[Column], list[Column]]:
    """The columns on quality and on cost; shards' accuracies are of the `last` or `best` round."""
    quality = [
        Column("accuracy_last", "accuracy\nlast", "share"),
        Column("accuracy_best", "accuracy\nbest val.", "share"),
        Column(f"shard_mean_{at}", "shards\nmean", "share"),
        Column(f"shard_min_{at}", "shards\nmin", "share"),
        Column(f"personal_mean_{at}", "personal\nmean", "share"),
    ]
    cost = [
        Column("up_round", "up\n/round", "bytes"),
        Column("down_round", "down\n/round", "bytes"),
        Column("bytes_once", "bytes\nonce", "bytes"),
        Column("bytes_total", "bytes\ntotal", "bytes"),
        Column("seconds_round", "time\n/round", "seconds"),
    ]
    simulated = [
        Column("sim_seconds_total", "sim. time\ntotal", "seconds"),
        Column("sim_joules_total", "sim. energy\ntotal", "joules"),
    ]
    return quality, cost + simulated * has_devices


def show(console: Console, rows: pd.DataFrame, at: str = "last") -> None:
    """Prints a `summary` as one table a group; as two of half the columns if it is too wide."""
    quality, cost = columns(at, has_devices(rows))
    whole = _tables(rows, quality + cost)
    if max(_width(console, table) for table in whole) <= console.width:
        tables = whole
    else:
        halves = zip(_tables(rows, quality), _tables(rows, cost), strict=True)
        tables = [table for pair in halves for table in pair]
    for table in tables:
        # Wider than the console: the terminal may wrap it, but nothing is cut.
        console.print(table, width=max(console.width, _width(console, table)))
        console.print()


def has_devices(rows: pd.DataFrame) -> bool:
    """Whether a run of a `summary` simulated devices."""
    return bool(rows["sim_seconds_total_mean"].notna().any())


def _width(console: Console, table: Table) -> int:
    return console.measure(table, options=console.options.update(width=10_000)).maximum


def _tables(rows: pd.DataFrame, columns: Sequence[Column]) -> list[Table]:
    """A table for each group, with equal columns."""
    groups = [some for _, some in rows.groupby("group", sort=False)]
    cells = {column.name: [column.texts(some) for some in groups] for column in columns}
    has_sparsity = rows["sparsity"].notna().any()
    tables = []
    for place, some in enumerate(groups):
        table = Table(
            title=some["group"].iloc[0], title_justify="left", title_style="bold",
            box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim",
        )  # fmt: skip
        table.add_column("method", min_width=rows["variant"].str.len().max(), no_wrap=True)
        if has_sparsity:
            table.add_column("spar-\nsity", justify="right")
        table.add_column("n", justify="right")
        texts = []
        for column in columns:
            widest = max(len(text) for part in cells[column.name] for text in part)
            table.add_column(
                column.title.replace("\n", " \n") + " ", min_width=widest + 1, justify="right"
            )
            best = column.best(some)
            marked = enumerate(cells[column.name][place])
            texts.append([_cell(t, i in best) for i, t in marked])
        for number, row in enumerate(some.to_dict("records")):
            sparsity = [_sparsity(row["sparsity"])] if has_sparsity else []
            table.add_row(row["variant"], *sparsity, str(row["n"]), *(t[number] for t in texts))
        tables.append(table)
    return tables


def _cell(text: str, is_best: bool) -> Text:
    return Text(f"{text}*", style="bold") if is_best else Text(f"{text} ")


def _sparsity(value: Any) -> str:
    return MISSING if is_unset(value) else f"{value:g}"


def notes(runs: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    """What a reader of the tables must know about their numbers."""
    found = [
        "* best of its group. Accuracies in %: of the global model on the test set, after the last "
        "round and in the round that was best on held-out samples; on the clients' test shards, of "
        "the global model, or of the server's part with their own; and of their local models.",
        "Bytes of all clients together, headers included, 1 kB = 1000 B; once: before the first "
        "round. Time: median round, without the warm-up.",
    ]
    if (rows["n"] > 1).any():
        found.append("± sample standard deviation of n runs with different seeds, where it shows.")
    if has_devices(rows):
        found.append(
            "sim.: what the clients' devices would take, by the measured bytes and counted FLOPs; "
            "time of the slowest client of each round, energy of all."
        )
    done = runs[runs["status"] == DONE]
    for name in MACHINE:
        if name in done and done[name].nunique() > 1:
            kinds = ", ".join(map(str, sorted(done[name].dropna().unique())))
            found.append(f"Times are not of one kind: {name} is {kinds}. See --by {name}.")
    if SHARDS in done:
        for (group, seed), some in labelled(done).groupby(["group", "seed"], sort=False):
            if some[SHARDS].nunique() > 1:
                found.append(f"Not comparable: {group}, seed {seed}: clients' samples differ.")
    return found


def constants(runs: pd.DataFrame) -> str:
    """The settings that matter most, as far as all runs share them, as one line."""
    names = ("data.name", "model.name", "clients", "participation", "rounds", "lr", "batch")
    varying = frames.varying(runs)
    shared = [name for name in names if name in runs and name not in varying]
    return label(runs.iloc[0].to_dict(), shared)


def left_out(rows: pd.DataFrame) -> list[str]:
    """A line for each of the `labelled` runs that are not averaged."""
    lines = []
    for run in rows[rows["reason"] != ""].to_dict("records"):
        words = [run["group"], run["variant"]]
        words += [] if is_unset(run["sparsity"]) else [f"sparsity={run['sparsity']:g}"]
        done = f"{run['rounds_done']} of {run['rounds']} rounds"
        words += [f"seed={run['seed']}: {done}, {run['path']}"]
        lines.append(f"{run['reason']:9} {' '.join(words)}")
    return lines


def read(paths: Sequence[Path]) -> pd.DataFrame:
    """`frames.runs`, for a command line.

    Raises:
        click.UsageError: if there are none.
    """
    runs = frames.runs(paths)
    if runs.empty:
        raise click.UsageError(f"no results (*.h5) in {', '.join(map(str, paths))}")
    return runs


PATHS = click.argument(
    "paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(True, path_type=Path)
)
AT = click.option(
    "--at",
    type=click.Choice(["last", "best"]),
    default="last",
    show_default=True,
    help="The round: the last, or the best on held-out samples.",
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@PATHS
@AT
@click.option(
    "--by", multiple=True, metavar="COLUMN", help="Tell rows apart by this, too: about.ranks, say."
)
@click.option("--csv", type=click.Path(path_type=Path, dir_okay=False), help="Write all numbers.")
@click.option("--json", "is_json", is_flag=True, help="Print all numbers as JSON, and no tables.")
def main(
    paths: tuple[Path, ...], at: str, by: tuple[str, ...], csv: Path | None, is_json: bool
) -> None:
    """Compare the methods whose results are in PATH... (files, or folders at any depth).

    --at chooses the round of the accuracies on shards; accuracy itself is shown for both.
    """
    runs = read(paths)
    for name in by:
        if name not in runs:
            possible = ", ".join(runs.columns)
            raise click.UsageError(f"--by {name}: no such column; there are: {possible}")
    rows = summary(runs, by)
    if csv is not None:
        csv.parent.mkdir(parents=True, exist_ok=True)
        rows.to_csv(csv, index=False)
    outside = left_out(labelled(runs, by))
    if is_json:
        print(rows.to_json(orient="records", indent=2, double_precision=15))
        for line in outside:
            print(line, file=sys.stderr)
        return
    width = shutil.get_terminal_size(fallback=(120, 24)).columns
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    console.print(constants(runs), end="\n\n")
    if len(rows):
        show(console, rows, at)
        for note in notes(runs, rows):
            console.print(note, style="dim")
    else:
        console.print("no finished run")
    if outside:
        console.print(f"\nNot in the tables ({len(outside)}):", style="bold")
        for line in outside:
            console.print(line, soft_wrap=True)


if __name__ == "__main__":
    main(prog_name="python -m analysis.compare")
