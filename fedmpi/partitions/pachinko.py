"""Pachinko allocation: a client's samples are of a few groups of classes.

S. J. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konecny, S. Kumar, H. B. McMahan,
"Adaptive Federated Optimization", ICLR 2021, arXiv 2003.00295, appendix C, for CIFAR-100 and its 20
superclasses; after W. Li, A. McCallum, "Pachinko Allocation", ICML 2006. Each client draws
probabilities of the groups from Dir(alpha, ..., alpha), and for each group probabilities of its
classes from Dir(beta, ..., beta). One client after the other takes its samples without replacement:
it draws a group, and a class of the group. A class that is used up leaves its group, and a group
that is used up leaves all; the others keep their proportions. The paper has 500 clients with 100
samples each.

Differs from the paper: sizes need not be equal (`sigma`); a client whose groups are all used up
draws in proportion to what is left; the test set is divided in the proportions of the training set
(in the paper, among 100 other clients).
"""

import numpy as np
from numpy import ndarray
from pydantic import Field

from fedmpi import config
from fedmpi.config import ConfigError
from fedmpi.partitions import Samples, Shards, Sized, by_counts, check


class Config(Sized):
    """Heterogeneity of the clients by groups, and by classes of a group."""

    alpha: float = Field(0.1, gt=0, le=config.LARGEST)
    """Concentration of the Dirichlet distribution of groups. A small one gives a client few
    groups."""
    beta: float = Field(10.0, gt=0, le=config.LARGEST)
    """Concentration of the Dirichlet distribution of a group's classes."""


def divide(
    config: Config, train: Samples, test: Samples, clients: int, rng: np.random.Generator
) -> tuple[Shards, Shards]:
    """Returns the shards of both sets, as in `fedmpi.partitions`.

    Raises:
        ConfigError: if the data set has no groups of classes, or more clients than training
            samples.
    """
    check(len(train), clients)
    if train.groups is None:
        raise ConfigError(
            "partition.name = 'pachinko': wanted a data set whose classes have groups, such as "
            "data.name = 'cifar100' with its 100 fine labels, found one without"
        )
    sizes = config.sizes(len(train), clients, rng)
    counts = draw(train.groups, train.totals, sizes, config.alpha, config.beta, rng)
    return by_counts(train, test, counts, rng)


def draw(
    groups: ndarray,
    totals: ndarray,
    sizes: ndarray,
    alpha: float,
    beta: float,
    rng: np.random.Generator,
) -> ndarray:
    """Draws counts, int64 [classes, clients].

    Args:
        groups: the group of each class, int [classes].
        totals: samples of each class, int [classes].
        sizes: samples of each client, int [clients]; they add up to those of all classes.
        alpha: concentration of groups.
        beta: concentration of classes in a group.
        rng: draws.
    """
    left, counts = totals.copy(), np.zeros((len(totals), len(sizes)), np.int64)
    kinds, group = np.unique(groups, return_inverse=True)
    members = [np.flatnonzero(group == kind) for kind in range(len(kinds))]
    for client, size in enumerate(sizes):
        root, twigs = rng.dirichlet(np.full(len(kinds), alpha)), np.empty(len(totals))
        for some in members:
            twigs[some] = rng.dirichlet(np.full(len(some), beta))
        while counts[:, client].sum() < size:
            ends = np.cumsum(weights(root, twigs, group, left))
            points = rng.random(int(size - counts[:, client].sum())) * ends[-1]
            # A point that was rounded up to the end belongs to the last class with a weight.
            last = np.searchsorted(ends, ends[-1])
            drawn = np.minimum(np.searchsorted(ends, points, "right"), last)
            taken = drawn[: until(drawn, left)]
            found = np.bincount(taken, minlength=len(totals))
            counts[:, client] += found
            left -= found
    return counts


def weights(root: ndarray, twigs: ndarray, group: ndarray, left: ndarray) -> ndarray:
    """Returns the weight of each class in the next draw, [classes].

    Args:
        root: probability of each group.
        twigs: probability of each class in its group.
        group: the group of each class.
        left: samples of each class that are left.
    """
    open_ = np.where(left > 0, twigs, 0)
    whole = np.bincount(group, open_, minlength=len(root))[group]
    found = np.divide(root[group] * open_, whole, out=np.zeros_like(open_), where=whole > 0)
    return found if found.sum() > 0 else left.astype(float)


def until(drawn: ndarray, left: ndarray) -> int:
    """Returns how many of the drawn classes can be taken, until the first of them is used up."""
    order = np.argsort(drawn, kind="stable")
    ordered = drawn[order]
    rank = np.arange(len(drawn)) - np.searchsorted(ordered, ordered)
    last = order[rank + 1 == left[ordered]]
    return int(last.min()) + 1 if len(last) else len(drawn)
