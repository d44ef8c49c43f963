"""Frozen: a partition from a file that `fedmpi partition --freeze` wrote, sample by sample.

The file holds the positions of all clients' samples and of the held-out ones, so that runs with
other seeds, or of another version of this program, train on exactly the same shards. `seed` has no
effect; `clients`, `validation` and the data set must be those of the file. A run with another file
at the same path is another run. With `sha256` in the settings, a file with another partition is
refused.
"""

import hashlib
import re
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy import ndarray
from pydantic import Field

from fedmpi import config, draft, inputs
from fedmpi.config import ConfigError
from fedmpi.partitions import Shards, fingerprint

FORMAT = "fedmpi partition 1"
BEGINS = re.compile(rb"PK\x03\x04.{26}format\.npy", re.DOTALL)
"""How its file begins: a ZIP file, whose first member is the format."""
WANTED = "a partition (.npz) that fedmpi partition --freeze wrote"
PARTS = ("train", "test")
FIELDS = {"format": "U", "sha256": "U", "labels": "U", "samples": "i", "held_out": "i"} | {
    name: "i" for part in PARTS for name in (part, f"{part}_sizes")
}
"""Arrays of a file and their kinds.

Positions are concatenated over clients, with the number of each client's; `samples` are the sizes
of both sets, `labels` is the hash of their labels.
"""


class Config(config.Partition):
    """File of the partition."""

    file: Annotated[config.Place | None, config.READ] = None
    """Partition file (.npz) written by fedmpi partition --freeze."""
    sha256: str | None = Field(None, pattern=config.SHA256)
    """SHA-256 of the partition, as fedmpi partition prints it. Another partition is refused. If
    absent, any is accepted."""


def restore(
    config: Config, train: ndarray, test: ndarray, clients: int
) -> tuple[ndarray, Shards, Shards]:
    """Returns held-out samples and the shards of both sets, as in `fedmpi.partitions`.

    Raises:
        BadInput: if the file cannot be read.
        ConfigError: if it is damaged, or was made for other data or another number of clients.
    """
    if config.file is None:
        raise ConfigError(f"partition.file: wanted {WANTED}, found none")
    where = f"partition.file = {config.file}"
    found = _read(Path(config.file), where)
    made = [int(size) for size in found["samples"]]
    if made != [len(train), len(test)]:
        raise ConfigError(
            f"{where}: was made for {_sets(made)}, but the data set has "
            f"{_sets([len(train), len(test)])}; wanted the data set that it was made for"
        )
    if str(found["labels"]) != _labels(train, test):
        raise ConfigError(
            f"{where}: was made for other labels than the data set has, though as many; wanted the "
            "data set that it was made for"
        )
    held_out = found["held_out"].astype(np.int64)
    shards, test_shards = (
        np.split(found[part].astype(np.int64), np.cumsum(found[f"{part}_sizes"])[:-1])
        for part in PARTS
    )
    if len(shards) != clients:
        raise ConfigError(
            f"{where}: holds {len(shards)} clients, but clients = {clients}; wanted the same number"
        )
    sha256 = fingerprint([held_out, *shards, *test_shards])
    if sha256 != str(found["sha256"]):
        raise ConfigError(
            f"{where}: damaged: its hash is {found['sha256']}, its content's {sha256}"
        )
    if config.sha256 not in (None, sha256):
        raise ConfigError(
            f"partition.sha256 = {config.sha256}: {config.file} holds another partition, {sha256}"
        )
    return held_out, shards, test_shards


def try_out(path: Path) -> None:
    """Makes sure, before long work, that `freeze` can write a file.

    Raises:
        BadInput: if its name does not end in .npz, if it cannot be written, or if what is there is
            no partition.
    """
    if path.suffix.lower() != ".npz":
        raise ConfigError(f"--freeze {path}: wanted a name that ends in .npz")
    draft.try_out(path, "--freeze", BEGINS)


def freeze(
    path: Path,
    held_out: ndarray,
    shards: Shards,
    test_shards: Shards,
    train: ndarray,
    test: ndarray,
) -> None:
    """Writes a partition of the samples with the labels `train` and `test`.

    An existing file of a partition is replaced atomically.

    Raises:
        BadInput: if the file cannot be written, see `try_out`.
    """
    fields = {
        "format": FORMAT,
        "sha256": fingerprint([held_out, *shards, *test_shards]),
        "labels": _labels(train, test),
        "samples": [len(train), len(test)],
        "held_out": held_out,
    }
    for name, part in zip(PARTS, (shards, test_shards), strict=True):
        fields |= {name: np.concatenate(part), f"{name}_sizes": [len(shard) for shard in part]}
    try_out(path)
    arrays = {name: np.asarray(value) for name, value in fields.items()}
    with draft.draft(path, "--freeze", BEGINS) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _read(path: Path, where: str) -> dict[str, ndarray]:
    """Reads the file's arrays, and checks them as far as possible without the data set."""
    found = inputs.arrays("partition.file", path, WANTED)
    if isinstance(found, ndarray):
        raise ConfigError(f"{where}: wanted {WANTED}, found one array, {found.dtype} {found.shape}")
    missing = [name for name in FIELDS if name not in found]
    kind = str(found.get("format", "another file"))
    if missing or kind != FORMAT:
        lacks = f" without {', '.join(missing)}" if missing else ""
        raise ConfigError(f"{where}: wanted '{FORMAT}', found '{kind}'{lacks}")
    if not _is_whole(found):
        raise ConfigError(f"{where}: damaged: its arrays do not fit together")
    return found


def _is_whole(found: dict[str, ndarray]) -> bool:
    """Whether types, lengths and ranges are as `restore` needs them."""
    if any(found[name].dtype.kind != kind for name, kind in FIELDS.items()):
        return False
    if any(found[name].ndim != (kind == "i") for name, kind in FIELDS.items()):
        return False
    if len(found["samples"]) != 2 or len({len(found[f"{part}_sizes"]) for part in PARTS}) != 1:
        return False
    if not len(found["train_sizes"]) or found["train_sizes"].min() < 1:
        return False
    if found["test_sizes"].min() < 0:
        return False
    if any(found[f"{part}_sizes"].sum() != len(found[part]) for part in PARTS):
        return False
    limits = zip((*PARTS, "held_out"), found["samples"][[0, 1, 0]], strict=True)
    return all(np.all((found[name] >= 0) & (found[name] < limit)) for name, limit in limits)


def _labels(train: ndarray, test: ndarray) -> str:
    """Returns the SHA-256 of both sets' labels, which identifies the data set."""
    return hashlib.sha256(train.astype("<i8").tobytes() + test.astype("<i8").tobytes()).hexdigest()


def _sets(sizes: list[int]) -> str:
    return f"{sizes[0]} training and {sizes[1]} test samples"
