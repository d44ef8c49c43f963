"""Data sets in general: their form in memory, the search for their files, and reading them.

Nothing here knows networks or clients. The sets themselves are modules in `datasets`. `config`
finds them by name, and `fetch` uses it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from fedmpi.data.files import DataError


@dataclass(frozen=True)
class Dataset:
    """Samples ready for training.

    Attributes:
        train_x: float32 [N, *shape], normalized; or for text uint8 or int32 [N, steps]: symbols
            0 .. symbols - 1.
        train_y: int64 [N], labels 0 .. classes - 1.
        test_x: [M, *shape], of the same dtype as train_x.
        test_y: int64 [M].
        classes: number of labels.
        train_owners: who made each sample, a writer, a subject, a role: int64 [N]; None if unknown.
            A number is the same person in both sets.
        test_owners: who made each test sample, int64 [M]; None if unknown.
        groups: the group that each class belongs to, int64 [classes]; None if there are none.
        origin: whether the files are the official ones (see `files.origin`); "" without files.
        symbols: number of symbols; None if they are the labels, or if samples are numbers.
        repeated: number of test samples that are also training samples; None if not compared.
        sha256: hash of all arrays, as `content` makes it, in hex; "" without files.
    """

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    classes: int
    train_owners: np.ndarray | None = None
    test_owners: np.ndarray | None = None
    groups: np.ndarray | None = None
    symbols: int | None = None
    origin: str = ""
    repeated: int | None = None
    sha256: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, channels first."""
        return self.train_x.shape[1:]

    @property
    def about(self) -> dict[str, str | int]:
        """Attributes of a result: origin, hash, number and form of samples, those in both sets."""
        known = {
            "sample_shape": json.dumps(list(self.shape)),
            "sample_kind": self.kind,
            "classes": self.classes,
            "train_samples": len(self.train_y),
            "test_samples": len(self.test_y),
            "data_files": self.origin,
            "data_sha256": self.sha256,
            "test_in_training": self.repeated,
        }
        return {name: value for name, value in known.items() if value not in ("", None)}  # type: ignore[misc]

    @property
    def kind(self) -> str:
        """Kind of the samples' values: numbers or symbols."""
        return "symbols" if self.train_x.dtype.kind in "iu" else "numbers"


def checked(labels: np.ndarray, classes: int, path: Path) -> np.ndarray:
    """Returns labels as int64.

    Raises:
        DataError: naming the file, if one of them is not in 0 .. classes - 1.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise DataError(
            f"{path}: wanted labels 0 to {classes - 1}, found {labels[wrong[0]]} "
            f"in record {wrong[0]}"
        )
    return labels.astype(np.int64)


def repeated(train: np.ndarray, test: np.ndarray) -> int:
    """Returns how many of the test samples [M, ...] are bit-identical to a training sample."""

    def digests(samples: np.ndarray) -> Iterator[bytes]:
        return (hashlib.blake2b(sample.tobytes(), digest_size=16).digest() for sample in samples)

    known = set(digests(train))
    return sum(digest in known for digest in digests(test))


def _whole(name: str, value: np.ndarray) -> Iterable[memoryview]:
    """Returns an array's bytes in one piece."""
    return (np.ascontiguousarray(value).data,)


def content(
    found: Dataset,
    pieces: Callable[[str, np.ndarray], Iterable[memoryview]] = _whole,
) -> str:
    """Returns the SHA-256 of a set's arrays: of each its name, type, shape and bytes, in hex.

    Args:
        found: the set.
        pieces: returns the bytes of an array of that name, in C order, piece by piece.
    """
    digest = hashlib.sha256()
    for field in fields(found):
        value = getattr(found, field.name)
        if isinstance(value, np.ndarray):
            digest.update(f"{field.name} {value.dtype.str} {value.shape}\n".encode())
            for piece in pieces(field.name, value):
                digest.update(piece)
    return digest.hexdigest()


def normalise(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Normalizes uint8 [N, channels, height, width] to float32: (pixel / 255 - mean) / std.

    Mean and std are by channel. It works in place after one conversion, so that a set is never held
    in float64.
    """
    scaled = pixels.astype(np.float32)
    by_channel = (-1, 1, 1)
    scaled -= np.reshape(255 * np.asarray(mean), by_channel).astype(np.float32)
    scaled /= np.reshape(255 * np.asarray(std), by_channel).astype(np.float32)
    return scaled
