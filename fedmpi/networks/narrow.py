"""Narrower networks: some channels of each hidden layer of a network, really smaller and faster.

A sub-model has some of the outputs of every hidden layer, and of the next one what belongs to these
inputs: channels of convolutions, units of linear layers (all pixels of a channel behind a
flattening), cells of recurrent layers with all of their gates, whole heads of an attention, numbers
of an embedding, and likewise scales, shifts and statistics of norms. The network's own inputs and
its classes all stay. A LayerNorm normalises over the channels that are left, as in the code of E.
Diao, J. Ding, V. Tarokh, *HeteroFL*, ICLR 2021.

Which channel feeds which input is the topology's to say. Where outputs are added, layers keep the
same channels.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedmpi.config import ConfigError
from fedmpi.messages.counts import keep_ceil
from fedmpi.networks.attention import PARTS, Heads
from fedmpi.networks.flat import Flat, Piece
from fedmpi.networks.recurrent import GATES, Recurrent
from fedmpi.networks.topology import MAKERS, NORMS, Reads, Space, Topology

Choose = Callable[[int], Tensor]
"""Of so many channels those that stay, ascending: int64. Asked once for layers that are added."""


def prefix(rate: float) -> Choose:
    """The first ceil(rate * width) channels."""
    return lambda width: torch.arange(keep_ceil(width, rate))


def window(rate: float, start: int) -> Choose:
    """As many from `start` on, and behind the last one from the first on again."""

    def choose(width: int) -> Tensor:
        return ((torch.arange(keep_ceil(width, rate)) + start) % width).sort().values

    return choose


def drawn(rate: float, random: np.random.Generator) -> Choose:
    """As many at random."""

    def choose(width: int) -> Tensor:
        some = random.permutation(width)[: keep_ceil(width, rate)]
        return torch.from_numpy(some).sort().values

    return choose


class Scale(nn.Module):
    """Multiplies in training, so that fewer channels say as much as all: HeteroFL's Scaler."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x * self.factor if self.training else x


@dataclass(frozen=True, eq=False)
class Narrow:
    """A sub-model.

    Attributes:
        flat: its network; the same object for sub-models that differ in `positions` alone.
        positions: where its values lie in the whole model, ascending: int64 [flat.size].
        local_stats: where its local statistics lie in the whole network's: int64 [len(flat.aside)].
    """

    flat: Flat
    positions: Tensor
    local_stats: Tensor


class SubModels:
    """The narrower networks inside a network.

    Attributes:
        flat: the network.
        topology: its channels.

    Raises:
        ConfigError: if a layer is of a kind that cannot become narrower.
    """

    def __init__(self, flat: Flat, shape: Sequence[int]) -> None:
        self.flat, self.topology = flat, Topology(flat, shape)
        _check(self.topology.modules)
        self.flats: dict[Any, Flat] = {}
        # Whatever is wrong with the network's channels comes up at once.
        self.hidden = self.topology.hidden

    def narrow(self, choose: Choose, factor: float = 1.0) -> Narrow:
        """A sub-model.

        Args:
            choose: which channels stay.
            factor: what hidden layers' outputs are multiplied by in training.
        """
        return self.having({space: choose(space[1]) for space in self.hidden}, factor)

    def having(self, chosen: Mapping[Space, Tensor], factor: float = 1.0) -> Narrow:
        """The sub-model with such of the hidden channels, ascending: int64."""
        topology = self.topology
        kept = {space: chosen.get(space, torch.arange(space[1])) for space in topology.spaces}
        inputs = {name: _kept(reads, kept) for name, reads in topology.reads.items()}
        bridged = {
            name: (inputs[name], kept[int(topology.reads[name].group[0]), width])
            for name, width in topology.traced.bridges.items()
        }
        cuts = dict(self._cuts(kept, inputs))
        flat, whole = self.flat, all(len(c) == width for (_, width), c in kept.items())
        if not whole or factor != 1:
            lengths = tuple(len(stays) for stays in kept.values())
            maps = tuple(tuple(map(tuple, both)) for both in _lists(bridged))
            key = lengths, factor, maps
            if key not in self.flats:
                self.flats[key] = self._built(cuts, bridged, factor)
                while len(self.flats) > KNOWN:
                    self.flats.pop(next(iter(self.flats)))
            flat = self.flats[key]
        ours, theirs = self.flat.parameters, self.flat.statistics
        if not self.flat.is_local:
            ours, theirs = ours + theirs, []
        return Narrow(flat, _positions(ours, cuts), _positions(theirs, cuts))

    def _cuts(
        self, kept: dict[Space, Tensor], inputs: dict[str, Tensor]
    ) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
        """Returns the positions that stay along the first dimensions of each tensor."""
        for name, module in self.topology.modules.items():
            prefix = f"{name}." if name else ""
            if isinstance(module, NORMS):
                for own in ("weight", "bias", "running_mean", "running_var"):
                    yield prefix + own, (inputs[name],)
            if name not in self.topology.widths:
                continue
            outputs = kept[self.topology.space(name)]
            if isinstance(module, nn.Embedding):
                yield f"{prefix}weight", (torch.arange(module.num_embeddings), outputs)
            elif isinstance(module, Recurrent):
                gates = torch.arange(GATES[module.cell])[:, None] * module.hidden
                rows = (gates + outputs).flatten()
                for own, columns in (("input", inputs[name]), ("recurrent", outputs)):
                    yield f"{prefix}{own}.weight", (rows, columns)
                    yield f"{prefix}{own}.bias", (rows,)
            elif isinstance(module, Heads):
                places = torch.arange(module.heads * module.size).view(module.heads, module.size)
                rows = places[outputs].flatten()
                for own in PARTS:
                    yield f"{prefix}{own}.weight", (rows, inputs[name])
                    yield f"{prefix}{own}.bias", (rows,)
            else:
                yield f"{prefix}weight", (outputs, inputs[name])
                yield f"{prefix}bias", (outputs,)

    def _built(
        self,
        cuts: dict[str, tuple[Tensor, ...]],
        bridged: dict[str, tuple[Tensor, Tensor]],
        factor: float,
    ) -> Flat:
        """The smaller network."""
        network = copy.deepcopy(self.flat.stages)
        for piece in self.flat.parameters + self.flat.statistics:
            place, _, own = piece.name.rpartition(".")
            module = network.get_submodule(place)
            tensor = _cut(getattr(module, own).detach(), cuts[piece.name]).clone()
            setattr(module, own, nn.Parameter(tensor) if piece in self.flat.parameters else tensor)
        for name in self.topology.modules:
            module = network.get_submodule(name)
            if isinstance(module, nn.GroupNorm):
                # As many channels to a group as before, so that a group sees what it saw.
                size, channels = module.num_channels // module.num_groups, len(module.weight)
                size = int(np.gcd(size, channels))
                module.num_groups, module.num_channels = channels // size, channels
            if isinstance(module, Recurrent):
                module.hidden = module.recurrent.weight.shape[1]
            if isinstance(module, Heads):
                module.heads = len(module.query.weight) // module.size
            if isinstance(module, nn.LayerNorm):
                module.normalized_shape = (len(cuts[f"{name}.weight"][0]),)
        for name, (inputs, outputs) in bridged.items():
            _replace(network, name, self.topology.modules[name].narrowed(inputs, outputs))
        for name, (group, _) in ((n, self.topology.space(n)) for n in self.topology.makers):
            if factor == 1 or group in self.topology.whole:
                continue
            scaled = nn.Sequential(network.get_submodule(name), Scale(factor))
            _replace(network, name, scaled)
        return Flat(network, self.flat.is_local)


KNOWN = 32
"""Networks that are kept for the next time."""


def _check(modules: Mapping[str, nn.Module]) -> None:
    for name, module in modules.items():
        is_bare = not list(module.named_parameters(recurse=False))
        grouped = getattr(module, "groups", 1) != 1
        over_many = len(getattr(module, "normalized_shape", (1,))) != 1
        if (is_bare or isinstance(module, (*MAKERS, *NORMS))) and not (grouped or over_many):
            continue
        raise ConfigError(
            f"the model's layer '{name}' is a {type(module).__name__}, of which nobody knows "
            "how it becomes narrower; possible are convolutions without groups, linear and "
            "recurrent layers, heads of attention, embeddings, batch and group norms, and "
            "LayerNorm over one dimension"
        )


def _kept(reads: Reads, kept: dict[Space, Tensor]) -> Tensor:
    """Which of a layer's inputs stay, ascending."""
    stays = reads.group < 0
    for (group, width), channels in kept.items():
        theirs = (reads.group == group) & (reads.width == width)
        stays |= theirs & torch.isin(reads.channel, channels)
    return stays.nonzero().squeeze(1)


def _cut(tensor: Tensor, cut: tuple[Tensor, ...]) -> Tensor:
    for dimension, stays in enumerate(cut):
        tensor = tensor.index_select(dimension, stays)
    return tensor


def _positions(pieces: Sequence[Piece], cuts: dict[str, tuple[Tensor, ...]]) -> Tensor:
    """Where what stays of the pieces lies in their vector, ascending."""
    found = [
        _cut(torch.arange(piece.start, piece.stop).view(piece.shape), cuts[piece.name]).flatten()
        for piece in sorted(pieces, key=lambda piece: piece.start)
    ]
    return torch.cat([torch.empty(0, dtype=torch.int64), *found])


def _lists(bridged: dict[str, tuple[Tensor, Tensor]]) -> Iterator[list[list[int]]]:
    yield from ([inputs.tolist(), outputs.tolist()] for inputs, outputs in bridged.values())


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, module)
