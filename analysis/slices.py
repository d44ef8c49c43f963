"""Clients' models without the channels that their selections leave out, in the terminal.

A table is a group (see `groups`), and a row a method and sparsity: means over the clients of a run
but newcomers, and over seeds, with the sample standard deviation over seeds. FLOPs saved are a
share of those of the whole models; a time is that of the whole models over that of the sliced ones,
as it was measured on the CPUs of the run's ranks.
"""

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import pandas as pd

from analysis import frames, terminal
from analysis.compare import PATHS, constants, read
from analysis.groups import ROW, labelled, split

COLUMNS = [
    terminal.Column("whole", "whole", "share"),
    terminal.Column("sliced", "sliced", "share"),
    terminal.Column("tuned", "tuned", "share"),
    terminal.Column("channels", "channels kept", "share"),
    terminal.Column("saved", "FLOPs saved", "share"),
    terminal.Column("one", "one sample", "factor"),
    terminal.Column("batch", "batch", "factor"),
]
"""Accuracies of whole, sliced, and sliced and trained models; the costs of inference."""


def table(runs: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of the printed tables.

    Args:
        runs: as from `frames.runs`.
        rows: of the same files, as from `frames.slices`.

    Returns:
        `group`, `variant`, `sparsity` and `n`, the number of runs; for each of `COLUMNS`
            `NAME_mean` and `NAME_std`, NaN for n = 1. Runs without slices are left out.
    """
    known, found = labelled(runs), []
    for _, some in known[known["reason"] == ""].groupby(ROW, sort=False, dropna=False):
        each = [_means(rows, path) for path in some["path"]]
        values = pd.DataFrame([one for one in each if one])
        if values.empty:
            continue
        line = {name: some[name].iloc[0] for name in ROW} | {"n": len(values)}
        for column in COLUMNS:
            line[f"{column.name}_mean"] = values[column.name].mean()
            line[f"{column.name}_std"] = values[column.name].std(ddof=1)
        found.append(line)
    if not found:
        return pd.DataFrame(columns=[*ROW, "n"])
    return pd.DataFrame(found).astype({"sparsity": "Float64"})


def _means(rows: pd.DataFrame, path: str) -> dict[str, float]:
    """Returns a run's numbers, by the names of `COLUMNS`; nothing if it has no slices."""
    if rows.empty or "whole_flops" not in rows:
        return {}
    mine = rows[(rows["path"] == path) & ~rows["newcomer"].astype(bool)]
    if mine.empty:
        return {}
    total = mine[["flops", "whole_flops", "seconds", "whole_seconds"]].sum()
    batch = mine[["batch_seconds", "whole_batch_seconds"]].sum()
    return {
        "whole": float(np.nanmean(mine["whole_accuracy"])),
        "sliced": float(np.nanmean(mine["accuracy"])),
        "tuned": float(np.nanmean(mine["tuned"])),
        "channels": float(mine["channels"].mean()),
        "saved": float(1 - total["flops"] / total["whole_flops"]),
        "one": float(total["whole_seconds"] / total["seconds"]),
        "batch": float(batch["whole_batch_seconds"] / batch["batch_seconds"]),
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@PATHS
def main(paths: Sequence[Path]) -> None:
    """Print what slicing makes of models in PATH... (files, or folders at any depth).

    Only finished runs count; analysis.compare lists the others.
    """
    runs = read(paths)
    rows = table(runs, frames.slices(paths))
    if rows.empty:
        raise click.UsageError(
            "no finished run with slices: wanted evaluate.final = 'slice'; "
            "python -m analysis.compare lists what there is"
        )
    console = terminal.console()
    console.print(constants(runs), end="\n\n")
    groups = split(rows)
    terminal.show(console, groups, [COLUMNS])
    console.print(
        "Means over clients, without newcomers. Accuracies on clients' test shards: whole, sliced, "
        "and after training of what is left. Times: whole over sliced.",
        style="dim",
    )


if __name__ == "__main__":
    main(prog_name="python -m analysis.slices")
