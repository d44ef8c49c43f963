"""SPATL: a shared encoder under control variates, of which only salient channels are sent.

S. Yu, P. Nguyen, W. Abebe, W. Qian, A. Anwar, A. Jannesari, *SPATL: Salient Parameter Aggregation
and Transfer Learning for Heterogeneous Federated Learning*, SC 2022, arXiv 2111.14345. It is
SCAFFOLD on the encoder (option II), and the predictor behind the cut never leaves its client, as in
FedPer. After its steps a client selects channels, that is outputs of the encoder's convolutions and
linear layers, and sends their values of the update and of the change of c_k, with a list of the
channels; what is no channel's (see `networks.channels`; statistics, say) always travels. The
server moves each value by the mean over those who sent it; what nobody sent stays.

How many channels of each layer, is for an agent to say (`agent`; `selection` has other rules, and
is by default one of them, because an agent has to be made first). Of them the largest norms go.
A client's c_k moves as a whole. So c is the mean of all c_k but for what was not sent of their
changes. There is no global model; accuracies are measured as FedPer's.
Differs from the paper: clients are averaged by samples. New clients are the last ones; they train
their predictor, and send nothing.
Differs from the code: the authors' own fills up with zeros what was not sent before it averages
models (`aggregation = zero-average`), and divides the changes of c by those who took part, not by
all clients. It follows a hundredth of c - c_k, and neither shares nor resets a network's stem.
Reconstruction: the server's update by index, with sums of changes over the number of all clients.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmpi.config import ConfigError, Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind, Message
from fedmpi.messages.sums import Held
from fedmpi.methods import fedper
from fedmpi.methods.spatl import selection
from fedmpi.methods.spatl.selection import ByAgent, Select, by_rule
from fedmpi.networks.channels import Channels
from fedmpi.training.train import Trainer
from fedmpi.training.variates import Variates


class Config(fedper.Config, selection.Config):
    pools: ClassVar[bool] = False

    aggregation: Literal["index", "zero-average"] = "index"
    """Each value is averaged over those who sent it (the paper); or models are, with zeros where
    nothing was sent (the authors' code)."""
    newcomers: int = Field(0, ge=0)
    """How many clients, the last ones, are new: they fit a predictor of their own to the encoder as
    it is, and send nothing. Their accuracies stand with the other clients'."""

    @property
    def sends(self) -> bool:
        """An agent, to each client once."""
        return self.selection == "agent"


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
        """An agent, when the client takes part for the first time."""
        if self.told[client]:
            return []
        self.told[client] = True
        return [sparse.block(Kind.MODEL, self.agent)]

    def broadcast(self, t: int) -> list[Block]:
        """The encoder, and its part of c."""
        control = sparse.block(Kind.GRADIENT, self.control[self.shared], self.flat.size)
        return [*super().broadcast(t), control]

    def absorb(self, t: int, message: Message) -> None:
        """A client's word, unless it is new and has none."""
        if message.blocks:
            super().absorb(t, message)

    def add(self, t: int, client: int, blocks: Sequence[Block], weight: float) -> None:
        """A client's update and the change of its c_k, at the channels that it lists."""
        update, change, chosen = blocks
        sent = self.channels.positions(sparse.indices(chosen, self.w.device))
        self.sum.add(update, weight, sent)
        sparse.add(self.control, change, 1 / self.settings.clients, sent)

    def step(self, t: int) -> None:
        """Moves each value by the mean of those who sent it; or takes the mean of what is left."""
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
        if self.method.newcomers >= settings.clients:
            raise ConfigError(
                f"method.newcomers = {self.method.newcomers}: wanted less than clients = "
                f"{settings.clients}"
            )

    def accept(self, t: int, client: int, blocks: Sequence[Block]) -> None:
        """The client's agent, the first time."""
        if blocks and isinstance(self.select, ByAgent):
            self.select.agents[client] = sparse.values(blocks[0])

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """The encoder, and its part of c."""
        super().receive(t, clients, blocks[:1])
        size, device = self.flat.size, self.trainer.device
        self.variates.begin(sparse.vector(blocks[1], size, device, self.shared))

    def is_new(self, client: int) -> bool:
        """Whether the client takes the encoder as it is."""
        return client >= self.settings.clients - self.method.newcomers

    def adjust(self, clients: Sequence[int], w: Tensor, g: Tensor) -> None:
        """Corrects the encoders' gradients by c - c_k; new clients' encoders rest."""
        self.variates.correct(clients, g)
        for row, client in enumerate(clients):
            if self.is_new(client):
                # Against weight decay; a clip would count it, so there one step of decay remains.
                stat_positions = self.start[self.shared]
                decay = 0.0 if self.settings.clip else self.settings.weight_decay
                w[row, self.shared], g[row, self.shared] = stat_positions, -decay * stat_positions

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Local training of both parts, or of a new client's predictor."""
        found = super().work(t, clients)
        for row, client in enumerate(clients):
            if self.is_new(client):
                found[row, self.shared] = self.start[self.shared]
        return found

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """The update and the change of c_k at some channels, and which; new clients say nothing."""
        if self.is_new(client):
            return []
        update = w - self.start
        update[self.private] = 0
        change = self.variates.move(
            client, update, self.trainer.sum_of_rates(t, client), self.stat_positions
        )
        chosen = self.select(t, client, w)
        sent, size = self.channels.positions(chosen), self.flat.size
        return [
            sparse.block(Kind.GRADIENT, update[sent], size),
            sparse.block(Kind.GRADIENT, change[sent], size),
            sparse.places(chosen, self.channels.count),
        ]


def channels(method: Config, trainer: Trainer) -> Channels:
    """The encoder's."""
    front, _ = trainer.flat.split(method.cut or (trainer.flat.cuts() or [""])[-1])
    return Channels(front, trainer.device)
