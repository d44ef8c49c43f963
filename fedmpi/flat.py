"""A network as one vector: parameters in `w`, gradients in `g`, the network's tensors are views.

A model is a sequence of named stages, and the vector holds them in that order; the front of a split
network is therefore a prefix of the vector, and its back is the rest.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedmpi.config import ConfigError

ALIGNMENT = 16
"""Rows begin at multiples of 64 bytes: results must not depend on which row a client has."""


class Flat:
    """The shape of a network: how its parameters lie in one vector of length `size`.

    Attributes:
        stages: the network; its own parameters are the initial ones.
        size: number of parameters.
        initial: the initial parameters, [size].
    """

    def __init__(self, stages: nn.Sequential) -> None:
        self.stages = stages
        shapes = [parameter.shape for parameter in stages.parameters()]
        stops = list(accumulate(shape.numel() for shape in shapes))
        self.size = stops[-1] if stops else 0
        self.spans = list(zip([0, *stops[:-1]], stops, shapes, strict=True))
        self.initial = torch.cat([p.detach().reshape(-1) for p in stages.parameters()])

    def views(self, vector: Tensor) -> list[Tensor]:
        """`vector` [size] as tensors of the parameters' shapes, without a copy."""
        return [vector[start:stop].view(shape) for start, stop, shape in self.spans]

    def network(self, w: Tensor) -> nn.Sequential:
        """A network whose parameters are views of `w` [size]."""
        network = copy.deepcopy(self.stages).to(w.device)
        for parameter, view in zip(network.parameters(), self.views(w), strict=True):
            parameter.data = view
        return network

    def prunable(self) -> Tensor:
        """Which parameters are weights of convolutions or linear layers: bool [size]."""
        layers = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
        weights = {id(m.weight) for m in self.stages.modules() if isinstance(m, layers)}
        marks = [
            torch.full((p.numel(),), id(p) in weights, dtype=torch.bool)
            for p in self.stages.parameters()
        ]
        return torch.cat(marks)

    def cuts(self) -> list[str]:
        """The split points: each is the name of the last stage in front of it."""
        return [name for name, _ in self.stages.named_children()][:-1]

    def split(self, cut: str) -> tuple["Flat", "Flat"]:
        """The network in front of a split point and the network behind it.

        Raises:
            ConfigError: if the network has no such split point.
        """
        if cut not in self.cuts():
            raise ConfigError(
                f"method.cut = '{cut}': the model has no such split point; "
                f"there are: {', '.join(self.cuts()) or 'none'}"
            )
        place = self.cuts().index(cut) + 1
        stages = list(self.stages.named_children())
        front, back = OrderedDict(stages[:place]), OrderedDict(stages[place:])
        return Flat(nn.Sequential(front)), Flat(nn.Sequential(back))


class Rows:
    """`count` models of one shape: the rows of `w`, and of `g` their gradients, both [count, n]."""

    def __init__(self, flat: Flat, count: int, device: torch.device) -> None:
        width = -(-flat.size // ALIGNMENT) * ALIGNMENT
        self.flat = flat
        self.w = torch.zeros(count, width, device=device)[:, : flat.size]
        self.g = torch.zeros(count, width, device=device)[:, : flat.size]
        self.networks = [flat.network(row) for row in self.w]
        self.parameters = [list(network.parameters()) for network in self.networks]
        self.gradients = [flat.views(row) for row in self.g]

    def __len__(self) -> int:
        return len(self.networks)

    def backward(
        self, row: int, output: Tensor, cotangent: Tensor | None = None, also: Sequence[Tensor] = ()
    ) -> tuple[Tensor, ...]:
        """g[row] = the gradient of `output` (or of <output, cotangent>) by the row's parameters.

        Returns:
            The gradients by the tensors in `also`, from the same pass.
        """
        ours = self.parameters[row]
        found = torch.autograd.grad(output, [*ours, *also], cotangent)
        torch._foreach_copy_(self.gradients[row], found[: len(ours)])
        return found[len(ours) :]

    def loss(self, row: int, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of the row's network on x [B, ...], y [B]; sets g[row]."""
        loss = cross_entropy(self.networks[row](x), y)
        self.backward(row, loss)
        return loss.detach()
