"""Label skew and chosen sizes: each client has its own Dirichlet mixture of the classes.

The partition of Ohib et al., "SSFL: Discovering Unified Sparse Subnetworks at Initialization for
Efficient Federated Learning", TMLR 2026, arXiv 2405.09037, as in its code. Each client draws class
priors from Dir(alpha, ..., alpha). Sizes differ by one sample at most, or they are lognormal
(`sigma`), as in the code of Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR
2021, arXiv 2111.04263. In random order clients take one sample at a time without replacement, and
draw its class from their prior. The prior of a class that is used up goes to the other classes in
proportion.

Differs from the code: a client without any prior on the classes that are left draws in proportion
to what is left (the code divides by zero). Samples of a test class that remain after rounding go to
random clients that have the class (in the code, to the first clients, whether or not they have it).
"""

import numpy as np
from numpy import ndarray
from pydantic import Field

from fedmpi.partitions import Samples, Shards, Sized, by_counts, check

CELLS = 1 << 22
"""Numbers that are compared at a time while classes are drawn: 32 MiB."""


class Config(Sized):
    """Heterogeneity of the clients, and their sizes."""

    alpha: float = Field(0.5, gt=0, allow_inf_nan=False)
    """Concentration of the Dirichlet distribution of classes. 0.1 gives a client few classes; 100
    is close to an even mixture."""


def divide(
    config: Config, train: Samples, test: Samples, clients: int, rng: np.random.Generator
) -> tuple[Shards, Shards]:
    """Returns the shards of both sets, as in `fedmpi.partitions`.

    Raises:
        ConfigError: if there are more clients than training samples.
    """
    check(len(train), clients)
    priors = rng.dirichlet(np.full(train.classes, config.alpha), size=clients)
    counts = draw(priors, train.totals, config.sizes(len(train), clients, rng), rng)
    return by_counts(train, test, counts, rng)


def draw(priors: ndarray, totals: ndarray, sizes: ndarray, rng: np.random.Generator) -> ndarray:
    """Draws counts, int64 [classes, clients].

    Args:
        priors: of each client, [clients, classes].
        totals: samples of each class, int [classes].
        sizes: samples of each client, int [clients]; they add up to those of all classes.
        rng: draws.

    The samples are taken in one long sequence of turns. A class is drawn for every turn in advance.
    When a class is used up, the later turns that had drawn it draw again among the others. This is
    the process in the module's docstring, but with one pass for each class instead of one for each
    sample.
    """
    clients, classes = priors.shape
    owners = np.repeat(np.arange(clients), sizes)
    laps = np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    turns = rng.permutation(owners[np.argsort(laps, kind="stable")])
    left = totals.copy()
    drawn = pick(priors, left, turns, rng)
    taken = 0
    while taken < len(turns):
        claims = np.bincount(drawn[taken:], minlength=classes)
        by_class = np.argsort(drawn[taken:], kind="stable")
        used_up = np.flatnonzero((left > 0) & (claims >= left))
        # For each class that is used up: the turn that takes its last sample.
        starts = np.cumsum(claims) - claims
        last = by_class[starts[used_up] + left[used_up] - 1]
        until = taken + int(last.min()) + 1
        left -= np.bincount(drawn[taken:until], minlength=classes)
        taken = until
        again = taken + np.flatnonzero(left[drawn[taken:]] == 0)
        drawn[again] = pick(priors, left, turns[again], rng)
    return np.bincount(drawn * clients + turns, minlength=classes * clients).reshape(
        classes, clients
    )


def pick(priors: ndarray, left: ndarray, turns: ndarray, rng: np.random.Generator) -> ndarray:
    """Draws a class for each turn, int64 [turns], by its client's prior among the classes left."""
    picked = np.empty(len(turns), np.int64)
    step = max(1, CELLS // len(left))
    for first in range(0, len(turns), step):
        weights = priors[turns[first : first + step]] * (left > 0)
        weights = np.where(weights.sum(axis=1, keepdims=True) > 0, weights, left)
        ends = np.cumsum(weights, axis=1)
        points = rng.random((len(ends), 1)) * ends[:, -1:]
        picked[first : first + step] = (ends <= points).sum(axis=1)
    return picked
