"""Initial weights from a file, in place of those that are drawn.

A file has the names of the network, as `fedmpi export model` writes them and a result keeps them,
or those of a published layout that the model's module knows (`PUBLISHED`). Whole numbers in it,
such as counters, are no weights. Everything else must fit.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedmpi import weights
from fedmpi.config import ConfigError
from fedmpi.weights import Tensors

SAID = 20
"""Tensors of which a refusal speaks; of more it says how many."""


class Source(NamedTuple):
    """Where a layout has a tensor of the network: a tensor, or one of several equal parts of it.

    Attributes:
        name: of the tensor there.
        part: number of the part, along the first dimension.
        parts: how many there are.
    """

    name: str
    part: int = 0
    parts: int = 1

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """The shape of the tensor there, for that of the network."""
        if self.parts == 1:
            return tuple(tensor.shape)
        return (self.parts * tensor.shape[0], *tensor.shape[1:])


class Given(NamedTuple):
    """A tensor of a file: its name there, and its values in float32."""

    name: str
    values: np.ndarray


@dataclass(frozen=True)
class Layout:
    """Names of a published layout, which models are read from.

    Attributes:
        named: the name there of a tensor of the network.
        roots: what may stand in front of all names of an encoder that is a part of another model.
        renamed: other words for the last part of a name, and the layout's.
        fused: modules that lie one below the other in one of the layout's, by the name of that.
        others: beginnings of names of what belongs to other tasks, and is left out where the
            network has no such tensor.
        strange: names of what makes another network of it, and what that is.
    """

    named: Callable[[str], str]
    roots: Sequence[str] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, Sequence[str]] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    strange: Mapping[str, str] = field(default_factory=dict)

    def source(self, name: str) -> Source:
        """Where the layout has a tensor of the network."""
        theirs = self.named(name)
        module, _, own = theirs.rpartition(".")
        parent, _, last = module.rpartition(".")
        for whole, parts in self.fused.items():
            if last in parts:
                return Source(f"{parent}.{whole}.{own}", parts.index(last), len(parts))
        return Source(theirs)

    def plain(self, given: Tensors) -> dict[str, Given]:
        """The tensors of a file by the layout's own names."""
        found = {}
        for name, values in given.items():
            root = next((one for one in self.roots if name.startswith(one)), "")
            module, dot, own = name.removeprefix(root).rpartition(".")
            found[f"{module}{dot}{self.renamed.get(own, own)}"] = Given(name, values)
        return found

    def kind(self, names: Iterable[str]) -> str:
        """What makes another network of a file with such names; "" if nothing does."""
        known = (what for name in names for one, what in self.strange.items() if name == one)
        return next(known, "")


OWN = Layout(lambda name: name)
"""The network's own names."""


def by_table(table: Mapping[str, str]) -> Callable[[str], str]:
    """Returns `Layout.named` by a table of modules and tensors.

    In it, `*` is the number of a block: from 1 in our names, and from 0 in the layout's. What the
    table does not know keeps its name.
    """

    def named(name: str) -> str:
        block = re.match(r"block(\d+)\.", name)
        number = str(int(block[1]) - 1) if block else ""
        known = f"block*.{name[block.end() :]}" if block else name
        module, _, own = known.rpartition(".")
        if known in table:
            return table[known].replace("*", number)
        return f"{table[module]}.{own}".replace("*", number) if module in table else name

    return named


def load(
    network: nn.Sequential, path: str, fresh: Sequence[str], published: Sequence[Layout] = ()
) -> None:
    """Gives a network the weights of a file, in place.

    Leading dimensions of 1 are no difference of shapes.

    Args:
        network: with the weights that were drawn.
        path: the file.
        fresh: names of stages, modules and tensors that keep these weights.
        published: the model's published layouts; the one is taken that knows most of the file's
            tensors.

    Raises:
        BadInput: if the file cannot be read.
        ConfigError: with a sentence for each tensor that is missing, has another shape, or is not
            the network's.
    """
    found = weights.read("model.initial", Path(path))
    own, kept = dict(tensors(network)), set[str]()
    problems = []
    for one in fresh:
        some = {name for name in own if name == one or name.startswith(f"{one}.")}
        if not some:
            stages = ", ".join(name for name, _ in network.named_children())
            problems.append(
                f"model.fresh: the model has no weights of the name '{one}'; possible are a "
                f"module, a tensor, or a stage: {stages}"
            )
        kept |= some
    what = f"model.initial = {path}"

    def hits(layout: Layout) -> int:
        return len({layout.source(name).name for name in own} & layout.plain(found).keys())

    layout = max((OWN, *published), key=hits)
    given, sources = layout.plain(found), {name: layout.source(name) for name in own}
    if kind := layout.kind(given):
        raise ConfigError(f"{what}: wanted a model without {kind}, found one with it")
    for name, tensor in own.items():
        if name in kept:
            continue
        other, wanted = sources[name].name, sources[name].shape(tensor)
        if other not in given:
            problems.append(f"{what}: it has no tensor '{other}', wanted {_shape(wanted)}")
        elif _size(shape := given[other].values.shape) != _size(wanted):
            problems.append(
                f"{what}: '{given[other].name}' is {_shape(shape)}, wanted {_shape(wanted)}"
            )
    known = {source.name for source in sources.values()}
    problems += [
        f"{what}: '{one.name}' is no tensor of the model"
        for other, one in given.items()
        if other not in known and not other.startswith(layout.others)
    ]
    problems = list(dict.fromkeys(problems))
    if problems:
        left = len(problems) - SAID
        more = [f"{what}: so are {left} more"] if left > 0 else []
        helps = "; possible is a file of this model, or model.fresh for what is missing or differs"
        problems = problems[:SAID] + more
        raise ConfigError(*problems[:-1], problems[-1] + helps)
    for name, tensor in own.items():
        if name not in kept:
            source = sources[name]
            values = torch.from_numpy(given[source.name].values).reshape(source.shape(tensor))
            tensor.data = values.chunk(source.parts)[source.part] if source.parts > 1 else values


def tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights of a network by name: its parameters, and its running statistics."""
    yield from network.named_parameters()
    saved = network.state_dict().keys()
    for name, buffer in network.named_buffers():
        if name in saved and buffer.is_floating_point():
            yield name, buffer


def _size(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without leading dimensions of 1."""
    ones = next((place for place, size in enumerate(shape) if size != 1), len(shape))
    return tuple(shape[ones:])


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"
