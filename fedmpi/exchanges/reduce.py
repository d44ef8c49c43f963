"""Reduce: each rank adds up its clients' uploads, and one reduction adds up the ranks' sums.

The sums are dense vectors, or the values at positions that all ranks know, such as those of a mask.
So the bytes between ranks grow with the ranks, not with the clients, and the server's work does,
too. The downlink is that of `star`.

A sum of floats depends on the order of its terms. Here it depends on which rank hosts which client,
and on how the MPI library adds. So results equal those of `star` to rounding: with C clients an
element of the sum differs by at most 2 C 2^-24 times the sum of the terms' absolute values.

A client's bytes are those of its upload as it is packed for `star`. It is written in the same way,
but then added on its own rank, and not sent. What was sent is in the table `ranks`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fedmpi import config
from fedmpi.costs import WORD, Load, Step, added, choose, move
from fedmpi.exchanges import star
from fedmpi.messages.clock import Clock, Phase
from fedmpi.messages.codec import Kind, Message, weigh
from fedmpi.messages.ledger import UP, Ledger

if TYPE_CHECKING:
    from fedmpi.messages.wire import Wire


class Config(config.Exchange):
    """No settings beyond those of all exchanges."""

    adds: ClassVar[bool] = True


def steps(load: Load) -> list[Step]:
    """The parts of a round's uplink that follow each other, to predict its seconds."""
    moved = move("reduce", load.near, load.nodes, 4 * load.summed + WORD)
    return [*choose(load), *added(load, "each", load.mine), moved]


class Exchange(star.Exchange):
    """Leaves uploads on their ranks, and reduces what these have added up.

    Attributes:
        accounts: client and bytes by kind of each upload since the last `merge`, int64.
    """

    def __init__(
        self, wire: "Wire", clock: Clock, ledger: Ledger, down: config.Way = "bcast"
    ) -> None:
        super().__init__(wire, clock, ledger, down)
        self.accounts: list[np.ndarray] = []

    def gather(self, messages: list[Message]) -> list[Message]:
        """Returns the messages of this rank's clients, in client order, and notes their bytes."""
        with self.clock(Phase.PACK):
            self.note(messages, weigh(messages))
        return sorted(messages, key=lambda message: message.client)

    def note(self, messages: Sequence[Message], account: np.ndarray) -> None:
        """Notes the bytes of uploads by kind, int64 [messages, kinds], which are added up here."""
        clients = np.array([message.client for message in messages], np.int64)
        self.accounts.append(np.column_stack([clients, account]))

    def merge(self, sums: Sequence[np.ndarray]) -> None:
        """Adds all ranks' sums to the root's, and charges the clients with their uploads."""
        self.close(self.wire, sums)

    def close(self, wire: "Wire", sums: Sequence[np.ndarray]) -> None:
        """Adds some ranks' sums to the root's, in place; the ranks meet once.

        The root charges the clients with the uploads that were added up on these ranks.

        Args:
            wire: joins the ranks: all that uploads were added up on, with the root first.
            sums: of this rank, as in `merge`; those that are not added up already.
        """
        rows = np.concatenate([np.empty((0, 1 + len(Kind)), np.int64), *self.accounts])
        self.accounts.clear()
        for found in wire.reduce(sums, rows):
            account = found.reshape(-1, 1 + len(Kind))
            self.ledger.charge(UP, account[:, 0].tolist(), account[:, 1:])
