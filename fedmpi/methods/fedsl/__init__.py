"""Lightweight FedSL: SplitFed with pruned fronts, quantized gradients and dropout at the cut.

J. Zhang, W. Ni, D. Wang, *Federated Split Learning with Model Pruning and Gradient Quantization in
Wireless Networks*, arXiv 2412.06414: clients' parts are pruned dynamically by importance and
averaged every I rounds, gradients are quantized to save computation, activations at the split layer
are dropped at random to save communication. With all of that off it is SplitFed v1.

Reconstruction: only abstract and summaries are known; all that follows and the defaults are ours.
 * A mask is chosen at the beginning of a round, by (g w)^2 with the stored w and with the running
   mean of g^2 over the client's steps, before quantization (`importance`). Before its first step a
   client prunes by the magnitude of w. Pruned values are kept in memory and may come back. Channels
   that are cut out are scored by their last g, or if they have none yet, by the mean of the others.
 * Fronts step along m * Q(g), with the mask m and unbiased quantization Q for each tensor
   (`quantized.unbiased`). Clip, decay and momentum follow in float32. This saves no bytes. It saves
   computation on devices with a `speedup`, and the memory of gradients. Gradients of tails are
   exact.
 * Both sides draw alike which values survive at a cut, including that of a tail (`dropping`).
 * In every I-th round and in the last one, clients upload the values of front and tail that they
   keep. Pruned values count as zeros, or not at all. Clients of the next round start from the mean;
   in all other rounds each continues with its own values. The same clients take part until the next
   mean, and a budget ends the run no earlier. Between two averages the evaluated model has the last
   mean's front, and clients' whole models are unknown.
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
from fedmpi.clients import devices
from fedmpi.clients.burden import Burden
from fedmpi.config import Settings
from fedmpi.messages import quantized, sparse
from fedmpi.messages.codec import Block, Kind, Message
from fedmpi.messages.kernels import philox
from fedmpi.messages.sums import Held
from fedmpi.methods import splitfed
from fedmpi.methods.fedsl import importance
from fedmpi.methods.fedsl.dropping import Dropping, Leaky
from fedmpi.methods.fedsl.fronts import NarrowedWaveParts
from fedmpi.split.lockstep import Talk
from fedmpi.streams import Purpose, key
from fedmpi.training.train import Trainer


class Config(Leaky):
    pools: ClassVar[bool] = False
    optimizes: ClassVar[bool] = False
    keeps_state: ClassVar[bool] = True
    uploads: ClassVar[config.Uploads] = "models"
    feedbacks: ClassVar[tuple[str, ...]] = ("none",)

    interval: int = Field(1, ge=1, le=config.MOST)
    """Rounds between two averages of the clients' parts. The same clients take part in these
    rounds."""
    pruning: float = Field(0.3, ge=0, lt=1)
    """Share of the front that a client prunes. Used if no device has a keep."""
    structured: Literal["weights", "channels"] = "weights"
    """What is pruned. weights: single weights, set to zero. channels: hidden channels, which makes
    the front smaller."""
    prune_every: int = Field(1, ge=1, le=config.MOST)
    """Rounds between two choices of the mask."""
    first: Literal["magnitude", "nothing"] = "magnitude"
    """What a client prunes before its first step, when it knows no gradient. magnitude: its
    smallest weights. nothing: it begins with the whole front."""
    smoothing: float = Field(0.9, ge=0, lt=1)
    """Share of the past in the running mean of squared gradients by which weights are judged, from
    one local step to the next. 0 judges by the last step alone."""
    bits: config.Bits = 8
    """Bits per magnitude in the gradient of a front. 32 does not quantize. Used if no device has
    bits."""
    count_pruned_as_zero: bool = False
    """Count pruned values as zeros in the average. Otherwise each value is averaged over the
    clients that keep it."""

    @property
    def is_one(self) -> bool:
        """Whether all clients share one back: no."""
        return False

    @property
    def reshapes(self) -> bool:
        """Whether clients train narrower fronts."""
        return self.structured == "channels"

    @property
    def average_every(self) -> int:
        """Rounds between two averages."""
        return self.interval

    def idle(self, settings: Settings) -> dict[str, str]:
        """Names the settings that have no effect, and what would give them one."""
        found = super().idle(settings) | devices.instead(settings, "pruning")
        found |= devices.instead(settings, "bits", "bits")
        if not any(importance.rates(settings, self.pruning)):
            pruning = "method.pruning above 0, found a run where nothing is pruned"
            names = ("structured", "prune_every", "count_pruned_as_zero", "first", "smoothing")
            found |= dict.fromkeys(names, pruning)
        return found


class Half(Dropping):
    """Shared properties of both sides."""

    settings: Settings
    method: Config

    @cached_property
    def rates(self) -> list[float]:
        """The share of its front that each client prunes."""
        return importance.rates(self.settings, self.method.pruning)

    @cached_property
    def bits(self) -> list[int]:
        """With how many bits each client quantizes its gradients."""
        return devices.bits(self.settings, self.method.bits)

    @cached_property
    def pruner(self) -> importance.Pruner:
        """The pruner of fronts: single weights or channels."""
        whole, shape = self.trainer.flat, self.trainer.feed.x.shape[1:]
        front, _, _ = self.method.parts(whole)
        return importance.pruner(whole, front, self.method.structured, self.trainer.device, shape)


class Server(Half, splitfed.Server):
    """SplitFed's server, which averages pruned fronts and tails every `interval` rounds.

    Attributes:
        kept: sum of the updates of front and tail, over the values that clients keep.
    """

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.averages = any(self.rates) and not self.method.count_pruned_as_zero
        self.kept = Held(self.sections.size, trainer.device)

    def broadcast(self, t: int) -> list[Block]:
        """Sends front and tail at the beginning of an interval."""
        return [] if t % self.method.interval else super().broadcast(t)

    def absorb(self, t: int, message: Message) -> None:
        """Adds the client's back and, at the end of an interval, its values of front and tail."""
        client, weight = message.client, message.weight
        self.sum.weight += weight
        if not message.blocks:
            self.add_back(client, weight)
            return
        w, (values, *which) = self.sections.held(self.w), message.blocks
        choice = sparse.indices(which[0], w.device) if which else None
        kept = self.pruner.beyond(choice, len(w))
        own = torch.zeros_like(w).masked_scatter_(kept > 0, sparse.values(values, w.device))
        change = self.updates[client] = own - w
        if not self.averages:
            self.add_up(client, change, weight)
            return
        self.kept.total.add_(change * kept, alpha=weight)
        self.kept.weights.add_(kept, alpha=weight)
        self.add_back(client, weight)

    def step(self, t: int) -> None:
        """Moves the back, and front and tail by the mean over the clients that keep a value."""
        if self.averages:
            front, _, tail = self.sections.split(self.sum.total)
            means = self.kept.mean() * self.sum.weight
            for total, mean in zip((front, tail), self.sections.split_held(means), strict=True):
                total.copy_(mean)
            self.kept.clear()
        super().step(t)


class Clients(Half, splitfed.Clients):
    """SplitFed's clients, which prune their fronts.

    Attributes:
        t: the round.
        is_fresh: whether an interval begins in this round.
        memory: the clients' own values of fronts and tails, and their masks.
    """

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        about = self.sections.front, self.sections.size, trainer.stores, self.method.smoothing
        is_pruned = self.method.first == "magnitude"
        self.memory = importance.Memory(self.pruner, *about, is_pruned)
        if any(self.rates) or set(self.bits) != {config.EXACT}:
            self.adjust = self.lighten
        if isinstance(self.pruner, importance.Channels):
            self.fronts = NarrowedWaveParts(trainer, self.held)
        self.t, self.is_fresh = 0, False

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Receives front and tail at the beginning of an interval."""
        self.t, self.is_fresh = t, bool(blocks)
        if blocks:
            super().receive(t, clients, blocks)

    def open(self, t: int, parties: Sequence[Sequence[int]]) -> list[Talk]:
        """Opens a wave's conversation; each client starts with its pruned front."""
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
        """Quantizes the gradients of fronts, and masks those of pruned values."""
        step, size = self.trainer.at, self.held.size
        for row, client in enumerate(clients):
            if self.rates[client]:
                self.memory.observe(client, g[row])
        each = np.array([self.bits[client] for client in clients])
        for bits in np.unique(each[each != config.EXACT]).tolist():
            rows = np.flatnonzero(each == bits).tolist()
            ids = [(Purpose.ROUND_STEP, self.t, clients[row], step) for row in rows]
            drawn = [philox.uniform(key(self.settings.seed, *one), size) for one in ids]
            draws, is_all = torch.from_numpy(np.stack(drawn)).to(g.device), len(rows) == len(g)
            some = g if is_all else g[rows]
            for piece in self.held.parameters:
                part = slice(piece.start, piece.stop)
                some[:, part] = quantized.unbiased(some[:, part], bits, draws[:, part])
            if not is_all:
                g[rows] = some
        if any(self.rates):
            g.mul_(torch.stack([self.memory.mask(client)[:size] for client in clients]))

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """Sends the kept values of w and the mask, at the end of an interval and of the run."""
        self.memory.end(client, w, self.method.interval > 1)
        if not self.settings.is_average(t):
            return []
        choice = self.memory.kept(client)
        blocks = [sparse.block(Kind.MODEL, w[self.memory.mask(client) > 0], len(w))]
        return blocks if choice is None else [*blocks, sparse.places(choice, self.pruner.count)]

    def burden(self, t: int, client: int) -> Burden:
        """Returns the cost of a front without its pruned weights, or of a narrower front."""
        burden, choice = super().burden(t, client), self.memory.kept(client)
        burden = replace(burden, bits=self.bits[client])
        if choice is None:
            return burden
        if isinstance(self.pruner, importance.Channels):
            return replace(burden, flat=self.pruner.narrowed(choice).flat, front=burden.flat)
        return replace(burden, kept=self.pruner.mask(choice))

    def pruned(self, client: int) -> float:
        """Returns the squared norm of what its mask took from the client's front."""
        return self.memory.taken(client)

    def rounded(self, client: int, g: Tensor) -> float:
        """Returns the expected squared error of quantizing the front's part of a gradient g [n]."""
        bits, front = self.bits[client], g[: self.held.size]
        pieces = [front[piece.start : piece.stop] for piece in self.held.parameters]
        return sum(quantized.expected_error(piece, bits) for piece in pieces)
