"""Files that settings name: read as a whole, or refused in a sentence that names the setting."""

import errno
import io
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedmpi.errors import BadInput, sentence

ARCHIVE, ARRAY = b"PK\x03\x04", b"\x93NUMPY"
"""First bytes of .npz and .npy files."""


def plain(path: Path) -> bytes:
    """Returns the bytes of a plain file.

    Raises:
        OSError: if it cannot be read, or is another thing: a pipe or a device may have no end.
    """
    check(path)
    return path.read_bytes()


def check(path: Path) -> None:
    """Makes sure that reading a file has an end.

    Raises:
        OSError: if there is another thing than a plain file.
    """
    if path.exists() and not path.is_file():
        number = errno.EISDIR if path.is_dir() else errno.ENXIO
        raise OSError(number, os.strerror(number))


def content(setting: str, path: Path, wanted: str) -> bytes:
    """Returns the bytes of the file that a setting names.

    Args:
        setting: its path, such as "method.agent".
        path: the file.
        wanted: what the file should be.

    Raises:
        BadInput: if it is no plain file, or cannot be read.
    """
    try:
        return plain(path)
    except OSError as error:
        raise BadInput(f"{sentence(f'{setting} = {path}', error)}; wanted {wanted}") from None


def arrays(setting: str, path: Path, wanted: str) -> Any:
    """Returns what numpy reads from the file that a setting names: an array, or arrays by name.

    Nothing in the file is ever executed: arrays of objects are refused. For arguments see
    `content`.

    Raises:
        BadInput: if it is no plain file, cannot be read, or has no arrays.
    """
    import numpy as np  # here, because the settings are read without it

    found = content(setting, path, wanted)
    try:
        if not found.startswith((ARCHIVE, ARRAY)):
            raise ValueError
        read = np.load(io.BytesIO(found), allow_pickle=False)
        return read if isinstance(read, np.ndarray) else dict(read)
    except Exception:  # whatever damaged bytes make numpy and zipfile say
        raise BadInput(f"{setting} = {path}: wanted {wanted}, found {_kind(found)}") from None


def _kind(found: bytes) -> str:
    """Says what bytes are that numpy does not read."""
    if not found:
        return "an empty file"
    if found.startswith((ARCHIVE, ARRAY)):
        kind = "zip archive or .npz" if found.startswith(ARCHIVE) else ".npy"
        return f"a {kind} file that is damaged or holds other things than numbers"
    with suppress(UnicodeError):
        if "\0" not in found.decode():
            return f"a text of {len(found)} bytes"
    return f"another file of {len(found)} bytes"
