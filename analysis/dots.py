"""A picture of claims: published figures and ours on one line each, a panel for each unit."""

import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis import panels

PUBLISHED, REDUCED = "published", "ours, at a reduced size"
"""Names in the legend, besides those of verdicts."""
TITLES = {
    "share": "accuracy or share (%)",
    "points": "difference of accuracies (points)",
    "factor": "ratio",
    "count": "rounds",
    "bytes": "bytes",
    "seconds": "seconds",
    "number": "figure",
}
"""Titles of the axes, by the unit of a figure."""
HUNDREDS = ("share", "points")
"""Units that are shown times 100."""
DECADE = 8.0
"""Ratio of the largest figure to the smallest from which an axis is logarithmic."""
OWN = "own"
"""The size of runs as large as the paper's."""
LINE, TEXT = 0.16, 52
"""Height of a line of text in inches, and its length in characters."""


class Dot(NamedTuple):
    """A figure of a claim.

    Attributes:
        name: whose it is, if the claim has several; else empty.
        published: the published figure, NaN if there is none.
        mean: of ours over seeds.
        std: their sample standard deviation, NaN for one seed.
    """

    name: str
    published: float
    mean: float
    std: float


@panels.STYLED
def picture(claims: pd.DataFrame, colours: Mapping[str, str]) -> Figure:
    """Draws all figures of claims, at least one.

    Args:
        claims: as from `claims.judged`; their `dots` are the figures.
        colours: of the verdicts.
    """
    rows = pd.DataFrame(
        [
            row | dot._asdict() | {"text": _text(row, dot, is_first=place == 0)}
            for row in claims.to_dict("records")
            for place, dot in enumerate(row["dots"])
        ]
    )
    groups = [(str(unit), some) for unit, some in rows.groupby("unit", sort=False)]
    texts = [list(some["text"]) for _, some in groups]
    sizes = [np.array([1.4 + text.count("\n") for text in some]) for some in texts]
    heights = [LINE * some.sum() for some in sizes]
    height = sum(heights) + 0.75 * len(groups) + 0.4
    figure = Figure(figsize=(panels.WIDTH, height), layout="constrained")
    every = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (unit, some), lines, size in zip(every, groups, texts, sizes, strict=True):
        places = np.cumsum(size) - size / 2
        _panel(panel, unit, some, places, colours)
        panel.set_ylim(size.sum(), 0)
        panel.set_yticks(places, lines)
    panels.legend(figure, _handles(rows, colours))
    return figure


def _text(row: Mapping[Any, Any], dot: Dot, is_first: bool) -> str:
    """Returns what stands beside a figure: the claim and by what once, and whose figure it is."""
    by = f" ({row['by']})" if row["by"] else ""
    claim = f"{row['system']}, {row['claim']}{by}" if is_first else ""
    return textwrap.fill(": ".join(filter(None, (claim, dot.name))), TEXT)


def _panel(
    panel: Any, unit: str, rows: pd.DataFrame, places: np.ndarray, colours: Mapping[str, str]
) -> None:
    """Draws the figures of one unit."""
    times = 100.0 if unit in HUNDREDS else 1.0
    for place, row in zip(places, rows.to_dict("records"), strict=True):
        colour = colours[row["verdict"]]
        if not np.isnan(row["published"]):
            panel.plot(times * row["published"], place, **_look("0.35", "D", False))
        spread = None if np.isnan(row["std"]) else times * row["std"]
        panel.errorbar(
            times * row["mean"], place, xerr=spread, elinewidth=1.2, capsize=2.5, ecolor=colour,
            **_look(colour, "o", row["size"] == OWN),
        )  # fmt: skip
    values = times * np.concatenate([rows["mean"], rows["published"].dropna()])
    if unit == "points":
        panel.axvline(0.0, color="0.6", linewidth=0.8)
    elif (values > 0).all() and values.max() >= DECADE * values.min():
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
    panel.margins(x=0.06)
    panel.set_xlabel(TITLES[unit])
    panel.grid(axis="x", color="0.92", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right", "left"]].set_visible(False)


def _look(colour: str, marker: str, is_filled: bool) -> dict[str, Any]:
    """Returns how a marker is drawn; hollow ones stand for what is not of the paper's size."""
    face = colour if is_filled else "white"
    return {
        "color": colour, "marker": marker, "markersize": 5.5, "linestyle": "none",
        "markerfacecolor": face, "markeredgewidth": 1.3,
    }  # fmt: skip


def _handles(rows: pd.DataFrame, colours: Mapping[str, str]) -> dict[str, Artist]:
    """Returns the entries of the legend: those that are in the picture."""
    found: dict[str, Artist] = {PUBLISHED: Line2D([], [], **_look("0.35", "D", False))}
    for verdict, colour in colours.items():
        if (rows["verdict"] == verdict).any():
            found[verdict] = Line2D([], [], **_look(colour, "o", True))
    if (rows["size"] != OWN).any():
        found[REDUCED] = Line2D([], [], **_look("0.6", "o", False))
    return found
