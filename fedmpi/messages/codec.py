"""Block <-> bytes: the wire format. Uses numpy only, and knows neither networks nor ranks.

A buffer is self-describing and little-endian, and each of its sections is padded to 8 bytes:

    buffer   magic u4 | version u2 | 0 u2 | messages u4 | 0 u4 | length u8            24 bytes
    message  client u4 | blocks u4 | weight f8                                        16 bytes
    block    kind u1 | coding u1 | places u1 | bits u1 | length u4 | size u8 | count u8
             | low f4 | step f4                                                       32 bytes
             positions: nothing, or count u4, or a bitmap of size bits (lowest bit first), or
             gaps in Golomb code: `length` bits, and rice(size, count) bits for each, or
             gaps as `length` bytes of varints
             values: nothing, or count values, or count codes of `bits` bits each, or
             length u8, and a frame of so many bytes that zstd made of count values

Positions that both sides know (an agreed mask, a shared seed) are not sent. All others are sent as
uint32 positions (4 * count bytes) or as a bitmap (size / 8 bytes), whichever is smaller, or in the
coding that a block asks for. Golomb code is the shortest for positions at random, and slower to
write and read. Varints take a byte for each gap below 128. `unpack` checks every length before it
reads, and returns values as views of the buffer. What is in a frame of zstd is checked by who reads
its values (`lossless`).
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import floor, log, log1p, log2, sqrt
from typing import NamedTuple

import numpy as np

from fedmpi.messages.kernels import places as coded
from fedmpi.messages.kernels.codes import Grid

MAGIC, VERSION = 0x49504D46, 2
BUFFER = struct.Struct("<IHHIIQ")
MESSAGE = struct.Struct("<IId")
BLOCK = struct.Struct("<BBBBIQQff")
_SCALE = struct.Struct("<ff")


class WireError(ValueError):
    """Bytes that are not a buffer of this version, or a block that no buffer can hold."""


class Kind(IntEnum):
    """Content of bytes, for the accounts; a block has any kind but the last."""

    MODEL = 0
    """Parameters."""
    GRADIENT = 1
    """Gradients, updates (accumulated gradients) and values derived from them."""
    ACTIVATION = 2
    """Activations at a cut of a split network."""
    LABEL = 3
    """Labels that leave a client."""
    MASK = 4
    """Positions and bitmaps, including those in blocks of other kinds."""
    HEADER = 5
    """Headers and padding."""


KINDS = len(Kind)


class Coding(IntEnum):
    """Data type of the values of a block."""

    NONE = 0
    """No values: the content is the positions."""
    F4 = 1
    F2 = 2
    BF16 = 3
    """The upper half of a float32, as uint16."""
    U1 = 4
    U2 = 5
    U4 = 6
    CODES = 7
    """Unsigned codes of 1 to 16 bits; code q encodes the value low + step * q."""
    ZSTD = 8
    """Values in float32, compressed: see `lossless`."""


DTYPES: dict[Coding, np.dtype] = {
    Coding.F4: np.dtype("<f4"),
    Coding.F2: np.dtype("<f2"),
    Coding.BF16: np.dtype("<u2"),
    Coding.U1: np.dtype("u1"),
    Coding.U2: np.dtype("<u2"),
    Coding.U4: np.dtype("<u4"),
}


class Places(IntEnum):
    """Encoding of the positions of a block."""

    AGREED = 0
    """No positions: both sides know them."""
    POSITIONS = 1
    BITMAP = 2
    GOLOMB = 3
    DELTA = 4
    """Gaps as varints."""


class Scale(NamedTuple):
    """Least value and step of codes: code q encodes low + step * q, in float32."""

    low: float
    step: float


NO_SCALE = Scale(0.0, 0.0)
INTEGERS = Scale(0.0, 1.0)
"""Scale of codes that stand for themselves."""


@dataclass(eq=False, slots=True)
class Block:
    """A vector of length `size`, some or all of whose values are given.

    Attributes:
        kind: content of the values.
        size: length of the whole vector, under 2**32.
        coding: data type of the values.
        values: 1-D array of the coding's dtype; codes are packed into bytes, lowest bit first,
            uint8 [ceil(count * bits / 8)], the last bits zero; a frame of zstd is uint8 [any], and
            empty if there are no values.
        indices: positions of the values, uint32, strictly ascending; None if both sides know them.
        bits: bits of a code, 0 for all other codings.
        scale: least value and step of codes; zeros for all other codings.
        places: encoding of positions that are sent; None stands for the shorter one of POSITIONS
            and BITMAP. A block that was read has the one that it came in.
        count: number of elements of the vector that are given; by default as many as positions, or
            else as values. Codes and frames without positions need it.
        grid: what codes stand for, if other blocks tell it and not `scale`; it is not written.
    """

    kind: Kind
    size: int
    coding: Coding
    values: np.ndarray | None
    indices: np.ndarray | None = None
    bits: int = 0
    scale: Scale = NO_SCALE
    places: Places | None = None
    count: int = -1
    grid: Grid | None = None

    def __post_init__(self) -> None:
        if self.count < 0:
            given = self.values if self.indices is None else self.indices
            self.count = 0 if given is None else given.size


@dataclass(eq=False, slots=True)
class Message:
    """Blocks from or to one client, with the client's weight in averages."""

    client: int
    blocks: Sequence[Block]
    weight: float = 0.0


EVERYONE = 0xFFFFFFFF
"""The `client` of a message to all clients."""


class Buffer(NamedTuple):
    """Packed messages and their bytes by kind.

    Attributes:
        data: the buffer that is handed to MPI, uint8.
        bytes: int64 [messages, kinds], without the buffer's own header.
    """

    data: np.ndarray
    bytes: np.ndarray


def pack(messages: Sequence[Message], buffer: np.ndarray | None = None) -> Buffer:
    """Packs messages into one buffer.

    Args:
        messages: the messages.
        buffer: uint8 memory that is used if it is large enough, because new memory is slow.

    Raises:
        WireError: if a block breaks the rules of `Block`, or a message has a client or weight that
            `unpack` would refuse.
    """
    sections, account = _write(messages)
    end = BUFFER.size + int(account.sum())
    data = np.empty(end, np.uint8) if buffer is None or len(buffer) < end else buffer[:end]
    start, view = 0, data.data
    for section in (BUFFER.pack(MAGIC, VERSION, 0, len(messages), 0, end), *sections):
        stop = start + len(section)
        view[start:stop] = section
        start = stop
    return Buffer(data, account)


def weigh(messages: Sequence[Message]) -> np.ndarray:
    """Returns the bytes of messages by kind, int64 [messages, kinds], as `pack` does.

    All is written as for `pack`, but not put into one buffer.
    """
    return _write(messages)[1]


def _write(messages: Sequence[Message]) -> tuple[list[bytes | memoryview], np.ndarray]:
    """Returns the sections of a buffer behind its header, and their bytes as `Buffer.bytes`."""
    sections: list[bytes | memoryview] = []
    accounts: list[list[int]] = []
    for message in messages:
        row = [0] * KINDS
        accounts.append(row)
        _check_weight(message.weight)
        head = _write_head(MESSAGE, message.client, len(message.blocks), message.weight)
        for block in message.blocks:
            values = _write_values(block)
            places, length, positions = _write_places(block)
            shape = (block.kind, block.coding, places, block.bits, length, block.size, block.count)
            head += _write_head(BLOCK, *shape, *block.scale)
            if positions is not None:
                head = _write_section(sections, row, head, positions, Kind.MASK)
            if values is not None:
                if block.coding == Coding.ZSTD:
                    head += len(values).to_bytes(8, "little")
                head = _write_section(sections, row, head, values, block.kind)
        sections.append(head)
        row[Kind.HEADER] += len(head)
    return sections, np.array(accounts, np.int64).reshape(-1, KINDS)


def _write_section(
    sections: list[bytes | memoryview], row: list[int], head: bytes, content: np.ndarray, kind: Kind
) -> bytes:
    """Writes a head and a section behind it; returns the padding, with which the next head begins.

    Heads are gathered because each piece that is copied takes as long as a small head.
    """
    raw = content.view(np.uint8).data
    sections.append(head)
    sections.append(raw)
    row[Kind.HEADER] += len(head)
    row[kind] += len(raw)
    return _PADDING[-len(raw) % 8]


def unpack(data: np.ndarray) -> tuple[list[Message], np.ndarray]:
    """Unpacks a buffer; values are views of it if they are aligned.

    Returns:
        The messages, and their bytes by kind, as from `pack`.

    Raises:
        WireError: if `data` is not exactly one buffer of this version.
    """
    if data.dtype != np.uint8 or data.ndim != 1:
        raise WireError(f"wanted a vector of bytes, found {data.dtype}{list(data.shape)}")
    reader = _Reader(np.ascontiguousarray(data))
    magic, version, zero, count, more, length = reader.head(BUFFER)
    if magic != MAGIC:
        raise WireError(f"not a buffer: it begins with {magic:#010x}, wanted {MAGIC:#010x}")
    if version != VERSION:
        raise WireError(f"version {version} of the wire format, wanted {VERSION}")
    if length != len(data) or zero or more:
        raise WireError(f"the header says {length} bytes, found {len(data)}")
    if count * MESSAGE.size > len(data):
        raise WireError(f"{count} messages in {len(data)} bytes")
    accounts = [[0] * KINDS for _ in range(count)]
    messages = [_read_message(reader, row) for row in accounts]
    if reader.at != len(data):
        raise WireError(f"{len(data) - reader.at} bytes behind the last message")
    return messages, np.array(accounts, np.int64).reshape(-1, KINDS)


class _Reader:
    """A cursor in a buffer that moves only forward, and never beyond the end."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.view, self.at, self.end = data, data.data, 0, len(data)

    def head(self, form: struct.Struct) -> tuple:
        return form.unpack_from(self.view, self._advance(form.size))

    def section(self, length: int, kind: Kind, row: list[int]) -> np.ndarray:
        padding = -length % 8
        start = self._advance(length + padding)
        row[kind] += length
        if padding:
            row[Kind.HEADER] += padding
            if self.data[start + length : self.at].any():
                raise WireError(f"padding at byte {start + length} is not zero")
        return self.data[start : start + length]

    def _advance(self, length: int) -> int:
        start, self.at = self.at, self.at + length
        if self.at > self.end:
            raise WireError(f"{length} bytes wanted at byte {start}, found {self.end - start}")
        return start


def _read_message(reader: _Reader, row: list[int]) -> Message:
    client, blocks, weight = reader.head(MESSAGE)
    row[Kind.HEADER] += MESSAGE.size
    # A count that is too large for the buffer must fail before the loop over blocks.
    if blocks * BLOCK.size > reader.end - reader.at:
        raise WireError(f"{blocks} blocks in {reader.end - reader.at} bytes")
    _check_weight(weight)
    return Message(client, [_read_block(reader, row) for _ in range(blocks)], weight)


def _read_block(reader: _Reader, row: list[int]) -> Block:
    kind, coding, places, bits, length, size, count, low, step = reader.head(BLOCK)
    row[Kind.HEADER] += BLOCK.size
    if kind not in _KINDS or coding not in _CODINGS or places not in _PLACES:
        raise WireError(f"kind {kind}, coding {coding}, places {places}: no such block")
    kind, coding, places = _KINDS[kind], _CODINGS[coding], _PLACES[places]
    if size > 0xFFFFFFFF or count > size:
        raise WireError(f"{count} values of a vector of {size}")
    if length and places not in (Places.GOLOMB, Places.DELTA):
        raise WireError(f"a length of {length} for positions in {places.name}")
    if (coding == Coding.CODES) != (1 <= bits <= 16) or (coding != Coding.CODES and bits):
        raise WireError(f"codes of {bits} bits in coding {coding}")
    if coding != Coding.CODES and (low or step):
        raise WireError(f"a scale of {low}, {step} without codes")
    if low != low or step != step:
        _check_nan(reader, low, step)
    if coding == Coding.NONE and places == Places.AGREED:
        raise WireError("a block with neither values nor positions")
    indices = _read_places(reader, row, places, size, count, length)
    values = _read_values(reader, row, kind, coding, bits, count)
    found = None if indices is None else places
    return Block(kind, size, coding, values, indices, bits, Scale(low, step), found, count)


_PADDING = [bytes(length) for length in range(8)]

# By value: calling an enumeration takes longer than reading a head.
_KINDS = {int(kind): kind for kind in Kind if kind != Kind.HEADER}
_CODINGS = {int(coding): coding for coding in Coding}
_PLACES = {int(places): places for places in Places}


def _check_nan(reader: _Reader, low: float, step: float) -> None:
    """Refuses a signalling NaN in the scale of the head just read: it cannot be written again."""
    if _SCALE.pack(low, step) != bytes(reader.view[reader.at - _SCALE.size : reader.at]):
        raise WireError("a scale with a signalling NaN")


def _check_weight(weight: float) -> None:
    if not 0 <= weight < float("inf"):
        raise WireError(f"weight {weight}, wanted a number of at least 0")


def _write_head(form: struct.Struct, *fields: float) -> bytes:
    try:
        return form.pack(*fields)
    except (struct.error, OverflowError) as error:
        raise WireError(f"{fields} is no head of a message or block: {error}") from None


def _write_places(block: Block) -> tuple[Places, int, np.ndarray | None]:
    """Returns the encoding of positions, the length that stands in the head, and the section."""
    indices, places = block.indices, block.places
    if not 0 <= block.size <= 0xFFFFFFFF or block.kind == Kind.HEADER:
        raise WireError(f"a block of {block.size} elements, kind {block.kind.name}")
    if indices is None:
        if block.values is None or block.count > block.size:
            raise WireError("a block without positions needs at most `size` values, and not None")
        return Places.AGREED, 0, None
    if indices.dtype != np.uint32 or indices.shape != (block.count,):
        raise WireError(f"positions are {indices.dtype}{list(indices.shape)}, wanted uint32[count]")
    indices = np.require(indices, np.uint32, ["C", "A"])
    _check_ascending(indices, block.size)
    if places is None:
        is_short = 4 * block.count <= -(-block.size // 8)
        places = Places.POSITIONS if is_short else Places.BITMAP
    if places == Places.POSITIONS:
        return places, 0, indices
    if places == Places.BITMAP:
        return places, 0, coded.bitmap(indices, block.size)
    if places == Places.GOLOMB:
        return places, *coded.golomb(indices, rice(block.size, block.count))
    if places == Places.DELTA:
        section = coded.varints(indices)
        return places, len(section), section
    raise WireError("a block with positions, in an encoding without")


def _read_places(
    reader: _Reader, row: list[int], places: Places, size: int, count: int, length: int
) -> np.ndarray | None:
    if places == Places.AGREED:
        return None
    if places == Places.GOLOMB:
        return _read_golomb(reader, row, size, count, length)
    if places == Places.DELTA:
        if not count <= length <= 5 * count:
            raise WireError(f"{length} bytes of varints for {count} positions")
        found = coded.from_varints(reader.section(length, Kind.MASK, row), size, count)
        if found is None:
            raise WireError(f"{length} bytes are not {count} varints of positions below {size}")
        return found
    if places == Places.POSITIONS:
        indices = np.require(reader.section(4 * count, Kind.MASK, row).view("<u4"), None, "A")
        _check_ascending(indices, size)
        return indices
    bitmap = reader.section(-(-size // 8), Kind.MASK, row)
    if size % 8 and bitmap[-1] >> size % 8:
        raise WireError(f"a bitmap of {size} bits has bits behind its end")
    indices = coded.from_bitmap(bitmap, size)
    if len(indices) != count:
        raise WireError(f"a bitmap with {len(indices)} positions for {count} values")
    return indices


def rice(size: int, count: int) -> int:
    """Returns the bits of a gap's lower part in Golomb code, for random positions; at least 0.

    b = 1 + floor(log2(log(phi - 1) / log(1 - p))), with p = count / size and the golden ratio phi:
    F. Sattler, S. Wiedemann, K.-R. Mueller, W. Samek, *Robust and Communication-Efficient Federated
    Learning from Non-IID Data*, IEEE TNNLS 2020, arXiv 1903.02891, eq. 14.
    """
    if not 0 < count < size:
        return 0
    return max(0, 1 + floor(log2(log((sqrt(5) - 1) / 2) / log1p(-count / size))))


def _read_golomb(reader: _Reader, row: list[int], size: int, count: int, unary: int) -> np.ndarray:
    bits = rice(size, count)
    # A gap's upper part has one bit more than its value, and all gaps together are below `size`.
    if not count <= unary <= (count + (size >> bits) if count else 0):
        raise WireError(f"{unary} unary bits for {count} of {size} positions")
    length = unary + count * bits
    section = reader.section(-(-length // 8), Kind.MASK, row)
    if length % 8 and section[-1] >> length % 8:
        raise WireError(f"{count} gaps have bits behind their end")
    found = coded.from_golomb(section, size, count, bits, unary)
    if found is None:
        raise WireError(f"{unary} unary bits are not {count} gaps of positions below {size}")
    return found


def _check_ascending(indices: np.ndarray, size: int) -> None:
    if not coded.are_ascending(indices, size):
        raise WireError(f"positions are not strictly ascending below {size}")


def _write_values(block: Block) -> np.ndarray | None:
    values = block.values
    if (values is None) != (block.coding == Coding.NONE):
        given = "without" if values is None else "with"
        raise WireError(f"a block {given} values, coding {block.coding.name}")
    if block.coding != Coding.CODES and (block.bits or block.scale != NO_SCALE):
        raise WireError(f"bits or a scale with coding {block.coding.name}")
    if values is None:
        return None
    if block.coding == Coding.ZSTD:
        if values.dtype != np.uint8 or values.ndim != 1:
            raise WireError(f"a frame is {values.dtype}{list(values.shape)}, wanted bytes")
        _check_frame(len(values), block.count)
        return np.ascontiguousarray(values)
    is_coded = block.coding == Coding.CODES
    if is_coded and not 1 <= block.bits <= 16:
        raise WireError(f"codes of {block.bits} bits")
    length = -(-block.count * block.bits // 8) if is_coded else block.count
    wanted = np.dtype(np.uint8) if is_coded else DTYPES[block.coding]
    if values.dtype != wanted or values.shape != (length,):
        found = f"{values.dtype}{list(values.shape)}"
        raise WireError(f"{block.count} values are {found}, wanted {wanted}[{length}]")
    if is_coded:
        _check_end(values, block.count, block.bits)
    return np.ascontiguousarray(values)


def _read_values(
    reader: _Reader, row: list[int], kind: Kind, coding: Coding, bits: int, count: int
) -> np.ndarray | None:
    if coding == Coding.NONE:
        return None
    if coding == Coding.ZSTD:
        length = int(reader.section(8, Kind.HEADER, row).view("<u8")[0])
        _check_frame(length, count)
        return reader.section(length, kind, row)
    if coding != Coding.CODES:
        return reader.section(DTYPES[coding].itemsize * count, kind, row).view(DTYPES[coding])
    section = reader.section(-(-count * bits // 8), kind, row)
    _check_end(section, count, bits)
    return section


def _check_end(codes: np.ndarray, count: int, bits: int) -> None:
    used = count * bits % 8
    if used and codes[-1] >> used:
        raise WireError(f"{count} codes of {bits} bits have bits behind their end")


def _check_frame(length: int, count: int) -> None:
    if (length > 0) != (count > 0):
        raise WireError(f"a frame of {length} bytes for {count} values")
