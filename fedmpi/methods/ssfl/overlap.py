"""How far masks agree that the same model would have got from other samples; off the books.

All are masks over the weights that can be pruned, made from scores by the same rule. The agreed
mask is that of all clients' scores; each client has the one that it would have chosen alone. Both
are compared with masks of minibatches that are drawn again, and with an oracle's, who sees the
training samples of all clients. The root makes them all, because every rank has all samples.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedmpi.methods.ssfl import saliency
from fedmpi.training.probe import Overlap
from fedmpi.training.train import Trainer

SLAB = 1 << 16
"""Weights that are compared at once; their counts are exact in float32."""


def overlaps(
    kind: str,
    trainer: Trainer,
    batches: int,
    t: int,
    w: Tensor,
    agreed: Tensor,
    choose: Callable[[Tensor], Tensor],
) -> list[Overlap]:
    """Compares the masks of an agreement.

    Args:
        kind: the saliency.
        trainer: has the network and the samples.
        batches: minibatches that a client scores.
        t: the round.
        w: the model that was scored, [n].
        agreed: the mask that was agreed on, bool [d].
        choose: makes a mask, bool [d], of scores [n].

    Returns:
        Overlaps of the kinds `clients` (each two clients' masks), `agreed` (each client's mask with
        the agreed one), `batches` and `oracle` (each client's, and as client -1 the agreed one).
    """
    population = trainer.population
    clients = population.sample(t)
    oracle = choose(saliency.of_everyone(kind, trainer, clients, w))
    found, alone, pooled = list[Overlap](), list[Tensor](), torch.zeros_like(w)
    for client in clients:
        ours, others = (
            saliency.scores(
                kind, trainer, client, w, saliency.drawn(trainer, batches, t, client, again)
            )
            for again in (False, True)
        )
        pooled += others * population.weight(t, client)
        alone.append(choose(ours))
        found.append(overlap("agreed", client, -1, alone[-1], agreed))
        found.append(overlap("batches", client, -1, alone[-1], choose(others)))
        found.append(overlap("oracle", client, -1, alone[-1], oracle))
    found.append(overlap("batches", -1, -1, agreed, choose(pooled)))
    found.append(overlap("oracle", -1, -1, agreed, oracle))
    both, kept = shared(alone), int(agreed.sum())
    for place, client in enumerate(clients):
        for later in range(place + 1, len(clients)):
            common = int(both[place, later])
            found.append(_of("clients", client, clients[later], common, kept, kept))
    return found


def overlap(kind: str, client: int, other: int, one: Tensor, two: Tensor) -> Overlap:
    """The overlap of two masks, bool [d]."""
    return _of(kind, client, other, int((one & two).sum()), int(one.sum()), int(two.sum()))


def _of(kind: str, client: int, other: int, common: int, one: int, two: int) -> Overlap:
    """The overlap of masks that keep so many weights, so many of them in common.

    P. Jaccard, 1901: common over all that one of both keeps.
    """
    union, nan = one + two - common, float("nan")
    share, jaccard = common / one if one else nan, common / union if union else nan
    return Overlap(kind, client, other, share, jaccard)


def shared(masks: Sequence[Tensor]) -> Tensor:
    """Counts for each two of K masks, bool [d], the weights that both keep: int64 [K, K]."""
    found = torch.zeros(len(masks), len(masks), dtype=torch.int64)
    for start in range(0, len(masks[0]), SLAB):
        some = torch.stack([mask[start : start + SLAB] for mask in masks]).float()
        found += (some @ some.T).long().cpu()
    return found
