"""Bytes by kind and messages that each client sent and received in a round."""

from collections.abc import Sequence

import numpy as np

from fedmpi.messages.codec import Kind

UP, DOWN = 0, 1
"""Directions of a client's bytes, in the order of `tables.DIRECTIONS`."""


class Ledger:
    """Byte and message counts of all clients, on the root.

    Attributes:
        bytes: int64 [clients, directions, kinds].
        messages: int64 [clients, directions].
    """

    def __init__(self, clients: int) -> None:
        self.clients = clients
        self.begin()

    def begin(self) -> None:
        """Sets all counts to zero, at the beginning of a round."""
        self.bytes = np.zeros((self.clients, 2, len(Kind)), np.int64)
        self.messages = np.zeros((self.clients, 2), np.int64)

    def charge(self, direction: int, clients: Sequence[int], account: np.ndarray) -> None:
        """Adds the bytes of messages to their clients.

        Args:
            direction: `UP` or `DOWN`.
            clients: client of each message.
            account: bytes by kind, int64 [messages, kinds], or one row for all clients.
        """
        if len(clients) and len(account):
            self.bytes[list(clients), direction] += account
            self.messages[list(clients), direction] += 1
