"""Whether a run is there already: with the same settings, and with the same content of files.

Files that settings name are part of a run's identity. A data set may be large, and is known by the
hash of its arrays, which a result records.

A result is known by what it records, and not by its name: versions before this one told runs apart
by other settings, and named files after that.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from fedmpi import config, datasets, provenance
from fedmpi.config import Settings
from fedmpi.data.files import DataError
from fedmpi.errors import BadInput
from fedmpi.results import checkpoint, lease, record
from fedmpi.results.record import RecordError


def place(out: Path, settings: Settings) -> Path:
    """Returns the result file of a run: the one that there is, or else the one to be written.

    In a folder it is named after the method and the run's identity. If there is no such file, any
    other of the method's that holds this run is it, a finished one before others.

    Args:
        out: the file itself, or a folder for it.
        settings: of the run.
    """
    identity = settings.identity()
    path = record.file_of(out, settings.method.name, identity)
    if path == out or os.path.lexists(path):
        return path
    same = _results(out, settings.method.name, identity)
    found = {file: status for file in same if (status := _state(file, identity)) is not None}
    done = (file for file, status in found.items() if status in record.FINISHED)
    return next(done, next(iter(found), path))


def tidy(path: Path) -> None:
    """Removes what is left beside a finished result by a job that was killed at its very end.

    These are checkpoints and the lock. If another job holds the lock, or nothing can be written
    there, they stay.
    """
    is_left = checkpoint.folder_of(path).exists() or lease.is_there(path)
    if is_left and lease.holder(path) is None:
        with suppress(BadInput), lease.take(path):
            checkpoint.remove(path)


def _results(out: Path, method: str, identity: str) -> list[Path]:
    """The files of a folder that hold a run of this method and identity, sorted by name."""
    found = []
    with suppress(OSError), os.scandir(out) as entries:
        for entry in entries:
            if entry.name.startswith(f"{method}-") and entry.name.endswith(".h5"):
                with suppress(RecordError):
                    about = entry.inode(), entry.stat().st_mtime_ns
                    if _identity(entry.path, *about) == identity:
                        found.append(out / entry.name)
    return sorted(found)


@cache
def _identity(path: str, number: int, written: int) -> str:
    """The identity of the run in a file, which is read once, unless it changes.

    Args:
        path: of the file.
        number: of the file on its disk. A run that replaces another one comes in a new file, which
            may take over the number.
        written: when it was written to.
    """
    return record.read(Path(path), lambda file: record.identity_of(file.attrs))


def _state(path: Path, identity: str) -> str | None:
    """The status of a run with that identity; None if the file holds it no longer."""
    with suppress(RecordError):
        return record.state_of(path, identity)
    return None


def state(path: Path, settings: Settings) -> str | None:
    """Returns the status of a run at `path`, or None if there is no file.

    Raises:
        RecordError: if the file is another run's, or this run's on a data set that has changed
            since. A data set that is not here cannot be compared.
    """
    found = record.state_of(path, settings.identity())
    recorded = record.data_of(path) if found in record.FINISHED else ""
    if recorded:
        try:
            here = datasets.load(settings)
        except DataError:
            return found
        if here.sha256 != recorded:
            raise RecordError(
                f"{path}: holds the run on other data, of SHA-256 {recorded}; wanted data of "
                f"{here.sha256}, or no such file"
            )
    return found


def code(settings: Settings) -> dict[str, str]:
    """Returns the SHA-256 of the sources that are a run's own, by module.

    These are its method with all that its two halves and its settings derive from, its model and
    its data set. Methods in folders have one hash for all of their files.
    """
    method = config.module("method", settings.method.name)
    names = {
        config.module(table, getattr(settings, table).name).__name__ for table in ("model", "data")
    }
    for kind in (method.Config, method.Server, method.Clients):
        for base in kind.__mro__:
            first, *rest = base.__module__.split(".")
            if first == "fedmpi" and rest != ["config"]:
                names.add(".".join([first, *rest[:2]]))
    return {name.removeprefix("fedmpi."): provenance.source(name) for name in sorted(names)}


def changes(about: Mapping[str, Any]) -> str:
    """Says which sources of a recorded run differ from those here; empty if none does.

    Args:
        about: the attributes of its result; those of earlier versions do not name them.
    """
    jobs = [about, *record.resumes(about)]
    for then in (record.code_of(job) for job in jobs):
        now = {}
        for name in then:
            with suppress(OSError):
                now[name] = provenance.source(f"fedmpi.{name}")
        if then != now:
            return differences(then, now)
    return ""


def verdict(path: Path, status: str) -> tuple[str, str]:
    """What is said of a run that is finished already, in few words, and more of it.

    Args:
        path: its result.
        status: its status.
    """
    changed = record.read(path, lambda file: changes(dict(file.attrs)))
    if not changed:
        return f"{status} already", ""
    return f"{status} by other code", f" ({changed}); --again runs it anew"


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Says which sources differ, and how: the first digits of their hashes."""
    names = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    return ", ".join(
        f"{name} then {then.get(name, 'absent')[:8]}, now {now.get(name, 'absent')[:8]}"
        for name in names
    )
