"""FLOPs and memory of local training: FLOPs are counted by torch, memory is measured on a batch.

Conventions. FLOPs of a sample's way forward and back are counted as in `networks.flops`: a step of
training has three times as many for each sample as its way forward, and less where something is
frozen. Of a masked weight nothing counts, on the way forward or back, whether or not there is
hardware that profits: SSFL and DisPFL count so. Nor does what a method looks at beside its steps,
such as a batch by which its mask changes; but the models that SPATL's agents try out count
(`forwards`). Memory is that of float32 weights, the gradients and the optimiser's state of those
that train, and all that autograd keeps of a batch; a mask costs a bit a position besides, and a
quantized gradient its bits and a sign. What a method keeps of each sample's activations is in it
(`remembered`); what it keeps of the model (the round's, a residual) is not, nor are libraries.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from fedmpi.clients.devices import Fleet
from fedmpi.clients.population import Population
from fedmpi.config import EXACT, ConfigError, Settings, Tier
from fedmpi.networks.flat import Flat
from fedmpi.networks.flops import Forward, forward

MIB = 2**20
SHARES = [step / 20 for step in range(20, 0, -1)]
"""Shares of the model that are tried on a device, the largest first."""

Held = Callable[[Tier, float], tuple[Flat, Tensor | None]]
"""Kind of device, share of the model -> the network that it trains, and what is not pruned."""


@dataclass(frozen=True, eq=False)
class Burden:
    """The network and the samples that one client trains in a round.

    Attributes:
        flat: the network that samples go into: whole, a front, or a narrower one; always the same
            object for the same network, which is counted once.
        samples: how often a sample goes through it, forward and back.
        batch: samples in its largest step.
        kept: which positions of it are not pruned, nonzero where they are kept, [flat.size]; None
            if all are.
        shared: where steps go through several smaller networks in its place, each and how many of
            the samples go through it; memory is that of `flat`.
        end: where samples come back from the server, the network up to there, and the rest of it,
            which the client trains, too.
        front: what the server's part follows upon, where `flat` is another one in its place.
        served: how often a sample goes through the server's part; None for as often as here.
        forwards: how many samples go forward alone through `flat`, besides; not whole where a
            sample goes through a part of the network.
        bits: bits per magnitude of the gradients of `flat`, beside a sign; 32 for floats.
        remembered: values that it keeps of its samples from one step to the next, float32.
    """

    flat: Flat
    samples: int
    batch: int
    kept: Tensor | None = None
    shared: tuple[tuple[Flat, int], ...] = ()
    end: tuple[Flat, Flat] | None = None
    front: Flat | None = None
    served: int | None = None
    forwards: float = 0.0
    bits: int = EXACT
    remembered: int = 0


class Memory(NamedTuple):
    """MiB of a client's training, by part.

    Attributes:
        weights: of the network that it has, what is frozen included, and of masks.
        gradients: of what trains.
        optimizer: state of the optimizer.
        activations: what autograd keeps of a batch.
        samples: what a method keeps of the client's samples from one step to the next.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    samples: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)

    def __str__(self) -> str:
        parts = (f"{name} {value:.3g}" for name, value in self._asdict().items() if value)
        return f"{self.total:.3g} MiB ({', '.join(parts)})"


Burdens = Callable[[int, int], Burden]
"""What a client trains in a round, by round and client: see `methods.fedavg.Clients.burden`."""


class Meter:
    """Counts, each network once."""

    def __init__(self, settings: Settings, shape: tuple[int, ...], whole: Flat) -> None:
        self.settings, self.shape, self.whole = settings, shape, whole
        self.forwards: dict[Flat, Forward] = {}
        self.activations: dict[tuple[Flat, int], int] = {}

    def flops(self, burden: Burden) -> float:
        """Returns the FLOPs of a client's round: in training three forward passes per sample."""
        if burden.shared:
            return float(sum(n * self._forward(flat).training for flat, n in burden.shared))
        judged = burden.forwards * self._forward(burden.flat).all
        flops = sum(self._held(burden))
        if burden.end is not None:
            flops += self._forward(self.whole).training - self._forward(burden.end[0]).training
        return burden.samples * flops + judged

    def _held(self, burden: Burden) -> tuple[float, float]:
        """FLOPs of a sample through what a client keeps of its network, forward and back."""
        forward = self._forward(burden.flat)
        there, back = float(forward.all), float(forward.back)
        if burden.kept is not None:
            for (piece, own), own_back in zip(forward.layers, forward.backs, strict=True):
                kept = int(piece.of(burden.kept).count_nonzero()) / piece.shape.numel()
                there -= own * (1 - kept)
                back -= own_back * (1 - kept)
        return there, back

    def work(self, burden: Burden, faster: float) -> float:
        """FLOPs of a client's round, as many as its device could do in the same time with floats.

        Args:
            burden: what it trains.
            faster: how many times as fast the device is on the way back, where gradients have fewer
                bits than floats.
        """
        saved = 0.0
        if burden.bits != EXACT:
            back = burden.samples * self._held(burden)[1]
            saved = back * (1 - 1 / faster)
        return self.flops(burden) - saved

    def behind(self, burden: Burden) -> float:
        """FLOPs of training the rest of the network on what comes out of a client's front."""
        until = self.whole if burden.end is None else burden.end[0]
        front = self._forward(burden.front or burden.flat)
        samples = burden.samples if burden.served is None else burden.served
        return float(samples * (self._forward(until).training - front.training))

    def base(self, burden: Burden) -> int:
        """Bytes of what is frozen of the network that a client has, in float32.

        Frozen parts of adapters are drawn from the seed, and do not count.
        """
        flats = [burden.flat, *([] if burden.end is None else burden.end[1:])]
        return sum(4 * flat.base_size for flat in flats)

    def memory(self, burden: Burden) -> Memory:
        """What training takes at its peak."""
        size, x = burden.flat.size, self._batch(burden.batch)
        kept = size if burden.kept is None else int(burden.kept.count_nonzero())
        mask = 0.0 if burden.kept is None else size / 8
        gradient = 4.0 if burden.bits == EXACT else (burden.bits + 1) / 8
        activations, tail, frozen = self._activations(burden.flat, x), 0, burden.flat.frozen_size
        if burden.end is not None:
            until, end = burden.end
            activations += self._activations(end, x, until)
            tail, frozen = end.size, frozen + end.frozen_size
        # Momentum is one vector, Adam's means are two.
        settings = self.settings
        vectors = 2 if settings.optimizer == "adam" else int(settings.momentum > 0)
        return Memory(
            weights=(4 * (kept + tail + frozen) + mask) / MIB,
            gradients=(gradient * kept + 4 * tail) / MIB,
            optimizer=4 * vectors * (kept + tail) / MIB,
            activations=activations / MIB,
            samples=4 * burden.remembered / MIB,
        )

    def _activations(self, flat: Flat, x: Tensor, until: Flat | None = None) -> int:
        """Returns the bytes that autograd keeps of a batch, which may come from another network."""
        key = flat, len(x)
        if key not in self.activations:
            if until is not None:
                with torch.no_grad():
                    x = until.network(until.initial.clone(), until.local_stats.clone())(x)
            self.activations[key] = activations(flat, x)
        return self.activations[key]

    def _batch(self, samples: int) -> Tensor:
        return torch.zeros(samples, *self.shape)

    def _forward(self, flat: Flat) -> Forward:
        if flat not in self.forwards:
            self.forwards[flat] = forward(flat, self.shape)
        return self.forwards[flat]


def activations(flat: Flat, x: Tensor) -> int:
    """Bytes that autograd keeps of a batch [B, ...] on its way forward, that of the loss aside.

    Each piece of memory counts once, however many tensors lie in it; parameters do not count.
    """
    network = flat.network(flat.initial.clone(), flat.local_stats.clone()).train(True)
    tensors = (*network.parameters(), *network.buffers())
    ours = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in ours:
            kept[place] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        network(x)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def deadline(
    settings: Settings, population: Population, meter: Meter, burdens: Burdens
) -> Callable[[int, int], int]:
    """Returns how many steps of a client fit before the deadline of a round, by round and client.

    Every rank has to know that beforehand. So a step's FLOPs are those of the network that the
    client trains in its first round, without what training prunes later. The length of a message is
    predicted as that of this network's values, twice with control variates.

    Args:
        settings: of the run; they have a deadline.
        population: the clients and their devices.
        meter: counts.
        burdens: what clients train.
    """
    first = next(t for t in range(settings.rounds) if not population.is_agreement(t))
    flops, lengths = np.empty(settings.clients), np.empty(settings.clients)
    for client, size in enumerate(population.sizes.tolist()):
        burden = burdens(first, client)
        work = meter.flops(burden) / population.seen(first, client)
        flops[client] = work * min(settings.batch, size)
        lengths[client] = 4 * burden.flat.size * (1 if settings.control == "none" else 2)
    return lambda t, client: population.fleet.fitting(t, client, flops[client], lengths[client])


def fitted(population: Population, meter: Meter, held: Held) -> dict[str, float]:
    """Returns the largest share of the model that fits each kind of device that wants it.

    It fits if the training of each of its clients in the first round needs no more than the memory,
    and is over with its messages before the deadline. Messages are predicted as that many float32
    values; fading and slow computation are not predicted. If none fits, it is the smallest.

    Args:
        population: the clients and their devices.
        meter: counts.
        held: what a kind of device trains that holds some share.
    """
    fleet, settings = population.fleet, meter.settings
    first = next(t for t in range(settings.rounds) if not population.is_agreement(t))
    owners: dict[str, list[int]] = {}
    for client, tier in fleet.owners():
        owners.setdefault(tier.name, []).append(client)

    def fits(tier: Tier, share: float) -> bool:
        flat, kept = held(tier, share)
        length = 4 * (flat.size if kept is None else int(kept.count_nonzero()))
        for client in owners.get(tier.name, []):
            batch = min(settings.batch, int(population.sizes[client]))
            burden = Burden(flat, population.seen(first, client), batch, kept)
            if tier.memory is not None and meter.memory(burden).total > tier.memory:
                return False
            spent = fleet.seconds(tier, client, meter.flops(burden), length)
            if settings.devices.deadline is not None and spent > settings.devices.deadline:
                return False
        return True

    return {
        tier.name: next((share for share in SHARES if fits(tier, share)), SHARES[-1])
        for tier in fleet.tiers
        if tier.fit
    }


def unfit(fleet: Fleet, meter: Meter, burdens: Burdens, first: int) -> list[int]:
    """Clients whose devices cannot hold what they are to train, and that rest therefore.

    Args:
        fleet: the devices.
        meter: counts.
        burdens: what clients train.
        first: the first round.

    Raises:
        ConfigError: unless they may rest, with a sentence for each kind of device that is too small
            for some client.
    """
    needs = {}
    for client, tier in fleet.owners():
        if tier.memory is not None:
            need = meter.memory(burdens(first, client))
            if need.total > tier.memory:
                needs[client] = need
    if fleet.devices.unfit == "rest":
        return list(needs)
    order = sorted(needs, key=lambda client: needs[client].total)
    worst = {fleet.tier(client).name: client for client in order}
    converses = meter.settings.method.converses
    way = "an earlier cut" if converses else "a method that splits the model"
    if not (meter.settings.model.freezes or meter.settings.method.reshapes):
        way += ", training a part of the model (model.train)"
    problems = [
        f"devices.tiers: client {client} is a '{name}': wanted at most its memory, "
        f"{fleet.tier(client).memory:g} MiB; found {needs[client]} for training with batch "
        f"= {meter.settings.batch}; possible: more memory, a smaller batch or model, {way}, or "
        "devices.unfit = 'rest'"
        for name, client in worst.items()
    ]
    if problems:
        raise ConfigError(*problems)
    return []
