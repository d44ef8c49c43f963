"""Random numbers that are a pure function of a key and a position: Philox4x32-10.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, *Parallel Random Numbers: As Easy as 1, 2, 3*,
SC 2011. Draw i of a key is word i mod 4 of the block whose counter is i div 4. So any part of a
vector can be drawn alone, and results depend neither on threads nor on how a vector is divided.
The key is 128 bits long (`streams.key`): 64 bits are Philox's key, the others the upper half of
its counter.
"""

import numpy as np

from fedmpi.messages.kernels import kernel, spread

M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
HALF = np.uint64(32)
"""Bits of a word."""
UNIT = 2.0**-32


@kernel("void(const uint64[::1], int64, uint32[::1])")
def fill(key: np.ndarray, first: int, words: np.ndarray) -> None:
    """Writes the draws number first, first + 1, ... of a key.

    Args:
        key: uint64 [2].
        first: a multiple of 4.
        words: where to write them, uint32 [4 * blocks].
    """
    third, fourth = np.uint32(key[1]), np.uint32(key[1] >> HALF)
    first_key, second_key = np.uint32(key[0]), np.uint32(key[0] >> HALF)
    for block in range(len(words) // 4):
        counter = np.uint64(first // 4 + block)
        a, b, c, d = np.uint32(counter), np.uint32(counter >> HALF), third, fourth
        k0, k1 = first_key, second_key
        for _ in range(10):
            left, right = M0 * np.uint64(a), M1 * np.uint64(c)
            a, c = np.uint32(right >> HALF) ^ b ^ k0, np.uint32(left >> HALF) ^ d ^ k1
            b, d = np.uint32(right), np.uint32(left)
            k0, k1 = np.uint32(k0 + W0), np.uint32(k1 + W1)
        words[4 * block] = a
        words[4 * block + 1] = b
        words[4 * block + 2] = c
        words[4 * block + 3] = d


@kernel("void(const uint64[::1], int64, uint32[::1], float64[::1])")
def fractions(key: np.ndarray, first: int, words: np.ndarray, out: np.ndarray) -> None:
    """Writes draws as numbers in (0, 1): (draw + 1 / 2) / 2^32.

    Args:
        key: uint64 [2].
        first: a multiple of 4.
        words: memory for the draws, uint32, of at least as many as `out`, rounded up to a multiple
            of 4.
        out: where to write them, [count].
    """
    fill(key, first, words[: -(-len(out) // 4) * 4])
    for i in range(len(out)):
        out[i] = (np.float64(words[i]) + 0.5) * UNIT


@kernel("void(const uint64[::1], int64, int64, float64[::1])")
def _uniform(key: np.ndarray, start: int, stop: int, out: np.ndarray) -> None:
    words = np.empty(TILE, np.uint32)
    for at in range(start, stop, TILE):
        fractions(key, at, words, out[at : min(at + TILE, stop)])


TILE = 2048
"""Draws at a time, which stay in a processor's first cache."""


def uniform(key: np.ndarray, count: int) -> np.ndarray:
    """Returns uniform random numbers in (0, 1), float64 [count].

    Each is a multiple of 2^-33, so that a value with a fraction f is rounded up with a probability
    that differs from f by at most 2^-33.
    """
    out = np.empty(count)
    spread(lambda start, stop: _uniform(key, start, stop, out), count)
    return out
