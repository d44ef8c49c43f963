"""Accuracy against bytes, as a picture: what each method's savings cost.

One panel a group (see `groups`), one line a method, one point a sparsity; a dense method is one
point. A point is the mean over seeds, its bar the sample standard deviation of the accuracy.
"""

import math
import textwrap
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.compare import AT, PATHS, read
from analysis.groups import summary

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9")
"""Told apart by all kinds of eyes: M. Okabe, K. Ito, *Color Universal Design*, 2008."""
MARKERS = "osD^vPXph<>"
WAYS = {
    "up": ("up_total", "bytes from the clients"),
    "down": ("down_total", "bytes to the clients"),
    "total": ("bytes_total", "bytes to and from the clients"),
}
"""Which bytes of a whole run: their name in `groups.NUMBERS`, and what they are."""
MEASURES = {
    "accuracy": "accuracy on the test set (%)",
    "shard_mean": "mean accuracy on clients' test shards (%)",
    "shard_min": "lowest accuracy on a client's test shard (%)",
    "personal_mean": "mean accuracy of clients' local models (%)",
}
"""Which accuracy: what it is."""
UNITS = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))
MARKER = [(x, y) for x in (-4, -2, 0, 2, 4) for y in (-4, -2, 0, 2, 4)]
"""Pixels of a marker, around its middle."""
WIDTH = 8.0
"""Inches; text is 9 points high."""
CROWD = 6
"""So many lines need wider panels."""
STYLE: Any = {"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 9, "figure.labelsize": 9}


@rc_context(STYLE)
def picture(
    rows: pd.DataFrame, way: str = "total", measure: str = "accuracy", at: str = "last"
) -> Figure:
    """Draws a `summary` of at least one row.

    Args:
        rows: the summary.
        way: which bytes, a key of `WAYS`.
        measure: which accuracy, a key of `MEASURES`.
        at: in which round: last or best.
    """
    groups = [(str(name), some) for name, some in rows.groupby("group", sort=False)]
    names = [str(name) for name in dict.fromkeys(rows["variant"])]
    # Of coprime lengths: a colour that comes again has another marker.
    looks = {name: (COLOURS[i % 7], MARKERS[i % 11]) for i, name in enumerate(names)}
    wide = min(len(groups), 3 if len(names) < CROWD else 2)
    high = -(-len(groups) // wide)
    width = WIDTH if wide > 1 else 0.7 * WIDTH
    figure = Figure(figsize=(width, 1.1 + 2.7 * high), layout="constrained")
    panels = list(figure.subplots(high, wide, sharex=True, sharey=True, squeeze=False).flat)
    lines: dict[str, ErrorbarContainer] = {}
    for panel, (name, some) in zip(panels, groups, strict=False):
        panel.set_title(textwrap.fill(name, 100 // wide))
        for variant, points in some.groupby("variant", sort=False):
            x, y = WAYS[way][0], f"{measure}_{at}"
            lines[str(variant)] = _line(panel, points, x, y, *looks[str(variant)])
    for place, panel in enumerate(panels):
        _dress(panel)
        panel.set_visible(place < len(groups))
        # Above a gap in the last row, nobody else labels the axis.
        panel.tick_params(labelbottom=place + wide >= len(groups))
    _bytes_axis(panels[0])
    figure.supxlabel(f"{WAYS[way][1]}, the whole run")
    figure.supylabel(MEASURES[measure] + ("\nin the best validation round" if at == "best" else ""))
    _legend(figure, {name: lines[name] for name in names}, bool(rows["sparsity"].notna().any()))
    # Settles the layout: only now is it known what lies where.
    figure.draw_without_rendering()
    for panel in panels[: len(groups)]:
        _place(panel)
    return figure


def _dress(panel: Axes) -> None:
    panel.margins(0.07, 0.1)
    panel.set_axisbelow(True)
    panel.grid(color="0.92", linewidth=0.8)
    panel.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, lines: dict[str, ErrorbarContainer], has_sparsity: bool) -> None:
    """Above the panels, where it covers nothing; in as many columns as there is room for."""
    room = 72 * figure.get_figwidth() / (50 + 5 * max(map(len, lines)))
    figure.legend(
        [line.lines[0] for line in lines.values()], list(lines), loc="outside upper center",
        ncols=max(1, min(len(lines), int(room))), frameon=False, handlelength=3,
        title="numbers beside points: sparsity" if has_sparsity else None,
    )  # fmt: skip


def _line(
    panel: Axes, points: pd.DataFrame, x: str, y: str, colour: str, marker: str
) -> ErrorbarContainer:
    """A method in a panel: its sparsities joined and named, its dense point alone."""
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


def _bytes_axis(panel: Axes) -> None:
    """A logarithmic axis whose ticks bear units: powers of ten, and between if there are few."""
    panel.set_xscale("log")
    low, high = panel.get_xlim()
    between = (1.0, 2.0, 5.0) if high < 15 * low else (1.0,)
    panel.xaxis.set_major_locator(LogLocator(subs=between))
    panel.xaxis.set_major_formatter(FuncFormatter(_size))
    panel.xaxis.set_minor_formatter(NullFormatter())


def _size(count: float, _: object) -> str:
    scale, unit = next((pair for pair in UNITS if count >= pair[0]), UNITS[-1])
    return f"{count / scale:g} {unit}"


def _place(panel: Axes) -> None:
    """Moves each number beside its point, to where it is least in the way and plainly belongs."""
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
    """Pixels, [pixels, 2], of lines, bars and markers: enough to see what hits them."""
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
@click.option(
    "--accuracy", "measure", type=click.Choice(list(MEASURES)), default="accuracy",
    show_default=True, help="Of the global model, on shards of it, or of the clients' own models.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("tradeoff.png"),
    show_default=True, help="The picture: .png, .pdf or .svg.",
)  # fmt: skip
def main(paths: tuple[Path, ...], at: str, way: str, measure: str, out: Path) -> None:
    """Draw accuracy against bytes for the results in PATH... (files, or folders at any depth).

    Only finished runs count; analysis.compare lists the others.
    """
    rows = summary(read(paths))
    if rows.empty:
        raise click.UsageError("no finished run; python -m analysis.compare lists what there is")
    if out.suffix not in (".png", ".pdf", ".svg"):
        raise click.UsageError(f"--out {out}: wanted a name that ends in .png, .pdf or .svg")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Type 42: letters stay letters in a PDF.
    with rc_context({"pdf.fonttype": 42}):
        picture(rows, way, measure, at).savefig(out, dpi=200)
    print(out)


if __name__ == "__main__":
    main(prog_name="python -m analysis.tradeoff")
