"""A partition as a picture: clients from left to right, how much each has, and of which classes.

A column is a client: its bar is its size, its cells are the distribution of its labels, light to
dark. One hue, so that it reads in grey and by all kinds of eyes; where there is room, cells say how
many samples they are.
"""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from fedmpi.clients import heterogeneity
from fedmpi.draft import draft

STYLE: Any = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "fedmpi"}
BAR = "#0072B2"
WIDTH = 8.0
"""Inches."""
TICKS = 25
"""So many clients, or classes, have a number each."""
SEAMS = 60
"""Up to so many clients, their cells stand apart."""
DIGIT = 5.2
"""Points of a digit's width, with something to spare, in text of 8 points."""


def draw(counts: np.ndarray, name: str, path: Path) -> None:
    """Writes the picture of `counts[classes, clients]`, .png or .svg by the file's name.

    Raises:
        BadInput: if nothing can be written there.
    """
    with rc_context(STYLE), draft(path, "--plot") as file:
        # Without a date, the same partition is the same file.
        form = path.suffix.removeprefix(".").lower()
        metadata = {"Date": None} if form == "svg" else None
        picture(counts, name).savefig(file, format=form, dpi=150, metadata=metadata)


@rc_context(STYLE)
def picture(counts: np.ndarray, name: str) -> Figure:
    """Draws samples of each class and client, int [classes, clients], under a title."""
    classes, clients = counts.shape
    found = heterogeneity.measures(counts)
    height = 2.0 + float(np.clip(0.26 * classes, 1.0, 4.5))
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(
        f"{textwrap.fill(name, 100)}\ntotal variation: mean {found['partition_tv_mean']:.3f}, "
        f"largest {found['partition_tv_max']:.3f};  Gini coefficient of sizes "
        f"{found['partition_gini']:.3f};  effective classes {found['partition_classes']:.2f}",
        fontsize=9,
    )
    ratios = {"height_ratios": [1.0, height - 2.0]}
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw=ratios)
    _sizes(above, counts.sum(axis=0))
    shares = counts / counts.sum(axis=0)
    # An even distribution is half dark: its noise is not to look like a difference.
    top = min(1.0, max(float(shares.max()), 2 / classes))
    cells = below.pcolormesh(
        np.arange(clients + 1) - 0.5, np.arange(classes + 1) - 0.5, shares, cmap="Blues",
        vmin=0, vmax=top, edgecolors="white" if clients <= SEAMS else "none", linewidth=0.6,
        # An SVG of a million cells opens nowhere.
        rasterized=clients > SEAMS,
    )  # fmt: skip
    below.set_ylabel("class")
    below.set_xlabel("client")
    below.tick_params(length=0 if clients <= TICKS else 3)
    below.spines[:].set_visible(clients > SEAMS)
    for axis, many in ((below.xaxis, clients), (below.yaxis, classes)):
        if many <= TICKS:
            axis.set_ticks(range(many))
        else:
            places = np.asarray(MaxNLocator(10, integer=True).tick_values(0, many - 1))
            axis.set_ticks(places[(places >= 0) & (places < many)])
    bar = figure.colorbar(
        cells, ax=below, pad=0.01, ticks=MaxNLocator(4), format=PercentFormatter(1)
    )
    bar.set_label("share of the\nclient's samples")
    bar.outline.set_visible(False)  # type: ignore[operator]
    if len(f"{counts.max():,}") * DIGIT * clients < 72 * (WIDTH - 1.7) and classes <= TICKS:
        _numbers(below, counts, shares > 0.6 * top)
    return figure


def _sizes(panel: Axes, sizes: np.ndarray) -> None:
    """A bar for each client; of many, one outline."""
    if len(sizes) <= SEAMS:
        panel.bar(np.arange(len(sizes)), sizes, 0.8, color=BAR)
    else:
        panel.stairs(sizes, np.arange(len(sizes) + 1) - 0.5, fill=True, color=BAR)
    panel.set_ylabel("samples")
    panel.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    panel.tick_params(bottom=False, labelbottom=False)
    panel.set_axisbelow(True)
    panel.grid(axis="y", color="0.92", linewidth=0.8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_ylim(bottom=0)


def _numbers(panel: Axes, counts: np.ndarray, is_dark: np.ndarray) -> None:
    for label, client in np.argwhere(counts):
        panel.text(
            client, label, f"{counts[label, client]:,}", ha="center", va="center", fontsize=8,
            color="white" if is_dark[label, client] else "black",
        )  # fmt: skip
