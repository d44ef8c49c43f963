"""SSFL: all clients agree on a saliency mask before the first round, then only its values are sent.

R. Ohib, B. Thapaliya, G. K. Dziugaite, J. Liu, V. Calhoun, S. Plis, *SSFL: Discovering Sparse
Unified Subnetworks at Initialization for Efficient Federated Learning*, TMLR 2026, arXiv
2405.09037.

In an agreement every client scores the parameters on some minibatches by s_j = |dL/dw_j * w_j|
(SNIP's; `saliency` has others), with the network in evaluation mode. The server averages the scores
by samples. It keeps the floor((1 - sparsity) * d) best of the d weights of convolutions and linear
layers, globally; of equal scores the first ones. All other parameters stay dense. Afterwards only
values on the mask are trained and sent, and no positions. Gradients are clipped by the norm of what
the mask leaves. The baselines of the paper are `staticmask` and `clientmask`.

Differs from the code: it keeps all scores that equal the last one, more than was asked for where
units are dead; after a warm-up the agreement is a round of its own.
Values of the paper: those of its comparison on CIFAR-10, and of the released code (riohib/SSFL).
Reconstruction: other scores than SNIP's, which are averaged in the same way; GraSP's keep their
signs. Finding the mask again: a weight that is zero would have a score of zero, so that pruned
weights get their initial values back first, in the dense model that all clients are sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.clients.burden import Burden
from fedmpi.config import Settings, Width
from fedmpi.messages import select, sparse
from fedmpi.messages.codec import Block, Kind, Message
from fedmpi.messages.counts import keep_floor
from fedmpi.messages.sums import Addends, Sum
from fedmpi.methods import fedavg, staticmask
from fedmpi.methods.ssfl import overlap, saliency
from fedmpi.training.probe import Overlap
from fedmpi.training.train import Trainer


class Config(staticmask.Masked):
    paper: ClassVar[Mapping[str, Any]] = {
        **staticmask.PAPER,
        "method.batches": 1,
        "method.warmup": 0,
    }

    sparsity: float = Field(0.5, ge=0, lt=1)
    """Share of the prunable weights that are zero for the whole run. 0 is FedAvg."""
    saliency: Literal["snip", "grasp", "gradient", "magnitude"] = "snip"
    """Score by which weights w are kept, the highest ones, by the gradient g and the Hessian H of a
    minibatch's loss. snip: |g * w|. grasp: w * (H g), which preserves the gradient's norm.
    gradient: |g|. magnitude: |w|."""
    batches: int = Field(1, ge=1, le=config.MOST)
    """Minibatches over which a client averages its saliency scores; fewer if it has too few
    samples."""
    warmup: int = Field(0, ge=0, le=config.MOST)
    """Rounds of dense training before the mask is found. The round after them finds it."""
    rediscover: tuple[Width, ...] = Field((), strict=False)
    """Rounds in which the mask is found again, for instance after a shift of the data. Nobody
    trains in them."""

    overlap: bool = False
    """Whether masks of single clients, of other minibatches and of all training samples are
    compared in each agreement, off the clock, in the table masks. It takes a pass over all samples,
    and on the root memory for a mask of each client."""

    def idle(self, settings: Settings) -> dict[str, str]:
        """Adds how scores are measured, if all weights are kept, or if no sample is looked at."""
        found = super().idle(settings)
        if not self.sparsity:
            return found | dict.fromkeys(("batches", "saliency", "overlap"), config.SPARSE)
        if self.saliency == "magnitude":
            wanted = "method.saliency = 'snip', 'grasp' or 'gradient', found 'magnitude'"
            return found | dict.fromkeys(("batches", "overlap"), wanted)
        return found

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
        if self.overlap and settings.statistics == "local":
            found.append(
                "method.overlap = true: wanted statistics = 'averaged', found 'local', which the "
                "root does not have"
            )
        wrong = [t for t in self.rediscover if not self.warmup < t < rounds]
        if wrong and self.warmup < rounds:
            found.append(
                f"method.rediscover = {list(self.rediscover)}: wanted rounds above method.warmup = "
                f"{self.warmup} and below rounds = {rounds}, found {wrong}"
            )
        return found


class Half(staticmask.Half):
    """What both sides know.

    Attributes:
        agreements: rounds in which clients send scores.
        scores: weighted sum of the scores of prunable weights in an agreement.
    """

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.agreements = self.method.agreements(settings.rounds)

    def prepare_sums(self) -> None:
        """Makes an empty sum of scores, too."""
        super().prepare_sums()
        self.scores = Sum(int(self.flat.prunable().sum()), self.trainer.device)

    def absorb(self, t: int, message: Message) -> None:
        """Adds scores in an agreement, else an update on the mask."""
        if t in self.agreements:
            self.scores.add(message.blocks[0], message.weight)
        else:
            super().absorb(t, message)

    def sent_count(self, t: int) -> int:
        """Returns how many values the mask keeps once it is found."""
        prunable = int(self.flat.prunable().sum())
        return self.flat.size - prunable + keep_floor(prunable, 1 - self.method.sparsity)

    def addends(self, t: int) -> Addends:
        """Returns the sum of scores in an agreement, else that of updates on the mask."""
        return Addends([self.scores], [], None) if t in self.agreements else super().addends(t)


class Server(Half, staticmask.Server):
    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.scored = self.w[:0]

    def broadcast(self, t: int) -> list[Block]:
        """Sends the dense model until the first agreement and in each, else values on the mask."""
        if t in self.agreements:
            initial = self.flat.initial.to(self.w.device)
            self.w[~self.mask] = initial[~self.mask]
            self.adopt(torch.ones_like(self.mask))
            self.scores.clear()
            if self.method.overlap:
                self.scored = self.w.clone()
        return super().broadcast(t)

    def agreement(self) -> list[Block]:
        """Chooses the mask, prunes the model, and sends the mask over the prunable weights."""
        mask = ~self.prunable
        mask[self.prunable] = self._best(self.scores.total)
        self.adopt(mask)
        return [staticmask.encode_mask(mask, self.prunable)]

    def _best(self, scores: Tensor) -> Tensor:
        """Marks the weights to keep by scores [d] of those that can be pruned: bool [d]."""
        return select.largest(scores, keep_floor(len(scores), 1 - self.method.sparsity))

    def overlaps(self, t: int) -> list[Overlap]:
        """Compares the mask of an agreement with others, if the settings say so."""
        if not (self.method.overlap and t in self.agreements):
            return []
        scored, self.scored = self.scored, self.w[:0]
        how, agreed = (self.method.saliency, self.trainer, self.method.batches), self.mask
        return overlap.overlaps(
            *(*how, t, scored, agreed[self.prunable]), lambda s: self._best(s[self.prunable])
        )


class Clients(Half, staticmask.Clients):
    method: Config

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Receives the dense model in an agreement, else the values on the mask."""
        if t in self.agreements:
            self.adopt(torch.ones_like(self.mask))
        super().receive(t, clients, blocks)

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Trains the clients; in an agreement returns their scores instead, [C, n]."""
        if t not in self.agreements:
            return super().work(t, clients)
        kind, batches, trainer = self.method.saliency, self.method.batches, self.trainer
        return torch.stack(
            [
                saliency.scores(
                    kind, trainer, c, self.start, saliency.drawn(trainer, batches, t, c)
                )
                for c in clients
            ]
        )

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """Sends the scores of the prunable weights in an agreement, else the update on the mask."""
        if t in self.agreements:
            return [sparse.block(Kind.GRADIENT, w[self.prunable])]
        return super().upload(t, client, w)

    def burden(self, t: int, client: int) -> Burden:
        """Returns the cost: in an agreement that of the scores on the whole model."""
        if t not in self.agreements:
            return super().burden(t, client)
        size = int(self.trainer.population.sizes[client])
        scored = min(self.method.batches * self.settings.batch, size)
        gradients = saliency.GRADIENTS[self.method.saliency] * scored
        return replace(fedavg.Clients.burden(self, t, client), samples=gradients)

    def agree(self, blocks: Sequence[Block]) -> None:
        """Changes to the mask that the server chose."""
        self.adopt(staticmask.decode_mask(blocks[0], self.prunable))
