"""Values in a frame of zstd: what goes in comes out, and other bytes are refused."""

import tracemalloc
from importlib import util

import numpy as np
import pytest
import torch

from fedmpi.config import Codec
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Coding, Kind, Message, WireError, pack, unpack
from fedmpi.messages.coding import Coder
from fedmpi.streams import Purpose, key
from tests import coded
from tests.coded import wants_zstd
from tests.small import refusal, run, small

if coded.HAS_ZSTD:
    import zstandard

    from fedmpi.messages import lossless

SPECIAL = np.array([0x7FC00001, 0xFFC12345, 0x7F800000, 0xFF800000, 1, 0x80000000], "<u4")
"""NaN with payloads, infinities, the least denormal, and minus zero."""


def values(count: int) -> np.ndarray:
    """Patterns of bits, special ones among them."""
    found = np.random.default_rng(count).integers(0, 2**32, count, np.uint32)
    found[: len(SPECIAL)] = SPECIAL[:count]
    return found.view("<f4")


@wants_zstd
@pytest.mark.parametrize("count", [0, 1, 2, 5, 100, 2**15, 2**17 + 1])
def test_every_bit_comes_back(count: int) -> None:
    given = values(count)
    frame = lossless.encode(given)
    assert frame.tobytes() == lossless.encode(given.copy()).tobytes()
    assert (len(frame) > 0) == (count > 0)
    found = lossless.decode(frame, count)
    assert (found.dtype, found.tobytes()) == (np.dtype("<f4"), given.tobytes())


@wants_zstd
@pytest.mark.parametrize("count", [1, 2, 100, 4095])
def test_frames_by_the_standard_are_read(count: int) -> None:
    """Those that are written out by hand, which pins the order of bytes."""
    given = values(count)
    assert lossless.decode(coded.frame(given), count).tobytes() == given.tobytes()
    raw = zstandard.ZstdDecompressor().decompress(lossless.encode(given))
    planes = [given.tobytes()[byte::4] for byte in range(4)]
    assert raw == b"".join(planes)
    np.testing.assert_array_equal(lossless.planes(given), [list(plane) for plane in planes])


@wants_zstd
def test_values_of_similar_magnitude_are_shorter() -> None:
    """A normal variable's sign and exponent have about 2.7 bits of their 9 (of 4 bytes)."""
    given = np.random.default_rng(1).standard_normal(100_000, np.float32)
    assert 3.3 < len(lossless.encode(given)) / len(given) < 3.6
    assert len(lossless.encode(np.zeros(100_000, "f4"))) < 1000


@wants_zstd
def test_other_bytes_are_refused() -> None:
    frame = lossless.encode(np.ones(100, "f4")).tobytes()
    skippable = bytes.fromhex("502a4d18 0c000000") + bytes(12)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(400))
    # Descriptor without a single segment: a window of 2 MiB, then 400 bytes of content.
    window = bytes.fromhex("28b52ffd 40 58") + (400 - 256).to_bytes(2, "little")
    cases = [
        *((frame[:stop], 100) for stop in range(len(frame))),
        *((frame + more, 100) for more in (b"0", bytes(8), frame, skippable)),
        *((frame, count) for count in (0, 1, 99, 101, 2**32 - 1)),
        *((skippable, 3), (unsized, 100), (window + frame[7:], 100), (bytes(64), 16)),
    ]
    for data, count in cases:
        with pytest.raises(WireError, match="frame of zstd"):
            lossless.decode(np.frombuffer(data, np.uint8), count)


@wants_zstd
def test_bombs_take_no_memory() -> None:
    """A frame of a few hundred bytes with a million values, where ten are wanted."""
    frame = lossless.encode(np.zeros(1_000_000, "f4"))
    assert len(frame) < 1000
    block = Block(Kind.GRADIENT, 1_000_000, Coding.ZSTD, frame, count=1_000_000)
    ((message,), _) = unpack(pack([Message(0, [block])]).data)
    coder = Coder(Codec(values="zstd"), [range(10)], torch.empty(0, dtype=torch.int64), 10, False)
    tracemalloc.start()
    try:
        for where in (None, torch.arange(5)):
            with pytest.raises(WireError, match="1000000 values, wanted"):
                coder.decode(message.blocks, where)
        with pytest.raises(WireError, match="wanted 10"):
            sparse.add(torch.zeros(10), message.blocks[0])
        with pytest.raises(WireError, match="wanted 40"):
            lossless.decode(frame, 10)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [0, 3])
def test_a_frame_is_empty_only_without_values(count: int) -> None:
    frame = np.zeros(0 if count else 4, np.uint8)
    with pytest.raises(WireError, match=f"a frame of {len(frame)} bytes for {count} values"):
        pack([Message(0, [Block(Kind.MODEL, 9, Coding.ZSTD, frame, count=count)])])
    block = Block(Kind.MODEL, 9, Coding.ZSTD, coded.frame(values(3)), count=3)
    broken = pack([Message(0, [block])]).data.copy()
    broken[72:80] = 0  # the frame's length
    with pytest.raises(WireError, match="a frame of 0 bytes for 3 values"):
        unpack(broken)
    for length in (2**63, 2**64 - 1, 2**32):
        broken[72:80] = np.frombuffer(length.to_bytes(8, "little"), np.uint8)
        with pytest.raises(WireError, match=f"{length}|bytes wanted"):
            unpack(broken)


def test_frames_of_another_shape_are_refused() -> None:
    for frame in (np.zeros(4, "f4"), np.zeros((2, 2), np.uint8)):
        with pytest.raises(WireError, match="a frame is"):
            pack([Message(0, [Block(Kind.MODEL, 9, Coding.ZSTD, frame, count=1)])])


@wants_zstd
def test_statistics_are_among_the_values() -> None:
    """Nothing is lost, so they need no block of their own."""
    about = Coder(Codec(values="zstd"), [range(6)], torch.tensor([6, 7]), 8, apart=False)
    block = sparse.block(Kind.GRADIENT, torch.arange(8.0))
    (found,) = about.encode([block], None, key(1, Purpose.ROUND, 0, 0))
    assert (found.coding, found.count) == (Coding.ZSTD, 8)


# ---- runs


@wants_zstd
@pytest.mark.parametrize(
    "words",
    [
        ("codec.values={}",),
        ("method.name=topk", "codec.values={}", "codec.positions=delta"),
        ("method.name=topk", "codec.down.values={}", "codec.down.sparsity=0.5"),
    ],
    ids=" ".join,
)
def test_a_run_ends_at_the_very_model_of_float32(words: tuple[str, ...]) -> None:
    one, other = (run(small(*(word.format(v) for word in words))) for v in ("zstd", "f4"))
    assert one.sha256 == other.sha256
    sent = [
        sum(int(found.tables["clients"][f"{way}_gradient"].sum()) for way in ("up", "down"))
        for found in (one, other)
    ]
    assert sent[0] < sent[1]


@wants_zstd
def test_feedback_without_effect_is_refused() -> None:
    for kind in ("classic", "ef21"):
        found = refusal("codec.values=zstd", f"feedback={kind}")
        assert found.startswith(f"feedback = '{kind}': wanted codec.values other than 'f4' and")


@pytest.mark.parametrize("path", ["codec", "codec.down"])
def test_without_the_package_it_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "zstandard" else find(name))
    assert refusal(f"{path}.values=zstd") == (
        f"{path}.values = 'zstd': wanted the package zstandard, found none; pip install zstandard"
    )
    assert not refusal(f"{path}.values=f2")
