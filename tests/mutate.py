"""Mutated buffers: `python -m tests.mutate N [SEED [FIRST]]` reads so many of them.

A buffer with a few bits, bytes, heads or lengths changed is refused with a `WireError`, or what it
stands for is sound and is written as the very same bytes. Neither takes more memory than some times
its length, whatever numbers stand in its heads. Each case follows from the seed and its number, so
that a finding can be tried again: `1 SEED NUMBER`.
"""

import sys
import traceback
import tracemalloc
from contextlib import suppress

import numpy as np

from fedmpi.messages import lossless
from fedmpi.messages.codec import (
    BLOCK,
    BUFFER,
    DTYPES,
    MESSAGE,
    Block,
    Coding,
    Kind,
    Message,
    Places,
    Scale,
    WireError,
    pack,
    unpack,
)
from tests import coded
from tests.coded import HAS_ZSTD
from tests.messages.test_codec import check_sound, resized

TIMES = 100
"""Bytes of memory for each byte of a buffer; a bit of a bitmap becomes a position of 4 bytes."""
BESIDE = 1 << 15
"""Bytes of memory beside these, for objects and their names."""
NUMBERS = (0, 1, 2, 7, 8, 63, 2**16, 2**31, 2**32 - 1, 2**32, 2**62, 2**64 - 1)
KINDS = [kind for kind in Kind if kind != Kind.HEADER]
MOST = 400
"""Values of a block, but for some that are positions alone."""
ONES = np.ones(MOST, "f4")
CODED = [None, *(places for places in Places if places != Places.AGREED)]


def drawn(random: np.random.Generator) -> Block:
    """Any block of a vector of at most some hundred elements, or one of very many."""
    coding = Coding(random.integers(len(Coding)))
    size = int(random.integers(1, 400)) if random.random() < 0.9 else int(random.integers(2**32))
    count = int(random.integers(min(size, 40) + 1)) if random.random() < 0.8 else min(size, 400)
    places = indices = None
    if coding == Coding.NONE or random.random() < 0.7:
        indices = np.unique(random.integers(0, size, count, np.uint32))
        count, places = len(indices), CODED[random.integers(len(CODED))]
        if places == Places.BITMAP and size > 400:  # it would be long
            places = Places.DELTA
    about = KINDS[random.integers(len(KINDS))], size, coding
    if coding == Coding.NONE:
        return Block(*about, None, indices, places=places)
    if coding == Coding.ZSTD:
        values = np.frombuffer(random.bytes(4 * count), "<f4") if random.random() < 0.5 else ONES
        frame = lossless.encode(values[:count]) if HAS_ZSTD else coded.frame(values[:count])
        return Block(*about, frame, indices, places=places, count=len(values[:count]))
    if coding != Coding.CODES:
        values = np.frombuffer(random.bytes(DTYPES[coding].itemsize * count), DTYPES[coding])
        return Block(*about, values, indices, places=places)
    bits = int(random.integers(1, 17))
    codes = random.integers(2**bits, size=count)
    return coded.block(*about[:2], codes, bits, Scale(-1.0, 0.5), indices, places)


def mutated(data: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A buffer with one to four changes."""
    data = data.copy()
    for _ in range(random.integers(1, 5)):
        place, way = int(random.integers(len(data))), random.integers(7)
        if way == 0:
            data[place] ^= np.uint8(1 << random.integers(8))
        elif way == 1:
            data[place] = random.integers(256)
        elif way in (2, 3):  # a number of a head
            width = 4 if way == 2 else 8
            # Most heads are the first: those of the buffer, a message and a block.
            heads = (BUFFER.size + MESSAGE.size + BLOCK.size) // 4
            words = min(heads, len(data) // 4) if random.random() < 0.7 else len(data) // 4
            place = 4 * int(random.integers(words))
            number = NUMBERS[random.integers(len(NUMBERS))] & (1 << 8 * int(width)) - 1
            raw = np.frombuffer(number.to_bytes(width, "little"), np.uint8)
            data[place : place + width] = raw[: max(0, len(data) - place)]
        elif way == 4:  # a number that differs by little
            place = 4 * int(random.integers(len(data) // 4))
            data[place : place + 4].view("<u4")[:] += np.uint32(random.integers(-3, 4) % 2**32)
        elif way == 5:
            length = max(0, len(data) + int(random.integers(-40, 41)))
            data = resized(data, max(BUFFER.size, length), bool(random.integers(2)))
        else:  # bytes from elsewhere
            start, length = int(random.integers(len(data))), int(random.integers(1, 33))
            piece = data[start : start + length][: len(data) - place].copy()
            data[place : place + len(piece)] = piece
    return data


def case(seed: int, number: int) -> np.ndarray:
    """A mutated buffer."""
    random = np.random.default_rng([seed, number])
    blocks = [drawn(random) for _ in range(random.integers(1, 4))]
    return mutated(pack([Message(int(random.integers(9)), blocks, 1.5)]).data, random)


def check_frame(block: Block) -> None:
    """A frame of zstd has as many values as its block says, or is refused.

    The receiver knows how many it wants, and reads no frame of more.
    """
    if block.coding != Coding.ZSTD or not HAS_ZSTD or block.count > MOST:
        return
    assert block.values is not None
    with suppress(WireError):
        values = lossless.decode(block.values, block.count)
        assert (values.dtype, values.shape) == (np.dtype("<f4"), (block.count,))


def fault(data: np.ndarray) -> str:
    """What is wrong with what becomes of a buffer; nothing if all is well."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    found = None
    try:
        found, account = unpack(data)
    except WireError:
        pass
    except Exception:
        return traceback.format_exc()
    taken = tracemalloc.get_traced_memory()[1] - before
    if taken > TIMES * len(data) + BESIDE:
        return f"{taken} bytes of memory for {len(data)}"
    if found is None:
        return ""
    try:
        for message in found:
            check_sound(message)
            for block in message.blocks:
                check_frame(block)
        again, accounted = pack(found)
    except Exception:
        return traceback.format_exc()
    same = again.tobytes() == data.tobytes() and accounted.tolist() == account.tolist()
    return "" if same else "what was read is written in another way"


def run(count: int, seed: int = 0, first: int = 0) -> int:
    """Reads buffers one after the other; prints faults, and how many there are."""
    faults, three = 0, np.arange(3, dtype=np.uint32)
    # What is compiled takes memory once.
    for places in CODED:
        block = Block(Kind.MASK, 40, Coding.NONE, None, three, places=places)
        unpack(pack([Message(0, [block])]).data)
    tracemalloc.start()
    try:
        for number in range(first, first + count):
            said = fault(case(seed, number))
            if said:
                faults += 1
                print(f"--- {seed} {number}: {said[-1500:]}", flush=True)
            if (number + 1 - first) % 100_000 == 0:
                print(f"{number + 1 - first} read, {faults} faults", flush=True)
    finally:
        tracemalloc.stop()
    print(f"{count} read, {faults} faults")
    return faults


if __name__ == "__main__":
    sys.exit(1 if run(*map(int, sys.argv[1:])) else 0)
