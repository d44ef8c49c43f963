"""SplitFed: clients train the front of the network in parallel, the server trains the back.

C. Thapa, P. C. Mahawaga Arachchige, S. Camtepe, L. Sun, *SplitFed: When Federated Learning Meets
Split Learning*, AAAI 2022, arXiv 2004.12088, algorithms 1 and 2.

`v1` keeps a copy of the back for each client and averages the copies after the round. `v2` has one
back, which is trained on the clients' batches one after the other, in an order drawn each round. If
a client's upload is lost, v1 leaves its front and its copy of the back out of the averages. The
back of v2 keeps what it learned from that client, unless all uploads of a round are lost.
A `tail` is averaged like the front, and labels then stay with their client: P. Vepakomma, O. Gupta,
T. Swedish, R. Raskar, *Split Learning for Health*, 2018, arXiv 1812.00564.
Differs from the paper: all clients take each step together, so that v2 processes one batch of every
client in turn, not all batches of one client. Fronts and copies are averaged by samples (equally
with `aggregation.weights = equal`). Gradient clipping uses the norm of each part's gradient, not of
all parts together.
Values of the paper: those of HAM10000 in the released code (chandra2thapa/SplitFed).
Differs from the code: an optimizer's state is kept across the batches of a round.

This is the base of methods that change what crosses the cut, or when. The hooks for that, and the
local step, are in `split.sides`; this module has what happens before and after the local steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fedmpi.clients.burden import Burden
from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.methods import fedavg
from fedmpi.networks.flat import Flat
from fedmpi.split.cuts import Cut, Sections, shape_behind
from fedmpi.split.lockstep import Talk, WaveParts
from fedmpi.split.sides import ClientSide, ServerSide
from fedmpi.training.train import Trainer


class Config(Cut):
    paper: ClassVar[Mapping[str, Any]] = {
        "clients": 5,
        "participation": 1.0,
        "rounds": 200,
        "epochs": 1,
        "batch": 256,
        "optimizer": "adam",
        "lr": 0.0001,
        "aggregation.weights": "equal",
        "model.name": "resnet",
        "model.depth": 18,
    }

    version: Literal["v1", "v2"] = "v1"
    """v1: the server has one back per client and averages them. v2: the server has a single back,
    trained by all clients in turn; it does not allow a tail."""

    @property
    def is_one(self) -> bool:
        """Whether all clients share one back: in v2."""
        return self.version == "v2"

    @property
    def pools(self) -> bool:
        """Whether uploads are whole updates, which any rule can average; not so in v2."""
        return not self.is_one

    @property
    def optimizes(self) -> bool:
        """Whether front and back move by mean updates; the back of v2 does not."""
        return not self.is_one

    def width(self, capacity: int, clients: int) -> int:
        """Returns the clients in a wave; with one back all clients of a round are in one wave."""
        return clients if self.is_one else capacity

    def idle(self, settings: Settings) -> dict[str, str]:
        """Names the settings that have no effect, and what would give them one."""
        found = super().idle(settings)
        if self.version == "v2":
            found["tail"] = "version = 'v1', found 'v2'"
        return found


class Back(ServerSide):
    """The server's side of clients of one cut, and what becomes of their updates.

    Attributes:
        sections: where front, back and tail lie in the model.
    """

    sections: Sections

    def divide(self) -> None:
        """Makes the parts of the network; called once, when trainer and method are known."""
        flat, trainer, method = self.trainer.flat, self.trainer, self.method
        front, back, _ = method.parts(flat)
        self.sections, self.learning = method.sections(flat), method.learning(flat)
        self.shape = shape_behind([front], trainer.feed.x)
        self.backs = WaveParts(trainer, back, method.is_one, trainer.pool)

    def add_held(self, total: Tensor, update: Tensor, weight: float) -> None:
        """Adds weight * update of a client's front and tail [size] to a sum [n]."""
        front, _, tail = self.sections.split(total)
        for part, own in zip((front, tail), self.sections.split_held(update), strict=True):
            part.add_(own, alpha=weight)

    def add_change(self, total: Tensor, w: Tensor, client: int, weight: float) -> None:
        """Adds weight * update of a client's back to a sum [n]; w [n] is the model before it."""
        change = self.backs.of(client) - self.sections.split(w)[1]
        self.sections.split(total)[1].add_(change, alpha=weight)

    def joined(self, w: Tensor, client: int, update: Tensor) -> Tensor:
        """Returns a client's front, back and tail as one model [n], by its update and w [n]."""
        return self.sections.join(self.sections.held(w) + update, self.backs.of(client))


class Front(ClientSide):
    """The clients' side of one cut.

    Attributes:
        sections: where front and tail lie in what a client holds.
        held: the front.
        end: the network up to the tail, and the tail; None without one (see `Cut.end`).
    """

    sections: Sections
    held: Flat
    end: tuple[Flat, Flat] | None

    def divide(self) -> None:
        """Makes the parts of the network; called once, when trainer and method are known."""
        flat, trainer, method = self.trainer.flat, self.trainer, self.method
        self.held, back, tail = method.parts(flat)
        self.sections, self.learning = method.sections(flat), method.learning(flat)
        self.fronts, self.tails = WaveParts(trainer, self.held), WaveParts(trainer, tail)
        self.end = method.end(flat)
        if self.end is not None:
            self.shape = shape_behind([self.held, back], trainer.feed.x)

    def learnt(self, client: int) -> Tensor:
        """Returns a client's front and tail as the conversation trained them, [size]."""
        return torch.cat([self.fronts.of(client), self.tails.of(client)])


class Server(Back, fedavg.Server):
    """The server's half.

    Attributes:
        updates: updates of front and tail by client, of the current wave's uploads that arrived.
        round: the last round in which a conversation was opened.
    """

    method: Cut

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.divide()
        self.updates: dict[int, Tensor] = {}
        self.round: int | None = None

    def broadcast(self, t: int) -> list[Block]:
        """Sends front and tail."""
        return [sparse.block(Kind.MODEL, self.sections.held(self.w))]

    def open(self, t: int, parties: Sequence[Sequence[int]]) -> list[Talk]:
        """Opens a wave's conversation; a shared back carries on from the round's previous wave."""
        goes_on = self.method.is_one and self.round == t
        self.round, self.updates = t, {}
        return self.begin(t, parties, None if goes_on else self.sections.split(self.w)[1])

    def add(
        self,
        t: int,
        client: int,
        blocks: Sequence[Block],
        update: Block,
        where: Tensor | None,
        weight: float,
    ) -> None:
        """Adds a client's update of front and tail, and in v1 the update of its back."""
        found = sparse.vector(update, self.theirs.size, self.trainer.device, where)
        self.add_up(client, found, weight)

    def add_up(self, client: int, update: Tensor, weight: float) -> None:
        """Adds an update of front and tail to the sum, and in v1 that of the client's back."""
        self.add_held(self.sum.total, update, weight)
        self.updates[client] = update
        self.add_back(client, weight)

    def add_back(self, client: int, weight: float) -> None:
        """Adds the update of a client's back to the sum, in v1."""
        if not self.method.is_one:
            self.add_change(self.sum.total, self.w, client, weight)

    def step(self, t: int) -> None:
        """Moves front, tail and, in v1, the back by their mean; in v2 copies the trained back."""
        super().step(t)
        if self.method.is_one:
            self.sections.split(self.w)[1].copy_(self.backs.first_row)

    def personal(self, client: int) -> Tensor | None:
        """Returns the client's front, back and tail as one model; None if its upload was lost."""
        if client not in self.updates:
            return None
        return self.joined(self.w, client, self.updates[client])


class Clients(Front, fedavg.Clients):
    """The clients' half."""

    method: Cut

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.divide()
        self.start = self.start.new_zeros(self.sections.size)

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Receives front and tail."""
        sparse.fill(self.start, blocks[0])

    def open(self, t: int, parties: Sequence[Sequence[int]]) -> list[Talk]:
        """Opens a wave's conversation at the front and tail that were received."""
        front, tail = self.sections.split_held(self.start)
        return self.begin(t, parties, front, tail)

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Returns fronts and tails as the conversation trained them, [C, values of both]."""
        return torch.stack([self.learnt(client) for client in clients])

    def burden(self, t: int, client: int) -> Burden:
        """Returns the cost of training front and tail."""
        return replace(super().burden(t, client), end=self.end)

    def personal(self, client: int, w: Tensor) -> Tensor | None:
        """Returns None: a client lacks the back, so that the server assembles its whole model."""
        return None
