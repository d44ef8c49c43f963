"""A network as one vector: its parameters and its running statistics, in the order of its modules.

A model is a sequence of named stages, and the vector holds them in that order; the front of a split
network is therefore a prefix of the vector, and its back is the rest.

What is frozen (see `parts`) is in no vector: it lies beside them, once for all copies.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fedmpi.config import ConfigError
from fedmpi.networks import adapters, layers

PRUNABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers whose weights may be zero for good; all others stay dense."""


@dataclass(frozen=True)
class Piece:
    """Where a tensor of the network lies in a vector."""

    name: str
    start: int
    shape: torch.Size

    @property
    def stop(self) -> int:
        """Where the next piece starts."""
        return self.start + prod(self.shape)

    def of(self, vector: Tensor) -> Tensor:
        """The tensor [..., *shape] in `vector` [..., n], a view."""
        return vector[..., self.start : self.stop].view(*vector.shape[:-1], *self.shape)


class Flat:
    """The shape of a network: how it lies in one vector of length `size`.

    Running statistics, that is float buffers that a state dict has too, are in the vector like
    parameters, but no gradient moves them. If they are local they are in a vector of their own,
    `local_stats`, which never travels. Integers, and buffers that are not saved, are in neither.
    Nor is what is frozen: parameters that require no gradient, and the statistics of frozen norms.

    Attributes:
        stages: the network; its own tensors are the initial ones.
        is_local: whether statistics are set aside.
        parameters: pieces of the parameters.
        statistics: pieces of the statistics, in the vector or aside.
        frozen: parameters and statistics that never change, by name.
        size: length of the vector.
        initial: the initial vector, [size].
        local_stats: the initial statistics, if they are local, [number of them]; else [0].
        moving: which positions a gradient moves, float32 [size]; None if all.
        stat_positions: the others, those of statistics in the vector, int64.
        is_random: whether a step needs a random key.
    """

    def __init__(self, stages: nn.Sequential, is_local: bool = False) -> None:
        self.stages, self.is_local = stages, is_local
        self.parameters: list[Piece] = []
        self.statistics: list[Piece] = []
        ours: list[Tensor] = []
        theirs: list[Tensor] = []
        self.frozen: dict[str, Tensor] = {}
        self.bases: dict[torch.device, dict[int, Tensor]] = {}
        for name, tensor, moves, is_frozen in _tensors(stages):
            if is_frozen:
                self.frozen[name] = tensor
                continue
            place = theirs if is_local and not moves else ours
            start = sum(piece.numel() for piece in place)
            pieces = self.parameters if moves else self.statistics
            pieces.append(Piece(name, start, tensor.shape))
            place.append(tensor.detach().reshape(-1))
        self.initial, self.local_stats = (
            torch.cat([torch.empty(0), *place]) for place in (ours, theirs)
        )
        self.size = len(self.initial)
        self.moving = None
        if len(ours) > len(self.parameters):
            self.moving = torch.zeros(self.size)
            for piece in self.parameters:
                self.moving[piece.start : piece.stop] = 1
        self.stat_positions = torch.empty(0, dtype=torch.int64)
        if self.moving is not None:
            self.stat_positions = (self.moving == 0).nonzero().squeeze(1)
        self.is_random = any(isinstance(module, layers.Dropout) for module in stages.modules())

    @property
    def count(self) -> int:
        """Number of parameters that train."""
        return sum(prod(piece.shape) for piece in self.parameters)

    @property
    def frozen_size(self) -> int:
        """Number of values that are frozen."""
        return sum(tensor.numel() for tensor in self.frozen.values())

    @property
    def base_size(self) -> int:
        """Number of values that are frozen, without those of adapters, which are always drawn."""
        drawn = set(adapters.parameters(self.stages))
        return sum(one.numel() for name, one in self.frozen.items() if name not in drawn)

    def network(self, w: Tensor, local_stats: Tensor | None = None) -> nn.Sequential:
        """A network of views of `w` [size], and of `local_stats` where these are local."""
        network = self.copied(w.device)
        for piece in self.parameters:
            network.get_parameter(piece.name).data = piece.of(w)
        place = w
        if self.is_local:
            place = self.local_stats.to(w.device, copy=True) if local_stats is None else local_stats
        for piece in self.statistics:
            module, _, name = piece.name.rpartition(".")
            # By `data`: changing one is no change of the others, which autograd may still want.
            setattr(network.get_submodule(module), name, piece.of(place).data)
        return network

    def copied(self, device: torch.device) -> nn.Sequential:
        """A copy of the network on a device; all copies there share what is frozen."""
        if device not in self.bases:
            self.bases[device] = {id(own): _moved(own, device) for own in self.frozen.values()}
        return copy.deepcopy(self.stages, dict[int, Any](self.bases[device])).to(device)

    @cached_property
    def movable(self) -> Tensor:
        """Positions that gradients move, ascending: int64 [count]."""
        if self.moving is None:
            return torch.arange(self.size)
        return self.moving.nonzero().squeeze(1)

    def prunable(self) -> Tensor:
        """Which positions are weights of convolutions or linear layers: bool [size]."""
        modules = self.stages.named_modules()
        weights = {f"{name}.weight" for name, module in modules if isinstance(module, PRUNABLE)}
        found = torch.zeros(self.size, dtype=torch.bool)
        for piece in self.parameters:
            found[piece.start : piece.stop] = piece.name in weights
        return found

    def normalising(self) -> Tensor:
        """Which positions belong to normalisation layers, statistics included: bool [size]."""
        kinds = (layers.BatchNorm, nn.GroupNorm, nn.LayerNorm)
        names = {name for name, module in self.stages.named_modules() if isinstance(module, kinds)}
        found = torch.zeros(self.size, dtype=torch.bool)
        for piece in [*self.parameters, *([] if self.is_local else self.statistics)]:
            found[piece.start : piece.stop] = piece.name.rpartition(".")[0] in names
        return found

    def cuts(self) -> list[str]:
        """The split points: each is the name of the last stage in front of it."""
        return [name for name, _ in self.stages.named_children()][:-1]

    def split(self, cut: str) -> tuple["Flat", "Flat"]:
        """The network in front of a split point and the network behind it.

        Raises:
            ConfigError: if the network has no such split point.
        """
        if not self.cuts():
            raise ConfigError("the model has no split point: it is a single stage")
        if cut not in self.cuts():
            raise ConfigError(
                f"method.cut = '{cut}': the model has no such split point; "
                f"there are: {', '.join(self.cuts())}"
            )
        place = self.cuts().index(cut) + 1
        stages = list(self.stages.named_children())
        front, back = (
            nn.Sequential(OrderedDict(part)) for part in (stages[:place], stages[place:])
        )
        return Flat(front, self.is_local), Flat(back, self.is_local)


def _moved(own: Tensor, device: torch.device) -> Tensor:
    """A frozen tensor on a device: itself if it is there."""
    if own.device == device:
        return own
    found = own.detach().to(device)
    return nn.Parameter(found, requires_grad=False) if isinstance(own, nn.Parameter) else found


def _tensors(stages: nn.Sequential) -> Iterator[tuple[str, Tensor, bool, bool]]:
    """Name and tensor of each parameter and statistic, module by module.

    Also whether gradients move it, and whether it is frozen.
    """
    parameters = dict(stages.named_parameters())
    saved = stages.state_dict().keys()
    for name, module in stages.named_modules():
        prefix = f"{name}." if name else ""
        for own, parameter in module.named_parameters(recurse=False):
            if prefix + own in parameters:  # only one of those that are shared
                yield prefix + own, parameter, True, not parameter.requires_grad
        for own, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and prefix + own in saved:
                yield prefix + own, buffer, False, getattr(module, "is_frozen", False)
