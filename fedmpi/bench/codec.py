"""Codecs of an update: each encoding of positions beside each encoding of values.

A vector of random values is encoded and packed, as a client does, then unpacked and added, as the
server does. What arrives has to be what was sent. Seconds are set against a copy of the vector in
float32; bytes against the entropy of positions and codes. Choosing the values is not measured.
Encodings whose package is not installed are left out, which is said.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import product
from statistics import median
from time import perf_counter

import click
import numpy as np
import torch
from torch import Tensor

from fedmpi import config
from fedmpi.bench import JSON, REPEATS, SIZE, SPARSITY, Result, of_vectors, run, weigh
from fedmpi.messages import lossless, quantized, select, sparse
from fedmpi.messages.codec import Block, Coding, Kind, Message, Places, pack, unpack
from fedmpi.messages.counts import keep_round
from fedmpi.messages.kernels import codes
from fedmpi.streams import Purpose, key
from fedmpi.turns import take_turns

POSITIONS = {
    "agreed": Places.AGREED,
    "uint32": Places.POSITIONS,
    "bitmap": Places.BITMAP,
    "golomb": Places.GOLOMB,
    "delta": Places.DELTA,
}
"""Encodings of positions; `agreed` sends none."""
FLOATS = {"f4": Coding.F4, "zstd": Coding.ZSTD, "f2": Coding.F2, "bf16": Coding.BF16}
UNIFORM = {"8 bits": 8, "4 bits": 4, "2 bits": 2, "1 bit": 1}
VALUES = (*FLOATS, *UNIFORM, "ternary", "sign")
"""Encodings of values. Bits are those of uniform codes. They and ternary are stochastic."""


class Codec:
    """One codec at work on one vector.

    Attributes:
        sent: the buffer of the last turn.
    """

    def __init__(self, size: int, sparsity: float, positions: str, values: str) -> None:
        random = torch.Generator().manual_seed(1)
        draws = (torch.randn(size, generator=random), torch.rand(size, generator=random))
        self.vector = draws[0] * draws[1] ** 3
        chosen = select.top(self.vector, keep_round(size, 1 - sparsity))
        self.where, self.given = chosen.positions, chosen.values
        self.places, self.values = POSITIONS[positions], values
        self.total, self.copied = torch.zeros(size), np.empty(size, np.float32)
        self.room = np.empty(16 * len(self.where) + size + 1024, np.uint8)
        self.sent = self.room

    def block(self) -> Block:
        """Encodes the values."""
        travel = None if self.places == Places.AGREED else self.where
        size, secret = len(self.vector), key(1, Purpose.ROUND, 0, 0)
        kind, given, lengths = Kind.GRADIENT, self.given, [len(self.given)]
        if self.values == "sign":
            (found,) = quantized.signs(kind, given, lengths, size, travel)
        elif self.values == "ternary":
            (found,) = quantized.ternary(kind, given, lengths, size, travel, secret)
        elif self.values in UNIFORM:
            coding, bits = Coding.CODES, UNIFORM[self.values]
            found = sparse.block(kind, given, size, travel, coding, bits, secret)
        else:
            found = sparse.block(kind, given, size, travel, FLOATS[self.values])
        return replace(found, places=None if travel is None else self.places)

    def encode(self) -> float:
        """Encodes and packs; returns the seconds."""
        began = perf_counter()
        self.sent = pack([Message(0, [self.block()])], self.room).data
        return perf_counter() - began

    def decode(self) -> float:
        """Unpacks and adds; returns the seconds."""
        began = perf_counter()
        block = unpack(self.sent)[0][0].blocks[0]
        is_known = block.indices is None and len(self.where) < len(self.vector)
        sparse.add(self.total, block, 0.5, self.where if is_known else None)
        return perf_counter() - began

    def copy(self) -> float:
        """Copies the vector; returns the seconds."""
        began = perf_counter()
        np.copyto(self.copied, self.vector.numpy())
        return perf_counter() - began

    def check(self) -> float:
        """Compares what is added with what was encoded; returns the bound in bytes a kept value.

        It is the entropy of which values are kept, and that of the codes; floats of 32 bits count
        as they are, and compressed ones as the entropy of each of their four bytes.

        Raises:
            AssertionError: if something else is added.
        """
        block, count, size = self.block(), len(self.where), len(self.vector)
        wanted = torch.zeros(size)
        wanted[self.where] = 0.5 * sparse.values(block)
        self.encode()
        self.total.zero_()
        self.decode()
        assert torch.equal(self.total, wanted), "another vector arrives"
        bits = 0.0
        if self.places != Places.AGREED:
            bits = entropy(torch.tensor([count, size - count])) * size / count
        assert block.values is not None
        if block.coding == Coding.CODES:
            bits += entropy(counted(codes.widen(block.values, block.bits, count)))
        elif block.coding == Coding.F4:
            bits += 32
        elif block.coding == Coding.ZSTD:
            bits += sum(entropy(counted(p)) for p in lossless.planes(sparse.host(self.given)))
        else:
            bits += entropy(counted(block.values.view(np.uint16)))
        return bits / 8


def counted(words: np.ndarray) -> Tensor:
    """How often each of some small numbers occurs, uint8 or uint16 [count]."""
    return torch.from_numpy(np.bincount(words))


def entropy(counts: Tensor) -> float:
    """Bits a symbol, of symbols that occur so often."""
    share = counts[counts > 0].double() / counts.sum()
    return float(-(share * share.log2()).sum())


def measure(
    name: str, size: int, sparsity: float, positions: str, values: str, repeats: int
) -> Result:
    """Times one codec on one thread of a CPU.

    Raises:
        AssertionError: if something else is added than was encoded.
    """
    codec = Codec(size, sparsity, positions, values)
    bound = codec.check()
    turns = {"encode": codec.encode, "decode": codec.decode, "copy": codec.copy}
    seconds = take_turns(turns, repeats)
    count, dense = len(codec.where), 4 * len(codec.vector)
    both = median(seconds["encode"]) + median(seconds["decode"])
    also = {
        "decode_copies": median(seconds["decode"]) / median(seconds["copy"]),
        "bytes_per_value": len(codec.sent) / count,
        "bound_bytes_per_value": bound,
        "break_even_mbit_per_s": max(0.0, 8 * (dense - len(codec.sent)) / both / 1e6),
    }
    case = {"size": name, "sparsity": sparsity, "positions": positions, "values": values}
    return weigh("codec", case, seconds, "encode", ["copy"], also)


def only(name: str, of: Iterable[str], text: str) -> Callable[[Callable], Callable]:
    """An option that takes some of several names; all of them by default."""
    of = list(of)
    help = f"Only {text}. Can be repeated."
    return click.option(f"--{name}", type=click.Choice(of), multiple=True, default=of, help=help)


@click.command()
@SIZE
@SPARSITY
@only("positions", POSITIONS, "this encoding of positions")
@only("values", VALUES, "this encoding of values")
@REPEATS
@JSON
def command(
    sizes: tuple[str, ...],
    sparsities: tuple[float, ...],
    positions: tuple[str, ...],
    values: tuple[str, ...],
    repeats: int,
    as_json: bool,
) -> None:
    """Measure time and bytes of each encoding of positions and values.

    The time is that of encoding. decode_copies is the time of decoding, in copies of the vector.
    break_even_mbit_per_s is a bandwidth: below it, the seconds that are saved because fewer bytes
    are sent than in float32 exceed those of encoding and decoding.
    """
    torch.set_num_threads(1)
    for name in values:
        package = config.missing(name)
        if package is not None:
            click.echo(f"{name}: left out, because {package} is not installed", err=True)
    steps = [
        partial(measure, positions=one, values=other, repeats=repeats)
        for one, other in product(positions, values)
        if config.missing(other) is None
    ]
    run(of_vectors(steps, sizes, sparsities), as_json)
