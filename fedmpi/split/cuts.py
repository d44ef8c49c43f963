"""Where a network is cut between clients and server, and what crosses a cut."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fedmpi import config
from fedmpi.clients.burden import Burden, Meter
from fedmpi.clients.population import Population
from fedmpi.config import ConfigError, Settings
from fedmpi.messages.codec import Kind
from fedmpi.networks.flat import Flat

FIT = "fit"
"""In place of a split point: the last one that fits the devices (see `fitted`)."""


class Sections(NamedTuple):
    """How long front, back and tail are, which lie in a model's vector in this order.

    A client holds front and tail; in one vector, the tail follows directly upon the front.
    """

    front: int
    back: int
    tail: int

    @property
    def size(self) -> int:
        """Length of what a client holds."""
        return self.front + self.tail

    def split(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Front, back and tail of a model [n]: views."""
        front, back, tail = w.split(list(self))
        return front, back, tail

    def held(self, w: Tensor) -> Tensor:
        """Returns the part of a model [n] that a client holds: front and tail, a copy [size]."""
        front, _, tail = self.split(w)
        return torch.cat([front, tail])

    def split_held(self, held: Tensor) -> tuple[Tensor, Tensor]:
        """The front and the tail in what a client holds [size]: views."""
        front, tail = held.split([self.front, self.tail])
        return front, tail

    def join(self, held: Tensor, back: Tensor) -> Tensor:
        """The model [n] of what a client holds [size] and a back: a copy."""
        front, tail = self.split_held(held)
        return torch.cat([front, back, tail])


class Cut(config.Method):
    """The settings of all methods that cut the network.

    Attributes:
        each: whether each client has a cut of its own.
    """

    each: ClassVar[bool] = False

    cut: str | None = None
    """Split point: the last stage of the client's front. If absent, the first possible one. fit:
    the last one whose front, and tail, every client's device can train in its memory; one cut for
    all clients. Devices that cannot even hold the front of the first one do not count."""
    tail: str | None = None
    """First stage of the client's tail, so that labels stay with the client. If absent, the rest of
    the network is the server's."""

    converses = True
    can_send_changes: ClassVar[bool] = False
    adds = False

    def turns(self, steps: int) -> int:
        """Returns one exchange a step, or two if there is a tail."""
        return steps if self.tail is None else 2 * steps

    @property
    def is_one(self) -> bool:
        """Whether there is one back for all clients; else one for each."""
        return True

    def problems(self, settings: Settings) -> list[str]:
        """Names a cut that no device decides."""
        found = super().problems(settings)
        if self.cut == FIT and not any(tier.memory for tier in settings.devices.tiers):
            found.append("method.cut = 'fit': wanted devices.tiers with a memory, found none")
        return found

    def possible(self, flat: Flat) -> list[str]:
        """The split points that leave the server a stage in front of the tail."""
        names = [name for name, _ in flat.stages.named_children()]
        end = names.index(self.tail) if self.tail in names else len(names)
        return names[: end - 1]

    def trained(self, flat: Flat, x: Tensor, classes: int, seed: int) -> Flat:
        """What a client trains in front of the cut; a tail aside.

        Args:
            flat: the whole network.
            x: samples, [N, ...].
            classes: number of labels.
            seed: seed of the run.
        """
        return self.parts(flat)[0]

    def remembered(self, flat: Flat, x: Tensor) -> int:
        """Values that a client keeps of each of its samples from one step to the next.

        Args:
            flat: the whole network.
            x: samples, [N, ...].
        """
        return 0

    def parts(self, flat: Flat) -> tuple[Flat, Flat, Flat]:
        """The client's front, the server's back, and the client's tail, which may be empty.

        Raises:
            ConfigError: if the model has no such split point or none at all, or no such tail.
        """
        front, back = flat.split(self.cut or (flat.cuts() or [""])[0])
        if self.tail is None:
            return front, back, Flat(nn.Sequential(), flat.is_local)
        names = [name for name, _ in back.stages.named_children()]
        if self.tail not in names[1:]:
            raise ConfigError(
                f"method.tail = '{self.tail}': wanted a stage behind '{names[0]}', the server's "
                f"first; there are: {', '.join(names[1:]) or 'none'}"
            )
        return front, *back.split(names[names.index(self.tail) - 1])

    def sections(self, flat: Flat) -> Sections:
        """How long the parts are."""
        return Sections(*(part.size for part in self.parts(flat)))

    def learning(self, flat: Flat) -> tuple[bool, bool]:
        """Whether something trains in front of each cut, so that gradients come back to it."""
        front, back, _ = self.parts(flat)
        return bool(front.parameters), bool(front.parameters or back.parameters)

    def theirs(self, trainer: Any) -> Flat:
        """Front and tail, which a client uploads."""
        return self.held(trainer.flat)

    def held(self, flat: Flat) -> Flat:
        """Front and tail as one: how they lie in what a client uploads."""
        front, _, tail = self.parts(flat)
        stages = [*front.stages.named_children(), *tail.stages.named_children()]
        return Flat(nn.Sequential(OrderedDict(stages)), flat.is_local)

    def end(self, flat: Flat) -> tuple[Flat, Flat] | None:
        """The network up to the tail, and the tail; None if there is none."""
        _, back, _ = self.parts(flat)
        names = [name for name, _ in back.stages.named_children()]
        return None if self.tail is None else flat.split(names[-1])


def fitted(
    settings: Settings, flat: Flat, population: Population, shape: Sequence[int], classes: int
) -> Settings:
    """Returns settings with a split point where they want the last one that fits the devices.

    All clients have the same cut, which the smallest device decides. It fits if training needs no
    more memory than the device has, in the client's largest batch, with what a method keeps of each
    sample, and without what it prunes or quantizes. Devices that are too small for the first split
    point do not count: the run is refused, or they rest.

    Args:
        settings: of the run.
        flat: the whole network.
        population: the clients and their devices.
        shape: shape of a sample.
        classes: number of labels.
    """
    method = settings.method
    if not isinstance(method, Cut) or method.cut != FIT or method.each:
        return settings
    limits = dict[float, int]()
    for client, tier in population.fleet.owners():
        if tier.memory is not None:
            samples = int(population.sizes[client])
            limits[tier.memory] = max(samples, limits.get(tier.memory, 0))
    cut = Fit(settings, flat, shape, classes).last(limits.items())
    return settings.model_copy(update={"method": method.model_copy(update={"cut": cut})})


class Fit:
    """The split points of a network, by what training in front of them takes of a device's memory.

    Args:
        settings: of the run; its method is a `Cut`.
        flat: the whole network.
        shape: shape of a sample.
        classes: number of labels.

    Attributes:
        parts: what a client trains in front of a split point, its tail, and how many values it
            keeps of each sample.
        needs: MiB of training, by split point, batch and number of values kept of samples.
    """

    def __init__(self, settings: Settings, flat: Flat, shape: Sequence[int], classes: int) -> None:
        assert isinstance(settings.method, Cut)
        self.settings, self.method, self.flat = settings, settings.method, flat
        self.meter, self.x = Meter(settings, tuple(shape), flat), torch.zeros(1, *shape)
        self.classes = classes
        self.parts: dict[str, tuple[Flat, tuple[Flat, Flat] | None, int]] = {}
        self.needs: dict[tuple[str, int, int], float] = {}

    def last(self, limits: Iterable[tuple[float | None, int]]) -> str | None:
        """Returns the last split point in front of which all these devices can train.

        Devices that cannot train in front of the first one do not count.

        Args:
            limits: of each device its memory, in bytes, None for any; and its client's samples.

        Returns:
            The first split point if there are devices and none of them counts, the last if there
            are none; None if the model has no split point.
        """
        points = self.method.possible(self.flat)
        if len(points) < 2:
            return points[0] if points else None
        known = {(memory, samples) for memory, samples in limits if memory is not None}
        able = [limit for limit in known if self.fits(points[0], *limit)]
        if known and not able:
            return points[0]
        deepest = (cut for cut in reversed(points) if all(self.fits(cut, *some) for some in able))
        return next(deepest, points[0])

    def fits(self, cut: str, memory: float, samples: int) -> bool:
        """Whether a client with so many samples can train in front of a split point."""
        if cut not in self.parts:
            one = self.method.model_copy(update={"cut": cut})
            front = one.trained(self.flat, self.x, self.classes, self.settings.seed)
            self.parts[cut] = front, one.end(self.flat), one.remembered(self.flat, self.x)
        front, end, each = self.parts[cut]
        case = cut, min(self.settings.batch, samples), samples * each
        if case not in self.needs:
            burden = Burden(front, 1, case[1], end=end, remembered=case[2])
            self.needs[case] = self.meter.memory(burden).total
        return self.needs[case] <= memory


class Crossing(NamedTuple):
    """A batch's values on their way over a cut, as both sides know of them.

    Attributes:
        kind: ACTIVATION on the way forward, GRADIENT on the way back.
        cut: 0 between front and back, 1 between back and tail.
        t: the round.
        client: whose batch it is.
        step: the client's local step, from 0.
    """

    kind: Kind
    cut: int
    t: int
    client: int
    step: int

    @property
    def ids(self) -> tuple[int, int, int, int]:
        """Round, client, step and way: 0 for activations, 1 for gradients, 2 and 3 at cut 1."""
        way = 2 * self.cut + (self.kind == Kind.GRADIENT)
        return self.t, self.client, self.step, way


def shape_behind(flats: Sequence[Flat], x: Tensor) -> torch.Size:
    """The shape of a sample of x [N, ...] behind parts of a network that follow each other."""
    x = x[:1]
    with torch.no_grad():
        for flat in flats:
            x = flat.network(flat.initial.to(x.device, copy=True)).train(False)(x)
    return x.shape[1:]
