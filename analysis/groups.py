"""Groups of runs that solve the same problem, and rows of runs that differ only in seeds.

A group is a problem: the partition of the samples and, if they vary, data set, skew, model, number
of clients, participation and devices. A row is a method with the settings that vary, also what of
the model trains, and from where on. Runs that
differ only in their seed are averaged, if they are finished.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import click
import numpy as np
import pandas as pd

from analysis import frames

Row = Mapping[Any, Any]

DONE = "done"
SPARSITY, SAVED = "method.sparsity", "method.saved"
PROBLEM = (
    *("partition.", "skew.", "data.", "model.", frames.CONTENTS),
    *("clients", "participation", "sampling", "trace", "devices.", "budget", "target"),
)
"""Prefixes of the names of settings that define a group."""
COMPOSED = {
    "control": "none",
    "proximal": 0.0,
    "aggregation.server": "none",
    "aggregation.server_lr": None,
    "aggregation.beta1": None,
    "aggregation.beta2": 0.99,
    "aggregation.tau": 0.001,
    "feedback": "none",
    "codec.values": "f4",
    "codec.bits": 8,
    "codec.rounding": "stochastic",
    "codec.scales": "whole",
    "codec.bucket": 512,
    "codec.positions": "auto",
    "codec.down.values": "none",
    "codec.down.bits": 8,
    "codec.down.rounding": "nearest",
    "codec.down.scales": "whole",
    "codec.down.bucket": 512,
    "codec.down.positions": "auto",
    "codec.down.sparsity": 0.0,
    "codec.down.spans": "whole",
    "model.initial": None,
    "model.fresh": (),
    "model.train": ("all",),
    "model.lora.rank": 0,
    "model.lora.alpha": None,
    "model.lora.layers": (),
    "model.lora.fixed": False,
    "model.bottleneck.width": 0,
    "model.bottleneck.layers": (),
}
"""Settings outside of the method's that are part of it all the same, and their values without: they
say how a model is trained, and from where on, and not which."""
STANDS_FOR = {
    "scaffold": ("control",),
    "spatl": ("control",),
    "fedprox": ("proximal",),
    "fedopt": ("aggregation.server",),
    **dict.fromkeys(("topk", "dgc", "stc", "signsgd", "powersgd"), ("feedback",)),
}
"""Those of them that a method's name stands for: its label has them only if they vary in it."""
SHOWN = 8
"""Digits of a hash in a label."""
INDIFFERENT = ("seed",)
"""Settings in which the runs of one row may differ."""
NUMBERS = [
    name
    for name in frames.RESULTS
    if name.startswith((*frames.ACCURACIES, "up_", "down_", "bytes_", "seconds_", "sim_", "flops_"))
]
"""Columns of `frames.runs` that are averaged."""
ROW = ["group", "variant", "sparsity"]
"""Columns of `labelled` that identify a row."""


def labelled(runs: pd.DataFrame, by: Sequence[str] = (), along: Sequence[str] = ()) -> pd.DataFrame:
    """Returns runs, sorted, with labels of their group and row.

    Args:
        runs: as from `frames.runs`.
        by: columns of it that also distinguish rows, besides the settings.
        along: settings of an axis, which distinguish rows, but are not in the labels.

    Returns:
        `runs` preceded by texts for people: `group`, the problem; `variant`, the method with the
            settings that vary; `others`, the settings that vary besides the method's own. Also
            `sparsity`, NA for a dense method, and `reason`: why the run is not averaged, empty if
            it is. Of two runs with equal settings, the later one counts.
    """
    records = runs.to_dict("records")
    told = runs.drop(columns=list(along))
    varying = [name for name in frames.varying(told) if name not in INDIFFERENT]
    problem = [
        name
        for name in frames.settings(told)
        if name.startswith("partition.")
        or (name in varying and name.startswith(PROBLEM) and name not in COMPOSED)
    ]
    shared = [
        name
        for name in varying
        if not name.startswith((*PROBLEM, "method.")) and name not in COMPOSED
    ]
    own = {
        method: [name for name in frames.varying(some) if _is_own(name, some)]
        for method, some in told.groupby("method.name")
    }
    labels = []
    for run in records:
        method = run["method.name"]
        added = [name for name in COMPOSED if name in told and _is_added(name, run)]
        mine = dict.fromkeys(("method.name", *own[method], *added))
        mine.pop(SPARSITY, None)
        is_idle = SPARSITY in along or not is_unset(run.get(SAVED))
        sparsity = None if is_idle else run.get(SPARSITY)
        names = problem, [*mine, *shared, *by], [*shared, *by]
        labels.append((*(label(run, some) for some in names), sparsity))
    texts = ["group", "variant", "others", "sparsity"]
    head = pd.DataFrame(labels, columns=texts, index=runs.index)
    head["sparsity"] = head["sparsity"].astype("Float64")
    head["reason"] = runs["status"].where(runs["status"] != DONE, "")
    rows = pd.concat([head, runs], axis=1)
    latest = rows[rows["reason"] == ""].sort_values("finished", kind="stable")
    spare = latest.index[latest.duplicated([*ROW, *along, "seed"], keep="last")]
    rows.loc[spare, "reason"] = "repeated"
    order = [_order(row) for row in rows.to_dict("records")]
    return rows.iloc[sorted(range(len(rows)), key=order.__getitem__)].reset_index(drop=True)


def summary(runs: pd.DataFrame, by: Sequence[str] = (), along: Sequence[str] = ()) -> pd.DataFrame:
    """Returns one row for each row of the terminal's tables.

    Args:
        runs: as from `frames.runs`.
        by: columns of it that also distinguish rows, besides the settings.
        along: settings of an axis, which distinguish rows, but are not in the labels.

    Returns:
        `group`, `variant` and `sparsity` as in `labelled`; the settings that vary, by their paths;
            `n`, the number of runs, and `seeds`, theirs; and for each name of `NUMBERS` (units as
            in `frames.RESULTS`) `NAME_mean` and `NAME_std`, the sample standard deviation (NaN for
            n = 1).
    """
    rows = labelled(runs, by, along)
    varying = [name for name in frames.varying(runs) if name not in INDIFFERENT]
    keys = dict.fromkeys(["partition.name", "method.name", *along, *varying, *by])
    found = []
    finished = rows[rows["reason"] == ""]
    for _, some in finished.groupby([*ROW, *along], sort=False, dropna=False):
        row = {name: some[name].iloc[0] for name in (*ROW, *keys)}
        row |= {"n": len(some), "seeds": " ".join(map(str, sorted(some["seed"])))}
        values = some[NUMBERS].to_numpy(float)
        deviations = values.std(0, ddof=1) if len(some) > 1 else np.full(len(NUMBERS), np.nan)
        for name, mean, deviation in zip(NUMBERS, values.mean(0), deviations, strict=True):
            row |= {f"{name}_mean": mean, f"{name}_std": deviation}
        found.append(row)
    if not found:
        return pd.DataFrame(columns=[*ROW, "n"])
    return pd.DataFrame(found).astype({"sparsity": "Float64"})


def beside(runs: pd.DataFrame, reference: str, column: str) -> pd.Series:
    """Returns a number of the reference's run with the same seed, for each run; NaN without one.

    Args:
        runs: with the columns of `labelled`, and `column`.
        reference: a row's name, such as `ssfl 0.9`; or a method, whose row in each group is the
            reference of those with equal settings besides the methods' own.
        column: the number.

    Raises:
        click.UsageError: if there is no such row, or if there are several.
    """
    names = pd.Series([row_name(row) for row in runs.to_dict("records")], runs.index)
    keys = ["group", "seed"]
    chosen = runs[names == reference]
    if chosen.empty:
        chosen, keys = runs[runs["method.name"] == reference], [*keys, "others"]
    several = chosen.index[chosen.duplicated(keys, keep=False)]
    if chosen.empty or len(several):
        found = ", ".join(dict.fromkeys(names[several])) or "none"
        raise click.UsageError(
            f"--against {reference}: wanted one row of a table, found {found}; possible are: "
            f"{', '.join(dict.fromkeys(names))}"
        )
    theirs = runs[keys].merge(chosen[[*keys, column]], how="left", on=keys)[column]
    return theirs.set_axis(runs.index)


def label(run: Row, names: Sequence[str]) -> str:
    """Returns settings of a run as text, without those that are not set and lists of nothing.

    The name of a table stands alone: `dirichlet alpha=0.1`.
    """
    words = []
    for name in names:
        value = run[name]
        if is_unset(value) or value == ():
            continue
        text = written(value)[: SHOWN if name.startswith(frames.CONTENTS) else None]
        if name in ("partition.name", "method.name"):
            words.append(text)
        else:
            short = name.removeprefix("partition.").removeprefix("method.")
            words.append(f"{short.removeprefix(frames.ABOUT).removesuffix('.name')}={text}")
    return " ".join(words)


def written(value: Any) -> str:
    """Returns a setting's value as a text for people."""
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def split(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Returns each group's title and rows, in the order in which groups first appear."""
    return [(str(title), some) for title, some in rows.groupby("group", sort=False)]


def row_name(row: Row) -> str:
    """Returns the name of a row in its group: its variant and its sparsity."""
    sparsity = "" if is_unset(row["sparsity"]) else f" {row['sparsity']:g}"
    return f"{row['variant']}{sparsity}"


def _is_own(name: str, runs: pd.DataFrame) -> bool:
    """Whether a setting that varies in a method's runs is the method's own."""
    return name.startswith("method.") or name in STANDS_FOR.get(runs["method.name"].iloc[0], ())


def _is_added(name: str, run: Row) -> bool:
    """Whether a run adds something to its method by a setting of `COMPOSED`."""
    is_named = name in STANDS_FOR.get(run["method.name"], ())
    return not (is_named or is_unset(run[name]) or run[name] == COMPOSED[name])


def _order(row: Row) -> tuple[Any, ...]:
    """Returns a sort key: even partitions first, dense methods first, numbers by size."""
    partition, sparsity = row["partition.name"], row["sparsity"]
    alpha: Any = row.get("partition.alpha")
    evenness = math.inf if is_unset(alpha) else float(alpha)
    return (
        (partition != "iid", partition, -evenness),
        _natural(row["group"]),
        not is_unset(sparsity),
        _natural(row["variant"]),
        -1 if is_unset(sparsity) else sparsity,
        row["seed"],
    )


def is_unset(value: Any) -> bool:
    """Whether a run has no such setting, in any of the three ways of data frames to say so."""
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _natural(text: str) -> list[Any]:
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [float(part) if place % 2 else part for place, part in enumerate(parts)]
