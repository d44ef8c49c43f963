"""Pathological label skew: samples sorted by label are cut into shards, and dealt to the clients.

The non-IID partition of McMahan et al., "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017, arXiv 1602.05629, section 3: MNIST is cut into 200 shards of 300
samples, and each of 100 clients has two, so that most clients have samples of two digits only. A
client may hold the same class twice. A shard may reach over the end of a class, so that a client
may have more classes than shards.

Differs from the paper: if the shards cannot be equally large, their sizes differ by one; the test
set is divided as well. `partition.name = classes` gives each client an exact number of classes.
"""

import numpy as np
from pydantic import Field

from fedmpi import config
from fedmpi.config import ConfigError
from fedmpi.partitions import Samples, Shards, by_counts, check


class Config(config.Partition):
    """Number of shards of a client."""

    shards_per_client: int = Field(2, ge=1, le=config.MOST)
    """Number of shards that each client has. There are as many shards as all clients have
    together."""


def divide(
    config: Config, train: Samples, test: Samples, clients: int, rng: np.random.Generator
) -> tuple[Shards, Shards]:
    """Returns the shards of both sets, as in `fedmpi.partitions`.

    Raises:
        ConfigError: if there are more shards than training samples.
    """
    check(len(train), clients)
    each, shards = config.shards_per_client, clients * config.shards_per_client
    if shards > len(train):
        raise ConfigError(
            f"partition.shards_per_client = {each}: {clients} clients want {shards} training "
            f"samples, found {len(train)}; possible are 1 to {len(train) // clients}"
        )
    hands = rng.permutation(shards).reshape(clients, each)
    # Shard s holds places starts[s] .. starts[s + 1] - 1 of the sorted samples; the first ones are
    # longer by one where they are not all as long.
    size, longer = divmod(len(train), shards)
    starts = np.arange(shards + 1) * size + np.minimum(np.arange(shards + 1), longer)
    owner = np.empty(shards, np.int64)
    owner[hands] = np.arange(clients)[:, np.newaxis]
    owners = np.repeat(owner, np.diff(starts))
    cells = np.sort(train.labels) * clients + owners
    counts = np.bincount(cells, minlength=train.classes * clients)
    return by_counts(train, test, counts.reshape(train.classes, clients), rng)
