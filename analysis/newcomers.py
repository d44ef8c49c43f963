"""New clients' accuracy over epochs of training: from what others have learnt, and from scratch.

A panel is a group (see `groups`), and a line a method and sparsity: the mean over the newcomers of
a run, and over seeds, with the sample standard deviation over seeds as bar. A solid line begins
with the model that a newcomer has after the last round, of which it trains all or, where a part
stays with clients, this part. A dashed grey line begins with the initial model, all of which it
trains on the same samples; it is drawn once where methods have the same one.

The transfer ratio of an epoch is the accuracy from the model divided by that from scratch, each a
mean over newcomers, after the same number of epochs. Above 1, newcomers gain by what others learnt.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import frames, panels, terminal
from analysis.compare import PATHS, read
from analysis.groups import ROW, labelled, row_name, split

MODEL, SCRATCH = "model", "scratch"
"""Values of the column `start`."""
FROM_SCRATCH = "from scratch"


def curves(runs: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Returns mean accuracies of the finished runs' newcomers, a row for each line of a picture.

    Args:
        runs: as from `frames.runs`.
        rows: of the same files, as from `frames.newcomers`.

    Returns:
        `group`, `variant` and `sparsity` as in `groups.labelled`; `model` and `scratch`, float64
            [seeds, epochs + 1], the first column before any training; a run without newcomers is
            left out.
    """
    known, found = labelled(runs), []
    for _, some in known[known["reason"] == ""].groupby(ROW, sort=False, dropna=False):
        both = [_curves(rows, path) for path in some["path"]]
        both = [pair for pair in both if pair is not None]
        if both:
            model, scratch = (np.stack(lines) for lines in zip(*both, strict=True))
            line = {name: some[name].iloc[0] for name in ROW}
            found.append(line | {MODEL: model, SCRATCH: scratch})
    return pd.DataFrame(found, columns=[*ROW, MODEL, SCRATCH])


def _curves(rows: pd.DataFrame, path: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns a run's mean accuracy after each epoch, from both starts; None without newcomers."""
    if rows.empty or "start" not in rows:
        return None
    mine = rows[rows["path"] == path]
    if mine.empty:
        return None
    means = mine.groupby(["start", "epoch"])["accuracy"].mean()
    model, scratch = (means[start].sort_index().to_numpy(float) for start in (MODEL, SCRATCH))
    return model, scratch


def ratios(row: Any) -> np.ndarray:
    """Returns the transfer ratio of each seed and epoch, [seeds, epochs + 1]; NaN over zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = row[MODEL] / row[SCRATCH]
    return np.where(np.isfinite(found), found, np.nan)


@panels.STYLED
def picture(rows: pd.DataFrame) -> Figure:
    """Draws `curves` of at least one row."""
    groups = split(rows)
    looks = panels.looks(rows)
    figure, shown = panels.figure([title for title, _ in groups], len(looks) + 1)
    handles: dict[str, Any] = {}
    for panel, (_, some) in zip(shown, groups, strict=True):
        drawn: list[np.ndarray] = []
        for row in some.to_dict("records"):
            look = looks[row_name(row)]
            mean = row[SCRATCH].mean(0)
            if not any(np.array_equal(mean, other) for other in drawn):
                drawn.append(mean)
                handles[FROM_SCRATCH] = panel.errorbar(
                    *_line(row[SCRATCH]), color="0.5", linestyle=(0, (3, 2)), linewidth=1.2,
                    elinewidth=0.8, capsize=2, zorder=1.5,
                )  # fmt: skip
            handles[row_name(row)] = panel.errorbar(
                *_line(row[MODEL]), color=look.colour, marker=look.marker, markersize=5,
                markeredgecolor="white", markeredgewidth=0.6, linestyle=look.dash, linewidth=1.4,
                elinewidth=0.8, capsize=2,
            )  # fmt: skip
    handles[FROM_SCRATCH] = handles.pop(FROM_SCRATCH)
    shown[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.supxlabel("epochs of a new client's training")
    figure.supylabel("mean accuracy on newcomers' test shards (%)")
    panels.legend(figure, handles, panels.sparsity_title(rows, "behind names"))
    return figure


def _line(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns epochs, the mean over seeds in percent, and the deviation, None for one seed."""
    spread = 100 * values.std(0, ddof=1) if len(values) > 1 else None
    return np.arange(values.shape[1]), 100 * values.mean(0), spread


MOST = 6
"""Epochs with a column of their own; of more, those that are spread evenly."""


def table(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[terminal.Column]]:
    """Returns `curves` for `terminal.show`: accuracies by epoch, from scratch, and the ratio."""
    epochs = min(row[MODEL].shape[1] for row in rows.to_dict("records"))
    chosen = np.unique(np.linspace(0, epochs - 1, min(MOST, epochs)).round().astype(int))
    found = []
    for row in rows.to_dict("records"):
        line = {name: row[name] for name in ROW} | {"n": len(row[MODEL])}
        numbers = {str(epoch): row[MODEL][:, epoch] for epoch in chosen}
        numbers |= {SCRATCH: row[SCRATCH][:, epochs - 1], "ratio": ratios(row)[:, epochs - 1]}
        for name, values in numbers.items():
            line[f"{name}_mean"] = values.mean()
            line[f"{name}_std"] = values.std(ddof=1) if len(values) > 1 else np.nan
        found.append(line)
    columns = [terminal.Column(str(epoch), f"epoch {epoch}", "share") for epoch in chosen]
    columns.append(terminal.Column(SCRATCH, FROM_SCRATCH, "share"))
    columns.append(terminal.Column("ratio", "transfer ratio", "factor"))
    return pd.DataFrame(found).astype({"sparsity": "Float64"}), columns


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@PATHS
@panels.out("newcomers.png")
def main(paths: Sequence[Path], out: Path) -> None:
    """Draw new clients' accuracy for the results in PATH... (files, or folders at any depth).

    Only finished runs count; analysis.compare lists the others.
    """
    rows = curves(read(paths), frames.newcomers(paths))
    if rows.empty:
        raise click.UsageError(
            "no finished run with newcomers that train: wanted newcomers above 0 and "
            "evaluate.final = 'tune'; python -m analysis.compare lists what there is"
        )
    panels.save(lambda: picture(rows), out)
    console, (wide, columns) = terminal.console(), table(rows)
    console.print("mean accuracy on newcomers' test shards", end="\n\n")
    groups = split(wide)
    terminal.show(console, groups, [columns])
    console.print(
        "From scratch, and the transfer ratio (accuracy from the model over that from scratch): "
        "after the last of these epochs.",
        style="dim",
    )
    print(out)


if __name__ == "__main__":
    main(prog_name="python -m analysis.newcomers")
