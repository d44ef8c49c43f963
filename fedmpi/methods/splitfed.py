"""SplitFed: clients train the front of the network in parallel, the server trains the back.

C. Thapa, P. C. Mahawaga Arachchige, S. Camtepe, L. Sun, *SplitFed: When Federated Learning Meets
Split Learning*, AAAI 2022, arXiv 2004.12088, algorithms 1 and 2.

`v1` keeps a copy of the back for each client and averages the copies after the round; `v2` has one
back, which the clients' batches train one after the other, in an order drawn each round. Where a
client's upload is lost, its copy counts as little as its front; v2's back has learnt all the same.
Differs from the paper: all clients take each step together, so that v2 meets one batch of every
client in turn, not all batches of one client (of each client of a wave, where `exchange.window` is
too small for all at once: it matters to v2, and to nothing else); fronts and copies are averaged by
samples; a clip is by the norm of the front's or the back's gradient, not of both.
Differs from the code: an optimiser's state is kept across the batches of a round.
"""

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Literal

import torch
from torch import Tensor

from fedmpi import config, sparse
from fedmpi.codec import Block, Kind, Message
from fedmpi.config import Settings
from fedmpi.feed import Batch
from fedmpi.flat import Flat
from fedmpi.lockstep import Lockstep
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
        front, back = self.method.halves(self.flat)
        self.front = front.size
        with torch.no_grad():
            network = front.network(self.w[: self.front]).train(False)
            self.shape = network(trainer.feed.x[:1]).shape[1:]
        self.copies = Lockstep(trainer, back)
        self.keys: dict[int, Iterator[int]] = {}
        self.fronts: dict[int, Tensor] = {}
        self.round: int | None = None

    def broadcast(self, t: int) -> list[Block]:
        """The front."""
        return [sparse.block(Kind.MODEL, self.w[: self.front])]

    def open(self, t: int, clients: Sequence[int]) -> None:
        """Begins a wave's conversation: v2's back goes on from wave to wave."""
        self.keys = {client: self.trainer.feed.keys(t, client) for client in clients}
        start = self.w[self.front :]
        if self.method.version == "v1":
            self.copies.open(clients, start)
        else:
            self.copies.open(clients[:1], None if self.round == t else start)
        self.round, self.fronts = t, {}

    def exchange(self, t: int, messages: Sequence[Message]) -> list[Message]:
        """One step of every busy client: activations and labels in, gradients at the cut out."""
        if self.method.version == "v2":
            order = stream(self.settings.seed, Purpose.ORDER, t).permutation(self.settings.clients)
            chunks = [[m] for m in sorted(messages, key=lambda message: order[message.client])]
        else:
            said = {message.client: message for message in messages}
            chunks = [[said[client] for client in self.copies.busy()]]
        answers = [answer for chunk in chunks for answer in self.train(t, chunk)]
        self.copies.done += 1
        return answers

    def train(self, t: int, messages: Sequence[Message]) -> list[Message]:
        """One step of the first backs, each with one client's batch."""
        clients = [message.client for message in messages]
        ys = [sparse.values(message.blocks[1], self.trainer.device) for message in messages]
        xs = [
            self.decode(message.blocks[0]).view(len(y), *self.shape).requires_grad_()
            for message, y in zip(messages, ys, strict=True)
        ]
        keys = [next(self.keys[client]) for client in clients]
        losses, gradients = self.copies.rows.losses(xs, ys, keys)
        self.copies.step(t, clients)
        self.trainer.note(clients, losses, 1)
        answers = zip(clients, gradients, strict=True)
        return [Message(client, [self.encode(gradient)]) for client, gradient in answers]

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
            change = self.back(message.client) - self.w[self.front :]
            self.total[self.front :].add_(change, alpha=message.weight)
        self.weight += message.weight

    def step(self, t: int) -> None:
        """Moves the front, and the back likewise (v1) or to where the clients brought it (v2)."""
        super().step(t)
        if self.method.version == "v2":
            self.w[self.front :] = self.copies.rows.w[0]

    def personal(self, client: int) -> Tensor | None:
        """The client's front and its back together; None if its front was lost."""
        if client not in self.fronts:
            return None
        return torch.cat([self.w[: self.front] + self.fronts[client], self.back(client)])

    def back(self, client: int) -> Tensor:
        """The client's back; v2's only one."""
        return self.copies.of(client) if self.method.version == "v1" else self.copies.rows.w[0]


class Clients(fedavg.Clients):
    method: Config
    converses = True

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.front = self.held = self.method.halves(self.flat)[0]
        self.fronts = Lockstep(trainer, self.front)
        self.left: dict[int, Iterator[Batch]] = {}

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """The front."""
        self.start = sparse.vector(blocks[0], self.front.size, self.trainer.device)

    def open(self, t: int, clients: Sequence[int]) -> None:
        """Begins a wave's conversation."""
        self.fronts.open(clients, self.start)
        self.left = {client: self.trainer.feed.batches(t, client) for client in clients}

    def forward(self, t: int) -> list[Message]:
        """The next batch of every client that has one: activations at the cut, and labels."""
        busy, began = self.fronts.busy(), perf_counter()
        if not busy:
            return []
        xs, ys, keys = zip(*(next(self.left[client]) for client in busy), strict=True)
        outputs = self.fronts.rows.forward(xs, keys)
        labels = [sparse.labels(y, self.trainer.feed.classes) for y in ys]
        said = [[self.encode(a), label] for a, label in zip(outputs, labels, strict=True)]
        messages = [Message(client, blocks) for client, blocks in zip(busy, said, strict=True)]
        self.trainer.spend(busy, began)
        return messages

    def encode(self, a: Tensor) -> Block:
        """Activations of a batch, for the server."""
        return sparse.block(Kind.ACTIVATION, a)

    def decode(self, block: Block) -> Tensor:
        """The gradient of a batch at the cut, flat, as it came back."""
        return sparse.values(block, self.trainer.device)

    def backward(self, t: int, messages: Sequence[Message]) -> None:
        """The rest of the step: from the gradients at the cut to new fronts."""
        busy, rows, began = self.fronts.busy(), self.fronts.rows, perf_counter()
        if not busy:
            return
        given = {message.client: self.decode(message.blocks[0]) for message in messages}
        rows.backward([given[client] for client in busy])
        if self.adjust is not None:
            self.adjust(busy, *rows.first(len(busy)))
        self.fronts.step(t, busy)
        self.fronts.done += 1
        self.trainer.spend(busy, began)

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """The fronts as the conversation left them."""
        return torch.stack([self.fronts.of(client) for client in clients])

    def personal(self, client: int, w: Tensor) -> Tensor | None:
        """A client has no whole model; the server has (see `Server.personal`)."""
        return None
