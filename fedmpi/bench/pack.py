"""A sparse vector written as a buffer, against numpy.packbits, pickle and a copy of the vector.

The buffer is read again first, and has to give the same values and positions.
"""

import pickle
from functools import partial

import click
import numpy as np

from fedmpi.bench import JSON, REPEATS, SIZE, SPARSITY, Result, compare, of_vectors, run, timed
from fedmpi.messages.codec import Block, Coding, Kind, Message, Places, pack, unpack

CODED = {"auto": None} | {
    each.name.lower(): each for each in Places if each not in (Places.AGREED, Places.POSITIONS)
}
"""Encodings of positions."""
ENCODING = click.option(
    "--positions",
    "positions",
    type=click.Choice(list(CODED)),
    default="auto",
    show_default=True,
    help="Encoding of positions.",
)


def sparse(size: int, sparsity: float, positions: str) -> Block:
    """A vector with values at random positions."""
    random = np.random.default_rng(size)
    indices = np.flatnonzero(random.random(size, np.float32) >= sparsity).astype(np.uint32)
    values = random.standard_normal(len(indices), np.float32)
    return Block(Kind.GRADIENT, size, Coding.F4, values, indices, places=CODED[positions])


def bits(block: Block) -> bytes:
    """A bitmap and the values, as a user would write them."""
    assert block.indices is not None and block.values is not None
    kept = np.zeros(block.size, bool)
    kept[block.indices] = True
    return np.packbits(kept).tobytes() + block.values.tobytes()


def pickled(block: Block) -> bytes:
    """Positions and values in a pickle."""
    return pickle.dumps((block.indices, block.values), protocol=pickle.HIGHEST_PROTOCOL)


def check(found: Block, wanted: Block) -> None:
    """Compares positions and values.

    Raises:
        AssertionError: if they differ.
    """
    np.testing.assert_array_equal(found.indices, wanted.indices)
    np.testing.assert_array_equal(found.values, wanted.values)


def measure(name: str, size: int, sparsity: float, positions: str, repeats: int) -> Result:
    """One size and sparsity."""
    block = sparse(size, sparsity, positions)
    message = [Message(0, [block])]
    buffer = pack(message).data
    check(unpack(buffer)[0][0].blocks[0], block)
    x, room = (np.zeros(size, np.float32) for _ in range(2))
    turns = {
        "ours": timed(lambda: pack(message, buffer)),
        "copy": timed(lambda: np.copyto(room, x)),
        "packbits": timed(lambda: bits(block)),
        "pickle": timed(lambda: pickled(block)),
    }
    case = {"size": name, "sparsity": sparsity, "positions": positions}
    return compare("pack", case, turns, repeats)


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
    """Measure how a sparse vector is written as a buffer.

    The references are numpy.packbits, pickle, and a copy of the vector.
    """
    steps = [partial(measure, positions=positions, repeats=repeats)]
    run(of_vectors(steps, sizes, sparsities), as_json)
