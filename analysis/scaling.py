"""Predicted seconds of exchanges against clients, from the lines of `fedmpi bench predict --out`.

A panel is a number of ranks, a line an exchange at a sparsity. Lines are predicted, and so are
small dots; a large ringed marker is measured: the same without the choice of values.
"""

import json
from pathlib import Path
from typing import Any

import click
import pandas as pd
from matplotlib.figure import Figure

from analysis import panels

SECONDS: panels.Units = ((1, "s"), (1e-3, "ms"), (1e-6, "us"))


def read(path: Path) -> pd.DataFrame:
    """Returns a row for each line.

    Raises:
        click.UsageError: if it is no such file.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = pd.DataFrame([json.loads(line) for line in lines])
        return rows.astype({"predicted_seconds": float, "measured_seconds": float, "ranks": int})
    except (OSError, ValueError, KeyError):
        raise click.UsageError(f"{path}: wanted lines of fedmpi bench predict --out") from None


@panels.STYLED
def picture(rows: pd.DataFrame) -> Figure:
    """Draws the rows along the clients, or along the ranks if the number of clients is the same."""
    along, by = ("clients", "ranks") if rows["clients"].nunique() > 1 else ("ranks", "clients")
    groups = list(rows.groupby(by, sort=True))
    looks = panels.variants(list(dict.fromkeys(rows["exchange"])))
    kinds = list(rows.groupby(["sparsity", "agreed"], sort=True).groups)
    titles = [f"{count} {by}{_place(some) if by == 'ranks' else ''}" for count, some in groups]
    figure, shown = panels.figure(titles, len(looks))
    handles: dict[str, Any] = {}
    for panel, (_, some) in zip(shown, groups, strict=True):
        for (name, *kind), line in some.groupby(["exchange", "sparsity", "agreed"], sort=False):
            line, (colour, marker) = line.sort_values(along), looks[str(name)]
            called = f"{name}, {kind[0]:g}" + (", agreed" if kind[1] else "")
            (handles[called],) = panel.plot(
                line[along], line["predicted_seconds"], color=colour, marker=".",
                linestyle=panels.DASHES[kinds.index(tuple(kind)) % len(panels.DASHES)],
                linewidth=1.3, markersize=3,
            )  # fmt: skip
            seen = line[line["measured_seconds"].notna()]
            if len(seen):
                (handles["measured"],) = panel.plot(
                    seen[along], seen["measured_seconds"], color=colour, marker=marker,
                    linestyle="none", markersize=6, markeredgecolor="black",
                )  # fmt: skip
        panel.set_yscale("log")
    panels.scale(shown[0], ((1e6, "M"), (1e3, "k"), (1, "")))
    shown[0].yaxis.set_major_formatter(lambda s, _: panels.amount(s, SECONDS))
    figure.supxlabel(along)
    figure.supylabel("predicted time of a round's uplink")
    panels.legend(figure, handles, "lines: predicted; numbers: sparsity")
    return figure


def _place(rows: pd.DataFrame) -> str:
    """Where the ranks of some rows are."""
    count = rows["nodes"].iloc[0]
    return " on 1 node" if count == 1 else f" on {count} nodes"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("path", type=click.Path(path_type=Path))
@panels.out("scaling.png")
def main(path: Path, out: Path) -> None:
    """Draw what fedmpi bench predict --out has written to the file PATH."""
    rows = read(path)
    panels.save(lambda: picture(rows), out)
    print(out)


if __name__ == "__main__":
    main(prog_name="python -m analysis.scaling")
