"""DisPFL: every client has a sparse personal model, which it averages with its neighbours' models.

R. Dai, L. Shen, F. He, X. Tian, D. Tao, *DisPFL: Towards Communication-Efficient Personalized
Federated Learning via Decentralized Sparse Training*, ICML 2022, arXiv 2206.00187.

Each client starts with a random mask of its own, with layer densities by the Erdos-Renyi-Kernel
rule. In a round a client averages each weight of its mask over the neighbours that have it,
including itself. It trains on its mask, prunes the smallest weights of each layer, and regrows as
many where its loss has the largest gradients, or at random. There is no global model. There is no
`accuracy` after a round either, because a client receives its neighbours' models only at the
beginning of its next round. What is evaluated are the local models (`personal`).

The peer-to-peer communication is relayed by the server. It remembers each client's last upload,
that is the trained model with its mask, and sends it to the client's neighbours from the next round
on. Bytes down are what a peer would receive; bytes up are those of sending to one neighbour,
however many there are. Models that nobody has trained yet follow from the seed, but are sent like
any other.
Differs from the paper: an active client receives the models of all its neighbours, whether or not
they are active, too.
Values of the paper: those of its comparison on CIFAR-10, with ten neighbours of a hundred clients,
and of the released code (rong-dai/DisPFL).
Differs from the code: masks differ from the start, as in the paper; the gradient for regrowth is
that of the round's last batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.clients.burden import Burden
from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block
from fedmpi.methods import fedavg, staticmask
from fedmpi.networks import pruning
from fedmpi.networks.flat import Flat
from fedmpi.streams import Purpose, stream
from fedmpi.training import probe
from fedmpi.training.store import Stores
from fedmpi.training.train import Trainer


class Config(config.Method):
    broadcasts = is_global = False
    owns: ClassVar[bool] = True
    owns_mask: ClassVar[bool] = True
    sends: ClassVar[bool] = True
    can_send_changes: ClassVar[bool] = False
    pools: ClassVar[bool] = False
    optimizes: ClassVar[bool] = False
    adds: ClassVar[bool] = False
    keeps_state: ClassVar[bool] = True
    uploads: ClassVar[config.Uploads] = "models"
    feedbacks: ClassVar[tuple[str, ...]] = ("none",)
    paper: ClassVar[Mapping[str, Any]] = {
        "data.name": "cifar10",
        "partition.name": "dirichlet",
        "partition.alpha": 0.3,
        "model.name": "resnet",
        "model.depth": 18,
        "model.norm": "group",
        "clients": 100,
        "rounds": 500,
        "epochs": 5,
        "batch": 128,
        "lr": 0.1,
        "lr_decay": 0.998,
        "method.sparsity": 0.5,
        "method.topology": "random",
        "method.neighbours": 10,
        "method.share": 0.5,
    }

    sparsity: float = Field(0.5, ge=0, lt=1)
    """Share of a client's prunable weights that are zero."""
    topology: Literal["random", "ring", "full"] = "random"
    """Which clients a client averages with. random: drawn anew each round. ring: the previous and
    the next client. full: all clients."""
    neighbours: int = Field(2, ge=1, le=config.MOST)
    """Number of neighbours with topology = random; all clients if there are fewer."""
    share: float = Field(0.5, ge=0, le=1)
    """Share of a layer's weights that are pruned and regrown in round 0. It falls to 0 along half a
    cosine."""
    growth: Literal["gradient", "random"] = "gradient"
    """Which weights are regrown. gradient: those with the largest gradients. random: at random."""

    def idle(self, settings: Settings) -> dict[str, str]:
        """Adds how masks change, if they keep all or stay as they are."""
        found = super().idle(settings)
        if not self.share:
            found["growth"] = "method.share above 0, found 0"
        if not self.sparsity:
            found["growth"] = config.SPARSE
            if self.share:
                found["share"] = config.SPARSE
        if self.topology != "random":
            found["neighbours"] = f"method.topology = 'random', found '{self.topology}'"
        return found

    def neighbours_of(self, settings: Settings, t: int, client: int) -> list[int]:
        """Returns the clients whose models the client receives in round t, ascending."""
        everyone = settings.clients
        others = [other for other in range(everyone) if other != client]
        if self.topology == "ring":
            return sorted({(client - 1) % everyone, (client + 1) % everyone} - {client})
        if self.topology == "full" or self.neighbours >= len(others):
            return others
        random = stream(settings.seed, Purpose.NEIGHBOUR, t, client)
        return sorted(random.choice(others, self.neighbours, replace=False).tolist())

    def mask(self, flat: Flat, seed: int, client: int) -> Tensor:
        """Returns the client's initial mask: bool [n]."""
        random = stream(seed, Purpose.MASK, client)
        return pruning.drawn(flat, pruning.erk(flat, self.sparsity), random)


class Models:
    """The last sparse models [n] of some clients, with their masks."""

    def __init__(self, settings: Settings, trainer: Trainer, stores: Stores) -> None:
        assert isinstance(settings.method, Config)
        self.method, self.seed = settings.method, settings.seed
        self.flat, self.device = trainer.flat, trainer.device
        self.values = stores.add("model", self.flat.size)
        self.masks = stores.add("mask", self.flat.size, torch.bool)

    def __getitem__(self, client: int) -> tuple[Tensor, Tensor]:
        """Returns the client's last model and its mask; both are valid until the next is set."""
        if client in self.values:
            model, mask = self.values[client], self.masks[client]
        else:
            mask = self.method.mask(self.flat, self.seed, client)
            model = self.flat.initial * mask
        return model.to(self.device), mask.to(self.device)

    def __setitem__(self, client: int, both: tuple[Tensor, Tensor]) -> None:
        self.values[client], self.masks[client] = both


class Server(fedavg.Server):
    """A server that relays models between clients; it has no model of its own."""

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.prunable = self.flat.prunable().to(trainer.device)
        self.models = Models(settings, trainer, self.stores)
        self.fresh: dict[int, tuple[Tensor, Tensor]] = {}

    def send(self, t: int, client: int) -> list[Block]:
        """Sends the models and masks of the client's neighbours."""
        found = []
        for other in self.method.neighbours_of(self.settings, t, client):
            found += staticmask.encode_model(*self.models[other], self.prunable)
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
        """Keeps a client's model for its neighbours' next round."""
        self.fresh[client] = staticmask.decode_model(blocks, self.prunable)

    def step(self, t: int) -> None:
        """Makes the round's uploads the models that are relayed from now on."""
        for client, both in self.fresh.items():
            self.models[client] = both
        self.fresh.clear()
        self.sum.clear()


class Clients(fedavg.Clients):
    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.prunable = self.flat.prunable().to(trainer.device)
        self.models = Models(settings, trainer, trainer.stores)
        self.next = trainer.stores.add("next mask", self.flat.size, torch.bool)
        self.starts: dict[int, Tensor] = {}
        self.masks: dict[int, Tensor] = {}

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Forgets the last round's masks; models come to each client by `accept`."""
        self.masks.clear()

    def mask(self, client: int) -> Tensor:
        """Returns the client's mask in this round: bool [n]."""
        if client not in self.masks:
            known = client in self.next
            mask = self.next[client] if known else self.models[client][1]
            self.masks[client] = mask.to(self.trainer.device)
        return self.masks[client]

    def accept(self, t: int, client: int, blocks: Sequence[Block]) -> None:
        """Averages the neighbours' and the client's models, each weight over those with it."""
        total, votes = (one.float() for one in self.models[client])
        for first in range(0, len(blocks), 2):
            model, mask = staticmask.decode_model(blocks[first : first + 2], self.prunable)
            total, votes = total + model, votes + mask
        self.starts[client] = self.mask(client) * sparse.mean(total, votes)

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Trains each client on its mask from its average, and then changes its mask."""
        starts = torch.stack([self.starts.pop(client) for client in clients])
        found = self.trainer.train(t, clients, starts, self.hooks).clone()
        for w, client in zip(found, clients, strict=True):
            self.models[client] = w, self.mask(client)
            self.next[client] = self.regrown(t, client, w)
        return found

    def regrown(self, t: int, client: int, w: Tensor) -> Tensor:
        """Returns the client's next mask after training to w [n]: bool [n]."""
        share = pruning.annealed(self.method.share, t, self.settings.rounds)
        if self.method.growth == "random":
            random = stream(self.settings.seed, Purpose.MASK, t, client)
            growth = torch.from_numpy(random.random(self.flat.size)).to(w.device)
        else:
            *_, last = self.trainer.feed.picks(t, client)
            growth = probe.gradient(self.trainer, client, w, last.positions.numpy())
        counts = pruning.erk(self.flat, self.method.sparsity)
        return pruning.regrown(self.flat, w, growth, self.mask(client), counts, share)

    def owned(self, t: int, client: int, w: Tensor) -> Tensor:
        """Returns the client's last sparse model, or its initial one."""
        return self.models[client][0].to(w.device)

    def owned_mask(self, client: int) -> Tensor:
        """Returns the mask on which that model was trained."""
        return self.models[client][1]

    def adjust(self, clients: Sequence[int], w: Tensor, g: Tensor) -> None:
        """Masks each client's gradient, so that pruned weights stay zero."""
        for row, client in enumerate(clients):
            g[row].mul_(self.mask(client))

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """Sends the trained model, with the mask that it was trained on."""
        return staticmask.encode_model(*self.models[client], self.prunable)

    def burden(self, t: int, client: int) -> Burden:
        """Returns the cost of training the weights on the client's mask."""
        return replace(super().burden(t, client), kept=self.mask(client))
