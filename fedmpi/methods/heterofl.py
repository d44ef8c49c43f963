"""HeteroFL: clients train narrower networks, each as wide as its device can bear.

E. Diao, J. Ding, V. Tarokh, *HeteroFL: Computation and Communication Efficient Federated Learning
for Heterogeneous Clients*, ICLR 2021, arXiv 2010.01264, algorithm 1. A client of rate r has the
first ceil(r * C) of the C channels of every hidden layer, and all classes. Each parameter is
averaged over the clients that have it; a parameter that no client has stays unchanged. In training
a hidden layer's outputs are divided by r (Scaler), and the logits of classes that a client has no
samples of are zero (masked cross-entropy). For the latter the rows of the output layer that produce
these logits are set to zero, are not trained and are not sent. The paper's norm is `model.norm =
static`.

The sub-model is a smaller network and really costs less. A share is judged by its sub-model of the
server's model, as a network of its own. `personal` is the accuracy of the
sub-model embedded in a whole model of zeros. Both compute the same, except if a group of GroupNorm
is cut through, or if the channels are not the first ones and shortcuts have no parameters.
Differs from the paper: clients are weighted by their samples, so that with all rates 1 it is
FedAvg.
Values of the paper: those of CIFAR-10 with equal clients in the released code (diaoenmao/HeteroFL).
Differs from the code: GroupNorm's groups keep their size and not their number; recurrent layers and
embeddings are narrowed, too; BatchNorm's statistics are not collected after training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.clients import devices
from fedmpi.clients.burden import Burden
from fedmpi.config import Settings, Tier
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.messages.sums import Held
from fedmpi.methods import fedavg
from fedmpi.networks import narrow
from fedmpi.networks.flat import Flat
from fedmpi.networks.narrow import Choose, Narrow, SubModels
from fedmpi.streams import Purpose, stream
from fedmpi.training.probe import Variant
from fedmpi.training.train import Trainer

Rate = Annotated[float, Field(gt=0, le=1)]


class Config(config.Method):
    broadcasts = False
    sends: ClassVar[bool] = True
    can_send_changes: ClassVar[bool] = False
    pools: ClassVar[bool] = False
    optimizes: ClassVar[bool] = False
    fits: ClassVar[bool] = True
    reshapes: ClassVar[bool] = True
    feedbacks: ClassVar[tuple[str, ...]] = ("none",)

    paper: ClassVar[Mapping[str, Any]] = {
        "data.name": "cifar10",
        "partition.name": "iid",
        "model.name": "resnet",
        "model.depth": 18,
        "model.norm": "static",
        "clients": 100,
        "participation": 0.1,
        "rounds": 400,
        "epochs": 5,
        "batch": 10,
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "schedule": "steps",
        "lr_steps": [150, 250],
        "lr_decay": 0.1,
        "clip": 1.0,
        "method.rates": [1.0, 0.5, 0.25, 0.125, 0.0625],
        "method.masked": True,
    }

    rates: tuple[Rate, ...] = Field((1.0, 0.5, 0.25, 0.125, 0.0625), min_length=1, strict=False)
    """Shares of the channels that clients train. Clients are spread evenly over them. Used if no
    device has a keep. The defaults are levels a to e of the paper."""
    assignment: Literal["fix", "dynamic"] = "fix"
    """fix: a client has one share for the whole run. dynamic: it draws a share each round."""
    scaler: bool | None = None
    """Divide the outputs of hidden layers by the client's share in training. If absent, only in
    models with normalisation; without it gradients would grow with every layer."""
    masked: bool = True
    """Ignore classes that a client has no samples of in its training: their logits are set to 0."""

    def idle(self, settings: Settings) -> dict[str, str]:
        """Names the settings that have no effect, and what would give them one."""
        found = super().idle(settings) | devices.instead(settings, "rates")
        if len(set(self.rates)) == 1 and not settings.devices.decide:
            found["assignment"] = f"several method.rates, found {list(self.rates)}"
        return found

    def problems(self, settings: Settings) -> list[str]:
        """Names what cannot be run."""
        found, deadline = super().problems(settings), settings.devices.deadline
        if deadline is not None and self.assignment == "dynamic":
            found.append(
                f"devices.deadline = {deadline}: wanted method.assignment = 'fix', found "
                "'dynamic'; how many steps fit is predicted from a client's first round"
            )
        if self.assignment == "dynamic" and any(tier.fit for tier in settings.devices.tiers):
            found.append(
                "method.assignment = 'dynamic': wanted devices.tiers without fit, whose shares are "
                "for their own devices"
            )
        return found

    def held(self, trainer: Trainer) -> Callable[[Tier, float], tuple[Flat, Tensor | None]]:
        """Returns what a kind of device trains that holds some share of the channels."""
        models = SubModels(trainer.flat, trainer.feed.x.shape[1:])
        return lambda _, rate: (models.narrow(narrow.prefix(rate)).flat, None)

    def choose(self, settings: Settings, t: int, client: int, rate: float) -> Choose:
        """Returns how to choose the client's channels in round t: the first ones of each layer."""
        return narrow.prefix(rate)


class Widths:
    """The sub-models of all clients, which both sides derive from the settings."""

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        assert isinstance(settings.method, Config)
        self.settings, self.method = settings, settings.method
        self.models = SubModels(trainer.flat, trainer.feed.x.shape[1:])
        self.topology = self.models.topology
        self.rates = trainer.population.fleet.shares("rates")
        self.firsts: dict[float, Narrow] = {}

    def rate(self, t: int, client: int) -> float:
        """Returns the client's rate in round t."""
        place = client
        if self.method.assignment == "dynamic":
            random = stream(self.settings.seed, Purpose.WIDTH, t, client)
            place = int(random.integers(len(self.rates)))
        return self.rates[place]

    def of(self, t: int, client: int) -> Narrow:
        """Returns the client's sub-model in round t."""
        return self.choice(t, client, self.rate(t, client))

    def choice(self, t: int, client: int, rate: float) -> Narrow:
        """Returns the sub-model that the client has in round t if that is its rate."""
        return self._narrow(rate, self.method.choose(self.settings, t, client, rate))

    def prefix(self, rate: float) -> Narrow:
        """Returns the sub-model of the first channels; all of the same rate cost the same."""
        if rate not in self.firsts:
            self.firsts[rate] = self._narrow(rate, narrow.prefix(rate))
        return self.firsts[rate]

    def _narrow(self, rate: float, choose: Choose) -> Narrow:
        scaler = self.method.scaler
        scales = self.topology.has_norms if scaler is None else scaler
        return self.models.narrow(choose, 1 / rate if scales else 1.0)


class Half(fedavg.Half):
    """Both sides know the sub-models.

    Attributes:
        widths: the sub-models of all clients.
    """

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.widths = Widths(settings, trainer)

    def prepare_sums(self) -> None:
        """Makes an empty sum whose means are over the clients that have a value."""
        super().prepare_sums()
        self.sum = Held(self.flat.size, self.trainer.device)

    def sent_positions(self, t: int, client: int, blocks: Sequence[Block]) -> Tensor:
        """Returns the positions of a sub-model, except for classes without samples, int64."""
        device = self.trainer.device
        positions = self.widths.of(t, client).positions.to(device)
        if self.method.masked:
            held = sparse.indices(blocks[-1], device)
            positions = positions[self.widths.topology.inside(positions, held)]
        return positions


class Server(Half, fedavg.Server):
    def send(self, t: int, client: int) -> list[Block]:
        """Sends the client's sub-model."""
        positions = self.widths.of(t, client).positions.to(self.w.device)
        return [sparse.block(Kind.MODEL, self.w.index_select(0, positions), self.flat.size)]

    def step(self, t: int) -> None:
        """Moves each value by the mean over the clients that have it."""
        self.w.add_(self.sum.mean())
        self.sum.clear()

    def variants(self, t: int) -> list[Variant]:
        """Returns the sub-model of each share, as a network of its own."""
        found, batch = [], self.settings.batch
        for rate, owners in devices.holders(self.widths.rates, self.trainer.population.excluded):
            part = self.widths.choice(t, owners[0], rate)
            w = self.w[part.positions.to(self.w.device)]
            blocks = [sparse.block(Kind.MODEL, w, self.flat.size)]
            burden = Burden(self.widths.prefix(rate).flat, 1, batch)
            found.append(Variant(rate, len(owners), w, part, blocks, burden))
        return found


class Clients(Half, fedavg.Clients):
    """Clients that train sub-models.

    Attributes:
        parts: the sub-models of the active clients.
        starts: the values at which their training starts.
    """

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.parts: dict[int, Narrow] = {}
        self.starts: dict[int, Tensor] = {}

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Forgets the last round's sub-models; new ones come to each client by `accept`."""
        self.starts, self.parts = {}, {}

    def accept(self, t: int, client: int, blocks: Sequence[Block]) -> None:
        """Receives the client's sub-model."""
        self.parts[client] = self.widths.of(t, client)
        self.starts[client] = sparse.values(blocks[0], self.trainer.device)

    def labels(self, client: int) -> Tensor:
        """Returns the classes of the client's samples, ascending: int64."""
        feed, population = self.trainer.feed, self.trainer.population
        return feed.y[torch.from_numpy(population.shards[client])].unique()

    def inside(self, client: int) -> Tensor:
        """Returns which values of the client's sub-model are trained: bool [its size]."""
        positions = self.parts[client].positions.to(self.trainer.device)
        if not self.method.masked:
            return torch.ones_like(positions, dtype=torch.bool)
        return self.widths.topology.inside(positions, self.labels(client))

    # Sub-models have different lengths, so that they cannot be rows of one tensor.
    def work(self, t: int, clients: Sequence[int]) -> list[Tensor]:  # type: ignore[override]
        """Trains a chunk's sub-models, those of one shape together; returns their values."""
        parts = [self.parts[client] for client in clients]
        inside = [self.inside(client) for client in clients]
        starts = [self.starts[client] * mask for client, mask in zip(clients, inside, strict=True)]
        masks = inside if self.method.masked else None
        return self.trainer.train_apart(t, clients, starts, parts, self.hooks, masks)

    def update(self, client: int, w: Tensor) -> Tensor:
        """Returns the update of the values of the sub-model w that are trained."""
        return (w - self.starts[client])[self.inside(client)]

    def encode_update(self, t: int, client: int, update: Tensor) -> list[Block]:
        """Sends the update and, if classes are masked, the client's classes."""
        blocks = [sparse.block(Kind.GRADIENT, update, self.flat.size)]
        if self.method.masked:
            blocks.append(sparse.places(self.labels(client), self.trainer.feed.classes))
        return blocks

    def burden(self, t: int, client: int) -> Burden:
        """Returns the cost of training the narrower network."""
        rate = self.widths.rate(t, client)
        return replace(super().burden(t, client), flat=self.widths.prefix(rate).flat)

    def owned(self, t: int, client: int, w: Tensor) -> Tensor:
        """Returns the client's sub-model of w in a whole model that is zero elsewhere."""
        positions = self.widths.of(t, client).positions.to(w.device)
        return torch.zeros_like(w).index_copy_(0, positions, w.index_select(0, positions))

    def personal(self, client: int, w: Tensor) -> Tensor | None:
        """Returns the sub-model in a whole model that is zero elsewhere."""
        whole = torch.zeros(self.flat.size, device=w.device)
        whole[self.parts[client].positions.to(w.device)] = w
        return whole
