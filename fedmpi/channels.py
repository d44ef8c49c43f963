"""Channels: the outputs of a network's convolutions and linear layers, and what each one owns.

A channel owns its row of the layer's weight, and its bias. Everything else is nobody's: norms,
statistics, and recurrent layers, of whose gates none means anything without the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmpi.flat import PRUNABLE, Flat, Piece
from fedmpi.recurrent import Recurrent
from fedmpi.sparse import kept


@dataclass(frozen=True)
class Layer:
    """A convolution or a linear layer.

    Attributes:
        name: of the module in its network.
        weight: where its weight lies, of shape [count, ...].
        bias: where its bias lies, if it has one.
        first: the number of its first channel.
    """

    name: str
    weight: Piece
    bias: Piece | None
    first: int

    @property
    def count(self) -> int:
        """Its channels."""
        return self.weight.shape[0]


class Channels:
    """The channels of a network, numbered layer by layer.

    Attributes:
        layers: convolutions and linear layers, in the order of the vector.
        count: number of channels.
        owner: the channel that owns each position of the vector, int64 [flat.size]; -1 for nobody.
    """

    def __init__(self, flat: Flat, device: torch.device) -> None:
        pieces = {piece.name: piece for piece in flat.parameters}
        self.layers: list[Layer] = []
        self.count = 0
        owner = torch.full((flat.size,), -1)
        modules = list(flat.stages.named_modules())
        gates = {gate for _, one in modules if isinstance(one, Recurrent) for gate in one.modules()}
        for name, module in modules:
            weight = pieces.get(f"{name}.weight")
            if not isinstance(module, PRUNABLE) or module in gates or weight is None:
                continue
            layer = Layer(name, weight, pieces.get(f"{name}.bias"), self.count)
            numbers = torch.arange(self.count, self.count + layer.count)
            for piece in (layer.weight, layer.bias):
                if piece is not None:
                    each = (piece.stop - piece.start) // layer.count
                    owner[piece.start : piece.stop] = numbers.repeat_interleave(each)
            self.layers.append(layer)
            self.count += layer.count
        self.owner = owner.to(device)

    def positions(self, chosen: Tensor) -> Tensor:
        """Where the chosen channels [k] lie, and what is nobody's, ascending: int64."""
        # The last place is found by nobody's number, -1.
        travels = torch.zeros(self.count + 1, dtype=torch.bool, device=self.owner.device)
        travels[chosen] = True
        travels[-1] = True
        return travels[self.owner].nonzero().squeeze(1)

    def norms(self, w: Tensor) -> Tensor:
        """The Euclidean norm of each channel's weights in a model w [n], float32 [count]."""
        found = [layer.weight.of(w).flatten(1).norm(dim=1) for layer in self.layers]
        return torch.cat([torch.empty(0, device=w.device), *found])

    def largest(self, scores: Tensor, counts: Sequence[int]) -> Tensor:
        """In each layer as many channels as `counts` says, of the largest scores [count].

        They are ascending. Among equals torch decides, the same wherever it is asked.
        """
        found = [torch.empty(0, dtype=torch.int64, device=scores.device)]
        for layer, count in zip(self.layers, counts, strict=True):
            own = scores[layer.first : layer.first + layer.count]
            found.append(layer.first + own.topk(count, sorted=False).indices.sort().values)
        return torch.cat(found)

    def evenly(self, scores: Tensor, sparsity: float) -> Tensor:
        """The channels of the largest scores [count], the same share of each layer, ascending."""
        return self.largest(scores, [kept(layer.count, sparsity) for layer in self.layers])

    def overall(self, scores: Tensor, sparsity: float) -> Tensor:
        """The channels of the largest scores [count] of all, one of each layer at least."""
        if not self.layers:
            return self.largest(scores, [])
        best = self.largest(scores, [1] * len(self.layers))
        count = max(len(best), kept(self.count, sparsity))
        return scores.index_fill(0, best, torch.inf).topk(count, sorted=False).indices.sort().values
