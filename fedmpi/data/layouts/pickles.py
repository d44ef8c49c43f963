"""Pickles of dictionaries with byte arrays, as in CIFAR's Python version; never executed.

A pickle is a program, and may come from anyone.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from fedmpi.data.files import DataError, contents


def read(path: Path, *wanted: str) -> dict[str, Any]:
    """Reads the dictionary in a pickle; its arrays become instances of `Array`.

    Args:
        path: the file.
        wanted: keys that it must have.

    Raises:
        DataError: if it is no pickle, if it names anything but the parts of arrays, or if its
            content is not such a dictionary.
    """
    packed = contents(path)
    try:
        found = _Unpickler(io.BytesIO(packed), encoding="latin1").load()
    except Exception as error:  # a malformed pickle may raise nearly anything
        reason = str(error) if isinstance(error, pickle.UnpicklingError) else repr(error)
        raise DataError(f"{path}: wanted a pickle of an array and a list, found {reason}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: wanted a dictionary, found {type(found).__name__}")
    # Names are bytes if Python 3 pickled an object that it had read with encoding="bytes".
    named = {key.decode("latin1") if isinstance(key, bytes) else key: found[key] for key in found}
    if not set(wanted) <= named.keys():
        keys = " and ".join(f"'{key}'" for key in wanted)
        raise DataError(f"{path}: wanted {keys}, found {list(named)}")
    return named


class _Kind:
    """Stands in for `numpy.dtype`: remembers its name, such as "u1"."""

    def __init__(self, name: Any = None, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Ignores byte order and flags: bytes have none."""


class Array:
    """Stands in for `numpy.ndarray`: stores its state, and makes a byte array from it."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> np.ndarray | None:
        """The array, uint8 of any shape; None if it is of another type or its parts disagree."""
        match self.state:
            case (_, tuple(shape), _Kind(name="u1"), bool(fortran), str(text) | bytes(text)):
                # A string of Python 2 is read as text, one character for each byte.
                try:
                    raw = text.encode("latin1") if isinstance(text, str) else text
                    flat = np.frombuffer(raw, np.uint8)
                    return flat.reshape(shape, order="F" if fortran else "C")
                except (TypeError, ValueError):
                    return None
        return None


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for `_codecs.encode`, by which Python 3 writes bytes in protocol 2."""
    return text.encode("latin1")


class _Unpickler(pickle._Unpickler):
    """Allows only the names by which a pickle rebuilds an array, and maps them to stand-ins.

    No name in a pickle is ever imported or called, not even numpy's, whose dtypes and arrays trust
    the state that they are given. It is the unpickler in Python, because the one in C allocates
    gigabytes if a damaged file has a large number in the wrong place. 10,000 records take a tenth
    of a second nevertheless.
    """

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct"):
                return Array
            case ("numpy", "ndarray"):
                return Array
            case ("numpy", "dtype"):
                return _Kind
            case ("_codecs", "encode"):
                return _encode
        raise pickle.UnpicklingError(f"{module}.{name}, which is not part of an array")
