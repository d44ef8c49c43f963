"""SPATL: a shared encoder with control variates, of which clients send only salient channels.

S. Yu, P. Nguyen, W. Abebe, W. Qian, A. Anwar, A. Jannesari, *SPATL: Salient Parameter Aggregation
and Transfer Learning for Heterogeneous Federated Learning*, SC 2022, arXiv 2111.14345. The encoder
is trained by SCAFFOLD (option II). The predictor behind the cut never leaves its client, as in
FedPer. After its local steps a client selects channels, that is outputs of the encoder's
convolutions and linear layers. It sends the update and the change of c_k at these channels, with a
list of them. Values that belong to no channel, such as running statistics, are always sent
(`networks.topology`). The server moves each value by the mean over the clients that sent it; a
value that nobody sent stays.

In the paper an agent decides how many channels of each layer are sent (`agent`), and those of the
largest norms are. Other rules are in `selection`; one of them is the default, because an agent must
be trained beforehand.
A client's c_k always moves as a whole. Therefore c is the mean of all c_k except for those parts of
their changes that were not sent. There is no global model; accuracies are measured as in FedPer.
Differs from the paper: clients are averaged by samples. New clients are the last ones; they train
their predictor, and send nothing.
Differs from the code: the authors' code fills values that were not sent with zeros before it
averages models (`aggregation = zero-average`), and divides the changes of c by the number of active
clients, not of all clients. It corrects by a hundredth of c - c_k, and neither shares nor resets a
network's stem.
Reconstruction: the server's update by index, with sums of changes divided by the number of all
clients.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmpi.clients.burden import Burden
from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind, Message
from fedmpi.messages.sums import Held
from fedmpi.methods import fedper
from fedmpi.methods.spatl import selection
from fedmpi.methods.spatl.selection import ByAgent, Select, by_rule
from fedmpi.networks.slicing import Channels
from fedmpi.networks.topology import Topology
from fedmpi.training.train import Trainer
from fedmpi.training.variates import Variates


class Config(fedper.Config, selection.Config):
    pools: ClassVar[bool] = False

    aggregation: Literal["index", "zero-average"] = "index"
    """index: each value is averaged over the clients that sent it (the paper). zero-average: models
    are averaged with zeros where nothing was sent (the authors' code)."""
    newcomers: int = Field(0, ge=0)
    """Number of new clients: the last ones. They fit their own predictor to the current encoder and
    send nothing. Their accuracies are reported with those of the others."""

    @property
    def sends(self) -> bool:
        """Whether the server sends an agent to each client, once."""
        return self.selection == "agent"

    def problems(self, settings: Settings) -> list[str]:
        """Names what cannot be run."""
        found = super().problems(settings)
        if self.newcomers >= settings.clients:
            wanted = f"wanted less than clients = {settings.clients}"
            found.append(f"method.newcomers = {self.newcomers}: {wanted}")
        return found


class Server(fedper.Server):
    method: Config
    blocks_per_upload = 3

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.channels = channels(self.method, trainer)
        self.control = torch.zeros_like(self.w)
        self.sum: Held = Held(len(self.w), trainer.device)
        self.agent = self.method.begin()
        self.told = torch.zeros(settings.clients, dtype=torch.bool)

    def state(self) -> dict[str, Tensor]:
        """The model, c, and which clients have been told an agent."""
        return super().state() | {"control": self.control, "told": self.told}

    def send(self, t: int, client: int) -> list[Block]:
        """Sends the agent when the client takes part for the first time."""
        if self.told[client]:
            return []
        self.told[client] = True
        return [sparse.block(Kind.MODEL, self.agent)]

    def broadcast(self, t: int) -> list[Block]:
        """Sends the encoder, and the encoder's part of c."""
        control = sparse.block(Kind.GRADIENT, self.control[self.shared], self.flat.size)
        return [*super().broadcast(t), control]

    def absorb(self, t: int, message: Message) -> None:
        """Adds a client's upload; new clients upload nothing."""
        if message.blocks:
            super().absorb(t, message)

    def add(self, t: int, client: int, blocks: Sequence[Block], weight: float) -> None:
        """Adds a client's update, and the change of its c_k to c, at the channels that it lists."""
        update, change, chosen = blocks
        sent = self.channels.positions(sparse.indices(chosen, self.w.device))
        self.sum.add(update, weight, sent)
        sparse.add(self.control, change, 1 / self.settings.clients, sent)

    def step(self, t: int) -> None:
        """Moves each value by the mean over those who sent it, or averages models with zeros."""
        if self.method.aggregation == "index":
            self.w.add_(self.sum.mean())
        elif self.sum.weight:
            mean = (self.w * self.sum.weights + self.sum.total) / self.sum.weight
            self.w[self.shared] = mean[self.shared]
        self.sum.clear()


class Clients(fedper.Clients):
    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.channels = channels(self.method, trainer)
        self.variates = Variates(trainer)
        self.select: Select = by_rule(self.method, self.channels, settings.seed)
        if self.method.selection == "agent":
            self.select = ByAgent(self.method, trainer, self.channels)

    def accept(self, t: int, client: int, blocks: Sequence[Block]) -> None:
        """Receives the client's agent, the first time."""
        if blocks and isinstance(self.select, ByAgent):
            self.select.agents[client] = sparse.values(blocks[0])

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Receives the encoder, and the encoder's part of c."""
        super().receive(t, clients, blocks[:1])
        size, device = self.flat.size, self.trainer.device
        self.variates.begin(sparse.vector(blocks[1], size, device, self.shared))

    def is_new(self, client: int) -> bool:
        """Whether the client is a new one, which does not train the encoder."""
        return client >= self.settings.clients - self.method.newcomers

    def adjust(self, clients: Sequence[int], w: Tensor, g: Tensor) -> None:
        """Corrects the encoders' gradients by c - c_k; new clients' encoders do not change."""
        self.variates.correct(clients, g)
        for row, client in enumerate(clients):
            if self.is_new(client):
                # Cancels weight decay; with a clip, which would count it, a step of decay remains.
                stat_positions = self.start[self.shared]
                decay = 0.0 if self.settings.clip else self.settings.weight_decay
                w[row, self.shared], g[row, self.shared] = stat_positions, -decay * stat_positions

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Trains encoder and predictor; of a new client only the predictor."""
        found = super().work(t, clients)
        for row, client in enumerate(clients):
            if self.is_new(client):
                found[row, self.shared] = self.start[self.shared]
        return found

    def burden(self, t: int, client: int) -> Burden:
        """Returns the cost of training, and of the models that the client's agent tries out."""
        once = super().burden(t, client)
        if not isinstance(self.select, ByAgent):
            return once
        return replace(once, forwards=self.select.forwards(t, client))

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """Sends the update and the change of c_k at the selected channels, and their numbers.

        New clients send nothing.
        """
        if self.is_new(client):
            return []
        update = w - self.start
        update[self.private] = 0
        change = self.variates.move(
            client, update, self.trainer.rates.total(t, client), self.stat_positions
        )
        chosen = self.select(t, client, w)
        sent, size = self.channels.positions(chosen), self.flat.size
        return [
            sparse.block(Kind.GRADIENT, update[sent], size),
            sparse.block(Kind.GRADIENT, change[sent], size),
            sparse.places(chosen, self.channels.count),
        ]


def channels(method: Config, trainer: Trainer) -> Channels:
    """Returns the channels of the encoder."""
    front, _ = trainer.flat.split(method.cut or (trainer.flat.cuts() or [""])[-1])
    return Channels(Topology(front, trainer.feed.x.shape[1:]), trainer.device)
