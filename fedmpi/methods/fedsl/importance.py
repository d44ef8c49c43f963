"""Importance pruning: removes weights or channels that hardly change the loss.

The importance of a weight is (F(w) - F(w | w_i = 0))^2, to first order (g_i w_i)^2: P. Molchanov,
A. Mallya, S. Tyree, I. Frosio, J. Kautz, *Importance Estimation for Neural Network Pruning*, CVPR
2019, arXiv 1906.10771. It is averaged over minibatches: here g_i^2 is a running mean over the
client's local steps, so that stored weights can be judged. The importance of a channel is the sum
over all its weights. Before its first step a client knows no gradient; then the magnitude of w
decides.

A choice is a list of the weights or channels that are kept, by number, ascending: int64. The mask
follows from it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from fedmpi.clients import devices
from fedmpi.config import ConfigError, Settings
from fedmpi.messages import select
from fedmpi.messages.counts import keep_ceil, keep_round
from fedmpi.networks.flat import Flat
from fedmpi.networks.narrow import Narrow, SubModels
from fedmpi.training.store import Stores


class Pruner(ABC):
    """Chooses which weights or channels of a network are kept.

    Attributes:
        count: how many weights or channels there are to choose from.
        device: the device of masks.
    """

    count: int
    device: torch.device

    @abstractmethod
    def choose(self, change: Tensor, rate: float) -> Tensor:
        """Returns the choice that prunes a share `rate`, with the smallest |change|.

        Args:
            change: g * w of each value of the network, or w alone: [flat.size].
            rate: the share.
        """

    @abstractmethod
    def mask(self, kept: Tensor) -> Tensor:
        """Returns 1 for each value of the network that is kept, else 0: float32 [flat.size]."""

    def beyond(self, kept: Tensor | None, size: int) -> Tensor:
        """Returns the mask of a vector [size] that begins with the network; None keeps all."""
        found = torch.ones(size, device=self.device)
        if kept is not None:
            mask = self.mask(kept)
            found[: len(mask)] = mask
        return found


class Weights(Pruner):
    """Prunes single weights of convolutions and linear layers, of all layers together."""

    def __init__(self, flat: Flat, device: torch.device) -> None:
        prunable, self.device = flat.prunable().to(device), device
        self.places = prunable.nonzero().squeeze(1)
        self.others = (~prunable).float()
        self.count = len(self.places)

    def choose(self, change: Tensor, rate: float) -> Tensor:
        """Returns the weights with the largest changes g * w, in all layers together."""
        return select.top(change[self.places], keep_round(self.count, 1 - rate)).positions

    def mask(self, kept: Tensor) -> Tensor:
        """Returns the mask of the kept weights and all other parameters: float32 [flat.size]."""
        return self.others.index_fill(0, self.places[kept], 1)


class Channels(Pruner):
    """Prunes the same share of each layer's hidden channels; added layers are pruned together.

    The network's outputs are never pruned. If there are no hidden channels, `count` is 0.
    """

    def __init__(self, flat: Flat, device: torch.device, shape: Sequence[int]) -> None:
        self.models, self.device = SubModels(flat, shape), device
        self.owners = self.models.topology.hidden_owners().to(device)
        self.widths = [width for _, width in self.models.hidden]
        self.count = sum(self.widths)

    def choose(self, change: Tensor, rate: float) -> Tensor:
        """Returns the channels with the largest importance, the same share of each layer."""
        # Values without a channel have the owner -1, the last place. float64, as squares are tiny.
        worth = torch.zeros(self.count + 1, dtype=torch.float64, device=change.device)
        worth.index_add_(0, self.owners % (self.count + 1), change.double().square())
        found, first = [], 0
        for width, own in zip(self.widths, worth[:-1].split(self.widths), strict=True):
            best = select.largest(own, keep_ceil(width, 1 - rate))
            found.append(first + select.positions(best))
            first += width
        return torch.cat(found)

    def narrowed(self, kept: Tensor | None) -> Narrow:
        """Returns the narrower network of the kept channels; the whole one if None."""
        if kept is None:
            return self.models.having({})
        stays = torch.zeros(self.count, dtype=torch.bool).index_fill(0, kept.cpu(), True)
        each = [some.nonzero().squeeze(1) for some in stays.split(self.widths)]
        return self.models.having(dict(zip(self.models.hidden, each, strict=True)))

    def mask(self, kept: Tensor) -> Tensor:
        """Returns the mask of the kept channels' values: float32 [flat.size]."""
        found = torch.zeros(len(self.owners), device=self.device)
        return found.index_fill(0, self.narrowed(kept).positions.to(self.device), 1)


def rates(settings: Settings, own: float) -> list[float]:
    """The share that each client prunes: what its device does not keep, if any device says so.

    Args:
        settings: of the run.
        own: the method's share, if none does.
    """
    keeps = devices.keeps(settings)
    return [own] * settings.clients if keeps is None else [1 - keep for keep in keeps]


def pruner(
    whole: Flat, front: Flat, kind: str, device: torch.device, shape: Sequence[int]
) -> Pruner:
    """Returns the pruner of a front by its kind, `weights` or `channels`.

    Raises:
        ConfigError: if the front has no hidden channels; names the cuts whose fronts have some.
    """
    if kind == "weights":
        return Weights(front, device)
    found = Channels(front, device, shape)
    if not found.count:
        cuts = [cut for cut in whole.cuts() if Channels(whole.split(cut)[0], device, shape).count]
        raise ConfigError(
            f"method.cut = '{list(front.stages.named_children())[-1][0]}': wanted a front with "
            "hidden channels, because method.structured = 'channels'; there are: "
            + (", ".join(cuts) or "none")
        )
    return found


class Memory:
    """The pruned fronts of a rank's clients, with the tails behind them.

    Args:
        pruner: pruner of fronts.
        front: size of a front.
        size: length of a front and the tail behind it.
        stores: the stores of the rank.
        smoothing: share of the past in a running mean of squared gradients, from one local step to
            the next.
        by_magnitude: whether a client prunes by magnitude before its first step; else nothing.

    Attributes:
        own: the values as clients left them, including pruned ones.
        squares: running mean of the squared gradient of the front, by client.
        choices: each client's choice: bool, true for each number that is kept.
        starts: the values at which the active clients started.
        masks: masks of the active clients: 1 where they keep a value, else 0.
        latest: running means of the active clients, after their last steps.
    """

    def __init__(
        self,
        pruner: Pruner,
        front: int,
        size: int,
        stores: Stores,
        smoothing: float = 0.0,
        by_magnitude: bool = True,
    ) -> None:
        self.pruner, self.front, self.size = pruner, front, size
        self.smoothing, self.by_magnitude = smoothing, by_magnitude
        self.own, self.squares = stores.add("own", self.size), stores.add("square", front)
        self.choices = stores.add("choice", pruner.count, torch.bool)
        self.release()

    def release(self) -> None:
        """Forgets the active clients of the last round."""
        self.starts: dict[int, Tensor] = {}
        self.masks: dict[int, Tensor] = {}
        self.latest: dict[int, Tensor] = {}

    def choose(self, client: int, w: Tensor, rate: float) -> None:
        """Chooses what the client keeps of w [size]."""
        is_known = client in self.squares
        if rate and (is_known or self.by_magnitude):
            change = w[: self.front]
            if is_known:
                change = self.squares[client].to(w.device).sqrt() * change
            choice = torch.zeros(self.pruner.count, dtype=torch.bool, device=w.device)
            self.choices[client] = choice.index_fill_(0, self.pruner.choose(change, rate), True)

    def kept(self, client: int) -> Tensor | None:
        """Returns the client's choice, or None if it keeps everything."""
        if client not in self.choices:
            return None
        return self.choices[client].nonzero().squeeze(1).to(self.pruner.device)

    def mask(self, client: int) -> Tensor:
        """Returns 1 for each value that the client keeps, else 0: float32 [size]."""
        if client not in self.masks:
            self.masks[client] = self.pruner.beyond(self.kept(client), self.size)
        return self.masks[client]

    def begin(self, client: int, told: Tensor | None, rate: float) -> Tensor:
        """Starts a client's round; returns its values [size], with zeros for pruned ones.

        Args:
            client: the client.
            told: values that the server sent, [size]; None if it continues with its own.
            rate: share of the front to prune by a new choice; 0 keeps the last choice.
        """
        w = self.own[client].to(self.pruner.device) if told is None else told
        self.choose(client, w, rate)
        self.starts[client] = w
        return w * self.mask(client)

    def observe(self, client: int, g: Tensor) -> None:
        """Takes the gradient [front] of a step into the client's running mean."""
        square = g.square()
        if client not in self.latest and client in self.squares:
            self.latest[client] = self.squares[client].to(g.device, copy=True)
        if client in self.latest:
            self.latest[client].lerp_(square, 1 - self.smoothing)
        else:
            self.latest[client] = square

    def end(self, client: int, w: Tensor, goes_on: bool) -> None:
        """Stores the client's values w [size] for its next round, and its running mean."""
        kept = self.mask(client) > 0
        if goes_on:
            self.own[client] = torch.where(kept, w, self.starts[client])
        if client in self.latest:
            squares = self.latest.pop(client)
            if isinstance(self.pruner, Channels):
                # Channels that are cut out learn nothing about themselves.
                there = kept[: self.front]
                before = squares[there].mean()
                if client in self.squares:
                    before = self.squares[client].to(squares.device)
                squares = torch.where(there, squares, before)
            self.squares[client] = squares

    def taken(self, client: int) -> float:
        """Returns the squared norm of the values that its mask took from the client's start."""
        start = self.starts[client].double()
        return float((start * (1 - self.mask(client))).square().sum())
