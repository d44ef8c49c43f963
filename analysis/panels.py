"""Common parts of pictures: one panel for each group, line styles, units."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.groups import row_name
from analysis.output import File, draft

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours for all kinds of colour vision: M. Okabe, K. Ito, *Color Universal Design*, 2008."""
MARKERS = "osD^vPXph<>"
"""Markers; their number and that of the colours are coprime, so that 77 pairs differ."""
DASHES = (
    "-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (2.5, 1.2)),
    (0, (10, 2)), (0, (6, 1.2, 1, 1.2, 1, 1.2)), (0, (10, 1.5, 3, 1.5)),
)  # fmt: skip
"""Line styles of a method's sparsities, in ascending order."""
MEASURES = {
    "accuracy": "accuracy on the test set (%)",
    "shard_mean": "mean accuracy on clients' test shards (%)",
    "shard_min": "lowest accuracy on a client's test shard (%)",
    "personal_mean": "mean accuracy of clients' local models (%)",
}
"""Titles of the accuracies."""
Units = Sequence[tuple[float, str]]
"""Sizes of units and their names, the largest first."""
BYTES: Units = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))
WIDTH = 8.0
"""Width of a picture in inches; text is 9 points high."""
LINE = 0.19
"""Height of a line in the legend, in inches; it is added to the picture's height."""
CROWD = 6
"""Number of lines from which panels are wider."""
STYLE: Any = {"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 9, "figure.labelsize": 9}
STYLED = rc_context(STYLE)
"""Context in which pictures are drawn."""


class Look(NamedTuple):
    """How a line is drawn."""

    colour: str
    marker: str
    dash: Any


def variants(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Returns a colour and a marker for each variant; no two have both in common.

    Raises:
        click.UsageError: if there are more variants than pairs.
    """
    most = len(COLOURS) * len(MARKERS)
    if len(names) > most:
        raise click.UsageError(
            f"{len(names)} methods or variants in one picture: wanted at most {most}, so that all "
            "lines differ; fewer files make fewer; python -m analysis.compare lists them all"
        )
    pairs = ((COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i in range(most))
    return dict(zip(names, pairs, strict=False))


def looks(rows: pd.DataFrame) -> dict[str, Look]:
    """Returns how each row is drawn, by `groups.row_name`; no two rows look alike.

    A variant has a colour and a marker, and each of its sparsities a line style.

    Raises:
        click.UsageError: if there are more variants than pairs of colour and marker, or more
            sparsities of a variant than line styles.
    """
    pairs = variants([str(one) for one in dict.fromkeys(rows["variant"])])
    found: dict[str, Look] = {}
    for variant, some in rows.groupby("variant", sort=False):
        ordered = some.sort_values("sparsity", na_position="first").to_dict("records")
        names = dict.fromkeys(row_name(row) for row in ordered)
        if len(names) > len(DASHES):
            raise click.UsageError(
                f"{len(names)} sparsities of {variant} in one picture: wanted at most "
                f"{len(DASHES)}, so that all lines differ; fewer files make fewer; "
                "python -m analysis.tradeoff draws each method as one line"
            )
        styles = zip(names, DASHES, strict=False)
        found |= {name: Look(*pairs[str(variant)], dash) for name, dash in styles}
    return found


def figure(titles: Sequence[str], lines: int) -> tuple[Figure, list[Axes]]:
    """Returns a figure with a panel for each title, with common axes, wide enough for the lines."""
    wide = min(len(titles), 3 if lines < CROWD else 2)
    high = -(-len(titles) // wide)
    width = WIDTH if wide > 1 else 0.7 * WIDTH
    found = Figure(figsize=(width, 1.1 + 2.7 * high), layout="constrained")
    every = list(found.subplots(high, wide, sharex=True, sharey=True, squeeze=False).flat)
    for place, panel in enumerate(every):
        panel.margins(0.07, 0.1)
        panel.set_axisbelow(True)
        panel.grid(color="0.92", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_visible(place < len(titles))
        # A panel above a gap in the last row needs its own axis labels.
        panel.tick_params(labelbottom=place + wide >= len(titles))
    shown = every[: len(titles)]
    for panel, title in zip(shown, titles, strict=True):
        panel.set_title(textwrap.fill(title, 100 // wide))
    return found, shown


def legend(figure: Figure, handles: Mapping[str, Artist], title: str | None = None) -> None:
    """Adds a legend above the panels, in as many columns as fit; names that are too long wrap."""
    width = 72 * figure.get_figwidth()
    names = [textwrap.fill(name, int((width - 50) / 5)) for name in handles]
    longest = max(len(line) for name in names for line in name.splitlines())
    columns = max(1, min(len(names), int(width / (50 + 5 * longest))))
    heights = [name.count("\n") + 1 for name in names]
    lines = max(int(some.sum()) for some in np.array_split(heights, columns))
    figure.set_figheight(figure.get_figheight() + LINE * (lines - 1))
    figure.legend(
        list(handles.values()), names, loc="outside upper center", ncols=columns,
        frameon=False, handlelength=3, title=title,
    )  # fmt: skip


def sparsity_title(rows: pd.DataFrame, where: str) -> str | None:
    """Returns the legend's title if there are sparsities: it says where their numbers are."""
    return f"numbers {where}: sparsity" if rows["sparsity"].notna().any() else None


def measure_label(measure: str, at: str = "last") -> str:
    """Returns the label of an axis of accuracies, of the `last` or the `best` round."""
    return MEASURES[measure] + ("\nin the best validation round" if at == "best" else "")


def scale(panel: Axes, units: Units) -> None:
    """Makes the horizontal axis logarithmic; its ticks have units."""
    panel.set_xscale("log")
    low, high = panel.get_xlim()
    place = panel.get_subplotspec()
    is_alone = place is not None and place.get_gridspec().ncols == 1
    between: tuple[float, ...] = (
        (1.0, 2.0, 5.0) if high < (100 if is_alone else 15) * low else (1.0, 3.0)
    )
    if high >= 100 * low:
        between = (1.0,)
    panel.xaxis.set_major_locator(LogLocator(subs=between))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda count, _: amount(count, units)))
    panel.xaxis.set_minor_formatter(NullFormatter())


def amount(count: float, units: Units, digits: int = 6) -> str:
    """Returns a number in the largest unit that is not larger than it."""
    size, unit = next((pair for pair in units if count >= pair[0]), units[-1])
    return f"{count / size:.{digits}g} {unit}".rstrip()


ACCURACY = click.option(
    "--accuracy", "measure", type=click.Choice(list(MEASURES)), default="accuracy",
    show_default=True, help="Of the global model, on clients' shards, or of their local models.",
)  # fmt: skip


def out(name: str) -> Callable[[Any], Any]:
    """Returns the command-line option for the picture's file, by default `name`."""
    return click.option(
        "--out", type=File(), default=Path(name), show_default=True,
        help="The picture: .png, .pdf or .svg.",
    )  # fmt: skip


def save(draw: Callable[[], Figure], out: Path) -> None:
    """Writes the picture that `draw` makes.

    Raises:
        click.UsageError: if the file's suffix is no known format, or it cannot be written.
    """
    # Type 42 keeps text as text in a PDF.
    with (
        draft(out, "--out", ".png", ".pdf", ".svg") as file,
        rc_context({"pdf.fonttype": 42}),
    ):
        draw().savefig(file, format=out.suffix.lower().removeprefix("."), dpi=200)
