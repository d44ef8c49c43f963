"""IID: samples are divided at random in equal numbers, with one distribution for all shards.

Shards differ by one sample at most, in the training set and in the test set. It is "IID" of McMahan
et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
arXiv 1602.05629, and "homo" of NIID-Bench.
"""

import numpy as np

from fedmpi import config
from fedmpi.partitions import Samples, Shards, check, scatter


class Config(config.Partition):
    """An IID partition has no settings."""


def divide(
    config: Config, train: Samples, test: Samples, clients: int, rng: np.random.Generator
) -> tuple[Shards, Shards]:
    """Returns the shards of both sets, as in `fedmpi.partitions`, whatever the labels.

    Raises:
        ConfigError: if there are more clients than training samples.
    """
    check(len(train), clients)
    shards = scatter(rng.permutation(len(train)) % clients, clients)
    return shards, scatter(rng.permutation(len(test)) % clients, clients)
