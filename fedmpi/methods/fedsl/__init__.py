"""Lightweight FedSL: SplitFed with pruned fronts, quantized gradients and dropout at the cut.

J. Zhang, W. Ni, D. Wang, *Federated Split Learning with Model Pruning and Gradient Quantization in
Wireless Networks*, arXiv 2412.06414: clients' parts are pruned dynamically by importance and
averaged every I rounds, gradients are quantized to save computation, activations at the split layer
are dropped at random to save communication. With all of that off it is SplitFed v1.

Reconstruction: abstract and summaries alone are known; all that follows is ours, and the defaults.
 * A mask is chosen as a round begins, by (g w)^2 with w as it is stored and g of the client's last
   step, before quantization (`importance`); before it has made a step nothing is pruned. What
   is pruned keeps its value and may come back; channels that are cut out count with their last g.
 * Fronts step along m * Q(g), right on average for each tensor (`quantized.unbiased`); clip, decay
   and momentum go on from there in float32. It saves no byte. Gradients of tails are exact.
 * What survives at a cut, a tail's too, both sides draw alike (`dropping`).
 * In every I-th round and in the last, clients upload what they keep of front and tail; pruned
   values count as zeros, or not at all. The next round's clients begin with the mean; in other
   rounds each goes on with its own, at first what the seed gives. Until then the model that is
   judged has the last mean's front, and nobody knows clients' whole models.
 * Clients' backs, one each, are averaged every round, as in SplitFed: the server has them all.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.clients.burden import Burden
from fedmpi.config import Settings
from fedmpi.messages import quantized, sparse
from fedmpi.messages.codec import Block, Kind, Message
from fedmpi.messages.quantized import Bits
from fedmpi.messages.sums import Held
from fedmpi.methods import splitfed
from fedmpi.methods.fedsl import importance
from fedmpi.methods.fedsl.dropping import Dropping, Leaky
from fedmpi.methods.fedsl.fronts import NarrowedWaveParts
from fedmpi.split.lockstep import Talk
from fedmpi.streams import Purpose, stream
from fedmpi.training.train import Trainer


class Config(Leaky):
    pools: ClassVar[bool] = False
    keeps_state: ClassVar[bool] = True

    interval: int = Field(1, ge=1, le=config.MOST)
    """Rounds from one average of the clients' parts to the next."""
    pruning: float = Field(0.3, ge=0, lt=1)
    """Share of the front that is pruned, if no device's `keep` says what is left of it."""
    structured: Literal["weights", "channels"] = "weights"
    """What is pruned: single weights, or hidden channels, which makes fronts really smaller."""
    prune_every: int = Field(1, ge=1, le=config.MOST)
    """Masks are chosen anew in every so many rounds."""
    bits: Bits = 8
    """Of a magnitude in a front's gradient; 32 leaves it as it is."""
    count_pruned_as_zero: bool = False
    """Average over all clients, and not over those who keep a value."""

    @property
    def is_one(self) -> bool:
        """See `Cut.is_one`."""
        return False


class Half(Dropping):
    """What both sides know."""

    settings: Settings
    method: Config

    @cached_property
    def rates(self) -> list[float]:
        """The share that each client prunes."""
        others = ("structured", "prune_every", "count_pruned_as_zero")
        return importance.rates(self.settings, "pruning", others)

    @cached_property
    def pruner(self) -> importance.Pruner:
        """Chooses of fronts."""
        whole, shape = self.trainer.flat, self.trainer.feed.x.shape[1:]
        front, _, _ = self.method.parts(whole)
        return importance.pruner(whole, front, self.method.structured, self.trainer.device, shape)


class Server(Half, splitfed.Server):
    """Attributes: `kept`, updates of what clients keep of front and tail."""

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.averages = any(self.rates) and not self.method.count_pruned_as_zero
        self.kept = Held(self.sections.size, trainer.device)

    def broadcast(self, t: int) -> list[Block]:
        """Front and tail, as an interval begins."""
        return [] if t % self.method.interval else super().broadcast(t)

    def absorb(self, t: int, message: Message) -> None:
        """The client's back, and as an interval ends what it keeps of front and tail."""
        if not message.blocks:
            self.count(message)
            return
        w, (values, *which) = self.sections.held(self.w), message.blocks
        choice = sparse.indices(which[0], w.device) if which else None
        kept = self.pruner.beyond(choice, len(w))
        own = torch.zeros_like(w).masked_scatter_(kept > 0, sparse.values(values, w.device))
        change = self.updates[message.client] = own - w
        if not self.averages:
            self.add_up(message, change)
            return
        self.kept.total.add_(change * kept, alpha=message.weight)
        self.kept.weights.add_(kept, alpha=message.weight)
        self.count(message)

    def step(self, t: int) -> None:
        """Moves front and tail by the mean of those who keep a value, and the back."""
        if self.averages:
            front, _, tail = self.sections.split(self.sum.total)
            means = self.kept.mean() * self.sum.weight
            for total, mean in zip((front, tail), self.sections.split_held(means), strict=True):
                total.copy_(mean)
            self.kept.clear()
        super().step(t)


class Clients(Half, splitfed.Clients):
    """Attributes: the round `t`, whether it `is_fresh`, and `memory` of fronts and tails."""

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        first, size = self.sections.held(self.flat.initial), self.sections.front
        self.memory = importance.Memory(self.pruner, size, first, settings.state)
        if any(self.rates) or self.method.bits != sparse.EXACT:
            self.adjust = self.lighten
        if isinstance(self.pruner, importance.Channels):
            self.fronts = NarrowedWaveParts(trainer, self.held)
        self.t, self.is_fresh = 0, False

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Front and tail, as an interval begins."""
        self.t, self.is_fresh = t, bool(blocks)
        if blocks:
            super().receive(t, clients, blocks)

    def open(self, t: int, parties: Sequence[Sequence[int]]) -> list[Talk]:
        """Begins a wave's conversation: each client with what it keeps of its own front."""
        talks, pruner, memory = super().open(t, parties), self.pruner, self.memory
        memory.release()
        for client in chain(*parties):
            rate = 0.0 if t % self.method.prune_every else self.rates[client]
            w = memory.begin(client, self.start if self.is_fresh else None, rate)
            both = zip((self.fronts, self.tails), self.sections.split_held(w), strict=True)
            for parts, own in both:
                parts.of(client).copy_(own)
        if isinstance(pruner, importance.Channels) and isinstance(self.fronts, NarrowedWaveParts):
            self.fronts.narrow(lambda client: pruner.narrowed(memory.kept(client)))
        return talks

    def lighten(self, clients: Sequence[int], w: Tensor, g: Tensor) -> None:
        """Quantizes gradients of fronts, and of what is pruned there is none."""
        step, (bits, size) = self.trainer.at, (self.method.bits, self.held.size)
        for row, client in enumerate(clients):
            if self.rates[client]:
                self.memory.observe(client, g[row])
        if bits != sparse.EXACT:
            ids = [(Purpose.ROUNDING, self.t, client, step) for client in clients]
            random = np.stack([stream(self.settings.seed, *each).random(size) for each in ids])
            draws = torch.from_numpy(random).to(g.device)
            for piece in self.held.parameters:
                part = slice(piece.start, piece.stop)
                g[:, part] = quantized.unbiased(g[:, part], bits, draws[:, part])
        if any(self.rates):
            g.mul_(torch.stack([self.memory.mask(client)[:size] for client in clients]))

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """As an interval ends, and the run: what the client keeps of w, and which that is."""
        interval = self.method.interval
        self.memory.end(client, w, interval > 1)
        if (t + 1) % interval and t + 1 < self.settings.rounds:
            return []
        choice = self.memory.kept(client)
        blocks = [sparse.block(Kind.MODEL, w[self.memory.mask(client) > 0], len(w))]
        return blocks if choice is None else [*blocks, sparse.places(choice, self.pruner.count)]

    def burden(self, t: int, client: int) -> Burden:
        """A front without what is pruned, or a narrower one."""
        burden, choice = super().burden(t, client), self.memory.kept(client)
        if choice is None:
            return burden
        if isinstance(self.pruner, importance.Channels):
            return replace(burden, flat=self.pruner.narrowed(choice).flat, front=burden.flat)
        return replace(burden, kept=self.pruner.mask(choice))
