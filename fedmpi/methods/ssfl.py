"""SSFL: all clients agree on a saliency mask before the first round, then only its values travel.

R. Ohib, B. Thapaliya, G. K. Dziugaite, J. Liu, V. Calhoun, S. Plis, *SSFL: Discovering Sparse
Unified Subnetworks at Initialization for Efficient Federated Learning*, TMLR 2026, arXiv
2405.09037.

In an agreement every client scores the parameters on some minibatches, s_j = |dL/dw_j * w_j|
(SNIP's saliency), of the network as it is judged; the server averages the scores by samples and
keeps the floor((1 - sparsity) * d) best of the d weights of convolutions and linear layers,
globally, ties included; all other parameters stay dense. Afterwards the model lives on the mask and
positions never travel again. The masks that it is compared with are `staticmask` and `clientmask`.

Differs from the code: the gradient-norm clip sees the masked gradient, not the dense one; after a
warm-up the agreement is a round of its own.
Reconstruction: a mask found again. A weight that is zero has a score of zero, so that what was
pruned comes back with its initial value first, in the dense model that everybody is sent.
"""

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.clients.burden import Burden
from fedmpi.config import ConfigError, Settings, Width
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind, Message
from fedmpi.messages.counts import keep_floor
from fedmpi.messages.sums import Sum
from fedmpi.methods import fedavg, staticmask
from fedmpi.streams import Purpose, stream
from fedmpi.training.train import Trainer


class Config(staticmask.Masked):
    sparsity: float = Field(0.5, ge=0, lt=1)
    """Share of the prunable weights that are zero for good; 0 is FedAvg."""
    batches: int = Field(1, ge=1, le=config.MOST)
    """Minibatches of different samples whose scores a client averages, if it has as many."""
    warmup: int = Field(0, ge=0, le=config.MOST)
    """Rounds of dense training before the mask is found, which then takes the next round."""
    rediscover: tuple[Width, ...] = Field((), strict=False)
    """Rounds in which nobody trains and the mask is found again, such as after a shift of data."""

    def agreements(self, rounds: int) -> frozenset[int]:
        """Round -1, or that after the warm-up; and those in which the mask is found again.

        Raises:
            ConfigError: for one that never comes, or that comes before the first mask.
        """
        if self.warmup >= rounds:
            raise ConfigError(
                f"method.warmup = {self.warmup}: wanted less than rounds = {rounds}, since the "
                "round after it finds the mask"
            )
        wrong = [t for t in self.rediscover if not self.warmup < t < rounds]
        if wrong:
            raise ConfigError(
                f"method.rediscover = {list(self.rediscover)}: wanted rounds above method.warmup = "
                f"{self.warmup} and below rounds = {rounds}, found {wrong}"
            )
        return frozenset({self.warmup or -1, *self.rediscover})


class Server(staticmask.Server):
    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.agreements = self.method.agreements(settings.rounds)
        self.scores = Sum(int(self.prunable.sum()), trainer.device)

    def broadcast(self, t: int) -> list[Block]:
        """The dense model in an agreement and until the first one, else the values on the mask."""
        if t in self.agreements:
            initial = self.flat.initial.to(self.w.device)
            self.w[~self.mask] = initial[~self.mask]
            self.adopt(torch.ones_like(self.mask))
            self.scores.clear()
        return super().broadcast(t)

    def absorb(self, t: int, message: Message) -> None:
        """Scores in an agreement, else updates of the active values."""
        if t in self.agreements:
            self.scores.add(message.blocks[0], message.weight)
        else:
            super().absorb(t, message)

    def agreement(self) -> list[Block]:
        """The mask over the prunable weights; the model is zero outside of it from now on."""
        scores = self.scores.total
        count = keep_floor(len(scores), 1 - self.method.sparsity)
        salient = torch.zeros_like(scores, dtype=torch.bool)
        if count:
            salient = scores >= scores.topk(count).values[-1]
        mask = ~self.prunable
        mask[self.prunable] = salient
        self.adopt(mask)
        return [staticmask.encode_mask(mask, self.prunable)]


class Clients(staticmask.Clients):
    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.agreements = self.method.agreements(settings.rounds)

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """The dense model in an agreement, else the values on the mask."""
        if t in self.agreements:
            self.adopt(torch.ones_like(self.mask))
        super().receive(t, clients, blocks)

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Local training; in an agreement the clients' scores instead, [C, n]."""
        if t not in self.agreements:
            return super().work(t, clients)
        return torch.stack([self._saliency(t, client) for client in clients])

    def _saliency(self, t: int, client: int) -> Tensor:
        shard, batch = self.trainer.population.shards[client], self.settings.batch
        random = stream(self.settings.seed, Purpose.SALIENCY, client, *([t] if t >= 0 else []))
        count = min(self.method.batches * batch, len(shard))
        some = random.choice(shard, count, replace=False)
        parts = np.split(some, range(batch, count, batch))
        scores = torch.zeros_like(self.start)
        for part in parts:
            scores += (self.trainer.gradient(client, self.start, part) * self.start).abs()
        return scores / len(parts)

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """Scores of the prunable weights in an agreement, else the update's active values."""
        if t in self.agreements:
            return [sparse.block(Kind.GRADIENT, w[self.prunable])]
        return super().upload(t, client, w)

    def burden(self, t: int, client: int) -> Burden:
        """All of the model for the scores, what is not pruned afterwards."""
        if t not in self.agreements:
            return super().burden(t, client)
        return fedavg.Clients.burden(self, t, client)

    def agree(self, blocks: Sequence[Block]) -> None:
        """Learns the mask."""
        self.adopt(staticmask.decode_mask(blocks[0], self.prunable))
