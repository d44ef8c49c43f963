"""MAT: files of MATLAB's versions 4 to 7; nothing in them is ever executed."""

import io
from pathlib import Path

import numpy as np

from fedmpi.files import DataError, contents


def read(path: Path, name: str, columns: int) -> np.ndarray:
    """A table of numbers in a file, float32 [N, columns].

    Raises:
        DataError: if it is no such file, cut short, or has no such table of finite numbers.
    """
    # Here, because it takes a while that only sets in this layout should cost.
    from scipy.io import loadmat

    packed = contents(path)
    try:
        found = loadmat(io.BytesIO(packed), variable_names=[name]).get(name)
    except Exception as error:  # a malformed file may raise nearly anything
        raise DataError(f"{path}: wanted a file of MATLAB, found: {error!r}") from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iuf":
        raise DataError(f"{path}: wanted numbers named {name}, found none")
    if found.ndim != 2 or found.shape[1] != columns or not len(found):
        shape = " x ".join(map(str, found.shape))
        raise DataError(f"{path}: wanted {name} of N x {columns} numbers, found {shape}")
    with np.errstate(over="ignore"):
        table = found.astype(np.float32)
    if not np.isfinite(table).all():
        raise DataError(f"{path}: wanted finite numbers in {name}, found others")
    return table
