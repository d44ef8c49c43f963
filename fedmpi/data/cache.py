"""Cache of decoded data sets, in files that all ranks of a node map into memory.

The first process that needs a set decodes it, under a lock; others wait, and all use the same
folder of arrays. Since the arrays are mapped, a node holds each set in memory once, however many
ranks it has. A folder gets its final name only when it is complete. It may be removed whenever no
run uses it. A process that opens a set compares its arrays with the hash that is kept beside them;
a damaged set is decoded again.
"""

import dataclasses
import errno
import hashlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from platformdirs import user_cache_path

from fedmpi import config
from fedmpi.data import Dataset, content, files, layouts, repeated
from fedmpi.data.files import DataError
from fedmpi.errors import told

ABOUT = "about.json"
"""File with all fields that are no arrays, written last."""
ARRAYS = "arrays"
"""Key in that file of the list of array names."""
SEAL = "seal"
"""Key in that file of the hash of all other keys."""
PIECE = 2**20
"""Bytes of an array that are hashed at once."""

_sound: set[tuple[str, tuple[tuple[int, ...], ...]]] = set()
"""Folders whose content this process has compared with its hash, and their files' versions."""


def folder(settings: config.Data) -> Path:
    """Returns the cache's folder: `data.cache`, $FEDMPI_CACHE, or in the user's cache folder."""
    named = settings.cache or os.environ.get("FEDMPI_CACHE")
    if named:
        return Path(os.path.abspath(os.path.expanduser(named)))
    return user_cache_path("fedmpi") / "decoded"


def decoded(
    settings: config.Data,
    sources: Sequence[Path],
    known: Mapping[str, str],
    decode: Callable[[], Dataset],
) -> Dataset:
    """Returns the data set that `decode` reads, decoded once and mapped into memory.

    It is decoded again if a source file, a setting or the code that reads it changes. The arrays
    are mapped copy-on-write: writing to them does not change the files.

    Args:
        settings: the table `[data]`.
        sources: every file that `decode` reads; for a set with very many files some files and
            folders that change with the rest.
        known: MD5 digests of the official files (see `files.origin`).
        decode: reads the files; a function of the set's own module.

    Raises:
        DataError: as `decode` raises, or if a source changed meanwhile, or if the folder of the
            cache cannot be written to.
    """
    home = folder(settings)
    name = decode.__module__.rpartition(".")[2].replace("_", "-")
    key = _key(settings, sources, decode, name)
    whole = home / f"{name}-{key}"
    found = _mapped(whole)
    if found is not None:
        return found
    with _lock(home, whole.name):
        found = _mapped(whole)
        if found is not None:
            return found
        fresh = decode()
        fresh = dataclasses.replace(
            fresh,
            origin=files.origin(sources, known),
            repeated=repeated(fresh.train_x, fresh.test_x),
            sha256=content(fresh),
        )
        if _key(settings, sources, decode, name) != key:
            raise DataError(f"{sources[0].parent}: files of {name} changed while they were read")
        with _room(home):
            # Left by killed processes: only we work on this set while we hold the lock.
            for rest in (whole, *home.glob(f"{whole.name}.*.part")):
                shutil.rmtree(rest, ignore_errors=True)
            _write(fresh, whole)
    found = _mapped(whole)
    if found is None:
        raise DataError(f"{whole}: cannot be read although it was just written; remove it")
    return found


@contextmanager
def _room(home: Path) -> Iterator[None]:
    """Turns errors of the cache's folder into a `DataError` that says what to do."""
    with told(home, "name another folder for decoded data: data.cache or $FEDMPI_CACHE", DataError):
        try:
            yield
        except NotImplementedError:
            raise OSError(errno.ENOLCK, "") from None


@contextmanager
def _lock(home: Path, name: str) -> Iterator[None]:
    """Holds the lock of one set; the kernel releases it if the process is killed."""
    with _room(home):
        home.mkdir(parents=True, exist_ok=True)
        lock = FileLock(home / f"{name}.lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _key(
    settings: config.Data, sources: Sequence[Path], decode: Callable[[], Dataset], name: str
) -> str:
    """Returns sixteen hex digits that change with everything that the arrays depend on.

    Raises:
        DataError: if a source of the set `name` cannot be found.
    """
    chosen = settings.model_dump(mode="json", exclude={"name", "root", "cache"})
    seen = [(str(path.resolve()), *_version(path, name)) for path in sources]
    digest = hashlib.sha256(json.dumps([chosen, seen], sort_keys=True).encode())
    readers = sorted(Path(layouts.__path__[0]).glob("*.py"))
    own = Path(inspect.getfile(inspect.unwrap(decode)))
    ours = (Path(files.__file__), Path(inspect.getfile(Dataset)), Path(__file__))
    for path in (own, *ours, *readers):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _version(path: Path, name: str) -> tuple[int, int]:
    """Returns size and time of change of a file or folder of the set `name`."""
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; wanted every part of {name} in one folder: fedmpi list "
            f"data {name} says how to get it"
        ) from None
    return stat.st_size, stat.st_mtime_ns


def _write(found: Dataset, whole: Path) -> None:
    """Writes a set to the folder `whole`, which appears atomically."""
    part = Path(tempfile.mkdtemp(prefix=f"{whole.name}.", suffix=".part", dir=whole.parent))
    try:
        about: dict[str, Any] = {ARRAYS: []}
        for field in dataclasses.fields(found):
            value = getattr(found, field.name)
            if isinstance(value, np.ndarray):
                about[ARRAYS].append(field.name)
                array = np.ascontiguousarray(value)
                np.save(part / f"{field.name}.npy", array, allow_pickle=False)
            else:
                about[field.name] = value
        about[SEAL] = _seal(about)
        (part / ABOUT).write_text(json.dumps(about), encoding="utf-8")
        part.chmod(0o755)  # the temporary folder is its maker's alone
        try:
            part.rename(whole)
        except OSError:
            # Another node made it, and the file system showed that late.
            if _mapped(whole) is None:
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _mapped(whole: Path) -> Dataset | None:
    """Returns the set in a folder; None if there is none, or if it is damaged."""
    try:
        about = json.loads((whole / ABOUT).read_text(encoding="utf-8"))
        if about.pop(SEAL) != _seal(about):
            return None
        names = about.pop(ARRAYS)
        for name in names:
            # Mapped copy-on-write, because torch refuses read-only arrays.
            about[name] = np.asarray(np.load(whole / f"{name}.npy", mmap_mode="c"))
        found = Dataset(**about)
        return found if _is_sound(whole, [f"{name}.npy" for name in names], found) else None
    except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _seal(about: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of the fields that are no arrays, in hex."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _is_sound(whole: Path, names: Sequence[str], found: Dataset) -> bool:
    """Whether the arrays in a folder have the set's hash; once per process and version of them."""
    stats = [(whole / name).stat() for name in names]
    version = tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats)
    if (str(whole), version) not in _sound:
        held = content(found, lambda name, value: _pieces(whole / f"{name}.npy", value))
        if held != found.sha256:
            return False
        _sound.add((str(whole), version))
    return True


def _pieces(path: Path, value: np.ndarray) -> Iterator[memoryview]:
    """Reads an array's bytes from its file, so that they do not count as the process's memory."""
    with path.open("rb") as file:
        file.seek(-value.nbytes, os.SEEK_END)
        while piece := file.read(PIECE):
            yield memoryview(piece)
