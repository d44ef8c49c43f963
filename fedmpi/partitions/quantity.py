"""Quantity skew: sizes differ by a Dirichlet or lognormal draw, and labels are random.

Partition "iid-diff-quantity" of NIID-Bench: Li, Diao, Chen, He, "Federated Learning on Non-IID Data
Silos: An Experimental Study", ICDE 2022, arXiv 2102.02079. The clients' proportions are drawn from
Dir(alpha, ..., alpha), and each client gets random samples, whatever their labels. With `sigma`
they are lognormal instead, as the sizes of devices in LEAF's and FedProx's synthetic data.

Differs from the code: each client gets `minimum` samples first, and the proportions divide the
others (the code draws until the smallest client has 10, which never ends with many clients); the
test set is divided as well.
"""

import numpy as np
from numpy import ndarray
from pydantic import Field

from fedmpi import config
from fedmpi.config import ConfigError
from fedmpi.partitions import Samples, Shards, by_counts, check_minimum, lognormal


class Config(config.Partition):
    """Heterogeneity of the clients' sizes, and their minimum."""

    alpha: float = Field(0.5, gt=0, le=config.LARGEST)
    """Concentration of the Dirichlet distribution of sizes. 0.1 gives nearly all samples to a few
    clients; 100 gives similar sizes."""
    minimum: int = Field(10, ge=1, le=config.MOST)
    """Minimum number of training samples per client."""
    sigma: float | None = Field(None, gt=0, le=100)
    """If given, sizes beyond the minimum are lognormal, and not a Dirichlet draw: the standard
    deviation of their logarithm."""


def divide(
    config: Config, train: Samples, test: Samples, clients: int, rng: np.random.Generator
) -> tuple[Shards, Shards]:
    """Returns the shards of both sets, as in `fedmpi.partitions`, whatever the labels.

    Raises:
        ConfigError: if there are not enough samples for every client's minimum, or both `alpha` and
            `sigma` are given.
    """
    check_minimum(config.minimum, len(train), clients)
    # All samples are treated as one class.
    train, test = (Samples(np.zeros_like(some.labels), 1) for some in (train, test))
    return by_counts(train, test, draw(config, len(train), clients, rng)[np.newaxis], rng)


def draw(config: Config, samples: int, clients: int, rng: np.random.Generator) -> ndarray:
    """Draws the clients' sizes, int64 [clients]."""
    if config.sigma is not None:
        if config.alpha != type(config).model_fields["alpha"].default:
            raise ConfigError(
                f"partition.alpha = {config.alpha}: wanted no partition.sigma, found {config.sigma}"
            )
        return lognormal(config.sigma, config.minimum, samples, clients, rng)
    ends = np.cumsum(rng.dirichlet(np.full(clients, config.alpha)))
    free = samples - clients * config.minimum
    # Dividing first makes the last end exactly 1.
    return config.minimum + np.diff((ends / ends[-1] * free).astype(np.int64), prepend=0)
