"""CSE-FSL: clients learn from a small head of their own, and the server from few of their batches.

Y. Mu, C. Shen, *Federated Split Learning with Improved Communication and Storage Efficiency*, IEEE
TMC 2025, arXiv 2507.15816; first in *Communication and Storage Efficient Federated Split Learning*,
ICC 2023, arXiv 2302.05599. A client trains its front and an auxiliary head behind it by the head's
own loss, so that no gradient comes from the server. In every h-th local step, beginning with the
first, it sends the activations of the batch and its labels. The server has one back and takes a
step on each such batch as it comes. After the round fronts and heads are averaged. The head is no
part of the global model.

Differs from the paper: clients are averaged by samples; the server learns from the batches of a
turn in an order drawn each round, and not as they arrive.
Reconstruction: the auxiliary head is one linear layer, where the paper also has heads with hidden
layers. If an upload is lost, front and head are missing in the averages; the back keeps what it
learned. A client's `loss` is that of its head.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from time import perf_counter
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fedmpi import config
from fedmpi.clients.burden import Burden
from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind, Message
from fedmpi.methods import splitfed
from fedmpi.networks.flat import Flat
from fedmpi.split.cuts import Cut, shape_behind
from fedmpi.split.lockstep import Lockstep, Talk, WaveParts
from fedmpi.split.sides import Said
from fedmpi.streams import Purpose, torch_seed
from fedmpi.training.feed import Batch
from fedmpi.training.train import Trainer


class Config(Cut):
    pools: ClassVar[bool] = False
    optimizes: ClassVar[bool] = False

    every: int = Field(5, ge=1, le=config.MOST)
    """Local steps for one whose activations are sent to the server (h in the paper)."""

    def turns(self, steps: int) -> int:
        """Returns the steps whose activations are sent."""
        return -(-steps // self.every)

    def width(self, capacity: int, clients: int) -> int:
        """Returns all clients, because they share one back."""
        return clients

    def idle(self, settings: Settings) -> dict[str, str]:
        """Names the settings that have no effect, and what would give them one."""
        wanted = "another method: here the server has the labels"
        return super().idle(settings) | {"tail": wanted}

    def head(self, flat: Flat, x: Tensor, classes: int, seed: int) -> Flat:
        """Returns the auxiliary head; arguments are those of `trained`."""
        front, _, _ = self.parts(flat)
        size = prod(shape_behind([front], x))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(seed, Purpose.HEAD))
            layers = nn.Sequential(nn.Flatten(), nn.Linear(size, classes))
        return Flat(nn.Sequential(OrderedDict(auxiliary=layers)))

    def trained(self, flat: Flat, x: Tensor, classes: int, seed: int) -> Flat:
        """Front and head."""
        front, head = self.held(flat), self.head(flat, x, classes, seed)
        stages = [*front.stages.named_children(), *head.stages.named_children()]
        return Flat(nn.Sequential(OrderedDict(stages)), flat.is_local)

    def theirs(self, trainer: Trainer) -> Flat:
        """Front and head, which a client uploads."""
        return self.trained(*about(trainer))


def about(trainer: Trainer) -> tuple[Flat, Tensor, int, int]:
    """Returns the arguments of `Config.trained` that a trainer knows."""
    feed = trainer.feed
    return trainer.flat, feed.x, feed.classes, trainer.settings.seed


class Server(splitfed.Server):
    """SplitFed's server with one back, which learns from what comes and answers nothing.

    Attributes:
        head: the mean of the clients' auxiliary heads.
        heads: weighted sum of the updates of heads in a round.
    """

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.head = self.method.head(*about(trainer)).initial.to(trainer.device, copy=True)
        self.heads = torch.zeros_like(self.head)

    def state(self) -> dict[str, Tensor]:
        """The model and the auxiliary head."""
        return super().state() | {"head": self.head}

    def broadcast(self, t: int) -> list[Block]:
        """Sends front and head."""
        held = torch.cat([self.sections.held(self.w), self.head])
        return [sparse.block(Kind.MODEL, held)]

    def step_last(self, backs: Lockstep, told: Said) -> list[Message]:
        """Takes a step of the back on a client's batch: activations and labels in, nothing out."""
        ys = [sparse.values(blocks[-1], self.trainer.device) for blocks in told.values()]
        xs = self.inputs(0, backs, {client: blocks[:-1] for client, blocks in told.items()})
        backs.rows.losses(xs, ys, self.draw(told))
        step = backs.done * self.method.every
        backs.descent.step(1, self.trainer.rates.of_step(backs.t, list(told), step))
        return []

    def add(
        self,
        t: int,
        client: int,
        blocks: Sequence[Block],
        update: Block,
        where: Tensor | None,
        weight: float,
    ) -> None:
        """Adds a client's update of front and head."""
        size = self.sections.size
        found = sparse.vector(update, self.theirs.size, self.trainer.device, where)
        self.heads.add_(found[size:], alpha=weight)
        self.add_up(client, found[:size], weight)

    def step(self, t: int) -> None:
        """Moves front and head by their mean updates, and copies the trained back."""
        self.head.add_(self.heads / self.sum.weight)
        self.heads.zero_()
        super().step(t)


class Clients(splitfed.Clients):
    """SplitFed's clients with an auxiliary head in the place of a tail.

    Attributes:
        front: the front; `held` is front and head.
    """

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        head = self.method.head(*about(trainer))
        self.front = self.held
        self.sections = self.sections._replace(tail=head.size)
        self.start = self.start.new_zeros(self.sections.size)
        self.tails = WaveParts(trainer, head)
        self.held = self.theirs

    def talk(self, fronts: Lockstep, tails: Lockstep) -> Talk:
        """Takes a party's steps: yields the messages of every h-th; no answer is needed."""
        feed = self.trainer.feed
        left = {client: feed.batches(fronts.t, client) for client in fronts.order}
        while fronts.busy():
            messages: list[Message] = []
            for step in range(self.method.every):
                if busy := fronts.busy():
                    batches = {client: next(left[client]) for client in busy}
                    messages += self.learn(fronts, tails, batches, step == 0)
            yield messages
        while True:
            yield []

    def learn(
        self,
        fronts: Lockstep,
        heads: Lockstep,
        batches: Mapping[int, Batch],
        tells: bool,
    ) -> list[Message]:
        """Takes a local step of fronts and heads; returns what the server is told of it."""
        began, clients = perf_counter(), list(batches)
        xs, ys, keys = zip(*batches.values(), strict=True)
        outputs = fronts.rows.forward(xs, keys)
        messages = self.tell(fronts, clients, outputs, ys) if tells else []
        inputs = [output.detach().requires_grad_(self.learning[0]) for output in outputs]
        losses, gradients = heads.rows.losses(inputs, ys, keys)
        heads.step(clients)
        heads.done += 1
        self.trainer.note(clients, losses, 1)
        if self.learning[0]:
            self.descend(fronts, clients, gradients)
        else:
            fronts.done += 1
        self.trainer.spend(clients, began)
        return messages

    def burden(self, t: int, client: int) -> Burden:
        """Returns the cost of training front and head; the server trains on what it is sent."""
        population, batch = self.trainer.population, self.settings.batch
        size, every = int(population.sizes[client]), self.method.every
        starts = [step % -(-size // batch) for step in range(0, population.steps(t, client), every)]
        served = sum(min(batch, size - start * batch) for start in starts)
        return replace(super().burden(t, client), front=self.front, served=served)
