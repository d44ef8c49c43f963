"""The largest values of a vector as a block, against torch.topk and a copy of the vector.

Values and positions that are chosen have to be those of a stable sort by size. Ours includes the
block of positions and values, the reference the sort of positions and the values. One thread.
"""

from functools import partial

import click
import numpy as np
import torch
from torch import Tensor

from fedmpi.bench import JSON, REPEATS, SIZE, SPARSITY, Result, compare, of_vectors, run, timed
from fedmpi.messages import select, sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.messages.counts import keep_round


def vector(size: int) -> Tensor:
    """Values like an update's: many small ones, and a few large."""
    random = np.random.default_rng(size)
    values = random.standard_normal(size, np.float32)
    values *= random.random(size, np.float32) ** 3
    return torch.from_numpy(values)


def ours(x: Tensor, count: int) -> Block:
    """The block of the largest values."""
    chosen = select.top(x, count)
    return sparse.block(Kind.GRADIENT, chosen.values, len(x), chosen.places)


def theirs(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Positions and values as a user would find them."""
    positions = torch.topk(x.abs(), count, sorted=False).indices.sort().values
    return positions, x[positions]


def check(block: Block, x: Tensor, count: int) -> None:
    """Compares a block with the first values of a stable sort, without a sort of all positions.

    Raises:
        AssertionError: if it has others.
    """
    sizes, place = x.abs().numpy(), len(x) - count
    least = np.partition(sizes, place)[place] if count else np.inf
    surplus = np.count_nonzero(sizes >= least) - count
    ties = np.flatnonzero(sizes == least)
    wanted = np.flatnonzero(sizes >= least)
    wanted = wanted[~np.isin(wanted, ties[len(ties) - surplus :])]
    assert block.indices is not None and block.values is not None
    np.testing.assert_array_equal(block.indices, wanted)
    np.testing.assert_array_equal(block.values, x.numpy()[wanted])


def measure(name: str, size: int, sparsity: float, repeats: int) -> Result:
    """One size and sparsity."""
    torch.set_num_threads(1)
    x, count = vector(size), keep_round(size, 1 - sparsity)
    check(ours(x, count), x, count)
    room = np.empty(size, np.float32)
    turns = {
        "ours": timed(lambda: ours(x, count)),
        "copy": timed(lambda: np.copyto(room, x.numpy())),
        "topk": timed(lambda: theirs(x, count)),
    }
    return compare("select", {"size": name, "sparsity": sparsity}, turns, repeats)


@click.command()
@SIZE
@SPARSITY
@REPEATS
@JSON
def command(
    sizes: tuple[str, ...], sparsities: tuple[float, ...], repeats: int, as_json: bool
) -> None:
    """Measure the choice of the largest values of a vector.

    The references are torch.topk with a sort of the positions, and a copy of the vector.
    """
    steps = [partial(measure, repeats=repeats)]
    run(of_vectors(steps, sizes, sparsities), as_json)
