"""Pathological label skew: each client holds samples of a few classes only.

After McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, arXiv 1602.05629, where each client has two of ten classes. Classes are dealt to the
clients such that the numbers of clients of a class differ by one at most. A class's samples are
split evenly among its clients.

Differs from the paper: there, sorted samples are cut into shards of equal size, so that a client
may hold the same class twice, or more classes than shards; here it holds exactly
`classes_per_client` classes, as with "noniid-#label" of NIID-Bench (Li et al., "Federated Learning
on Non-IID Data Silos: An Experimental Study", ICDE 2022).
Differs from the code of NIID-Bench: it draws the classes at random, and may leave some out.
"""

import numpy as np
from numpy import ndarray
from pydantic import Field

from fedmpi import config
from fedmpi.config import ConfigError
from fedmpi.partitions import Samples, Shards, by_counts, check


class Config(config.Partition):
    """Number of classes of a client."""

    classes_per_client: int = Field(2, ge=1)
    """Number of classes that each client has training samples of."""


def divide(
    config: Config, train: Samples, test: Samples, clients: int, rng: np.random.Generator
) -> tuple[Shards, Shards]:
    """Returns the shards of both sets, as in `fedmpi.partitions`.

    A class without training samples is dealt to nobody.

    Raises:
        ConfigError: if a client is to have more classes than there are, if the clients together
            cannot hold all classes, or if a class has fewer samples than clients that hold it.
    """
    check(len(train), clients)
    wanted = config.classes_per_client
    totals = train.totals
    present = np.flatnonzero(totals)
    found, rarest = len(present), int(totals[present].min())
    setting = f"partition.classes_per_client = {wanted}"
    if wanted > found:
        raise ConfigError(
            f"{setting}: the training set has {found} classes; possible are 1 to {found}"
        )
    if clients * wanted < found:
        raise ConfigError(
            f"{setting}: {clients} clients hold {clients * wanted} of {found} classes, and the "
            f"others would be left out; possible are {-(-found // clients)} to {found}"
        )
    if clients * wanted > rarest * found:
        raise ConfigError(
            f"{setting}: each class is held by up to {-(-clients * wanted // found)} of {clients} "
            f"clients, but the rarest class has {rarest} samples; possible are up to "
            f"{rarest * found // wanted} clients"
        )
    counts = np.zeros((train.classes, clients), np.int64)
    for client, hand in enumerate(hands(present, clients, wanted, rng)):
        counts[hand, client] = 1
    for label in present:
        holders = rng.permutation(np.flatnonzero(counts[label]))
        share, rest = divmod(int(totals[label]), len(holders))
        counts[label, holders] = share
        counts[label, holders[:rest]] += 1
    return by_counts(train, test, counts, rng)


def hands(present: ndarray, clients: int, wanted: int, rng: np.random.Generator) -> list[list[int]]:
    """Deals different classes to each client, from shuffled decks that hold each class once."""
    dealt: list[list[int]] = []
    deck: list[int] = []
    for _ in range(clients):
        hand, deck = deck[:wanted], deck[wanted:]
        if len(hand) < wanted:
            fresh = rng.permutation(present).tolist()
            first = set(hand)
            new = [label for label in fresh if label not in first][: wanted - len(hand)]
            gone = set(new)
            hand, deck = hand + new, [label for label in fresh if label not in gone]
        dealt.append(hand)
    return dealt
