"""Differences between methods, paired by seed: what is left when a seed's luck is taken away.

Runs of one seed share the partition, the initial model and the order of the samples, so that their
difference varies less than either of them. Two tests ask whether the mean difference d over n seeds
can be nothing; both are two-sided.

* t: Student's paired test, W. S. Gosset, 1908: t = mean d / (s / sqrt(n)) with the sample standard
  deviation s, on n - 1 degrees of freedom. It takes differences as normal. The interval is that of
  the same test at 95 %.
* flips: R. A. Fisher's exact test, 1935: the share of the 2^n choices of signs whose mean is as far
  from zero. It takes differences as symmetric alone, but is never below 2 / 2^n: 0.0625 with five
  seeds, so that six are needed for 0.05.

Among the rows of a table, whose number raises the odds of a chance find, the p-values of t are
adjusted by S. Holm, *A simple sequentially rejective multiple test procedure*, 1979.
"""

import math
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from numpy import ndarray
from rich.table import Table

from analysis import frames, terminal
from analysis.compare import PATHS, constants, read
from analysis.groups import NUMBERS, ROW, beside, labelled, row_name
from analysis.output import File, draft

MOST = 16
"""Seeds up to which all choices of signs are tried; beyond, as many as 2^16 are drawn."""
SURE = 0.95
UNITS = {
    ("up_", "down_", "bytes_"): (1.0, ("B", "kB", "MB", "GB", "TB", "PB")),
    ("seconds_", "sim_seconds_"): (1e6, ("µs", "ms", "s")),
    ("sim_joules_",): (1.0, ("J", "kJ", "MJ", "GJ")),
    ("flops_",): (1.0, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP")),
}
"""Units of numbers that are no accuracies, by the beginnings of their names: how many of the first
unit make one, and units that are a thousand times the one before."""
FOUND = ("mean", "low", "high", "t", "flips")
"""Columns of `differences`."""


def differences(runs: pd.DataFrame, against: str, column: str) -> pd.DataFrame:
    """Returns one row for each row of the tables but the reference.

    Args:
        runs: as from `frames.runs`.
        against: the reference, as for `groups.beside`.
        column: the number that is compared, one of `groups.NUMBERS`.

    Returns:
        `group`, `variant` and `sparsity`; `n`, the number of seeds that both have, and `seeds`;
            `mean`, `low` and `high` of the difference, this row minus the reference, with its 95 %
            interval; `t` and `flips`, the p-values of both tests, and `holm`, those of t adjusted.
            NaN where there are fewer than two pairs.

    Raises:
        click.UsageError: if there is no such reference, or if there are several.
    """
    known = labelled(runs)
    finished = known[known["reason"] == ""].reset_index(drop=True)
    apart = finished[column].astype(float) - beside(finished, against, column).astype(float)
    names = pd.Series([row_name(row) for row in finished.to_dict("records")], finished.index)
    others = names != against
    if others.all():
        others = finished["method.name"] != against
    finished, apart = finished[others], apart[others]
    found = []
    for _, some in finished.groupby(ROW, sort=False, dropna=False):
        values = apart[some.index].dropna()
        pairs, seeds = values.to_numpy(), some.loc[values.index, "seed"]
        low, high = interval(pairs)
        row: dict[str, Any] = {name: some[name].iloc[0] for name in ROW}
        row |= {"n": len(pairs), "seeds": " ".join(map(str, sorted(seeds)))}
        row |= {"mean": pairs.mean() if len(pairs) else np.nan, "low": low, "high": high}
        found.append(row | {"t": student(pairs), "flips": flips(pairs)})
    table = pd.DataFrame(found, columns=[*ROW, "n", "seeds", *FOUND])
    table["holm"] = np.nan
    for _, some in table.groupby("group", sort=False):
        table.loc[some.index, "holm"] = holm(some["t"].to_numpy(float))
    return table


def student(pairs: ndarray) -> float:
    """Returns the p-value of the paired t-test of differences [n]; NaN for fewer than two."""
    if len(pairs) < 2:
        return np.nan
    spread = pairs.std(ddof=1)
    if not spread > 1e-12 * np.abs(pairs).max():
        return float(not pairs.mean())  # all alike: as sure as can be, of nothing or of something
    return 1 - within(abs(pairs.mean()) / (spread / math.sqrt(len(pairs))), len(pairs) - 1)


def within(t: float, freedom: int) -> float:
    """Returns the probability that Student's t is between -t and t.

    M. Abramowitz, I. A. Stegun, *Handbook of Mathematical Functions*, 1964, 26.7.3 and 26.7.4.

    Args:
        t: above 0.
        freedom: degrees of freedom.
    """
    angle = math.atan(t / math.sqrt(freedom))
    square, term, total = math.cos(angle) ** 2, 1.0, 0.0
    if freedom % 2:
        term = math.cos(angle)
        for k in range(3, freedom + 1, 2):
            total += term
            term *= square * (k - 1) / k
        return 2 / math.pi * (angle + math.sin(angle) * total)
    for k in range(2, freedom + 1, 2):
        total += term
        term *= square * (k - 1) / k
    return math.sin(angle) * total


def interval(pairs: ndarray) -> tuple[float, float]:
    """Returns the 95 % interval of the mean of differences [n]; NaN for fewer than two."""
    if len(pairs) < 2:
        return np.nan, np.nan
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        is_short = within(middle, len(pairs) - 1) < SURE
        low, high = (middle, high) if is_short else (low, middle)
    wide = high * pairs.std(ddof=1) / math.sqrt(len(pairs))
    return float(pairs.mean() - wide), float(pairs.mean() + wide)


def flips(pairs: ndarray) -> float:
    """Returns the p-value of the sign-flip test of differences [n]; NaN for fewer than two."""
    if len(pairs) < 2:
        return np.nan
    if len(pairs) <= MOST:
        signs = np.array(list(product((1, -1), repeat=len(pairs))))
    else:
        random = np.random.default_rng(0)
        signs = random.choice((1, -1), (2**MOST, len(pairs)))
        signs[0] = 1  # what was found is one of the choices
    means = np.abs(signs @ pairs)
    return float((means >= abs(pairs.sum()) * (1 - 1e-9)).mean())


def holm(values: ndarray) -> ndarray:
    """Returns p-values [m] adjusted for their number; those that are NaN do not count."""
    found = np.full(len(values), np.nan)
    order = [int(i) for i in np.argsort(values) if not np.isnan(values[i])]
    highest = 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * float(values[i])))
        found[i] = highest
    return found


def scaled(column: str, rows: pd.DataFrame) -> tuple[float, int, str]:
    """Returns how the differences of a table are written: a factor, digits, and the unit.

    Args:
        column: the number that is compared, one of `groups.NUMBERS`.
        rows: of `differences`, all in the same unit.
    """
    if column.startswith(tuple(frames.ACCURACIES)):
        return 100.0, 1, "points of percent"
    factor, units = next(of for names, of in UNITS.items() if column.startswith(names))
    known = np.abs(rows[["mean", "low", "high"]].to_numpy(float)) * factor
    largest = float(np.nanmax(known, initial=0.0))
    unit = 0
    while largest >= 999.5 and unit + 1 < len(units):
        largest, factor, unit = largest / 1000, factor / 1000, unit + 1
    return factor, max(0, 3 - len(str(round(largest)))), units[unit]


def _shown(rows: pd.DataFrame, title: str, scale: float, digits: int) -> Table:
    """The rows of one group as a table."""
    table = Table(
        title=title, title_justify="left", title_style="bold",
        box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim",
    )  # fmt: skip
    table.add_column("method", no_wrap=True)
    for name in ("n", "difference", "95 % interval", "p of t", "Holm", "p of flips"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows.to_dict("records"):
        mean, low, high = (f"{scale * row[name]:+.{digits}f}" for name in ("mean", "low", "high"))
        values = (
            terminal.MISSING if np.isnan(row[name]) else f"{row[name]:.3f}"
            for name in ("t", "holm", "flips")
        )
        has_pairs = not np.isnan(row["low"])
        table.add_row(
            row_name(row),
            str(row["n"]),
            mean if row["n"] else terminal.MISSING,
            f"{low} to {high}" if has_pairs else terminal.MISSING,
            *values,
        )
    return table


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@PATHS
@click.option(
    "--against", required=True, metavar="ROW",
    help="The row that the others are compared with: its name in analysis.compare, or a method.",
)  # fmt: skip
@click.option(
    "--column", type=click.Choice(NUMBERS), default="accuracy_last", show_default=True,
    metavar="NAME", help="What is compared, a column of analysis.compare --csv without _mean.",
)  # fmt: skip
@click.option("--csv", type=File(), help="Write all numbers into this file (.csv).")
def main(paths: tuple[Path, ...], against: str, column: str, csv: Path | None) -> None:
    """Test the differences between methods, paired by seed, for the results in PATH... .

    Only finished runs count; analysis.compare lists the others.
    """
    runs = read(paths)
    rows = differences(runs, against, column)
    if csv is not None:
        with draft(csv, "--csv", ".csv") as to:
            rows.to_csv(to, index=False, encoding="utf-8", errors="surrogateescape")
    console = terminal.console()
    console.print(constants(runs), end="\n\n")
    for group, some in rows.groupby("group", sort=False):
        scale, digits, unit = scaled(column, some)
        title = f"{group}: {column} in {unit}, minus {against}"
        console.print(_shown(some, title, scale, digits))
        console.print()
    console.print(
        "n: seeds that both have. p of t: Student's paired test; Holm: adjusted for the number of "
        "rows. p of flips: all choices of signs, never below 2 / 2^n.",
        style="dim",
    )


if __name__ == "__main__":
    main(prog_name="python -m analysis.paired")
