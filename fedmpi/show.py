"""For the terminal: what there is to choose from, and what a run was."""

import difflib
import json
import re
import sys
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
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fedmpi import config, record, tables
from fedmpi.config import ConfigError
from fedmpi.data import DataError
from fedmpi.errors import BadInput

Setting = tuple[str, str, str, str]
"""Path, type, default, explanation: see `config.describe`."""
EXAMPLES = ((1, 28, 28), (3, 32, 32))
"""Shapes of samples for which a model's parameters are counted."""
TREND, RANKS = 10, 8
"""Most rows of rounds, and of ranks, that a result is shown with."""


def console() -> Console:
    """Where to print: coloured and as wide as the terminal, or plain if it is none."""
    if isinstance(sys.stdout, TextIOWrapper):
        # A name in a paper's reference must not end the listing where output is ASCII.
        sys.stdout.reconfigure(errors="replace")
    return Console(highlight=False, markup=False, emoji=False)


def grid(*headers: str, left: Sequence[int] = (0,)) -> Table:
    """A table without lines; the columns in `left` are left-aligned, the others right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for number, header in enumerate(headers):
        table.add_column(header, justify="left" if number in left else "right", no_wrap=True)
    return table


# What there is


def show_list(what: str, name: str | None) -> None:
    """Prints the modules of a folder, or one of them, or the settings.

    Args:
        what: a folder of `config.ROOMS`, or "settings".
        name: a module's name; of the settings, a table or a single setting.

    Raises:
        ConfigError: if there is nothing of that name.
    """
    out = console()
    if what == "settings":
        for title, rows in _chosen(name):
            out.print(Text(title, "bold"), _settings(rows, headers=True), "", sep="\n")
        return
    table = next(table for table, (folder, _) in config.ROOMS.items() if folder == what)
    if name is not None:
        _known(f"no {table}", name, config.names(table))
        _show_one(out, table, name)
        return
    for name in config.names(table):
        out.print(_heading(table, name))
        for part in _brief(table, name):
            out.print(Padding(part, (0, 0, 0, 4)))
    out.print(f"\nMore on one of them: fedmpi list {what} NAME", style="dim")


def _show_one(out: Console, table: str, name: str) -> None:
    """All that a module says of itself, and all of its settings."""
    first, *others = paragraphs(config.module(table, name))
    out.print(_heading(table, name))
    for text in others:
        out.print("", prose(text), sep="\n")
    out.print()
    for fact in _facts(table, name, whole=True):
        out.print(prose(fact))
    rows = [(f"{table}.name", "str", name, first), *_own(table, name, common=True)]
    out.print("", _settings(rows[1:], headers=True), sep="\n")


def _heading(table: str, name: str) -> Text:
    default = "  (the default)" if name == config.ROOMS[table][1] else ""
    first = paragraphs(config.module(table, name))[0]
    return Text.assemble((name, "bold"), (default, "dim"), "  ", first)


def _brief(table: str, name: str) -> Iterator[RenderableType]:
    """What stands below a module's heading in a listing."""
    texts = paragraphs(config.module(table, name))
    if table == "method" and len(texts) > 1:
        yield prose(texts[1], "dim")
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
        return str(error) if whole else "not found here; with its NAME this says where it was looked for"
    return "needs no files" if folder is None else f"found in {folder}"


def _anatomy(name: str) -> Iterator[str]:
    """A model's split points and sizes with its default settings."""
    # Here, because torch takes a second that other lists should not cost.
    from fedmpi.flat import Flat
    from fedmpi.models import build

    sizes, cuts = [], []
    for shape in EXAMPLES:
        with suppress(ConfigError):
            flat = Flat(build(config.schema("model", name)(), shape, 10, seed=1))
            cuts = flat.cuts()
            sizes.append(f"{flat.size:,} for {'x'.join(map(str, shape))} samples")
    yield f"split points: {', '.join(cuts) or 'none'} (with the default settings)"
    yield f"parameters: {', '.join(sizes)}, 10 classes"


def _own(table: str, name: str, common: bool = False) -> Iterator[Setting]:
    """A module's settings under their paths, those that all modules of the table have if `common`."""
    kind = config.schema(table, name)
    shared = {"name"} if common else _base(table).model_fields.keys()
    for key, *rest in config.describe(kind):
        if key not in shared:
            yield (f"{table}.{key}", *rest)


def _base(table: str) -> type[config.Part]:
    return config.Settings.model_fields[table].annotation


def _chosen(name: str | None) -> list[tuple[str, list[Setting]]]:
    """All settings by table, or those whose path is `name` or begins with it."""
    found = []
    for title, rows in _tree():
        rows = [r for r in rows if name is None or r[0] == name or r[0].startswith(f"{name}.")]
        if rows:
            found.append((title, rows))
    if not found:
        paths = [row[0] for _, rows in _tree() for row in rows]
        near = name if name is None or "." in name else None
        _known("no setting or table", str(name), paths if near else list(config.Settings.model_fields))
    return found


def _tree() -> Iterator[tuple[str, list[Setting]]]:
    """The settings of a run, table by table."""
    fields = config.Settings.model_fields
    top = config.describe(config.Settings)
    yield "settings of every run", [r for r in top if not _is_table(fields[r[0]].annotation)]
    for table, field in fields.items():
        if not _is_table(field.annotation):
            continue
        rows = [(f"{table}.{key}", *rest) for key, *rest in config.describe(field.annotation)]
        if table not in config.ROOMS:
            yield f"[{table}]", rows
            continue
        names = config.names(table)
        explanation = f"{cleandoc(field.annotation.__doc__)} There are: {', '.join(names)}."
        yield f"[{table}]", [(f"{table}.name", "str", config.ROOMS[table][1], explanation), *rows[1:]]
        for name in names:
            own = list(_own(table, name))
            if own:
                yield f"[{table}] with name = {name}", own


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, config.Part)


def _settings(rows: Iterable[Setting], headers: bool = False) -> Table:
    table = grid("setting", "type", "default", left=(0, 1, 2))
    table.show_header = headers
    table.add_column("", overflow="fold", ratio=1, min_width=20)
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
    found.highlight_regex(r"\*[^*]+\*", "italic")
    return found


# What a run was


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
    # A run that was cut short may have begun to write a round.
    listed = found["rounds"]["round"]
    found = {name: rows[np.isin(rows["round"], listed)] for name, rows in found.items()}
    settings = json.loads(about["settings"])
    out = console()
    out.print(path, style="bold")
    out.print(_facts_of(settings, about, found["rounds"]))
    rounds = found["rounds"][listed >= 0]
    if not len(rounds):
        out.print("\nNo round is finished.")
        return
    for title, part in (
        ("accuracy", _accuracies(rounds, about.get("best_round"))),
        ("a client's bytes, mean over the clients that took part", _bytes(found)),
        ("bytes of the ranks' buffers", _buffers(found)),
        (f"seconds by phase: {_medians_of(rounds)}", _phases(found)),
        ("rounds", _trend(rounds)),
    ):
        out.print("", Text(title, "bold"), part, sep="\n")


def _facts_of(settings: Mapping[str, Any], about: Mapping[str, Any], rounds: np.ndarray) -> Table:
    """Status, settings and provenance."""
    table = grid("", "", left=(0, 1))
    table.show_header = False
    table.columns[0].style = "dim"
    table.columns[1].no_wrap, table.columns[1].overflow = False, "fold"
    changed, same = _changes(settings)
    for name, text in {
        "status": _status(about, rounds, settings["rounds"]),
        "changed": "  ".join(changed) or "nothing: the default run",
        "as default": "  ".join(same),
        "when": _when(about),
        "where": _where(about),
        "ranks": _hosts(about),
        "versions": "  ".join(f"{p} {about[p]}" for p in VERSIONS if p in about),
        "mpi": about.get("mpi_library", ""),
        "command": about.get("command", ""),
        "commit": about.get("commit", "") or "unknown",
        "identity": about.get("identity", ""),
        "partition": f"sha256 {about.get('partition_sha256', 'unknown')}",
        "model": _model(about),
    }.items():
        if text:
            table.add_row(name, str(text))
    return table


VERSIONS = ("fedmpi", "python", "torch", "numpy", "h5py", "mpi4py", "pydantic")
COLOURS = {record.DONE: "green", record.RUNNING: "yellow"}


def _status(about: Mapping[str, Any], rounds: np.ndarray, wanted: int) -> Text:
    status, last = str(about["status"]), int(rounds["round"].max(initial=-1)) + 1
    meaning = {
        record.DONE: f"{last} rounds",
        record.RUNNING: f"running or cut short: {last} of {wanted} rounds are recorded",
        record.FAILED: f"the job died after {last} of {wanted} rounds",
        record.DIVERGED: f"the model was not finite after {last} of {wanted} rounds",
    }
    return Text.assemble(
        (status, f"bold {COLOURS.get(status, 'red')}"), f"  {meaning.get(status, '')}"
    )


def _changes(settings: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Settings that differ from the defaults of their names, and the others."""
    names = {t: {"name": settings[t]["name"]} for t in config.ROOMS if "name" in settings.get(t, {})}
    try:
        defaults = dict(_leaves(config.load(names).tree()))
    except ConfigError:  # another version's
        defaults = {}
    defaults |= {f"{table}.name": name for table, (_, name) in config.ROOMS.items()}
    changed, same = [], []
    for path, value in _leaves(settings):
        text = f"{path}={config.written(value)}"
        if path in defaults and defaults[path] == value:
            same.append(text)
        else:
            known = path in defaults and not path.endswith("name")
            changed.append(text + (f" (not {config.written(defaults[path])})" if known else ""))
    return changed, same


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _when(about: Mapping[str, Any]) -> str:
    started, finished = about.get("started", ""), about.get("finished")
    if not finished:
        return f"{started}, no end"
    took = datetime.fromisoformat(finished) - datetime.fromisoformat(started)
    return f"{started} to {finished}, {took}"


def _where(about: Mapping[str, Any]) -> str:
    slurm = dict(line.split("=", 1) for line in about.get("slurm", "").splitlines() if "=" in line)
    job = f"SLURM job {slurm['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in slurm else ""
    cores = f"{about['cores']} cores" if "cores" in about else ""
    return ", ".join(filter(None, (about.get("cpu"), cores, about.get("system"), job)))


def _hosts(about: Mapping[str, Any]) -> str:
    hosts = Counter(map(str, about.get("hosts", ())))
    places = ", ".join(f"{count} on {host}" for host, count in list(hosts.items())[:RANKS])
    more = f" and {len(hosts) - RANKS} more hosts" if len(hosts) > RANKS else ""
    threads = f"; {about['threads_per_rank']} threads each" if "threads_per_rank" in about else ""
    device = f"; device {about['device']}" if "device" in about else ""
    return f"{about.get('ranks', 'unknown')} ({places}{more}){threads}{device}"


def _model(about: Mapping[str, Any]) -> str:
    size = f"{about['parameters']:,} parameters" if "parameters" in about else ""
    return f"{size}, sha256 {about.get('model_sha256', 'not known before the end')}"


def _accuracies(rounds: np.ndarray, best: int | None) -> Table:
    """All accuracies in the last round that has them, and in the one that validation chooses."""
    judged = rounds[np.isfinite(rounds["accuracy"])]
    chosen = rounds[rounds["round"] == best] if best is not None else rounds[:0]
    columns = [("last", judged[-1:]), ("best by validation", chosen)]
    columns = [(f"{title}: round {row['round'][0] + 1}", row[0]) for title, row in columns if len(row)]
    if not columns:
        return grid("no round was evaluated")
    table = grid("", *(title for title, _ in columns))
    for text, name in (
        ("global model, test set", "accuracy"),
        ("global model, held-out samples", "validation"),
        ("global model, clients' test shards", "shard"),
        ("clients' own models, their shards", "personal_mean"),
    ):
        table.add_row(text, *(_accuracy(row, name) for _, row in columns))
    if len(columns) == 1:
        table.add_row(Text("best by validation: unknown, nothing was held out", "dim"))
    return table


def _accuracy(row: np.void, name: str) -> str:
    if name != "shard":
        return number(row[name])
    spread = f"{number(row['shard_mean'])} ± {number(row['shard_std'])}"
    return f"{spread}, least {number(row['shard_min'])}"


def _bytes(found: Mapping[str, np.ndarray]) -> Table:
    """Kind by direction; what travels once, before the first round, apart."""
    once, later = (found["clients"][part] for part in _parts(found["clients"]))
    parts = [("a round", later), ("once", once)] if len(once) else [("a round", later)]
    table = grid("", *(f"{d}, {title}" for title, _ in parts for d in tables.DIRECTIONS), "share")
    total = sum(float(later[name].sum()) for name in tables.BYTES) or 1.0
    names: dict[str, list[str]] = {}
    for name in tables.BYTES:
        names.setdefault(name.partition("_")[2], []).append(name)
    for kind, columns in names.items():
        if any(rows[name].any() for _, rows in parts for name in columns):
            cells = [f"{rows[name].mean():,.0f}" for _, rows in parts for name in columns]
            share = sum(float(later[name].sum()) for name in columns) / total
            table.add_row(kind, *cells, f"{share:.1%}")
    sums = [
        f"{sum(float(rows[names[way]].mean()) for names in names.values()):,.0f}"
        for _, rows in parts
        for way in range(len(tables.DIRECTIONS))
    ]
    table.add_row("all", *sums, "", style="bold")
    whole = [amount(float(found["rounds"][way].sum())) for way in tables.DIRECTIONS]
    clients = f"{len(np.unique(later['client']))} clients"
    table.add_row(Text(f"the whole run, {clients}: {whole[0]} up, {whole[1]} down", "dim"))
    return table


def _parts(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows belong to round -1, and which to the rounds proper."""
    return rows["round"] < 0, rows["round"] >= 0


def _buffers(found: Mapping[str, np.ndarray]) -> Table:
    """What each rank handed to MPI, and was handed."""
    once, later = (found["ranks"][part] for part in _parts(found["ranks"]))
    parts = [("a round", later), ("once", once)] if len(once) else [("a round", later)]
    table = grid("rank", *(f"{d}, {title}" for title, _ in parts for d in tables.DIRECTIONS))
    columns = [
        [rows[way][rows["rank"] == rank].mean() for rank in np.unique(later["rank"])]
        for _, rows in parts
        for way in tables.DIRECTIONS
    ]
    for rank, values in _by_rank(np.array(columns).T):
        table.add_row(rank, *(f"{value:,.0f}" for value in values))
    return table


def _by_rank(values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Rows of [ranks, columns] with their names; of many ranks, the root and three others' rows."""
    if len(values) <= RANKS:
        yield from ((str(rank), row) for rank, row in enumerate(values))
        return
    yield "0", values[0]
    for name, choose in (("least", np.min), ("median", np.median), ("most", np.max)):
        yield f"{name} of 1-{len(values) - 1}", choose(values[1:], axis=0)


def _steady(rows: np.ndarray) -> np.ndarray:
    """Without the round in which everything warms up, if there is another."""
    steady = rows[rows["round"] > 0]
    return steady if len(steady) else rows[rows["round"] == 0]


def _medians_of(rounds: np.ndarray) -> str:
    steady = _steady(rounds)
    if not len(steady["round"]) or steady["round"][0] == 0:
        return "the warm-up round, there is no other"
    return f"medians over rounds {steady['round'][0] + 1} to {steady['round'][-1] + 1}"


def _phases(found: Mapping[str, np.ndarray]) -> Table:
    """Median seconds a round, for each rank."""
    rows = _steady(found["phases"])
    names = list(dict.fromkeys(rows["phase"].tolist()))
    ranks = np.unique(rows["rank"])
    medians = np.array(
        [
            [np.median(rows["seconds"][(rows["rank"] == r) & (rows["phase"] == n)]) for n in names]
            for r in ranks
        ]
    )
    table = grid("rank", *(name.decode() for name in names))
    for rank, values in _by_rank(medians):
        table.add_row(rank, *map(duration, values))
    wall = float(np.median(_steady(found["rounds"])["seconds"]))
    table.add_row(Text(f"a round: {duration(wall)}; evaluate and record are no part of it", "dim"))
    return table


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
    """Three decimals; a dash for what was not measured, or was not finite."""
    return f"{value:.3f}" if np.isfinite(value) else "-"


def amount(count: float) -> str:
    """Bytes with their unit, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.4g} TB"


def duration(seconds: float) -> str:
    """Seconds with their unit."""
    if not np.isfinite(seconds):
        return "-"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
