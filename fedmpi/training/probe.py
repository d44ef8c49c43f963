"""Measurements of models that change none of them: correct predictions, and gradients.

Networks are in evaluation mode. Nothing is random, and no statistics move.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedmpi.clients.burden import Burden
from fedmpi.messages.codec import Block
from fedmpi.training.train import Part, Trainer

BATCH = 256
"""Samples in a batch. It is the same for one row and for many, because some networks normalize a
batch by its own statistics."""


@dataclass(frozen=True, eq=False)
class Variant:
    """The global model as devices with some share of it hold it.

    Attributes:
        share: of the model, as the method counts it.
        clients: how many clients have that share.
        w: the values, [m].
        part: the network of these values; None for the whole one.
        blocks: what one client is sent.
        burden: training on one sample, and with a batch of the settings' size.
    """

    share: float
    clients: int
    w: Tensor
    part: Part | None
    blocks: Sequence[Block]
    burden: Burden


@torch.no_grad()
def correct(
    trainer: Trainer,
    models: Sequence[Tensor],
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    owners: Sequence[int] = (),
    part: Part | None = None,
) -> list[np.ndarray]:
    """Tells for each model which of its samples it classifies correctly.

    Args:
        trainer: has the networks, and the clients' local statistics.
        models: vectors [n].
        xs: the samples of each model, [N_i, *shape].
        ys: their labels.
        owners: the clients whose models these are. Models without owners, and models of clients
            that have not trained yet, have no local statistics.
        part: the network of all of these models, if it is not the whole one; n is its size then.

    Returns:
        For each model bool [N_i].
    """
    hits: list[list[np.ndarray]] = [[np.zeros(0, bool)] for _ in models]
    known = {i for i, client in enumerate(owners) if client in trainer.statistics}
    order = sorted((i for i, x in enumerate(xs) if len(x)), key=lambda i: -len(xs[i]))
    width = trainer.row_limit or 1
    # Models with local statistics and models without are normalized differently.
    groups = [[i for i in order if (i in known) == is_known] for is_known in (True, False)]
    for group in groups:
        for start in range(0, len(group), width):
            chunk = group[start : start + width]
            rows = trainer.rows_for(len(chunk), part).rows
            clients = [owners[i] for i in chunk] if owners else []
            trainer.recall(clients, rows)
            for row, client in enumerate(clients):
                if client in trainer.tuned:
                    rows.local_stats[row] = trainer.tuned[client]
            by_batch = trainer.keeps_statistics and chunk[0] not in known
            rows.train_mode(False, batch_statistics=by_batch)
            torch.stack([models[i] for i in chunk], out=rows.w[: len(chunk)])
            for at in range(0, len(xs[chunk[0]]), BATCH):
                busy = [i for i in chunk if len(xs[i]) > at]
                outputs = rows.forward([xs[i][at : at + BATCH] for i in busy])
                for i, output in zip(busy, outputs, strict=True):
                    labels = ys[i][at : at + BATCH]
                    hits[i].append((output.argmax(1) == labels).cpu().numpy())
    return [np.concatenate(pieces) for pieces in hits]


def gradient(trainer: Trainer, client: int, w: Tensor, positions: np.ndarray) -> Tensor:
    """The gradient of the mean loss at w [n] on some training samples of a client.

    The network has the client's own statistics, if they are local.

    Args:
        trainer: has the network and the samples.
        client: the client.
        w: the model, [n].
        positions: the samples, int64.

    Returns:
        [n], valid until the trainer's network is used again.
    """
    trainer.rows.w[0] = w
    trainer.recall([client], trainer.rows)
    trainer.rows.train_mode(False)
    x, y = trainer.feed.take(torch.from_numpy(positions))
    trainer.rows.losses([x], [y], ())
    return trainer.rows.head(1)[1][0]
