"""One run, one HDF5 file: settings and provenance as attributes, tables appended round by round.

The file is flushed after each round and can be opened at any time. A run that is killed leaves
`status = "running"` and every round that it finished. A reader needs only
`pandas.DataFrame(f["rounds"][:])`; a table's attribute `columns` explains its columns.
"""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fedmpi import config
from fedmpi.errors import BadInput
from fedmpi.results import tables

FORMAT = 1
"""Version of the file's layout, that is of the names of attributes and tables."""
RUNNING, DONE, FAILED, DIVERGED = "running", "done", "failed", "diverged"
FINISHED = (DONE, DIVERGED)
"""Statuses of runs that are not run again, because the result would be the same."""
SUFFIXES = (".h5", ".hdf5")
"""Ends of the names of results, in upper or lower case."""
SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""The first bytes of an HDF5 file."""
METADATA, CHUNK = 1 << 16, 1024
"""Bytes for metadata, and rows of a table in one chunk: few chunks need little metadata."""


class RecordError(BadInput):
    """A file that is no result, or that belongs to another run."""


class Record:
    """The file of a run in progress.

    Args:
        path: the file; an existing file is replaced.
        settings: the run's settings as plain values.
        identity: the run's (see `config.identity`).
        about: more root attributes: provenance.
        columns: for each table its columns: name -> (dtype, meaning).
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        identity: str,
        about: Mapping[str, Any],
        columns: Mapping[str, Mapping[str, tuple[str, str]]],
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # All metadata, including the superblock, are contiguous, so that one write flushes them.
        # Otherwise a kill during a flush can leave a file that cannot be opened.
        part = path.with_name(f"{path.name}.part")
        self.file = h5py.File(part, "w", meta_block_size=METADATA)
        self.best = -np.inf
        attributes = self.file.attrs
        attributes["format"], attributes["status"], attributes["started"] = FORMAT, RUNNING, _now()
        attributes["settings"], attributes["identity"] = json.dumps(settings), identity
        for name, value in about.items():
            attributes[name] = value
        for table, meaning in columns.items():
            dtype = np.dtype([(name, form) for name, (form, _) in meaning.items()])
            data = self.file.create_dataset(table, (0,), dtype, maxshape=(None,), chunks=(CHUNK,))
            data.attrs["columns"] = json.dumps({name: text for name, (_, text) in meaning.items()})
        self.file.flush()
        part.replace(path)  # whole from its first moment

    def append(self, tables: Mapping[str, np.ndarray]) -> None:
        """Appends rows to some tables.

        Those of a round include its row of the table `rounds`, by which the round of the best
        validation accuracy is updated.
        """
        # `rounds` last: a round that is listed there is complete in every other table.
        for name in sorted(tables, key=lambda name: name == "rounds"):
            if name == "rounds":
                self.file.flush()
            data, rows = self.file[name], tables[name]
            data.resize(len(data) + len(rows), axis=0)
            data[len(data) - len(rows) :] = rows
        for row in tables.get("rounds", ()):
            if row["validation"] > self.best:
                self.best = row["validation"]
                self.file.attrs["best_round"] = int(row["round"])
        self.file.flush()

    def close(self, status: str, about: Mapping[str, Any] | None = None) -> None:
        """Closes the file with a status, and with attributes that are known only at the end."""
        for name, value in (about or {}).items():
            self.file.attrs[name] = value
        self.file.attrs["status"], self.file.attrs["finished"] = status, _now()
        self.file.close()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def open_result(path: Path) -> h5py.File:
    """Opens a result for reading, finished or not.

    Raises:
        RecordError: if the file is missing, or is not a result.
    """
    if not path.is_file():
        raise RecordError(f"{path}: no such file; wanted a result (HDF5)")
    try:
        # No lock, because a run in progress still writes to the file.
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise RecordError(f"{path}: not an HDF5 file: {error}") from None
    if "settings" not in file.attrs or "rounds" not in file:
        file.close()
        raise RecordError(f"{path}: HDF5, but not a result: it holds no settings")
    return file


def rows(file: h5py.File, table: str) -> np.ndarray:
    """Returns a table of a result; it is empty if the result is older than the table.

    Raises:
        KeyError: if the file lacks a table that every result has.
    """
    if table in tables.LATER and table not in file:
        return tables.empty(tables.TABLES[table], 0)
    return file[table][:]


def is_file(path: Path) -> bool:
    """Whether a path names a result and not a folder of them, whether or not it is there."""
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def file_of(out: Path, method: str, identity: str) -> Path:
    """Returns the path of a run's file: `out` if it names one, else a file in that folder."""
    return out if is_file(out) else out / f"{method}-{identity}.h5"


def is_result(path: Path) -> bool:
    """Whether a file is to be read as a result: by its name, or by its first bytes."""
    try:
        with path.open("rb") as file:
            return is_file(path) or file.read(len(SIGNATURE)) == SIGNATURE
    except OSError:
        return is_file(path)


def settings_of(path: Path) -> dict[str, Any]:
    """Returns the complete settings of a recorded run."""
    with open_result(path) as file:
        return json.loads(file.attrs["settings"])


def files_of(about: Mapping[str, Any]) -> dict[str, str]:
    """Returns the SHA-256 of the files that a run's settings name, by the settings' paths.

    Args:
        about: the attributes of its result. Those of earlier versions may have the trace's alone.
    """
    found = json.loads(about.get("files_sha256", "{}"))
    if "trace_sha256" in about:
        found["trace"] = about["trace_sha256"]
    return found


def identity_of(about: Mapping[str, Any]) -> str:
    """Returns a run's identity, from the settings and files that its result records.

    The recorded one may be of a version that told runs apart by other settings.

    Args:
        about: the attributes of its result.
    """
    return config.identity(json.loads(about["settings"]), files_of(about))


def data_of(path: Path) -> str:
    """Returns the hash of the data set of a recorded run; "" if it has none."""
    with open_result(path) as file:
        return str(file.attrs.get("data_sha256", ""))


def state_of(path: Path, identity: str) -> str | None:
    """Returns the status of the run with that identity at `path`, or None if there is no file.

    Raises:
        RecordError: if the file is not this run's, and must not be replaced, or if it cannot be
            created.
    """
    if not path.exists():
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise RecordError(f"{path}: wanted a folder to write to, but {above} is no folder")
        return None
    with open_result(path) as file:
        found = identity_of(file.attrs)
        if found != identity:
            raise RecordError(
                f"{path}: holds the run {found}; wanted the run {identity}, or no such file"
            )
        return str(file.attrs["status"])


def is_open(path: Path) -> bool:
    """Whether a run is writing the file now; False also if the file system has no locks."""
    try:
        h5py.File(path, "r+").close()
    except BlockingIOError:
        return True
    return False


def mark_failed(path: Path) -> None:
    """Changes the status `running` to `failed`, unless there is no file or a run is writing it."""
    if path.exists() and not is_open(path):
        with h5py.File(path, "r+") as file:
            if file.attrs["status"] == RUNNING:
                file.attrs["status"] = FAILED
