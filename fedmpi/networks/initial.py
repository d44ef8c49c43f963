"""Initial weights from a file, in place of those that are drawn.

A file has the names of the network, as `fedmpi export model` writes them, or those of a published
layout that the model's module knows (`published`). Whole numbers in it, such as counters, are no
weights. Everything else must fit.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fedmpi import weights
from fedmpi.config import ConfigError

Published = Callable[[str], str]
"""The name that a tensor of the network has in a published layout."""
SAID = 20
"""Tensors of which a refusal speaks; of more it says how many."""


def load(
    network: nn.Sequential, path: str, fresh: Sequence[str], published: Published | None = None
) -> None:
    """Gives a network the weights of a file, in place.

    Args:
        network: with the weights that were drawn.
        path: the file.
        fresh: names of stages, modules and tensors that keep these weights.
        published: the model's published layout, if there is one.

    Raises:
        BadInput: if the file cannot be read.
        ConfigError: with a sentence for each tensor that is missing, has another shape, or is not
            the network's.
    """
    given = weights.read("model.initial", Path(path))
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
    theirs = {name: name for name in own}
    if published is not None and not set(own) & set(given):
        theirs = {name: published(name) for name in own}
    what = f"model.initial = {path}"
    for name, tensor in own.items():
        if name in kept:
            continue
        other = theirs[name]
        if other not in given:
            problems.append(f"{what}: it has no tensor '{other}', wanted {_shape(tensor)}")
        elif given[other].shape != tuple(tensor.shape):
            found = _shape(torch.from_numpy(given[other]))
            problems.append(f"{what}: '{other}' is {found}, wanted {_shape(tensor)}")
    known = set(theirs.values())
    problems += [
        f"{what}: '{other}' is no tensor of the model" for other in given if other not in known
    ]
    if problems:
        left = len(problems) - SAID
        more = [f"{what}: so are {left} more"] if left > 0 else []
        helps = "; possible is a file of this model, or model.fresh for what is missing or differs"
        problems = problems[:SAID] + more
        raise ConfigError(*problems[:-1], problems[-1] + helps)
    for name, tensor in own.items():
        if name not in kept:
            tensor.data = torch.from_numpy(given[theirs[name]])


def tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights of a network by name: its parameters, and its running statistics."""
    yield from network.named_parameters()
    saved = network.state_dict().keys()
    for name, buffer in network.named_buffers():
        if name in saved and buffer.is_floating_point():
            yield name, buffer


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"
