"""A sparse vector read from a buffer and added, against numpy.unpackbits, pickle and a copy.

What is read has to be the same on all sides, and what is added, too. Reading and adding are two
steps, of which the second has torch's index_add_ for a reference.
"""

import pickle
from functools import partial

import click
import numpy as np
import torch

from fedmpi.bench import JSON, REPEATS, SIZE, SPARSITY, Result, compare, of_vectors, run, timed
from fedmpi.bench.pack import ENCODING, bits, check, pickled, sparse
from fedmpi.messages import sparse as blocks
from fedmpi.messages.codec import Block, Message, pack, unpack

WEIGHT = 0.3
"""A client's weight."""


def unpacked(data: bytes, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and values of `pack.bits`."""
    length = -(-size // 8)
    kept = np.unpackbits(np.frombuffer(data, np.uint8, length), count=size)
    return np.flatnonzero(kept), np.frombuffer(data, np.float32, offset=length)


def read(name: str, size: int, sparsity: float, positions: str, repeats: int) -> Result:
    """Reading, for one size and sparsity."""
    block = sparse(size, sparsity, positions)
    data, packed, dumped = pack([Message(0, [block])]).data, bits(block), pickled(block)
    check(_only(data), block)
    for found in (unpacked(packed, size), pickle.loads(dumped)):
        for one, other in zip(found, (block.indices, block.values), strict=True):
            np.testing.assert_array_equal(one, other)
    x, room = (np.zeros(size, np.float32) for _ in range(2))
    turns = {
        "ours": timed(lambda: unpack(data)),
        "copy": timed(lambda: np.copyto(room, x)),
        "unpackbits": timed(lambda: unpacked(packed, size)),
        "pickle": timed(lambda: pickle.loads(dumped)),
    }
    case = {"step": "read", "size": name, "sparsity": sparsity, "positions": positions}
    return compare("unpack", case, turns, repeats)


def add(name: str, size: int, sparsity: float, positions: str, repeats: int) -> Result:
    """Adding, for one size and sparsity."""
    torch.set_num_threads(1)
    block = _only(pack([Message(0, [sparse(size, sparsity, positions)])]).data)
    where, values = blocks.indices(block), blocks.values(block)
    ours, theirs = (torch.zeros(size) for _ in range(2))
    blocks.add(ours, block, WEIGHT)
    theirs.index_add_(0, where, values, alpha=WEIGHT)
    assert torch.equal(ours, theirs)
    x, room = (np.zeros(size, np.float32) for _ in range(2))
    turns = {
        "ours": timed(lambda: blocks.add(ours, block, WEIGHT)),
        "copy": timed(lambda: np.copyto(room, x)),
        "index_add": timed(lambda: theirs.index_add_(0, where, values, alpha=WEIGHT)),
    }
    case = {"step": "add", "size": name, "sparsity": sparsity, "positions": positions}
    return compare("unpack", case, turns, repeats)


def _only(data: np.ndarray) -> Block:
    (message,), _ = unpack(data)
    return message.blocks[0]


@click.command()
@SIZE
@SPARSITY
@ENCODING
@REPEATS
@JSON
def command(
    sizes: tuple[str, ...],
    sparsities: tuple[float, ...],
    positions: str,
    repeats: int,
    as_json: bool,
) -> None:
    """Measure how a sparse vector is read from a buffer, and added.

    The references are numpy.unpackbits, pickle, torch's index_add_, and a copy of the vector.
    """
    steps = [partial(step, positions=positions, repeats=repeats) for step in (read, add)]
    run(of_vectors(steps, sizes, sparsities), as_json)
