"""Predicted seconds of a round's uplink by each exchange, on any number of ranks and clients.

A model of costs (`fedmpi.costs`) is fitted to the files of `fedmpi bench mpi`, and kept. How well
it fits, and how well it predicts what it was not fitted to, comes first: sizes that were left out,
and exchanges of larger vectors than it knows. Nothing is measured here.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from math import inf
from pathlib import Path
from re import compile as pattern
from typing import Any

import click
import numpy as np

from fedmpi import config, costs
from fedmpi.bench import JSON, exchange
from fedmpi.bench.mpi import TABLE
from fedmpi.costs import GOOD, PARTS, Law, Load, Model
from fedmpi.draft import draft
from fedmpi.errors import BadInput, told
from fedmpi.exchanges.auto import steps_of
from fedmpi.results import record
from fedmpi.units import duration

Row = dict[str, Any]
CLIENTS = (10, 100, 1_000, 10_000, 100_000)
RANKS = (2, 4, 16, 64, 256, 1024, 4096)
BEGINS, ROWS = pattern(rb'\{\s*"laws"'), pattern(rb'\{"exchange"')
"""How a kept model begins, and how a file of predictions does."""


def read(files: Sequence[Path]) -> tuple[list[Row], Row]:
    """Returns the rows of files of `bench mpi`, and what is to be known of them.

    Raises:
        RecordError: if one of them is none.
    """
    rows: list[Row] = []
    about: dict[str, Any] = {"files": [str(file) for file in files]}
    for file in files:
        found, table = record.load_rows(file, TABLE)
        about |= {key: str(found.get(key, "")) for key in ("host", "cpu", "mpi", "fedmpi")}
        for values in table.tolist():
            named = zip(table.dtype.names or (), values, strict=True)
            rows.append({k: v.decode() if isinstance(v, bytes) else v for k, v in named})
    about["per_node"] = max((int(row["per_node"]) for row in rows), default=1)
    return rows, about


def fitted(files: Sequence[Path]) -> Model:
    """Fits a model to files of `bench mpi`.

    Raises:
        RecordError: if one of them is none.
    """
    return costs.fitted(*read(files), steps_of)


def keep(model: Model, path: Path) -> None:
    """Writes a model, in place of the former one."""
    with draft(path, "--model", BEGINS) as file:
        file.write(model.text().encode())


def linked(model: Model, latency: float, rate: float) -> Model:
    """A model with a link between nodes that is given, not measured.

    Args:
        model: the machine's.
        latency: microseconds of a message.
        rate: Mbit/s.
    """
    laws = dict(model.laws)
    for name, forms in costs.USUAL.items():
        laws[f"{name} far"] = Law(*forms, (inf,), (1e-6 * latency,), (8e-6 / rate,))
    return replace(model, laws=laws, about=model.about | {"link": [latency, rate]})


def predicted(model: Model, names: Sequence[str], load: Load) -> list[Row]:
    """A row for each exchange whose module says of what steps it consists.

    Raises:
        BadInput: if the model lacks what a step takes.
    """
    found = []
    for name in names:
        steps = steps_of(name)
        if steps is None:
            continue
        parts = model.parts(name, steps(load), load.ranks)
        row: Row = {"exchange": name, **asdict(load), "nodes": load.nodes}
        del row["ready"], row["shared"], row["travels"]
        row |= {f"predicted_{part}_seconds": parts[part] for part in PARTS}
        row["predicted_seconds"] = sum(parts.values())
        row["measured_seconds"] = measured(model, name, load)
        found.append(row)
    return found


def measured(model: Model, name: str, load: Load) -> float | None:
    """Seconds of this exchange as it was measured, but for the choice of values; None if not."""
    keys = ("clients", "ranks", "per_node", "parameters", "sparsity", "agreed")
    wanted = {"exchange": name} | {key: getattr(load, key) for key in keys}
    some = [row["seconds"] for row in model.measured if wanted.items() <= row.items()]
    return float(np.median(some)) if some else None


def errors(model: Model) -> dict[str, list[float]]:
    """Predicted over measured seconds of exchanges, less one; none was fitted to."""
    found: dict[str, list[float]] = {}
    for row in model.measured:
        load = Load(**{k: v for k, v in row.items() if k not in ("exchange", "seconds")})
        for one in predicted(model, [row["exchange"]], replace(load, ready=True)):
            error = one["predicted_seconds"] / row["seconds"] - 1
            found.setdefault(row["exchange"], []).append(error)
    return found


def report(model: Model, others: Sequence[Path]) -> Iterator[str]:
    """Lines on how well a model fits, and predicts what it was not fitted to.

    Args:
        model: the model.
        others: files of `bench mpi` that it was not fitted to.
    """
    yield f"{'fitted':<16}{'points':>7}{'residual':>10}{'worst':>8}{'left out':>10}{'good':>7}"
    for name, fit in model.fits.items():
        figures = f"{fit.residual:10.0%}{fit.worst:8.0%}{fit.held:10.0%}{fit.good:7.0%}"
        yield f"{name:<16}{fit.points:7}{figures}"
    yield "residual: median relative error. left out: the same at sizes that were left out, every"
    yield f"third in turns. good: share of these within {GOOD:.0%}."
    for name, some in errors(model).items():
        about = f"{name}, {len(some)} measured exchanges, larger than fitted to"
        yield f"{about}: {_figures(some)}"
    if "link" in model.about:
        latency, rate = model.about["link"]
        yield f"between nodes: a link of {latency:g} us and {rate:g} Mbit/s, which was given"
    if others:
        found = costs.held(model, read(others)[0])
        found |= errors(replace(model, measured=fitted(others).measured))
        for name, some in found.items():
            yield f"{name}, {len(some)} of other files: {_figures(some)}"


def _figures(errors: Sequence[float]) -> str:
    """What relative errors come to."""
    size = np.abs(errors)
    within = f"{np.mean(size <= GOOD):.0%} within {GOOD:.0%}"
    return f"median error {np.median(size):.0%}, worst {size.max():.0%}, {within}"


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """A table for people: a line a load, a column an exchange; + behind the fastest."""
    names = list(dict.fromkeys(row["exchange"] for row in rows))
    heads = ("clients", "ranks", "nodes", "sparsity", "positions")
    yield "".join(f"{head:>10}" for head in heads) + "".join(f"{name:>14}" for name in names)
    cases: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        case = tuple(row[key] for key in (*heads[:4], "agreed"))
        cases.setdefault(case, {})[row["exchange"]] = row
    for (*numbers, agreed), some in cases.items():
        least = min(row["predicted_seconds"] for row in some.values())
        text = "".join(f"{number:>10}" for number in (*numbers, "agreed" if agreed else "own"))
        for name in names:
            seconds = some[name]["predicted_seconds"]
            text += f"{duration(seconds) + ('+' if seconds == least else ' '):>14}"
        yield text
    yield "All predicted, + the fastest: choosing, packing, moving and adding the uplink."


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--model",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of the model: written with FILES, else read. Default: one in your data folder.",
)
@click.option(
    "--exchange",
    "exchanges",
    type=click.Choice(config.exchanges()),
    multiple=True,
    help="Only this exchange. Can be repeated, as the next four.",
)
@click.option("--clients", type=click.IntRange(min=1), multiple=True, default=CLIENTS)
@click.option("--ranks", type=click.IntRange(min=1), multiple=True, default=RANKS)
@click.option(
    "--sparsity",
    "sparsities",
    type=click.FloatRange(0, 1, max_open=True),
    multiple=True,
    default=(0.9, 0.99),
    show_default=True,
    help="Share of an update's values that are not sent.",
)
@click.option(
    "--positions",
    type=click.Choice(exchange.POSITIONS),
    multiple=True,
    default=("own",),
    show_default=True,
    help="own: of each client's largest values. agreed: those that all ranks know.",
)
@click.option("--parameters", type=click.IntRange(min=8), default=1 << 22, show_default=True)
@click.option(
    "--per-node", type=click.IntRange(min=1), help="Ranks of a node. Default: as measured."
)
@click.option(
    "--link",
    type=(click.FloatRange(min=0), click.FloatRange(min=0, min_open=True)),
    metavar="US MBIT",
    help="Latency in microseconds and rate in Mbit/s between nodes, in place of measured ones. "
    "Given with FILES, it is kept, too.",
)
@click.option(
    "--against",
    "others",
    type=click.Path(path_type=Path),
    multiple=True,
    help="File of fedmpi bench mpi that the model is held to, and not fitted to, such as one of "
    "another number of ranks. Can be repeated.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of the predictions: one JSON object per line, as --json prints them.",
)
@JSON
def command(
    files: tuple[Path, ...],
    path: Path | None,
    exchanges: tuple[str, ...],
    clients: tuple[int, ...],
    ranks: tuple[int, ...],
    sparsities: tuple[float, ...],
    positions: tuple[str, ...],
    parameters: int,
    per_node: int | None,
    link: tuple[float, float] | None,
    others: tuple[Path, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Predict a round's uplink from FILES of fedmpi bench mpi, or from what was fitted before.

    Nothing is measured. Where an exchange was measured, its seconds stand beside the prediction.
    """
    path = path or costs.place()
    if files:
        model = fitted(files)
    else:
        with told(path, "give files of fedmpi bench mpi"):
            model = costs.parsed(path.read_text(encoding="utf-8"))
    if link is not None:
        model = linked(model, *link)
    if files:
        keep(model, path)
    node = per_node or int(model.about["per_node"])
    names = exchanges or tuple(config.exchanges())
    cases = product(clients, ranks, sparsities, positions)
    loads = [Load(c, p, node, parameters, s, way == "agreed") for c, p, s, way in cases]
    keys = ("clients", "ranks", "per_node", "parameters", "sparsity", "agreed")
    for row in model.measured:
        load = Load(**{key: row[key] for key in keys})
        is_asked = (load.parameters, load.per_node) == (parameters, node)
        is_asked = is_asked and load.sparsity in sparsities
        if is_asked and ("agreed" if load.agreed else "own") in positions and load not in loads:
            loads.append(load)
    rows = [row for load in loads for row in predicted(model, names, load)]
    if not rows:
        raise BadInput("no exchange among those asked for has steps to predict")
    if out is not None:
        with draft(out, "--out", ROWS) as file:
            file.writelines(f"{json.dumps(row)}\n".encode() for row in rows)
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    for line in (*report(model, others), "", *lines(rows)):
        click.echo(line)
