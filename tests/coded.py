"""Codes, their bytes and the draws that round them, in plain Python and numpy."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from fedmpi.messages.codec import INTEGERS, Block, Coding, Kind, Places, Scale


def philox(counter: list[Any], key: list[int]) -> list[Any]:
    """Philox4x32-10 (Salmon et al., SC 2011) of four words, integers or uint64 arrays, and two."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = right >> 32 ^ b ^ k, right % 2**32, left >> 32 ^ d ^ m, left % 2**32
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return [a, b, c, d]


def draws(key: np.ndarray, count: int) -> np.ndarray:
    """The first draws of a key, as numbers in (0, 1): float64 [count]."""
    low, high = (int(word) for word in key)
    blocks = np.arange(-(-count // 4), dtype=np.uint64)
    rest = np.zeros_like(blocks)
    counter = [blocks, rest, rest + np.uint64(high % 2**32), rest + np.uint64(high >> 32)]
    words = np.stack(philox(counter, [low % 2**32, low >> 32]), 1).ravel()
    return (words[:count].astype(float) + 0.5) / 2**32


def packed(codes: Any, bits: int) -> np.ndarray:
    """Codes of `bits` bits in bytes, lowest bit first: uint8."""
    digits = np.asarray(codes, np.int64).reshape(-1, 1) >> np.arange(bits) & 1
    return np.packbits(digits.astype(np.uint8).ravel(), bitorder="little")


def unpacked(data: np.ndarray, bits: int, count: int) -> np.ndarray:
    """What was packed, int64 [count]."""
    digits = np.unpackbits(data, count=count * bits, bitorder="little").reshape(count, bits)
    return digits.astype(np.int64) @ (1 << np.arange(bits))


def block(
    kind: Kind,
    size: int,
    codes: Any,
    bits: int,
    scale: Scale = INTEGERS,
    indices: np.ndarray | None = None,
    places: Places | None = None,
) -> Block:
    """The block of these codes."""
    data = packed(codes, bits)
    return Block(kind, size, Coding.CODES, data, indices, bits, scale, places, len(codes))


HAS_ZSTD = find_spec("zstandard") is not None
wants_zstd = pytest.mark.skipif(not HAS_ZSTD, reason="no zstandard beside this Python")


def frame(values: np.ndarray) -> np.ndarray:
    """Float32 values as a frame of zstd that compresses nothing, by RFC 8878: uint8.

    At most 16 KiB, in a single block: magic number, descriptor, length, and the block's header.
    """
    if not len(values):
        return np.empty(0, np.uint8)
    raw = b"".join(values.astype("<f4").tobytes()[byte::4] for byte in range(4))
    head = b"\x28\xb5\x2f\xfd\xa0" + len(raw).to_bytes(4, "little")
    return np.frombuffer(head + (len(raw) << 3 | 1).to_bytes(3, "little") + raw, np.uint8)


def codes_of(block: Block) -> np.ndarray:
    """The codes in a block, int64 [count]."""
    assert block.values is not None
    return unpacked(block.values, block.bits, block.count)
