"""The channels of a network: which layer makes them, which layers read them, what belongs to each.

A channel is one of a layer's outputs: a channel of a convolution, a unit of a linear layer, a cell
of a recurrent layer, a head of an attention, a number of an embedding. There are two ways to speak
of channels, and the topology answers both.

 * Layer by layer (`Topology.layers`): each convolution, linear layer and attention has channels of
   its own. A norm directly behind a layer belongs to the layer's channels.
 * Space by space (`Topology.spaces`): layers whose outputs are added share one space, because a
   narrower network must keep the same channels of all of them. Norms anywhere belong to the
   channels that they read.

Which channel feeds which input is traced, and no name is looked at: every layer with weights marks
its outputs, and the marks pass through whatever lies between two such layers.
"""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedmpi.config import ConfigError
from fedmpi.networks.attention import PARTS, Heads
from fedmpi.networks.flat import PRUNABLE, Flat, Piece
from fedmpi.networks.layers import BatchNorm
from fedmpi.networks.recurrent import Recurrent

WHOLE = (Recurrent, Heads)
"""Layers made of linear layers that have no channels of their own."""
MAKERS = (*PRUNABLE, nn.Embedding, *WHOLE)
"""Layers that make channels."""
NORMS = (BatchNorm, nn.GroupNorm, nn.LayerNorm)
"""Norms that scale and shift each channel by numbers of its own."""
LAST = (nn.Linear, nn.Embedding, *WHOLE, nn.LayerNorm)
"""Layers whose channels are the last dimension; those of all others are the one behind samples."""

Space = tuple[int, int]
"""A group of layers whose outputs are added, and how many channels they have."""


@dataclass(frozen=True)
class Layer:
    """A convolution, a linear layer, or the heads of an attention.

    Attributes:
        name: of the module in its network.
        pieces: all that its channels own, each of shape [count, ...]; weights are the first.
        weights: the weight; of heads those of query, key and value.
        norm: the name of the norm directly behind it, if there is one.
        first: the number of its first channel among the channels of all layers.
    """

    name: str
    pieces: tuple[Piece, ...]
    weights: tuple[Piece, ...]
    norm: str | None
    first: int

    @property
    def count(self) -> int:
        """Its channels."""
        return self.weights[0].shape[0]

    @property
    def numbers(self) -> Tensor:
        """The numbers of its channels among the channels of all layers: int64 [count]."""
        return torch.arange(self.first, self.first + self.count)


class Reads(NamedTuple):
    """For each input of a layer the space that it comes from, and which channel of it it is.

    int64 [inputs] each. Group -1 is the network's own input.
    """

    group: Tensor
    width: Tensor
    channel: Tensor


class Inputs(NamedTuple):
    """The channels at the inputs of a layer, as the marks tell.

    Attributes:
        present: which layers' channels reach each input, bool [makers, inputs].
        channel: which channel that is, int64 [makers, inputs]; 0 where none does.
        is_mixed: whether some input is a mixture of several channels of one layer.
    """

    present: Tensor
    channel: Tensor
    is_mixed: bool


class Traced(NamedTuple):
    """The result of one pass of marks through the network.

    Attributes:
        inputs: by layer; those with weights, norms, and shortcuts that can be narrowed.
        shapes: of each maker's output for one sample, [1, ...].
        bridges: channels that come out of each shortcut that can be narrowed.
        ends: whose channels reach the network's outputs, bool [makers].
    """

    inputs: dict[str, Inputs]
    shapes: dict[str, tuple[int, ...]]
    bridges: dict[str, int]
    ends: Tensor


class Topology:
    """The channels of a network.

    Args:
        flat: the network.
        shape: of a sample.

    Attributes:
        modules: the network's modules by name, without those inside of `WHOLE` layers.
        widths: how many channels each maker has, by name, in the order of the vector.
        has_norms: whether there are norm layers.
    """

    def __init__(self, flat: Flat, shape: Sequence[int]) -> None:
        self.flat, self.shape = flat, tuple(shape)
        modules = list(flat.stages.named_modules())
        inner = [f"{name}." for name, module in modules if isinstance(module, WHOLE)]
        self.modules = {n: m for n, m in modules if not n.startswith(tuple(inner))}
        self.widths = {n: _width(m) for n, m in self.modules.items() if isinstance(m, MAKERS)}
        self.makers = list(self.widths)
        self.has_norms = any(isinstance(module, NORMS) for module in self.modules.values())

    # ---- layer by layer

    @cached_property
    def layers(self) -> list[Layer]:
        """Convolutions, linear layers and heads, in the order of the vector."""
        pieces = {piece.name: piece for piece in self.flat.parameters}
        found: list[Layer] = []
        behind, first = _norms_behind(self.modules), 0
        for name in self.makers:
            module = self.modules[name]
            if isinstance(module, Heads):
                both = [
                    [_by_head(pieces[f"{name}.{part}.{own}"], module) for part in PARTS]
                    for own in ("weight", "bias")
                ]
                weights, own = tuple(both[0]), tuple(both[0] + both[1])
            elif isinstance(module, PRUNABLE) and f"{name}.weight" in pieces:
                norm = behind.get(name)
                names = (f"{name}.weight", f"{name}.bias", f"{norm}.weight", f"{norm}.bias")
                weights, own = (pieces[names[0]],), tuple(pieces[n] for n in names if n in pieces)
            else:
                continue
            found.append(Layer(name, own, weights, behind.get(name), first))
            first += found[-1].count
        return found

    def layer_owners(self) -> Tensor:
        """The number of the layer's channel that owns each position: int64 [flat.size], -1: none.

        A channel owns its row of the layer's weight, its bias, and its scale and shift in a norm
        directly behind: where these are zero, it is. Other norms, statistics, embeddings and
        recurrent layers are nobody's.
        """
        numbers = {layer.name: layer.numbers for layer in self.layers}
        norms = {layer.norm: layer.numbers for layer in self.layers if layer.norm is not None}
        return self.owners(numbers | norms)

    def owners(self, numbers: Mapping[str, Tensor]) -> Tensor:
        """The channel that each position belongs to: int64 [flat.size], -1 for none.

        Args:
            numbers: the number of each channel of a maker or norm, by the module's name.
        """
        found = torch.full((self.flat.size,), -1)
        for name, own in numbers.items():
            for piece in self.flat.parameters:
                if piece.name.startswith(f"{name}."):
                    # Embeddings have channels in columns, recurrent layers in rows for each gate,
                    # and a head of an attention is several rows.
                    place, module = piece.of(found), self.modules[name]
                    rows = place.t() if isinstance(module, nn.Embedding) else place
                    count = len(rows) // len(own)
                    is_heads = isinstance(module, Heads)
                    each = own.repeat_interleave(count) if is_heads else own.repeat(count)
                    rows.copy_(each.view(-1, *(1,) * (rows.dim() - 1)).expand(rows.shape))
        return found

    # ---- who feeds whom

    @cached_property
    def traced(self) -> Traced:
        """Sends marks through a copy of the network.

        Each maker has three samples of a batch to itself. In the first its channels are 1, in the
        second their numbers, and in the third what `_hash` makes of the numbers. The second over
        the first remains the number through pooling, flattening, padding and addition, and the
        third tells whether it is one channel's and no mean of several.
        """
        network = copy.deepcopy(self.flat.stages).train(False)
        found = Traced({}, {}, {}, torch.empty(0))
        for name in self.modules:
            module = network.get_submodule(name)
            if isinstance(module, (*MAKERS, *NORMS)) or not list(module.children()):
                module.forward = self._marking(found, name, module, module.forward)
        with torch.no_grad():
            output = network(torch.zeros(3 * len(self.makers), *self.shape))
        return found._replace(ends=output[: len(self.makers)].flatten(1).amax(1) > 0)

    def _marking(
        self, found: Traced, name: str, module: nn.Module, forward: Any
    ) -> Callable[..., Tensor]:
        """Returns a function that replaces a layer's forward pass and writes into `found`."""

        def mark(x: Tensor, *others: Tensor) -> Tensor:
            if name in self.widths or isinstance(module, NORMS):
                if not isinstance(module, nn.Embedding):
                    found.inputs[name] = _inputs(x, _dimension(module), len(self.makers))
                if name not in self.widths:
                    return x
                output = forward(x[:1])
                found.shapes[name] = tuple(output.shape)
                return self._marks(name, output)
            if hasattr(module, "narrowed"):
                found.inputs[name] = _inputs(x, 1, len(self.makers))
                out = forward(x)
                found.bridges[name] = out.shape[1]
                return out
            # What keeps the shape keeps the channels: activations, for example.
            first = forward(x[:1], *(other[:1] for other in others))
            return x if first.shape == x[:1].shape else forward(x, *others)

        return mark

    def _marks(self, name: str, output: Tensor) -> Tensor:
        """The marks of a maker on outputs of the shape of `output` [1, ...]."""
        maker, dimension = self.makers.index(name), _dimension(self.modules[name])
        marks = output.new_zeros(3 * len(self.makers), *output.shape[1:]).movedim(dimension, -1)
        numbers = torch.arange(1.0, self.widths[name] + 1)
        numbers = numbers.repeat_interleave(marks.shape[-1] // len(numbers))
        for place, values in enumerate((torch.ones_like(numbers), numbers, _hash(numbers))):
            marks[maker + place * len(self.makers)] = values
        return marks.movedim(-1, dimension)

    def feeders(self, names: Collection[str]) -> dict[str, tuple[str, ...]]:
        """For each of the named makers those whose outputs reach it through no other of them."""
        sources: dict[str, tuple[str, ...]] = {}
        for name in self.traced.shapes:  # in the order of the pass, feeders first
            given = self.traced.inputs.get(name)
            found: list[str] = []
            for maker in [] if given is None else given.present.any(1).nonzero().flatten().tolist():
                other = self.makers[maker]
                found += [other] if other in names else sources[other]
            sources[name] = tuple(dict.fromkeys(found))
        return {name: sources[name] for name in self.makers if name in names}

    # ---- space by space

    @cached_property
    def groups(self) -> dict[str, int]:
        """Each maker's group: those whose channels are added somewhere have the same.

        Raises:
            ConfigError: if a layer reads a mixture of several channels of one layer.
        """
        groups = torch.arange(len(self.makers))
        for name, (present, _, is_mixed) in self.traced.inputs.items():
            if is_mixed:
                raise ConfigError(
                    f"the model's layer '{name}' has inputs that mix channels of a layer"
                )
            for maker in range(len(self.makers)):
                others = present[:, present[maker]].any(1)
                if others.any():
                    old = groups[others].unique()
                    groups[torch.isin(groups, old)] = int(old.min())
        return dict(zip(self.makers, groups.tolist(), strict=True))

    @cached_property
    def reads(self) -> dict[str, Reads]:
        """The channels that each layer reads; of several that are added, those of the widest."""
        groups, widths = (torch.tensor(list(of.values())) for of in (self.groups, self.widths))
        found = {}
        for name, (present, channels, _) in self.traced.inputs.items():
            widest = (present * widths[:, None]).argmax(0)
            known = present.any(0)
            makers = torch.where(known, widest, -1)
            channel = channels.gather(0, widest[None])[0] * known
            found[name] = Reads(torch.where(known, groups[makers], -1), widths[makers], channel)
        return found

    @cached_property
    def spaces(self) -> list[Space]:
        """All groups, with each number of channels that they have."""
        # A bridge may make channels of a number that nobody else in its group makes.
        bridges = self.traced.bridges.items()
        ours = [self.space(name) for name in self.makers]
        return list(dict.fromkeys([*ours, *((int(self.reads[n].group[0]), w) for n, w in bridges)]))

    def space(self, maker: str) -> Space:
        """The space of a maker's channels."""
        return self.groups[maker], self.widths[maker]

    @cached_property
    def whole(self) -> set[int]:
        """The groups whose channels are the network's outputs: none of them may be left out."""
        pairs = zip(self.makers, self.traced.ends.tolist(), strict=True)
        return {self.groups[name] for name, is_end in pairs if is_end}

    @cached_property
    def hidden(self) -> list[Space]:
        """The spaces whose channels may be left out."""
        return [space for space in self.spaces if space[0] >= 0 and space[0] not in self.whole]

    def hidden_owners(self) -> Tensor:
        """The hidden channel that makes each position, numbered as `hidden` has them: -1 for none.

        A channel owns the weights and the bias that make it, in each layer of its space, and its
        scale and shift in norms: int64 [flat.size].
        """
        first, count, numbers = {}, 0, {}
        for space in self.hidden:
            first[space], count = count, count + space[1]
        for name, module in self.modules.items():
            if name in self.widths:
                channels = [(self.space(name), own) for own in range(self.widths[name])]
            elif isinstance(module, NORMS):
                triples = zip(*(some.tolist() for some in self.reads[name]), strict=True)
                channels = [((group, width), own) for group, width, own in triples]
            else:
                continue
            known = [(first.get(space, -1), own) for space, own in channels]
            numbers[name] = torch.tensor([-1 if at < 0 else at + own for at, own in known])
        return self.owners(numbers)

    @cached_property
    def classes(self) -> Tensor:
        """The class whose output alone depends on each position: int64 [flat.size], -1 for none."""
        ends = [name for name in self.makers if self.groups[name] in self.whole]
        return self.owners(
            {n: torch.arange(self.widths[n]) for n in ends if isinstance(self.modules[n], PRUNABLE)}
        )

    def inside(self, positions: Tensor, held: Tensor) -> Tensor:
        """Which positions are of no class's output alone, or of that of a class in `held`: bool."""
        classes = self.classes.to(positions.device)[positions]
        return (classes < 0) | torch.isin(classes, held)


def _norms_behind(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """The layers directly behind which a norm of their channels stands, and its name."""
    found = {}
    for name, sequence in modules.items():
        prefix = f"{name}." if name else ""
        for (one, layer), (other, norm) in pairwise(sequence.named_children()):
            in_line = isinstance(sequence, nn.Sequential) and isinstance(layer, PRUNABLE)
            in_line = in_line and is_last(norm) <= is_last(layer)
            if in_line and isinstance(norm, NORMS):
                found[prefix + one] = prefix + other
    return found


def _by_head(piece: Piece, module: Heads) -> Piece:
    """A weight or a bias of an attention, [heads * size, ...], as [heads, size, ...]."""
    shape = torch.Size((module.heads, module.size, *piece.shape[1:]))
    return Piece(piece.name, piece.start, shape)


def _inputs(x: Tensor, dimension: int, makers: int) -> Inputs:
    """Reads from marks [3 * makers, ...] whose channels lie along the given dimension."""
    x = x.movedim(dimension, 1)
    ones, marks, hashes = x.reshape(3, makers, x.shape[1], -1)
    there = ones > 0
    each = torch.where(there, marks / ones, 0).round()
    numbers = each.amax(2)
    is_one = (each == numbers[..., None]) & ((hashes - ones * _hash(each)).abs() < 1e-3)
    is_mixed = not bool((is_one | ~there).all())
    return Inputs(there.any(2), numbers.long().clamp(min=1) - 1, is_mixed)


def _width(module: nn.Module) -> int:
    """Channels that a layer makes."""
    if isinstance(module, Recurrent):
        return module.hidden
    if isinstance(module, Heads):
        return module.heads
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    assert isinstance(module.weight, Tensor)
    return len(module.weight)


def _hash(numbers: Tensor) -> Tensor:
    """Between 1 and 2: whole numbers times the golden ratio, without what is before the point."""
    return 1 + (numbers * 0.6180339887).frac()


def is_last(module: nn.Module) -> bool:
    """Whether a layer has its channels along the last dimension."""
    return isinstance(module, LAST)


def _dimension(module: nn.Module) -> int:
    return -1 if is_last(module) else 1
