"""Source files of data sets: search, contents, and comparison with the official ones.

Files are searched for in each of the folders `places`, and in their folders to two levels below.
Any fault of a file is a `DataError` that names it. Nothing is written here.
"""

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedmpi.errors import BadInput

USUAL = (
    "data",
    "../data",
    "../shared/data",
    "~/data",
    "~/.cache/fedmpi",
    "/usr/share/datasets",
)
"""Folders that are searched if the settings name none."""

DEPTH = 2
"""Levels of folders that are searched below each of the places."""


ARCHIVES = (".tar.gz", ".zip")
"""Suffixes of archives that can be unpacked."""


@dataclass(frozen=True)
class Source:
    """An official file, as a data set's module lists it for `fetch`.

    Attributes:
        urls: addresses of the file; the official one first, then mirrors.
        path: path below the folder for data, of the file itself, or of the folder in an archive.
        md5: digest of the file; None if unknown.
    """

    urls: tuple[str, ...]
    path: str
    md5: str | None = None

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.urls[0].rpartition("/")[2]

    @property
    def is_archive(self) -> bool:
        """Whether it has to be unpacked."""
        return self.name.endswith(ARCHIVES)


class DataError(BadInput):
    """Missing or malformed files; says which folders were searched, and what to do."""


def places(root: str | None) -> list[Path]:
    """Returns the folders to search, in order: `root` alone, or else `$FEDMPI_DATA` and `USUAL`."""
    named = os.environ.get("FEDMPI_DATA")
    texts = (root,) if root is not None else (*([named] if named else []), *USUAL)
    return [Path(os.path.abspath(os.path.expanduser(text))) for text in texts]


def why_no_folder(place: Path) -> str:
    """Says why a place cannot be searched; "" if it is a folder."""
    if os.path.isdir(place):
        return ""
    return "it is no folder" if os.path.lexists(place) else "no such folder"


def find(root: str | None, inside: Sequence[str], holds: Callable[[Path], bool]) -> Path | None:
    """Returns the first folder that `holds` a data set, or None.

    Args:
        root: the setting (see `places`).
        inside: paths below a searched folder that the set's layout may add, such as "raw"; "" is
            the folder itself.
        holds: whether a folder holds the set.
    """
    for place in places(root):
        for folder in _folders(place, DEPTH):
            for path in inside:
                # What cannot be looked at, such as a path that is too long, holds nothing.
                with suppress(OSError):
                    if holds(folder / path):
                        return folder / path
    return None


def _folders(top: Path, depth: int) -> Iterator[Path]:
    """Yields a folder and those below it, nearer ones first, sorted by name."""
    level = [top]
    for _ in range(depth + 1):
        yield from level
        level = [below for folder in level for below in _inner(folder)]


def _inner(folder: Path) -> list[Path]:
    """Returns the readable folders in a folder; empty if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if _is_folder(entry))
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # `entry.is_dir()` alone would raise for a link to an inaccessible place.
    linked = entry.is_symlink() and os.path.isdir(entry.path)
    return linked or entry.is_dir(follow_symlinks=False)


def missing(
    title: str, root: str | None, wanted: str, source: str, archives: Sequence[str] = ()
) -> DataError:
    """Returns the error for a missing set: files wanted, folders searched, how to get it.

    Args:
        title: the set.
        root: the setting (see `places`).
        wanted: the files.
        source: where they come from.
        archives: names of archives that hold the set; one that is there is named.
    """
    found = ((name, find(root, ("",), partial(_has, name))) for name in archives)
    packed = "".join(f"\n{folder / name}: unpack it" for name, folder in found if folder)
    looked = "".join(
        f"\n  {place}" + (f" ({reason})" if (reason := why_no_folder(place)) else "")
        for place in places(root)
    )
    return DataError(
        f"no {title}; wanted {wanted}, looked in these folders and {DEPTH} levels below:{looked}"
        f"{packed}\n"
        f"To get it: {source}; then set data.root or $FEDMPI_DATA to the folder."
    )


def _has(name: str, folder: Path) -> bool:
    return os.path.isfile(folder / name)


def contents(path: Path) -> bytes:
    """Returns the bytes of a file, decompressed if its name ends in `.gz`.

    Raises:
        DataError: if it cannot be read, is not gzip, or is truncated.
    """
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            return file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: wanted a whole gzip file, found: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def either(folder: Path, name: str) -> Path | None:
    """Returns the path of the file with that name, of its gzip version, or None."""
    # Unlike the method of Path, `isfile` is false in a folder without access.
    return next((p for p in (folder / name, folder / f"{name}.gz") if os.path.isfile(p)), None)


def all_of(folder: Path, pattern: str) -> list[Path]:
    """Returns the files of a folder whose names match, sorted; not hidden ones, as macOS leaves."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def one(folder: Path, name: str) -> Path:
    """Returns the path of the file with that name, or of its gzip version.

    Raises:
        DataError: if there is neither.
    """
    path = either(folder, name)
    if path is None:
        raise DataError(f"{folder}: wanted a file {name} or {name}.gz, found neither")
    return path


def origin(paths: Sequence[Path], known: Mapping[str, str]) -> str:
    """Says in words whether files are the official ones.

    Args:
        paths: the files.
        known: MD5 digests of official files by name; a name without `.gz` is for the content.

    Returns:
        "official", "unknown" if no digest of any file is known, or which files differ.
    """
    judged = {path: _is_official(path, known) for path in paths}
    differ = [path.name for path, verdict in judged.items() if verdict is False]
    if differ:
        return f"not the official {', '.join(differ)}"
    return "official" if all(judged.values()) else "unknown"


def _is_official(path: Path, known: Mapping[str, str]) -> bool | None:
    """Whether a file has the known digest; None if none is known for its name."""
    found = []
    if path.name in known:
        found.append(known[path.name] == md5(path))
    if path.suffix == ".gz" and path.stem in known:
        # A file that was compressed again has other bytes, but the same content.
        content = hashlib.md5(contents(path), usedforsecurity=False)
        found.append(known[path.stem] == content.hexdigest())
    return any(found) if found else None


def md5(path: Path) -> str:
    """Returns the MD5 digest of a file, in hexadecimal.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            made = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    return made.hexdigest()
