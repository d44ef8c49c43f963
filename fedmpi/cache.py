"""Data sets as they are after decoding, in files that all ranks of a node map into memory.

The first to want a set decodes it, under a lock; whoever comes meanwhile waits, and all find one
folder of arrays. Mapped, a node holds it once in its memory, however many ranks it has. A folder
appears under its name only when it is whole. It may be removed whenever no run uses it.
"""

import dataclasses
import hashlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock
from platformdirs import user_cache_path

from fedmpi import config, files, layouts
from fedmpi.data import Dataset
from fedmpi.files import DataError

ABOUT = "about.json"
"""The file with what is no array, written last."""


def folder(settings: config.Data) -> Path:
    """Where decoded sets lie: `data.cache`, or $FEDMPI_CACHE, or below the user's cache folder."""
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
    """The data set that `decode` makes of the source files, decoded once and mapped into memory.

    It is decoded anew if a source file, a setting or the program that reads it changes. Who writes
    to the arrays of the result changes a copy of his own.

    Args:
        settings: the table `[data]`.
        sources: every file that `decode` reads.
        known: MD5 digests of the official ones, see `files.origin`.
        decode: reads them; a function of the set's own module.

    Raises:
        DataError: what `decode` raises, or if the folder of the cache cannot be written to.
    """
    home = folder(settings)
    name = decode.__module__.rpartition(".")[2].replace("_", "-")
    whole = home / f"{name}-{_key(settings, sources, decode)}"
    found = _mapped(whole)
    if found is not None:
        return found
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{whole}.lock"):
            found = _mapped(whole)
            if found is not None:
                return found
            # Left by those who were killed: nobody else works on this set while we hold the lock.
            for rest in (whole, *home.glob(f"{whole.name}.*.part")):
                shutil.rmtree(rest, ignore_errors=True)
            origin = files.origin(sources, known)
            _write(dataclasses.replace(decode(), origin=origin), whole)
    except OSError as error:
        raise DataError(
            f"{home}: {error.strerror or error}; wanted a folder for decoded data, with room; "
            "data.cache or $FEDMPI_CACHE may name another"
        ) from None
    found = _mapped(whole)
    assert found is not None
    return found


def _key(settings: config.Data, sources: Sequence[Path], decode: Callable[[], Dataset]) -> str:
    """Sixteen hex digits that change with whatever the arrays depend on."""
    chosen = settings.model_dump(mode="json", exclude={"name", "root", "cache"})
    seen = [(str(path.resolve()), *_version(path)) for path in sources]
    digest = hashlib.sha256(json.dumps([chosen, seen], sort_keys=True).encode())
    readers = sorted(Path(layouts.__path__[0]).glob("*.py"))
    own = Path(inspect.getfile(inspect.unwrap(decode)))
    for path in (own, Path(files.__file__), Path(inspect.getfile(Dataset)), *readers):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _version(path: Path) -> tuple[int, int]:
    """A file's size, and when it was changed."""
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    return stat.st_size, stat.st_mtime_ns


def _write(found: Dataset, whole: Path) -> None:
    """Makes the folder `whole` of the set, in one step as others see it."""
    part = Path(tempfile.mkdtemp(prefix=f"{whole.name}.", suffix=".part", dir=whole.parent))
    try:
        about = {}
        for field in dataclasses.fields(found):
            value = getattr(found, field.name)
            if isinstance(value, np.ndarray):
                np.save(part / f"{field.name}.npy", value, allow_pickle=False)
            else:
                about[field.name] = value
        (part / ABOUT).write_text(json.dumps(about))
        part.chmod(0o755)  # the temporary folder is its maker's alone
        part.rename(whole)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _mapped(whole: Path) -> Dataset | None:
    """The set in a folder; None if there is none, or it is damaged."""
    try:
        about = json.loads((whole / ABOUT).read_text())
        # Mapped for copying on write: torch does not take arrays that cannot be written to.
        arrays = {p.stem: np.load(p, mmap_mode="c") for p in sorted(whole.glob("*.npy"))}
        return Dataset(**about, **arrays)
    except (OSError, ValueError, TypeError):
        return None
