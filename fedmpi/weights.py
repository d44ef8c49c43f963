"""Files of weights: safetensors, read without executing anything in them, and written.

The format is that of https://github.com/huggingface/safetensors: the length of a header in 8 bytes,
the header in JSON, and the values, all of them little-endian.

The model that a run keeps in its result (`results.kept`) is read, too.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedmpi import inputs
from fedmpi.errors import BadInput, sentence

Tensors = Mapping[str, np.ndarray]

KINDS = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "BF16": "<u2"}
"""Types of numbers that are read; tensors of others, such as whole numbers, are no weights."""
LARGEST = 100_000_000
"""Bytes of a header at most, as in the library."""
WANTED = "wanted a file of weights (safetensors), or a result"
RESULT, MODEL = b"\x89HDF\r\n\x1a\n", "model"
"""First bytes of a result, and its group of the tensors of a model."""


def read(setting: str, path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a file as float32, by name.

    What is float32 in a file of safetensors is mapped into memory, so that processes of a node
    share it; it is copied only where somebody writes to it.

    Args:
        setting: that names the file, such as "model.initial".
        path: the file.

    Raises:
        BadInput: if the file cannot be read, is none of weights, or keeps no model.
    """
    what = f"{setting} = {path}"
    try:
        inputs.check(path)
        if not path.stat().st_size:
            raise BadInput(f"{what}: {WANTED}, found an empty one")
        memory = np.memmap(path, np.uint8, "c")
    except OSError as error:
        raise BadInput(f"{sentence(what, error)}; {WANTED}") from None
    try:
        found = _kept(path) if memory[:8].tobytes() == RESULT else _tensors(memory)
    except (ValueError, TypeError, LookupError, AttributeError, OSError, RuntimeError):
        raise BadInput(f"{what}: {WANTED}, found another one, or a damaged one") from None
    if not found:
        raise BadInput(
            f"{what}: {WANTED}, found one without a model; a finished run with keep = 'last' or "
            "'best' has one, unless it diverged"
        )
    return found


def _kept(path: Path) -> dict[str, np.ndarray]:
    """The tensors of the model in a result; none if it keeps none."""
    import h5py  # here, because few runs begin with a result

    with h5py.File(path, "r", locking=False) as file:
        model = file.get(MODEL, {})
        return {name: np.asarray(data[()], np.float32) for name, data in model.items()}


def _tensors(memory: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors in the bytes of a file; any ValueError and so on if it is none."""
    length = int.from_bytes(memory[:8].tobytes(), "little")
    if length > min(LARGEST, len(memory) - 8):
        raise ValueError
    header: dict[str, Any] = json.loads(memory[8 : 8 + length].tobytes())
    values, found = memory[8 + length :], dict[str, np.ndarray]()
    for name, about in header.items():
        if name == "__metadata__" or about["dtype"] not in KINDS:
            continue
        (start, stop), shape = about["data_offsets"], about["shape"]
        kind = np.dtype(KINDS[about["dtype"]])
        size = kind.itemsize
        for number in shape:
            if not isinstance(number, int) or number < 0:
                raise ValueError
            size *= number
        if not 0 <= start <= stop <= len(values) or stop - start != size:
            raise ValueError
        part = np.asarray(values[start:stop])
        if (8 + length + start) % kind.itemsize:  # no processor likes such numbers
            part = part.copy()
        one = part.view(kind).reshape(shape)
        if about["dtype"] == "BF16":
            one = (one.astype("<u4") << 16).view("<f4")
        found[name] = one.astype(np.float32, copy=False)
    return found


def written(tensors: Tensors, about: Mapping[str, str]) -> bytes:
    """Returns tensors as a file, in float32.

    Args:
        tensors: by name.
        about: texts that the file has besides.
    """
    header: dict[str, Any] = {"__metadata__": dict(about)}
    values, end = [], 0
    for name, tensor in tensors.items():
        content = np.asarray(tensor).astype("<f4").tobytes()
        places = [end, end + len(content)]
        header[name] = {"dtype": "F32", "shape": list(np.shape(tensor)), "data_offsets": places}
        values.append(content)
        end += len(content)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the values begin at a multiple of 8 bytes
    return b"".join([len(text).to_bytes(8, "little"), text, *values])
