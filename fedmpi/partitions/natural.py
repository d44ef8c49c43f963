"""Natural: clients are the people who made the samples: writers, subjects, roles.

As in LEAF: Caldas et al., "LEAF: A Benchmark for Federated Settings", arXiv 1812.01097. The data
set must have owners; `fedmpi list data NAME` tells. If there are fewer clients than people, either
each client is a random group of people, with group sizes that differ by one at most, or clients are
people drawn at random, and the samples of the others are left out.

A test sample goes to the client of the person who made it, if that person is in the training set.
If the two sets are of different people (MNIST), the test set is divided in the clients' proportions
of each class in the training set.
"""

from typing import Literal

import numpy as np
from numpy import ndarray
from pydantic import Field

from fedmpi import config
from fedmpi.config import ConfigError
from fedmpi.partitions import Samples, Shards, counted, follow, scatter


class Config(config.Partition):
    """Assignment of people to clients if there are more people than clients."""

    people: Literal["grouped", "drawn"] = "grouped"
    """How the data set's people become clients. grouped: a client is one or several people. drawn:
    a client is one person, drawn at random; the others are left out."""
    minimum: int = Field(1, ge=1, le=config.MOST)
    """Minimum number of training samples of a person. People with fewer are left out."""


def divide(
    config: Config, train: Samples, test: Samples, clients: int, rng: np.random.Generator
) -> tuple[Shards, Shards]:
    """Returns the shards of both sets, as in `fedmpi.partitions`.

    Raises:
        ConfigError: if the data set has no owners, or fewer people than clients.
    """
    if train.owners is None:
        raise ConfigError(
            "partition.name = 'natural': wanted data whose makers are known, found none; "
            "fedmpi list data NAME says where they come from"
        )
    everybody, sizes = np.unique(train.owners, return_counts=True)
    people = everybody[sizes >= config.minimum]
    if clients > len(people):
        possible = [f"1 to {len(people)} clients"] if len(people) else []
        if clients <= len(everybody):
            possible.append(f"partition.minimum = 1 to {np.sort(sizes)[-clients]}")
        raise ConfigError(
            f"clients = {clients}: wanted a person for each, found {len(people)} with at least "
            f"partition.minimum = {config.minimum} training samples, of {len(everybody)}; "
            f"possible are {', or '.join(possible)}"
        )
    chosen = rng.permutation(people)
    if config.people == "drawn":
        chosen = chosen[:clients]
    client_of = dict(zip(chosen.tolist(), (np.arange(len(chosen)) % clients).tolist(), strict=True))
    shards = _of(train.owners, client_of, clients)
    strangers = np.arange(len(test))
    test_shards: Shards = [np.empty(0, np.int64)] * clients
    if test.owners is not None:
        strangers = np.flatnonzero(~np.isin(test.owners, everybody))
        test_shards = _of(test.owners, client_of, clients)
    counts = counted(shards, train.labels, train.classes)
    followed = follow(test.labels[strangers], counts, rng)
    pairs = zip(test_shards, followed, strict=True)
    return shards, [np.sort(np.concatenate([own, strangers[more]])) for own, more in pairs]


def _of(owners: ndarray, client_of: dict[int, int], clients: int) -> Shards:
    """Returns each client's samples, ascending; samples of people without a client are left out."""
    people, places = np.unique(owners, return_inverse=True)
    clients_of = [client_of.get(person, clients) for person in people.tolist()]
    holders = np.array(clients_of, np.int64)[places]
    return scatter(holders, clients + 1)[:clients]
