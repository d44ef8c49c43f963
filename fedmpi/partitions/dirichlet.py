"""Label skew and unequal sizes: each class is spread over the clients by a Dirichlet draw.

Partition "noniid-labeldir" of NIID-Bench: Li, Diao, Chen, He, "Federated Learning on Non-IID Data
Silos: An Experimental Study", ICDE 2022, arXiv 2102.02079. For each class in turn the clients'
proportions are drawn from Dir(alpha, ..., alpha). A client that already has its even share of all
samples gets none of the class. The whole partition is drawn again until the smallest client has
`minimum` samples.

Differs from the paper: the rule of even shares and the smallest size are only in its code.
Differs from the code: the number of tries is limited; if a draw gives no mass to the clients that
may take more, these share the class evenly (the code divides by zero); the test set is divided as
well.
"""

import numpy as np
from numpy import ndarray
from pydantic import Field

from fedmpi import config
from fedmpi.config import ConfigError
from fedmpi.partitions import Samples, Shards, by_counts, check_minimum

TRIES = 1000
"""Draws after which a partition is given up: a few seconds with 10,000 clients."""


class Config(config.Partition):
    """Heterogeneity of the clients, and their minimum size."""

    alpha: float = Field(0.5, gt=0, allow_inf_nan=False)
    """Concentration of the Dirichlet distribution of classes. 0.1 gives a client few classes; 100
    is close to an even mixture."""
    minimum: int = Field(10, ge=1, le=config.MOST)
    """Minimum number of training samples per client. The partition is redrawn until every client
    has that many."""


def divide(
    config: Config, train: Samples, test: Samples, clients: int, rng: np.random.Generator
) -> tuple[Shards, Shards]:
    """Returns the shards of both sets, as in `fedmpi.partitions`.

    Raises:
        ConfigError: if there are not enough samples, or no draw gives every client its minimum.
    """
    check_minimum(config.minimum, len(train), clients)
    totals = train.totals
    smallest = 0
    for _ in range(TRIES):
        counts = draw(totals, clients, config.alpha, rng)
        size = int(counts.sum(axis=0).min())
        if size >= config.minimum:
            return by_counts(train, test, counts, rng)
        smallest = max(smallest, size)
    lower = f"partition.minimum = {smallest}, " if smallest else ""
    raise ConfigError(
        f"partition.minimum = {config.minimum}: in {TRIES} draws of {clients} clients with alpha = "
        f"{config.alpha}, the smallest client had {smallest} samples at best; possible are "
        f"{lower}a larger alpha, fewer clients, or partition.name = 'dirichlet-balanced'"
    )


def draw(totals: ndarray, clients: int, alpha: float, rng: np.random.Generator) -> ndarray:
    """Draws counts, int64 [classes, clients], for totals of each class, [classes]."""
    counts = np.zeros((len(totals), clients), np.int64)
    sizes = np.zeros(clients, np.int64)
    for row, total in zip(counts, totals, strict=True):
        if total == 0:
            continue
        below = sizes * clients < totals.sum()
        ends = np.cumsum(rng.dirichlet(np.full(clients, alpha)) * below)
        if not ends[-1] > 0:
            ends = np.cumsum(below.astype(float))
        # Dividing first makes the end of the last client that may take more exactly 1.
        row[:] = np.diff((ends / ends[-1] * total).astype(np.int64), prepend=0)
        sizes += row
    return counts
