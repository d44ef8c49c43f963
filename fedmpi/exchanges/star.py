"""Star: every rank exchanges messages with rank 0 alone.

The server's broadcast is one collective, and so are all uploads of a wave. Each rank packs the
messages of its clients into one buffer. Rank 0 unpacks all buffers and sorts the messages by
client, so that the number of ranks never changes a result.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedmpi import config
from fedmpi.clients.placement import Wave
from fedmpi.costs import HEAD, Load, Step, added, choose, move, read
from fedmpi.messages.clock import Clock, Phase
from fedmpi.messages.codec import Buffer, Message, pack, unpack
from fedmpi.messages.ledger import DOWN, UP, Ledger

if TYPE_CHECKING:  # the settings of an exchange are read where there is no MPI
    from fedmpi.messages.wire import Line, Wire


class Config(config.Exchange):
    """No settings beyond those of all exchanges."""


def steps(load: Load) -> list[Step]:
    """The parts of a round's uplink that follow each other, to predict its seconds."""
    sent = HEAD + load.mine * load.upload
    gather = move("gather", load.near, load.nodes, sent)
    heard = [read(load, load.clients), *added(load, "root", load.clients)]
    return [*choose(load), gather, *heard]


class Exchange:
    """Sends messages to all clients (`broadcast`), from all (`gather`) and to each (`scatter`).

    Uploads are added up where `gather` returns them; `merge` then brings the ranks' sums together.
    On a `Line` gather and scatter are nonblocking, in two halves: `send_up` and `recv_up`,
    `send_down` and `recv_down`.

    Attributes:
        buffers: reused memory for packed messages, by purpose.

    Args:
        wire: to the other ranks.
        clock: of this rank.
        ledger: of all clients, on the root.
        down: the way of broadcasts (see `Wire.bcast`).
    """

    def __init__(
        self, wire: "Wire", clock: Clock, ledger: Ledger, down: config.Way = "bcast"
    ) -> None:
        self.wire, self.clock, self.ledger, self.down = wire, clock, ledger, down
        self.buffers: dict[str, np.ndarray] = {}

    def broadcast(self, messages: list[Message], clients: Sequence[int]) -> list[Message]:
        """Sends the root's messages to every rank, and charges them to each of the clients."""
        word = None
        if self.wire.is_root:
            word, account = self._pack("wire", messages)
            self.ledger.charge(DOWN, clients, account.sum(0))
        return self._open(self.wire.bcast(word, self.down))

    def gather(self, messages: list[Message]) -> list[Message]:
        """Returns all clients' messages on the root, in client order, and charges them."""
        return self._sort(self.wire.gather(self._pack("wire", messages).data))

    def merge(self, sums: Sequence[np.ndarray]) -> None:
        """Adds all ranks' sums to the root's, in place, at the end of a round.

        Here the root has added up all uploads already.

        Args:
            sums: on each rank float32 or float64 vectors of the same lengths.
        """

    def scatter(self, wave: Wave, messages: list[Message]) -> list[Message]:
        """Sends the root's messages for single clients to the ranks that host them."""
        data, lengths = self._address("wire", wave, messages) if self.wire.is_root else (None, [])
        return self._open(self.wire.scatter(data, lengths))

    def send_up(self, line: "Line", messages: list[Message]) -> None:
        """Starts to send the messages of this rank's clients to the root."""
        line.send_up(self._pack(f"{line.name} up", messages).data)

    def recv_up(self, line: "Line") -> list[Message]:
        """Returns all clients' messages on the root, in client order, and charges them."""
        return self._sort(line.recv_up())

    def send_down(self, line: "Line", wave: Wave, messages: list[Message]) -> None:
        """Starts to send the root's messages for single clients to the ranks that host them."""
        line.send_down(*self._address(f"{line.name} down", wave, messages))

    def recv_down(self, line: "Line") -> list[Message]:
        """Returns the messages for this rank's clients."""
        return self._open(line.recv_down())

    def _pack(self, place: str, messages: list[Message]) -> Buffer:
        """Packs messages into one buffer."""
        with self.clock(Phase.PACK):
            packed = pack(messages, self.buffers.get(place))
            if len(packed.data) > len(self.buffers.get(place, ())):
                self.buffers[place] = packed.data
            return packed

    def _address(
        self, place: str, wave: Wave, messages: list[Message]
    ) -> tuple[np.ndarray, list[int]]:
        """Packs the messages for each rank into one buffer; returns it and the ranks' lengths."""
        theirs: list[list[Message]] = [[] for _ in range(self.wire.size)]
        host = dict(zip(wave.clients, wave.hosts, strict=True))
        for message in messages:
            theirs[host[message.client]].append(message)
        data, lengths, accounts = self._bundle(place, theirs)
        for some, account in zip(theirs, accounts, strict=True):
            self.ledger.charge(DOWN, [message.client for message in some], account)
        return data, lengths

    def _bundle(
        self, place: str, theirs: Sequence[Sequence[Message]]
    ) -> tuple[np.ndarray, list[int], list[np.ndarray]]:
        """Packs some messages for each rank into one buffer.

        Returns:
            The buffer, and for each rank the length of its part and the bytes by kind.
        """
        with self.clock(Phase.PACK):
            buffer, at = self.buffers.get(place, np.empty(0, np.uint8)), 0
            pieces, accounts = [], []
            for some in theirs:
                data, account = pack(some, buffer[at:])
                pieces.append(data)
                accounts.append(account)
                at += len(data)
            if at > len(buffer):  # then pieces lie elsewhere, too
                buffer = self.buffers[place] = np.concatenate(pieces)
            return buffer[:at], [len(piece) for piece in pieces], accounts

    def _sort(self, pieces: Sequence[np.ndarray]) -> list[Message]:
        """Unpacks the buffers of all ranks, charges the messages, and sorts them by client."""
        heard = []
        with self.clock(Phase.PACK):
            for piece in pieces:
                found, account = unpack(piece)
                heard += found
                self.ledger.charge(UP, [message.client for message in found], account)
        return sorted(heard, key=lambda message: message.client)

    def _open(self, data: np.ndarray) -> list[Message]:
        """Unpacks a buffer."""
        with self.clock(Phase.PACK):
            return unpack(data)[0]
