"""SplitFed: clients train the front of the network in parallel, the server trains the back.

C. Thapa, P. C. Mahawaga Arachchige, S. Camtepe, L. Sun, *SplitFed: When Federated Learning Meets
Split Learning*, AAAI 2022, arXiv 2004.12088, algorithms 1 and 2.

`v1` keeps a copy of the back for each client and averages the copies after the round; `v2` has one
back, which the clients' batches train one after the other, in an order drawn each round. Where a
client's upload is lost, its copy counts as little as its front; v2's back has learnt all the same,
unless all uploads of a round are.
With a `tail`, which is averaged like the front, labels stay with their client: P. Vepakomma, O.
Gupta, T. Swedish, R. Raskar, *Split Learning for Health*, 2018, arXiv 1812.00564.
Differs from the paper: all clients take each step together, so that v2 meets one batch of every
client in turn, not all batches of one client; fronts and copies are averaged by samples (all alike
with `aggregation.weights = equal`); a clip is by the norm of a part's gradient, not of all parts'.
Differs from the code: an optimiser's state is kept across the batches of a round.

It is the base of methods that change what crosses the cut, and when: `sides` has their hooks, and
what happens in a step. Here stands what happens around a conversation.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from fedmpi.clients.burden import Burden
from fedmpi.config import ConfigError, Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind, Message
from fedmpi.methods import fedavg
from fedmpi.networks.flat import Flat
from fedmpi.split.cuts import Cut, shape_behind
from fedmpi.split.lockstep import Talk, WaveParts
from fedmpi.split.sides import ClientSide, ServerSide
from fedmpi.training.train import Trainer


class Config(Cut):
    version: Literal["v1", "v2"] = "v1"
    """`v1`: a back for each client, averaged; `v2`: one back for all, and no tail, because others
    would move the back between a batch's way forward and its way back."""

    @property
    def is_one(self) -> bool:
        """See `Cut.is_one`."""
        return self.version == "v2"

    @property
    def pools(self) -> bool:
        """One back is no mean of clients' updates."""
        return not self.is_one

    def width(self, room: int, clients: int) -> int:
        """One back meets all clients in one order, whatever the window."""
        return clients if self.is_one else room

    def parts(self, flat: Flat) -> tuple[Flat, Flat, Flat]:
        """See `Cut.parts`."""
        if self.is_one and self.tail is not None:
            raise ConfigError(f"method.tail = '{self.tail}': wanted version = 'v1', found 'v2'")
        return super().parts(flat)


class Server(ServerSide, fedavg.Server):
    """The server's half.

    Attributes:
        sections: where front, back and tail lie in the model.
        updates: of fronts and tails, of the wave's clients whose uploads came.
        round: the last that had a conversation.
    """

    method: Cut

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        front, back, _ = self.method.parts(self.flat)
        self.sections = self.method.sections(self.flat)
        self.shape = shape_behind([front], trainer.feed.x)
        self.backs = WaveParts(trainer, back, self.method.is_one, trainer.pool)
        self.updates: dict[int, Tensor] = {}
        self.round: int | None = None

    def broadcast(self, t: int) -> list[Block]:
        """Front and tail."""
        return [sparse.block(Kind.MODEL, self.sections.held(self.w))]

    def open(self, t: int, parties: Sequence[Sequence[int]]) -> list[Talk]:
        """Begins a wave's conversation; one back goes on from wave to wave."""
        goes_on = self.method.is_one and self.round == t
        self.round, self.updates = t, {}
        return self.begin(t, parties, None if goes_on else self.sections.split(self.w)[1])

    def absorb(self, t: int, message: Message) -> None:
        """An update of front and tail, and with v1 that of the back that belongs to them."""
        update = sparse.vector(message.blocks[0], self.sections.size, self.trainer.device)
        self.add_up(message, update)

    def add_up(self, message: Message, update: Tensor) -> None:
        """Adds up an update of front and tail, and with v1 that of the back."""
        front, _, tail = self.sections.split(self.sum.total)
        for total, own in zip((front, tail), self.sections.split_held(update), strict=True):
            total.add_(own, alpha=message.weight)
        self.updates[message.client] = update
        self.count(message)

    def count(self, message: Message) -> None:
        """Takes in that a client is done, and with v1 the update of its back."""
        if not self.method.is_one:
            _, back, _ = self.sections.split(self.sum.total)
            change = self.backs.of(message.client) - self.sections.split(self.w)[1]
            back.add_(change, alpha=message.weight)
        self.sum.weight += message.weight

    def step(self, t: int) -> None:
        """Moves front and tail, and the back likewise (v1) or to where it was brought (v2)."""
        super().step(t)
        if self.method.is_one:
            self.sections.split(self.w)[1].copy_(self.backs.first_row)

    def personal(self, client: int) -> Tensor | None:
        """The client's front, back and tail together; None if its upload was lost."""
        if client not in self.updates:
            return None
        held = self.sections.held(self.w) + self.updates[client]
        return self.sections.join(held, self.backs.of(client))


class Clients(ClientSide, fedavg.Clients):
    """The clients' half.

    Attributes:
        sections: where front and tail lie in what a client holds.
        held: the front.
        end: see `Cut.end`.
    """

    method: Cut

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        front, back, tail = self.method.parts(self.flat)
        self.sections, self.held = self.method.sections(self.flat), front
        self.fronts, self.tails = WaveParts(trainer, front), WaveParts(trainer, tail)
        self.start = self.start.new_zeros(self.sections.size)
        self.end = self.method.end(self.flat)
        if self.end is not None:
            self.shape = shape_behind([front, back], trainer.feed.x)

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Front and tail."""
        self.start = sparse.vector(blocks[0], self.sections.size, self.trainer.device)

    def open(self, t: int, parties: Sequence[Sequence[int]]) -> list[Talk]:
        """Begins a wave's conversation."""
        front, tail = self.sections.split_held(self.start)
        return self.begin(t, parties, front, tail)

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Fronts and tails as the conversation left them."""
        parts = [(self.fronts.of(client), self.tails.of(client)) for client in clients]
        return torch.stack([torch.cat(both) for both in parts])

    def burden(self, t: int, client: int) -> Burden:
        """What the client trains: front and tail."""
        return replace(super().burden(t, client), end=self.end)

    def personal(self, client: int, w: Tensor) -> Tensor | None:
        """A client has no whole model; the server has (see `Server.personal`)."""
        return None
