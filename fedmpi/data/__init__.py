"""What a data set is, where its files lie, and how they are read.

Nothing here knows networks or clients. The sets themselves are in `datasets`; `config` finds them
by their names, and `fetch` asks it.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedmpi.data.files import DataError


@dataclass(frozen=True)
class Dataset:
    """Samples ready for training.

    Attributes:
        train_x: float32 [N, *shape], normalised; or, of text, uint8 [N, steps]: symbols of the same
            vocabulary as the labels.
        train_y: int64 [N], labels 0 .. classes - 1.
        test_x: [M, *shape], likewise.
        test_y: int64 [M].
        classes: how many labels there are.
        train_owners: int64 [N], who made each sample: a writer, a subject, a role; None if nobody
            knows. The same number is the same one in both sets.
        test_owners: int64 [M], the same of the test samples.
        origin: whether the files are the official ones (see `files.origin`); "" without files.
        repeated: test samples that are training samples, too; None if they were not compared.
    """

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    classes: int
    train_owners: np.ndarray | None = None
    test_owners: np.ndarray | None = None
    origin: str = ""
    repeated: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, channels first."""
        return self.train_x.shape[1:]

    @property
    def about(self) -> dict[str, str | int]:
        """What a result says of where its samples come from, and of those in both sets."""
        known = {"data_files": self.origin, "test_in_training": self.repeated}
        return {name: value for name, value in known.items() if value not in ("", None)}  # type: ignore[misc]

    @property
    def kind(self) -> str:
        """What samples are made of: numbers or symbols."""
        return "symbols" if self.train_x.dtype == np.uint8 else "numbers"


def checked(labels: np.ndarray, classes: int, path: Path) -> np.ndarray:
    """Labels as int64.

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
    """How many of the test samples [M, ...] are, bit for bit, among the training samples."""

    def digests(samples: np.ndarray) -> Iterator[bytes]:
        return (hashlib.blake2b(sample.tobytes(), digest_size=16).digest() for sample in samples)

    known = set(digests(train))
    return sum(digest in known for digest in digests(test))


def normalise(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """uint8 [N, channels, height, width] as float32: (pixel / 255 - mean) / std by channel.

    It works in place after one conversion, so that a set is never held in float64.
    """
    scaled = pixels.astype(np.float32)
    by_channel = (-1, 1, 1)
    scaled -= np.reshape(255 * np.asarray(mean), by_channel).astype(np.float32)
    scaled /= np.reshape(255 * np.asarray(std), by_channel).astype(np.float32)
    return scaled
