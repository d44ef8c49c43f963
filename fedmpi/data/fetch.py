"""Downloads data sets from their official addresses, on machines with a network.

No other part of this program opens a connection to the outside, and no run does. A file is named
`NAME.part` until it is complete and its digest is right; the next fetch continues it. An archive is
unpacked beside its final place, and moved there when it is complete.
"""

import gzip
import os
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from shutil import disk_usage
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from fedmpi import config, loading
from fedmpi.data import files
from fedmpi.data.files import DataError, Source
from fedmpi.errors import told

TRIES = 4
"""Consecutive connections without any data after which an address is given up."""
PAUSE = 1.0
"""Seconds between two such connections."""
PATIENCE = 30
"""Seconds to wait for a silent server."""
CHUNK = 2**16
"""Bytes that are written at a time."""
FINAL = (401, 403, 404, 410)
"""HTTP statuses after which a retry is useless."""
BROKEN = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error),
    *(EOFError, RuntimeError, UnicodeError),
)
"""Exceptions that a damaged or encrypted archive may raise."""


def fetch(name: str, to: str | None = None) -> None:
    """Downloads the files of a data set that are missing, and prints where it is.

    Args:
        name: name of the set.
        to: folder for data; by default `$FEDMPI_DATA`, or else `data` in the current folder.

    Raises:
        ConfigError: if there is no such set, or the folder can be no setting.
        DataError: if its files cannot be downloaded; says how to place them by hand.
    """
    loading.load({"data": {"name": name} | ({} if to is None else {"root": to})})
    module, console = config.module("data", name), Console(highlight=False, markup=False)
    sources: tuple[Source, ...] = getattr(module, "SOURCES", ())
    if not sources:
        # The module's own error says how to get the files.
        found = module.where(module.Config())
        console.print(f"{name}: " + (f"in {found} already" if found else "needs no files"))
        return
    folder = files.places(to)[0]
    for source in sources:
        path = folder / source.path
        if path.exists():
            differs = path.is_file() and source.md5 not in (None, files.md5(path))
            note = ", but its MD5 is not the known one" if differs else ""
            console.print(f"{path}: there already{note}", soft_wrap=True)
            continue
        try:
            _place(source, folder, console)
        except _Gone as error:
            raise DataError(f"{error}\n{_by_hand(name, sources, folder)}") from None
    found, hint = module.where(module.Config(root=str(folder))), f"data.root={folder} finds it"
    with suppress(DataError):
        if module.where(module.Config()) == found:
            hint = "runs that start here find it by themselves"
    console.print(f"{name} is in {found}; {hint}", soft_wrap=True)


def _by_hand(name: str, sources: tuple[Source, ...], folder: Path) -> str:
    """Returns instructions to place the missing files by hand, if there is no network."""
    lines = [
        f"\n  {source.urls[0]}\n    as {_place_of(source, folder)}"
        for source in sources
        if not (folder / source.path).exists()
    ]
    return (
        f"Where there is no network, fetch these elsewhere, place{''.join(lines)}\n"
        f"and say fedmpi data fetch {name} --to {folder} again, which checks and unpacks them."
    )


def _place_of(source: Source, folder: Path) -> Path:
    """Returns the path of the file itself, that is of an archive before it is unpacked."""
    path = folder / source.path
    return path.with_name(source.name) if source.is_archive else path


def _place(source: Source, folder: Path, console: Console) -> None:
    """Downloads one file, unless it is there, and unpacks it if it is an archive."""
    file = _place_of(source, folder)
    with _written(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            _download(source, file, console)
        if source.is_archive:
            console.print(f"{file}: being unpacked", soft_wrap=True)
            if source.md5 not in (None, found := files.md5(file)):
                raise DataError(f"{file}: wanted MD5 {source.md5}, found {found}; remove it")
            _unpack(file, folder / source.path)


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Turns errors of a folder into a `DataError`."""
    with told(folder, "name another folder with --to", DataError):
        yield


def _download(source: Source, file: Path, console: Console) -> None:
    """Downloads a file from the first of its addresses that has it.

    Raises:
        _Gone: if none of them has it; gives the reason for each.
    """
    part, reasons = file.with_name(f"{file.name}.part"), []
    for url in source.urls:
        # The part that was there before may be of another file: try once more from the beginning.
        for _ in range(2 if part.exists() else 1):
            try:
                _stream(url, part, console)
            except _Lost as error:
                reasons.append(f"{url}: {error}")
                break
            found = files.md5(part)
            if source.md5 in (None, found):
                part.replace(file)
                judged = "has the known MD5" if source.md5 else "no MD5 is known of it"
                console.print(f"{file}: fetched from {url}, {judged}", soft_wrap=True)
                return
            part.unlink()
            reasons.append(f"{url}: wanted MD5 {source.md5}, found {found}")
    raise _Gone("\n".join(reasons))


class _Gone(DataError):
    """A file that no address has."""


class _Lost(Exception):
    """An incomplete download; gives the reason, and whether to retry."""

    def __init__(self, reason: object, is_final: bool = False) -> None:
        super().__init__(str(reason))
        self.is_final = is_final


def _stream(url: str, part: Path, console: Console) -> None:
    """Appends to a file until it is complete, however often the connection breaks.

    Raises:
        _Lost: if no more data arrive.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(part.stem, total=None)
        idle, most = 0, _size(part)
        while True:
            try:
                return _receive(url, part, partial(progress.update, task))
            except _Lost as error:
                idle = 0 if _size(part) > most else idle + 1
                most = max(most, _size(part))
                if error.is_final or idle == TRIES:
                    raise
            time.sleep(PAUSE)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _receive(url: str, part: Path, tell: Callable[..., None]) -> None:
    """Appends the rest of a file over one connection, or all of it if the server cannot resume.

    Raises:
        _Lost: if the file is not complete at the end.
    """
    start = _size(part)
    headers = {"User-Agent": "fedmpi", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        answer = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), None, PATIENCE
        )
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if error.headers.get("Content-Range") == f"bytes */{start}":
                return  # nothing was left
            part.unlink()
        raise _Lost(f"{error.code} {error.reason}", error.code in FINAL) from None
    except (OSError, HTTPException) as error:
        raise _Lost(getattr(error, "reason", error)) from None
    with answer:
        place = answer.headers.get("Content-Range", "")
        goes_on = answer.status == HTTPStatus.PARTIAL_CONTENT
        if goes_on and not place.startswith(f"bytes {start}-"):
            raise _Lost(f"wanted bytes from {start} on, found '{place}'", is_final=True)
        done, length = start if goes_on else 0, answer.headers.get("Content-Length")
        total = done + int(length) if length else None
        with part.open("ab" if goes_on else "wb") as file:
            while chunk := _read(answer):
                file.write(chunk)
                done += len(chunk)
                tell(completed=done, total=total)
    if total not in (None, done):
        raise _Lost(f"the connection was cut after {done} of {total} bytes")


def _read(answer: HTTPResponse) -> bytes:
    """Reads the next bytes of a response; its errors are kept apart from those of the disk."""
    try:
        return answer.read(CHUNK)
    except (OSError, HTTPException) as error:
        raise _Lost(error) from None


def _unpack(file: Path, folder: Path) -> None:
    """Unpacks an archive's folder of the given name atomically, and removes the archive.

    Raises:
        DataError: if it is damaged, has no such folder, or has files that would lie outside.
    """
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{folder.name}-") as place:
        try:
            (_unzip if file.suffix == ".zip" else _untar)(file, place)
        except BROKEN as error:
            raise DataError(f"{file}: wanted a whole archive, found: {error}; remove it") from None
        inside = Path(place) / folder.name
        if not inside.is_dir():
            found = ", ".join(sorted(os.listdir(place))) or "nothing"
            raise DataError(f"{file}: wanted a folder {folder.name} in it, found {found}")
        inside.rename(folder)
    file.unlink()


def _check_inside(file: Path, name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{file}: wanted names inside of it, found {name!r}; remove it")


def _untar(file: Path, place: str) -> None:
    # Checked here, because some systems have a Python 3.11 without extraction filters.
    with tarfile.open(file) as archive:
        for member in archive:
            _check_inside(file, member.name)
            if not (member.isfile() or member.isdir()):
                raise DataError(
                    f"{file}: wanted files and folders in it, found {member.name!r}, a link or a "
                    "device; remove it"
                )
            member.mode = 0o755 if member.isdir() else 0o644
        filters: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(place, **filters)


def _unzip(file: Path, place: str) -> None:
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            _check_inside(file, name)
        size, free = sum(info.file_size for info in archive.infolist()), disk_usage(place).free
        if size > free:
            raise DataError(f"{file}: unpacked it has {size} bytes, {free} are free in {place}")
        archive.extractall(place)
