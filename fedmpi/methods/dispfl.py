"""DisPFL: every client has a sparse model of its own, which it averages with its neighbours'.

R. Dai, L. Shen, F. He, X. Tian, D. Tao, *DisPFL: Towards Communication-Efficient Personalized
Federated Learning via Decentralized Sparse Training*, ICML 2022, arXiv 2206.00187.

Clients begin on random masks of their own, so many weights in each layer as the Erdos-Renyi-Kernel
rule gives. In a round a client takes, for each weight of its mask, the mean over those neighbours
that have it, itself among them; trains on its mask; prunes the smallest weights of each layer from
the mask; and regrows as many where its loss has the largest gradients, or at random. There is no
global model to judge, nor a model that a client has after a round and before it trains: it hears
its neighbours as its next round begins. What counts are the local models (`personal`).

Here peers speak through the server, which remembers what each uploaded last, the trained model on
its mask, and repeats it to its neighbours from the next round on. Bytes down are what a peer
receives; bytes up are those of telling one neighbour, however many hear it. What nobody has trained
yet follows from the seed, but travels as any other.
Differs from the paper: a client that takes part hears others whether or not they take part, too.
Differs from the code: masks differ from the start, as in the paper; the gradient is that of the
round's last batch.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

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
from fedmpi.training.store import Store
from fedmpi.training.train import Trainer


class Config(config.Method):
    broadcasts = is_global = False
    sends: ClassVar[bool] = True
    pools: ClassVar[bool] = False
    keeps_state: ClassVar[bool] = True

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

    def neighbours_of(self, settings: Settings, t: int, client: int) -> list[int]:
        """Whom the client hears in round t, ascending."""
        everyone = settings.clients
        others = [other for other in range(everyone) if other != client]
        if self.topology == "ring":
            return sorted({(client - 1) % everyone, (client + 1) % everyone} - {client})
        if self.topology == "full" or self.neighbours >= len(others):
            return others
        random = stream(settings.seed, Purpose.NEIGHBOUR, t, client)
        return sorted(random.choice(others, self.neighbours, replace=False).tolist())

    def mask(self, flat: Flat, seed: int, client: int) -> Tensor:
        """What the client keeps at first: bool [n]."""
        random = stream(seed, Purpose.MASK, client)
        return pruning.drawn(flat, pruning.erk(flat, self.sparsity), random)


class Models:
    """Sparse models [n] of some clients, with their masks, as they were last."""

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        assert isinstance(settings.method, Config)
        self.method, self.seed = settings.method, settings.seed
        self.flat, self.device = trainer.flat, trainer.device
        self.values, self.masks = (Store(settings.state, self.flat.size) for _ in range(2))

    def __getitem__(self, client: int) -> tuple[Tensor, Tensor]:
        """The client's model, and the mask that it is on; good until the client's next."""
        if client in self.values:
            model, mask = self.values[client], self.masks[client].bool()
        else:
            mask = self.method.mask(self.flat, self.seed, client)
            model = self.flat.initial * mask
        return model.to(self.device), mask.to(self.device)

    def __setitem__(self, client: int, both: tuple[Tensor, Tensor]) -> None:
        self.values[client], self.masks[client] = both[0], both[1].float()


class Server(fedavg.Server):
    """What passes on models; it has none."""

    method: Config
    blocks_per_upload = 2

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.prunable = self.flat.prunable().to(trainer.device)
        self.models, self.fresh = Models(settings, trainer), dict[int, tuple[Tensor, Tensor]]()

    def send(self, t: int, client: int) -> list[Block]:
        """The neighbours' models and masks."""
        found = []
        for other in self.method.neighbours_of(self.settings, t, client):
            found += staticmask.encode_model(*self.models[other], self.prunable)
        return found

    def add(self, t: int, client: int, blocks: Sequence[Block], weight: float) -> None:
        """A model, which others hear from the next round on."""
        self.fresh[client] = staticmask.decode_model(blocks, self.prunable)

    def step(self, t: int) -> None:
        """The round is over: who is heard now is heard as it is now."""
        for client, both in self.fresh.items():
            self.models[client] = both
        self.fresh.clear()


class Clients(fedavg.Clients):
    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.prunable = self.flat.prunable().to(trainer.device)
        self.models = Models(settings, trainer)
        self.next = Store(settings.state, self.flat.size)
        self.starts: dict[int, Tensor] = {}
        self.masks: dict[int, Tensor] = {}

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """A round begins."""
        self.masks.clear()

    def mask(self, client: int) -> Tensor:
        """What the client keeps in this round: bool [n]."""
        if client not in self.masks:
            known = client in self.next
            mask = self.next[client].bool() if known else self.models[client][1]
            self.masks[client] = mask.to(self.trainer.device)
        return self.masks[client]

    def accept(self, t: int, client: int, blocks: Sequence[Block]) -> None:
        """The neighbours' models: their mean, with the client's own, where each has the weight."""
        total, votes = (one.float() for one in self.models[client])
        for first in range(0, len(blocks), 2):
            model, mask = staticmask.decode_model(blocks[first : first + 2], self.prunable)
            total, votes = total + model, votes + mask
        self.starts[client] = self.mask(client) * sparse.mean(total, votes)

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Local training, each client on its mask and from its mean; then its mask changes."""
        starts = torch.stack([self.starts.pop(client) for client in clients])
        found = self.trainer.train(t, clients, starts, self.adjust).clone()
        for w, client in zip(found, clients, strict=True):
            self.models[client] = w, self.mask(client)
            self.next[client] = self.regrown(t, client, w).float()
        return found

    def regrown(self, t: int, client: int, w: Tensor) -> Tensor:
        """The client's next mask, after training to w [n]: bool [n]."""
        share = pruning.annealed(self.method.share, t, self.settings.rounds)
        if self.method.growth == "random":
            random = stream(self.settings.seed, Purpose.MASK, t, client)
            growth = torch.from_numpy(random.random(self.flat.size)).to(w.device)
        else:
            *_, last = self.trainer.feed.picks(t, client)
            growth = self.trainer.gradient(client, w, last.positions.numpy())
        counts = pruning.erk(self.flat, self.method.sparsity)
        return pruning.regrown(self.flat, w, growth, self.mask(client), counts, share)

    def adjust(self, clients: Sequence[int], w: Tensor, g: Tensor) -> None:
        """Keeps each model on its mask."""
        for row, client in enumerate(clients):
            g[row].mul_(self.mask(client))

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """The model, and the mask that it was trained on."""
        return staticmask.encode_model(*self.models[client], self.prunable)

    def burden(self, t: int, client: int) -> Burden:
        """What the client has not pruned."""
        return replace(super().burden(t, client), kept=self.mask(client))
