"""What each client has sent and been sent in a round: bytes by kind, and messages."""

from collections.abc import Sequence

import numpy as np

from fedmpi.messages.codec import Kind

UP, DOWN = 0, 1
"""Directions of a client's bytes, in the order of `tables.DIRECTIONS`."""


class Ledger:
    """The accounts of all clients, kept on the root.

    Attributes:
        bytes: int64 [clients, directions, kinds].
        messages: int64 [clients, directions].
    """

    def __init__(self, clients: int) -> None:
        self.clients = clients
        self.begin()

    def begin(self) -> None:
        """A round begins: all accounts are zero."""
        self.bytes = np.zeros((self.clients, 2, len(Kind)), np.int64)
        self.messages = np.zeros((self.clients, 2), np.int64)

    def charge(self, direction: int, clients: Sequence[int], account: np.ndarray) -> None:
        """Adds messages' bytes to their clients.

        Args:
            direction: `UP` or `DOWN`.
            clients: whose messages they are.
            account: int64 [messages, kinds], or one row for all.
        """
        if len(clients) and len(account):
            self.bytes[list(clients), direction] += account
            self.messages[list(clients), direction] += 1
