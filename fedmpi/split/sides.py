"""Both sides of a cut, and what they say to each other in each local step.

What one side's `encode` makes, the other's `decode` takes: hooks for methods that change what
travels. A step has one turn, or two where there is a tail:

    clients  forward     front forward, encode
    server   learn       decode, back forward and backward, step, encode
    clients  backward    decode, front backward, adjust, step

    clients  forward     front forward, encode
    server   forward     decode, back forward, encode
    clients  learn       decode, tail forward and backward, step, encode
    server   backward    decode, back backward, step, encode
    clients  backward    decode, front backward, adjust, step
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from time import perf_counter

import torch
from torch import Tensor

from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind, Message
from fedmpi.split.cuts import Crossing, Cut
from fedmpi.split.lockstep import Lockstep, Talk, WaveParts
from fedmpi.training.feed import Batch
from fedmpi.training.train import Adjust, Trainer

Said = Mapping[int, Sequence[Block]]
"""What was said, by client, in the order of rows."""


class Side:
    """What is the same on both sides.

    Attributes:
        shape: of a sample at the cut before the part that learns here.
    """

    trainer: Trainer
    method: Cut
    shape: torch.Size

    def encode(self, crossing: Crossing, values: Tensor) -> list[Block]:
        """Blocks for the values of a batch, [B, ...]: as they are."""
        return [sparse.block(crossing.kind, values)]

    def decode(self, crossing: Crossing, blocks: Sequence[Block]) -> Tensor:
        """The values that came over the cut for a batch, in any shape."""
        return sparse.values(blocks[0], self.trainer.device)

    def say(
        self, kind: Kind, cut: int, part: Lockstep, clients: Iterable[int], values: list[Tensor]
    ) -> list[Message]:
        """The values for each client's batch, encoded."""
        crossings = [Crossing(kind, cut, part.t, client, part.done) for client in clients]
        pairs = zip(crossings, values, strict=True)
        return [Message(crossing.client, self.encode(crossing, some)) for crossing, some in pairs]

    def take(self, kind: Kind, cut: int, part: Lockstep, told: Said) -> list[Tensor]:
        """The values for each client's batch, decoded."""
        crossings = [Crossing(kind, cut, part.t, client, part.done) for client in told]
        return [self.decode(crossing, told[crossing.client]) for crossing in crossings]

    def inputs(self, cut: int, part: Lockstep, told: Said) -> list[Tensor]:
        """Activations of each client's batch, [B, *shape], whose gradients are wanted."""
        given = self.take(Kind.ACTIVATION, cut, part, told)
        return [values.view(-1, *self.shape).requires_grad_() for values in given]

    def finish(
        self, cut: int, part: Lockstep, told: Said, ys: Sequence[Tensor], keys: Sequence[int]
    ) -> list[Message]:
        """A step of the network's last part: gradients at its cut for activations."""
        clients, xs = list(told), self.inputs(cut, part, told)
        losses, gradients = part.rows.losses(xs, ys, keys)
        part.step(clients)
        self.trainer.note(clients, losses, 1)
        return self.say(Kind.GRADIENT, cut, part, clients, gradients)


class ServerSide(Side):
    """The server's side.

    Attributes:
        backs: of the clients, or the only one.
        keys: random keys of each client's steps.
    """

    backs: WaveParts
    keys: Mapping[int, Iterator[int]]

    def begin(self, t: int, parties: Sequence[Sequence[int]], start: Tensor | None) -> list[Talk]:
        """A conversation with each party of a wave; where backs start, see `Parts.open`."""
        feed = self.trainer.feed
        self.keys = {client: feed.keys(t, client) for party in parties for client in party}
        talks = [self.talk(backs) for backs in self.backs.open(t, parties, start)]
        for talk in talks:
            next(talk)
        return talks

    def talk(self, backs: Lockstep) -> Talk:
        """A party's steps: says nothing at first, and then hears its busy clients and answers."""
        answers: list[Message] = []
        while True:
            heard = yield answers
            there = {message.client for message in heard}
            alone = [[client] for client in backs.clients if client in there]
            answers = []
            for clients in alone if self.method.is_one else [backs.busy()]:
                if self.method.tail is None:
                    answers += self.step_last(backs, said(heard, clients))
                else:
                    heard = yield self.forward(backs, said(heard, clients))
                    answers += self.backward(backs, said(heard, clients))
            backs.done += 1

    def step_last(self, backs: Lockstep, told: Said) -> list[Message]:
        """A step of the first backs: gradients at the cut for activations and labels."""
        ys = [sparse.values(blocks[-1], self.trainer.device) for blocks in told.values()]
        unlabelled = {client: blocks[:-1] for client, blocks in told.items()}
        return self.finish(0, backs, unlabelled, ys, self.draw(told))

    def forward(self, backs: Lockstep, told: Said) -> list[Message]:
        """Where there are tails: activations at these for activations at the cut."""
        outputs = backs.rows.forward(self.inputs(0, backs, told), self.draw(told))
        return self.say(Kind.ACTIVATION, 1, backs, told, outputs)

    def backward(self, backs: Lockstep, told: Said) -> list[Message]:
        """The rest of that step: gradients at the cut for gradients at the tails."""
        gradients = backs.rows.backward(self.take(Kind.GRADIENT, 1, backs, told))
        backs.step(list(told))
        return self.say(Kind.GRADIENT, 0, backs, told, gradients)

    def draw(self, clients: Iterable[int]) -> list[int]:
        """The random keys of the clients' next steps."""
        return [next(self.keys[client]) for client in clients]


class ClientSide(Side):
    """The clients' side.

    Attributes:
        fronts: of this rank's clients.
        tails: theirs; of a network that may be empty.
        adjust: see `fedavg.Clients`; it changes the gradients of fronts.
    """

    fronts: WaveParts
    tails: WaveParts
    adjust: Adjust | None

    def begin(
        self, t: int, parties: Sequence[Sequence[int]], front: Tensor, tail: Tensor
    ) -> list[Talk]:
        """A conversation of each party of a wave, who begin at these parts."""
        both = self.fronts.open(t, parties, front), self.tails.open(t, parties, tail)
        return [self.talk(*parts) for parts in zip(*both, strict=True)]

    def talk(self, fronts: Lockstep, tails: Lockstep) -> Talk:
        """A party's steps: what the busy clients say, and what they learn from the answers."""
        feed = self.trainer.feed
        left = {client: feed.batches(fronts.t, client) for client in fronts.order}
        while busy := fronts.busy():
            began = perf_counter()
            batches = [next(left[client]) for client in busy]
            messages = self.forward(fronts, busy, batches)
            self.trainer.spend(busy, began)
            heard = yield messages
            began = perf_counter()
            if self.method.tail is not None:
                messages = self.step_last(tails, batches, said(heard, busy))
                self.trainer.spend(busy, began)
                heard = yield messages
                began = perf_counter()
            self.backward(fronts, said(heard, busy))
            self.trainer.spend(busy, began)
        while True:
            yield []

    def forward(
        self, fronts: Lockstep, clients: Sequence[int], batches: Sequence[Batch]
    ) -> list[Message]:
        """Activations at the cut, and labels unless there are tails."""
        xs, ys, keys = zip(*batches, strict=True)
        messages = self.say(Kind.ACTIVATION, 0, fronts, clients, fronts.rows.forward(xs, keys))
        if self.method.tail is not None:
            return messages
        labels = [sparse.labels(y, self.trainer.feed.classes) for y in ys]
        pairs = zip(messages, labels, strict=True)
        return [Message(some.client, [*some.blocks, label]) for some, label in pairs]

    def step_last(self, tails: Lockstep, batches: Sequence[Batch], told: Said) -> list[Message]:
        """A step of the tails: gradients at their cut for activations there."""
        _, ys, keys = zip(*batches, strict=True)
        messages = self.finish(1, tails, told, ys, keys)
        tails.done += 1
        return messages

    def backward(self, fronts: Lockstep, told: Said) -> None:
        """The rest of the step: fronts learn from gradients at the cut."""
        clients, rows = list(told), fronts.rows
        rows.backward(self.take(Kind.GRADIENT, 0, fronts, told))
        self.trainer.at = fronts.done
        if self.adjust is not None:
            self.adjust(clients, *rows.head(len(clients)))
        fronts.step(clients)
        fronts.done += 1


def said(messages: Sequence[Message], clients: Iterable[int]) -> Said:
    """What those clients said, or are told, in their order."""
    found = {message.client: message.blocks for message in messages}
    return {client: found[client] for client in clients}
