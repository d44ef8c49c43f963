"""The mean squared gradient norm beside the terms of a bound on it, in the terminal.

It reads runs with `evaluate.theory`. A row is told by what FedSL's bound depends on (interval, cut,
pruning and bits), as far as it varies. It has the mean squared gradient norm and each error term.

Reconstruction: the paper's bound (J. Zhang, W. Ni, D. Wang, arXiv 2412.06414) is not known beyond
its four variables. This is the standard one for local SGD with unbiased compression. Let F have an
L-Lipschitz gradient, let every client take part with the weight p_k, and let eta <= 1 / L. Clients
step along minibatch gradients of the variance v_k, quantized without bias with the error q_k, taken
at the pruned model m_k w_k. For the weighted mean of the clients' models, from step to step,

    F falls by at least  eta/2 |grad F|^2 - eta/2 L^2 sum p_k |m_k w_k - w|^2
                         - L eta^2 / 2 sum p_k^2 (v_k + q_k)

in expectation. With |m_k w_k - w|^2 <= 2 |w_k - w|^2 + 2 |w_k - m_k w_k|^2 the mean over T steps is

    mean |grad F|^2 <= 2 D / (eta T)                     start: D = F at the beginning - min F
                       + L eta sum p_k^2 v_k             noise of minibatches
                       + L eta sum p_k^2 q_k             rounding
                       + 2 L^2 sum p_k |w_k - w|^2       drift between averages
                       + 2 L^2 sum p_k |w_k - m_k w_k|^2 pruning

The sums are means over the measured rounds. The weights p_k are those of the objective: samples, or
equal ones where all uploads count the same. Drift is measured at averages, where it is largest. A
longer interval makes drift larger; a deeper cut lets more of the model drift, be pruned and
rounded. Not in the bound are momentum, decay, dropout at a cut, lost uploads, and what a mask takes
from a gradient: steps are along m_k Q(g_k), and the mean is over those who keep a value. So it is
no proof for a run, and what it leaves out moves the fit. D and L are unknown. They are fitted by
least squares over the rows of a group, neither below 0. Then L is raised until the bound holds in
every row.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd

from analysis import frames, terminal
from analysis.compare import PATHS, constants, read
from analysis.groups import DONE, ROW, is_unset, labelled, split
from analysis.terminal import Column

MEASURED = ("gradient", "variance", "rounding", "drift", "pruning")
"""Mean squared gradient norm of a run, and the weighted sums of the bound's terms."""
PARTS = ("start", "noise", "rounding_part", "drift_part", "pruning_part")
"""Parts of the fitted bound, which add up to it."""
PLAIN = {
    **{"momentum": 0, "weight_decay": 0, "clip": 0, "proximal": 0, "control": "none"},
    **{"optimizer": "sgd", "schedule": "decay", "participation": 1, "aggregation.server": "none"},
    **{"method.dropout": 0, "method.count_pruned_as_zero": False, "augment": ()},
    **{"devices.dropouts": 0, "devices.deadline": "", "devices.spectrum.outage": 0, "trace": ""},
    **{"aggregation.rule": "mean", "aggregation.clip": 0, "aggregation.noise": 0},
}
"""Settings that change what the bound is about, and their values without that."""
GRID, REFINEMENTS = np.concatenate([[0.0], np.logspace(-9, 9, 361)]), 80
"""Values of L that are tried first, and how often the best one's neighbourhood shrinks."""


def terms(runs: pd.DataFrame, rounds: pd.DataFrame, clients: pd.DataFrame) -> pd.DataFrame:
    """Returns what each finished run with `evaluate.theory` measured.

    Args:
        runs: as from `frames.runs`.
        rounds: of the same files, as from `frames.rounds`.
        clients: likewise, as from `frames.clients`.

    Returns:
        A row for each run: `group`, `variant`, `sparsity` as in `groups.labelled`; `MEASURED`;
            `steps`, T, mean local steps of a client in all rounds; `rate`, eta, the mean learning
            rate; and `start_unit`, 2 / (eta T).
    """
    known = labelled(runs)
    found = []
    for run in known[known["reason"] == ""].to_dict("records"):
        of_rounds = rounds[rounds["path"] == run["path"]]
        own = _measured(run, of_rounds, clients[clients["path"] == run["path"]])
        if own is not None:
            found.append({name: run[name] for name in ROW} | own)
    columns = [*ROW, *MEASURED, "steps", "rate", "start_unit"]
    return pd.DataFrame(found, columns=columns).astype({"sparsity": "Float64"})


def _measured(
    run: dict[Any, Any], rounds: pd.DataFrame, clients: pd.DataFrame
) -> dict[str, float] | None:
    """Returns a run's terms; None if it measured none."""
    if "theory_gradient" not in rounds:
        return None
    due = rounds[rounds["theory_gradient"].notna()]
    if due.empty:
        return None
    sums = []
    for t in due["round"]:
        some = clients[clients["round"] == t]
        share = _shares(run, some)
        values = {name: some[f"theory_{name}"].fillna(0).to_numpy(float) for name in MEASURED[1:]}
        sums.append(
            [
                (share**2) @ values["variance"],
                (share**2) @ values["rounding"],
                share @ values["drift"],
                share @ values["pruning"],
            ]
        )
    regular = clients[clients["round"] > frames.AGREEMENT]
    steps = float(regular.groupby("round")["steps"].mean().sum())
    passed = rounds.loc[rounds["round"] > frames.AGREEMENT, "round"].to_numpy(float)
    decay = run.get("lr_decay", 1.0) if run.get("schedule", "decay") == "decay" else 1.0
    rate = float(run["lr"]) * float(np.mean(float(decay) ** passed))
    found = dict(zip(MEASURED[1:], np.mean(sums, 0).tolist(), strict=True))
    gradient = float(due["theory_gradient"].mean())
    about = {"steps": steps, "rate": rate, "start_unit": 2 / (rate * steps)}
    return {"gradient": gradient, **found, **about}


def _shares(run: Mapping[Any, Any], clients: pd.DataFrame) -> np.ndarray:
    """Returns the clients' weights in the objective, [clients]; they sum to 1."""
    is_equal = run.get("aggregation.weights") == "equal" or any(
        not is_unset(run.get(path)) and run[path] != plain
        for path, plain in (("aggregation.rule", "mean"), ("aggregation.clip", 0))
    )
    weights = np.ones(len(clients)) if is_equal else clients["samples"].to_numpy(float)
    return weights / weights.sum()


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Returns one row for each row of the tables: means over seeds.

    Args:
        runs: `terms`.

    Returns:
        `group`, `variant`, `sparsity`, `n`; and for each other column of `terms` `NAME_mean` and
            `NAME_std`, the sample standard deviation (NaN for n = 1).
    """
    found = []
    numbers = [name for name in runs.columns if name not in ROW]
    for _, some in runs.groupby(ROW, sort=False, dropna=False):
        row: dict[str, Any] = {name: some[name].iloc[0] for name in ROW} | {"n": len(some)}
        for name in numbers:
            row |= {f"{name}_mean": some[name].mean(), f"{name}_std": some[name].std()}
        found.append(row)
    return pd.DataFrame(found).astype({"sparsity": "Float64"})


def fitted(
    start: np.ndarray, noise: np.ndarray, apart: np.ndarray, y: np.ndarray
) -> tuple[float, float]:
    """Returns D and L with the least squares of D start + L noise + L^2 apart - y, both >= 0.

    For an L the best D has a closed form. L is searched on a grid and then refined.

    Args:
        start: 2 / (eta T), [rows].
        noise: eta times the noise and rounding, [rows].
        apart: twice the drift and pruning, [rows].
        y: mean squared gradient norms, [rows].
    """

    def best(smooth: float) -> tuple[float, float]:
        left = y - smooth * noise - smooth**2 * apart
        gap = max(0.0, float(start @ left) / float(start @ start))
        return float(np.square(left - gap * start).sum()), gap

    errors = [best(float(smooth))[0] for smooth in GRID]
    place = int(np.argmin(errors))
    low, high = float(GRID[max(0, place - 1)]), float(GRID[min(len(GRID) - 1, place + 1)])
    for _ in range(REFINEMENTS):
        third = (high - low) / 3
        if best(low + third)[0] <= best(high - third)[0]:
            high -= third
        else:
            low += third
    smooth = (low + high) / 2
    # Where L makes no difference to the last digits it is 0.
    if best(0.0)[0] <= best(smooth)[0] * (1 + 1e-9):
        smooth = 0.0
    return best(smooth)[1], smooth


def holding(
    gap: float, start: np.ndarray, noise: np.ndarray, apart: np.ndarray, y: np.ndarray
) -> float:
    """Returns the least L with which D start + L noise + L^2 apart >= y in every row.

    It is infinite if a row has neither noise nor drift, and D is too small for it.
    """
    left = np.maximum(0, y - gap * start)
    with np.errstate(divide="ignore", invalid="ignore"):
        # The positive root of a square, in a form without a difference of equals.
        roots = 2 * left / (noise + np.sqrt(noise**2 + 4 * apart * left))
    return float(np.where(left > 0, roots, 0).max())


def bounded(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns `summary` with the bound, fitted over the rows of each group.

    Returns:
        The rows with `gap`, D; `smooth`, the fitted L; `raised`, the L with which the bound holds;
            `error`, the root of the mean squared error of the fit; and, with a `_mean` and a
            `_std` of NaN, `PARTS` and `fit`, their sum, with the fitted L, and `bound`, with the
            raised one.
    """
    found = []
    for _, some in rows.groupby("group", sort=False):
        y, rate = (some[f"{name}_mean"].to_numpy(float) for name in ("gradient", "rate"))
        start = some["start_unit_mean"].to_numpy(float)
        variance, rounding, drift, pruning = (
            some[f"{name}_mean"].to_numpy(float) for name in MEASURED[1:]
        )
        noise, apart = rate * (variance + rounding), 2 * (drift + pruning)
        gap, smooth = fitted(start, noise, apart, y)
        raised = max(smooth, holding(gap, start, noise, apart, y))
        of_drift = [2 * smooth**2 * values for values in (drift, pruning)]
        of_noise = [smooth * rate * values for values in (variance, rounding)]
        parts = dict(zip(PARTS, [gap * start, *of_noise, *of_drift], strict=True))
        parts["fit"] = sum(parts.values())
        parts["bound"] = gap * start + raised * noise + raised**2 * apart
        error = float(np.sqrt(np.square(parts["fit"] - y).mean()))
        numbers = {f"{name}_mean": values for name, values in parts.items()}
        spreads = dict.fromkeys([f"{name}_std" for name in parts], np.nan)
        about = {"gap": gap, "smooth": smooth, "raised": raised, "error": error}
        found.append(some.assign(**numbers, **spreads, **about))
    return pd.concat(found)


def columns() -> list[list[Column]]:
    """Returns the columns of the tables: what was measured, and the fitted bound's parts."""
    measured = [Column("gradient", "|grad F|^2", "number")]
    measured += [
        Column(name, title, "number")
        for name, title in (
            ("variance", "variance\n/clients"),
            ("rounding", "rounding\n/clients"),
            ("drift", "drift"),
            ("pruning", "pruning"),
        )
    ]
    titles = ("start", "noise", "rounding", "drift", "pruning")
    parts = [
        Column(name, f"fitted\n{title}", "number")
        for name, title in zip(PARTS, titles, strict=True)
    ]
    return [measured, [*parts, Column("fit", "fit", "number"), Column("bound", "bound", "number")]]


def notes(rows: pd.DataFrame, runs: pd.DataFrame, measured: pd.DataFrame) -> list[str]:
    """Returns notes on the numbers, to be read with the tables.

    Args:
        rows: `bounded`.
        runs: as from `frames.runs`.
        measured: `terms`.
    """
    found = []
    for group, some in rows.groupby("group", sort=False):
        gap, smooth, raised, error = (
            float(some[name].iloc[0]) for name in ("gap", "smooth", "raised", "error")
        )
        rate = float(some["rate_mean"].max())
        found.append(
            f"{group}: D = {gap:.3g} and L = {smooth:.3g} fitted to {len(some)} rows, root mean "
            f"squared error {error:.2g}; the bound holds in all rows with L = {raised:.3g}. The "
            f"bound assumes eta L <= 1; with the fitted L it is {rate * smooth:.2g}."
        )
        if len(some) < 4:
            found.append(f"{group}: so few rows tell D and L hardly apart.")
    found.append(
        "|grad F|^2 and terms: means over the measured rounds and over seeds. variance and "
        "rounding /clients: sums over clients with squared weights, as in a mean of independent "
        "errors. drift and pruning: weighted means over clients. fitted: parts of the bound with "
        "the fitted D and L, which add up to the fit. bound: with the larger L."
    )
    used = [
        name
        for name, plain in PLAIN.items()
        if name in runs and any(not is_unset(one) and one != plain for one in runs[name])
    ]
    if used:
        found.append(f"The bound does not know what these settings do here: {', '.join(used)}.")
    left = int((runs["status"] == DONE).sum()) - len(measured)
    if left:
        found.append(f"Left out: {left} finished runs without evaluate.theory, or repeated.")
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@PATHS
def main(paths: tuple[Path, ...]) -> None:
    """Print gradient norms and the terms of a bound, for the results in PATH... (files, folders).

    Only finished runs with evaluate.theory=true count; analysis.compare lists the others.
    """
    runs = read(paths)
    measured = terms(runs, frames.rounds(paths), frames.clients(paths))
    if measured.empty:
        raise click.UsageError("no finished run with evaluate.theory=true")
    rows = bounded(summary(measured))
    console = terminal.console()
    console.print(constants(runs), end="\n\n")
    tables = split(rows)
    terminal.show(console, tables, columns(), is_marked=False)
    for note in notes(rows, runs, measured):
        console.print(note, style="dim")


if __name__ == "__main__":
    main(prog_name="python -m analysis.convergence")
