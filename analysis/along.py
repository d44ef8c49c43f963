"""Accuracy along a setting: methods compared over its values, as a picture and in the terminal.

A panel is a problem (a group without the setting, see `groups`), a line a method and sparsity, and
a point a value: the mean over seeds, with the sample standard deviation as bar. Numbers are placed
by value, on a logarithmic axis if that spaces them more evenly. Other values are placed side by
side, in the order in which they were first run.

A kind of devices is identified by its name: `devices.tiers[weak].share`, which is 0 in runs without
it, and from which others' shares follow. A table is a setting, too: along `partition` the values
are partitions. Runs without a value of the setting, such as a method without it, are left out,
unless they are requested as a level: a line across the panel. A method with a single value can be
requested as a level, too, as a baseline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from analysis import frames, panels, terminal
from analysis.compare import AT, PATHS, constants, read
from analysis.groups import (
    DONE,
    INDIFFERENT,
    Row,
    is_unset,
    label,
    row_name,
    split,
    summary,
    written,
)

METHOD = "method.name"
"""The only setting that is never an axis: it distinguishes lines."""
LEVEL = (0, (3, 3))
"""Dash pattern of a level whose line would be solid."""


@dataclass(frozen=True)
class Axis:
    """The setting on the horizontal axis.

    Attributes:
        setting: a setting, or a table of settings.
        columns: columns of `frames.runs` that belong to it.
        told: columns that are shown in the values of a table; empty if it is no table.
    """

    setting: str
    columns: list[str]
    told: list[str]

    def value(self, run: Row) -> Any:
        """Returns the value of a run or row; for a table as text; None if it is not set."""
        found = label(run, self.told) if self.told else run[self.setting]
        return None if is_unset(found) else found


def axis(runs: pd.DataFrame, setting: str) -> Axis:
    """Returns the axis of a setting, or of a table.

    For the share of a kind of devices the axis includes other kinds' shares that follow from it,
    because all shares add up to 1.

    Args:
        runs: as from `frames.runs`.
        setting: its dotted path.

    Raises:
        click.UsageError: if there is no such setting, or if it does not vary.
    """
    settings = frames.settings(runs)
    varying = [one for one in frames.varying(runs) if one not in (*INDIFFERENT, METHOD)]
    columns = [one for one in settings if one == setting or one.startswith(f"{setting}.")]
    told = [one for one in columns if one in varying or one.endswith(".name")]
    if METHOD in columns or not set(columns) & set(varying):
        found = "one that does not" if columns else "none of that name"
        raise click.UsageError(
            f"--setting {setting}: wanted a setting that varies beside method and seed, found "
            f"{found}; "
            + (f"possible are: {', '.join(varying)}" if varying else "nothing varies in these runs")
        )
    if frames.SHARE.fullmatch(setting):
        others = [one for one in settings if frames.SHARE.fullmatch(one) and one != setting]
        for one in list(others):
            rest = [setting, *(other for other in others if other != one)]
            if (runs.groupby(rest, dropna=False)[one].nunique() <= 1).all():
                others.remove(one)
                columns.append(one)
    return Axis(setting, columns, [] if setting in columns else told)


def points(runs: pd.DataFrame, along: Axis, levels: Sequence[str] = ()) -> pd.DataFrame:
    """Returns `groups.summary` of the finished runs, with their places on an axis.

    Args:
        runs: as from `frames.runs`.
        along: the axis.
        levels: methods, or names of rows, that are levels.

    Returns:
        The summary with three more columns: `value`, None if it is not set; `place` on the axis,
            NaN if there is no value; and `role`: point, level, or empty if the row is left out.

    Raises:
        click.UsageError: for a level that does not exist, or that has several values.
    """
    rows = summary(runs, along=along.columns)
    finished = runs[runs["status"] == DONE].sort_values("started", kind="stable")
    places = _places([along.value(run) for run in finished.to_dict("records")])
    values = [along.value(row) for row in rows.to_dict("records")]
    rows["value"] = pd.Series(values, rows.index, dtype=object)
    rows["place"] = [places.get(value, np.nan) for value in values]
    rows["role"] = np.where(rows["place"].notna(), "point", "")
    names = pd.Series([row_name(row) for row in rows.to_dict("records")], rows.index, dtype=object)
    for level in levels:
        chosen = rows[(names == level) | (rows[METHOD] == level)].sort_values("place")
        if chosen.empty:
            possible = ", ".join(dict.fromkeys([*rows[METHOD], *names]))
            raise click.UsageError(f"--level {level}: no such method; there are: {possible}")
        for (group, _), some in chosen.groupby(["group", names[chosen.index]], sort=False):
            without = some[some["place"].isna()]
            if without.empty and len(some) > 1:
                found = ", ".join(map(text, some["value"]))
                raise click.UsageError(
                    f"--level {level}: wanted one that has one value of {along.setting} at most, "
                    f"found {found} in {group}"
                )
            rows.loc[(some if without.empty else without).index, "role"] = "level"
    # A panel with levels only would show nothing.
    has_points = rows.groupby("group")["role"].transform(lambda roles: (roles == "point").any())
    rows.loc[~has_points.astype(bool), "role"] = ""
    return rows


def _places(values: Sequence[Any]) -> dict[Any, float]:
    """Returns each value's place on the axis: numbers by value, others by their order."""
    known = list(dict.fromkeys(value for value in values if value is not None))
    if are_numbers(known):
        return {value: float(value) for value in known}
    return {value: float(place) for place, value in enumerate(known)}


def are_numbers(values: Sequence[Any]) -> bool:
    """Whether all values are numbers, which are placed by value."""
    return all(isinstance(one, Real) and not isinstance(one, bool) for one in values)


def is_logarithmic(places: np.ndarray) -> bool:
    """Whether a logarithmic axis spaces numbers more evenly: their smallest gap is wider on it."""
    if len(places) < 3 or places.min() <= 0:
        return False
    linear, logarithmic = (np.diff(np.sort(one)) for one in (places, np.log(places)))
    return bool(logarithmic.min() / logarithmic.sum() > linear.min() / linear.sum())


def text(value: Any) -> str:
    """Returns a value as a text for people."""
    return f"{value:g}" if are_numbers([value]) else written(value)


def ticks(rows: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    """Returns the places of all values in rows of `points`, ascending, with the values."""
    marks = rows[rows["place"].notna()].drop_duplicates("place").sort_values("place")
    return marks["place"].to_numpy(float), [text(value) for value in marks["value"]]


@panels.STYLED
def picture(
    rows: pd.DataFrame, setting: str, measure: str = "accuracy", at: str = "last"
) -> Figure:
    """Draws `points`, of which at least one row must be a point.

    Args:
        rows: the points and levels.
        setting: the setting on the axis.
        measure: which accuracy, a key of `panels.MEASURES`.
        at: the round of the accuracy: last or best.
    """
    rows = rows[rows["role"] != ""]
    groups = split(rows)
    looks = panels.looks(rows)
    figure, shown = panels.figure([title for title, _ in groups], len(looks))
    handles: dict[str, Any] = {}
    places, texts = ticks(rows[rows["role"] == "point"])
    numbers = are_numbers(list(rows["value"].dropna()))
    if numbers and is_logarithmic(places):
        shown[0].set_xscale("log")
    for panel, (_, some) in zip(shown, groups, strict=True):
        for _, line in some.groupby(["variant", "sparsity"], sort=False, dropna=False):
            one = line.to_dict("records")[0]
            look = looks[row_name(one)]
            for role, part in line.sort_values("place").groupby("role", sort=False):
                mean = 100 * part[f"{measure}_{at}_mean"].to_numpy(float)
                spread = 100 * part[f"{measure}_{at}_std"].fillna(0).to_numpy(float)
                if role == "level":
                    called = row_name(one) + (" (unset)" if len(part) < len(line) else "")
                    handles[called] = _level(panel, mean[0], spread[0], look)
                else:
                    handles[row_name(one)] = panel.errorbar(
                        part["place"], mean, spread, color=look.colour, marker=look.marker,
                        markersize=5.5, markeredgecolor="white", markeredgewidth=0.6, linewidth=1.4,
                        elinewidth=0.8, linestyle=look.dash, capsize=2,
                    )  # fmt: skip
    figure.supxlabel(setting)
    figure.supylabel(panels.measure_label(measure, at))
    panels.legend(figure, handles, panels.sparsity_title(rows, "behind names"))
    _tick(figure, shown, places, texts, numbers)
    return figure


def _level(panel: Axes, mean: float, spread: float, look: panels.Look) -> Artist:
    """Draws a line across, with hollow markers at both ends."""
    if spread:
        panel.axhspan(mean - spread, mean + spread, color=look.colour, alpha=0.12, linewidth=0)
    dash = LEVEL if look.dash == "-" else look.dash
    return panel.axhline(
        mean, color=look.colour, linestyle=dash, linewidth=1.2, zorder=1.5,
        marker=look.marker, markersize=5.5, markerfacecolor="white", clip_on=False,
    )  # fmt: skip


def _tick(
    figure: Figure, shown: Sequence[Axes], places: np.ndarray, texts: Sequence[str], numbers: bool
) -> None:
    """Sets the ticks; if texts collide, numbers are thinned out, and other texts are turned."""
    shown[0].xaxis.set_minor_locator(NullLocator())
    shown[0].set_xticks(places, texts)
    # Computes the layout, so that positions are known.
    figure.draw_without_rendering()
    boxes = [one.get_window_extent().padded(2) for one in shown[-1].get_xticklabels()]
    kept: list[int] = []
    for place, box in enumerate(boxes):
        if not kept or not box.overlaps(boxes[kept[-1]]):
            kept.append(place)
    if numbers:
        shown[0].set_xticks(places, [one * (i in kept) for i, one in enumerate(texts)])
    elif len(kept) < len(texts):
        for panel in shown:
            panel.tick_params("x", rotation=90)


def table(rows: pd.DataFrame, measure: str, at: str) -> tuple[pd.DataFrame, list[terminal.Column]]:
    """Returns the numbers of `picture` for `terminal.show`: a row a line, a column a value."""
    rows = rows[rows["role"] != ""]
    places, texts = ticks(rows)
    number = f"{measure}_{at}"
    found = []
    for _, line in rows.groupby(["group", "variant", "sparsity"], sort=False, dropna=False):
        row: dict[str, Any] = {one: line[one].iloc[0] for one in ("group", "variant", "sparsity")}
        row["n"] = "-".join(map(str, dict.fromkeys((line["n"].min(), line["n"].max()))))
        for part in line.to_dict("records"):
            row |= {f"{part['place']}_{one}": part[f"{number}_{one}"] for one in ("mean", "std")}
        found.append(row)
    columns = [
        terminal.Column(str(place), title, "share")
        for place, title in zip(places, texts, strict=True)
    ]
    if rows["place"].isna().any():
        columns.append(terminal.Column("nan", "unset", "share"))
    head = ["group", "variant", "sparsity", "n"]
    names = [f"{column.name}_{one}" for column in columns for one in ("mean", "std")]
    return pd.DataFrame(found, columns=[*head, *names]).astype({"sparsity": "Float64"}), columns


def notes(rows: pd.DataFrame, setting: str, at: str) -> list[str]:
    """Returns notes on the numbers, to be read with table and picture."""
    found = [
        "* best of its column. Accuracies in %, "
        + ("after the last round." if at == "last" else "in the best validation round.")
    ]
    if (rows["n"] > 1).any():
        found.append("± sample standard deviation of n runs with different seeds, where it shows.")
    for group, some in rows[rows["role"] == ""].groupby("group", sort=False):
        names = dict.fromkeys(row_name(row) for row in some.to_dict("records"))
        found.append(f"Left out, for lack of {setting}: {', '.join(names)} ({group}).")
    if ((rows["role"] == "") & rows["group"].isin(rows.loc[rows["role"] != "", "group"])).any():
        found.append("--level METHOD draws what is left out beside others as a line across.")
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@PATHS
@click.option(
    "--setting", required=True, metavar="NAME",
    help="The axis: partition.alpha, method.bits, 'devices.tiers[weak].share'; or a whole table.",
)  # fmt: skip
@click.option(
    "--level", "levels", multiple=True, metavar="METHOD",
    help="Draw this method as a line across, where it has no value or one; may be given again.",
)  # fmt: skip
@AT
@panels.ACCURACY
@panels.out("along.png")
def main(
    paths: tuple[Path, ...], setting: str, levels: tuple[str, ...], at: str, measure: str, out: Path
) -> None:
    """Draw accuracy along a setting for the results in PATH... (files, or folders at any depth).

    Only finished runs count; analysis.compare lists the others.
    """
    runs = read(paths)
    if not (runs["status"] == DONE).any():
        raise click.UsageError("no finished run; python -m analysis.compare lists what there is")
    rows = points(runs, axis(runs, setting), levels)
    if not (rows["role"] == "point").any():
        raise click.UsageError(
            f"no finished run with {setting} but levels; python -m analysis.compare lists what "
            "there is"
        )
    panels.save(lambda: picture(rows, setting, measure, at), out)
    console = terminal.console()
    console.print(constants(runs), end="\n\n")
    console.print(f"{panels.measure_label(measure)} along {setting}", end="\n\n")
    wide, columns = table(rows, measure, at)
    terminal.show(console, split(wide), [columns])
    for note in notes(rows, setting, at):
        console.print(note, style="dim")
    print(out)


if __name__ == "__main__":
    main(prog_name="python -m analysis.along")
