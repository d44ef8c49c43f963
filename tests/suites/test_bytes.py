"""Golden bytes of the wire format, and formulas for bytes that must equal what was measured."""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from math import ceil, prod
from typing import Any

import numpy as np
import pytest
import torch
from mpi4py import MPI

from fedmpi.messages import select, sparse
from fedmpi.messages.codec import (
    BLOCK,
    BUFFER,
    EVERYONE,
    MESSAGE,
    VERSION,
    Block,
    Coding,
    Kind,
    Message,
    Places,
    Scale,
    pack,
    unpack,
)
from fedmpi.messages.counts import keep_round
from fedmpi.results import tables
from fedmpi.streams import Purpose, stream
from tests import coded
from tests.plain import METHODS
from tests.small import Run, run, small


def places(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint32)


GOLDEN = [
    (
        Block(Kind.GRADIENT, 100, Coding.F4, np.array([1, -2], "f4"), places(3, 64)),
        "01 01 01 00 00000000 6400000000000000 0200000000000000 00000000 00000000"
        "03000000 40000000"
        "0000803f 000000c0",
    ),
    (
        Block(Kind.MODEL, 10, Coding.F2, np.array([1, 0.5, -1], "f2"), places(0, 8, 9)),
        "00 02 02 00 00000000 0a00000000000000 0300000000000000 00000000 00000000"
        "01 03 000000000000"
        "003c 0038 00bc 0000",
    ),
    (
        Block(Kind.ACTIVATION, 3, Coding.BF16, np.array([0x3F80, 0xC000], "u2")),
        "02 03 00 00 00000000 0300000000000000 0200000000000000 00000000 00000000"
        "803f 00c0 00000000",
    ),
    (
        Block(Kind.LABEL, 3, Coding.U1, np.array([1, 2, 255], "u1")),
        "03 04 00 00 00000000 0300000000000000 0300000000000000 00000000 00000000"
        "01 02 ff 0000000000",
    ),
    (
        Block(Kind.LABEL, 2, Coding.U2, np.array([1, 65534], "u2")),
        "03 05 00 00 00000000 0200000000000000 0200000000000000 00000000 00000000"
        "0100 feff 00000000",
    ),
    (
        Block(Kind.LABEL, 2, Coding.U4, np.array([1, 2**32 - 2], "u4")),
        "03 06 00 00 00000000 0200000000000000 0200000000000000 00000000 0000000001000000 feffffff",
    ),
    (
        Block(Kind.MASK, 9, Coding.NONE, None, places(0, 3, 8)),
        "04 00 02 00 00000000 0900000000000000 0300000000000000 00000000 00000000"
        "09 01 000000000000",
    ),
    (
        Block(
            *(Kind.GRADIENT, 100, Coding.ZSTD, coded.frame(np.array([1, -2], "f4"))),
            places(3, 64),
        ),
        # The frame has 20 bytes: its head, that of an uncompressed block, and the planes.
        "01 08 01 00 00000000 6400000000000000 0200000000000000 00000000 00000000"
        "03000000 40000000"
        "1400000000000000"
        "28b52ffd a0 08000000 410000 0000 0000 8000 3fc0 00000000",
    ),
    (
        coded.block(Kind.GRADIENT, 5, [1, 2, 3, 4, 7], 3, Scale(-1.5, 0.25)),
        # 1, 2, 3, 4, 7, the lowest bits first: 100 010 11|0 001 111
        "01 07 00 03 00000000 0500000000000000 0500000000000000 0000c0bf 0000803e"
        "d1 78 000000000000",
    ),
    (
        coded.block(Kind.GRADIENT, 2, [0xABC, 0x123], 12),
        "01 07 00 0c 00000000 0200000000000000 0200000000000000 00000000 0000803f"
        "bc 3a 12 0000000000",
    ),
    (
        coded.block(
            *(Kind.GRADIENT, 100, [0, 1], 1, Scale(-0.5, 1.0), places(3, 64)), Places.GOLOMB
        ),
        # Gaps of 3 and 60 with five lower bits: 1 01 | 11000 00111
        "01 07 03 01 03000000 6400000000000000 0200000000000000 000000bf 0000803f"
        "1d 1c 000000000000"
        "02 00000000000000",
    ),
    (
        Block(Kind.MASK, 70000, Coding.NONE, None, places(3, 64, 300, 69999), places=Places.DELTA),
        # Gaps of 3, 60, 235 = 107 + 128 and 69698 = 66 + 32 * 128 + 4 * 128^2.
        "04 00 04 00 07000000 7011010000000000 0400000000000000 00000000 00000000"
        "03 3c eb01 c2a004 00",
    ),
    (
        Block(Kind.MASK, 100, Coding.NONE, None, places(3, 64), places=Places.BITMAP),
        "04 00 02 00 00000000 6400000000000000 0200000000000000 00000000 00000000"
        "08 00000000000000 01 00000000 000000",
    ),
    (
        Block(Kind.MASK, 9, Coding.NONE, None, places(0, 3, 8), places=Places.POSITIONS),
        "04 00 01 00 00000000 0900000000000000 0300000000000000 00000000 00000000"
        "00000000 03000000 08000000 00000000",
    ),
]
"""Blocks of every coding, with their bytes in version 2."""


def buffer(messages: int, content: str) -> bytes:
    """A whole buffer of version 2, its header written out."""
    body = bytes.fromhex(content)
    length = (24 + len(body)).to_bytes(8, "little").hex()
    return bytes.fromhex(f"464d5049 0200 0000 {messages:02x}000000 00000000 {length}") + body


@pytest.mark.parametrize(
    ("block", "content"), GOLDEN, ids=[f"{b.coding.name}-{b.bits}" for b, _ in GOLDEN]
)
def test_golden_bytes(block: Block, content: str) -> None:
    """Another version may have other bytes; version 2 never."""
    assert VERSION == 2
    wanted = buffer(1, f"07000000 01000000 0000000000000c40 {content}")
    assert pack([Message(7, [block], 3.5)]).data.tobytes() == wanted
    (found,), _ = unpack(np.frombuffer(wanted, np.uint8))
    assert (found.client, found.weight) == (7, 3.5)
    np.testing.assert_array_equal(found.blocks[0].values, block.values)
    np.testing.assert_array_equal(found.blocks[0].indices, block.indices)


def test_golden_bytes_of_several_messages() -> None:
    (labels, first), (mask, second) = GOLDEN[3], GOLDEN[6]
    given = [
        Message(EVERYONE, [labels, mask]),
        Message(0, [], 1.0),
        Message(2, [labels], 0.5),
    ]
    wanted = buffer(
        3,
        f"ffffffff 02000000 0000000000000000 {first} {second}"
        "00000000 00000000 000000000000f03f"
        f"02000000 01000000 000000000000e03f {first}",
    )
    assert pack(given).data.tobytes() == wanted


def test_golden_bytes_of_nothing() -> None:
    assert pack([]).data.tobytes() == buffer(0, "")


# Formulas: what the papers count, and what else a buffer has.

HEADER = BUFFER.size + MESSAGE.size + BLOCK.size


def padded(length: int) -> int:
    return -(-length // 8) * 8


def measured(block: Block) -> tuple[int, int, int]:
    """Length of a buffer with one block, and therein bytes of values and of positions."""
    data, account = pack([Message(0, [block])])
    return len(data), account[0, block.kind], account[0, Kind.MASK]


sizes = pytest.mark.parametrize("n", [1, 2, 9, 64, 555, 10_000])


@sizes
def test_dense_is_4n(n: int) -> None:
    assert measured(sparse.block(Kind.MODEL, torch.ones(n))) == (HEADER + padded(4 * n), 4 * n, 0)


@sizes
@pytest.mark.parametrize("sparsity", [0.1, 0.9, 0.96, 0.97, 0.99, 0.999])
def test_top_k_is_4k_and_the_smaller_of_positions_and_bitmap(n: int, sparsity: float) -> None:
    w = torch.arange(1.0, n + 1)
    k = keep_round(n, 1 - sparsity)
    positions = select.top(w, k).positions
    where = min(4 * k, ceil(n / 8))
    found = measured(sparse.block(Kind.GRADIENT, w[positions], n, positions))
    assert found == (HEADER + padded(4 * k) + padded(where), 4 * k, where)


@sizes
def test_an_agreed_mask_is_4k(n: int) -> None:
    k = ceil(n / 3)
    found = measured(sparse.block(Kind.GRADIENT, torch.ones(k), n))
    assert found == (HEADER + padded(4 * k), 4 * k, 0)


@sizes
@pytest.mark.parametrize("bits", range(1, 17))
def test_codes_are_b_bits_each(n: int, bits: int) -> None:
    block = sparse.block(Kind.GRADIENT, torch.arange(float(n)), coding=Coding.CODES, bits=bits)
    length = ceil(n * bits / 8)
    assert measured(block) == (HEADER + padded(length), length, 0)


@sizes
@pytest.mark.parametrize("coding", [Coding.F2, Coding.BF16])
def test_halves_are_2n(n: int, coding: Coding) -> None:
    block = sparse.block(Kind.ACTIVATION, torch.ones(n), coding=coding)
    assert measured(block) == (HEADER + padded(2 * n), 2 * n, 0)


@pytest.mark.parametrize(("classes", "width"), [(2, 1), (256, 1), (257, 2), (65536, 2), (65537, 4)])
def test_labels_are_as_wide_as_they_must_be(classes: int, width: int) -> None:
    y = torch.tensor([0, 1, classes - 1])
    block = sparse.labels(y, classes)
    assert measured(block) == (HEADER + padded(3 * width), 3 * width, 0)
    assert sparse.values(block).tolist() == y.tolist()


# Whole runs: a table of bytes by client, direction and kind, worked out from the settings alone.

LAYERS = (64, 7, 5, 10)
"""Widths whose parameters need padding: of 8x8 images, two hidden layers and ten classes."""
SHAPES = [(inputs * outputs, outputs) for inputs, outputs in pairwise(LAYERS)]
N = sum(sum(shape) for shape in SHAPES)
TENSORS = [size for shape in SHAPES for size in shape]
WEIGHTS = sum(weights for weights, _ in SHAPES)
WORDS = ("model.hidden=[7,5]", "participation=0.6", "rounds=3")

Bytes = dict[str, int]
"""A client's bytes in one round: by direction and kind, as in the columns of `clients`."""
Formula = Callable[[Run, int, int], Bytes]
"""(run, round, client) -> bytes."""


def message(direction: str, *sections: tuple[str, int, int]) -> Bytes:
    """A message of blocks: (kind, bytes of values, bytes of positions)."""
    found = {f"{direction}_header": 16}
    for kind, values, where in sections:
        for name, length in ((kind, values), ("mask", where)):
            found[f"{direction}_{name}"] = found.get(f"{direction}_{name}", 0) + length
        found[f"{direction}_header"] += 32 + -values % 8 + -where % 8
    return found


def total(*parts: Bytes) -> Bytes:
    return {
        name: sum(part.get(name, 0) for part in parts)
        for name in {name for part in parts for name in part}
    }


def batches(found: Run, client: int) -> Iterator[int]:
    """Samples in each of the client's local steps."""
    settings, size = found.engine.settings, int(found.engine.population.sizes[client])
    for _ in range(settings.epochs):
        for first in range(0, size, settings.batch):
            yield min(settings.batch, size - first)


def shorter(count: int, size: int) -> int:
    """So many of so many positions: listed, or a bit for each that there could be."""
    return min(4 * count, ceil(size / 8))


def down(*sections: tuple[str, int, int]) -> Bytes:
    return message("down", *sections)


def up(*sections: tuple[str, int, int]) -> Bytes:
    return message("up", *sections)


def both(values: int) -> Bytes:
    """So many values of a model, and as many of its update."""
    return total(down(("model", 4 * values, 0)), up(("gradient", 4 * values, 0)))


MODEL = ("model", 4 * N, 0)
UPDATE = ("gradient", 4 * N, 0)
HALF = int(0.5 * WEIGHTS)
BIASES = N - WEIGHTS
SHARED = sum(sum(shape) for shape in SHAPES[:-1])
"""All but the last layer."""


def dense(found: Run, t: int, client: int) -> Bytes:
    return both(N)


def scaffold(found: Run, t: int, client: int) -> Bytes:
    return total(down(MODEL, UPDATE), up(UPDATE, UPDATE))


def top(found: Run, t: int, client: int) -> Bytes:
    k = round(N * (1 - found.engine.settings.method.sparsity))
    return total(down(MODEL), up(("gradient", 4 * k, shorter(k, N))))


def bucketed(found: Run, t: int, client: int) -> Bytes:
    """Five bits a value, and a least value and a step for each 100."""
    scales = ("gradient", 8 * ceil(N / 100), 0)
    return total(down(MODEL), up(("gradient", ceil(5 * N / 8), 0), scales))


def halves(found: Run, t: int, client: int) -> Bytes:
    return total(down(MODEL), up(("gradient", 2 * N, 0)))


def signed_top(found: Run, t: int, client: int) -> Bytes:
    """A bit a value that is sent, and a scale for each tensor."""
    k = round(N * 0.1)
    scales = ("gradient", 4 * len(TENSORS), 0)
    return total(down(MODEL), up(("gradient", ceil(k / 8), shorter(k, N)), scales))


def zeros(found: Run, t: int, client: int) -> Bytes:
    """Eight bits for every value, and no positions."""
    return total(down(MODEL), up(("gradient", N, 0)))


def dgc(found: Run, t: int, client: int) -> Bytes:
    """The warm-up keeps a quarter of each tensor, and a quarter of it each round."""
    k = sum(ceil(n * 0.25 ** (t + 1)) for n in TENSORS)
    return total(down(MODEL), up(("gradient", 4 * k, shorter(k, N))))


def randomk(found: Run, t: int, client: int) -> Bytes:
    k = round(N * (1 - found.engine.settings.method.sparsity))
    return total(down(MODEL), up(("gradient", 4 * k, 0)))


def qsgd(found: Run, t: int, client: int) -> Bytes:
    norms = ("gradient", 4 * ceil(N / 64), 0)
    return total(down(MODEL), up(("gradient", ceil(5 * N / 8), 0), norms))


def signsgd(found: Run, t: int, client: int) -> Bytes:
    """And a scale for each tensor."""
    scales = ("gradient", 4 * len(TENSORS), 0)
    return total(down(MODEL), up(("gradient", ceil(N / 8), 0), scales))


def scaled(found: Run, t: int, client: int) -> Bytes:
    """The scale of all of them is in the header."""
    return total(down(MODEL), up(("gradient", ceil(N / 8), 0)))


def change(found: Run) -> list[tuple[str, int, int]]:
    """The blocks of a change of the model."""
    chosen = found.engine.settings.codec.down
    k, scales = N, {"whole": 0, "tensor": len(TENSORS)}.get(chosen.scales, 0)
    if chosen.sparsity and chosen.spans == "tensor":
        k = sum(ceil(round((1 - chosen.sparsity) * n, 6)) for n in TENSORS)
    elif chosen.sparsity:
        k = round((1 - chosen.sparsity) * N)
    if chosen.scales == "bucket":
        scales = ceil(k / chosen.bucket)
    where = 0
    if chosen.sparsity:
        where = {"auto": shorter(k, N), "uint32": 4 * k, "bitmap": ceil(N / 8)}[chosen.positions]
    bits = {"f4": 32, "f2": 16, "bf16": 16, "uniform": chosen.bits, "sign": 1}
    values = ("gradient", ceil(bits[chosen.values] * k / 8), where)
    each = 8 if chosen.values == "uniform" else 4
    return [values, ("gradient", each * scales, 0)] if scales else [values]


def changes(found: Run, t: int, client: int) -> Bytes:
    """Those that the client has missed; the model at first, or if they are as long as that."""
    said, sample = change(found), found.engine.population.sample
    is_lossless = said == [UPDATE]
    each = BUFFER.size + sum(down(*said).values())
    kept = 0 if is_lossless else min(t, ceil(4 * N / each) - 1)
    last = max((earlier for earlier in range(t) if client in sample(earlier)), default=-1)
    sections = [MODEL] if last < t - kept else said * (t - last)
    return total(down(), down(*sections), up(UPDATE))


def both_ways(found: Run, t: int, client: int) -> Bytes:
    """Top-k's uploads beside the same downloads."""
    k = round(N * (1 - found.engine.settings.method.sparsity))
    told = {name: length for name, length in changes(found, t, client).items() if name[0] == "d"}
    return total(told, up(("gradient", 4 * k, shorter(k, N))))


def controlled(found: Run, t: int, client: int) -> Bytes:
    """A control variate travels beside them, in full."""
    told = {name: length for name, length in changes(found, t, client).items() if name[0] == "d"}
    beside = {"down_gradient": 4 * N, "down_header": 32 + -4 * N % 8}
    return total(told, beside, up(UPDATE, UPDATE))


def stc(found: Run, t: int, client: int) -> Bytes:
    """Two values: a bit each, and positions in 8 bits each and 2 to 4 together. Down come all the
    rounds' that a client has missed, or at first the model.
    """
    said, sample = ("gradient", 1, 3), found.engine.population.sample
    last = max((earlier for earlier in range(t) if client in sample(earlier)), default=None)
    missed = [MODEL] if last is None else [said] * (t - last)
    return total(down(), down(*missed), up(said))


def powersgd(found: Run, t: int, client: int) -> Bytes:
    """Of rank 1."""
    values = sum(inputs + outputs for inputs, outputs in pairwise(LAYERS)) + BIASES
    return total(down(MODEL), up(("gradient", 4 * values, 0)))


def local(found: Run, t: int, client: int) -> Bytes:
    return total(down(), up())


def front(found: Run, t: int, client: int) -> Bytes:
    return both(SHARED)


def spatl(found: Run, t: int, client: int) -> Bytes:
    """Of 7 channels of 65 values 4, of 5 of 8 values 2."""
    shared, sent = 4 * SHARED, ("gradient", 4 * (4 * 65 + 2 * 8), 0)
    encoder = down(("model", shared, 0), ("gradient", shared, 0))
    return total(encoder, up(sent, sent, ("mask", 0, shorter(6, 7 + 5))))


def ssfl(found: Run, t: int, client: int) -> Bytes:
    k = int((1 - found.engine.settings.method.sparsity) * WEIGHTS)
    if t < 0:
        # Down the dense model and the mask, up a score for each weight.
        mask = down(("mask", 0, shorter(k, WEIGHTS)))
        return total(down(MODEL), up(("gradient", 4 * WEIGHTS, 0)), mask)
    return both(k + BIASES)


def half(found: Run, t: int, client: int) -> Bytes:
    return both(HALF + BIASES)


def clientmask(found: Run, t: int, client: int) -> Bytes:
    return total(down(), both(HALF + BIASES))


def feddst(found: Run, t: int, client: int) -> Bytes:
    """Masks change in round 1."""
    k = int(0.2 * WEIGHTS)
    mask = ("mask", 0, shorter(k, WEIGHTS))
    values = 4 * (k + BIASES)
    said = [mask] if t == 1 else []
    told = [mask] if t > 1 else []
    return total(down(("model", values, 0)), down(*told), up(*said, ("gradient", values, 0)))


def prunefl(found: Run, t: int, client: int) -> Bytes:
    """In each round squares of gradients, though the mask may not change."""
    active = 4 * (HALF + BIASES)
    return total(down(("model", active, 0)), down(), up(("gradient", active, 0), UPDATE))


def dispfl(found: Run, t: int, client: int) -> Bytes:
    """Two neighbours' models."""
    model = [("model", 4 * (HALF + BIASES), 0), ("mask", 0, shorter(HALF, WEIGHTS))]
    return total(down(), down(*model, *model), up(*model))


def sparsyfed(found: Run, t: int, client: int) -> Bytes:
    """Of one client a round, so that the next is told what that one said."""
    k = int(0.1 * WEIGHTS)
    model = [("model", 4 * (k + BIASES), 0), ("mask", 0, shorter(k, WEIGHTS))]
    return total(down(MODEL) if t == 0 else down(*model), up(*model))


def narrow(found: Run, t: int, client: int) -> Bytes:
    """A sub-model; where logits are masked, without the classes that a client has not."""
    engine = found.engine
    rate = engine.server.widths.rates[client]
    units = [LAYERS[0], *(ceil(rate * width) for width in LAYERS[1:-1]), LAYERS[-1]]
    size = sum(a * b + b for a, b in pairwise(units))
    sent, classes = size, []
    if engine.settings.method.masked:
        held = len(engine.trainer.feed.y[engine.population.shards[client]].unique())
        sent -= (LAYERS[-1] - held) * (units[-2] + 1)
        classes = [("mask", 0, shorter(held, LAYERS[-1]))]
    said = up(("gradient", 4 * sent, 0), *classes)
    return total(down(), down(("model", 4 * size, 0)), said)


def hetiot(found: Run, t: int, client: int) -> Bytes:
    """The largest weights; positions travel down only. Codes have a range for each tensor."""
    k = max(1, round(found.engine.server.compressors.plans[client].keep * WEIGHTS))
    values, bits = k + BIASES, found.engine.method.bits
    told = down(("model", 4 * values, 0), ("mask", 0, shorter(k, WEIGHTS)))
    if bits == 32:
        return total(down(), told, up(("gradient", 4 * values, 0)))
    ranges = 8 * sum(len(shapes) for shapes in SHAPES)
    said = up(("gradient", ceil(values * bits / 8), 0), ("gradient", ranges, 0))
    return total(down(), told, said)


def splitfed(found: Run, t: int, client: int) -> Bytes:
    cut, steps = 4 * LAYERS[1], batches(found, client)
    said = (up(("activation", b * cut, 0), ("label", b, 0)) for b in steps)
    return total(both(sum(SHAPES[0])), *said, answers(found, client))


def own_cut(found: Run, t: int, client: int) -> Bytes:
    """SplitFed's behind the client's own cut, and a front that is told to it alone."""
    place = 1 + found.engine.flat.cuts().index(found.engine.server.cuts[client])
    front, cut = 4 * sum(sum(shape) for shape in SHAPES[:place]), 4 * LAYERS[place]
    steps = list(batches(found, client))
    return total(
        down(),
        down(("model", front, 0)),
        up(("gradient", front, 0)),
        *(up(("activation", b * cut, 0), ("label", b, 0)) for b in steps),
        *(down(("gradient", b * cut, 0)) for b in steps),
    )


def relayed(found: Run, t: int, client: int) -> Bytes:
    """Instead of a front to all and an update: the front from client to client, and no word."""
    front, cut, steps = 4 * sum(SHAPES[0]), 4 * LAYERS[1], batches(found, client)
    return total(
        down(),
        down(("model", front, 0)),
        up(("model", front, 0)),
        *(up(("activation", b * cut, 0), ("label", b, 0)) for b in steps),
        answers(found, client),
    )


def headed(found: Run, t: int, client: int) -> Bytes:
    """The activations of every h-th batch, and a head that travels with the front; no answers."""
    held = sum(SHAPES[0]) + (LAYERS[1] + 1) * LAYERS[-1]
    steps = list(batches(found, client))[:: found.engine.settings.method.every]
    cut = 4 * LAYERS[1]
    return total(both(held), *(up(("activation", b * cut, 0), ("label", b, 0)) for b in steps))


def tailed(found: Run, t: int, client: int) -> Bytes:
    """SplitFed whose head is the client's: what crosses the second cut takes the labels' place."""
    held, steps = 4 * (sum(SHAPES[0]) + sum(SHAPES[-1])), list(batches(found, client))
    there, back = 4 * LAYERS[1], 4 * LAYERS[-2]
    return total(
        both(held // 4),
        *(up(("activation", b * there, 0)) for b in steps),
        *(down(("activation", b * back, 0)) for b in steps),
        *(up(("gradient", b * back, 0)) for b in steps),
        answers(found, client),
    )


def fedsl(found: Run, t: int, client: int) -> Bytes:
    """Survivors at the cut both ways; fronts only as intervals begin and end, or the run.

    With `first = nothing` that is so before a client has made a step in an earlier round.
    """
    settings = found.engine.settings
    method, here = settings.method, [client in found.engine.population.sample(s) for s in range(3)]
    is_narrow = method.structured == "channels"
    cut = LAYERS[2 if is_narrow else 1]
    turns = [s for s in range(t + 1) if here[s] and s % method.prune_every == 0]
    if method.first == "nothing":
        turns = [s for s in turns if any(here[:s])]
    weights, others = SHAPES[0] if not is_narrow else np.sum(SHAPES[:2], 0).tolist()
    kept, mask = weights, []
    if turns and method.pruning:
        kept = round((1 - method.pruning) * weights)
        mask = [("mask", 0, shorter(kept, weights))]
        if is_narrow:
            some = ceil((1 - method.pruning) * LAYERS[1])
            kept, others = some * (LAYERS[0] + LAYERS[2]), some + LAYERS[2]
            mask = [("mask", 0, shorter(some, LAYERS[1]))]
    begins = t % method.interval == 0
    ends = (t + 1) % method.interval == 0 or t + 1 == settings.rounds
    parts = [
        down(("model", 4 * sum(map(sum, SHAPES[: 1 + is_narrow])), 0)) if begins else down(),
        up(("model", 4 * (kept + others), 0), *mask) if ends else up(),
    ]
    for step, b in enumerate(batches(found, client)):
        random = stream(settings.seed, Purpose.SURVIVOR, t, client, step, 0)
        left = int((random.random(b * cut, np.float32) >= method.dropout).sum())
        parts += [up(("activation", 4 * left, 0), ("label", b, 0)), down(("gradient", 4 * left, 0))]
    return total(*parts)


def largest(found: Run, *parts: int) -> list[tuple[str, int, int]]:
    """The largest values of parts of a gradient of so many values: codes, and a range of each."""
    method, size = found.engine.settings.method, sum(parts)
    k = sum(max(1, ceil(round((1 - method.sparsity) * part, 6))) for part in parts)
    where = shorter(k, size) if method.sparsity else 0
    if method.bits == 32:
        return [("gradient", 4 * k, where)]
    return [("gradient", ceil(k * method.bits / 8), where), ("gradient", 8 * len(parts), 0)]


def sgcfl(found: Run, t: int, client: int) -> Bytes:
    """SplitFed with gradients in sparse codes: of an update by parameters, of a batch as one."""
    method, steps = found.engine.settings.method, list(batches(found, client))
    tensors = [*SHAPES[0], *(SHAPES[-1] if method.tail else ())]
    there, back, held = LAYERS[1], LAYERS[-2], 4 * sum(tensors)
    update = largest(found, *tensors) if method.model_gradient else [("gradient", held, 0)]
    parts = [down(("model", held, 0)), up(*update)]
    for b in steps:
        cut, far = (
            largest(found, b * width) if method.cut_gradient else [("gradient", 4 * b * width, 0)]
            for width in (there, back)
        )
        activation = ("activation", 4 * b * there, 0)
        if method.tail:
            parts += [up(activation), down(("activation", 4 * b * back, 0)), up(*far), down(*cut)]
        else:
            parts += [up(activation, ("label", b, 0)), down(*cut)]
    return total(*parts)


Sections = list[tuple[str, int, int]]


def linked(
    found: Run,
    client: int,
    there: Callable[[int], Sections],
    back: Callable[[int], Sections],
) -> Bytes:
    """SplitFed with other blocks for a batch, and for the answer; labels follow."""
    steps = list(batches(found, client))
    return total(
        both(sum(SHAPES[0])),
        *(up(*there(b), ("label", b, 0)) for b in steps),
        *(down(*back(b)) for b in steps),
    )


def coded(kind: str, count: int, bits: int, parts: int) -> Sections:
    """Values in codes, and their ranges; or as they are."""
    if bits == 32:
        return [(kind, 4 * count, 0)]
    return [(kind, ceil(count * bits / 8), 0), (kind, 8 * parts, 0)]


def splitquant(found: Run, t: int, client: int) -> Bytes:
    method, c = found.engine.settings.method, LAYERS[1]

    def parts(b: int) -> int:
        return b if method.ranges == "sample" else 1

    return linked(
        found,
        client,
        lambda b: coded("activation", b * c, method.bits, parts(b)),
        lambda b: coded("gradient", b * c, method.gradient_bits, parts(b)),
    )


def randtopk(found: Run, t: int, client: int) -> Bytes:
    c = LAYERS[1]
    k = max(1, round(c * (1 - found.engine.settings.method.sparsity)))
    return linked(
        found,
        client,
        lambda b: [("activation", 4 * b * k, shorter(b * k, b * c) if k < c else 0)],
        lambda b: [("gradient", 4 * b * k, 0)],
    )


def splitfc(found: Run, t: int, client: int) -> Bytes:
    """All features: which else go is drawn, see `test_links`."""
    method, c = found.engine.settings.method, LAYERS[1]
    assert method.ratio == 1
    return linked(
        found,
        client,
        lambda b: coded("activation", b * c, method.bits, c),
        lambda b: coded("gradient", b * c, method.gradient_bits, c),
    )


def fedlite(found: Run, t: int, client: int) -> Bytes:
    method, c = found.engine.settings.method, LAYERS[1]
    q = method.vectors or c

    def there(b: int) -> Sections:
        most = min(method.centroids, b * q // method.groups)
        bits = max(1, ceil(np.log2(most)))
        books = 4 * method.groups * most * c // q
        return [("activation", books, 0), ("activation", ceil(b * q * bits / 8), 0)]

    return linked(found, client, there, lambda b: [("gradient", 4 * b * c, 0)])


def answers(found: Run, client: int) -> Bytes:
    """What SplitFed's server tells one client, step by step."""
    cut = 4 * LAYERS[1]
    return total(*(down(("gradient", b * cut, 0)) for b in batches(found, client)))


def case(formula: Formula, name: str, *words: str) -> Any:
    """A method and its settings."""
    return pytest.param(formula, (f"method.name={name}", *words), id=" ".join((name, *words)))


SPARSE = ("codec.down.values=f4", "codec.down.sparsity=0.9")
CODED = ("codec.values=uniform",)
UNCHANGED = ("method.start=0.5", "method.sparsity=0.5", "method.decrease=0.0", "method.every=1")
FEW = [
    case(top, "topk", "method.sparsity=0.9"),
    case(dense, "topk", "method.sparsity=0.0"),
    case(ssfl, "ssfl", "method.sparsity=0.98"),
    case(ssfl, "ssfl", "method.saliency=grasp", "method.overlap=true"),
    case(splitfed, "splitfed", "method.version=v2"),
]
CASES = [
    *FEW,
    *(
        case(dense, name)
        for name in (
            "fedavg",
            "fedprox",
            "fednova",
            "feddyn",
            "flexlora",
            "fedopt",
            "ditto",
            "fedbn",
            "finetune",
        )
    ),
    case(scaffold, "scaffold"),
    case(top, "topk", "method.sparsity=0.98"),
    case(dgc, "dgc"),
    case(randomk, "randomk"),
    case(qsgd, "qsgd", "method.bits=5", "method.bucket=64"),
    case(bucketed, "fedavg", *CODED, "codec.bits=5", "codec.scales=bucket", "codec.bucket=100"),
    case(halves, "fedavg", "codec.values=bf16"),
    case(halves, "ditto", "codec.values=f2", "feedback=ef21"),
    case(signed_top, "topk", "codec.values=sign", "codec.scales=tensor"),
    case(zeros, "topk", *CODED, "codec.positions=dense"),
    case(signsgd, "signsgd"),
    case(scaled, "signsgd", "method.spans=whole"),
    case(stc, "stc", "method.sparsity=0.9965"),
    *(
        case(changes, "fedavg", *(f"codec.down.{word}" for word in words.split()))
        for words in (
            "values=f4",
            "values=f4 sparsity=0.9",
            "values=f4 sparsity=0.01",
            "values=f2",
            "values=bf16 sparsity=0.8 spans=tensor",
            "values=uniform bits=5",
            "values=uniform bits=5 scales=tensor",
            "values=uniform bits=3 sparsity=0.8 spans=tensor scales=bucket bucket=20",
            "values=sign",
            "values=sign scales=tensor",
            "values=sign sparsity=0.5 positions=uint32",
        )
    ),
    case(both_ways, "topk", "method.sparsity=0.9", *SPARSE),
    case(controlled, "scaffold", *SPARSE),
    case(powersgd, "powersgd", "method.rank=1"),
    case(local, "local"),
    *(case(front, name) for name in ("fedper", "fedrep")),
    case(spatl, "spatl", "method.down=dense"),
    case(ssfl, "ssfl", "method.sparsity=0.75"),
    case(half, "staticmask"),
    case(clientmask, "clientmask"),
    case(feddst, "feddst"),
    case(prunefl, "prunefl", *UNCHANGED),
    case(dispfl, "dispfl"),
    case(sparsyfed, "sparsyfed", "participation=0.2"),
    *(case(narrow, name) for name in ("heterofl", "fedrolex", "federated-dropout", "fjord")),
    case(hetiot, "hetiot"),
    case(hetiot, "hetiot", "method.bits=5"),
    case(splitfed, "splitfed"),
    case(tailed, "splitfed", "method.tail=head"),
    case(own_cut, "splitft"),
    case(relayed, "splitlearning"),
    case(splitfed, "epsl"),
    case(headed, "cse-fsl", "method.every=2"),
    case(fedsl, "fedsl"),
    case(fedsl, "fedsl", "method.interval=2", "method.pruning=0.9", "method.prune_every=2"),
    case(fedsl, "fedsl", "method.first=nothing", "method.prune_every=2"),
    case(fedsl, "fedsl", "method.interval=4", "method.pruning=0.0", "method.dropout=0.0"),
    case(fedsl, "fedsl", "method.cut=hidden2", "method.structured=channels", "method.pruning=0.5"),
    case(sgcfl, "sgcfl"),
    case(sgcfl, "sgcfl", "method.sparsity=0.985", "method.bits=5", "method.tail=head"),
    case(sgcfl, "sgcfl", "method.sparsity=0.5", "method.bits=32", "method.stochastic=false"),
    case(sgcfl, "sgcfl", "method.sparsity=0.0", "method.tail=head", "method.cut_gradient=false"),
    case(sgcfl, "sgcfl", "method.model_gradient=false", "method.stochastic=true"),
    case(sgcfl, "sgcfl", "method.codes=magnitude", "method.cut_feedback=true", "method.bits=5"),
    case(splitfed, "splitcom", "method.threshold=1.0", "seed=3"),  # no sample is the same twice
    case(splitquant, "splitquant", "method.gradient_bits=5"),
    case(splitquant, "splitquant", "method.bits=3", "method.ranges=tensor"),
    case(randtopk, "randtopk"),
    case(randtopk, "randtopk", "method.sparsity=0.5", "method.version=v2"),
    case(splitfc, "splitfc", "method.ratio=1.0", "method.bits=4"),
    case(fedlite, "fedlite"),
    case(fedlite, "fedlite", "method.vectors=1", "method.centroids=5", "method.version=v2"),
    case(fedlite, "fedlite", "method.groups=7", "method.centroids=6"),
]
"""What follows from settings alone; methods' own tests have what is learnt, such as other masks."""


def test_every_method_has_a_formula() -> None:
    assert {words[0] for _, words in (param.values for param in CASES)} == {
        f"method.name={name}" for name in METHODS
    }


@cache
def ran(words: tuple[str, ...]) -> Run:
    return run(small(*WORDS, *words))


@pytest.mark.parametrize(("formula", "words"), CASES)
def test_clients_bytes_are_the_formulas(formula: Formula, words: tuple[str, ...]) -> None:
    found = ran(words)
    assert N == found.engine.flat.size == 555
    assert prod(found.engine.trainer.feed.x.shape[1:]) == LAYERS[0]
    rows = found.tables["clients"]
    assert set(rows["round"]) >= {0, 1, 2}
    for row in rows:
        wanted = formula(found, int(row["round"]), int(row["client"]))
        columns = {name: int(row[name]) for name in tables.BYTES if row[name]}
        assert columns == {name: length for name, length in wanted.items() if length}


@pytest.mark.parametrize(("formula", "words"), CASES)
def test_rounds_bytes_are_the_sums_over_clients(formula: Formula, words: tuple[str, ...]) -> None:
    found = ran(words)
    few = round(5 * found.engine.settings.participation)
    for row in found.tables["rounds"]:
        clients = found.tables["clients"][found.tables["clients"]["round"] == row["round"]]
        assert len(clients) == row["sampled"] == (5 if row["round"] < 0 else few)
        parts = [formula(found, int(row["round"]), int(client)) for client in clients["client"]]
        for direction in tables.DIRECTIONS:
            names = [name for name in tables.BYTES if name.startswith(direction)]
            assert row[direction] == sum(part.get(name, 0) for part in parts for name in names)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("server", ["dedicated", "shared"])
@pytest.mark.parametrize(("formula", "words"), FEW)
def test_ranks_bytes_are_their_clients_and_headers(
    formula: Formula, words: tuple[str, ...], server: str
) -> None:
    """A rank's buffers hold its clients' messages; what all are told, it is told once."""
    comm = MPI.COMM_WORLD
    found = run(small(*WORDS, f"server={server}", *words), comm)
    if comm.rank:
        return
    clients, steps = found.tables["clients"], found.engine.population.steps
    for row in found.tables["ranks"]:
        t = int(row["round"])
        active = clients[clients["round"] == t]
        everyone, mine = active["client"].tolist(), active["rank"] == row["rank"]
        parts = {client: formula(found, t, client) for client in everyone}
        own, turns = dict.fromkeys(everyone, 0), 0
        if formula is splitfed:
            own = {client: amount(answers(found, client), "down") for client in everyone}
            halves = found.engine.placement.halves(t, everyone)
            if comm.size == 1:
                halves = [everyone]
            turns = sum(max(steps(t, client) for client in half) for half in halves)
        (to_all,) = {amount(parts[client], "down") - own[client] for client in everyone}
        hosted = active["client"][mine].tolist()
        said = sum(amount(parts[client], "up") for client in hosted)
        told = to_all + sum(own[client] for client in hosted)
        assert row["up"] == said + BUFFER.size * (turns + 1)
        assert row["down"] == told + BUFFER.size * (turns + (2 if t < 0 else 1))


def amount(part: Bytes, direction: str) -> int:
    return sum(length for name, length in part.items() if name.startswith(direction))
