"""A file that takes the place of another one when it is whole. Standard library only."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fedmpi.errors import BadInput, told

PICTURES = {
    ".png": re.compile(rb"\x89PNG"),
    ".svg": re.compile(rb"<\?xml [^>]*>\s*<!DOCTYPE svg"),
}
"""How pictures begin, by the ends of their names."""
LENGTH = 256
"""So many bytes tell what kind a file is of."""


@contextmanager
def draft(path: Path, option: str, begins: re.Pattern[bytes]) -> Iterator[BinaryIO]:
    """Opens a new file that replaces `path` at the end; if that is not reached, nothing is left.

    Args:
        path: the file; its folder is made.
        option: the option of the command line that names it, such as "--plot".
        begins: how files of its kind begin; what begins otherwise, and is not empty, is another's.

    Raises:
        BadInput: if it cannot be written; in the end, too, such as on a full disk. If what is
            there is of another kind.
    """
    with told(path, f"name another file with {option}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.resolve(strict=True) if path.is_symlink() else path
        if whole.exists():
            _check(path, option, begins)
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


def _check(path: Path, option: str, begins: re.Pattern[bytes]) -> None:
    """Makes sure that a file that is there may be replaced."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise BadInput(f"{path}: it is no plain file; name another file with {option}")
    with path.open("rb") as file:
        found = file.read(LENGTH)
    if found and not begins.match(found):
        raise BadInput(
            f"{path}: holds something else than {option} writes, and is not replaced; remove it or "
            f"name another file with {option}"
        )


def try_out(path: Path, option: str, begins: re.Pattern[bytes]) -> None:
    """Makes sure, before long work, that a `draft` of the file can be begun, and leaves no trace.

    Raises:
        BadInput: if it cannot be written.
    """
    with suppress(_Enough), draft(path, option, begins):
        raise _Enough


class _Enough(Exception):
    """Ends a draft before it replaces anything."""
