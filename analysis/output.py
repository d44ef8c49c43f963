"""Files that a command writes: as a whole, or not at all, and a sentence if the system refuses."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import click


@contextmanager
def draft(path: Path, option: str) -> Iterator[BinaryIO]:
    """Opens a new file that replaces `path` at the end; its folder is made.

    Args:
        path: the file.
        option: the option of the command line that names it.

    Raises:
        click.UsageError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.resolve(strict=True) if path.is_symlink() else path
        if whole.exists() and not stat.S_ISREG(whole.stat().st_mode):
            raise click.UsageError(f"{option} {path}: wanted the name of a plain file")
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
