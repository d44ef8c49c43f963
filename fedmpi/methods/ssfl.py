"""SSFL: all clients agree on a saliency mask before the first round, then only its values are sent.

R. Ohib, B. Thapaliya, G. K. Dziugaite, J. Liu, V. Calhoun, S. Plis, *SSFL: Discovering Sparse
Unified Subnetworks at Initialization for Efficient Federated Learning*, TMLR 2026, arXiv
2405.09037.

In an agreement every client scores the parameters on some minibatches by s_j = |dL/dw_j * w_j|
(SNIP's saliency), with the network in evaluation mode. The server averages the scores by samples.
It keeps the floor((1 - sparsity) * d) best of the d weights of convolutions and linear layers,
globally; of equal scores the first ones. All other parameters stay dense. Afterwards only values on
the mask are trained and sent, and no positions. Gradients are clipped by the norm of what the mask
leaves. The baselines of the paper are `staticmask` and `clientmask`.

Differs from the code: it keeps all scores that equal the last one, more than was asked for where
units are dead; after a warm-up the agreement is a round of its own.
Values of the paper: those of its comparison on CIFAR-10, and of the released code (riohib/SSFL).
Reconstruction: finding the mask again. A weight that is zero would have a score of zero. Therefore
pruned weights get their initial values back first, in the dense model that all clients are sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.clients.burden import Burden
from fedmpi.config import Settings, Width
from fedmpi.messages import select, sparse
from fedmpi.messages.codec import Block, Kind, Message
from fedmpi.messages.counts import keep_floor
from fedmpi.messages.sums import Sum
from fedmpi.methods import fedavg, staticmask
from fedmpi.streams import Purpose, stream
from fedmpi.training import probe
from fedmpi.training.train import Trainer


class Config(staticmask.Masked):
    paper: ClassVar[Mapping[str, Any]] = {
        **staticmask.PAPER,
        "method.batches": 1,
        "method.warmup": 0,
    }

    sparsity: float = Field(0.5, ge=0, lt=1)
    """Share of the prunable weights that are zero for the whole run. 0 is FedAvg."""
    batches: int = Field(1, ge=1, le=config.MOST)
    """Minibatches over which a client averages its saliency scores; fewer if it has too few
    samples."""
    warmup: int = Field(0, ge=0, le=config.MOST)
    """Rounds of dense training before the mask is found. The round after them finds it."""
    rediscover: tuple[Width, ...] = Field((), strict=False)
    """Rounds in which the mask is found again, for instance after a shift of the data. Nobody
    trains in them."""

    def idle(self, settings: Settings) -> dict[str, str]:
        """Adds how scores are measured, if all weights are kept."""
        return super().idle(settings) | ({} if self.sparsity else {"batches": config.SPARSE})

    def agreements(self, rounds: int) -> frozenset[int]:
        """Round -1, or that after the warm-up; and those in which the mask is found again."""
        return frozenset({self.warmup or -1, *self.rediscover})

    def problems(self, settings: Settings) -> list[str]:
        """Agreements that never come, or that come before the first mask."""
        found, rounds = super().problems(settings), settings.rounds
        if self.warmup >= rounds:
            found.append(
                f"method.warmup = {self.warmup}: wanted less than rounds = {rounds}, since the "
                "round after it finds the mask"
            )
        wrong = [t for t in self.rediscover if not self.warmup < t < rounds]
        if wrong and self.warmup < rounds:
            found.append(
                f"method.rediscover = {list(self.rediscover)}: wanted rounds above method.warmup = "
                f"{self.warmup} and below rounds = {rounds}, found {wrong}"
            )
        return found


class Server(staticmask.Server):
    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.agreements = self.method.agreements(settings.rounds)
        self.scores = Sum(int(self.prunable.sum()), trainer.device)

    def broadcast(self, t: int) -> list[Block]:
        """Sends the dense model until the first agreement and in each, else values on the mask."""
        if t in self.agreements:
            initial = self.flat.initial.to(self.w.device)
            self.w[~self.mask] = initial[~self.mask]
            self.adopt(torch.ones_like(self.mask))
            self.scores.clear()
        return super().broadcast(t)

    def absorb(self, t: int, message: Message) -> None:
        """Adds scores in an agreement, else an update on the mask."""
        if t in self.agreements:
            self.scores.add(message.blocks[0], message.weight)
        else:
            super().absorb(t, message)

    def agreement(self) -> list[Block]:
        """Chooses the mask, prunes the model, and sends the mask over the prunable weights."""
        scores = self.scores.total
        mask = ~self.prunable
        count = keep_floor(len(scores), 1 - self.method.sparsity)
        mask[self.prunable] = select.largest(scores, count)
        self.adopt(mask)
        return [staticmask.encode_mask(mask, self.prunable)]


class Clients(staticmask.Clients):
    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.agreements = self.method.agreements(settings.rounds)

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Receives the dense model in an agreement, else the values on the mask."""
        if t in self.agreements:
            self.adopt(torch.ones_like(self.mask))
        super().receive(t, clients, blocks)

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Trains the clients; in an agreement returns their scores instead, [C, n]."""
        if t not in self.agreements:
            return super().work(t, clients)
        return torch.stack([self._saliency(t, client) for client in clients])

    def _saliency(self, t: int, client: int) -> Tensor:
        shard, batch = self.trainer.population.shards[client], self.settings.batch
        random = stream(self.settings.seed, Purpose.SALIENCY, client, *([t] if t >= 0 else []))
        count = self._scored(client)
        some = random.choice(shard, count, replace=False)
        parts = np.split(some, range(batch, count, batch))
        scores = torch.zeros_like(self.start)
        for part in parts:
            scores += (probe.gradient(self.trainer, client, self.start, part) * self.start).abs()
        return scores / len(parts)

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """Sends the scores of the prunable weights in an agreement, else the update on the mask."""
        if t in self.agreements:
            return [sparse.block(Kind.GRADIENT, w[self.prunable])]
        return super().upload(t, client, w)

    def burden(self, t: int, client: int) -> Burden:
        """Returns the cost: in an agreement that of all minibatches on the whole model."""
        if t not in self.agreements:
            return super().burden(t, client)
        return replace(fedavg.Clients.burden(self, t, client), samples=self._scored(client))

    def _scored(self, client: int) -> int:
        """Returns the number of samples by which the client scores parameters."""
        size = int(self.trainer.population.sizes[client])
        return min(self.method.batches * self.settings.batch, size)

    def agree(self, blocks: Sequence[Block]) -> None:
        """Changes to the mask that the server chose."""
        self.adopt(staticmask.decode_mask(blocks[0], self.prunable))
