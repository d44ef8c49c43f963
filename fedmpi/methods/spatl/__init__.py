"""SPATL: a shared encoder with control variates, of which clients send only salient channels.

S. Yu, P. Nguyen, W. Abebe, W. Qian, A. Anwar, A. Jannesari, *SPATL: Salient Parameter Aggregation
and Transfer Learning for Heterogeneous Federated Learning*, SC 2022, arXiv 2111.14345. The encoder
is trained by SCAFFOLD (setting `control`). The predictor behind the cut never leaves its client, as
in FedPer. After its local steps a client selects channels, that is outputs of the encoder's
convolutions and linear layers. It sends the update and the change of c_k at these channels, with a
list of them. Values that belong to no channel, such as running statistics, are always sent
(`networks.topology`). The server moves each value by the mean over the clients that sent it; a
value that nobody sent stays.

In the paper an agent decides how many channels of each layer are sent (`agent`), and those of the
largest norms are. Other rules are in `selection`; one of them is the default, because an agent
takes a fifth of each client's samples for itself. Norms of weights hardly change in training, so
that many channels are never sent by any client; therefore the rules rank channels by the norms of
the update (`salience`).
A client's c_k moves only where its change is sent, so that c is the mean of all c_k. There is no
global model; accuracies are measured as in FedPer.
Clients are told the channels of encoder and c that moved since they took part last (`downlink`).
The paper tells them all of both, which is `down = dense`.
New clients, who train a predictor on the encoder as it is, are the setting `newcomers`. What a
client's selection leaves out can be cut out of its model after training: `evaluate.final = slice`.
Channels then rank by norms of weights, because there is no update.
The paper cuts VGG-11 behind its last convolution: `method.cut = conv8`.
Ablations: `control = none` without gradient control, `method.sparsity = 0` without selection,
`method.predictor = shared` without a predictor of each client's own. Without all three it is
FedAvg.
Differs from the paper: clients are averaged by samples.
Differs from the code: the authors' code fills values that were not sent with zeros before it
averages models (`aggregation = zero-average`), and divides the changes of c by the number of active
clients, not of all clients. It corrects weights after each step (`control = niid`) by a hundredth
of c - c_k, and neither shares nor resets a network's stem.
Reconstruction: the server's update by index, and c_k by index.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fedmpi.clients.burden import Burden
from fedmpi.config import ConfigError, Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.messages.sums import Held
from fedmpi.methods import fedper
from fedmpi.methods.spatl import downlink, selection
from fedmpi.methods.spatl.downlink import NEVER, Copies, Teller
from fedmpi.methods.spatl.selection import ByAgent, Select, by_rule
from fedmpi.networks.flat import Flat
from fedmpi.networks.slicing import Channels
from fedmpi.networks.topology import Topology
from fedmpi.training.train import Trainer


class Config(fedper.Config, selection.Config):
    implies: ClassVar[Mapping[str, Any]] = {"control": "mean"}
    paper: ClassVar[Mapping[str, Any]] = {
        "data.name": "cifar10",
        "partition.name": "dirichlet",
        "partition.alpha": 0.1,
        "model.name": "resnet",
        "model.depth": 20,
        "clients": 10,
        "participation": 1.0,
        "rounds": 200,
        "epochs": 5,
        "batch": 64,
        "lr": 0.01,
        "momentum": 0.9,
        "weight_decay": 1e-5,
        "control": "niid",
        "method.selection": "agent",
        "method.saved": 0.2,
        "method.down": "dense",
    }
    slices: ClassVar[bool] = True
    reshapes: ClassVar[bool] = True
    own_changes: ClassVar[str] = "method.down"
    pools: ClassVar[bool] = False
    optimizes: ClassVar[bool] = False
    adds: ClassVar[bool] = False
    feedbacks: ClassVar[tuple[str, ...]] = ("none",)

    aggregation: Literal["index", "zero-average"] = "index"
    """index: each value is averaged over the clients that sent it (the paper). zero-average: models
    are averaged with zeros where nothing was sent (the authors' code)."""

    down: Literal["changes", "dense"] = "changes"
    """What clients are told of the encoder and of c. changes: the channels that moved since the
    client took part last, with a list of them. dense: all of both (the paper). The model is the
    same."""
    predictor: Literal["own", "shared"] = "own"
    """own: each client keeps its predictor (the paper). shared: it is sent and averaged as values
    of the encoder that belong to no channel, so that there is a global model."""

    @property
    def is_global(self) -> bool:  # type: ignore[override]
        return self.predictor == "shared"

    @property
    def broadcasts(self) -> bool:  # type: ignore[override]
        return self.down == "dense"

    @property
    def sends(self) -> bool:
        """Whether each client is told what changed, or an agent, once."""
        return self.down == "changes" or self.selection == "agent"

    def private(self, flat: Flat) -> Tensor:
        """Returns which positions of the model never leave a client: bool [size]."""
        return super().private(flat) & (self.predictor == "own")


class Half(fedper.Half):
    """What both sides know.

    Attributes:
        channels: the channels of the encoder.
    """

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.channels = channels(self.method, trainer)

    def positions(self, chosen: Tensor) -> Tensor:
        """Returns the positions of the chosen channels [k], and of what belongs to none, int64."""
        found = self.channels.positions(chosen.to(self.trainer.device))
        return torch.cat([found, self.shared[self.shared >= len(self.channels.owner)]])

    def sent_positions(self, t: int, client: int, blocks: Sequence[Block]) -> Tensor:
        """Returns the positions of the channels that an upload lists, and of nobody's values."""
        return self.positions(sparse.indices(blocks[-1]))


class Server(Half, fedper.Server):
    """The server's half.

    Attributes:
        agent: what clients are sent when they take part for the first time, [agent.SIZE] or [0].
        teller: notes what each client has been told.
        covered: which channels some client has sent so far, bool [channels].
    """

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.sum: Held = Held(len(self.w), trainer.device)
        self.agent = self.method.begin()
        self.teller = Teller(settings.clients, self.channels.count)
        self.covered = torch.zeros(self.channels.count, dtype=torch.bool)

    def state(self) -> dict[str, Tensor]:
        """The model, c, what clients were told when, and which channels moved or were sent."""
        about = {"told": self.teller.told, "moved": self.teller.moved, "covered": self.covered}
        return super().state() | about

    def tell(self, t: int) -> list[Block]:
        """Returns the encoder and c for all clients, unless each is told what changed."""
        if self.method.down == "changes":
            self.teller.begin(self.control)
        return super().tell(t)

    def send(self, t: int, client: int) -> list[Block]:
        """Sends what changed; and the agent when the client takes part for the first time."""
        is_new, found = int(self.teller.told[client]) == NEVER, list[Block]()
        news = self.teller.news(t, client)
        if self.method.down == "changes":
            about = news, self.channels.count, self.positions(news)
            found = downlink.blocks(*about, self.w, self.teller.control)
        if is_new and len(self.agent):
            found.append(sparse.block(Kind.MODEL, self.agent))
        return found

    def add(
        self,
        t: int,
        client: int,
        blocks: Sequence[Block],
        update: Block,
        where: Tensor | None,
        weight: float,
    ) -> None:
        """Adds a client's update at the channels that it lists."""
        super().add(t, client, blocks, update, where, weight)
        self.covered[sparse.indices(blocks[1])] = True
        self.teller.listed[sparse.indices(blocks[1])] = True

    def step(self, t: int) -> None:
        """Moves each value by the mean over those who sent it, or averages models with zeros."""
        if self.method.aggregation == "index":
            self.w.add_(self.sum.mean())
        elif self.sum.weight:
            mean = (self.w * self.sum.weights + self.sum.total) / self.sum.weight
            self.w.index_copy_(0, self.shared, mean.index_select(0, self.shared))
        self.sum.clear()
        self.teller.note(t, self.method.aggregation != "index")

    def figures(self) -> dict[str, float]:
        """Returns the share of the channels that some client has sent so far."""
        return {"covered": float(self.covered.float().mean())}


class Clients(Half, fedper.Clients):
    """The clients' half.

    Attributes:
        trained: the model of the client whose update is being encoded, [n].
    """

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.select: Select = by_rule(self.method, trainer, self.channels)
        if self.method.selection == "agent":
            self.select = ByAgent(self.method, trainer, self.channels)
        if settings.evaluate.final == "slice" and not self.channels.count:
            raise ConfigError(
                "evaluate.final = 'slice': wanted an encoder with convolutions or linear layers, "
                "found none"
            )
        self.trained = self.start
        self.copies: Copies | None = None
        if self.method.down == "changes":
            names = ("encoder",) if self.variates is None else ("encoder", "control")
            self.copies = Copies(trainer, self.shared, *names)

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Receives the encoder, unless each client is told what changed."""
        if blocks:
            super().receive(t, clients, blocks)

    def accept(self, t: int, client: int, blocks: Sequence[Block]) -> None:
        """Receives what changed; and the client's agent, the first time."""
        blocks = list(blocks)
        if self.copies is not None:
            where = self.positions(sparse.indices(blocks.pop(0)))
            self.start = self.copies.update("encoder", client, blocks.pop(0), where)
            if self.variates is not None:
                common = self.copies.update("control", client, blocks.pop(0), where)
                self.variates.begin(t, common)
        if blocks and isinstance(self.select, ByAgent):
            self.select.agents[client] = sparse.values(blocks[0])

    def keep(self, t: int, client: int, w: Tensor) -> tuple[Channels, Tensor]:
        """Returns the encoder's channels, and those that the client's selection keeps of w [n]."""
        if isinstance(self.select, ByAgent):
            return self.channels, self.select.decide(client, w)
        return self.channels, self.select(t, client, w, w)

    def burden(self, t: int, client: int) -> Burden:
        """Returns the cost of training, and of the models that the client's agent tries out."""
        once = super().burden(t, client)
        if not isinstance(self.select, ByAgent):
            return once
        return replace(once, forwards=self.select.forwards(t, client))

    def update(self, client: int, w: Tensor) -> Tensor:
        """Returns the update, and notes the model w that channels are selected by."""
        self.trained = w
        return super().update(client, w)

    def encode_update(self, t: int, client: int, update: Tensor) -> list[Block]:
        """Sends the update at the selected channels, and their numbers."""
        chosen = self.select(t, client, self.trained, update)
        sent = self.positions(chosen)
        return [
            sparse.block(Kind.GRADIENT, update.index_select(0, sent), self.flat.size),
            sparse.places(chosen, self.channels.count),
        ]


def channels(method: Config, trainer: Trainer) -> Channels:
    """Returns the channels of the encoder."""
    front, _ = trainer.flat.split(method.cut or (trainer.flat.cuts() or [""])[-1])
    return Channels(Topology(front, trainer.feed.x.shape[1:]), trainer.device)
