"""JPEG: one file for each image; many files are read by several threads."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fedmpi.data import normalise
from fedmpi.data.files import DataError, contents
from fedmpi.provenance import cores

LOT = 500
"""Images that a thread reads at a time."""


def read(path: Path, size: int) -> np.ndarray:
    """Reads a square image, uint8 [3, size, size]; a grey one gets three equal channels.

    Raises:
        DataError: if it is no JPEG, truncated, or of another size.
    """
    # Imported here, because it is slow and only sets of images need it.
    from PIL import Image

    packed = contents(path)
    try:
        with Image.open(io.BytesIO(packed), formats=["JPEG"]) as image:
            found = image.size
            # Known from the header, so that larger images are never decoded.
            if found == (size, size):
                return np.moveaxis(np.asarray(image.convert("RGB")), 2, 0)
    except Exception as error:  # a malformed picture may raise nearly anything
        # Pillow's message names a file object, which does not help the user.
        reason = "something else" if isinstance(error, Image.UnidentifiedImageError) else error
        raise DataError(f"{path}: wanted a whole JPEG picture, found: {reason}") from None
    raise DataError(f"{path}: wanted {size} x {size} pixels, found {found[0]} x {found[1]}")


def read_all(
    paths: Sequence[Path], size: int, mean: Sequence[float], std: Sequence[float]
) -> np.ndarray:
    """Reads square images, float32 [N, 3, size, size], normalized by `data.normalise`.

    Raises:
        DataError: naming the first faulty file, in their order.
    """
    found = np.empty((len(paths), 3, size, size), np.float32)

    def work(start: int) -> None:
        for place, path in enumerate(paths[start : start + LOT], start):
            found[place] = normalise(read(path, size)[np.newaxis], mean, std)[0]

    # Pillow decodes images without holding Python's lock.
    with ThreadPoolExecutor(cores()) as pool:
        try:
            for _ in pool.map(work, range(0, len(paths), LOT)):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return found
