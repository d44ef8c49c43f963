"""Golden bytes of the wire format, and formulas for bytes that must equal what was measured."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from math import ceil, prod

import numpy as np
import pytest
import torch
from mpi4py import MPI

from fedmpi import sparse, tables
from fedmpi.codec import (
    BLOCK,
    BUFFER,
    EVERYONE,
    MESSAGE,
    VERSION,
    Block,
    Coding,
    Kind,
    Message,
    Scale,
    pack,
    unpack,
)
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
            *(Kind.GRADIENT, 5, Coding.CODES, np.array([1, 2, 3, 4, 7], "u1"), None),
            *(3, Scale(-1.5, 0.25)),
        ),
        # 1, 2, 3, 4, 7, the lowest bits first: 100 010 11|0 001 111
        "01 07 00 03 00000000 0500000000000000 0500000000000000 0000c0bf 0000803e"
        "d1 78 000000000000",
    ),
    (
        Block(
            *(Kind.GRADIENT, 2, Coding.CODES, np.array([0xABC, 0x123], "u2"), None),
            *(12, Scale(0.0, 1.0)),
        ),
        "01 07 00 0c 00000000 0200000000000000 0200000000000000 00000000 0000803f"
        "bc 3a 12 0000000000",
    ),
    (
        Block(
            *(Kind.GRADIENT, 100, Coding.CODES, np.array([0, 1], "u1"), places(3, 64)),
            *(1, Scale(-0.5, 1.0), True),
        ),
        # Gaps of 3 and 60 with five lower bits: 1 01 | 11000 00111
        "01 07 03 01 03000000 6400000000000000 0200000000000000 000000bf 0000803f"
        "1d 1c 000000000000"
        "02 00000000000000",
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
    k = sparse.kept(n, sparsity)
    positions = sparse.top(w, k)
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


def dense(found: Run, t: int, client: int) -> Bytes:
    return total(message("down", ("model", 4 * N, 0)), message("up", ("gradient", 4 * N, 0)))


def top(found: Run, t: int, client: int) -> Bytes:
    k = round(N * (1 - found.engine.settings.method.sparsity))
    up = message("up", ("gradient", 4 * k, min(4 * k, ceil(N / 8))))
    return total(message("down", ("model", 4 * N, 0)), up)


def ssfl(found: Run, t: int, client: int) -> Bytes:
    k = int((1 - found.engine.settings.method.sparsity) * WEIGHTS)
    if t < 0:
        # Down the dense model and the mask, up a score for each weight.
        return total(
            message("down", ("model", 4 * N, 0)),
            message("up", ("gradient", 4 * WEIGHTS, 0)),
            message("down", ("mask", 0, min(4 * k, ceil(WEIGHTS / 8)))),
        )
    active = 4 * (N - WEIGHTS + k)
    return total(message("down", ("model", active, 0)), message("up", ("gradient", active, 0)))


def splitfed(found: Run, t: int, client: int) -> Bytes:
    front, cut, steps = 4 * sum(SHAPES[0]), 4 * LAYERS[1], batches(found, client)
    return total(
        message("down", ("model", front, 0)),
        message("up", ("gradient", front, 0)),
        *(message("up", ("activation", b * cut, 0), ("label", b, 0)) for b in steps),
        answers(found, client),
    )


def relayed(found: Run, t: int, client: int) -> Bytes:
    """Instead of a front to all and an update: the front from client to client, and no word."""
    front, cut, steps = 4 * sum(SHAPES[0]), 4 * LAYERS[1], batches(found, client)
    return total(
        message("down"),
        message("down", ("model", front, 0)),
        message("up", ("model", front, 0)),
        *(message("up", ("activation", b * cut, 0), ("label", b, 0)) for b in steps),
        answers(found, client),
    )


def tailed(found: Run, t: int, client: int) -> Bytes:
    """SplitFed whose head is the client's: what crosses the second cut takes the labels' place."""
    held, steps = 4 * (sum(SHAPES[0]) + sum(SHAPES[-1])), batches(found, client)
    there, back = 4 * LAYERS[1], 4 * LAYERS[-2]
    return total(
        message("down", ("model", held, 0)),
        message("up", ("gradient", held, 0)),
        *(message("up", ("activation", b * there, 0)) for b in steps),
        *(message("down", ("activation", b * back, 0)) for b in steps),
        *(message("up", ("gradient", b * back, 0)) for b in steps),
        answers(found, client),
    )


def answers(found: Run, client: int) -> Bytes:
    """What SplitFed's server tells one client, step by step."""
    cut = 4 * LAYERS[1]
    return total(*(message("down", ("gradient", b * cut, 0)) for b in batches(found, client)))


CASES = [
    pytest.param(dense, ("method.name=fedavg",), id="fedavg"),
    pytest.param(dense, ("method.name=fedprox",), id="fedprox"),
    pytest.param(top, ("method.name=topk", "method.sparsity=0.9"), id="topk, bitmap"),
    pytest.param(top, ("method.name=topk", "method.sparsity=0.98"), id="topk, positions"),
    pytest.param(dense, ("method.name=topk", "method.sparsity=0.0"), id="topk, dense"),
    pytest.param(ssfl, ("method.name=ssfl", "method.sparsity=0.75"), id="ssfl, bitmap"),
    pytest.param(ssfl, ("method.name=ssfl", "method.sparsity=0.98"), id="ssfl, positions"),
    pytest.param(splitfed, ("method.name=splitfed",), id="splitfed v1"),
    pytest.param(splitfed, ("method.name=splitfed", "method.version=v2"), id="splitfed v2"),
    pytest.param(tailed, ("method.name=splitfed", "method.tail=head"), id="splitfed, tail"),
    pytest.param(relayed, ("method.name=splitlearning",), id="splitlearning"),
]


@pytest.mark.parametrize(("formula", "words"), CASES)
def test_clients_bytes_are_the_formulas(formula: Formula, words: tuple[str, ...]) -> None:
    found = run(small(*WORDS, *words))
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
    found = run(small(*WORDS, *words))
    for row in found.tables["rounds"]:
        clients = found.tables["clients"][found.tables["clients"]["round"] == row["round"]]
        assert len(clients) == row["sampled"] == (5 if row["round"] < 0 else 3)
        parts = [formula(found, int(row["round"]), int(client)) for client in clients["client"]]
        for direction in tables.DIRECTIONS:
            names = [name for name in tables.BYTES if name.startswith(direction)]
            assert row[direction] == sum(part.get(name, 0) for part in parts for name in names)


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("server", ["dedicated", "shared"])
@pytest.mark.parametrize(("formula", "words"), CASES[2:9:2])
def test_ranks_bytes_are_their_clients_and_headers(
    formula: Formula, words: tuple[str, ...], server: str
) -> None:
    """A rank's buffers hold its clients' messages; what all are told, it is told once.

    The cases are one of each formula.
    """
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
            halves = found.engine.population.halves(t, everyone)
            if comm.size == 1:
                halves = [everyone]
            turns = sum(max(map(steps, half)) for half in halves)
        (to_all,) = {amount(parts[client], "down") - own[client] for client in everyone}
        hosted = active["client"][mine].tolist()
        up = sum(amount(parts[client], "up") for client in hosted)
        down = to_all + sum(own[client] for client in hosted)
        assert row["up"] == up + BUFFER.size * (turns + 1)
        assert row["down"] == down + BUFFER.size * (turns + (2 if t < 0 else 1))


def amount(part: Bytes, direction: str) -> int:
    return sum(length for name, length in part.items() if name.startswith(direction))
