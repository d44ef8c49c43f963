"""For the terminal: what there is to choose from, and what a run was."""

import difflib
import json
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from inspect import cleandoc
from io import TextIOWrapper
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fedmpi import config
from fedmpi.config import ConfigError
from fedmpi.data.files import DataError
from fedmpi.results import record, tables
from fedmpi.units import amount, duration

Setting = tuple[str, ...]
"""Path, type, default, explanation: see `config.describe`."""
EXAMPLES = {
    "1x28x28": ((1, 28, 28), 10, "numbers"),
    "3x32x32": ((3, 32, 32), 10, "numbers"),
    "6x128": ((6, 128), 10, "numbers"),
    "text": ((80,), 80, "symbols"),
}
"""Samples for which a model's parameters are counted: shape, classes, and what they are made of."""
CONVENTION = (
    "FLOPs are those of one sample's way forward: of convolutions and matrix products, a "
    "multiplication and an addition being two. Floats are what a sample sends at the cut."
)
TREND, RANKS = 10, 8
"""Most rows of rounds, and of ranks, with which a result is shown."""
VERSIONS = ("fedmpi", "python", "torch", "numpy", "h5py", "mpi4py", "pydantic")
COLOURS = {record.DONE: "green", record.RUNNING: "yellow"}


def console() -> Console:
    """Where to print: coloured and as wide as the terminal, or plain if it is none."""
    if isinstance(sys.stdout, TextIOWrapper):
        # An accent in an author's name must not end a listing where output is ASCII.
        sys.stdout.reconfigure(errors="replace")
    return Console(highlight=False, markup=False, emoji=False)


def grid(*headers: str, left: Sequence[int] = (0,)) -> Table:
    """A table without lines; the columns in `left` are left-aligned, the others right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for number, header in enumerate(headers):
        table.add_column(header, justify="left" if number in left else "right", no_wrap=True)
    return table


def show_list(what: str, name: str | None) -> None:
    """Prints the modules of a folder, or one of them, or the settings.

    Args:
        what: a table of `config.ROOMS` or its folder, or "settings".
        name: a module's name; of the settings, a table or a single setting.

    Raises:
        ConfigError: if there is nothing of that name.
    """
    out = console()
    if what == "settings":
        for title, rows in _chosen(name):
            out.print(Text(title, "bold"), _settings(rows, headers=True), "", sep="\n")
        return
    table = next(table for table, (folder, _) in config.AXES.items() if what in (table, folder))
    if name is not None:
        _known(f"no {table}", name, config.names(table))
        _show_one(out, table, name)
        return
    for entry in config.names(table):
        out.print(_heading(table, entry))
        for part in _brief(table, entry):
            out.print(Padding(part, (0, 0, 0, 4), expand=False))
    out.print(Text(f"\nMore about one of them: fedmpi list {what} NAME", "dim"))


def _show_one(out: Console, table: str, name: str) -> None:
    """All that a module says of itself, and all of its settings."""
    out.print(_heading(table, name))
    for text in paragraphs(config.module(table, name)):
        out.print(prose(text), "", sep="\n")
    facts = list(_facts(table, name, whole=True))
    if facts:
        out.print(*map(prose, facts), "", sep="\n")
    if table == "model":
        out.print(*_cuts(name), "", sep="\n")
    rows = list(_own(table, name, common=True))
    out.print(_settings(rows, headers=True) if rows else "It has no settings.")


def _heading(table: str, name: str) -> Text:
    default = " (the default)" if name == config.AXES[table][1] else ""
    return Text.assemble((name, "bold"), (default, "dim"))


def _brief(table: str, name: str) -> Iterator[RenderableType]:
    """What stands below a module's name in a listing."""
    first, *others = paragraphs(config.module(table, name))
    yield prose(first)
    if table == "method" and others:
        yield prose(others[0], "dim")
    for fact in _facts(table, name):
        yield prose(fact)
    rows = list(_own(table, name))
    if rows:
        yield _settings(rows)


def _facts(table: str, name: str, whole: bool = False) -> Iterator[str]:
    """What there is to know of a module beside its docstring and settings."""
    if table == "data":
        yield _whereabouts(name, whole)
    if table == "model":
        yield from _anatomy(name)


def _whereabouts(name: str, whole: bool) -> str:
    try:
        folder = config.module("data", name).where(config.schema("data", name)())
    except DataError as error:
        return str(error) if whole else f"not here; fedmpi list data {name} says how to get it"
    return "needs no files" if folder is None else f"found in {folder}"


def _anatomy(name: str) -> Iterator[str]:
    """A model's split points and sizes with its default settings."""
    sizes, cuts, classes = [], [], 0
    for samples, parts in _fronts(name):
        cuts, classes = [part.name for part in parts[:-1]], parts[-1].floats
        sizes.append(f"{parts[-1].parameters:,} for {samples} samples")
    yield f"split points: {', '.join(cuts) or 'none'} (with the default settings)"
    yield f"parameters: {', '.join(sizes)} of {classes} classes"


def _cuts(name: str) -> Iterator[RenderableType]:
    """For each shape of samples, what a model has in front of its split points, and in all."""
    for samples, parts in _fronts(name):
        table = grid("in front of", "parameters", "FLOPs", "floats there")
        for part in parts:
            numbers = (f"{count:,}" for count in (part.parameters, part.flops, part.floats))
            is_whole = part is parts[-1]
            table.add_row(
                "the output" if is_whole else f"cut {part.name}",
                *numbers,
                style="bold" if is_whole else "",
            )
        yield Group(Text(f"a {samples} sample", "bold"), table, "")
    yield Text(CONVENTION, "dim")


def _fronts(name: str) -> Iterator[tuple[str, Sequence[Any]]]:
    """Those of `EXAMPLES` that fit a model, and what it has in front of its cuts then."""
    # Here, because torch takes a second that other lists should not cost.
    from fedmpi.models import build
    from fedmpi.networks.flat import Flat
    from fedmpi.networks.flops import forward

    settings: Any = config.schema("model", name)()
    for samples, (shape, classes, kind) in EXAMPLES.items():
        with suppress(ConfigError):
            network = build(settings, shape, classes, 1, kind)
            yield samples, forward(Flat(network), shape).fronts


def _own(table: str, name: str, common: bool = False) -> Iterator[Setting]:
    """A module's settings under their paths; with those of all modules of its table if `common`."""
    shared = {"name"} if common else _base(table).model_fields.keys()
    for key, *rest in config.describe(config.schema(table, name)):
        if key not in shared:
            yield (f"{table}.{key}", *rest)


def _base(table: str) -> Any:
    return config.Settings.model_fields[table].annotation


def _chosen(name: str | None) -> list[tuple[str, Sequence[Setting]]]:
    """All settings by table, or those whose path is `name` or begins with it."""
    every = list(_tree())
    if name is None:
        return every
    paths = dict.fromkeys(row[0] for _, rows in every for row in rows)
    table = name.partition(".")[0]
    if "." in name and _is_table(config.Settings.model_fields.get(table)):
        possible = [path for path in paths if path.startswith(f"{table}.")]
    else:
        possible = list(config.Settings.model_fields)
    _known("no setting", name, possible)
    chosen = {t: [r for r in rows if f"{r[0]}.".startswith(f"{name}.")] for t, rows in every}
    return [(title, rows) for title, rows in chosen.items() if rows]


def _tree() -> Iterator[tuple[str, Sequence[Setting]]]:
    """The settings of a run, table by table."""
    fields = config.Settings.model_fields
    plain = (row for row in config.describe(config.Settings) if not _is_table(fields[row[0]]))
    yield "settings of every run", list(plain)
    for table in (name for name, field in fields.items() if _is_table(field)):
        base = _base(table)
        rows = [(f"{table}.{key}", *rest) for key, *rest in config.describe(base)]
        if table not in config.AXES:
            yield f"[{table}]", rows
            for title, path, kind in config.inner(base, table):
                own = (row for row in config.describe(kind) if row[0] != "kind")
                yield title, [(f"{path}.{key}", *rest) for key, *rest in own]
            continue
        names, default = config.names(table), config.AXES[table][1]
        choice = f"{cleandoc(base.__doc__ or '')} There are: {', '.join(names)}."
        yield f"[{table}]", [(f"{table}.name", "str", default, choice), *rows[1:]]
        for name in names:
            settings = list(_own(table, name))
            if settings:
                yield f"[{table}] with name = {name}", settings


def _is_table(field: Any) -> bool:
    kind = getattr(field, "annotation", None)
    return isinstance(kind, type) and issubclass(kind, config.Table)


def _settings(rows: Iterable[Setting], headers: bool = False) -> Table:
    table = grid("setting", "type", "default", left=(0, 1, 2))
    table.show_header = headers
    table.add_column("", overflow="fold")
    for path, kind, default, explanation in rows:
        table.add_row(Text(path, "cyan"), kind, Text(default, "green"), prose(explanation))
    return table


def _known(what: str, name: str, names: Sequence[str]) -> None:
    """Refuses a name that is not in `names`."""
    if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        guess = f" (did you mean '{close[0]}'?)" if close else ""
        raise ConfigError(f"{what} '{name}'{guess}; there are: {', '.join(names)}")


def paragraphs(module: ModuleType) -> list[str]:
    """The paragraphs of a module's docstring, each on one line but for its remarks."""
    texts = cleandoc(module.__doc__ or "").split("\n\n")
    return [re.sub(r"\n(?!Differs from|Reconstruction|[ -])", " ", text) for text in texts]


def prose(text: str, style: str = "") -> Text:
    """Text whose `code` and *titles* stand out on a terminal."""
    found = Text(text, style)
    found.highlight_regex(r"`[^`]+`", "cyan")
    found.highlight_regex(r"(?<!\S)\*[^*\n]+\*", "italic")
    return found


def show_result(path: Path) -> None:
    """Prints a result, finished or not.

    Raises:
        RecordError: if the file is missing, or no result.
    """
    with record.open_result(path) as file:
        about: dict[str, Any] = dict(file.attrs)
        try:
            found = {name: file[name][:] for name in tables.TABLES}
        except (KeyError, OSError) as error:
            raise record.RecordError(f"{path}: a damaged result: {error}") from None
    # A run that was cut short may have begun to write another round.
    listed = found["rounds"]["round"]
    found = {name: rows[np.isin(rows["round"], listed)] for name, rows in found.items()}
    out = console()
    out.print(Text(str(path), "bold"), _provenance(about, found["rounds"]), sep="\n")
    rounds = found["rounds"][listed >= 0]
    if not len(rounds):
        out.print("\nNo round is finished.")
        return
    seconds, unit = _phases(found)
    for title, part in (
        ("accuracy", _accuracies(rounds, about.get("best_round"))),
        ("a client's bytes, mean over those that took part", _bytes(found)),
        ("bytes of a rank's buffers, mean over the rounds", _buffers(found)),
        (f"{unit} by phase, {_span(rounds)}", seconds),
        ("a split model, mean over the clients' rounds", _split(found)),
        ("simulated devices, mean over their clients' rounds", _devices(found)),
        ("rounds", _trend(rounds)),
    ):
        if part is None:
            continue
        out.print("", Text(title, "bold"), part, sep="\n")


def _provenance(about: Mapping[str, Any], rounds: np.ndarray) -> Table:
    """Status, settings, and where the result comes from."""
    table = grid("", "", left=(0, 1))
    table.show_header = False
    table.columns[0].style = "dim"
    table.columns[1].no_wrap, table.columns[1].overflow = False, "fold"
    settings = json.loads(about["settings"])
    changed, same = _changes(settings)
    commit = about.get("commit", "") or "not from a checkout"
    for name, text in {
        "status": _status(about, rounds, settings["rounds"]),
        "changed": "  ".join(changed) or "nothing: these are the defaults",
        "default": "  ".join(same),
        "when": _when(about),
        "where": _where(about),
        "ranks": _ranks(about),
        "versions": "  ".join(f"{p} {about[p]}" for p in VERSIONS if p in about),
        "mpi": textwrap.shorten(about.get("mpi_library", ""), 80, placeholder=" ..."),
        "command": about.get("command", ""),
        "commit": commit.replace("+", ", with changes"),
        "identity": about.get("identity", ""),
        "data files": about.get("data_files", ""),
        "in both sets": _both(about.get("test_in_training")),
        "partition": about.get("partition_sha256", ""),
        "trace": about.get("trace_sha256", ""),
        "model": about.get("model_sha256", "no hash before the end"),
        "parameters": f"{about['parameters']:,}" if "parameters" in about else "",
    }.items():
        if text:
            table.add_row(name, text)
    return table


def _both(count: int | None) -> str:
    """Test samples that are training samples, too."""
    return "" if count is None else _several(int(count), "test sample")


def _status(about: Mapping[str, Any], rounds: np.ndarray, wanted: int) -> Text:
    status, last = str(about["status"]), int(rounds["round"].max(initial=-1)) + 1
    meaning = {
        record.DONE: f"{last} rounds",
        record.RUNNING: f"running or cut short: {last} of {wanted} rounds are recorded",
        record.FAILED: f"the job died after {last} of {wanted} rounds",
        record.DIVERGED: f"the model was not finite after {last} of {wanted} rounds",
    }
    colour = COLOURS.get(status, "red")
    return Text.assemble((status, f"bold {colour}"), f"  {meaning.get(status, '')}")


def _changes(settings: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Settings that differ from the defaults of their names, and those that do not."""
    names = {table: {"name": settings[table]["name"]} for table in config.AXES}
    try:
        defaults = dict(_leaves(config.load(names).tree()))
    except ConfigError:  # a name of another version
        defaults = {}
    defaults |= {f"{table}.name": name for table, (_, name) in config.AXES.items()}
    changed, same = [], []
    for path, value in _leaves(settings):
        text = f"{path}={config.written(value)}"
        if path not in defaults:
            changed.append(text)
        elif defaults[path] != value:
            changed.append(f"{text} (not {config.written(defaults[path])})")
        elif value is not None:
            same.append(text)
    return changed, same


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _when(about: Mapping[str, Any]) -> str:
    known = [about[name] for name in ("started", "finished") if name in about]
    times = [datetime.fromisoformat(text) for text in known]
    text = " to ".join(f"{time:%Y-%m-%d %H:%M:%S}" for time in times)
    return f"{text} UTC, {times[1] - times[0]}" if len(times) == 2 else f"{text} UTC, no end"


def _where(about: Mapping[str, Any]) -> str:
    slurm = dict(line.split("=", 1) for line in about.get("slurm", "").splitlines() if "=" in line)
    job = f"SLURM job {slurm['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in slurm else ""
    cores = f"{_several(about['cores'], 'core')} for rank 0" if "cores" in about else ""
    return ", ".join(filter(None, (about.get("cpu"), cores, about.get("system"), job)))


def _ranks(about: Mapping[str, Any]) -> str:
    hosts = Counter(map(str, about.get("hosts", ())))
    places = [f"{count} on {host}" for host, count in list(hosts.items())[:RANKS]]
    if len(hosts) > RANKS:
        places.append(f"and {_several(len(hosts) - RANKS, 'more host')}")
    threads = f", {_several(about['threads_per_rank'], 'thread')} each" if hosts else ""
    device = f", device {about['device']}" if "device" in about else ""
    return f"{about.get('ranks', 'unknown')}: {', '.join(places)}{threads}{device}"


def _several(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _accuracies(rounds: np.ndarray, best: int | None) -> RenderableType:
    """All accuracies in the last round that has them, and in the one that validation chooses."""
    names = ("accuracy", "shard_mean", "personal_mean")  # not each method has all of them
    judged = rounds[np.isfinite([rounds[name] for name in names]).any(0)]
    if not len(judged):
        return Text("no round was evaluated", "dim")
    chosen = judged[judged["round"] == best] if best is not None else judged[:0]
    columns = [("last", judged[-1]), *(("best held out", row) for row in chosen)]
    table = grid("", *(f"round {row['round'] + 1} ({title})" for title, row in columns))
    for text, name in (
        ("global model, test set", "accuracy"),
        ("global model, held-out samples", "validation"),
        ("after the round, clients' test shards", "shard_mean"),
        ("   the worst of them", "shard_min"),
        ("after local training, the same", "personal_mean"),
    ):
        spread = [f" ± {number(row['shard_std'])}" for _, row in columns]
        cells = [number(row[name]) for _, row in columns]
        if name == "shard_mean":
            cells = [cell + wide for cell, wide in zip(cells, spread, strict=True)]
        table.add_row(text, *cells)
    if len(chosen):
        return table
    remark = "best round: unknown, for nothing was judged on held-out samples"
    return Group(table, Text(remark, "dim"))


def _bytes(found: Mapping[str, np.ndarray]) -> RenderableType:
    """Kind by direction; what travels once, before the first round, apart."""
    parts = _parts(found["clients"])
    table = grid("", *_ways(parts), "share")
    names: dict[str, list[str]] = {}
    for name in tables.BYTES:
        names.setdefault(name.partition("_")[2], []).append(name)
    means = {
        kind: np.array([rows[column].mean() for rows in parts.values() for column in columns])
        for kind, columns in names.items()
    }
    total = np.sum(list(means.values()), axis=0)
    for kind, cells in means.items():
        if cells.any():
            share = cells[:2].sum() / total[:2].sum()
            table.add_row(kind, *(f"{cell:,.0f}" for cell in cells), f"{share:.1%}")
    table.add_row("all", *(f"{cell:,.0f}" for cell in total), style="bold")
    up, down = (amount(float(found["rounds"][way].sum())) for way in tables.DIRECTIONS)
    clients = _several(len(np.unique(found["clients"]["client"])), "client")
    return Group(table, Text(f"the whole run, {clients}: {up} up, {down} down", "dim"))


def _parts(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of the rounds, and, if there are any, those of what came once before them."""
    once = rows[rows["round"] < 0]
    return {"a round": rows[rows["round"] >= 0]} | ({"once": once} if len(once) else {})


def _ways(parts: Mapping[str, np.ndarray]) -> list[str]:
    return [f"{direction}, {part}" for part in parts for direction in tables.DIRECTIONS]


def _buffers(found: Mapping[str, np.ndarray]) -> Table:
    """What each rank handed to MPI, and was handed."""
    parts = _parts(found["ranks"])
    table = grid("rank", *_ways(parts))
    columns = [_by_rank(rows, way) for rows in parts.values() for way in tables.DIRECTIONS]
    for rank, values in _condensed(np.stack([column.mean(1) for column in columns], axis=1)):
        table.add_row(rank, *(f"{value:,.0f}" for value in values))
    return table


def _by_rank(rows: np.ndarray, column: str) -> np.ndarray:
    """A column as [ranks, rows of each]."""
    ranks = len(np.unique(rows["rank"]))
    return rows[column][np.argsort(rows["rank"], kind="stable")].reshape(ranks, -1)


def _condensed(values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The rows of [ranks, columns] with their names; of many ranks, the root and a summary."""
    if len(values) <= RANKS:
        yield from ((str(rank), row) for rank, row in enumerate(values))
        return
    yield "0", values[0]
    for name, choose in (("least", np.min), ("median", np.median), ("most", np.max)):
        yield f"1 to {len(values) - 1}, {name}", choose(values[1:], axis=0)


def _steady(rows: np.ndarray) -> np.ndarray:
    """Without the round in which everything warms up, if there is another."""
    steady = rows[rows["round"] > 0]
    return steady if len(steady) else rows[rows["round"] == 0]


def _span(rounds: np.ndarray) -> str:
    last = rounds["round"][-1] + 1
    return f"medians over rounds 2 to {last}" if last > 1 else "in the first round, which warms up"


def _phases(found: Mapping[str, np.ndarray]) -> tuple[RenderableType, str]:
    """Each rank's median time in each phase; and its unit."""
    rows = _steady(found["phases"])
    names = list(dict.fromkeys(rows["phase"].tolist()))
    columns = [_by_rank(rows[rows["phase"] == name], "seconds") for name in names]
    medians = np.stack([np.median(column, axis=1) for column in columns], axis=1)
    wall = float(np.median(_steady(found["rounds"])["seconds"]))
    unit, scale = ("seconds", 1.0) if medians.max() >= 10 else ("milliseconds", 1e3)
    table = grid("rank", *(name.decode() for name in names))
    for rank, values in _condensed(medians):
        table.add_row(rank, *(f"{value * scale:,.2f}" for value in values))
    remark = f"a round: {wall * scale:,.2f}; evaluate and record are no part of it"
    return Group(table, Text(remark, "dim")), unit


def _split(found: Mapping[str, np.ndarray]) -> RenderableType | None:
    """What a client trains of a split model, beside the whole one; None if nobody split it."""
    rounds, rows = found["rounds"], found["clients"]
    regular, server = rows[rows["round"] >= 0], rounds[rounds["round"] >= 0]
    # Results of earlier versions lack some columns.
    if "whole_flops" not in (rows.dtype.names or ()) or not server["server_flops"].max() > 0:
        return None
    table = grid("trained by a client", "MFLOP", "MiB")
    for name, prefix in (("its part", ""), ("the whole model, as in FedAvg", "whole_")):
        flops, memory = regular[f"{prefix}flops"].mean() / 1e6, regular[f"{prefix}memory"].max()
        table.add_row(name, f"{flops:.3g}", f"{memory:.3g}")
    flops, seconds = server["server_flops"].mean() / 1e6, _steady(server)["server_seconds"]
    remark = f"the server, a round: {flops:.3g} MFLOP, {duration(float(np.median(seconds)))}"
    return Group(table, Text(remark, "dim"))


def _devices(found: Mapping[str, np.ndarray]) -> RenderableType | None:
    """What a round costs on each kind of device; None if none were simulated, and none lost."""
    rounds, rows = found["rounds"], found["clients"]
    if "lost" not in (rows.dtype.names or ()):  # a result of an earlier version
        return None
    lost = f"{rows['lost'].sum():,} of {_several((rows['round'] >= 0).sum(), 'upload')} lost"
    if np.isnan(rounds["sim_seconds"]).all():
        return Text(f"none; {lost}") if rows["lost"].any() else None
    table = grid("tier", "clients", "compute", "up", "down", "joules", "MFLOP", "MiB", "lost")
    for tier in np.unique(rows["tier"]):
        some = rows[rows["tier"] == tier]
        regular = some[some["round"] >= 0]
        spans = (duration(regular[f"sim_{name}"].mean()) for name in ("compute", "up", "down"))
        joules = (regular["sim_compute_joules"] + regular["sim_transmit_joules"]).mean()
        numbers = (joules, regular["flops"].mean() / 1e6, some["memory"].max())
        table.add_row(
            *(tier.decode(), str(len(np.unique(some["client"]))), *spans),
            *(f"{value:.3g}" for value in numbers),
            f"{regular['lost'].mean():.1%}",
        )
    total = duration(rounds["sim_seconds"].sum())
    remark = f"the whole run: {total} simulated, {rounds['sim_joules'].sum():.3g} J, {lost}"
    return Group(table, Text(remark, "dim"))


def _trend(rounds: np.ndarray) -> Table:
    """Some rounds, evenly chosen."""
    heads = ("round", "loss", "test", "held out", "shards", "personal", "up", "down", "time")
    table = grid(*heads, left=())
    names = ("loss", "accuracy", "validation", "shard_mean", "personal_mean")
    chosen = np.linspace(0, len(rounds) - 1, min(len(rounds), TREND)).round().astype(int)
    for row in rounds[chosen]:
        moved = (amount(float(row[way])) for way in tables.DIRECTIONS)
        seen = (number(row[name]) for name in names)
        table.add_row(str(row["round"] + 1), *seen, *moved, duration(row["seconds"]))
    return table


def number(value: float) -> str:
    """Three decimals; a dash for what was not measured, or is not finite."""
    return f"{value:.3f}" if np.isfinite(value) else "-"
