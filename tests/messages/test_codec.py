"""The wire format: what goes in comes out, what breaks a rule is refused, and nothing else happens.

The bytes themselves are pinned in `test_bytes`.
"""

import struct
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.messages.codec import (
    BLOCK,
    BUFFER,
    DTYPES,
    EVERYONE,
    MESSAGE,
    NO_SCALE,
    Block,
    Coding,
    Kind,
    Message,
    Places,
    Scale,
    WireError,
    pack,
    rice,
    unpack,
    weigh,
)
from tests import coded

some = settings(max_examples=150, deadline=None)
many = settings(max_examples=600, deadline=None)

WIDTHS = range(1, 17)
KINDS = [kind for kind in Kind if kind != Kind.HEADER]
CODINGS = [coding for coding in Coding if coding in DTYPES]
CODED = [places for places in Places if places != Places.AGREED]


def same(found: np.ndarray | None, wanted: np.ndarray | None) -> bool:
    """Equal to the bit, NaN included, and of one dtype."""
    if found is None or wanted is None:
        return found is wanted
    return found.dtype == wanted.dtype and found.tobytes() == wanted.tobytes()


def check_equal(found: Sequence[Message], wanted: Sequence[Message]) -> None:
    """Two lists of messages agree in every field."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert (one.client, one.weight) == (other.client, other.weight)
        assert len(one.blocks) == len(other.blocks)
        for a, b in zip(one.blocks, other.blocks, strict=True):
            assert (a.kind, a.size, a.coding, a.bits) == (b.kind, b.size, b.coding, b.bits)
            assert a.count == b.count
            assert same(np.array(a.scale, "f4"), np.array(b.scale, "f4"))
            assert same(a.values, b.values)
            assert same(a.indices, b.indices)
            assert (a.places is None) == (a.indices is None)
            assert a.places is None or b.places in (None, a.places)


def check_sound(message: Message) -> None:
    """A message and its blocks keep the rules that `Message` and `Block` promise."""
    assert 0 <= message.client <= EVERYONE
    assert 0 <= message.weight < np.inf
    for block in message.blocks:
        assert block.kind in KINDS
        assert 0 <= block.count <= block.size < 2**32
        assert (block.values is None) == (block.coding == Coding.NONE)
        assert block.values is not None or block.indices is not None
        if block.values is not None:
            is_packed = block.coding in (Coding.CODES, Coding.ZSTD)
            wanted = np.dtype("u1") if is_packed else DTYPES[block.coding]
            length = -(-block.count * block.bits // 8) if is_packed else block.count
            if block.coding == Coding.ZSTD:
                length = len(block.values)
                assert (length > 0) == (block.count > 0)
            assert (block.values.dtype, block.values.shape) == (wanted, (length,))
        if block.coding == Coding.CODES:
            assert block.values is not None and 1 <= block.bits <= 16
            again = coded.packed(coded.codes_of(block), block.bits)
            assert same(again, np.array(block.values)), "no bits behind the last code"
        else:
            assert (block.bits, block.scale) == (0, NO_SCALE)
        if block.indices is not None:
            assert block.indices.dtype == np.uint32
            assert block.indices.shape == (block.count,)
            assert (np.diff(block.indices.astype(np.int64)) > 0).all()
            assert (block.indices < block.size).all()


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    """Any block that a buffer can hold, of at most some hundred elements."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    coding = draw(st.sampled_from(Coding))
    size = draw(st.integers(0, 300))
    count = draw(st.integers(0, size))
    indices = None
    if coding == Coding.NONE or draw(st.booleans()):
        indices = np.sort(rng.choice(size, count, replace=False)).astype(np.uint32)
    kind = draw(st.sampled_from(KINDS))
    placed = draw(st.sampled_from([None, *CODED]))
    if coding == Coding.NONE:
        return Block(kind, size, coding, None, indices, places=placed)
    if coding == Coding.ZSTD:
        frame = coded.frame(np.frombuffer(rng.bytes(4 * count), "<f4"))
        return Block(kind, size, coding, frame, indices, places=placed, count=count)
    if coding != Coding.CODES:
        # All patterns of bits, NaN with a payload included.
        values = np.frombuffer(rng.bytes(DTYPES[coding].itemsize * count), DTYPES[coding])
        return Block(kind, size, coding, values, indices, places=placed)
    bits = draw(st.integers(1, 16))
    codes = rng.integers(2**bits, size=count)
    scale = Scale(draw(st.floats(width=32)), draw(st.floats(width=32)))
    return coded.block(kind, size, codes, bits, scale, indices, placed)


messages = st.builds(
    Message,
    st.integers(0, EVERYONE),
    st.lists(blocks(), max_size=4),
    st.floats(0, allow_infinity=False),
)


@given(st.lists(messages, max_size=4))
@some
def test_what_goes_in_comes_out(given: list[Message]) -> None:
    data, account = pack(given)
    found, again = unpack(data)
    check_equal(found, given)
    np.testing.assert_array_equal(account, again)
    assert account.sum() + BUFFER.size == len(data)
    assert len(data) % 8 == 0
    for message in found:
        check_sound(message)


@given(st.lists(messages, max_size=4))
@some
def test_weighing_is_packing_without_a_buffer(given: list[Message]) -> None:
    """The same bytes by kind, and the same refusals."""
    np.testing.assert_array_equal(weigh(given), pack(given).bytes)
    assert weigh(given).shape == (len(given), len(Kind))
    broken = Message(1, [Block(Kind.GRADIENT, 3, Coding.F4, np.zeros(4, "f4"))])
    with pytest.raises(WireError):
        weigh([*given, broken])


@given(st.lists(messages, max_size=3), st.integers(1, 7))
@some
def test_any_place_in_memory_will_do(given: list[Message], offset: int) -> None:
    data = pack(given).data
    shifted = np.empty(len(data) + offset, np.uint8)[offset:]
    shifted[:] = data
    shifted.flags.writeable = False
    check_equal(unpack(shifted)[0], given)
    check_equal(unpack(np.repeat(data, 2)[::2])[0], given)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 65])
def test_codes_of_every_width(bits: int, count: int) -> None:
    top = 2**bits - 1
    codes = np.resize([0, top, 1, top - 1, top // 2], count)
    block = coded.block(Kind.GRADIENT, 100, codes, bits, Scale(-1.5, 0.25))
    data, account = pack([Message(0, [block])])
    assert account[0, Kind.GRADIENT] == -(-count * bits // 8)
    check_equal(unpack(data)[0], [Message(0, [block])])


@pytest.mark.parametrize("coding", CODINGS)
def test_empty_values(coding: Coding) -> None:
    nothing = np.empty(0, DTYPES[coding])
    for size in (0, 1, 100):
        for indices in (None, np.empty(0, np.uint32)):
            given = [Message(3, [Block(Kind.MODEL, size, coding, nothing, indices)] * 2)]
            data, account = pack(given)
            check_equal(unpack(data)[0], given)
            assert len(data) == BUFFER.size + MESSAGE.size + 2 * BLOCK.size
            assert account[0, Kind.HEADER] == MESSAGE.size + 2 * BLOCK.size


@pytest.mark.parametrize(("blocks", "messages"), [(0, 0), (0, 3), (3, 1)])
def test_nothing_and_several(blocks: int, messages: int) -> None:
    one = Block(Kind.LABEL, 3, Coding.U1, np.array([1, 2, 3], np.uint8))
    given = [Message(client, [one] * blocks, client / 2) for client in range(messages)]
    data, account = pack(given)
    check_equal(unpack(data)[0], given)
    assert account.shape == (messages, len(Kind))
    assert len(data) == BUFFER.size + messages * (MESSAGE.size + blocks * (BLOCK.size + 8))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 25, 250, 256, 257, 264, 1000])
def test_smaller_of_positions_and_bitmap(size: int) -> None:
    bitmap = -(-size // 8)
    for count in {0, 1, bitmap // 4 - 1, bitmap // 4, bitmap // 4 + 1, size} & set(range(size + 1)):
        indices = np.arange(size - count, size, dtype=np.uint32)
        block = Block(Kind.MASK, size, Coding.NONE, None, indices)
        data, account = pack([Message(0, [block])])
        assert account[0, Kind.MASK] == min(4 * count, bitmap)
        places = data[BUFFER.size + MESSAGE.size + 2]
        assert places == (1 if 4 * count <= bitmap else 2), "a tie is for positions: no search"
        assert same(unpack(data)[0][0].blocks[0].indices, indices)


def test_positions_are_masks_bytes_and_padding_headers() -> None:
    values, indices = np.ones(3, "f4"), np.array([5, 77, 999], np.uint32)
    given = [
        Message(0, [Block(Kind.GRADIENT, 1000, Coding.F4, values, indices)]),
        Message(1, [coded.block(Kind.ACTIVATION, 9, np.ones(9), 3)]),
        Message(2, [Block(Kind.LABEL, 5, Coding.U1, np.ones(5, "u1"))] * 2),
    ]
    wanted = np.zeros((3, len(Kind)), np.int64)
    wanted[0, [Kind.GRADIENT, Kind.MASK, Kind.HEADER]] = 12, 12, 16 + 32 + 4 + 4
    wanted[1, [Kind.ACTIVATION, Kind.HEADER]] = 4, 16 + 32 + 4
    wanted[2, [Kind.LABEL, Kind.HEADER]] = 10, 16 + 2 * (32 + 3)
    data, account = pack(given)
    np.testing.assert_array_equal(account, wanted)
    np.testing.assert_array_equal(unpack(data)[1], wanted)


@pytest.mark.parametrize("coding", CODINGS)
def test_values_and_positions_are_views(coding: Coding) -> None:
    values, indices = np.ones(3, DTYPES[coding]), np.array([2, 5, 7], np.uint32)
    data = pack([Message(0, [Block(Kind.MODEL, 1000, coding, values, indices)])]).data
    (message,), _ = unpack(data)
    assert np.shares_memory(message.blocks[0].values, data)
    assert np.shares_memory(message.blocks[0].indices, data)


@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_are_views(bits: int) -> None:
    data = pack([Message(0, [coded.block(Kind.MODEL, 5, [0, 1, 1, 0, 1], bits)])]).data
    assert np.shares_memory(unpack(data)[0][0].blocks[0].values, data)


def test_packing_copies() -> None:
    values = np.ones(4, "f4")
    data = pack([Message(0, [Block(Kind.MODEL, 4, Coding.F4, values)])]).data
    values[:] = 2
    assert (unpack(data)[0][0].blocks[0].values == 1).all()


@pytest.mark.parametrize("step", [2, -1])
def test_strided_arrays_are_packed(step: int) -> None:
    indices = np.arange(0, 40, dtype=np.uint32)[:: abs(step)]
    if step < 0:
        indices = indices[::-1].copy()[::-1]
    for coding, values in (
        (Coding.F4, np.arange(80, dtype="f4")),
        (Coding.CODES, np.arange(80, dtype="u1")),
    ):
        bits = 0 if coding == Coding.F4 else 8
        strided = values[::step][: len(indices)]
        for size in (100, 10_000):
            given = [Message(0, [Block(Kind.MODEL, size, coding, strided, indices, bits)])]
            check_equal(unpack(pack(given).data)[0], given)


FINE = {
    "kind": Kind.MODEL,
    "size": 8,
    "coding": Coding.F4,
    "values": np.zeros(2, "f4"),
    "indices": np.array([1, 4], np.uint32),
}
"""A block without fault."""
THREE = {"values": np.zeros(3, "f4"), "size": 1000}
CODES = {"coding": Coding.CODES, "values": np.zeros(1, "u1"), "bits": 4}


def places(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint32)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"kind": Kind.HEADER}, id="headers are no content"),
        pytest.param({"size": -1}, id="negative size"),
        pytest.param({"size": 2**32}, id="size of more than 32 bits"),
        pytest.param({"size": 1, "indices": None}, id="more values than size"),
        pytest.param({"values": None}, id="coding without values"),
        pytest.param({"coding": Coding.NONE}, id="values without coding"),
        pytest.param({"coding": Coding.NONE, "values": None, "indices": None}, id="nothing at all"),
        pytest.param({"coding": Coding.NONE, "values": None, "bits": 1}, id="bits without values"),
        pytest.param({"values": np.zeros(2)}, id="float64"),
        pytest.param({"values": np.zeros(2, ">f4")}, id="big-endian values"),
        pytest.param({"values": np.zeros((2, 1), "f4")}, id="values are a matrix"),
        pytest.param({"values": np.zeros((), "f4")}, id="values are a scalar"),
        pytest.param({"coding": Coding.BF16}, id="values of another coding"),
        pytest.param({"bits": 8}, id="bits without codes"),
        pytest.param({"scale": Scale(0.0, 1.0)}, id="step without codes"),
        pytest.param({"scale": Scale(1.0, 0.0)}, id="low without codes"),
        pytest.param({"scale": Scale(np.nan, 0.0)}, id="NaN without codes"),
        pytest.param({"indices": places(1)}, id="fewer positions than values"),
        pytest.param({"indices": places(1, 2, 3)}, id="more positions than values"),
        pytest.param({"indices": places(4, 1)}, id="positions descend"),
        pytest.param({"indices": places(4, 4)}, id="a position twice"),
        pytest.param({"indices": places(1, 8)}, id="a position beyond the vector"),
        pytest.param({"indices": places(1, 2000), "size": 1000}, id="the same, as positions"),
        pytest.param({"indices": places(5, 2), "size": 1000}, id="descend, as positions"),
        pytest.param(THREE | {"indices": places(1, 5, 3)}, id="positions descend at last"),
        pytest.param(THREE | {"indices": places(1, 5, 5)}, id="the last position twice"),
        pytest.param({"places": Places.AGREED}, id="positions that are not to be sent"),
        pytest.param({"indices": np.array([1, 4])}, id="positions of int64"),
        pytest.param({"indices": np.array([1, 4], np.int32)}, id="positions of int32"),
        pytest.param({"indices": np.array([1, 4], ">u4")}, id="big-endian positions"),
        pytest.param({"indices": places(1, 4).reshape(2, 1)}, id="positions are a matrix"),
        pytest.param(CODES | {"bits": 0}, id="codes of no bits"),
        pytest.param(CODES | {"bits": 17}, id="codes of 17 bits"),
        pytest.param(CODES | {"bits": -1}, id="codes of -1 bits"),
        pytest.param(CODES | {"bits": 9}, id="too few bytes of codes"),
        pytest.param(CODES | {"values": np.zeros(2, "u1")}, id="too many bytes of codes"),
        pytest.param(CODES | {"values": np.zeros(1, "u2")}, id="codes as words"),
        pytest.param(CODES | {"values": np.array([16], "u1"), "bits": 2}, id="bits behind codes"),
        pytest.param(CODES | {"values": np.zeros(1, "i1")}, id="signed codes"),
        pytest.param(CODES | {"values": np.zeros((1, 1), "u1")}, id="codes are a matrix"),
        pytest.param(CODES | {"count": 1}, id="fewer codes than positions"),
        pytest.param({"count": 1}, id="another count than that of values"),
        pytest.param({"indices": None, "count": 3}, id="a larger count than that of values"),
        pytest.param(CODES | {"scale": Scale(1e300, 0.0)}, id="a scale that is no float32"),
    ],
)
def test_pack_refuses(fault: dict) -> None:
    pack([Message(0, [Block(**FINE)])])
    pack([Message(0, [Block(**FINE | CODES)])])
    with pytest.raises(WireError):
        pack([Message(0, [Block(**FINE | fault)])])


@pytest.mark.parametrize("bits", WIDTHS[:-1])
def test_pack_refuses_the_first_bit_behind_the_codes(bits: int) -> None:
    if bits != 8:
        full = coded.block(Kind.MODEL, 9, [2**bits - 1] * 3, bits)
        pack([Message(0, [full])])
        assert full.values is not None
        data = full.values.copy()
        data[-1] |= 1 << 3 * bits % 8
        with pytest.raises(WireError, match="bits behind their end"):
            pack([Message(0, [replace(full, values=data)])])


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf, -np.inf])
def test_weights_are_finite_and_not_negative(weight: float) -> None:
    with pytest.raises(WireError, match="weight"):
        pack([Message(0, [], weight)])
    data = pack([Message(0, [])]).data
    data[BUFFER.size + 8 :] = np.frombuffer(struct.pack("<d", weight), np.uint8)
    with pytest.raises(WireError, match="weight"):
        unpack(data)


@pytest.mark.parametrize("client", [-1, 2**32])
def test_clients_are_32_bits(client: int) -> None:
    with pytest.raises(WireError):
        pack([Message(client, [])])


@pytest.mark.parametrize(
    "data", [np.zeros(24), np.zeros((3, 8), np.uint8), np.zeros(24, np.int8), np.zeros(0, np.uint8)]
)
def test_unpack_wants_a_vector_of_bytes(data: np.ndarray) -> None:
    with pytest.raises(WireError):
        unpack(data)


# What is not a buffer. `VICTIM` has a block of every coding and of every way to write positions.

GAPS = Kind.MASK, 300, Coding.NONE, None
VICTIM = pack(
    [
        Message(
            4,
            [
                Block(Kind.GRADIENT, 130, Coding.F4, np.ones(4, "f4"), places(3, 70, 71, 129)),
                Block(Kind.MODEL, 5, Coding.F2, np.ones(3, "f2"), places(0, 2, 4)),
                Block(Kind.LABEL, 3, Coding.U1, np.ones(3, "u1")),
                Block(Kind.MASK, 11, Coding.NONE, None, places(1, 2, 10)),
            ],
            2.5,
        ),
        Message(EVERYONE, []),
        Message(
            9,
            [
                Block(Kind.MODEL, 3, Coding.BF16, np.ones(3, "u2")),
                Block(Kind.LABEL, 1, Coding.U2, np.ones(1, "u2")),
                Block(Kind.LABEL, 1, Coding.U4, np.ones(1, "u4")),
                coded.block(Kind.GRADIENT, 7, np.ones(7), 3, Scale(-1.0, 2.0)),
                coded.block(Kind.ACTIVATION, 4, np.ones(2), 11, NO_SCALE, places(1, 3)),
                Block(*GAPS, places(3, 64, 99), places=Places.GOLOMB),
                Block(*GAPS, places(3, 260, 261), places=Places.DELTA),
            ],
            1.0,
        ),
    ]
).data


def refused_or_sound(data: np.ndarray) -> bool:
    """Whether bytes are refused; if not, what they stand for is without fault."""
    try:
        found, account = unpack(data)
    except WireError:
        return True
    for message in found:
        check_sound(message)
    assert account.sum() + BUFFER.size == len(data)
    check_equal(unpack(pack(found).data)[0], found)
    return False


def flips(data: np.ndarray) -> Iterator[np.ndarray]:
    """The buffer with each of its bits flipped in turn."""
    for bit in range(8 * len(data)):
        flipped = data.copy()
        flipped[bit // 8] ^= 1 << bit % 8
        yield flipped


def test_every_single_bit_matters_or_is_content() -> None:
    refused = [refused_or_sound(flipped) for flipped in flips(VICTIM)]
    # What may change unseen is content: values, clients, weights, kinds, scales.
    assert 0.4 < np.mean(refused) < 0.8


def test_no_single_bit_costs_memory() -> None:
    unpack(VICTIM)  # what it calls is compiled
    tracemalloc.start()
    try:
        for flipped in flips(VICTIM):
            with suppress(WireError):
                unpack(flipped)
        assert tracemalloc.get_traced_memory()[1] < 1 << 17
    finally:
        tracemalloc.stop()


def test_header_and_padding_are_exact() -> None:
    for flipped in islice(flips(VICTIM), 8 * BUFFER.size):
        with pytest.raises(WireError):
            unpack(flipped)
    data = pack([Message(0, [Block(Kind.LABEL, 3, Coding.U1, np.ones(3, "u1"))])]).data
    for byte in range(len(data) - 5, len(data)):
        flipped = data.copy()
        flipped[byte] = 1
        with pytest.raises(WireError, match="padding"):
            unpack(flipped)


@pytest.mark.parametrize("adjusted", [False, True], ids=["length as it was", "length adjusted"])
def test_every_truncation_is_refused(adjusted: bool) -> None:
    for length in range(len(VICTIM)):
        with pytest.raises(WireError):
            unpack(resized(VICTIM, length, adjusted))


@pytest.mark.parametrize("adjusted", [False, True], ids=["length as it was", "length adjusted"])
def test_every_lengthening_is_refused(adjusted: bool) -> None:
    for length in range(len(VICTIM) + 1, len(VICTIM) + 80):
        with pytest.raises(WireError):
            unpack(resized(VICTIM, length, adjusted))


def resized(data: np.ndarray, length: int, adjusted: bool) -> np.ndarray:
    """The buffer cut off, or filled up with zeros; its header may be made to agree."""
    found = np.zeros(length, np.uint8)
    kept = min(length, len(data))
    found[:kept] = data[:kept]
    if adjusted and length >= BUFFER.size:
        found[16:24] = np.frombuffer(struct.pack("<Q", length), np.uint8)
    return found


numbers = st.sampled_from([0, 1, 7, 8, 64, 2**16, 2**31, 2**32 - 1, 2**32, 2**62, 2**64 - 1])
damages = st.one_of(
    st.tuples(st.just("bit"), st.integers(0), st.integers(0, 7)),
    st.tuples(st.just("byte"), st.integers(0), st.integers(0, 255)),
    st.tuples(st.sampled_from(["u4", "u8"]), st.integers(0), numbers),
    st.tuples(st.just("length"), st.integers(0, 700), st.integers(0, 0)),
)


@given(st.lists(messages, max_size=3), st.lists(damages, min_size=1, max_size=6), st.booleans())
@many
def test_damaged_buffers(given: list[Message], damage: list[tuple], adjusted: bool) -> None:
    data = pack(given).data.copy()
    for form, where, what in damage:
        if form == "length":
            data = resized(data, where, adjusted)
        elif form in ("u4", "u8"):
            # Fields of headers lie at multiples of 4.
            width = int(form[1])
            place = where * 4 % max(len(data) - width, 1)
            raw = struct.pack("<Q", what)[:width]
            data[place : place + width] = np.frombuffer(raw, np.uint8)[: len(data) - place]
        elif len(data) and form == "bit":
            data[where % len(data)] ^= 1 << what
        elif len(data):
            data[where % len(data)] = what
    refused_or_sound(data)


@given(st.binary(max_size=200), st.booleans())
@some
def test_noise(noise: bytes, dressed: bool) -> None:
    data = np.frombuffer(noise, np.uint8)
    if dressed:
        data = resized(np.concatenate([VICTIM[: BUFFER.size], data]), BUFFER.size + len(data), True)
    refused_or_sound(data)


FIELDS = {
    "magic": (0, "<I"),
    "version": (4, "<H"),
    "messages": (8, "<I"),
    "length": (16, "<Q"),
    "blocks": (BUFFER.size + 4, "<I"),
    "kind": (BUFFER.size + MESSAGE.size, "<B"),
    "coding": (BUFFER.size + MESSAGE.size + 1, "<B"),
    "places": (BUFFER.size + MESSAGE.size + 2, "<B"),
    "bits": (BUFFER.size + MESSAGE.size + 3, "<B"),
    "gaps": (BUFFER.size + MESSAGE.size + 4, "<I"),
    "size": (BUFFER.size + MESSAGE.size + 8, "<Q"),
    "count": (BUFFER.size + MESSAGE.size + 16, "<Q"),
}


def changed(data: np.ndarray, field: str, value: int) -> np.ndarray:
    """The buffer with another value in a field of its first head of that sort."""
    found = data.copy()
    place, form = FIELDS[field]
    raw = np.frombuffer(struct.pack(form, value), np.uint8)
    found[place : place + len(raw)] = raw
    return found


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("magic", 0, "not a buffer"),
        ("version", 3, "version 3"),
        ("length", 8, "says 8 bytes"),
        ("messages", 2**32 - 1, "messages"),
        ("messages", 2, "bytes behind the last message"),
        ("blocks", 2**32 - 1, "blocks"),
        ("kind", Kind.HEADER, "no such block"),
        ("coding", 9, "no such block"),
        ("places", 5, "no such block"),
        ("gaps", 1, "a length of 1 for positions in POSITIONS"),
        ("bits", 4, "codes of 4 bits"),
        ("size", 2**32, "of a vector of"),
        ("size", 1, "of a vector of 1"),
        ("count", 2**32 - 1, "of a vector of"),
    ],
)
def test_errors_say_what_is_wrong(field: str, value: int, text: str) -> None:
    with pytest.raises(WireError, match=text):
        unpack(changed(VICTIM, field, value))


SIXTEEN = coded.block(Kind.MODEL, 4, np.ones(4), 16)
ELEVEN = Block(Kind.MASK, 11, Coding.NONE, None, places(1, 2, 10))


@pytest.mark.parametrize(
    ("block", "field", "value", "text"),
    [
        (SIXTEEN, "bits", 0, "codes of 0 bits"),
        (SIXTEEN, "bits", 17, "codes of 17 bits"),
        (SIXTEEN, "bits", 255, "codes of 255 bits"),
        (SIXTEEN, "count", 5, "5 values of a vector of 4"),
        (ELEVEN, "size", 10, "bits behind its end"),
        (ELEVEN, "count", 2, "a bitmap with 3 positions for 2 values"),
        (ELEVEN, "count", 4, "a bitmap with 3 positions for 4 values"),
        (Block(Kind.MASK, 0, Coding.NONE, None, places()), "places", 0, "neither values nor"),
    ],
)
def test_heads_that_do_not_fit_what_follows(
    block: Block, field: str, value: int, text: str
) -> None:
    data = pack([Message(0, [block])]).data
    unpack(data)
    with pytest.raises(WireError, match=text):
        unpack(changed(data, field, value))


@pytest.mark.parametrize("bits", [1, 3, 5, 7, 9, 12, 15])
def test_bits_behind_the_last_code(bits: int) -> None:
    """Two buffers never stand for the same codes."""
    count = 3
    data = pack([Message(0, [coded.block(Kind.MODEL, count, np.zeros(count), bits)])]).data
    for bit in range(count * bits, -(-count * bits // 8) * 8):
        damaged = data.copy()
        damaged[BUFFER.size + MESSAGE.size + BLOCK.size + bit // 8] |= 1 << bit % 8
        with pytest.raises(WireError, match="bits behind their end"):
            unpack(damaged)


@pytest.mark.parametrize("place", [0, 1])
def test_a_scale_that_cannot_be_written_again(place: int) -> None:
    """A quiet NaN stands for values that are none; reading makes a signalling one quiet."""
    scale = Scale(*(float("nan") if number == place else 0.5 for number in (0, 1)))
    data = pack([Message(0, [coded.block(Kind.GRADIENT, 3, np.arange(3), 2, scale)])]).data
    (message,), _ = unpack(data)
    assert np.isnan(message.blocks[0].scale[place])
    assert pack([message]).data.tobytes() == data.tobytes()
    at = BUFFER.size + MESSAGE.size + BLOCK.size - 8 + 4 * place
    data[at : at + 4].view("<u4")[:] = 0x7FAB0001
    with pytest.raises(WireError, match="signalling"):
        unpack(data)


def test_a_vector_of_4_gi_elements_costs_nothing_but_its_values() -> None:
    """A large `size` alone allocates nothing, in a buffer that claims a bitmap even less."""
    block = Block(Kind.MODEL, 2**32 - 1, Coding.F4, np.ones(2, "f4"), places(0, 2**32 - 2))
    data = pack([Message(0, [block])]).data
    assert len(data) == BUFFER.size + MESSAGE.size + BLOCK.size + 16
    assert unpack(data)[0][0].blocks[0].size == 2**32 - 1
    data = changed(data, "places", 2)
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            unpack(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()


# ---- Golomb's code


def golomb(indices: np.ndarray, size: int) -> Block:
    return Block(Kind.MASK, size, Coding.NONE, None, indices, places=Places.GOLOMB)


@given(st.integers(1, 5000), st.floats(0, 1), st.integers(0, 2**32 - 1))
@some
def test_golombs_code_goes_round_trip(size: int, share: float, seed: int) -> None:
    kept = np.random.default_rng(seed).random(size) < share
    indices = np.flatnonzero(kept).astype(np.uint32)
    (found,), _ = unpack(pack([Message(0, [golomb(indices, size)])]).data)
    np.testing.assert_array_equal(found.blocks[0].indices, indices)


@pytest.mark.parametrize(
    "indices",
    [
        [],
        [0],
        [2**32 - 2],
        [0, 2**32 - 2],
        list(range(40)),
        [*range(1000, 3000), 2**31],
    ],
    ids=str,
)
def test_golombs_code_of_positions_far_from_random(indices: list[int]) -> None:
    given = np.array(indices, np.uint32)
    (found,), _ = unpack(pack([Message(0, [golomb(given, 2**32 - 1)])]).data)
    np.testing.assert_array_equal(found.blocks[0].indices, given)


@given(st.lists(st.integers(1, 2**20), max_size=60), st.integers(0, 2**20))
@some
def test_golombs_code_of_any_gaps(gaps: list[int], behind: int) -> None:
    indices = np.cumsum(gaps, dtype=np.int64) - 1
    size = sum(gaps) + behind
    (found,), _ = unpack(pack([Message(0, [golomb(indices.astype(np.uint32), size)])]).data)
    np.testing.assert_array_equal(found.blocks[0].indices, indices)


def bits_a_position(share: float, bits: int) -> float:
    """On average, where that share of positions is random: Sattler et al., eq. 15."""
    return bits - 1 / np.expm1(2**bits * np.log1p(-share))


@given(st.floats(1e-4, 0.7), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_golombs_code_is_as_long_as_its_formula_says(share: float, seed: int) -> None:
    """Bits a position: b + 1 / (1 - (1 - p)^(2^b)), give or take five standard deviations."""
    size = 200_000
    count = int(share * size)
    indices = np.sort(np.random.default_rng(seed).choice(size, count, replace=False))
    account = pack([Message(0, [golomb(indices.astype(np.uint32), size)])]).bytes[0]
    bits = rice(size, count)
    wanted = count * bits_a_position(count / size, bits)
    # Upper parts are geometric, q^i (1 - q), or nearly: not independent, but the less they vary.
    q = (1 - count / size) ** (2**bits)
    deviation = np.sqrt(count * q) / (1 - q)
    byte, ends = 8, 2 / (1 - q)
    assert abs(8 * account[Kind.MASK] - wanted) <= 5 * deviation + byte + ends


@given(st.integers(2, 2**32 - 1), st.floats(1e-9, 1))
@some
def test_no_other_number_of_lower_bits_is_shorter(size: int, share: float) -> None:
    count = min(max(1, int(share * size)), size - 1)
    bits, exact = rice(size, count), count / size
    best = bits_a_position(exact, bits) * (1 - 1e-9)
    assert best <= bits_a_position(exact, bits + 1)
    assert bits == 0 or best <= bits_a_position(exact, bits - 1)


@pytest.mark.parametrize(
    ("share", "bits"), [(0.5, 0), (0.1, 3), (0.01, 6), (0.0025, 8), (0.001, 9)]
)
def test_golombs_code_is_close_to_the_entropy(share: float, bits: int) -> None:
    assert rice(2_000_000, int(share * 2_000_000)) == bits
    entropy = -(share * np.log2(share) + (1 - share) * np.log2(1 - share)) / share
    assert entropy <= bits_a_position(share, bits) + 1e-9 < 1.07 * entropy


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("gaps", 2, "2 unary bits for 3 of 100 positions"),
        ("gaps", 200, "200 unary bits for 3 of 100 positions"),
        ("gaps", 4, "gaps|padding"),
        ("count", 2, "gaps|unary|bytes"),
        ("size", 64, "unary|below 64|bits behind"),
    ],
)
def test_golombs_code_that_does_not_fit(field: str, value: int, text: str) -> None:
    data = pack([Message(0, [golomb(places(3, 64, 99), 100)])]).data
    with pytest.raises(WireError, match=text):
        unpack(changed(data, field, value))
