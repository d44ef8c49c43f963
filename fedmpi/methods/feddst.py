"""FedDST: clients prune and regrow their masks now and then, and the server prunes their average.

S. Bibikar, H. Vikalo, Z. Wang, X. Chen, *Federated Dynamic Sparse Training: Computing Less,
Communicating Less, Yet Learning Better*, AAAI 2022, arXiv 2112.09824.

The model begins on its largest weights, so many in each layer as the Erdos-Renyi-Kernel rule gives.
In a round of readjustment a client, when it has trained, prunes the smallest weights of each layer
and regrows as many where its loss has the largest gradients; it uploads its mask beside the values.
The server averages each weight over the clients that have it, and keeps the largest of each layer.
Who does not have the server's mask yet gets it, in its next round. Also the base of methods whose
server changes the mask.

Differs from the paper: clients readjust after their last local step, as the released code does
with its defaults; the gradient is that of the last batch, of the network as it is judged.
Differs from the code: only weights that are zero grow; the share of the first round is `share`, and
not its square; the Erdos-Renyi-Kernel rule is that of RigL, whose densities never exceed 1.
Reconstruction: weights that grew are zero when they are averaged, so that they tie where the server
prunes; those count more that clients with more samples have.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.messages.sums import Held
from fedmpi.methods import staticmask
from fedmpi.networks import pruning
from fedmpi.networks.flat import Flat
from fedmpi.training.train import Trainer


class Config(staticmask.Masked):
    sends: ClassVar[bool] = True
    pools: ClassVar[bool] = False
    keeps_state: ClassVar[bool] = True

    sparsity: float = Field(0.8, ge=0, lt=1)
    """Share of the prunable weights that are zero."""
    share: float = Field(0.5, ge=0, le=1)
    """Share of a layer's weights that are replaced in round 0; it falls by half a cosine."""
    every: int = Field(10, ge=1, le=config.MOST)
    """Rounds from one readjustment to the next; the first is in round 1, counted from 0."""
    end: float = Field(0.5, gt=0, le=1)
    """Share of the rounds after which masks stay."""

    def initial_mask(self, flat: Flat, seed: int) -> Tensor:
        """Each layer's largest initial weights: bool [n]."""
        return pruning.largest(flat, flat.initial.abs(), self.counts(flat))

    def counts(self, flat: Flat) -> list[int]:
        """How many weights each layer keeps."""
        return pruning.erk(flat, self.sparsity)

    def replaced(self, t: int, rounds: int) -> float:
        """The share of weights that are replaced in round t; 0 if masks stay as they are."""
        is_due = (t - 1) % self.every == 0
        return pruning.annealed(self.share, t, self.end * rounds) if is_due else 0.0


class Server(staticmask.Server):
    """A server that changes the mask.

    Attributes:
        version: number of the mask, int64 []; 0 is the first, which everybody knows from the seed.
        knows: the version that each client has been sent, int64 [clients].
        held: updates on the clients' own masks, when these have been readjusted.
    """

    blocks_per_upload = 2

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.version = torch.zeros((), dtype=torch.int64)
        self.knows = torch.zeros(settings.clients, dtype=torch.int64)
        self.held = Held(len(self.w), trainer.device)

    def state(self) -> dict[str, Tensor]:
        """The model, its mask, and who knows which mask."""
        return super().state() | {"version": self.version, "knows": self.knows}

    def change(self, mask: Tensor) -> None:
        """The model lives on another mask from now on, if it is another."""
        self.version += int(not torch.equal(mask, self.mask))
        self.adopt(mask)

    def send(self, t: int, client: int) -> list[Block]:
        """The mask, to those who do not have it."""
        if self.knows[client] == self.version:
            return []
        self.knows[client] = self.version
        return [staticmask.encode_mask(self.mask, self.prunable)]

    def add(self, t: int, client: int, blocks: Sequence[Block], weight: float) -> None:
        """Updates on the mask that both know, or on the client's own, which comes first."""
        if len(blocks) == 1:
            super().add(t, client, blocks, weight)
            return
        where = staticmask.decode_mask(blocks[0], self.prunable).nonzero().squeeze(1)
        self.held.add(blocks[1], weight, where)

    def step(self, t: int) -> None:
        """Means over those who have a weight; the largest of each layer are kept."""
        method = self.method
        assert isinstance(method, Config)
        if not method.replaced(t, self.settings.rounds):
            super().step(t)
            return
        votes = self.held.weights
        held = votes > 0
        self.w += self.held.mean()
        self.w[~held] = 0
        size = self.w.abs().masked_fill(~held, -1)
        self.change(pruning.largest(self.flat, size, method.counts(self.flat), votes))
        self.held.clear()
        self.sum.clear()


class Clients(staticmask.Clients):
    """Clients whose mask the server changes.

    They keep to their ranks: a rank keeps the newest mask that one of its clients was sent, and who
    was sent none has that.
    """

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.values = torch.empty(0, device=trainer.device)
        self.own: dict[int, Tensor] = {}

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Values on the mask, which may be another than the last."""
        self.values = sparse.values(blocks[0], self.trainer.device)

    def accept(self, t: int, client: int, blocks: Sequence[Block]) -> None:
        """The mask, if it is new to the client."""
        if blocks:
            self.adopt(staticmask.decode_mask(blocks[0], self.prunable))

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Local training on the mask, and after it the masks' readjustment if that is due."""
        self.start = torch.zeros_like(self.start)
        self.start[self.active] = self.values
        found = super().work(t, clients)
        return self.readjust(t, clients, found)

    def readjust(self, t: int, clients: Sequence[int], found: Tensor) -> Tensor:
        """The clients' models [C, n] on their new masks."""
        method = self.method
        assert isinstance(method, Config)
        share = method.replaced(t, self.settings.rounds)
        if not share:
            return found
        found, counts = found.clone(), method.counts(self.flat)
        for w, client in zip(found, clients, strict=True):
            *_, last = self.trainer.feed.picks(t, client)
            g = self.trainer.gradient(client, w, last.positions.numpy())
            self.own[client] = pruning.regrown(self.flat, w, g, self.mask, counts, share)
            w[~(self.mask & self.own[client])] = 0
        return found

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """The update's values on the mask; after a readjustment the client's own, and that."""
        if client not in self.own:
            return super().upload(t, client, w)
        mask = self.own.pop(client)
        update = sparse.block(Kind.GRADIENT, (w - self.start)[mask], self.flat.size)
        return [staticmask.encode_mask(mask, self.prunable), update]
