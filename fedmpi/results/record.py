"""One run, one HDF5 file: settings and provenance as attributes, tables appended round by round.

The file is flushed after each round and can be opened at any time. A run that is killed leaves
`status = "running"` and every round that it finished. A reader needs only
`pandas.DataFrame(f["rounds"][:])`; a table's attribute `columns` explains its columns.

Tables grow uncompressed: an append then changes no byte of an earlier round, so that a kill cannot
damage it. When the job ends, a file with compressed tables replaces the first one. It also has the
model that is kept, as groups of tensors (see `kept`).

Only who holds the lease of a result opens it for writing (see `lease`). HDF5's own locks are not
used, because some file systems have none. What HDF5 writes goes through `ordered`, which passes it
on so that a kill between two writes damages nothing. A round's room on the disk is reserved first.
"""

import atexit
import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from time import sleep
from types import MappingProxyType
from typing import Any, TypeVar

import h5py
import numpy as np

from fedmpi import config, weights
from fedmpi import draft as draft_of
from fedmpi.draft import draft
from fedmpi.errors import BadInput, Failure, number, sentence, told
from fedmpi.results import lease, tables
from fedmpi.results.lease import INSTEAD, Lease
from fedmpi.results.ordered import LAYOUT, Ordered

Found = TypeVar("Found")
Groups = Mapping[str, Mapping[str, np.ndarray]]
"""Arrays by group and name."""

FORMAT = 2
"""Version of the file's layout. 1: tables are not compressed, and no model is kept. Both are read,
later ones are refused."""
LIBRARY = ("v110", "v110")
"""Versions of HDF5 that a finished file wants: 1.10 needs a third less room for small tables."""
SLAB = 1 << 16
"""Rows of a table in one compressed chunk, at most."""
RUNNING, DONE, FAILED, DIVERGED, STOPPED = "running", "done", "failed", "diverged", "stopped"
FINISHED = (DONE, DIVERGED)
"""Statuses of runs that are not run again, because the result would be the same."""
BEST = "best_round"
"""An attribute that comes with the first validation accuracy."""
CHOSEN, PREDICTED = "exchange", "predicted_uplink_seconds"
"""Attributes of a result whose settings leave the exchange open: the one that was taken, and as
JSON the predicted seconds of each that was possible; empty if only one was."""
SUFFIXES = (".h5", ".hdf5")
"""Ends of the names of results, in upper or lower case."""
BEGINS = re.compile(re.escape(weights.RESULT))
"""The first bytes of a result, as `draft` wants them."""
METADATA, CHUNK = 1 << 16, 1024
"""Bytes for metadata, and rows of a table in one chunk: few chunks need little metadata."""
MARGIN = 3 * METADATA
"""Bytes reserved for metadata that a round, or the end of the run, may add."""
TRIES, NAP = 10, 0.05
"""How often a result that is being written is read, and the seconds in between."""
DAMAGE = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError,
          TypeError, ValueError)  # fmt: skip
"""What a damaged file may raise when it is read, or when its content is used."""


class RecordError(BadInput):
    """A file that is no result, or that belongs to another run."""


class Damaged(RecordError):
    """A file that cannot be read as a result."""


class Record:
    """The file of a run in progress.

    Args:
        held: the right to write it; closing the file gives it back. An existing file is replaced.
        settings: the run's settings as plain values.
        identity: the run's (see `config.identity`).
        about: more root attributes: provenance.
        columns: for each table its columns: name -> (dtype, meaning).
        rows: of each table, what an earlier job has recorded and this one goes on from.

    Attributes:
        status: as it stands in the file.

    Raises:
        Failure: if the system does not let it write. The former file, if any, is still there.
    """

    def __init__(
        self,
        held: Lease,
        settings: Mapping[str, Any],
        identity: str,
        about: Mapping[str, Any],
        columns: Mapping[str, Mapping[str, tuple[str, str]]],
        rows: Mapping[str, np.ndarray] = MappingProxyType({}),
    ) -> None:
        self.held, self.path, self.best, self.is_broken = held, held.path, -np.inf, False
        self.status = RUNNING
        self.tables: dict[str, h5py.Dataset] = {}
        attributes = {
            **{"format": FORMAT, "status": RUNNING, "started": _now()},
            **{"settings": json.dumps(settings), "identity": identity},
            **about,
        }
        part = _part(self.path)
        try:
            with told(self.path, INSTEAD, Failure):
                part.unlink(missing_ok=True)
                self.store = Ordered(part)
                # All metadata are contiguous, so that few writes flush them.
                self.file = h5py.File(self.store, "w", libver=LAYOUT, meta_block_size=METADATA)
                atexit.register(self._close)  # later, HDF5 cannot reach the store
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        try:
            with self._writing():
                texts = sum(len(str(value)) for value in attributes.values())
                self._reserve(MARGIN + 8 * texts)
                self._describe(attributes | {BEST: 0})
                del self.file.attrs[BEST]  # the room for it stays
                for table, meaning in columns.items():
                    self._add(table, meaning)
                if rows:
                    self._extend(rows)
                self.file.flush()
                held.check()
                part.replace(self.path)  # whole from its first moment
                self.placed = os.stat(self.path)
        except BaseException:
            self._close()
            part.unlink(missing_ok=True)
            raise

    def append(self, tables: Mapping[str, np.ndarray]) -> bool:
        """Appends rows to some tables.

        Those of a round include its row of the table `rounds`, by which the round of the best
        validation accuracy is updated.

        Returns:
            Whether the round is the best so far.

        Raises:
            Failure: if the system does not let it write, or the lease is lost. What was appended
                before is in the file.
        """
        with self._writing():
            self._check()
            return self._extend(tables)

    def syncing(self) -> Callable[[], None]:
        """Returns a function that waits until what was appended so far is on the disk.

        Another thread may call it, whatever has become of this file; it raises a `Failure` if the
        system does not let it write.

        Raises:
            Failure: if the file is no longer this process's to write.
        """
        with self._writing():
            self._check()
            file = os.fdopen(os.dup(self.store.handle), "rb")

        def sync() -> None:
            with told(self.path, INSTEAD, Failure), file:
                os.fsync(file.fileno())

        return sync

    def _extend(self, tables: Mapping[str, np.ndarray]) -> bool:
        """See `append`."""
        if growth := self._growth(tables):
            self._reserve(MARGIN + growth)
        # `rounds` last: a round that is listed there is complete in every other table.
        for name in sorted(tables, key=lambda name: name == "rounds"):
            if name == "rounds":
                self.file.flush()
            data, rows = self.tables[name], tables[name]
            data.resize(len(data) + len(rows), axis=0)
            data[len(data) - len(rows) :] = rows
        is_best = False
        for row in tables.get("rounds", ()):
            if row["validation"] > self.best:
                self.best, is_best = row["validation"], True
                self.file.attrs[BEST] = int(row["round"])
        self.file.flush()
        return is_best

    def close(
        self, status: str, about: Mapping[str, Any] | None = None, groups: Groups | None = None
    ) -> None:
        """Closes the file with a status, and with attributes that are known only at the end.

        A compressed file takes the place of this one. If the disk has no room for it, this one
        gets the attributes.

        Args:
            status: the run's.
            about: the attributes.
            groups: arrays to be kept, by group and name.

        Raises:
            Failure: if the system does not let it write; the file is closed, and its lease is
                given back. If the disk has no room for the groups alone, all else is recorded.
        """
        ending = {**(about or {}), "status": status, "finished": _now()}
        try:
            with self._writing():
                self._check()
            lost = self._compress(ending, groups or {})
            if self.file:
                with self._writing():
                    self._check()
                    self._reserve(METADATA)
                    self.file.flush()
                    os.fsync(self.store.handle)  # a network file system tells of a full disk now
                    self._describe(ending)
                    self.file.flush()
                    self.store.cut()
            self.status = status
        finally:
            self._close()
            self.held.release()
        if lost is not None and groups:
            said = sentence(self.path, lost, INSTEAD)
            raise Failure(f"{said}; all rounds are recorded, but the model is not kept")

    def _compress(self, ending: Mapping[str, Any], groups: Groups) -> OSError | None:
        """Replaces the file by a compressed one, and closes it; or returns why that is refused."""
        part = _part(self.path)
        try:
            with part.open("wb") as file:
                file.write(_compressed(self.file, ending, groups))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            return error
        try:
            with self._writing():
                self._close()  # all of it is on the disk already
                self.held.check()
                part.replace(self.path)
        except BaseException:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        return None

    def fail(self) -> None:
        """Closes the file with the status `failed`, if that can be written; never raises."""
        with suppress(Failure):
            if not self.is_broken:
                self.close(FAILED)
                return
            self._close()
            with suppress(OSError, RuntimeError):
                self.held.check()
                _mark(self.path)
        self.held.release()

    def _add(self, table: str, meaning: Mapping[str, tuple[str, str]]) -> None:
        dtype = np.dtype([(name, form) for name, (form, _) in meaning.items()])
        data = self.file.create_dataset(table, (0,), dtype, maxshape=(None,), chunks=(CHUNK,))
        data.attrs["columns"] = json.dumps({name: text for name, (_, text) in meaning.items()})
        # The index of the rows is made with the first one: afterwards, the header does not change
        # in two places at once.
        data.resize(1, axis=0)
        data[0] = np.zeros((), dtype)
        self.file.flush()
        data.resize(0, axis=0)
        self.tables[table] = data

    def _describe(self, about: Mapping[str, Any]) -> None:
        for name, value in about.items():
            self.file.attrs[name] = storable(value)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises a `Failure` for what the system refuses; HDF5 writes no more if it was HDF5."""
        try:
            yield
        except Failure:
            raise
        except (OSError, RuntimeError) as error:
            self.is_broken = True
            raise Failure(sentence(self.path, error, INSTEAD)) from None

    def _check(self) -> None:
        """Makes sure that the file is still where it belongs, and this process's to write."""
        self.held.check()
        try:
            is_there = os.path.samestat(os.stat(self.path), self.placed)
        except FileNotFoundError:
            is_there = False
        if not is_there:
            raise Failure(f"{self.path}: it was removed or replaced while this process wrote it")

    def _growth(self, tables: Mapping[str, np.ndarray]) -> int:
        """Returns the bytes of the chunks that rows will open."""
        total = 0
        for name, rows in tables.items():
            length = len(self.tables[name])
            chunks = -(-(length + len(rows)) // CHUNK) - -(-length // CHUNK)
            total += chunks * CHUNK * rows.dtype.itemsize
        return total

    def _reserve(self, more: int) -> None:
        """Makes sure that the disk has room for so many bytes more, before HDF5 has them."""
        with told(self.path, INSTEAD, Failure):
            self.store.reserve(more)

    def _close(self) -> None:
        """Closes the file, if it is open; nothing is changed on the disk any more."""
        if self.file:
            self.store.drop()
            self.file.close()
            self.store.close()
            atexit.unregister(self._close)


def save_rows(
    path: Path,
    name: str,
    rows: np.ndarray,
    columns: tables.Columns,
    about: Mapping[str, Any],
) -> None:
    """Writes one table as a file of its own, which is no run's result; replaces such a file.

    Args:
        path: the file; its folder is made.
        name: of the table.
        rows: the table.
        columns: for each column its dtype and meaning.
        about: attributes of the root.

    Raises:
        BadInput: if it cannot be written, or if another kind of file is there.
    """
    _check_rows(path, name)
    with draft(path, "--out", BEGINS) as file, h5py.File(file, "w") as written:
        for key, value in about.items():
            written.attrs[key] = storable(value)
        written.create_dataset(name, data=rows)
        meanings = {column: text for column, (_, text) in columns.items()}
        written[name].attrs["columns"] = json.dumps(meanings)


def try_rows(path: Path, name: str) -> None:
    """Makes sure, before long work, that `save_rows` can write a file.

    Raises:
        BadInput: if it cannot.
    """
    _check_rows(path, name)
    draft_of.try_out(path, "--out", BEGINS)


def load_rows(path: Path, name: str) -> tuple[dict[str, Any], np.ndarray]:
    """Returns the attributes and the table of a file that `save_rows` wrote.

    Raises:
        RecordError: if the file is missing, damaged, or of another kind.
    """
    with told(path, kind=RecordError):
        path.stat()
    try:
        with h5py.File(path, "r", locking=False) as file:
            return dict(file.attrs), file[name][:]
    except DAMAGE:
        raise Damaged(f"{path}: wanted a file (HDF5) with the table {name}") from None


def _check_rows(path: Path, name: str) -> None:
    """Refuses to replace a file that holds no such table, such as a run's result."""
    if path.is_file() and path.stat().st_size:
        with suppress(Damaged):
            load_rows(path, name)
            return
        raise BadInput(f"{path}: holds something else, and is not replaced; {INSTEAD}")


def _compressed(file: h5py.File, ending: Mapping[str, Any], groups: Groups) -> bytes:
    """Returns the content of a file with the same tables, compressed, and with more of all.

    It is made in memory, because HDF5 cannot close a file after a write has failed.

    Args:
        file: the result.
        ending: attributes that are added or replaced.
        groups: arrays that are added.
    """
    with h5py.File(
        "result", "w", driver="core", backing_store=False, block_size=1 << 20, libver=LIBRARY
    ) as made:
        for name, value in (*file.attrs.items(), *ending.items()):
            made.attrs[name] = storable(value)
        for name, table in file.items():
            rows = len(table)
            about = {"chunks": (min(max(rows, 1), SLAB),), "compression": 4, "shuffle": True}
            copy = made.create_dataset(name, (rows,), table.dtype, maxshape=(None,), **about)
            for start in range(0, rows, SLAB):
                copy[start : start + SLAB] = table[start : start + SLAB]
            for key, value in table.attrs.items():
                copy.attrs[key] = value
        for group, arrays in groups.items():
            place = made.create_group(group, track_order=True)
            for name, values in arrays.items():
                place[name] = values
        made.flush()
        return made.id.get_file_image()


def storable(value: Any) -> str | int | float:
    """Returns a value as an attribute can hold it; a list as a text, a line for each item.

    HDF5 holds texts of any length, but no zeros in them, no half of a surrogate pair, and no
    arrays of more than 64 KiB.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        return "\n".join(str(storable(item)) for item in value)
    is_small = isinstance(value, int) and abs(value) < 2**63
    if is_small or isinstance(value, float):
        return value
    return str(value).encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def listed(value: Any) -> list[str]:
    """Returns the items of an attribute that is a list: a text, or an earlier version's array."""
    return value.splitlines() if isinstance(value, str) else [str(item) for item in value]


def _part(path: Path) -> Path:
    """The file of a result that is not whole yet."""
    return path.with_name(f"{path.name}.part")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def try_out(held: Lease) -> None:
    """Writes a file as a run does, beside a result, and removes it.

    Raises:
        BadInput: if that is not possible.
    """
    part = _part(held.path)
    with told(held.path, INSTEAD):
        if held.path.exists() and not os.access(held.path, os.W_OK):
            raise PermissionError(errno.EACCES, "")
        part.unlink(missing_ok=True)
        try:
            with part.open("xb") as file:
                file.write(bytes(MARGIN))
            with h5py.File(part, "w", locking=False) as written:
                written["rows"] = [1, 2, 3]
                written.flush()
                with h5py.File(part, "r", locking=False) as read:
                    if read["rows"][:].tolist() != [1, 2, 3]:
                        raise BadInput(f"{held.path}: what is written cannot be read; {INSTEAD}")
        finally:
            part.unlink(missing_ok=True)


def open_result(path: Path) -> h5py.File:
    """Opens a result for reading, finished or not.

    Raises:
        RecordError: if the file is missing, or is not a result.
    """
    with told(path, kind=RecordError):
        is_there = path.is_file()
    if not is_there:
        kind = "no plain file" if os.path.lexists(path) else "no such file"
        raise RecordError(f"{path}: {kind}; wanted a result (HDF5)")
    try:
        # No lock, because a run in progress still writes to the file.
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        if number(error) is not None:
            raise RecordError(sentence(path, error)) from None
        raise Damaged(f"{path}: not an HDF5 file, or one that was cut off") from None
    try:
        if "settings" not in file.attrs or "rounds" not in file:
            raise Damaged(f"{path}: HDF5, but not a result: it holds no settings")
        if (found := int(file.attrs.get("format", FORMAT))) > FORMAT:
            raise RecordError(
                f"{path}: a result of a later version of fedmpi, of format {found}; wanted one of "
                f"format {FORMAT} or before: update fedmpi to read it"
            )
    except BaseException as error:
        file.close()
        if isinstance(error, DAMAGE) and not isinstance(error, RecordError):
            raise damaged(path, error) from None
        raise
    return file


def read(path: Path, get: Callable[[h5py.File], Found]) -> Found:
    """Returns what `get` finds in a result.

    A reader may find a file that is just being written in disorder. It tries again, unless nobody
    is writing.

    Raises:
        RecordError: if the file is missing, damaged, or no result.
    """
    for left in reversed(range(TRIES)):
        try:
            with open_result(path) as file:
                return get(file)
        except Exception as error:
            if not isinstance(error, DAMAGE) or (
                isinstance(error, BadInput) and not isinstance(error, Damaged)
            ):
                raise
            if not left or lease.holder(path) is None:
                raise error if isinstance(error, Damaged) else damaged(path, error) from None
        sleep(NAP)
    raise AssertionError


def content(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the attributes of a result, and its tables.

    Raises:
        RecordError: if the file is missing, damaged, or no result.
    """

    def everything(file: h5py.File) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return dict(file.attrs), {name: rows(file, name) for name in tables.TABLES}

    return read(path, everything)


def damaged(path: Path, error: BaseException) -> Damaged:
    """Returns the error for a result that makes its reader raise another error."""
    said = " ".join(str(error).split()) or type(error).__name__
    is_hdf5 = isinstance(error, OSError | RuntimeError) or "Unable to" in said
    if isinstance(error, KeyError) and (lacking := re.search(r"'([^' ]+)'", said)):
        said = f"it lacks {lacking[1]}"
    elif is_hdf5 and number(error) is None:  # HDF5's words
        said = "its content cannot be read"
    said = said.replace("no field of name", "a table lacks the column")  # numpy's words
    return Damaged(f"{path}: a damaged result: {said}")


def rows(file: h5py.File, table: str) -> np.ndarray:
    """Returns a table of a result; it is empty if the result is older than the table.

    Raises:
        KeyError: if the file lacks a table that every result has.
        ValueError: if it has other columns, or claims more rows than it holds.
    """
    if table in tables.LATER and table not in file:
        return tables.empty(tables.TABLES[table], 0)
    data = file[table]
    first = next(iter(tables.TABLES[table]))
    if first not in (data.dtype.names or ()):
        raise ValueError(f"the table {table} lacks the column {first}")
    if _is_short(data):
        raise ValueError(f"the table {table} lacks rows")
    return data[:]


def _is_short(data: h5py.Dataset) -> bool:
    """Whether a table claims more rows than the file holds."""
    if data.chunks is None:
        return bool(data.nbytes > data.id.get_storage_size())
    return bool(len(data) > data.id.get_num_chunks() * data.chunks[0])


def before(found: Mapping[str, np.ndarray], first: int, t: int) -> dict[str, np.ndarray] | None:
    """Returns the rows of rounds before round t, for another job to go on from.

    Args:
        found: the tables of a result, see `content`.
        first: the first round of the run.
        t: the round.

    Returns:
        Rows by table; None if the tables are those of another version, or a round is not there.
    """
    kept = {}
    for name, columns in tables.TABLES.items():
        rows, wanted = found[name], tables.empty(columns, 0)
        if rows.dtype != wanted.dtype:
            return None
        kept[name] = rows[rows["round"] < t] if name in tables.OF_ROUNDS else wanted
    return kept if kept["rounds"]["round"].tolist() == list(range(first, t)) else None


def is_named(path: Path) -> bool:
    """Whether a path is named as results are, and is no folder, whether or not it is there."""
    return path.suffix.lower() in SUFFIXES and not os.path.isdir(path)


def file_of(out: Path, method: str, identity: str) -> Path:
    """Returns the path of a run's file: `out` if it is named as one, else a file in that folder."""
    return out if is_named(out) else out / f"{method}-{identity}.h5"


def is_result(path: Path) -> bool:
    """Whether a file is to be read as a result: by its name, or by its first bytes."""
    if is_named(path):
        return True
    try:
        if not os.path.isfile(path):  # what comes through a pipe comes once
            return False
        with path.open("rb") as file:
            return file.read(len(weights.RESULT)) == weights.RESULT
    except OSError:
        return False


def parsed(about: Mapping[str, Any], name: str) -> Any:
    """Returns the value of an attribute that is JSON.

    Raises:
        KeyError: if there is none.
        ValueError: if it is none.
    """
    try:
        return json.loads(about[name])
    except (TypeError, ValueError):
        raise ValueError(f"its {name} are no JSON") from None


def settings_of(path: Path) -> dict[str, Any]:
    """Returns the complete settings of a recorded run.

    Raises:
        RecordError: if the file is missing, damaged, or no result.
    """
    found = read(path, lambda file: parsed(file.attrs, "settings"))
    if not isinstance(found, dict):
        raise Damaged(f"{path}: a damaged result: wanted a table of settings, found {found!r}")
    return found


def changed(about: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns what a run had otherwise than by itself, as `loading.changes` found it.

    Args:
        about: the attributes of its result; those of earlier versions do not say it.
    """
    return parsed(about, "changed") if "changed" in about else None


def paper_of(about: Mapping[str, Any]) -> str | None:
    """Returns the method whose paper's values a run took where nothing was written; or none."""
    return str(about["paper"]) if about.get("paper") else None


def resumes(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns what a result says of the jobs that went on with its run: a table for each.

    Args:
        about: its attributes; those of earlier versions do not say it.
    """
    return parsed(about, "resumed") if "resumed" in about else []


def code_of(about: Mapping[str, Any]) -> dict[str, str]:
    """Returns the SHA-256 of a run's sources, by module.

    Args:
        about: the attributes of its result, or the table of a job that went on with it; the latter
            has them only if they had changed, and results of earlier versions have none.
    """
    found = about.get("code_sha256", {})
    return found if isinstance(found, dict) else parsed(about, "code_sha256")


def files_of(about: Mapping[str, Any]) -> dict[str, str]:
    """Returns the SHA-256 of the files that a run's settings name, by the settings' paths.

    Args:
        about: the attributes of its result. Those of earlier versions may have the trace's alone.
    """
    found = parsed(about, "files_sha256") if "files_sha256" in about else {}
    if "trace_sha256" in about:
        found["trace"] = about["trace_sha256"]
    return found


def identity_of(about: Mapping[str, Any]) -> str:
    """Returns a run's identity, from the settings and files that its result records.

    The recorded one may be of a version that told runs apart by other settings.

    Args:
        about: the attributes of its result.
    """
    return config.identity(parsed(about, "settings"), files_of(about))


def data_of(path: Path) -> str:
    """Returns the hash of the data set of a recorded run; "" if it has none."""
    return read(path, lambda file: str(file.attrs.get("data_sha256", "")))


def state_of(path: Path, identity: str) -> str | None:
    """Returns the status of the run with that identity at `path`, or None if there is no file.

    Raises:
        RecordError: if the file is not this run's, and must not be replaced; a `Damaged` one, if
            that cannot be known.
    """
    with told(path, INSTEAD, RecordError):
        if not os.path.lexists(path):
            return None
        path.stat()  # a link that leads nowhere
    try:
        found, status = read(path, lambda f: (identity_of(f.attrs), str(f.attrs["status"])))
    except Damaged as error:
        raise Damaged(f"{error}; remove it to run it again") from None
    if found != identity:
        raise RecordError(
            f"{path}: holds the run {found}; wanted the run {identity}, or no such file"
        )
    return status


def begin(path: Path, say: Callable[[str], None] = lambda text: None) -> Lease:
    """Takes the lease of a result, and makes sure that it can be written.

    Args:
        path: the result; its folder is made.
        say: told why it takes time, if it does.

    Raises:
        BadInput: if somebody else is writing it, or nothing can be written there.
    """
    with told(path, INSTEAD):
        path.parent.mkdir(parents=True, exist_ok=True)
    held = lease.take(path, say)
    try:
        try_out(held)
    except BaseException:
        held.release()
        raise
    return held


def mark_failed(path: Path) -> None:
    """Changes the status `running` to `failed`, if there is such a file and nobody is writing it.

    It only describes what has happened: if it cannot be written, it is not.
    """
    with suppress(BadInput, OSError, RuntimeError):
        if read(path, lambda file: str(file.attrs["status"])) == RUNNING:
            with lease.take(path):
                _mark(path)


def _mark(path: Path) -> None:
    """Changes the status `running` to `failed`; the lease is held."""
    room = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:  # as for a record: HDF5 begins nothing that the disk has no room for
        size = os.fstat(room).st_size
        os.posix_fallocate(room, size, MARGIN)
    finally:
        os.close(room)
    with h5py.File(path, "r+", locking=False) as file:
        if file.attrs["status"] == RUNNING:
            file.attrs["status"] = FAILED
