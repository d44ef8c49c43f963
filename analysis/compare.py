"""Methods side by side, in the terminal: accuracy, bytes and seconds, for each heterogeneity.

`groups` defines groups and rows. Runs that are not averaged are listed below the tables.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import click
import pandas as pd

from analysis import frames, terminal
from analysis.groups import DONE, is_unset, label, labelled, split, summary
from analysis.output import File, draft
from analysis.terminal import Column

MACHINE = ("about.cpu", "about.device", "about.ranks", "about.threads_per_rank")
"""Columns that must be equal for seconds to be comparable between methods."""
SHARDS = "about.partition_sha256"
"""Hash of the partition, which a group's runs of one seed should share."""


def columns(at: str, has_devices: bool) -> tuple[list[Column], list[Column]]:
    """Returns the columns on quality and on cost; accuracies on shards are of the round `at`."""
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


def has_devices(rows: pd.DataFrame) -> bool:
    """Whether a run of a `summary` simulated devices."""
    return bool(rows["sim_seconds_total_mean"].notna().any())


def notes(runs: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    """Returns notes on the numbers, to be read with the tables."""
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
            "time of the slowest client of each round, or of all if they take turns; energy of all."
        )
    done = runs[runs["status"] == DONE]
    for name in MACHINE:
        if name in done and done[name].nunique() > 1:
            kinds = ", ".join(sorted(map(str, done[name].dropna().unique())))
            found.append(f"Times are not of one kind: {name} is {kinds}. See --by {name}.")
    if SHARDS in done:
        for (group, seed), some in labelled(done).groupby(["group", "seed"], sort=False):
            if some[SHARDS].nunique() > 1:
                found.append(f"Not comparable: {group}, seed {seed}: clients' samples differ.")
    return found


def constants(runs: pd.DataFrame) -> str:
    """Returns the most important settings that all runs share, as one line."""
    names = ("data.name", "model.name", "clients", "participation", "rounds", "lr", "batch")
    varying = frames.varying(runs)
    shared = [name for name in names if name in runs and name not in varying]
    return label(runs.iloc[0].to_dict(), shared)


def left_out(rows: pd.DataFrame) -> list[str]:
    """Returns a line for each of the `labelled` runs that are not averaged."""
    lines = []
    for run in rows[rows["reason"] != ""].to_dict("records"):
        words = [run["group"], run["variant"]]
        words += [] if is_unset(run["sparsity"]) else [f"sparsity={run['sparsity']:g}"]
        done = f"{run['rounds_done']} of {run['rounds']} rounds"
        words += [f"seed={run['seed']}: {done}, {run['path']}"]
        lines.append(f"{run['reason']:9} {' '.join(words)}")
    return lines


def read(paths: Sequence[Path]) -> pd.DataFrame:
    """Returns `frames.runs` for a command line.

    Raises:
        click.UsageError: if there are none.
    """
    terminal.be_lenient()
    runs = frames.runs(paths)
    if runs.empty:
        raise click.UsageError(f"no results (*.h5, *.hdf5) in {', '.join(map(str, paths))}")
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
@click.option("--csv", type=File(), help="Write all numbers into this file (.csv).")
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
        with draft(csv, "--csv", ".csv") as to:
            rows.to_csv(to, index=False, encoding="utf-8", errors="surrogateescape")
    outside = left_out(labelled(runs, by))
    if is_json:
        print(rows.to_json(orient="records", indent=2, double_precision=15))
        for line in outside:
            print(line, file=sys.stderr)
        return
    console = terminal.console()
    console.print(constants(runs), end="\n\n")
    if len(rows):
        tables = split(rows)
        terminal.show(console, tables, columns(at, has_devices(rows)))
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
