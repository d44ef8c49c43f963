"""Measurements of models that change none of them: correct predictions, and gradients.

Networks are in evaluation mode. Nothing is random, and no statistics move.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedmpi.clients.burden import Burden
from fedmpi.messages.codec import Block
from fedmpi.networks.flat import Flat
from fedmpi.training.rows import Rows
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
        kind: how the model is made smaller, where devices of one run differ in that.
    """

    share: float
    clients: int
    w: Tensor
    part: Part | None
    blocks: Sequence[Block]
    burden: Burden
    kind: str = ""


class Overlap(NamedTuple):
    """How many weights two masks have in common (see `tables.MASKS`).

    Attributes:
        kind: what is compared.
        client: whose mask it is; -1 for that of all.
        other: the client whose mask it is compared with, or -1.
        common: share of the weights that the first one keeps which the second keeps, too.
        jaccard: weights that both keep over weights that at least one keeps.
    """

    kind: str
    client: int
    other: int
    common: float
    jaccard: float


@dataclass(frozen=True)
class Section:
    """A part of a network that follows upon another (see `train.Part`).

    Attributes:
        flat: the part.
        local_stats: where its local statistics lie in the whole network's, int64.
    """

    flat: Flat
    local_stats: Tensor


def sections(flats: Sequence[Flat]) -> list[Section]:
    """Returns the parts of a network that follow each other in its vector."""
    found, first = [], 0
    for flat in flats:
        end = first + len(flat.local_stats)
        found.append(Section(flat, torch.arange(first, end)))
        first = end
    return found


class Chain:
    """A network in parts, with what happens to values on their way between two of them.

    Args:
        parts: the parts, which follow each other in the models that are measured.
        carried: cut between parts, from 0, and values [B, *shape] -> what arrives, [B, *shape].
    """

    def __init__(
        self, parts: Sequence[Part], carried: Callable[[int, Tensor], Tensor] = lambda _, x: x
    ) -> None:
        self.parts, self.carried = parts, carried

    def forward(self, rows: Sequence[Rows[Any]], xs: Sequence[Tensor]) -> list[Tensor]:
        """Runs the first k rows of each part, one part after the other, on a batch of each."""
        xs = list(xs)
        for cut, part in enumerate(rows):
            xs = part.forward([self.carried(cut - 1, x) for x in xs] if cut else xs)
        return xs


@torch.no_grad()
def correct(
    trainer: Trainer,
    models: Sequence[Tensor],
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    owners: Sequence[int] = (),
    chain: Chain | None = None,
) -> list[np.ndarray]:
    """Tells for each model which of its samples it classifies correctly.

    Args:
        trainer: has the networks, and the clients' local statistics.
        models: vectors [n].
        xs: the samples of each model, [N_i, *shape].
        ys: their labels.
        owners: the clients whose models these are. Models without owners, and models of clients
            that have not trained yet, have no local statistics.
        chain: the network of these models in parts, if it is not the whole one, or if something
            happens between them.

    Returns:
        For each model bool [N_i].
    """
    hits: list[list[np.ndarray]] = [[np.zeros(0, bool)] for _ in models]
    known = {i for i, client in enumerate(owners) if client in trainer.statistics}
    order = sorted((i for i, x in enumerate(xs) if len(x)), key=lambda i: -len(xs[i]))
    width, chain = trainer.row_limit or 1, chain or Chain(sections([trainer.flat]))
    # Models with local statistics and models without are normalized differently.
    groups = [[i for i in order if (i in known) == is_known] for is_known in (True, False)]
    for group in groups:
        for start in range(0, len(group), width):
            chunk = group[start : start + width]
            by_batch = trainer.keeps_statistics and chunk[0] not in known
            clients = [owners[i] for i in chunk] if owners else []
            theirs = torch.stack([models[i] for i in chunk])
            sizes, parts = [part.flat.size for part in chain.parts], []
            for part, w in zip(chain.parts, theirs.split(sizes, 1), strict=True):
                rows = trainer.rows_for(len(chunk), part).rows
                trainer.recall(clients, rows, part.local_stats)
                for row, client in enumerate(clients):
                    if client in trainer.tuned:
                        rows.local_stats[row] = trainer.tuned[client][part.local_stats]
                rows.train_mode(False, batch_statistics=by_batch)
                rows.w[: len(chunk)].copy_(w)
                parts.append(rows)
            for at in range(0, len(xs[chunk[0]]), BATCH):
                busy = [i for i in chunk if len(xs[i]) > at]
                outputs = chain.forward(parts, [xs[i][at : at + BATCH] for i in busy])
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
    return loss(trainer, client, w, torch.from_numpy(positions))[1]


def loss(trainer: Trainer, client: int, w: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The mean loss at w [n] on some training samples of a client, a scalar, and its gradient.

    Arguments and gradient are as in `gradient`.
    """
    trainer.rows.w[0] = w
    trainer.recall([client], trainer.rows)
    trainer.rows.train_mode(False)
    x, y = trainer.feed.take(positions)
    found = trainer.rows.losses([x], [y], ())[0][0]
    return found, trainer.rows.head(1)[1][0]
