"""Split learning: clients train one after the other, and each passes the front on to the next.

O. Gupta, R. Raskar, *Distributed Learning of Deep Neural Network over Multiple Agents*, Journal of
Network and Computer Applications 2018, arXiv 1810.06060. A `tail` is passed on with the front, and
labels then stay with their client: P. Vepakomma, O. Gupta, T. Swedish, R. Raskar, *Split Learning
for Health*, 2018, arXiv 1812.00564.

In a round the active clients train one after the other, in an order drawn for it, and the back on
the server learns from all of them. If a client's upload is lost, the next client starts from the
same front as that one. The back keeps what it learned, unless all uploads of the round are lost.
Differs from the paper: fronts are passed on by way of the server, not directly from client to
client.
Reconstruction: the state of the back's optimizer is kept from client to client and reset each
round. The state of the front's optimizer is reset for each client, because only weights are sent.
"""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from fedmpi import config
from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind, Message
from fedmpi.methods import splitfed
from fedmpi.split.cuts import Cut
from fedmpi.training.train import Trainer


class Config(Cut):
    """Settings of split learning: those of the cut."""

    broadcasts = False
    in_turn = True
    sends: ClassVar[bool] = True
    pools: ClassVar[bool] = False
    optimizes: ClassVar[bool] = False
    uploads: ClassVar[config.Uploads] = "models"
    feedbacks: ClassVar[tuple[str, ...]] = ("none",)

    def width(self, capacity: int, clients: int) -> int:
        """Returns 1 client a wave, because each client starts where the previous one ended."""
        return 1


class Server(splitfed.Server):
    """The server's half.

    Attributes:
        relay: front and tail as the last client uploaded them.
        updates: the same by client, for the client of the current wave.
    """

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.relay = self.sections.held(self.w)

    def state(self) -> dict[str, Tensor]:
        """The model, and front and tail as the last client left them."""
        return super().state() | {"relay": self.relay}

    def send(self, t: int, client: int) -> list[Block]:
        """Sends front and tail as the previous client left them."""
        return [sparse.block(Kind.MODEL, self.relay)]

    def absorb(self, t: int, message: Message) -> None:
        """Keeps the client's front and tail for the next client."""
        self.relay = sparse.vector(message.blocks[0], len(self.relay), self.trainer.device)
        self.updates[message.client] = self.relay

    def step(self, t: int) -> None:
        """Copies the trained front, back and tail into the model."""
        self.w.copy_(self.whole())

    def personal(self, client: int) -> Tensor | None:
        """Returns the model after the client's turn, or None if its upload was lost."""
        return self.whole() if client in self.updates else None

    def whole(self) -> Tensor:
        """Returns the current front, back and tail as one model, [n]."""
        return self.sections.join(self.relay, self.backs.first_row)


class Clients(splitfed.Clients):
    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Does nothing: front and tail come to each client by `accept`."""

    def accept(self, t: int, client: int, blocks: Sequence[Block]) -> None:
        """Receives front and tail as the previous client left them."""
        super().receive(t, [client], blocks)

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """Sends front and tail, for the next client."""
        return [sparse.block(Kind.MODEL, w)]
