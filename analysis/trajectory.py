"""Accuracy during a run: over simulated time, simulated energy, bytes or rounds.

A panel is a group (see `groups`), and a line a method and sparsity: after each round the accuracy,
over the cost of all rounds so far, including an agreement before the first. Runs that differ only
in their seed make one line: their mean, in a band of the sample standard deviation, from where all
of them have begun to where one of them ends. Between two rounds a run has the accuracy of the
first.
"""

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import frames, panels
from analysis.compare import PATHS, read
from analysis.groups import ROW, labelled, row_name, split
from analysis.output import Share

SECONDS: panels.Units = ((1, "s"), (1e-3, "ms"), (1e-6, "µs"))
JOULES: panels.Units = ((1e6, "MJ"), (1e3, "kJ"), (1, "J"), (1e-3, "mJ"), (1e-6, "µJ"))
WAYS: dict[str, tuple[tuple[str, ...], str, panels.Units]] = {
    "time": (("sim_seconds",), "simulated time", SECONDS),
    "energy": (("sim_joules",), "simulated energy of the clients", JOULES),
    "bytes": (("up", "down"), "bytes to and from the clients", panels.BYTES),
    "rounds": ((), "rounds", ((1, ""),)),
}
"""Horizontal axes: columns of the table `rounds` to add up, title, units."""

SPACE = 0.2
"""Distance of a line's markers, in diagonals of a panel."""
GOLDEN = 0.618
"""Shift of the first marker from line to line, in distances; near the golden ratio, it hardly ever
comes near to a former one."""
Curve = tuple[np.ndarray, np.ndarray]
"""Costs of a run's rounds, ascending, [r], and the accuracy after each of them, [r]."""


def curves(runs: pd.DataFrame, rounds: pd.DataFrame, way: str, measure: str) -> pd.DataFrame:
    """Returns the finished runs' curves, a row for each line.

    Args:
        runs: as from `frames.runs`.
        rounds: of the same files, as from `frames.rounds`.
        way: the horizontal axis, a key of `WAYS`.
        measure: which accuracy, a key of `panels.MEASURES`.

    Returns:
        `group`, `variant` and `sparsity` as in `groups.labelled`, and `curves`, a list. A run
            without the columns of the axis is left out.
    """
    known = labelled(runs)
    finished = known[known["reason"] == ""]
    found = []
    for _, some in finished.groupby(ROW, sort=False, dropna=False):
        mine = [_curve(rounds[rounds["path"] == path], way, measure) for path in some["path"]]
        mine = [curve for curve in mine if len(curve[0])]
        if mine:
            found.append({name: some[name].iloc[0] for name in ROW} | {"curves": mine})
    return pd.DataFrame(found, columns=[*ROW, "curves"])


def _curve(rounds: pd.DataFrame, way: str, measure: str) -> Curve:
    rounds, columns = rounds.sort_values("round"), WAYS[way][0]
    if not set(columns) <= set(rounds.columns):  # results of an earlier version
        return np.empty(0), np.empty(0)
    spent = rounds[list(columns)].sum(axis=1, skipna=False).cumsum() if columns else None
    x = (rounds["round"] + 1 if spent is None else spent).to_numpy(float)
    y = rounds[measure].to_numpy(float)
    is_there = np.isfinite(x) & np.isfinite(y)
    return x[is_there], y[is_there]


def mean(some: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns costs at which all runs have an accuracy, [r], with its mean and deviation."""
    first, last = max(x[0] for x, _ in some), min(x[-1] for x, _ in some)
    grid = np.unique(np.concatenate([x for x, _ in some]))
    grid = grid[(grid >= first) & (grid <= last)]
    values = np.stack([y[np.searchsorted(x, grid, side="right") - 1] for x, y in some])
    spread = values.std(0, ddof=1) if len(some) > 1 else np.zeros(len(grid))
    return grid, values.mean(0), spread


@panels.STYLED
def picture(
    rows: pd.DataFrame, way: str, measure: str = "accuracy", target: float | None = None
) -> Figure:
    """Draws `curves` of at least one row.

    Args:
        rows: the curves.
        way: the horizontal axis, a key of `WAYS`.
        measure: which accuracy, a key of `panels.MEASURES`.
        target: an accuracy to mark, 0 to 1.
    """
    _, label, units = WAYS[way]
    groups = split(rows)
    looks = panels.looks(rows)
    figure, shown = panels.figure([title for title, _ in groups], len(rows))
    lines: dict[str, Line2D] = {}
    for panel, (_, some) in zip(shown, groups, strict=True):
        for row in some.to_dict("records"):
            x, y, spread = (np.asarray(one) for one in mean(row["curves"]))
            name = row_name(row)
            look = looks[name]
            y, spread = 100 * y, 100 * spread
            # Steps, because nothing is known between two rounds.
            # Markers are spaced along the line, and begin elsewhere on each.
            begin = SPACE * (list(looks).index(name) * GOLDEN % 1)
            (lines[name],) = panel.step(
                x, y, where="post", color=look.colour, linestyle=look.dash, linewidth=1.4,
                marker=look.marker, markevery=(begin, SPACE), markersize=5,
                markeredgecolor="white", markeredgewidth=0.6,
            )  # fmt: skip
            if spread.any():
                panel.fill_between(
                    x,
                    y - spread,
                    y + spread,
                    step="post",
                    color=look.colour,
                    alpha=0.15,
                    linewidth=0,
                )
        if target is not None:
            panel.axhline(100 * target, color="0.5", linewidth=0.8, linestyle=":", zorder=1)
    if way != "rounds":
        panels.scale(shown[0], units)
    figure.supxlabel(label)
    figure.supylabel(panels.MEASURES[measure])
    panels.legend(figure, lines, panels.sparsity_title(rows, "behind names"))
    return figure


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@PATHS
@click.option(
    "--x", "way", type=click.Choice(list(WAYS)), default="time", show_default=True,
    help="What accuracy stands over; time and energy are those of simulated devices.",
)  # fmt: skip
@panels.ACCURACY
@click.option(
    "--target", type=Share(), metavar="SHARE",
    help="Mark this accuracy, such as 0.9; analysis.targets says what it took.",
)  # fmt: skip
@panels.out("trajectory.png")
def main(paths: tuple[Path, ...], way: str, measure: str, target: float | None, out: Path) -> None:
    """Draw accuracy over its cost for the results in PATH... (files, or folders at any depth).

    Only finished runs count; analysis.compare lists the others.
    """
    rows = curves(read(paths), frames.rounds(paths), way, measure)
    if rows.empty:
        raise click.UsageError(
            f"no finished run that knows its {WAYS[way][1]}; time and energy need devices.tiers, "
            "possible are --x bytes and --x rounds; python -m analysis.compare lists what there is"
        )
    panels.save(lambda: picture(rows, way, measure, target), out)
    print(out)


if __name__ == "__main__":
    main(prog_name="python -m analysis.trajectory")
