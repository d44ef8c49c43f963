"""A file that takes the place of another one when it is whole. Standard library only."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fedmpi.errors import BadInput, told


@contextmanager
def draft(path: Path, option: str) -> Iterator[BinaryIO]:
    """Opens a new file that replaces `path` at the end; if that is not reached, nothing is left.

    Args:
        path: the file; its folder is made.
        option: the option of the command line that names it, such as "--plot".

    Raises:
        BadInput: if it cannot be written; in the end, too, such as on a full disk.
    """
    with told(path, f"name another file with {option}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.resolve(strict=True) if path.is_symlink() else path
        if whole.exists() and not stat.S_ISREG(whole.stat().st_mode):
            raise BadInput(f"{path}: it is no plain file; name another file with {option}")
        part = whole.with_name(f".{whole.name}.{os.getpid()}")
        try:
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(whole)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def try_out(path: Path, option: str) -> None:
    """Makes sure, before long work, that a `draft` of the file can be begun, and leaves no trace.

    Raises:
        BadInput: if it cannot be written.
    """
    with suppress(_Enough), draft(path, option):
        raise _Enough


class _Enough(Exception):
    """Ends a draft before it replaces anything."""
