"""Result files as tidy data frames, with the settings in which the runs differ in every row.

`runs` has one row for each run. `rounds`, `clients`, `phases`, `ranks`, `variants`, `layers`,
`masks`, `final`, `slices` and `newcomers` are the tables of the same names in the files,
concatenated. All take files and folders, alone or in a list. The columns of `runs` have four
origins, which their names tell:

* `RESULTS`: computed here from a file's tables, or identifying the run;
* the content of files that a run read, by hash (`CONTENTS`), in which runs differ as by settings;
* settings, by their dotted paths (`lr`, `method.name`, and for named tables in a list
  `devices.tiers[phone].share`). They are NA if a run has no such setting, or if it is not set; but
  the share of a kind of devices is 0 in runs with only other kinds;
* `about.*`: where the run took place (`about.hosts`, `about.ranks`, `about.torch`).

A run in progress can be read: its status is `running`, and its finished rounds are there.
"""

import json
import os
import re
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any

import h5py
import numpy as np
import pandas as pd

Paths = str | Path | Iterable[str | Path]

ACCURACIES = {
    "accuracy": "accuracy of the global model on the test set",
    "shard_mean": "mean over all clients of the accuracy on their test shards of the global model, "
    "or of the server's part with their own",
    "shard_std": "standard deviation of the same",
    "shard_min": "minimum of the same",
    "personal_mean": "mean accuracy of local models of the round's clients on their test shards",
}
"""Columns of the table `rounds` that are accuracies: shares, 0 to 1."""
FIRST = ("rounds", "clients", "phases", "ranks")
"""Tables in results of every version; others are read as empty where they are lacking."""
NEEDED = ("round", "warmup", *ACCURACIES, "up", "down", "seconds")
"""Columns of the table `rounds` in results of every version."""
RESULTS = {
    "path": "the file",
    "identity": "hash of the settings",
    "status": "done; diverged, failed, stopped or running: unfinished",
    "started": "ISO 8601",
    "finished": "ISO 8601",
    "rounds_done": "communication rounds in the file, without the agreement before the first",
    "best_round": "the first round with the best validation accuracy; NA without validation",
    **{f"{name}_last": f"{text}, when last measured" for name, text in ACCURACIES.items()},
    **{f"{name}_best": f"{text}, in the best round" for name, text in ACCURACIES.items()},
    "up_once": "bytes from the clients in the agreement before the first round",
    "down_once": "bytes to the clients in the same",
    "bytes_once": "both",
    "up_rounds": "bytes from the clients in all rounds, without the agreement",
    "down_rounds": "bytes to the clients in the same",
    "up_round": "mean bytes from all clients a round, without the agreement",
    "down_round": "mean bytes to all clients in the same",
    "up_total": "bytes from the clients, all told",
    "down_total": "bytes to the clients, all told",
    "bytes_total": "both",
    "seconds_once": "seconds of the agreement before the first round",
    "seconds_round": "median seconds of a round, without the agreement and the warm-up round",
    "seconds_total": "seconds of everything but the warm-up round",
    "seconds_server": "median seconds in which the server worked, of those rounds; NA if unknown",
    "sim_seconds_total": "simulated seconds of all rounds; NA without devices, like the next",
    "sim_joules_total": "simulated joules of all clients",
    "flops_total": "floating-point operations of all clients' training; NA if not counted",
    "lost_total": "uploads that were lost",
}
"""Columns of `runs` that are computed from a file, and their meanings."""
ABOUT = "about."
CHANGED, ABSENT = f"{ABOUT}changed", f"{ABOUT}absent"
"""Columns of `runs`: the settings that differ from what the run's names and paper stand for, with
the value that each would have, NA if the result does not say it; and the settings that the run has,
but that are not set."""
CONTENTS = "sha256."
"""Beginning of the names of columns with the hashes of the files that a run read: `sha256.data`, or
`sha256.trace` for the file that the setting `trace` names."""
MACHINE = (
    *("threads", "server_threads", "exchange.window", "exchange.down", "exchange.costs"),
    *("state.memory", "state.folder", "data.root", "data.cache", "keep", "keep_limit"),
    *("checkpoint.every", "checkpoint.seconds", "checkpoint.memory", "checkpoint.code"),
)
"""Settings that belong to the machine: runs do not differ by them."""
SHARE = re.compile(r"devices\.tiers\[.+\]\.share")
"""The share of clients with a kind of devices; it is 0 in a run that has only other kinds."""
SUFFIXES = (".h5", ".hdf5")
"""Ends of the names of results, in upper or lower case."""

AGREEMENT = -1
"""The round before the first, whose bytes are spent once."""

DAMAGE = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError,
          TypeError, ValueError)  # fmt: skip
"""What a damaged file may raise when it is read."""
TRIES, NAP = 10, 0.05
"""How often a file that is being written is read, and the seconds in between."""

_reported: set[Path] = set()


@dataclass(frozen=True)
class Result:
    """Content of a file.

    Attributes:
        path: the file.
        attributes: attributes of its root as plain values; `settings` is a tree.
        given: settings by their dotted paths, and hashes of files.
        facts: the run's `RESULTS`.
        table: the table that was requested.
    """

    path: Path
    attributes: dict[str, Any]
    given: dict[str, Any]
    facts: dict[str, Any]
    table: pd.DataFrame


def find(paths: Paths) -> list[Path]:
    """Returns all results among files and folders, each once.

    Folders are searched for files with one of the `SUFFIXES`, at any depth.

    Files that are no results or cannot be read are left out, and named once on standard error.

    Raises:
        FileNotFoundError: for a path that does not exist.
    """
    return [result.path for result in _results(paths)]


def runs(paths: Paths) -> pd.DataFrame:
    """Returns a row for each run: results, settings and provenance (see the module's docstring)."""
    return _runs(_results(paths))


def rounds(paths: Paths) -> pd.DataFrame:
    """Returns a row for each round: `run` (identity), `status`, `path`, settings, the table.

    The settings are those that vary. One whose name is also a column of the table is called
    `settings.NAME`.
    """
    return _joined(paths, "rounds")


def clients(paths: Paths) -> pd.DataFrame:
    """Returns a row for each client in each round; other columns as in `rounds`."""
    return _joined(paths, "clients")


def phases(paths: Paths) -> pd.DataFrame:
    """Returns a row for each phase on each rank in each round; other columns as in `rounds`."""
    return _joined(paths, "phases")


def ranks(paths: Paths) -> pd.DataFrame:
    """Returns a row for each rank in each round; other columns as in `rounds`."""
    return _joined(paths, "ranks")


def variants(paths: Paths) -> pd.DataFrame:
    """Returns a row for each share of the model in each evaluated round; columns as in `rounds`.

    Methods in which every device holds the whole model have no rows.
    """
    return _joined(paths, "variants")


def layers(paths: Paths) -> pd.DataFrame:
    """Returns a row for each layer in each agreement on a mask; columns as in `rounds`."""
    return _joined(paths, "layers")


def masks(paths: Paths) -> pd.DataFrame:
    """Returns a row for each two masks that an agreement compared; columns as in `rounds`."""
    return _joined(paths, "masks")


def final(paths: Paths) -> pd.DataFrame:
    """Returns a row for each client after the last round; other columns as in `rounds`."""
    return _joined(paths, "final")


def slices(paths: Paths) -> pd.DataFrame:
    """Returns a row for each client's sliced model (`evaluate.final = slice`); as in `rounds`."""
    return _joined(paths, "slices")


def newcomers(paths: Paths) -> pd.DataFrame:
    """Returns a row for each newcomer, start and epoch (`evaluate.final = tune`)."""
    return _joined(paths, "newcomers")


def table(paths: Paths, name: str) -> pd.DataFrame:
    """Returns the rows of a table of any name; files without it have none."""
    return _joined(paths, name)


def settings(runs: pd.DataFrame) -> list[str]:
    """Returns the columns of `runs` that are settings."""
    return [name for name in runs.columns if name not in RESULTS and not name.startswith(ABOUT)]


def varying(runs: pd.DataFrame) -> list[str]:
    """Returns the names of the settings that differ between runs.

    Methods have different settings. A setting that one method lacks and another has is no
    difference, because `method.name` shows it already. Between runs of one method, a setting that
    is not set differs from one that is. The same holds for every named table: a run without a kind
    of devices lacks its settings. Settings of the `MACHINE` do not count, nor does the path of a
    file whose content is known and the same.
    """
    return [name for name in settings(runs) if name not in MACHINE and _varies(runs, name)]


def absent(given: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the settings that are there, but not set; those that a method lacks are not there."""
    return tuple(name for name, value in given.items() if value is None)


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Returns a tree's leaves by their dotted paths; lists as tuples, which can be compared.

    Tables in a list are identified by their names, or else by their numbers.
    """
    for name, value in tree.items():
        if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            for place, one in enumerate(value):
                yield from flat(one, f"{prefix}{name}[{one.get('name', place)}].")
        elif isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _tuple(value)


def _varies(runs: pd.DataFrame, name: str) -> bool:
    if name.startswith(CONTENTS):
        # Other names of data sets and files show already that their contents differ.
        of = name.removeprefix(CONTENTS)
        found = runs.groupby("data.name" if of == "data" else of)[name].nunique()
        return bool((found > 1).any())
    content = f"{CONTENTS}{name}"
    if content in runs and runs[content].nunique(dropna=False) == 1:
        return False
    if runs[name].nunique() > 1:
        return True
    table = name
    while table := table.rpartition(".")[0]:
        if f"{table}.name" in runs:
            of_one_kind = runs.groupby(f"{table}.name")[name]
            return bool((of_one_kind.nunique(dropna=False) > 1).any())
    return runs[name].nunique(dropna=False) > 1


def _results(paths: Paths, table: str = "rounds") -> list[Result]:
    found: dict[Path, Path] = {}
    for given in [paths] if isinstance(paths, str | Path) else paths:
        path = Path(given)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        for file in _inside(path) if path.is_dir() else [path]:
            found.setdefault(Path(os.path.realpath(file)), file)
    results = []
    for whole, path in found.items():
        try:
            results.append(_read(path, table))
        except DAMAGE as error:
            _leave_out(whole, path, error)
    return results


def _leave_out(whole: Path, path: str | Path, error: Exception) -> None:
    """Says once on standard error why a file, or a folder, is left out."""
    if whole not in _reported:
        _reported.add(whole)
        print(f"{path}: left out: {_words(error)}", file=sys.stderr)


def _words(error: Exception) -> str:
    """Returns why a file cannot be read."""
    # HDF5 names the number of what the system refused in its text.
    named = re.search(r"errno = (\d+)", str(error))
    number = getattr(error, "errno", None) or (int(named[1]) if named else None)
    if "unable to lock file" in str(error):
        return "HDF5 could not lock it; set HDF5_USE_FILE_LOCKING=FALSE"
    if number is not None:
        return os.strerror(number).lower()
    if isinstance(error, KeyError) and (lacking := re.search(r"'([^' ]+)'", str(error))):
        return f"a damaged result: it lacks {lacking[1]}"
    if isinstance(error, OSError | RuntimeError) or "Unable to" in str(error):  # HDF5's words
        return "a damaged result: its content cannot be read"
    return str(error) or type(error).__name__


def _inside(folder: Path) -> list[Path]:
    """Returns the files in a folder, at any depth, that are named as results are."""

    def unreadable(error: OSError) -> None:
        _leave_out(Path(error.filename), error.filename, error)

    every = (
        Path(place) / name
        for place, _, names in os.walk(folder, onerror=unreadable)
        for name in names
    )
    return sorted(path for path in every if path.suffix.lower() in SUFFIXES)


def _read(path: Path, table: str) -> Result:
    """Reads a result; several times, if a run is writing it: its lock lies beside it."""
    lock = path.with_name(f"{path.name}.lock")
    for _ in range(TRIES - 1):
        try:
            return _read_once(path, table)
        except DAMAGE:
            if not lock.exists():
                raise
        sleep(NAP)
    return _read_once(path, table)


def _read_once(path: Path, table: str) -> Result:
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for who writes into it
        raise ValueError("no plain file; wanted a result (HDF5)")
    with _opened(path) as file:
        if "settings" not in file.attrs or "rounds" not in file:
            raise ValueError("HDF5, but not a result: it holds no settings")
        attributes = {name: _plain(value) for name, value in file.attrs.items()}
        attributes["settings"] = _parsed(attributes, "settings")
        if not isinstance(attributes["settings"], dict):
            raise ValueError("a damaged result: its settings are no table")
        if "changed" in attributes:
            attributes["changed"] = _changed(attributes)
        if isinstance(attributes.get("hosts"), str):  # a line for each rank
            attributes["hosts"] = tuple(attributes["hosts"].splitlines())
        rounds = _frame(_rows(file["rounds"]))
        for column in NEEDED:
            if column not in rounds:
                raise ValueError(f"a damaged result: the table rounds lacks the column {column}")
        is_lacking = table not in FIRST and table not in file
        rows = rounds[:0][["round"]] if is_lacking else _frame(_rows(file[table]))
    if "round" in rows:
        # `rounds` is written last: a round that is missing there may be incomplete elsewhere.
        rows = rows[rows["round"].isin(rounds["round"])]
    given = dict(flat(attributes["settings"])) | _contents(attributes)
    if not {"method.name", "data.name", "seed", "rounds"} <= given.keys():
        raise ValueError("a damaged result: it lacks settings that every run has")
    return Result(path, attributes, given, _facts(path, attributes, rounds), rows)


def _opened(path: Path) -> h5py.File:
    try:
        # No lock, because a run in progress still writes to the file.
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "errno = " in str(error):
            raise
        raise ValueError("not an HDF5 file, or one that was cut off") from None


def _parsed(attributes: Mapping[str, Any], name: str) -> Any:
    try:
        return json.loads(attributes[name])
    except (TypeError, ValueError):
        raise ValueError(f"a damaged result: its {name} are no JSON") from None


def _changed(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that a run changed, each with the value instead."""
    found = _parsed(attributes, "changed")
    if not isinstance(found, dict):
        raise ValueError("a damaged result: what it changed is no table")
    return {name: _tuple(value) for name, value in found.items()}


def _rows(data: h5py.Dataset) -> np.ndarray:
    held = data.nbytes <= data.id.get_storage_size()
    if data.chunks is not None:  # which may be compressed
        held = len(data) <= data.id.get_num_chunks() * data.chunks[0]
    if not held:
        raise ValueError(f"a damaged result: the table {data.name} lacks rows")
    return data[:]


def _plain(value: Any) -> Any:
    """Returns an attribute as a Python value; arrays as tuples."""
    if isinstance(value, np.ndarray):
        return tuple(_plain(item) for item in value.tolist())
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if isinstance(value, np.generic) else value


def _frame(rows: np.ndarray) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    for name in rows.dtype.names or ():
        if rows.dtype[name].kind == "S":
            frame[name] = frame[name].str.decode("ascii")
    return frame


def _runs(results: Sequence[Result]) -> pd.DataFrame:
    own = ("settings", *RESULTS)
    about = [
        {f"{ABOUT}{name}": value for name, value in result.attributes.items() if name not in own}
        | {ABSENT: absent(result.given)}
        for result in results
    ]
    facts = pd.DataFrame([result.facts for result in results], columns=list(RESULTS))
    facts["best_round"] = facts["best_round"].astype("Int64")
    given = [dict(result.given) for result in results]
    shares = dict.fromkeys(name for one in given for name in one if SHARE.fullmatch(name))
    for one in given:
        if not shares.keys().isdisjoint(one):
            one.update({name: 0.0 for name in shares if name not in one})
    head = facts[["path", "identity", "status"]]
    return pd.concat([head, _columns(given), facts.drop(columns=head), _columns(about)], axis=1)


def _contents(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Returns the hashes of the files that a run read; results of earlier versions have none."""
    found = _parsed(attributes, "files_sha256") if "files_sha256" in attributes else {}
    if "data_sha256" in attributes:
        found["data"] = attributes["data_sha256"]
    return {f"{CONTENTS}{name}": sha256 for name, sha256 in found.items()}


def _facts(path: Path, attributes: Mapping[str, Any], rounds: pd.DataFrame) -> dict[str, Any]:
    """Returns a run's `RESULTS`."""
    facts: dict[str, Any] = {"path": str(path)}
    for name in ("identity", "status", "started", "finished", "best_round"):
        facts[name] = attributes.get(name)
        if not isinstance(facts[name], (int if name == "best_round" else str) | None):
            raise ValueError(f"a damaged result: its {name} is {facts[name]!r}")
    once = rounds[rounds["round"] == AGREEMENT]
    regular = rounds[rounds["round"] > AGREEMENT]
    # Without a global model, only accuracies on clients' shards are measured.
    measured = regular[regular[list(ACCURACIES)].notna().any(axis=1)]
    # Never the best round on the test set, which could not be chosen without that set.
    chosen = regular[regular["round"] == facts["best_round"]]
    for name in ACCURACIES:
        facts[f"{name}_last"] = measured[name].iloc[-1] if len(measured) else np.nan
        facts[f"{name}_best"] = chosen[name].iloc[0] if len(chosen) else np.nan
    for way in ("up", "down"):
        facts[f"{way}_once"], facts[f"{way}_rounds"] = once[way].sum(), regular[way].sum()
        facts[f"{way}_round"], facts[f"{way}_total"] = regular[way].mean(), rounds[way].sum()
    facts["bytes_once"] = facts["up_once"] + facts["down_once"]
    facts["bytes_total"] = facts["up_total"] + facts["down_total"]
    facts["rounds_done"] = len(regular)
    warm = rounds[~rounds["warmup"].astype(bool)]
    facts["seconds_once"] = once["seconds"].sum()
    facts["seconds_round"] = warm.loc[warm["round"] > AGREEMENT, "seconds"].median()
    facts["seconds_total"] = warm["seconds"].sum(min_count=1)
    served = warm["server_seconds"] if "server_seconds" in warm else pd.Series(dtype=float)
    facts["seconds_server"] = served[warm["round"] > AGREEMENT].median()
    for name in ("sim_seconds", "sim_joules", "flops", "lost"):
        # Results of earlier versions lack them.
        known = rounds[name] if name in rounds else pd.Series(dtype=float)
        facts[f"{name}_total"] = known.sum(min_count=1)
    return facts


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def _columns(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Returns rows as columns that keep their types even if some rows have no value."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pd.DataFrame({name: _column([row.get(name) for row in rows]) for name in names})


def _column(values: list[Any]) -> pd.Series:
    kinds = {type(value) for value in values if value is not None}
    is_small = all(abs(value) < 2**63 for value in values if isinstance(value, int))
    if kinds == {bool}:
        return pd.Series(values, dtype="boolean")
    if kinds == {int} and is_small:
        return pd.Series(values, dtype="Int64")
    if kinds and kinds <= {int, float}:
        return pd.Series(values, dtype="Float64")
    if kinds == {str}:
        return pd.Series(values, dtype="string")
    return pd.Series([pd.NA if value is None else value for value in values], dtype=object)


def _joined(paths: Paths, table: str) -> pd.DataFrame:
    """Returns all results' rows of a table, behind their run's identity and settings."""
    results = _results(paths, table)
    if not results:
        return pd.DataFrame()
    body = pd.concat([result.table for result in results], ignore_index=True)
    about = _runs(results)
    head = about[["identity", "status", "path", *varying(about)]]
    head = head.iloc[np.repeat(np.arange(len(results)), [len(r.table) for r in results])]
    taken = {name: f"settings.{name}" for name in body.columns}
    head = head.rename(columns=taken | {"identity": "run"}).reset_index(drop=True)
    return pd.concat([head, body], axis=1)
