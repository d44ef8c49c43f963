"""Costs of methods to reach an accuracy: rounds, bytes, simulated time; in the terminal.

There is a table for each group (see `groups`) and target, in the form of Table I of SPATL (Yu et
al., SC 2022): rounds, bytes of a client and round, all bytes, and the speed-up in bytes over a
reference. A run has reached a target after the first round whose measured accuracy is as high. All
bytes are those until then, including an agreement before the first round. Runs that differ only in
their seed are averaged over those that reached the target; their number is shown.
"""

from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd

from analysis import frames, panels, terminal
from analysis.compare import PATHS, constants, read
from analysis.groups import DONE, ROW, beside, labelled, row_name
from analysis.output import Share
from analysis.terminal import Column

REFERENCE = "fedavg"
"""Default reference of the speed-up, if the results have it."""
UNTIL = ("rounds", "bytes", "sim_seconds", "sim_joules")
"""Costs of a run until it reached the target; NaN if it never did."""
PER_CLIENT = ("up", "down")
"""Mean bytes of an active client in a round, until the target, or in the whole run if it never
did."""
NUMBERS = (*UNTIL, *PER_CLIENT, "best")


def costs(runs: pd.DataFrame, rounds: pd.DataFrame, target: float, measure: str) -> pd.DataFrame:
    """Returns the costs of each finished run until it first reached the target.

    Args:
        runs: as from `frames.runs`.
        rounds: of the same files, as from `frames.rounds`.
        target: an accuracy, 0 to 1.
        measure: which accuracy, a key of `panels.MEASURES`.

    Returns:
        A row for each run: `group`, `variant`, `others`, `sparsity`, `method.name` and `seed` as in
            `groups.labelled`; the numbers `UNTIL` and `PER_CLIENT`; and `best`, the highest
            accuracy of any round.
    """
    known = labelled(runs)
    finished = known[known["reason"] == ""]
    found = [cost(rounds[rounds["path"] == one], target, measure) for one in finished["path"]]
    numbers = pd.DataFrame(found, columns=list(NUMBERS), index=finished.index, dtype=float)
    return pd.concat([finished[[*ROW, "others", "method.name", "seed"]], numbers], axis=1)


def cost(rounds: pd.DataFrame, target: float, measure: str) -> dict[str, float]:
    """Returns what one run cost until it first reached a target; without `UNTIL` if it never did.

    Args:
        rounds: of one run, as from `frames.rounds`.
        target: an accuracy, 0 to 1.
        measure: which accuracy, a column of the rounds.

    Returns:
        `UNTIL`, `PER_CLIENT` and `best`, as for `costs`; also `bytes_up` and `bytes_down`, the two
            parts of `bytes`.
    """
    met = rounds.loc[rounds[measure] >= target, "round"]
    then = rounds[rounds["round"] <= met.min()] if len(met) else rounds
    regular = then[then["round"] > frames.AGREEMENT]
    found = {way: regular[way].sum() / regular["sampled"].sum() for way in PER_CLIENT}
    found["best"] = rounds[measure].max()
    if len(met):
        found["rounds"] = met.min() + 1
        found |= {f"bytes_{way}": then[way].sum() for way in PER_CLIENT}
        found["bytes"] = found["bytes_up"] + found["bytes_down"]
        for way in ("sim_seconds", "sim_joules"):
            # Results of earlier versions lack them.
            found[way] = then[way].sum(skipna=False) if way in then else np.nan
    return found


def speedup(runs: pd.DataFrame, reference: str) -> pd.Series:
    """Returns the bytes of the reference with the same seed, divided by those of each run.

    Args:
        runs: `costs`.
        reference: a row's name, such as `ssfl 0.9`; or a method, whose row in each group is the
            reference of those with equal settings besides the methods' own.

    Returns:
        A factor for each run; NaN if one of the two never reached the target.

    Raises:
        click.UsageError: if there is no such row, or if there are several.
    """
    return beside(runs, reference, "bytes") / runs["bytes"]


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Returns one row for each row of the tables.

    Args:
        runs: `costs`, with a column `speedup`.

    Returns:
        `group`, `variant` and `sparsity`; `n`, a text with the number of runs that reached the
            target, and of all; and for each number `NAME_mean` and `NAME_std`, the sample standard
            deviation, over the runs that reached it. `best` is over all runs, and so is
            `PER_CLIENT` if none reached it. `missing` is the number of those runs without a
            speed-up.
    """
    found = []
    for _, some in runs.groupby(ROW, sort=False, dropna=False):
        there = some[some["rounds"].notna()]
        row: dict[str, Any] = {column: some[column].iloc[0] for column in ROW}
        row |= {"n": f"{len(there)} of {len(some)}", "missing": there["speedup"].isna().sum()}
        for number in (*NUMBERS, "speedup"):
            is_all = number == "best" or (number in PER_CLIENT and there.empty)
            values = (some if is_all else there)[number]
            row |= {f"{number}_mean": values.mean(), f"{number}_std": values.std()}
        found.append(row)
    return pd.DataFrame(found).astype({"sparsity": "Float64"})


def columns(rows: pd.DataFrame) -> tuple[list[Column], list[Column]]:
    """Returns the columns that a `summary` has: those on bytes, and others."""
    found = [
        Column("rounds", "rounds", "count", missing="not reached"),
        Column("up", "up\n/round\n/client", "bytes"),
        Column("down", "down\n/round\n/client", "bytes"),
        Column("bytes", "bytes\nuntil then", "bytes"),
        Column("speedup", "speed-up\nin bytes", "factor"),
    ]
    others = [
        Column("sim_seconds", "sim. time\nuntil then", "seconds"),
        Column("sim_joules", "sim. energy\nuntil then", "joules"),
    ]
    others = [column for column in others if rows[f"{column.name}_mean"].notna().any()]
    if rows["speedup_mean"].isna().all():
        found.pop()
    return found, [*others, Column("best", "best\naccuracy", "share")]


def notes(rows: pd.DataFrame, measure: str, reference: str | None) -> list[str]:
    """Returns notes on the numbers, to be read with the tables."""
    what = panels.MEASURES[measure].removesuffix(" (%)")
    found = [
        f"Until then: up to the first round after which the {what} was measured to be no less than "
        "the target, with an agreement before the first round; bytes of all clients together. "
        "/round /client: of one that takes part, without the agreement; of the whole run where the "
        "target was not reached. All that is of the runs that reached it. ± sample standard "
        "deviation.",
        "Best accuracy: the highest of any round, mean of all runs. It tells how near they came, "
        "and is no result to report: nobody could have chosen the round.",
    ]
    if reference is None:
        return found
    if rows["speedup_mean"].isna().all():
        return [*found, f"No speed-up: {reference} did not reach the target."]
    found.append(f"Speed-up: bytes of {reference} until then, with the same seed, over own.")
    for title, some in rows[rows["missing"] > 0].groupby("title", sort=False):
        which = ", ".join(f"{row_name(row)} ({row['missing']})" for row in some.to_dict("records"))
        found.append(
            f"{title}: {reference} did not reach it with every seed; missing in the speed-up of "
            f"{which}."
        )
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@PATHS
@click.option(
    "--target", "targets", multiple=True, required=True, type=Share(),
    metavar="SHARE", help="An accuracy, such as 0.9; may be given several times.",
)  # fmt: skip
@panels.ACCURACY
@click.option(
    "--against", metavar="METHOD", help="Compare the bytes with its.  [default: fedavg, if one is]"
)
def main(
    paths: tuple[Path, ...], targets: tuple[float, ...], measure: str, against: str | None
) -> None:
    """Print the costs to reach an accuracy, for the results in PATH... (files or folders).

    Only finished runs count; analysis.compare lists the others.
    """
    runs, rounds = read(paths), frames.rounds(paths)
    is_there = REFERENCE in set(runs.loc[runs["status"] == DONE, "method.name"])
    reference = REFERENCE if against is None and is_there else against
    found = []
    for target in targets:
        ours = costs(runs, rounds, target, measure)
        if ours.empty:
            raise click.UsageError(
                "no finished run; python -m analysis.compare lists what there is"
            )
        try:
            ours["speedup"] = np.nan if reference is None else speedup(ours, reference)
        except click.UsageError:
            if against is not None:
                raise
            reference, ours["speedup"] = None, np.nan  # several rows could be the default
        some = summary(ours)
        found.append(some.assign(title=some["group"] + f": {measure} {target:g}"))
    rows = pd.concat(found)
    # A group's targets follow each other.
    tables = [
        (str(title), table)
        for _, some in rows.groupby("group", sort=False)
        for title, table in some.groupby("title", sort=False)
    ]
    console = terminal.console()
    console.print(constants(runs), end="\n\n")
    terminal.show(console, tables, columns(rows), count="reached", is_marked=False)
    for note in notes(rows, measure, reference):
        console.print(note, style="dim")


if __name__ == "__main__":
    main(prog_name="python -m analysis.targets")
