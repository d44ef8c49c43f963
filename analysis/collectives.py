"""Collectives and exchanges of a machine, from the files of `fedmpi bench mpi`.

Three pictures. `collectives` has time against size, a panel for each collective, with bare ones and
other references beside ours. `exchanges` has a panel for each number of clients a rank, a line an
exchange at a sparsity, and dense vectors in grey. `map` says over size and sparsity which exchange
is fastest, and how many times longer the next one takes.

Times are those of the slowest rank.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import panels

TABLE = "mpi"
CASE = ["positions", "clients", "sparsity", "bytes"]
"""What tells exchanges apart that are set against each other."""
DENSE, GREY = "dense", "0.6"
"""Name of the rows of dense vectors, and their colour."""
TIMES: panels.Units = ((1e6, "s"), (1e3, "ms"), (1, "us"))


def read(paths: tuple[Path, ...]) -> pd.DataFrame:
    """Returns the rows of all files, with words as texts.

    Raises:
        click.UsageError: for a file that `fedmpi bench mpi` did not write.
    """
    found = []
    for path in paths:
        try:
            with h5py.File(path, "r", locking=False) as file:
                found.append(pd.DataFrame(file[TABLE][:]))
        except (KeyError, OSError):
            raise click.UsageError(f"{path}: wanted a file of fedmpi bench mpi --out") from None
    rows = pd.concat(found, ignore_index=True)
    words = ["kind", "name", "side", "level", "positions"]
    rows[words] = rows[words].apply(lambda column: column.str.decode("ascii"))
    return rows


def collectives(rows: pd.DataFrame) -> Figure:
    """Draws collectives against size, with their references."""
    some = rows[rows["kind"] == "collective"]
    parts = [
        (f"{name}, {level}: {ranks} ranks", part)
        for (name, level, ranks), part in some.groupby(["name", "level", "ranks"], sort=False)
        if part["bytes"].nunique() > 1
    ]
    names = list(dict.fromkeys(some["side"]))
    looks = panels.variants(["ours", *(name for name in names if name != "ours")])

    def look(row: pd.Series) -> tuple[str, panels.Look]:
        return row["side"], panels.Look(*looks[row["side"]], "-")

    return _lines(parts, look, "message of a rank")


def exchanges(rows: pd.DataFrame) -> Figure:
    """Draws exchanges against size, a line a sparsity, with dense vectors in grey."""
    some = rows[rows["kind"] == "exchange"]
    keys = ["positions", "clients", "ranks"]
    parts = [
        (f"{positions} positions, {ranks} ranks, clients a rank: {clients}", part)
        for (positions, clients, ranks), part in some.groupby(keys, sort=False)
    ]
    names = [name for name in dict.fromkeys(some["name"]) if name != DENSE]
    sides = [side for side in dict.fromkeys(some["side"]) if side != "ours"]
    looks, sparsities = panels.variants([*names, *sides]), sorted(some["sparsity"].unique())

    def look(row: pd.Series) -> tuple[str, panels.Look]:
        if row["name"] == DENSE:
            return f"dense: {row['side']}", panels.Look(GREY, looks[row["side"]][1], "-")
        dash = panels.DASHES[sparsities.index(row["sparsity"]) % len(panels.DASHES)]
        return f"{row['name']}, {row['sparsity']:g}", panels.Look(*looks[row["name"]], dash)

    return _lines(parts, look, "dense vector of a client", "numbers behind names: sparsity")


@panels.STYLED
def _lines(
    parts: Sequence[tuple[str, pd.DataFrame]],
    look: Callable[[pd.Series], tuple[str, panels.Look]],
    sizes: str,
    title: str | None = None,
) -> Figure:
    """Draws time against size.

    Args:
        parts: title and rows of each panel.
        look: name of a row's line, and how it is drawn.
        sizes: title of the axis of sizes.
        title: of the legend.
    """
    if not parts:
        raise click.UsageError("nothing to draw: no such rows of several sizes")
    handles: dict[str, Any] = {}
    figure, shown = panels.figure([name for name, _ in parts], panels.CROWD)
    for panel, (_, some) in zip(shown, parts, strict=True):
        named = some.assign(line=[look(row)[0] for _, row in some.iterrows()])
        for name, line in named.groupby("line", sort=False):
            chosen = look(line.iloc[0])[1]
            points = line.groupby("bytes")["max_us"].median()
            is_reference = line["side"].iloc[0] != "ours"
            (handles[str(name)],) = panel.plot(
                points.index, points, linestyle=chosen.dash, marker=chosen.marker, markersize=4,
                color=chosen.colour, linewidth=0.9 if is_reference else 1.6,
                zorder=1 if is_reference else 2,
            )  # fmt: skip
        panel.set_yscale("log")
    panels.scale(shown[0], panels.BYTES)
    shown[0].yaxis.set_major_formatter(lambda us, _: panels.amount(us, TIMES))
    figure.supxlabel(sizes)
    figure.supylabel("time of the slowest rank")
    panels.legend(figure, dict(sorted(handles.items())), title)
    return figure


def winners(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the fastest exchange of each case, and how many times longer the next one takes.

    Returns:
        Columns `CASE`, name, side and lead.
    """
    some = rows[rows["kind"] == "exchange"]
    middle = some.groupby([*CASE, "name", "side"], sort=False)["max_us"].median().reset_index()
    # Of the dense references the fastest stands for all.
    middle = middle.loc[middle.groupby([*CASE, "name"], sort=False)["max_us"].idxmin()]
    found = []
    for case, group in middle.groupby(CASE):
        ordered = group.sort_values("max_us")
        first = ordered.iloc[0]
        lead = ordered["max_us"].iloc[1] / first["max_us"] if len(ordered) > 1 else np.nan
        found.append([*case, first["name"], first["side"], lead])
    return pd.DataFrame(found, columns=[*CASE, "name", "side", "lead"])


@panels.STYLED
def chart(rows: pd.DataFrame) -> Figure:
    """Draws which exchange is fastest, over size and sparsity."""
    best = winners(rows)
    if best.empty:
        raise click.UsageError("no map: wanted exchanges, as fedmpi bench mpi --exchange measures")
    names = dict.fromkeys(rows["name"][rows["kind"] == "exchange"])
    looks = panels.variants([name for name in names if name != DENSE])
    cases = list(best.groupby(["positions", "clients"], sort=True))
    titles = [f"{way} positions, clients a rank: {clients}" for (way, clients), _ in cases]
    figure, shown = panels.figure(titles, 1)
    sizes, sparsities = (sorted(best[key].unique()) for key in ("bytes", "sparsity"))
    handles: dict[str, Any] = {}
    for panel, (_, some) in zip(shown, cases, strict=True):
        panel.grid(False)
        for row in some.to_dict("records"):
            colour = GREY if row["name"] == DENSE else looks[row["name"]][0]
            at = sizes.index(row["bytes"]), sparsities.index(row["sparsity"])
            (box,) = panel.bar(at[0], 0.96, 0.96, at[1] - 0.48, color=colour, alpha=0.55)
            handles.setdefault(row["name"], box)
            if np.isfinite(row["lead"]):
                panel.text(*at, f"{row['lead']:.3g}", ha="center", va="center", fontsize=8)
    shown[0].set_xticks(range(len(sizes)), [panels.amount(b, panels.BYTES, 3) for b in sizes])
    shown[0].set_yticks(range(len(sparsities)), [f"{one:g}" for one in sparsities])
    for panel in shown:
        panel.tick_params("x", rotation=90)
    figure.supxlabel("dense vector of a client")
    figure.supylabel("sparsity")
    panels.legend(figure, handles, "fastest; numbers: times longer that the next one takes")
    return figure


PICTURES = {"collectives": collectives, "exchanges": exchanges, "map": chart}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--draw", "what", type=click.Choice(list(PICTURES)), default="collectives", show_default=True,
    help="What is drawn.",
)  # fmt: skip
@panels.out("collectives.png")
def main(paths: tuple[Path, ...], what: str, out: Path) -> None:
    """Draw what fedmpi bench mpi --out has measured, in the files PATHS."""
    rows = read(paths)
    panels.save(lambda: PICTURES[what](rows), out)
    print(out)


if __name__ == "__main__":
    main(prog_name="python -m analysis.collectives")
