"""Which weights a sparse network keeps: how many in each layer, which of them, and what replaces
them. A mask is bool [n] over the model's vector; what cannot be pruned is always in it.

Only weights of convolutions and linear layers can be pruned (`flat.PRUNABLE`); biases, norms and
statistics never are. Where values tie, the first in the vector are taken (`select.largest`).
"""

from collections.abc import Sequence
from math import cos, floor, pi, prod

import numpy as np
import torch
from torch import Tensor

from fedmpi.messages import select
from fedmpi.messages.counts import keep_floor, part_floor
from fedmpi.networks.flat import Flat, Piece


def weights(flat: Flat) -> list[Piece]:
    """The weights that can be pruned, layer by layer."""
    prunable = flat.prunable()
    return [piece for piece in flat.parameters if piece.of(prunable).all()]


def uniform(flat: Flat, sparsity: float) -> list[int]:
    """How many weights each layer keeps where all are as sparse."""
    return [keep_floor(prod(piece.shape), 1 - sparsity) for piece in weights(flat)]


def erk(flat: Flat, sparsity: float) -> list[int]:
    """How many weights each layer keeps by the Erdos-Renyi-Kernel rule; `keep_floor` of all in sum.

    A layer's density is in proportion to the sum of its weight's dimensions over their product: U.
    Evci, T. Gale, J. Menick, P. S. Castro, E. Elsen, *Rigging the Lottery*, ICML 2020, arXiv
    1911.11134, section 3. Layers that would be more than dense are dense, and the others share the
    rest. Fractions are rounded down, and what is missing goes to the largest of them.
    """
    shapes = [piece.shape for piece in weights(flat)]
    sizes = [prod(shape) for shape in shapes]
    total, dense = keep_floor(sum(sizes), 1 - sparsity), [False] * len(sizes)
    while True:
        left = total - sum(size for size, is_dense in zip(sizes, dense, strict=True) if is_dense)
        open_ = sum(sum(s) for s, is_dense in zip(shapes, dense, strict=True) if not is_dense)
        exact = [
            float(size) if is_dense else left * sum(shape) / open_
            for size, shape, is_dense in zip(sizes, shapes, dense, strict=True)
        ]
        full = [e > size for e, size in zip(exact, sizes, strict=True)]
        if not any(full):
            break
        dense = [was or now for was, now in zip(dense, full, strict=True)]
    counts = [floor(e + 1e-9) for e in exact]
    order = sorted(range(len(exact)), key=lambda layer: counts[layer] - exact[layer])
    for layer in order[: total - sum(counts)]:
        counts[layer] += 1
    return counts


def best(scores: Tensor, count: int, votes: Tensor | None = None) -> Tensor:
    """Positions of the `count` largest scores [m]: int64, unsorted.

    Of those that tie the ones with most votes [m], if there are votes, and then the first.
    """
    if votes is None:
        return select.positions(select.largest(scores, count))
    order = votes.sort(descending=True, stable=True).indices
    return order[best(scores[order], count)]


def largest(
    flat: Flat, scores: Tensor, counts: Sequence[int], votes: Tensor | None = None
) -> Tensor:
    """The mask of each layer's largest scores [n], of those that tie by votes [n]: bool [n]."""
    mask = ~flat.prunable().to(scores.device)
    for piece, count in zip(weights(flat), counts, strict=True):
        part = slice(piece.start, piece.stop)
        found = best(scores[part], count, None if votes is None else votes[part])
        mask[piece.start + found] = True
    return mask


def drawn(flat: Flat, counts: Sequence[int], random: np.random.Generator) -> Tensor:
    """A mask of weights at random, so many in each layer: bool [n]."""
    scores = torch.zeros(flat.size)
    for piece in weights(flat):
        order = random.permutation(piece.stop - piece.start)
        scores[piece.start : piece.stop] = torch.from_numpy(order)
    return largest(flat, scores, counts)


def anywhere(flat: Flat, count: int, random: np.random.Generator) -> Tensor:
    """A mask of `count` weights at random, in whichever layers: bool [n]."""
    mask = ~flat.prunable()
    places = (~mask).nonzero().squeeze(1)
    mask[places[torch.from_numpy(random.permutation(len(places))[:count])]] = True
    return mask


def regrown(
    flat: Flat, w: Tensor, growth: Tensor, mask: Tensor, counts: Sequence[int], share: float
) -> Tensor:
    """The mask without each layer's smallest weights, and with those that grow instead: bool [n].

    Args:
        flat: the network.
        w: weights, [n].
        growth: scores [n], the largest of which grow: gradients, or random numbers.
        mask: what is kept so far.
        counts: how many weights each layer keeps afterwards.
        share: of those that are pruned first. They may grow again.
    """
    found = mask.clone()
    for piece, count in zip(weights(flat), counts, strict=True):
        part = slice(piece.start, piece.stop)
        size = w[part].abs().masked_fill(~mask[part], -1)
        stays = torch.zeros_like(mask[part])
        some = min(count, int(mask[part].sum())) - part_floor(count, share)
        stays[best(size, max(0, some))] = True
        stays[best(growth[part].abs().masked_fill(stays, -1), count - int(stays.sum()))] = True
        found[part] = stays
    return found


def annealed(share: float, t: int, end: float) -> float:
    """Half a cosine from `share` in round 0 to 0 in round `end` and later."""
    return share / 2 * (1 + cos(pi * t / end)) if t < end else 0.0
