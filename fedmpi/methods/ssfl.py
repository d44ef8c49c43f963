"""SSFL: all clients agree on a saliency mask before the first round, then only its values travel.

R. Ohib, B. Thapaliya, G. K. Dziugaite, J. Liu, V. Calhoun, S. Plis, *SSFL: Discovering Sparse
Unified Subnetworks at Initialization for Efficient Federated Learning*, TMLR 2026, arXiv
2405.09037.

In round -1 every client scores the parameters on one minibatch, s_j = |dL/dw_j * w_j| (SNIP's
saliency), the server averages the scores by samples and keeps the floor((1 - sparsity) * d) best of
the d weights of convolutions and linear layers, globally, ties included; all other parameters
stay dense. Afterwards the model lives on the mask and positions never travel again.

Differs from the code: the gradient-norm clip sees the masked gradient, not the dense one.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from fedmpi import config, sparse
from fedmpi.burden import Burden
from fedmpi.codec import Block, Kind, Message
from fedmpi.config import Settings
from fedmpi.methods import fedavg
from fedmpi.streams import Purpose, stream
from fedmpi.train import Trainer


class Config(config.Method):
    sparsity: float = Field(0.5, ge=0, lt=1)
    """Share of the prunable weights that are zero for good; 0 is FedAvg."""


class Server(fedavg.Server):
    method: Config
    agrees = True

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.prunable = self.flat.prunable().to(trainer.device)
        self.scores = torch.zeros(int(self.prunable.sum()), device=trainer.device)
        self.active = torch.empty(0, dtype=torch.int64, device=trainer.device)

    def broadcast(self, t: int) -> list[Block]:
        """The dense initial model in round -1, the values on the mask afterwards."""
        if t < 0:
            return super().broadcast(t)
        return [sparse.block(Kind.MODEL, self.w[self.active], self.flat.size)]

    def absorb(self, t: int, message: Message) -> None:
        """Scores in round -1, updates of the active values afterwards."""
        if t < 0:
            sparse.add(self.scores, message.blocks[0], message.weight)
        else:
            sparse.add(self.total, message.blocks[0], message.weight, self.active)
            self.weight += message.weight

    def agreement(self) -> list[Block]:
        """The mask over the prunable weights; the model is zero outside of it from now on."""
        # Rounded first: (1 - 0.9) * 1000 is a hair under 100, and its floor would be 99.
        count = int(round((1 - self.method.sparsity) * len(self.scores), 6))
        if count:
            salient = self.scores >= self.scores.topk(count).values[-1]
        else:
            salient = torch.zeros_like(self.scores, dtype=torch.bool)
        self.active = active(self.prunable, salient)
        pruned = torch.ones_like(self.prunable).index_fill_(0, self.active, False)
        self.w[pruned] = 0
        return [sparse.places(salient.nonzero().squeeze(1), len(self.scores))]


class Clients(fedavg.Clients):
    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.prunable = self.flat.prunable().to(trainer.device)
        self.active = torch.arange(self.flat.size, device=trainer.device)
        self.mask = torch.ones(self.flat.size, device=trainer.device)

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """The dense model in round -1, afterwards its active values."""
        size, device = self.flat.size, self.trainer.device
        self.start = sparse.vector(blocks[0], size, device, None if t < 0 else self.active)

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Local training; in round -1 the clients' scores instead, [C, n]."""
        if t >= 0:
            return super().work(t, clients)
        return torch.stack([self._saliency(client) for client in clients])

    def _saliency(self, client: int) -> Tensor:
        shard = self.trainer.population.shards[client]
        random = stream(self.settings.seed, Purpose.SALIENCY, client)
        some = random.choice(shard, min(self.settings.batch, len(shard)), replace=False)
        return (self.trainer.gradient(self.start, some) * self.start).abs()

    def adjust(self, clients: Sequence[int], w: Tensor, g: Tensor) -> None:
        """Keeps the model on the mask."""
        g.mul_(self.mask)

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """Scores of the prunable weights in round -1, then the update's active values."""
        if t < 0:
            return [sparse.block(Kind.GRADIENT, w[self.prunable])]
        update = w[self.active] - self.start[self.active]
        return [sparse.block(Kind.GRADIENT, update, self.flat.size)]

    def burden(self, t: int, client: int) -> Burden:
        """All of the model for the scores, what is not pruned afterwards."""
        return replace(super().burden(t, client), kept=None if t < 0 else self.mask)

    def agree(self, blocks: Sequence[Block]) -> None:
        """Learns the mask."""
        salient = torch.zeros(blocks[0].size, dtype=torch.bool, device=self.trainer.device)
        salient[sparse.indices(blocks[0], self.trainer.device)] = True
        self.active = active(self.prunable, salient)
        self.mask = torch.zeros_like(self.mask).index_fill_(0, self.active, 1)


def active(prunable: Tensor, salient: Tensor) -> Tensor:
    """Positions in the model that are not pruned, ascending: the salient and the never prunable."""
    alive = ~prunable
    alive[prunable] = salient
    return alive.nonzero().squeeze(1)
