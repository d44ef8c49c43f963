"""Partitions: one module each, with a `Config` and

    divide(config, train, test, clients, rng) -> (shards, test shards)

`train` and `test` are `Samples`. The results are lists of `clients` index arrays (int64,
ascending). The test set is divided with the same priors as the training set. Every training sample
goes to exactly one client, and so does every test sample, unless a setting leaves some out. A test
shard may be empty, a training shard may not. A division that is impossible is a `ConfigError`.
A module's docstring is its description in `fedmpi list partitions`.

A partition that is read from a file, including the held-out samples, has instead of `divide`

    restore(config, train, test, clients) -> (held out, shards, test shards)

where `train` are all labels of the training set, and shards are positions among these.

A partition by labels is a matrix `counts[classes, clients]`. Its module draws the matrix, and
`by_counts` makes the shards of both sets from it.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from pydantic import Field

from fedmpi import config
from fedmpi.config import ConfigError

Shards = list[ndarray]


@dataclass(frozen=True)
class Samples:
    """Labels and owners of the samples that are to be divided.

    Attributes:
        labels: int64 [N], 0 .. classes - 1.
        classes: number of labels.
        owners: the person or device that made each sample, int64 [N]; None if unknown.
        groups: the group that each class belongs to, int64 [classes]; None if there are none.
    """

    labels: ndarray
    classes: int
    owners: ndarray | None = None
    groups: ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def totals(self) -> ndarray:
        """Number of samples of each class, int64 [classes]."""
        return np.bincount(self.labels, minlength=self.classes)


class Sized(config.Partition):
    """Settings of a partition that can give clients any sizes."""

    sigma: float = Field(0.0, ge=0, le=100)
    """Standard deviation of the logarithm of clients' sizes, which are then lognormal. 0 gives all
    clients the same size."""

    def sizes(self, samples: int, clients: int, rng: np.random.Generator) -> ndarray:
        """Returns each client's number of samples, int64 [clients]: 1 at least, `samples` in all.

        Without `sigma` nothing is drawn, and the first ones are larger by one if need be.
        """
        if not self.sigma:
            return samples // clients + (np.arange(clients) < samples % clients)
        return lognormal(self.sigma, 1, samples, clients, rng)


def lognormal(
    sigma: float, minimum: int, samples: int, clients: int, rng: np.random.Generator
) -> ndarray:
    """Returns lognormal sizes, int64 [clients]: each client has `minimum`, and a share of the rest.

    The shares are in proportion to exp(sigma z), where z is standard normal. Fractions are rounded
    down, and what is missing goes to clients in random order.

    Args:
        sigma: standard deviation of the logarithm.
        minimum: samples of each client beforehand.
        samples: number of samples.
        clients: number of clients; clients * minimum is at most `samples`.
        rng: draws the sizes.
    """
    # The largest weight is 1, so that none is infinite.
    logs = sigma * rng.standard_normal(clients)
    weights = np.exp(logs - logs.max())
    free = samples - clients * minimum
    sizes = minimum + np.floor(weights / weights.sum() * free).astype(np.int64)
    sizes[rng.permutation(clients)[: samples - int(sizes.sum())]] += 1
    return sizes


def check(samples: int, clients: int) -> None:
    """Checks that there is a training sample for every client.

    Raises:
        ConfigError: if there are fewer samples than clients.
    """
    if clients > samples:
        raise ConfigError(
            f"clients = {clients}: wanted a training sample for each, found {samples} samples; "
            f"possible are 1 to {samples} clients"
        )


def check_minimum(minimum: int, samples: int, clients: int) -> None:
    """Checks that there are `minimum` training samples for every client.

    Raises:
        ConfigError: if there are fewer.
    """
    check(samples, clients)
    if clients * minimum > samples:
        fewer = f", or 1 to {samples // minimum} clients" if minimum <= samples else ""
        raise ConfigError(
            f"partition.minimum = {minimum}: {clients} clients want "
            f"{clients * minimum} training samples, found {samples}; possible are "
            f"1 to {samples // clients}{fewer}"
        )


def fingerprint(parts: Iterable[ndarray]) -> str:
    """Returns the SHA-256 of positions: held-out samples, then shards, then test shards."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part.astype("<i8").tobytes())
    return digest.hexdigest()


def scatter(owners: ndarray, clients: int) -> Shards:
    """Returns the samples of each client, ascending; `owners[i]` is the client of sample i."""
    order = np.argsort(owners, kind="stable")
    sizes = np.bincount(owners, minlength=clients)
    return np.split(order, np.cumsum(sizes)[:-1])


def by_counts(
    train: Samples, test: Samples, counts: ndarray, rng: np.random.Generator
) -> tuple[Shards, Shards]:
    """Divides the training set by counts, int [classes, clients], and the test set likewise."""
    return deal(train.labels, counts, rng), follow(test.labels, counts, rng)


def deal(labels: ndarray, counts: ndarray, rng: np.random.Generator) -> Shards:
    """Gives client k `counts[c, k]` random samples of class c.

    Args:
        labels: int [N], in 0 .. classes - 1.
        counts: int [classes, clients]; row c adds up to the number of samples with label c.
        rng: draws the samples.
    """
    classes, clients = counts.shape
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    owners = np.empty(len(labels), np.int64)
    owners[by_class] = np.repeat(np.tile(np.arange(clients), classes), counts.ravel())
    return scatter(owners, clients)


def follow(labels: ndarray, counts: ndarray, rng: np.random.Generator) -> Shards:
    """Divides other samples in the proportions of the training set.

    The share of client k in class c is `counts[c, k] / counts[c].sum()`. The client gets that share
    of the samples, rounded up or down at random such that the mean is exact. A class without a
    training sample is divided by the clients' sizes.

    Args:
        labels: int [M], in 0 .. classes - 1.
        counts: int [classes, clients], of the training set.
        rng: draws the roundings and the samples.
    """
    classes, clients = counts.shape
    weights = np.where(counts.sum(axis=1, keepdims=True) > 0, counts, counts.sum(axis=0))
    # Systematic rounding: a class's clients are segments of a line in random order, as long as
    # their weights, and samples are equally spaced points with one random start. All numbers are
    # integers, so that every sample lies on exactly one client.
    order = rng.permuted(np.tile(np.arange(clients), (classes, 1)), axis=1)
    ends = np.cumsum(np.take_along_axis(weights, order, axis=1), axis=1)
    totals = ends[:, -1:]
    samples = np.bincount(labels, minlength=classes)[:, np.newaxis]
    points = (ends * samples + rng.integers(totals)) // totals
    shares = np.empty_like(points)
    np.put_along_axis(shares, order, np.diff(points, axis=1, prepend=0), axis=1)
    return deal(labels, shares, rng)


def counted(shards: list[ndarray], labels: ndarray, classes: int) -> ndarray:
    """Returns the number of each client's samples of each class, int64 [classes, clients].

    Args:
        shards: each client's positions in `labels`.
        labels: int [N], in 0 .. classes - 1.
        classes: number of labels.
    """
    owners = np.repeat(np.arange(len(shards)), [len(shard) for shard in shards])
    cells = labels[np.concatenate(shards)] * len(shards) + owners
    return np.bincount(cells, minlength=classes * len(shards)).reshape(classes, len(shards))
