"""The settings and the course of one run: `fedmpi show`."""

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedmpi import config, loading
from fedmpi.config import ConfigError
from fedmpi.results import record, tables
from fedmpi.runs import earlier
from fedmpi.terminal.style import COLOURS, console, grid, number
from fedmpi.units import amount, duration

TREND, RANKS = 10, 8
"""Most rows of rounds, and of ranks, with which a result is shown."""
VERSIONS = ("fedmpi", "python", "torch", "numpy", "h5py", "mpi4py", "pydantic")


def show_result(path: Path) -> None:
    """Prints a result, finished or not.

    Raises:
        RecordError: if the file is missing, or no result.
    """
    about, found = record.content(path)
    try:
        parts = list(_parts_of(path, about, found))
    except record.DAMAGE as error:  # numbers that no run writes
        raise record.damaged(path, error) from None
    console().print(*parts, sep="\n")


def _parts_of(
    path: Path, about: Mapping[str, Any], found: dict[str, np.ndarray]
) -> Iterator[RenderableType]:
    """What is shown of a result."""
    ends = {name: found.pop(name) for name in tables.OF_END}
    # A run that was cut short may have begun to write another round.
    listed = found["rounds"]["round"]
    found = {name: rows[np.isin(rows["round"], listed)] for name, rows in found.items()}
    yield Text(str(path), "bold")
    yield _provenance(about, found["rounds"])
    rounds = found["rounds"][listed >= 0]
    if not len(rounds):
        yield "\nNo round is finished."
        return
    seconds, unit = _phases(found)
    for title, part in (
        ("accuracy", _accuracies(rounds, about.get("best_round"))),
        ("the model by the share that devices hold", _variants(found)),
        ("share of the weights that two masks have in common, last agreement", _masks(found)),
        ("every client after the last round, on its test shard", _final(ends["final"])),
        ("new clients over epochs of training", _newcomers(ends["newcomers"])),
        (
            "models without the channels that clients' selections leave out",
            _slices(ends["slices"], about),
        ),
        ("a client's bytes, mean over those that took part", _bytes(found)),
        ("bytes of a rank's buffers, mean over the rounds", _buffers(found, "")),
        ("those for and from other nodes", _between(found)),
        (f"{unit} by phase, {_span(rounds)}", seconds),
        ("a split model, mean over the clients' rounds", _split(found)),
        ("simulated devices, mean over their clients' rounds", _devices(found)),
        ("MiB of a client's training, the largest", _memory(found["clients"])),
        ("rounds", _trend(rounds)),
    ):
        if part is not None:
            yield from ("", Text(title, "bold"), part)


def _provenance(about: Mapping[str, Any], rounds: np.ndarray) -> Table:
    """Status, settings, and where the result comes from."""
    table = grid("", "", left=(0, 1))
    table.show_header = False
    table.columns[0].style = "dim"
    table.columns[1].no_wrap, table.columns[1].overflow = False, "fold"
    settings = record.parsed(about, "settings")
    changed, same, machine = _changes(about, settings)
    commit = about.get("commit", "") or "not from a checkout"
    for name, text in {
        "status": _status(about, rounds, settings["rounds"]),
        "changed": "  ".join(changed) or "nothing: these are the defaults",
        "default": "  ".join(same),
        "machine": "  ".join(machine),
        "when": _when(about),
        "where": _where(about),
        "ranks": _ranks(about),
        "resumed": _resumed(about),
        "versions": "  ".join(f"{p} {about[p]}" for p in VERSIONS if p in about),
        "mpi": textwrap.shorten(about.get("mpi_library", ""), 80, placeholder=" ..."),
        "command": about.get("command", ""),
        "commit": commit.replace("+", ", with changes"),
        "other code": earlier.changes(about),
        "identity": record.identity_of(about),
        "data files": about.get("data_files", ""),
        "data": about.get("data_sha256", ""),
        "in both sets": _both(about.get("test_in_training")),
        "partition": about.get("partition_sha256", ""),
        "files": "  ".join(f"{path} {hash}" for path, hash in record.files_of(about).items()),
        "model": about.get("model_sha256", "no hash before the end"),
        "kept": f"the model after round {about['kept_round'] + 1}" if "kept_round" in about else "",
        "cut": f"{about['cut']}, the last that fits the devices" if "cut" in about else "",
        "cuts": _cuts(about),
        "exchange": _chosen(about),
        "parameters": f"{about['parameters']:,}" if "parameters" in about else "",
        "base": _base(rounds),
    }.items():
        if text:
            table.add_row(name, text if isinstance(text, Text) else str(text))
    return table


ENDS = {
    "target": ", after which the target was reached",
    "budget": ", after which the budget was spent",
}
"""Why a finished run has no more rounds, if not because it has all."""


def _chosen(about: Mapping[str, Any]) -> str:
    """The exchange that was taken where the settings leave it open, and why."""
    if record.CHOSEN not in about:
        return ""
    name, seconds = about[record.CHOSEN], record.parsed(about, record.PREDICTED)
    if not seconds:
        return f"{name}, the only one that was possible"
    text = ", ".join(f"{one} {duration(float(each))}" for one, each in seconds.items())
    return f"{name}; predicted uplinks of a round: {text}"


def _cuts(about: Mapping[str, Any]) -> str:
    """How many clients have which split point, where each has one of its own."""
    cuts = Counter(record.listed(about.get("cuts", "")))
    return ", ".join(f"{cut}: {_several(count, 'client')}" for cut, count in cuts.items())


def _both(count: int | None) -> str:
    """Test samples that are training samples, too."""
    return "" if count is None else _several(int(count), "test sample")


def _base(rounds: np.ndarray) -> str:
    """Frozen weights of a file, sent once to each client; results of earlier versions lack them."""
    sent = int(rounds["base"].sum()) if "base" in (rounds.dtype.names or ()) else 0
    text = f"{amount(sent)} of frozen weights, once to each client that took part, beside down"
    return text if sent else ""


def _status(about: Mapping[str, Any], rounds: np.ndarray, wanted: int) -> Text:
    status, last = str(about["status"]), int(rounds["round"].max(initial=-1)) + 1
    meaning = {
        record.DONE: f"{last} rounds{ENDS.get(str(about.get('ended')), '')}",
        record.RUNNING: f"running or cut short: {last} of {wanted} rounds are recorded",
        record.STOPPED: f"a signal ended the job after {last} of {wanted} rounds",
        record.FAILED: f"the job died after {last} of {wanted} rounds",
        record.DIVERGED: f"the model was not finite after {last} of {wanted} rounds",
    }
    colour = COLOURS.get(status, "red")
    return Text.assemble((status, f"bold {colour}"), f"  {meaning.get(status, '')}")


def _changes(
    about: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[list[str], list[str], list[str]]:
    """Settings that differ from what the run's names and paper stand for, others, the machine's."""
    chosen = tuple(str(settings[table]["name"]) for table in config.AXES)
    own = config.marked(config.known(chosen), config.MACHINE)
    found = record.changed(about)
    if found is None:
        try:
            found = loading.changes(settings)
        except ConfigError:  # a name of another version
            names = {f"{table}.name": name for table, (_, name) in config.AXES.items()}
            found = {
                path: names.get(path)
                for path, value in loading.leaves(settings)
                if path not in own and value not in (None, names.get(path))
            }
    paper = record.paper_of(about)
    changed = [f"{loading.PAPER}:{paper}"] if paper else []
    same, machine = list[str](), list[str]()
    for path, value in loading.leaves(settings):
        text = f"{path}={config.written(value)}"
        if path in found:
            instead = "" if found[path] is None else f" (not {config.written(found[path])})"
            changed.append(f"{text}{instead}")
        elif value is not None:
            (machine if path in own else same).append(text)
    return changed, same, machine


def _time(about: Mapping[str, Any], name: str) -> datetime:
    try:
        return datetime.fromisoformat(about[name])
    except (TypeError, ValueError):
        raise ValueError(f"wanted a time in ISO 8601, found {name} = {about[name]!r}") from None


def _when(about: Mapping[str, Any]) -> str:
    times = [_time(about, name) for name in ("started", "finished") if name in about]
    text = " to ".join(f"{time:%Y-%m-%d %H:%M:%S}" for time in times)
    return f"{text} UTC, {times[1] - times[0]}" if len(times) == 2 else f"{text} UTC, no end"


def _where(about: Mapping[str, Any]) -> str:
    slurm = dict(line.split("=", 1) for line in about.get("slurm", "").splitlines() if "=" in line)
    job = f"SLURM job {slurm['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in slurm else ""
    cores = f"{_several(about['cores'], 'core')} for rank 0" if "cores" in about else ""
    return ", ".join(filter(None, (about.get("cpu"), cores, about.get("system"), job)))


def _ranks(about: Mapping[str, Any]) -> str:
    hosts = Counter(record.listed(about.get("hosts", "")))
    places = [f"{count} on {host}" for host, count in list(hosts.items())[:RANKS]]
    if len(hosts) > RANKS:
        places.append(f"and {_several(len(hosts) - RANKS, 'more host')}")
    threads = f", {_several(about['threads_per_rank'], 'thread')} each" if hosts else ""
    device = f", device {about['device']}" if "device" in about else ""
    return f"{about.get('ranks', 'unknown')}: {', '.join(places)}{threads}{device}"


def _resumed(about: Mapping[str, Any]) -> str:
    """A line for each job that went on with the run."""
    return "\n".join(
        f"after {line['round']} rounds, {line['at']}, on {_several(line['ranks'], 'rank')}: "
        f"{', '.join(dict.fromkeys(line['hosts']))}"
        for line in record.resumes(about)
    )


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


def _variants(found: Mapping[str, np.ndarray]) -> RenderableType | None:
    """Returns the variants that were evaluated last; None if every device holds the whole model."""
    rows = found["variants"]
    if not len(rows):
        return None
    last = rows["round"].max()
    rows = rows[rows["round"] == last]
    # Results of earlier versions have no kinds.
    kinds = rows["kind"] if "kind" in (rows.dtype.names or ()) else np.zeros(len(rows), "S1")
    has_kinds = len(set(kinds.tolist())) > 1
    names = ("share", "clients", "test set", "bytes", "MFLOP", "MiB", *["by"] * has_kinds)
    table = grid(*names, left=(6,))
    for row, kind in zip(rows, kinds.tolist(), strict=True):
        sizes = f"{row['bytes']:,}", f"{row['flops'] / 1e6:.3g}", f"{row['memory']:.3g}"
        cells = f"{row['share']:g}", str(row["clients"]), number(row["accuracy"]), *sizes
        table.add_row(*cells, *[kind.decode()] * has_kinds)
    remark = f"round {last + 1}; bytes as sent to a client, MFLOP of training on one sample"
    return Group(table, Text(remark, "dim"))


COMPARED = {
    "clients": ("of two clients alone", ""),
    "agreed": ("of a client alone, and the one agreed on", ""),
    "batches": ("of other minibatches, of a client alone", "the same, of all clients"),
    "oracle": ("of all training samples, and a client's alone", "the same, and the one agreed on"),
}
"""How kinds of pairs of masks are called, for those of clients and for the mask of all."""


def _masks(found: Mapping[str, np.ndarray]) -> RenderableType | None:
    """Returns how far the masks of the last agreement that compared some have overlapped."""
    rows = found["masks"]
    if not len(rows):
        return None
    rows = rows[rows["round"] == rows["round"].max()]
    table = grid("masks", "in common", "least", "Jaccard", left=(0,))
    for kind, texts in COMPARED.items():
        ours = rows["kind"] == kind.encode()
        for text, some in zip(texts, (rows["client"] >= 0, rows["client"] < 0), strict=True):
            pairs = rows[ours & some]
            if len(pairs):
                values = pairs["common"].mean(), pairs["common"].min(), pairs["jaccard"].mean()
                table.add_row(text, *map(number, values))
    return table


def _final(rows: np.ndarray) -> RenderableType | None:
    """Accuracies of what clients have after the last round, apart for newcomers."""
    if not len(rows):
        return None
    table = grid("", "mean", "worst", "mean, tuned", "worst, tuned")
    for text, some in (
        ("clients", rows[~rows["newcomer"]]),
        ("newcomers", rows[rows["newcomer"]]),
    ):
        cells = []
        for name in ("accuracy", "tuned"):
            known = some[name][np.isfinite(some[name])]
            spread = f"{number(known.mean())} ± {number(known.std())}" if len(known) else "-"
            cells += [spread, number(known.min()) if len(known) else "-"]
        if len(some):
            table.add_row(text, *cells)
    return table


def _newcomers(rows: np.ndarray) -> RenderableType | None:
    """Newcomers' mean accuracy after each epoch, from what they have and from scratch."""
    if not len(rows):
        return None
    table = grid("epochs", "from what they have", "from scratch", "ratio")
    epochs = np.unique(rows["epoch"])
    for epoch in epochs[np.unique(np.linspace(0, len(epochs) - 1, TREND).round().astype(int))]:
        some = rows[rows["epoch"] == epoch]
        both = [some["accuracy"][some["start"] == start] for start in (b"model", b"scratch")]
        known = [values[np.isfinite(values)] for values in both]
        cells = [number(values.mean()) if len(values) else "-" for values in known]
        ratio = "-"
        if all(map(len, known)) and known[1].mean():
            ratio = f"{known[0].mean() / known[1].mean():.2f}"
        table.add_row(str(epoch), *cells, ratio)
    remark = f"mean over {_several(len(np.unique(rows['client'])), 'newcomer')}; ratio: of the two"
    return Group(table, Text(remark, "dim"))


def _slices(rows: np.ndarray, about: Mapping[str, Any]) -> RenderableType | None:
    """Whole and sliced models, mean over the clients but newcomers."""
    rows = rows[~rows["newcomer"]]
    if not len(rows):
        return None
    batch, threads = int(rows["batch"][0]), int(about.get("threads_per_rank", 1))
    table = grid("", "accuracy", "tuned", "MFLOP", "ms, one sample", f"ms, batch of {batch}")
    for name, prefix in (("whole", "whole_"), ("sliced", "")):
        accuracies = [rows[f"{prefix}accuracy"], rows["tuned"] if not prefix else rows[:0]["tuned"]]
        known = [values[np.isfinite(values)] for values in accuracies]
        cells = [number(values.mean()) if len(values) else "-" for values in known]
        cells.append(f"{rows[f'{prefix}flops'].mean() / 1e6:.3g}")
        for column in ("seconds", "batch_seconds"):
            cells.append(f"{1e3 * rows[f'{prefix}{column}'].mean():.3g}")
        table.add_row(name, *cells)
    saved = 1 - rows["flops"].sum() / rows["whole_flops"].sum()
    remark = (
        f"mean over {_several(len(rows), 'client')}: {saved:.1%} of the FLOPs saved, "
        f"{rows['channels'].mean():.1%} of the encoder's channels kept; seconds of inference with "
        f"{_several(threads, 'thread')}"
    )
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


def _between(found: Mapping[str, np.ndarray]) -> Table | None:
    """Returns the same for bytes between nodes, if there are any."""
    rows, known = found["ranks"], found["ranks"].dtype.names or ()
    far = [way + tables.BETWEEN for way in tables.DIRECTIONS]
    # A result of an earlier version does not have them.
    has_any = any(rows[name].any() for name in far if name in known)
    return _buffers(found, tables.BETWEEN) if has_any else None


def _buffers(found: Mapping[str, np.ndarray], end: str) -> Table:
    """Returns the table of bytes that each rank sent and received by MPI.

    Args:
        found: tables of the result.
        end: of the columns' names.
    """
    parts = _parts(found["ranks"])
    table = grid("rank", *_ways(parts))
    ways = [way + end for way in tables.DIRECTIONS]
    columns = [_by_rank(rows, way) for rows in parts.values() for way in ways]
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
    """Returns a client's part of a split model beside the whole; None if the model is not split."""
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
    """Returns the cost of a round on each kind of device; None without devices and losses."""
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


def _memory(rows: np.ndarray) -> Table | None:
    """Returns the parts of the largest memory of each kind of device, or of all clients."""
    rows = rows[rows["round"] >= 0]
    # Results of earlier versions lack some of the columns, or all.
    known = [name for name in tables.MEMORY if name in (rows.dtype.names or ())]
    if not known or not len(rows) or np.isnan(rows["memory"]).any():
        return None
    table = grid("tier", *(name.partition("_")[2] for name in known), "all")
    for tier in np.unique(rows["tier"]):
        some = rows[rows["tier"] == tier]
        most = some[some["memory"].argmax()]
        cells = (f"{most[name]:.3g}" for name in (*known, "memory"))
        table.add_row(tier.decode() or "every client", *cells)
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
