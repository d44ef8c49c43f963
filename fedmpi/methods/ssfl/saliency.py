"""Scores of parameters on a client's samples: the higher, the more a weight is worth keeping.

With the model w, the mean loss L of a minibatch, its gradient g and its Hessian H:
 * `snip`: |g * w|, the effect on the loss of taking a weight away: N. Lee, T. Ajanthan, P. H. S.
   Torr, *SNIP*, ICLR 2019, arXiv 1810.02340;
 * `grasp`: w * (H g). Taking weight q away changes |g|^2, by which the loss falls in a step of
   gradient descent, by -2 w_q (H g)_q to first order: those go that cost least of it, or add to it.
   C. Wang, G. Zhang, R. Grosse, *Picking Winning Tickets Before Training by Preserving Gradient
   Flow*, ICLR 2020, arXiv 2002.07376. There the score is -w * (H g), and the lowest ones are kept;
 * `gradient`: |g|;
 * `magnitude`: |w|, which no sample changes.

Differs from the code of GraSP: the network's outputs are not divided by a temperature of 200.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedmpi.streams import Purpose, stream
from fedmpi.training import probe
from fedmpi.training.rows import trained
from fedmpi.training.train import Trainer

GRADIENTS = {"snip": 1, "grasp": 2, "gradient": 1, "magnitude": 0}
"""Saliencies, and the gradients on the scored samples that each costs. A product with the Hessian
costs about as much as a gradient: B. A. Pearlmutter, Neural Computation 6(1), 1994."""


def drawn(
    trainer: Trainer, batches: int, t: int, client: int, again: bool = False
) -> list[np.ndarray]:
    """Draws the client's minibatches of an agreement, without replacement.

    Args:
        trainer: knows the clients' samples, and the size of a batch.
        batches: how many, if the client has enough samples.
        t: the round.
        client: the client.
        again: whether to draw others, from a stream of their own.

    Returns:
        Positions of the samples of each, int64.
    """
    shard, size = trainer.population.shards[client], trainer.settings.batch
    ids = [t, 1] if again else [t] if t >= 0 else []
    random = stream(trainer.settings.seed, Purpose.SALIENCY, client, *ids)
    count = min(batches * size, len(shard))
    some = random.choice(shard, count, replace=False)
    return np.split(some, range(size, count, size))


def scores(
    kind: str, trainer: Trainer, client: int, w: Tensor, parts: Sequence[np.ndarray]
) -> Tensor:
    """Scores a model on minibatches of a client, and averages the scores: [n].

    Args:
        kind: the saliency.
        trainer: has the network and the samples.
        client: the client.
        w: the model, [n].
        parts: positions of the samples of each minibatch.
    """
    found = torch.zeros_like(w)
    for part in parts:
        found += _score(kind, trainer, client, w, part)
    return found / len(parts)


def _score(kind: str, trainer: Trainer, client: int, w: Tensor, part: np.ndarray) -> Tensor:
    if kind == "magnitude":
        return w.abs()
    gradient = probe.gradient(trainer, client, w, part)
    if kind == "grasp":
        return w * curvature(trainer, client, w, part, gradient.clone())
    return gradient.abs() if kind == "gradient" else (gradient * w).abs()


def curvature(trainer: Trainer, client: int, w: Tensor, part: np.ndarray, v: Tensor) -> Tensor:
    """The product of the Hessian of the mean loss at w [n] with v [n], on some samples: [n].

    It is the gradient of g(w)^T v, by two passes of autograd. Parameters that the gradient does not
    depend on have zeros, as have running statistics. The network is in evaluation mode.
    """
    flat, rows = trainer.flat, trainer.rows
    trainer.recall([client], rows)
    network = flat.network(w.clone(), rows.local_stats[0].clone()).train(False)
    x, y = trainer.feed.take(torch.from_numpy(part))
    with rows.autocast():
        outputs = network(x)
    loss, parameters = cross_entropy(outputs.float(), y), trained(flat, network)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    given = [piece.of(v) for piece in flat.parameters]
    products = torch.autograd.grad(gradients, parameters, given, allow_unused=True)
    found = torch.zeros_like(w)
    for piece, product in zip(flat.parameters, products, strict=True):
        if product is not None:
            piece.of(found).copy_(product)
    return found


def of_everyone(kind: str, trainer: Trainer, clients: Sequence[int], w: Tensor) -> Tensor:
    """Scores a model on all training samples of some clients at once, [n]: an oracle's scores.

    The gradient, and the Hessian's product with it, are those of the mean loss over all samples.
    """
    shards = [(client, trainer.population.shards[client]) for client in clients]
    parts = [
        (client, part)
        for client, shard in shards
        for part in np.split(shard, range(probe.BATCH, len(shard), probe.BATCH))
    ]
    total = sum(len(shard) for _, shard in shards)
    gradient = torch.zeros_like(w)
    for client, part in parts:
        gradient += probe.gradient(trainer, client, w, part) * (len(part) / total)
    if kind != "grasp":
        return gradient.abs() if kind == "gradient" else (gradient * w).abs()
    product = torch.zeros_like(w)
    for client, part in parts:
        product += curvature(trainer, client, w, part, gradient) * (len(part) / total)
    return w * product
