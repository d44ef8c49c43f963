"""Options of the commands, and files that they write.

Files are written as a whole, or not at all, with a sentence if the system refuses.
"""

import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import click

BEGINNINGS = {
    ".csv": (b"group,variant,sparsity,", b"system,claim,source,"),
    ".png": (b"\x89PNG",),
    ".pdf": (b"%PDF",),
    ".svg": (b'<?xml version="1.0" encoding="utf-8" standalone="no"?>\n<!DOCTYPE svg',),
}
"""How files begin that are written here, by the ends of their names: what begins otherwise, and is
not empty, is another's and is not replaced."""


class File(click.Path):
    """The path of a file that is written."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As in click."""
        name = os.fspath(value)
        if not name.strip() or name.endswith(os.sep):
            self.fail(f"Wanted the name of a file, found {name!r}.", param, ctx)
        return super().convert(value, param, ctx)


class Share(click.FloatRange):
    """A number from 0 to 1; NaN is none, which is in no range, and which click lets pass."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As in click."""
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value} is not in the range 0<=x<=1.", param, ctx)
        return found


@contextmanager
def draft(path: Path, option: str, *suffixes: str) -> Iterator[BinaryIO]:
    """Opens a new file that replaces `path` at the end; its folder is made.

    Args:
        path: the file.
        option: the option of the command line that names it.
        suffixes: how its name may end, in upper or lower case: some of the `BEGINNINGS`.

    Raises:
        click.UsageError: if it cannot be written, or if what is there was not written by this.
    """
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        possible = " or ".join(filter(None, (", ".join(suffixes[:-1]), suffixes[-1])))
        raise click.UsageError(f"{option} {path}: wanted a name that ends in {possible}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.resolve(strict=True) if path.is_symlink() else path
        if whole.exists():
            _check(path, option, suffix)
        part = whole.with_name(f".{whole.name}.{os.getpid()}")
        try:
            with part.open("wb") as file:
                yield file
            part.replace(whole)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise click.UsageError(f"{option} {path}: {reason}; name another file") from None


def _check(path: Path, option: str, suffix: str) -> None:
    """Makes sure that a file that is there may be replaced."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise click.UsageError(f"{option} {path}: wanted the name of a plain file")
    wanted = BEGINNINGS[suffix]
    with path.open("rb") as file:
        found = file.read(max(map(len, wanted)))
    if found and not found.startswith(wanted):
        raise click.UsageError(
            f"{option} {path}: holds something else than this command writes, and is not replaced; "
            "name another file, or remove it"
        )
