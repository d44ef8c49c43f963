"""FedDST: clients prune and regrow their masks now and then, and the server prunes their average.

S. Bibikar, H. Vikalo, Z. Wang, X. Chen, *Federated Dynamic Sparse Training: Computing Less,
Communicating Less, Yet Learning Better*, AAAI 2022, arXiv 2112.09824.

The initial mask keeps the largest weights of each layer, with layer densities by the
Erdos-Renyi-Kernel rule. In a readjustment round a client trains, prunes the smallest weights of
each layer, and regrows as many where its loss has the largest gradients. It uploads its mask with
the values. The server averages each weight over the clients that have it, and keeps the largest of
each layer. A client that does not have the server's mask yet receives it in its next round. Also
the base of other methods whose server changes the mask.

Differs from the paper: clients readjust after their last local step, as the released code does with
its defaults; the gradient is that of the last batch, with the network in evaluation mode.
Differs from the code: only weights that are zero grow; the share of the first round is `share`, and
not its square; the Erdos-Renyi-Kernel rule is that of RigL, whose densities never exceed 1.
Values of the paper: those of CIFAR-10 in the released code (bibikar/feddst), whose masks change
every 10 to 15 rounds.
Reconstruction: weights that grew are zero when they are averaged, so that they tie in the server's
pruning; ties are broken by the number of samples of the clients that have a weight.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

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
from fedmpi.training import probe
from fedmpi.training.train import Trainer


class Config(staticmask.Masked):
    sends: ClassVar[bool] = True
    pools: ClassVar[bool] = False
    optimizes: ClassVar[bool] = False
    keeps_state: ClassVar[bool] = True
    adds: ClassVar[bool] = False
    paper: ClassVar[Mapping[str, Any]] = {
        "data.name": "cifar10",
        "partition.name": "dirichlet",
        "partition.alpha": 0.1,
        "clients": 400,
        "participation": 0.05,
        "rounds": 400,
        "epochs": 10,
        "batch": 32,
        "lr": 0.01,
        "momentum": 0.9,
        "weight_decay": 0.001,
        "method.sparsity": 0.8,
        "method.share": 0.01,
        "method.every": 10,
        "method.end": 0.5,
    }

    sparsity: float = Field(0.8, ge=0, lt=1)
    """Share of the prunable weights that are zero."""
    share: float = Field(0.5, ge=0, le=1)
    """Share of a layer's weights that are pruned and regrown in round 0. It falls along half a
    cosine."""
    every: int = Field(10, ge=1, le=config.MOST)
    """Rounds between two readjustments of the mask. The first is in round 1, counted from 0."""
    end: float = Field(0.5, gt=0, le=1)
    """Share of the rounds after which masks stay fixed."""

    def idle(self, settings: Settings) -> dict[str, str]:
        """Adds how masks change, if they keep all or stay as they are."""
        found, change = super().idle(settings), ("every", "end")
        if not self.share:
            found |= dict.fromkeys(change, "method.share above 0, found 0")
        if not self.sparsity:
            found |= dict.fromkeys(("share", *change) if self.share else change, config.SPARSE)
        return found

    def initial_mask(self, flat: Flat, seed: int) -> Tensor:
        """Returns the mask of each layer's largest initial weights: bool [n]."""
        return pruning.largest(flat, flat.initial.abs(), self.counts(flat))

    def counts(self, flat: Flat) -> list[int]:
        """Returns the number of weights that each layer keeps."""
        return pruning.erk(flat, self.sparsity)

    def replaced(self, t: int, rounds: int) -> float:
        """Returns the share of weights that are replaced in round t; 0 if masks do not change."""
        is_due = (t - 1) % self.every == 0
        return pruning.annealed(self.share, t, self.end * rounds) if is_due else 0.0


class Half(staticmask.Half):
    """Both sides know in which rounds clients send masks of their own."""

    prunable: Tensor

    def has_own(self, t: int) -> bool:
        """Returns whether updates of round t are on the clients' own masks."""
        method = self.method
        return isinstance(method, Config) and method.replaced(t, self.settings.rounds) > 0

    def sent_positions(self, t: int, client: int, blocks: Sequence[Block]) -> Tensor:
        """Returns the positions of the shared mask, or of the client's own mask."""
        if not self.has_own(t):
            return super().sent_positions(t, client, blocks)
        return staticmask.decode_mask(blocks[-1], self.prunable).nonzero().squeeze(1)


class Server(Half, staticmask.Server):
    """A server that changes the mask.

    Attributes:
        version: version of the mask, int64 []; all clients know version 0 from the seed.
        knows: the version that each client was last sent, int64 [clients].
        held: sum of updates on the clients' own masks in a readjustment round.
    """

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.version = torch.zeros((), dtype=torch.int64)
        self.knows = torch.zeros(settings.clients, dtype=torch.int64)
        self.held = Held(len(self.w), trainer.device)

    def state(self) -> dict[str, Tensor]:
        """The model, its mask, and who knows which mask."""
        return super().state() | {"version": self.version, "knows": self.knows}

    def change(self, mask: Tensor) -> None:
        """Adopts a mask; counts a new version if it differs from the last one."""
        self.version += int(not torch.equal(mask, self.mask))
        self.adopt(mask)

    def send(self, t: int, client: int) -> list[Block]:
        """Sends the mask to a client that does not have it."""
        if self.knows[client] == self.version:
            return []
        self.knows[client] = self.version
        return [staticmask.encode_mask(self.mask, self.prunable)]

    def add(
        self,
        t: int,
        client: int,
        blocks: Sequence[Block],
        update: Block,
        where: Tensor | None,
        weight: float,
    ) -> None:
        """Adds an update, on the shared mask or on the client's own mask."""
        total = self.held if self.has_own(t) else self.sum
        total.add(update, weight, where)

    def step(self, t: int) -> None:
        """Moves the model by the mean update; in a readjustment round prunes it to a new mask.

        In that round each weight is averaged over the clients that have it, and the largest weights
        of each layer are kept.
        """
        method = self.method
        assert isinstance(method, Config)
        if not self.has_own(t):
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


class Clients(Half, staticmask.Clients):
    """Clients whose mask the server changes.

    Clients stay on their ranks. A rank keeps the newest mask that was sent to one of its clients; a
    client that was sent none has this mask, too.

    Attributes:
        since: the round in which the mask was sent, int64 []; -1 for the one from the seed.
    """

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.since = torch.full((), -1)
        self.values = torch.empty(0, device=trainer.device)
        self.own: dict[int, Tensor] = {}

    def state(self) -> dict[str, Tensor]:
        """The newest mask, and since when this rank has it."""
        return super().state() | {"since": self.since}

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Receives the values on the mask, which may be a new one."""
        self.values = sparse.values(blocks[0], self.trainer.device)

    def accept(self, t: int, client: int, blocks: Sequence[Block]) -> None:
        """Receives the mask, if it is new to the client."""
        if blocks:
            self.adopt(staticmask.decode_mask(blocks[0], self.prunable))
            self.since.fill_(t)

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Trains on the mask, and readjusts the clients' masks if that is due."""
        self.start = torch.zeros_like(self.start)
        self.start[self.active] = self.values
        found = super().work(t, clients)
        return self.readjust(t, clients, found)

    def readjust(self, t: int, clients: Sequence[int], found: Tensor) -> Tensor:
        """Returns the clients' models [C, n] on their new masks, or unchanged if none is due."""
        method = self.method
        assert isinstance(method, Config)
        share = method.replaced(t, self.settings.rounds)
        if not share:
            return found
        found, counts = found.clone(), method.counts(self.flat)
        for w, client in zip(found, clients, strict=True):
            *_, last = self.trainer.feed.picks(t, client)
            g = probe.gradient(self.trainer, client, w, last.positions.numpy())
            self.own[client] = pruning.regrown(self.flat, w, g, self.mask, counts, share)
            w[~(self.mask & self.own[client])] = 0
        return found

    def encode_update(self, t: int, client: int, update: Tensor) -> list[Block]:
        """Sends the update on the mask; after a readjustment with the client's new mask."""
        if not self.has_own(t):
            return super().encode_update(t, client, update)
        mask = self.own.pop(client)
        block = sparse.block(Kind.GRADIENT, update[mask], self.flat.size)
        return [block, staticmask.encode_mask(mask, self.prunable)]
