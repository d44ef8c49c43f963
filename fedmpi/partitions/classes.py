"""Pathological label skew: each client holds samples of a few classes only.

"noniid-#label" of NIID-Bench: Li, Diao, Chen, He, "Federated Learning on Non-IID Data Silos: An
Experimental Study", ICDE 2022, arXiv 2102.02079. A class's samples are split evenly among the
clients that have it. By default classes are dealt such that the numbers of clients of a class
differ by one at most, so that sizes hardly differ where classes are equally large. With `dealing =
drawn` it is as in NIID-Bench's code: the first class of client k is class k modulo the number of
classes, and the others are drawn at random. Then classes have unequal numbers of clients, and
clients have unequal sizes.

Differs from the code: a class without a client is an error (the code leaves its samples out).
"""

from typing import Literal

import numpy as np
from numpy import ndarray
from pydantic import Field

from fedmpi import config
from fedmpi.config import ConfigError
from fedmpi.partitions import Samples, Shards, by_counts, check


class Config(config.Partition):
    """Number of classes of a client, and who has which."""

    classes_per_client: int = Field(2, ge=1, le=config.MOST)
    """Number of classes that each client has training samples of."""
    dealing: Literal["even", "drawn"] = "even"
    """How classes are given to clients. even: each class to as many clients, give or take one.
    drawn: one class in turn and the others at random, as in NIID-Bench; sizes are then unequal."""


def divide(
    config: Config, train: Samples, test: Samples, clients: int, rng: np.random.Generator
) -> tuple[Shards, Shards]:
    """Returns the shards of both sets, as in `fedmpi.partitions`.

    A class without training samples is dealt to nobody.

    Raises:
        ConfigError: if a client is to have more classes than there are, if the clients together
            do not hold all classes, or if a class has fewer samples than clients that hold it.
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
    if config.dealing == "even" and clients * wanted > rarest * found:
        raise ConfigError(
            f"{setting}: each class is held by up to {-(-clients * wanted // found)} of {clients} "
            f"clients, but the rarest class has {rarest} samples; possible are up to "
            f"{rarest * found // wanted} clients"
        )
    counts = np.zeros((train.classes, clients), np.int64)
    deal = hands if config.dealing == "even" else draws
    for client, hand in enumerate(deal(present, clients, wanted, rng)):
        counts[hand, client] = 1
    for label in present:
        holders = rng.permutation(np.flatnonzero(counts[label]))
        if not 1 <= len(holders) <= totals[label]:
            raise ConfigError(
                f"partition.dealing = 'drawn': class {label} was drawn by {len(holders)} clients, "
                f"and has {totals[label]} samples; wanted 1 to {totals[label]} clients; possible "
                "are another seed, more classes_per_client, or partition.dealing = 'even'"
            )
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


def draws(present: ndarray, clients: int, wanted: int, rng: np.random.Generator) -> list[list[int]]:
    """Gives each client one class in turn, and draws the others among those that it lacks."""
    dealt = []
    for client in range(clients):
        first = client % len(present)
        others = rng.permutation(len(present) - 1)[: wanted - 1]
        places = [first, *(others + (others >= first))]
        dealt.append(present[places].tolist())
    return dealt
