"""Results made by hand, for the analysis: settings, rounds, files of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner
from matplotlib.figure import Figure

from fedmpi.results import tables
from fedmpi.results.record import DONE, Record, begin


def settings(method: str = "fedavg", seed: int = 1, **method_settings: Any) -> dict[str, Any]:
    """A run's settings as a tree."""
    return {
        "seed": seed,
        "rounds": 3,
        "lr": 0.1,
        "clients": 2,
        "local_steps": None,
        "data": {"name": "synthetic", "shape": [1, 8, 8]},
        "partition": {"name": "iid"},
        "method": {"name": method, **method_settings},
    }


def rounds(
    accuracy: list[float], validation: list[float] | None = None, up: int = 100, once: int = 0
) -> np.ndarray:
    """Rounds of 100 bytes up and 1000 down, of 1 s, the first of 9 s; before them perhaps one.

    Two clients take part in each.
    """
    first = -1 if once else 0
    rows = tables.empty(tables.ROUNDS, len(accuracy) - first)
    rows["round"] = np.arange(first, len(accuracy))
    rows["warmup"] = rows["round"] == 0
    rows["seconds"] = np.where(rows["warmup"], 9.0, 1.0)
    rows["sampled"] = 2
    rows["up"], rows["down"] = np.where(rows["round"] < 0, once, up), 1000
    regular = rows[-len(accuracy) :]
    regular["accuracy"], regular["validation"] = accuracy, validation or accuracy
    for name, shift in (("shard_mean", 0.01), ("shard_min", -0.1), ("personal_mean", -0.2)):
        regular[name] = regular["accuracy"] + shift
    return rows


def write(
    path: Path, tree: dict[str, Any], rows: np.ndarray, status: str = DONE, **about: Any
) -> Path:
    """A result of these rounds, with two phases on one rank in each."""
    identity = f"{abs(hash(json.dumps(tree))):016x}"[:16]
    about = {"ranks": 1, "hosts": ["a"], **about}
    record = Record(begin(path), tree, identity, about, tables.TABLES)
    for row in rows:
        phases = tables.empty(tables.PHASES, 2)
        phases["round"], phases["phase"] = row["round"], ["train", "serve"]
        clients, ranks = tables.empty(tables.CLIENTS, 2), tables.empty(tables.RANKS, 1)
        clients["round"], clients["client"], ranks["round"] = row["round"], [0, 1], row["round"]
        record.append({"rounds": row[None], "phases": phases, "clients": clients, "ranks": ranks})
    if status == "running":
        record.file.close()
        record.held.release()
    else:
        record.close(status)
    return path


def simulated(rows: np.ndarray, seconds: float) -> np.ndarray:
    """The same rounds with devices that took so long, and ten times as many joules."""
    rows["sim_seconds"], rows["sim_joules"] = seconds, 10 * seconds
    rows["flops"], rows["lost"] = 7, 1
    return rows


def fleet(**shares: float) -> dict[str, Any]:
    """Settings with kinds of devices: the share and the link of each."""
    links = {"weak": {"kind": "fixed", "up": 1.0}, "strong": {"kind": "wireless", "loss": 40.0}}
    tiers = [{"name": n, "share": shares[n], "link": links.get(n, {})} for n in shares]
    return settings() | {"devices": {"tiers": tiers, "dropouts": 0.0}}


def run(command: Any, *words: object) -> Any:
    """A command's result: `exit_code`, `output`."""
    return CliRunner().invoke(command, [str(word) for word in words])


def appearances(figure: Figure) -> list[tuple[object, ...]]:
    """What can be seen of each line in the first panel: colour, marker, dashes, a hollow marker."""
    return [
        (
            line.get_color(),
            line.get_marker(),
            str(line._unscaled_dash_pattern),
            line.get_markerfacecolor() == "white",
        )
        for line in figure.axes[0].get_lines()
        if line.get_marker() not in ("_", "|", "None")
    ]
