"""Float32 values <-> a frame of zstd: lossless, and shorter where values are of similar magnitude.

The frame has the first bytes of all values, then their second bytes, and so on: a plane for each
byte of a value. Most of what zstd saves is in the last one, which has most of the exponent. The
bytes follow from the values and the version of zstd alone.

The package zstandard is optional, and imported only here, when values are first compressed.
"""

import numpy as np

from fedmpi.messages.codec import WireError

LEVEL = 1
"""Higher ones take two to six times as long. They save up to 2 % more of a network's updates, and
nothing of random values."""


def planes(values: np.ndarray) -> np.ndarray:
    """The bytes of float32 [count], uint8 [4, count], the lowest ones first."""
    found = np.empty((4, len(values)), np.uint8)
    words = np.ascontiguousarray(values, "<f4").view("<u4")
    for byte, plane in enumerate(found):
        np.right_shift(words, 8 * byte, out=plane, casting="unsafe")
    return found


def encode(values: np.ndarray) -> np.ndarray:
    """Compresses float32 [count] to a frame, uint8; it is empty if there are no values."""
    import zstandard

    if not len(values):
        return np.empty(0, np.uint8)
    # A single thread, so that the bytes do not depend on the number of cores.
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    return np.frombuffer(compressor.compress(planes(values).data), np.uint8)


def decode(frame: np.ndarray, count: int) -> np.ndarray:
    """Restores what was encoded, float32 [count].

    The caller has to know that so many values are wanted: a short frame can hold very many.

    Raises:
        WireError: if this is not exactly one frame, or not one of so many values. Then no more
            memory is taken than these values need.
    """
    import zstandard

    wanted = 4 * count
    if not count and not len(frame):
        return np.empty(0, np.float32)
    try:
        head = zstandard.get_frame_parameters(frame.data)
        # zstd would take memory for the window, if the frame does not end where it should.
        if head.content_size != wanted or head.window_size > wanted or head.dict_id:
            raise WireError(f"a frame of zstd with {head.content_size} bytes, wanted {wanted}")
        raw = zstandard.ZstdDecompressor().decompress(frame.data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError(f"not a frame of zstd: {error}") from None
    if len(raw) != wanted:
        raise WireError(f"{len(raw)} bytes in a frame of zstd, wanted {wanted}")
    found = np.empty((count, 4), np.uint8)
    for byte, plane in enumerate(np.frombuffer(raw, np.uint8).reshape(4, count)):
        found[:, byte] = plane
    return found.view("<f4").reshape(count)
