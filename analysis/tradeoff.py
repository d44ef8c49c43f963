"""Accuracy against bytes, as a picture: the accuracy that each method's savings cost.

A panel is a group (see `groups`), a line a method, and a point a sparsity; a dense method is one
point. A point is the mean over seeds, its bar the sample standard deviation of the accuracy.
"""

import math
from pathlib import Path

import click
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from analysis import panels
from analysis.compare import AT, PATHS, read
from analysis.groups import split, summary

WAYS = {
    "up": ("up_total", "bytes from the clients"),
    "down": ("down_total", "bytes to the clients"),
    "total": ("bytes_total", "bytes to and from the clients"),
}
"""Bytes of a whole run by direction: name in `groups.NUMBERS`, and title."""
MARKER = [(x, y) for x in (-4, -2, 0, 2, 4) for y in (-4, -2, 0, 2, 4)]
"""Sampled pixels of a marker, relative to its middle."""


@panels.STYLED
def picture(
    rows: pd.DataFrame, way: str = "total", measure: str = "accuracy", at: str = "last"
) -> Figure:
    """Draws a `summary` of at least one row.

    Args:
        rows: the summary.
        way: which bytes, a key of `WAYS`.
        measure: which accuracy, a key of `panels.MEASURES`.
        at: the round of the accuracy: last or best.
    """
    groups = split(rows)
    names = [str(name) for name in dict.fromkeys(rows["variant"])]
    looks = panels.variants(names)
    figure, shown = panels.figure([name for name, _ in groups], len(names))
    lines: dict[str, ErrorbarContainer] = {}
    for panel, (_, some) in zip(shown, groups, strict=True):
        for variant, points in some.groupby("variant", sort=False):
            x, y = WAYS[way][0], f"{measure}_{at}"
            lines[str(variant)] = _line(panel, points, x, y, *looks[str(variant)])
    panels.scale(shown[0], panels.BYTES)
    figure.supxlabel(f"{WAYS[way][1]}, the whole run")
    figure.supylabel(panels.measure_label(measure, at))
    title = panels.sparsity_title(rows, "beside points")
    panels.legend(figure, {name: lines[name].lines[0] for name in names}, title)
    # Computes the layout, so that positions are known.
    figure.draw_without_rendering()
    for panel in shown:
        _place(panel)
    return figure


def _line(
    panel: Axes, points: pd.DataFrame, x: str, y: str, colour: str, marker: str
) -> ErrorbarContainer:
    """Draws a method in a panel: a labelled line through its sparsities, or a dense point."""
    points = points.sort_values("sparsity", na_position="first")
    bytes_, share = points[f"{x}_mean"].to_numpy(float), 100 * points[f"{y}_mean"].to_numpy(float)
    spread = 100 * points[f"{y}_std"].fillna(0).to_numpy(float)
    is_sparse = points["sparsity"].notna().any()
    line = panel.errorbar(
        bytes_, share, spread, color=colour, marker=marker, markersize=5.5 if is_sparse else 7,
        markeredgecolor="white", markeredgewidth=0.6, linestyle="-" if is_sparse else "none",
        linewidth=1.4, elinewidth=0.8, capsize=2, zorder=2 if is_sparse else 3,
    )  # fmt: skip
    for at_x, at_y, sparsity in zip(bytes_, share, points["sparsity"], strict=True):
        if pd.notna(sparsity) and np.isfinite(at_y):
            text = panel.annotate(
                f"{sparsity:g}", (at_x, at_y), (0, 0), textcoords="offset points",
                ha="center", va="center", fontsize=8, color=colour, zorder=4,
            )  # fmt: skip
            text.set_in_layout(False)
    return line


def _place(panel: Axes) -> None:
    """Moves each number beside its point to the place with the fewest overlaps."""
    busy = _traces(panel)
    numbers = [text for text in panel.texts if isinstance(text, Annotation)]
    points = panel.transData.transform([text.xy for text in numbers]) if numbers else np.empty(0)
    for number, own in zip(numbers, points, strict=True):
        costs: list[tuple[float, int, tuple[float, float]]] = []
        for distance in (10, 14, 18):
            for angle in (90, 270, 45, 135, 315, 225, 0, 180):
                turn = math.radians(angle)
                number.set_position((1.25 * distance * math.cos(turn), distance * math.sin(turn)))
                box = number.get_window_extent().padded(1.5)
                middle = np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
                away = np.hypot(*(points - middle).T)
                nearer = np.sum(away < np.hypot(*(own - middle)) - 1)
                outside = sum(not panel.bbox.contains(*corner) for corner in box.corners())
                cost = box.count_contains(busy) + 9 * (outside + nearer)
                costs.append((cost, len(costs), number.get_position()))
        number.set_position(min(costs)[2])
        box = number.get_window_extent()
        grid = np.meshgrid(np.linspace(box.x0, box.x1, 9), np.linspace(box.y0, box.y1, 5))
        busy = np.concatenate([busy, np.stack(grid, -1).reshape(-1, 2)])


def _traces(panel: Axes) -> np.ndarray:
    """Returns pixels of lines, bars and markers, [pixels, 2], to detect overlaps."""
    steps, found = np.linspace(0, 1, 60)[:, None], []
    for line in panel.containers:
        assert isinstance(line, ErrorbarContainer)
        curve, _, bars = line.lines
        corners = panel.transData.transform(curve.get_xydata())
        # A marker weighs more than a piece of a line.
        found += [corners + shift for shift in MARKER]
        pieces = [panel.transData.transform(bar) for part in bars for bar in part.get_segments()]
        if curve.get_linestyle() != "None":
            pieces += [corners[[i, i + 1]] for i in range(len(corners) - 1)]
        found += [piece[0] + steps * (piece[-1] - piece[0]) for piece in pieces if len(piece)]
    return np.concatenate(found)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@PATHS
@AT
@click.option(
    "--bytes", "way", type=click.Choice(list(WAYS)), default="total", show_default=True,
    help="Bytes from the clients, to them, or both.",
)  # fmt: skip
@panels.ACCURACY
@panels.out("tradeoff.png")
def main(paths: tuple[Path, ...], at: str, way: str, measure: str, out: Path) -> None:
    """Draw accuracy against bytes for the results in PATH... (files, or folders at any depth).

    Only finished runs count; analysis.compare lists the others.
    """
    rows = summary(read(paths))
    if rows.empty:
        raise click.UsageError("no finished run; python -m analysis.compare lists what there is")
    panels.save(lambda: picture(rows, way, measure, at), out)
    print(out)


if __name__ == "__main__":
    main(prog_name="python -m analysis.tradeoff")
