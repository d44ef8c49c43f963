"""Narrower networks: some channels of each hidden layer of a network, really smaller and faster.

A sub-model has some of the outputs of every hidden layer, and of the next one what belongs to these
inputs: channels of convolutions, units of linear layers (all pixels of a channel behind a
flattening), cells of recurrent layers with all of their gates, numbers of an embedding, and
likewise scales, shifts and statistics of norms. The network's own inputs and its classes all stay.

Which channel feeds which input is traced and no name is looked at: every layer with weights marks
its outputs, and the marks go through whatever lies between. Where outputs are added they are chosen
alike.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedmpi.config import ConfigError
from fedmpi.networks.flat import PRUNABLE, Flat, Piece
from fedmpi.networks.layers import BatchNorm
from fedmpi.networks.recurrent import GATES, Recurrent

MAKERS = (*PRUNABLE, nn.Embedding, Recurrent)
"""Layers that make channels."""
NORMS = (BatchNorm, nn.GroupNorm)
LAST = (nn.Linear, nn.Embedding, Recurrent)
"""Layers whose channels are the last dimension; those of all others are the one behind samples."""

Space = tuple[int, int]
"""A group of layers whose channels are chosen alike, and how many channels they have."""

Choose = Callable[[int], Tensor]
"""Of so many channels those that stay, ascending: int64. Asked once for layers that are added."""


def count(rate: float, width: int) -> int:
    """How many of `width` channels a share of them is: rounded up, at least one."""
    return max(1, ceil(round(rate * width, 6)))


def prefix(rate: float) -> Choose:
    """The first ceil(rate * width) channels."""
    return lambda width: torch.arange(count(rate, width))


def window(rate: float, start: int) -> Choose:
    """As many from `start` on, and behind the last one from the first on again."""

    def choose(width: int) -> Tensor:
        return ((torch.arange(count(rate, width)) + start) % width).sort().values

    return choose


def drawn(rate: float, random: np.random.Generator) -> Choose:
    """As many at random."""

    def choose(width: int) -> Tensor:
        some = random.permutation(width)[: count(rate, width)]
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


class Reads(NamedTuple):
    """For each input of a layer the group and number of channels of who makes it, and which it is.

    int64 [inputs] each; group -1 is the network's own input.
    """

    group: Tensor
    width: Tensor
    channel: Tensor


class Channels:
    """The channels of a network.

    Attributes:
        flat: the network.
        hidden: whose channels may be left out: numbers of a group of layers that are chosen alike,
            and how many channels it has.
        classes: for each position of the model the class whose output alone depends on it, int64
            [flat.size]; -1 if there is no such.
        has_norms: whether there are norm layers.

    Raises:
        ConfigError: if a layer is of a kind that cannot become narrower.
    """

    def __init__(self, flat: Flat, shape: Sequence[int]) -> None:
        self.flat = flat
        modules = list(flat.stages.named_modules())
        inner = [f"{name}." for name, module in modules if isinstance(module, Recurrent)]
        self.modules = {n: m for n, m in modules if not n.startswith(tuple(inner))}
        self.makers = [name for name, m in self.modules.items() if isinstance(m, MAKERS)]
        self._check()
        self.widths = torch.tensor([_width(self.modules[name]) for name in self.makers])
        self.groups = torch.arange(len(self.makers))
        self.found: dict[str, tuple[Tensor, Tensor]] = {}
        self.bridges: dict[str, int] = {}
        ends = self._trace(shape)
        self.whole = set(self.groups[ends].tolist())
        self.reads = {name: self._reads(*found) for name, found in self.found.items()}
        makers = zip(self.groups.tolist(), self.widths.tolist(), strict=True)
        # A bridge may make channels of a number that nobody else in its group makes.
        bridges = [(int(self.reads[n].group[0]), width) for n, width in self.bridges.items()]
        self.spaces: list[Space] = list(dict.fromkeys([*makers, *bridges]))
        self.hidden = [s for s in self.spaces if s[0] >= 0 and s[0] not in self.whole]
        self.classes = self._classes()
        self.has_norms = any(isinstance(module, NORMS) for module in self.modules.values())
        self.flats: dict[Any, Flat] = {}

    def _check(self) -> None:
        for name, module in self.modules.items():
            is_bare = not list(module.named_parameters(recurse=False))
            grouped = getattr(module, "groups", 1) != 1
            if (is_bare or isinstance(module, (*MAKERS, *NORMS))) and not grouped:
                continue
            raise ConfigError(
                f"the model's layer '{name}' is a {type(module).__name__}, of which nobody knows "
                "how it becomes narrower; possible are convolutions without groups, linear and "
                "recurrent layers, embeddings, and batch and group norms"
            )

    # ---- tracing

    def _trace(self, shape: Sequence[int]) -> Tensor:
        """Sends marks through a copy of the network; which layers made its outputs: bool [makers].

        Each maker has three samples in a batch to itself: of the first its channels are 1, of the
        second their numbers, and of the third what `_hash` makes of them. Through pooling,
        flattening, padding and addition the second over the first remains the number, and the
        third tells whether it is one channel's, and no mean of several.
        """
        network = copy.deepcopy(self.flat.stages).train(False)
        for name in self.modules:
            module = network.get_submodule(name)
            if isinstance(module, (*MAKERS, *NORMS)) or not list(module.children()):
                module.forward = self._marking(name, module, module.forward)
        with torch.no_grad():
            output = network(torch.zeros(3 * len(self.makers), *shape))
        return output[: len(self.makers)].flatten(1).amax(1) > 0

    def _marking(self, name: str, module: nn.Module, forward: Any) -> Callable[[Tensor], Tensor]:
        """What stands in for a layer's way forward."""

        def mark(x: Tensor) -> Tensor:
            if name in self.makers or isinstance(module, NORMS):
                if not isinstance(module, nn.Embedding):
                    self.found[name] = self._sources(name, x, _dimension(module))
                return self._marks(name, forward(x[:1])) if name in self.makers else x
            if hasattr(module, "narrowed"):
                self.found[name] = self._sources(name, x, 1)
                out = forward(x)
                self.bridges[name] = out.shape[1]
                return out
            # What keeps the shape keeps the channels: activations, for example.
            return x if forward(x[:1]).shape == x[:1].shape else forward(x)

        return mark

    def _marks(self, name: str, output: Tensor) -> Tensor:
        """The marks of a maker on outputs of the shape of `output` [1, ...]."""
        maker, dimension = self.makers.index(name), _dimension(self.modules[name])
        marks = output.new_zeros(3 * len(self.makers), *output.shape[1:]).movedim(dimension, -1)
        numbers = torch.arange(1.0, marks.shape[-1] + 1)
        for place, values in enumerate((torch.ones_like(numbers), numbers, _hash(numbers))):
            marks[maker + place * len(self.makers)] = values
        return marks.movedim(-1, dimension)

    def _sources(self, name: str, x: Tensor, dimension: int) -> tuple[Tensor, Tensor]:
        """For each channel of marks x who made it (-1: nobody), and which of theirs it is.

        Where several are added that is the one with most channels; they are a group from now on.
        """
        x = x.movedim(dimension, 1)
        ones, marks, hashes = x.reshape(*x.shape[:2], -1).amax(2).chunk(3)
        present = ones > 0
        numbers = torch.where(present, marks / ones, 1).round()
        if not torch.allclose(hashes, ones * _hash(numbers), atol=1e-3):
            raise ConfigError(f"the model's layer '{name}' has inputs that mix channels of a layer")
        for maker in range(len(self.makers)):
            others = present[:, present[maker]].any(1)
            if others.any():
                old = self.groups[others].unique()
                self.groups[torch.isin(self.groups, old)] = int(old.min())
        widest = (present * self.widths[:, None]).argmax(0)
        channel = numbers.gather(0, widest[None])[0].long() - 1
        return torch.where(present.any(0), widest, -1), channel

    def _group(self, maker: str) -> int:
        return int(self.groups[self.makers.index(maker)])

    def _reads(self, makers: Tensor, channel: Tensor) -> Reads:
        known = makers >= 0
        return Reads(
            torch.where(known, self.groups[makers], -1), self.widths[makers], channel * known
        )

    # ---- sub-models

    def inside(self, positions: Tensor, held: Tensor) -> Tensor:
        """Which positions are of no class's output alone, or of that of a class in `held`: bool."""
        classes = self.classes.to(positions.device)[positions]
        return (classes < 0) | torch.isin(classes, held)

    def narrow(self, choose: Choose, factor: float = 1.0) -> Narrow:
        """A sub-model.

        Args:
            choose: which channels stay.
            factor: what hidden layers' outputs are multiplied by in training.
        """
        return self.having({space: choose(space[1]) for space in self.hidden}, factor)

    def having(self, chosen: Mapping[Space, Tensor], factor: float = 1.0) -> Narrow:
        """The sub-model with such of the hidden channels, ascending: int64."""
        kept = {space: chosen.get(space, torch.arange(space[1])) for space in self.spaces}
        inputs = {name: _kept(reads, kept) for name, reads in self.reads.items()}
        bridged = {
            name: (inputs[name], kept[int(self.reads[name].group[0]), width])
            for name, width in self.bridges.items()
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

    def owners(self) -> Tensor:
        """Which hidden channel makes each position, numbered as `hidden` has them: -1 for none.

        What a channel owns are the weights and the bias that make it, and its scale and shift in
        norms: int64 [flat.size].
        """
        found, first, count = torch.full((self.flat.size,), -1), {}, 0
        for space in self.hidden:
            first[space], count = count, count + space[1]
        for name, module in self.modules.items():
            if name in self.makers:
                width = _width(module)
                channels = [(self._group(name), width, channel) for channel in range(width)]
            elif isinstance(module, NORMS):
                channels = list(zip(*(some.tolist() for some in self.reads[name]), strict=True))
            else:
                continue
            known = [(first.get((g, width), -1), channel) for g, width, channel in channels]
            numbers = torch.tensor([-1 if start < 0 else start + own for start, own in known])
            for piece in self.flat.parameters:
                if piece.name.startswith(f"{name}."):
                    # Embeddings have channels in columns, recurrent layers in rows for each gate.
                    place = piece.of(found)
                    rows = place.t() if isinstance(module, nn.Embedding) else place
                    each = numbers.repeat(len(rows) // len(numbers))
                    rows.copy_(each.view(-1, *(1,) * (rows.dim() - 1)).expand(rows.shape))
        return found

    def _cuts(
        self, kept: dict[tuple[int, int], Tensor], inputs: dict[str, Tensor]
    ) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
        """Of each tensor what stays along its first dimensions."""
        for name, module in self.modules.items():
            prefix = f"{name}." if name else ""
            if isinstance(module, NORMS):
                for own in ("weight", "bias", "running_mean", "running_var"):
                    yield prefix + own, (inputs[name],)
            if name not in self.makers:
                continue
            width = _width(module)
            outputs = kept[self._group(name), width]
            if isinstance(module, nn.Embedding):
                yield f"{prefix}weight", (torch.arange(module.num_embeddings), outputs)
            elif isinstance(module, Recurrent):
                gates = torch.arange(GATES[module.cell])[:, None] * width
                rows = (gates + outputs).flatten()
                for own, columns in (("input", inputs[name]), ("recurrent", outputs)):
                    yield f"{prefix}{own}.weight", (rows, columns)
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
        for name in self.modules:
            module = network.get_submodule(name)
            if isinstance(module, nn.GroupNorm):
                # As many channels to a group as before, so that a group sees what it saw.
                size, channels = module.num_channels // module.num_groups, len(module.weight)
                size = int(np.gcd(size, channels))
                module.num_groups, module.num_channels = channels // size, channels
            if isinstance(module, Recurrent):
                module.hidden = module.recurrent.weight.shape[1]
        for name, (inputs, outputs) in bridged.items():
            _replace(network, name, self.modules[name].narrowed(inputs, outputs))
        hidden = [
            n for n, g in zip(self.makers, self.groups, strict=True) if int(g) not in self.whole
        ]
        for name in hidden if factor != 1 else []:
            scaled = nn.Sequential(network.get_submodule(name), Scale(factor))
            _replace(network, name, scaled)
        return Flat(network, self.flat.is_local)

    def _classes(self) -> Tensor:
        found = torch.full((self.flat.size,), -1)
        ends = {
            n for n, group in zip(self.makers, self.groups, strict=True) if int(group) in self.whole
        }
        for piece in self.flat.parameters:
            if piece.name.rpartition(".")[0] in ends:
                rows = torch.arange(piece.shape[0]).view(-1, *(1,) * (len(piece.shape) - 1))
                piece.of(found).copy_(rows.expand(piece.shape))
        return found


KNOWN = 32
"""Networks that are kept for the next time."""


def _width(module: nn.Module) -> int:
    """Channels that a layer makes."""
    if isinstance(module, Recurrent):
        return module.hidden
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    assert isinstance(module.weight, Tensor)
    return len(module.weight)


def _hash(numbers: Tensor) -> Tensor:
    """Between 1 and 2: whole numbers times the golden ratio, without what is before the point."""
    return 1 + (numbers * 0.6180339887).frac()


def _dimension(module: nn.Module) -> int:
    return -1 if isinstance(module, LAST) else 1


def _kept(reads: Reads, kept: dict[tuple[int, int], Tensor]) -> Tensor:
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
