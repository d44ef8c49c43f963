"""Both sides of a cut, and the messages that they exchange in each local step.

The `encode` of one side belongs to the `decode` of the other. Both are hooks for methods that
change what crosses the cut. A step has one turn, or two if there is a tail:

    clients  forward     front forward, encode
    server   step_last   decode, back forward and backward, step, encode
    clients  backward    decode, front backward, adjust, step

    clients  forward     front forward, encode
    server   forward     decode, back forward, encode
    clients  step_last   decode, tail forward and backward, step, encode
    server   backward    decode, back backward, step, encode
    clients  backward    decode, front backward, adjust, step

Where all in front of a cut is frozen (`networks.parts`), no gradient comes back over it, and
nothing runs back there.
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
from fedmpi.training.probe import Chain, sections
from fedmpi.training.train import Adjust, Trainer

Said = Mapping[int, Sequence[Block]]
"""Messages' blocks by client, in the order of rows."""


class Side:
    """Base of both sides of a cut.

    Attributes:
        shape: shape of a sample at the cut before this side's part of the network.
        learning: whether something trains in front of each cut (see `Cut.learning`).
    """

    trainer: Trainer
    method: Cut
    shape: torch.Size
    learning: tuple[bool, bool]

    def encode(self, crossing: Crossing, values: Tensor) -> list[Block]:
        """Encodes the values of a batch, [B, ...]; by default as they are."""
        return [sparse.block(crossing.kind, values)]

    def decode(self, crossing: Crossing, blocks: Sequence[Block]) -> Tensor:
        """Decodes the values of a batch, in any shape; by default as they are."""
        return sparse.values(blocks[0], self.trainer.device)

    def judged(self, cut: int, x: Tensor) -> Tensor:
        """Returns what arrives of activations x [B, D] when accuracies are measured, [B, D].

        Nothing is random then, and no state changes. By default they arrive as they are; it is
        called only if the method `has_link`.
        """
        return x

    def carried(self, cut: int, values: Tensor) -> Tensor:
        """Returns what arrives of activations [N, ...], in batches of the local steps' size."""
        batches = values.flatten(1).split(self.trainer.settings.batch)
        found = torch.cat([self.judged(cut, x).view(len(x), -1) for x in batches])
        return found.view_as(values)

    def say(
        self, kind: Kind, cut: int, part: Lockstep, clients: Iterable[int], values: list[Tensor]
    ) -> list[Message]:
        """Encodes the values of each client's batch as a message; none if nobody needs them."""
        if kind == Kind.GRADIENT and not self.learning[cut]:
            return []
        crossings = [Crossing(kind, cut, part.t, client, part.done) for client in clients]
        pairs = zip(crossings, values, strict=True)
        return [Message(crossing.client, self.encode(crossing, some)) for crossing, some in pairs]

    def take(self, kind: Kind, cut: int, part: Lockstep, told: Said) -> list[Tensor]:
        """Decodes the values of each client's batch."""
        crossings = [Crossing(kind, cut, part.t, client, part.done) for client in told]
        return [self.decode(crossing, told[crossing.client]) for crossing in crossings]

    def inputs(self, cut: int, part: Lockstep, told: Said) -> list[Tensor]:
        """Decodes each client's activations to leaf tensors, [B, *shape].

        They require gradients if something trains in front of the cut.
        """
        given, needs = self.take(Kind.ACTIVATION, cut, part, told), self.learning[cut]
        return [values.view(-1, *self.shape).requires_grad_(needs) for values in given]

    def finish(
        self, cut: int, part: Lockstep, told: Said, ys: Sequence[Tensor], keys: Sequence[int]
    ) -> list[Message]:
        """Takes a step of the network's last part; returns the gradients of its input activations.

        Args:
            cut: the cut before that part.
            part: the parts of a party's clients.
            told: encoded activations by client.
            ys: labels of each client's batch, [B].
            keys: each client's random key of this step.
        """
        clients, xs = list(told), self.inputs(cut, part, told)
        losses, gradients = part.rows.losses(xs, ys, keys)
        part.step(clients)
        self.trainer.note(clients, losses, 1)
        return self.say(Kind.GRADIENT, cut, part, clients, gradients)


class ServerSide(Side):
    """The server's side.

    Attributes:
        backs: the clients' backs, or the shared one.
        keys: iterators over the random keys of each client's steps.
    """

    backs: WaveParts
    keys: Mapping[int, Iterator[int]]

    def begin(self, t: int, parties: Sequence[Sequence[int]], start: Tensor | None) -> list[Talk]:
        """Opens a conversation with each party of a wave.

        Args:
            t: the round.
            parties: clients of each party.
            start: values at which the backs start, [n]; None continues from the last wave.
        """
        feed = self.trainer.feed
        self.keys = {client: feed.keys(t, client) for party in parties for client in party}
        talks = [self.talk(backs) for backs in self.backs.open(t, parties, start)]
        for talk in talks:
            next(talk)
        return talks

    def talk(self, backs: Lockstep) -> Talk:
        """Serves a party's steps: yields nothing first, then receives messages, yields answers."""
        answers: list[Message] = []
        while True:
            heard = yield answers
            there, answers = {message.client for message in heard}, list[Message]()
            for clients in self.groups(backs, there):
                if self.method.tail is None:
                    answers += self.step_last(backs, said(heard, clients))
                else:
                    heard = yield self.forward(backs, said(heard, clients))
                    if self.learning[1]:
                        answers += self.backward(backs, said(heard, clients))
            backs.done += 1

    def groups(self, backs: Lockstep, there: set[int]) -> Iterator[list[int]]:
        """Yields the clients with which the server takes each of its steps in a turn.

        By default these are all clients, each with a back of its own. If they share one, these are
        single clients, one after the other in the order of the party.
        """
        if self.method.is_one:
            yield from ([client] for client in backs.clients if client in there)
        else:
            yield backs.busy()

    def step_last(self, backs: Lockstep, told: Said) -> list[Message]:
        """Takes a step of backs without a tail: activations and labels in, gradients out."""
        ys = [sparse.values(blocks[-1], self.trainer.device) for blocks in told.values()]
        unlabelled = {client: blocks[:-1] for client, blocks in told.items()}
        return self.finish(0, backs, unlabelled, ys, self.draw(told))

    def forward(self, backs: Lockstep, told: Said) -> list[Message]:
        """Runs backs forward to the cut of the tails: activations in, activations out."""
        outputs = backs.rows.forward(self.inputs(0, backs, told), self.draw(told))
        return self.say(Kind.ACTIVATION, 1, backs, told, outputs)

    def backward(self, backs: Lockstep, told: Said) -> list[Message]:
        """Finishes a step with tails: gradients at their cut in, gradients at the first cut out."""
        gradients = backs.rows.backward(self.take(Kind.GRADIENT, 1, backs, told))
        backs.step(list(told))
        return self.say(Kind.GRADIENT, 0, backs, told, gradients)

    def draw(self, clients: Iterable[int]) -> list[int]:
        """Returns the random keys of the clients' next steps."""
        return [next(self.keys[client]) for client in clients]


class ClientSide(Side):
    """The clients' side, by which activations are judged, too.

    Attributes:
        fronts: the fronts of this rank's clients.
        tails: their tails; parts of an empty network if there are none.
        adjust: hook that changes the gradients of fronts (see `fedavg.Clients`).
    """

    fronts: WaveParts
    tails: WaveParts
    adjust: Adjust | None

    def chain(self) -> Chain:
        """Returns front, back and tail, with what happens to activations at the cuts."""
        parts = [part for part in self.method.parts(self.trainer.flat) if part.size]
        return Chain(sections(parts), self.carried)

    def begin(
        self, t: int, parties: Sequence[Sequence[int]], front: Tensor, tail: Tensor
    ) -> list[Talk]:
        """Opens the conversation of each party of a wave, which starts from this front and tail."""
        both = self.fronts.open(t, parties, front), self.tails.open(t, parties, tail)
        return [self.talk(*parts) for parts in zip(*both, strict=True)]

    def talk(self, fronts: Lockstep, tails: Lockstep) -> Talk:
        """Takes a party's steps: yields its busy clients' messages, and receives the answers."""
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
            if self.learning[0]:
                self.backward(fronts, said(heard, busy))
            else:
                fronts.done += 1
            self.trainer.spend(busy, began)
        while True:
            yield []

    def forward(
        self, fronts: Lockstep, clients: Sequence[int], batches: Sequence[Batch]
    ) -> list[Message]:
        """Runs fronts forward: returns activations at the cut, and labels if there are no tails."""
        xs, ys, keys = zip(*batches, strict=True)
        return self.tell(fronts, clients, fronts.rows.forward(xs, keys), ys)

    def tell(
        self, fronts: Lockstep, clients: Sequence[int], outputs: list[Tensor], ys: Sequence[Tensor]
    ) -> list[Message]:
        """Returns each client's activations [B, ...] at the cut, and labels if there is no tail."""
        messages = self.say(Kind.ACTIVATION, 0, fronts, clients, outputs)
        if self.method.tail is not None:
            return messages
        labels = [sparse.labels(y, self.trainer.feed.classes) for y in ys]
        pairs = zip(messages, labels, strict=True)
        return [Message(some.client, [*some.blocks, label]) for some, label in pairs]

    def step_last(self, tails: Lockstep, batches: Sequence[Batch], told: Said) -> list[Message]:
        """Takes a step of the tails: activations in, gradients at their cut out."""
        _, ys, keys = zip(*batches, strict=True)
        messages = self.finish(1, tails, told, ys, keys)
        tails.done += 1
        return messages

    def backward(self, fronts: Lockstep, told: Said) -> None:
        """Finishes the step: runs fronts backward from the gradients at the cut, and moves them."""
        self.descend(fronts, list(told), self.take(Kind.GRADIENT, 0, fronts, told))

    def descend(
        self, fronts: Lockstep, clients: Sequence[int], gradients: Sequence[Tensor]
    ) -> None:
        """Runs fronts backward from gradients at the cut, and moves them."""
        rows = fronts.rows
        rows.backward(gradients)
        self.trainer.at = fronts.done
        if self.adjust is not None:
            self.adjust(clients, *rows.head(len(clients)))
        fronts.step(clients)
        fronts.done += 1


def said(messages: Sequence[Message], clients: Iterable[int]) -> Said:
    """Returns the blocks of these clients' messages, in the clients' order."""
    found = {message.client: message.blocks for message in messages}
    return {client: found[client] for client in clients}
