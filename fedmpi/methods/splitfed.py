"""SplitFed: clients train the front of the network in parallel, the server trains the back.

C. Thapa, P. C. Mahawaga Arachchige, S. Camtepe, L. Sun, *SplitFed: When Federated Learning Meets
Split Learning*, AAAI 2022, arXiv 2004.12088, algorithms 1 and 2.

`v1` keeps a copy of the back for each client and averages the copies after the round; `v2` has one
back, which the clients' batches train one after the other, in an order drawn each round.
Differs from the paper: all clients take each step together, so that v2 meets one batch of every
client in turn, not all batches of one client (of each client of a wave, where `exchange.window` is
too small for all at once: it matters to v2, and to nothing else); fronts and copies are averaged by
samples.
Differs from the code: an optimiser's state is kept across the batches of a round.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedmpi import config, sparse
from fedmpi.codec import Block, Kind, Message
from fedmpi.config import Settings
from fedmpi.flat import Flat
from fedmpi.methods import fedavg
from fedmpi.streams import Purpose, stream
from fedmpi.train import Trainer


class Config(config.Method):
    cut: str | None = None
    """The split point: the last stage that clients train; by default the first there is."""
    version: Literal["v1", "v2"] = "v1"
    """`v1`: a back for each client, averaged; `v2`: one back for all."""

    def halves(self, flat: Flat) -> tuple[Flat, Flat]:
        """The network in front of the cut and behind it.

        Raises:
            ConfigError: if the model has no such split point, or none at all.
        """
        return flat.split(self.cut or (flat.cuts() or [""])[0])


class Server(fedavg.Server):
    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        front, self.back = self.method.halves(self.flat)
        self.front = front.size
        with torch.no_grad():
            self.shape = front.network(self.w[: self.front])(trainer.x[:1]).shape[1:]
        self.copies = trainer.descent_of(self.back, 0)
        self.slots: dict[int, int] = {}
        self.fronts: dict[int, Tensor] = {}
        self.round: int | None = None

    def broadcast(self, t: int) -> list[Block]:
        """The front."""
        return [sparse.block(Kind.MODEL, self.w[: self.front])]

    def open(self, t: int, clients: Sequence[int]) -> None:
        """Begins a wave's conversation: v2's back goes on from wave to wave."""
        alone = self.method.version == "v2"
        self.slots = {client: 0 if alone else slot for slot, client in enumerate(clients)}
        count = 1 if alone else len(clients)
        if len(self.copies.rows) < count:
            self.copies = self.trainer.descent_of(self.back, count)
        if not alone or self.round != t:
            self.copies.reset(self.w[self.front :])
        self.round, self.fronts = t, {}

    def exchange(self, t: int, messages: Sequence[Message]) -> list[Message]:
        """One step of every busy client: activations and labels in, gradients at the cut out."""
        if self.method.version == "v2":
            order = stream(self.settings.seed, Purpose.ORDER, t).permutation(self.settings.clients)
            messages = sorted(messages, key=lambda message: order[message.client])
        return [Message(m.client, [self.train(t, m.client, *m.blocks)]) for m in messages]

    def train(self, t: int, client: int, activations: Block, labels: Block) -> Block:
        """One step of the client's back."""
        slot, rows = self.slots[client], self.copies.rows
        y = sparse.values(labels, self.trainer.device)
        a = self.decode(activations).view(len(y), *self.shape).requires_grad_()
        loss = cross_entropy(rows.networks[slot](a), y)
        (gradient,) = rows.backward(slot, loss, also=(a,))
        self.copies.step(t, slice(slot, slot + 1))
        self.trainer.note(client, loss.detach())
        return self.encode(gradient)

    def decode(self, block: Block) -> Tensor:
        """Activations of a batch, flat, as they came over the cut."""
        return sparse.values(block, self.trainer.device)

    def encode(self, gradient: Tensor) -> Block:
        """The gradient of a batch at the cut, for the client."""
        return sparse.block(Kind.GRADIENT, gradient)

    def absorb(self, t: int, message: Message) -> None:
        """A front's update, and with v1 that of the back that belongs to it."""
        update = sparse.vector(message.blocks[0], self.front, self.trainer.device)
        self.fronts[message.client] = update
        self.total[: self.front].add_(update, alpha=message.weight)
        if self.method.version == "v1":
            change = self.copies.rows.w[self.slots[message.client]] - self.w[self.front :]
            self.total[self.front :].add_(change, alpha=message.weight)
        self.weight += message.weight

    def step(self, t: int) -> None:
        """Moves the front, and the back likewise (v1) or to where the clients brought it (v2)."""
        super().step(t)
        if self.method.version == "v2":
            self.w[self.front :] = self.copies.rows.w[0]

    def personal(self, client: int) -> Tensor | None:
        """The client's front and its back together."""
        front = self.w[: self.front] + self.fronts[client]
        return torch.cat([front, self.copies.rows.w[self.slots[client]]])


class Clients(fedavg.Clients):
    method: Config
    converses = True

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.front, _ = self.method.halves(self.flat)
        self.fronts = trainer.descent_of(self.front, 0)
        self.slots: dict[int, int] = {}
        self.left: dict[int, Iterator[Tensor]] = {}
        self.outputs: dict[int, Tensor] = {}

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """The front."""
        self.start = sparse.vector(blocks[0], self.front.size, self.trainer.device)

    def open(self, t: int, clients: Sequence[int]) -> None:
        """Begins a wave's conversation."""
        if len(self.fronts.rows) < len(clients):
            self.fronts = self.trainer.descent_of(self.front, len(clients))
        self.fronts.reset(self.start)
        self.slots = {client: slot for slot, client in enumerate(clients)}
        self.left = {client: self.trainer.batches(t, client) for client in clients}

    def forward(self, t: int) -> list[Message]:
        """The next batch of every client that has one: activations at the cut, and labels."""
        messages, self.outputs = [], {}
        for client, slot in self.slots.items():
            with self.trainer.timed(client):
                positions = next(self.left[client], None)
                if positions is None:
                    continue
                a = self.fronts.rows.networks[slot](self.trainer.x[positions])
                self.outputs[client] = a
                labels = sparse.labels(self.trainer.y[positions], self.trainer.classes)
                messages.append(Message(client, [self.encode(a), labels]))
        return messages

    def encode(self, a: Tensor) -> Block:
        """Activations of a batch, for the server."""
        return sparse.block(Kind.ACTIVATION, a)

    def decode(self, block: Block) -> Tensor:
        """The gradient of a batch at the cut, flat, as it came back."""
        return sparse.values(block, self.trainer.device)

    def backward(self, t: int, messages: Sequence[Message]) -> None:
        """The rest of the step: from the gradient at the cut to new fronts."""
        rows = self.fronts.rows
        for message in messages:
            with self.trainer.timed(message.client):
                slot, a = self.slots[message.client], self.outputs[message.client]
                part = slice(slot, slot + 1)
                rows.backward(slot, a, self.decode(message.blocks[0]).view_as(a))
                self.adjust((message.client,), rows.w[part], rows.g[part])
                self.fronts.step(t, part)

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """The fronts as the conversation left them."""
        return self.fronts.rows.w[[self.slots[client] for client in clients]]

    def personal(self, client: int, w: Tensor) -> Tensor | None:
        """A client has no whole model; the server has (see `Server.personal`)."""
        return None
