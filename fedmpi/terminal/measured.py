"""A kept model measured again, beside what its run found: `fedmpi evaluate`."""

from pathlib import Path

import numpy as np
from rich.text import Text

from fedmpi.results.record import RecordError
from fedmpi.runs.measure import measure
from fedmpi.terminal.style import console, grid

MEANINGS = {
    "accuracy": "global model, test set",
    "validation": "global model, held-out samples",
    "shard_mean": "after the round, clients' test shards",
    "shard_std": "   standard deviation",
    "shard_min": "   the worst of them",
    "personal_mean": "after local training, the same",
}


def show_measured(path: Path, words: tuple[str, ...]) -> None:
    """Measures a result's model and prints the accuracies, to the last digit.

    Raises:
        BadInput: if that is not possible.
    """
    found = measure(path, words)
    if not np.isfinite(list(found.now.values())).any():
        raise RecordError(
            f"{path}: it keeps no whole model: wanted what clients have of their own, too, which "
            "keep = 'last' keeps within keep_limit"
        )
    table = grid("", "now", "recorded", "")
    for name, value in found.now.items():
        recorded = found.recorded[name]
        if np.isfinite(value):
            differs = "" if value == recorded or np.isnan(recorded) else "differs"
            table.add_row(MEANINGS[name], repr(float(value)), _said(recorded), differs)
    out = console()  # not a digit is cut
    out.width = max(out.width, out.measure(table, options=out.options.update(width=1000)).maximum)
    out.print(Text(f"{path}, the model after round {found.round + 1}", "bold"), table)


def _said(value: float) -> str:
    return repr(value) if np.isfinite(value) else "-"
