"""Channels: the outputs of a network's convolutions and linear layers, and what each one owns.

A channel owns its row of the layer's weight, its bias, and its scale and shift in a norm directly
behind: where these are zero, it is. Everything else is nobody's: other norms, statistics, and
recurrent layers, of whose gates none means anything without the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from fedmpi.messages.sparse import kept
from fedmpi.networks.flat import PRUNABLE, Flat, Piece
from fedmpi.networks.layers import BatchNorm
from fedmpi.networks.recurrent import Recurrent


@dataclass(frozen=True)
class Layer:
    """A convolution or a linear layer.

    Attributes:
        name: of the module in its network.
        pieces: all that its channels own, each of shape [count, ...]; the weight is the first.
        norm: the name of the norm directly behind it, if there is one.
        first: the number of its first channel.
    """

    name: str
    pieces: tuple[Piece, ...]
    norm: str | None
    first: int

    @property
    def weight(self) -> Piece:
        """Where its weight lies."""
        return self.pieces[0]

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
        modules = dict(flat.stages.named_modules())
        gates = {gate for m in modules.values() if isinstance(m, Recurrent) for gate in m.modules()}
        behind = followers(modules)
        self.layers: list[Layer] = []
        self.count = 0
        owner = torch.full((flat.size,), -1)
        for name, module in modules.items():
            if (
                not isinstance(module, PRUNABLE)
                or module in gates
                or f"{name}.weight" not in pieces
            ):
                continue
            norm = behind.get(name)
            names = (f"{name}.weight", f"{name}.bias", f"{norm}.weight", f"{norm}.bias")
            own = tuple(pieces[name] for name in names if name in pieces)
            layer = Layer(name, own, norm, self.count)
            numbers = torch.arange(self.count, self.count + layer.count)
            for piece in own:
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

    def masked(self, w: Tensor, chosen: Tensor) -> Tensor:
        """The model w [n] with zeros at all that other channels than the chosen [k] own.

        Args:
            w: of this network, or of one of which it is the front.
            chosen: channels.
        """
        kept = torch.zeros_like(w)
        kept[self.positions(chosen.to(self.owner.device)).to(w.device)] = 1
        kept[len(self.owner) :] = 1
        return w * kept

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


def followers(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """The layers directly behind which a norm of their channels stands, and its name."""
    found = {}
    for name, sequence in modules.items():
        prefix = f"{name}." if name else ""
        for (one, layer), (other, norm) in pairwise(sequence.named_children()):
            in_line = isinstance(sequence, nn.Sequential) and isinstance(layer, PRUNABLE)
            if in_line and isinstance(norm, NORMS):
                found[prefix + one] = prefix + other
    return found


NORMS = (BatchNorm, nn.GroupNorm)
"""Norms that scale and shift each channel by numbers of its own."""
