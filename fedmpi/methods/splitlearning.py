"""Split learning: clients train one after the other, and the front travels from each to the next.

O. Gupta, R. Raskar, *Distributed Learning of Deep Neural Network over Multiple Agents*, Journal of
Network and Computer Applications 2018, arXiv 1810.06060; with a `tail`, which travels with the
front, labels stay with their client: P. Vepakomma, O. Gupta, T. Swedish, R. Raskar, *Split Learning
for Health*, 2018, arXiv 1812.00564.

In a round each client that takes part has its turn, in the order of their numbers, and the back on
the server learns from all of them. Where what a client leaves behind is lost on its way, the next
one begins where it began; the back has learnt all the same, unless all is lost in a round.
Differs from the paper: fronts travel by way of the server, up and down again, not from client to
client.
Reconstruction: the back's optimiser keeps its state from client to client, and starts afresh each
round; the front's starts afresh with each client, for weights are all that travels.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind, Message
from fedmpi.methods import splitfed
from fedmpi.split.cuts import Cut
from fedmpi.training.train import Trainer


class Config(Cut):
    """Nothing else to set."""

    broadcasts = False
    in_turn = True
    sends: ClassVar[bool] = True
    pools: ClassVar[bool] = False

    def width(self, room: int, clients: int) -> int:
        """Each client begins where the one before it ended."""
        return 1


class Server(splitfed.Server):
    """The server's half.

    Attributes:
        relay: front and tail as the last client left them.
        updates: the same, while that client's wave lasts.
    """

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.relay = self.held(self.w)

    def state(self) -> dict[str, Tensor]:
        """The model, and front and tail as the last client left them."""
        return super().state() | {"relay": self.relay}

    def send(self, t: int, client: int) -> list[Block]:
        """Front and tail."""
        return [sparse.block(Kind.MODEL, self.relay)]

    def absorb(self, t: int, message: Message) -> None:
        """Front and tail, for the next client."""
        self.relay = sparse.vector(message.blocks[0], len(self.relay), self.trainer.device)
        self.updates[message.client] = self.relay

    def step(self, t: int) -> None:
        """The model is where the last client brought it."""
        self.w.copy_(self.whole())

    def personal(self, client: int) -> Tensor | None:
        """The model after the client's turn; None if what it left behind was lost."""
        return self.whole() if client in self.updates else None

    def whole(self) -> Tensor:
        """The model as it is, [n]."""
        front, tail = self.relay.split(self.sizes[::2])
        return torch.cat([front, self.backs.first_row, tail])


class Clients(splitfed.Clients):
    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """A round begins."""

    def accept(self, t: int, client: int, blocks: Sequence[Block]) -> None:
        """Front and tail as the client before left them."""
        super().receive(t, [client], blocks)

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """Front and tail, for the next client."""
        return [sparse.block(Kind.MODEL, w)]
