"""What of a network may go, because the loss would hardly change without it.

What a weight is worth is (F(w) - F(w | w_i = 0))^2, to first order (g_i w_i)^2: P. Molchanov, A.
Mallya, S. Tyree, I. Frosio, J. Kautz, *Importance Estimation for Neural Network Pruning*, CVPR
2019, arXiv 1906.10771. What a channel is worth is the sum of that over all that makes it.

A choice is the numbers of what is kept, ascending: int64. Two sides that know it know the mask.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from fedmpi.clients import devices
from fedmpi.config import ConfigError, Settings, State, written
from fedmpi.messages import sparse
from fedmpi.messages.counts import keep_ceil, keep_round
from fedmpi.networks.flat import Flat
from fedmpi.networks.narrow import Narrow, SubModels
from fedmpi.training.store import Store


class Pruner(ABC):
    """Chooses of a network.

    Attributes:
        count: how many numbers there are.
        device: where masks are.
    """

    count: int
    device: torch.device

    @abstractmethod
    def choose(self, change: Tensor, rate: float) -> Tensor:
        """What stays if a share goes: whatever has the largest change g * w [flat.size]."""

    @abstractmethod
    def mask(self, kept: Tensor) -> Tensor:
        """1 where a position of the network stays, else 0: float32 [flat.size]."""

    def beyond(self, kept: Tensor | None, size: int) -> Tensor:
        """The same for a vector [size] that begins with the network; None keeps everything."""
        found = torch.ones(size, device=self.device)
        if kept is not None:
            mask = self.mask(kept)
            found[: len(mask)] = mask
        return found


class Weights(Pruner):
    """Of all weights of convolutions and linear layers together; other parameters stay."""

    def __init__(self, flat: Flat, device: torch.device) -> None:
        prunable, self.device = flat.prunable().to(device), device
        self.places = prunable.nonzero().squeeze(1)
        self.others = (~prunable).float()
        self.count = len(self.places)

    def choose(self, change: Tensor, rate: float) -> Tensor:
        """See `Pruner.choose`."""
        return sparse.top(change[self.places], keep_round(self.count, 1 - rate))

    def mask(self, kept: Tensor) -> Tensor:
        """See `Pruner.mask`."""
        return self.others.index_fill(0, self.places[kept], 1)


class Channels(Pruner):
    """The same share of each layer's hidden channels; layers that are added go together.

    What comes out of the network stays. It may have no hidden channels: `count` is 0 then.
    """

    def __init__(self, flat: Flat, device: torch.device, shape: Sequence[int]) -> None:
        self.models, self.device = SubModels(flat, shape), device
        self.owners = self.models.topology.hidden_owners().to(device)
        self.widths = [width for _, width in self.models.hidden]
        self.count = sum(self.widths)

    def choose(self, change: Tensor, rate: float) -> Tensor:
        """See `Pruner.choose`."""
        # The last place is found by nobody's number, -1. In float64: squares may be tiny.
        worth = torch.zeros(self.count + 1, dtype=torch.float64, device=change.device)
        worth.index_add_(0, self.owners % (self.count + 1), change.double().square())
        found, first = [], 0
        for width, own in zip(self.widths, worth[:-1].split(self.widths), strict=True):
            best = own.topk(keep_ceil(width, 1 - rate), sorted=False).indices
            found.append(first + best.sort().values)
            first += width
        return torch.cat(found)

    def narrowed(self, kept: Tensor | None) -> Narrow:
        """The network that is left; the whole one if None."""
        if kept is None:
            return self.models.having({})
        stays = torch.zeros(self.count, dtype=torch.bool).index_fill(0, kept.cpu(), True)
        each = [some.nonzero().squeeze(1) for some in stays.split(self.widths)]
        return self.models.having(dict(zip(self.models.hidden, each, strict=True)))

    def mask(self, kept: Tensor) -> Tensor:
        """See `Pruner.mask`."""
        found = torch.zeros(len(self.owners), device=self.device)
        return found.index_fill(0, self.narrowed(kept).positions.to(self.device), 1)


def rates(settings: Settings, name: str, others: Sequence[str]) -> list[float]:
    """The share that each client prunes: what its device does not keep, if any device says so.

    Args:
        settings: of the run.
        name: of the method's setting that says it else.
        others: names of those that mean nothing where nothing is pruned.

    Raises:
        ConfigError: for such settings there, or if the method and the devices both say something.
    """
    method, keeps = settings.method, devices.keeps(settings, name)
    found = [getattr(method, name)] * settings.clients if keeps is None else [1 - k for k in keeps]
    if not any(found):
        defaults = {other: type(method).model_fields[other].default for other in others}
        method.refuse(
            {other: f"{written(own)} where nothing is pruned" for other, own in defaults.items()}
        )
    return found


def pruner(
    whole: Flat, front: Flat, kind: str, device: torch.device, shape: Sequence[int]
) -> Pruner:
    """Of a front by kind, `weights` or `channels`.

    Raises:
        ConfigError: if the front has no such channels; says which have.
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
    """What the clients of a rank keep of their fronts, and of the tails behind them.

    Args:
        pruner: chooses of fronts.
        front: size of a front.
        first: what a client has that was never told anything, [size].
        state: of the run's settings.

    Attributes:
        own: the values as clients left them, with those that are pruned.
        gradients: of fronts in each client's last step.
        choices: what each one keeps: 1 for each number that stays, else 0.
        starts: what the clients at work began with.
        masks: 1 where they keep a value, else 0.
        last: gradients of the steps that they have just made.
    """

    def __init__(self, pruner: Pruner, front: int, first: Tensor, state: State) -> None:
        self.pruner, self.front, self.first, self.size = pruner, front, first, len(first)
        self.own, self.gradients = Store(state, self.size), Store(state, front)
        self.choices = Store(state, pruner.count)
        self.release()

    def release(self) -> None:
        """Nobody is at work."""
        self.starts: dict[int, Tensor] = {}
        self.masks: dict[int, Tensor] = {}
        self.last: dict[int, Tensor] = {}

    def choose(self, client: int, w: Tensor, rate: float) -> None:
        """What the client keeps of w [size] from now on; everything until it has made a step."""
        if rate and client in self.gradients:
            change = self.gradients[client].to(w.device) * w[: self.front]
            choice = torch.zeros(self.pruner.count, device=w.device)
            self.choices[client] = choice.index_fill_(0, self.pruner.choose(change, rate), 1)

    def kept(self, client: int) -> Tensor | None:
        """The client's choice; None if it keeps everything."""
        if client not in self.choices:
            return None
        return self.choices[client].nonzero().squeeze(1).to(self.pruner.device)

    def mask(self, client: int) -> Tensor:
        """1 where the client keeps a value, else 0: float32 [size]."""
        if client not in self.masks:
            self.masks[client] = self.pruner.beyond(self.kept(client), self.size)
        return self.masks[client]

    def begin(self, client: int, told: Tensor | None, rate: float) -> Tensor:
        """A client is at work: what it has, with zeros where it keeps nothing, [size].

        Args:
            client: who.
            told: what it was told, [size]; None if it goes on with its own.
            rate: share of the front that it chooses to prune anew; 0 leaves it with its choice.
        """
        w = self.own.get(client, self.first).to(self.pruner.device) if told is None else told
        self.choose(client, w, rate)
        self.starts[client] = w
        return w * self.mask(client)

    def observe(self, client: int, g: Tensor) -> None:
        """Takes down the gradient [front] of a step of the client's, which may be its last."""
        self.last[client] = g.clone()

    def end(self, client: int, w: Tensor, goes_on: bool) -> None:
        """The client's work led to w [size], from where it may go on another time."""
        kept = self.mask(client) > 0
        if goes_on:
            self.own[client] = torch.where(kept, w, self.starts[client])
        if client in self.last:
            g = self.last.pop(client)
            if isinstance(self.pruner, Channels) and client in self.gradients:
                # What was cut out has no gradient but the last that it had.
                g = torch.where(kept[: self.front], g, self.gradients[client].to(g.device))
            self.gradients[client] = g
