"""Compressors that make models smaller for weak devices, and map their updates back.

A compressor encodes a model w [n] as blocks for a device with a given share. From these blocks both
sides build the device's `Local`: the values that it trains, and their place in the whole model. A
share of 1 does not compress.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedmpi.config import EXACT
from fedmpi.messages import quantized, select, sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.messages.counts import keep_round
from fedmpi.networks import narrow, pruning
from fedmpi.networks.flat import PRUNABLE, Flat, Piece
from fedmpi.networks.narrow import Narrow, SubModels
from fedmpi.networks.recurrent import Recurrent


class Network(NamedTuple):
    """A network that a device trains in place of the whole one (see `train.Part`)."""

    flat: Flat
    local_stats: Tensor


class Codes:
    """Values of a network that travel in few bits, with a range for each tensor.

    A value lies on a uniform grid between the least and the greatest one of its tensor. Running
    statistics are sent exactly.

    Args:
        flat: the network.
        places: positions of the values that travel, ascending; None for all.
    """

    def __init__(self, flat: Flat, device: torch.device, places: Tensor | None = None) -> None:
        where = torch.arange(flat.size) if places is None else places.cpu()
        bounds = [
            torch.searchsorted(where, torch.tensor([piece.start, piece.stop])).tolist()
            for piece in flat.parameters
        ]
        self.lengths, self.device = [stop - start for start, stop in bounds], device
        travels = torch.zeros(len(where), dtype=torch.bool)
        for start, stop in bounds:
            travels[start:stop] = True
        self.parameters, self.statistics = (
            some.nonzero().squeeze(1).to(device) for some in (travels, ~travels)
        )

    def encode(self, kind: Kind, values: Tensor, bits: int, key: np.ndarray | None) -> list[Block]:
        """Encodes values as codes, ranges, and statistics if there are any.

        Args:
            kind: of the values.
            values: those that travel, [k].
            bits: 1 to 16.
            key: rounds them at random, so that they are right on average (`streams.key`); None to
                the nearest.
        """
        found = quantized.ranges(kind, values[self.parameters], self.lengths, bits, key)
        if len(self.statistics):
            found.append(sparse.block(kind, values[self.statistics]))
        return found

    def decode(self, blocks: Sequence[Block]) -> Tensor:
        """Returns what `encode` encoded, [k]."""
        found = torch.empty(len(self.parameters) + len(self.statistics), device=self.device)
        found[self.parameters] = quantized.ranged(blocks[:2], self.lengths, self.device)
        if len(self.statistics):
            found[self.statistics] = sparse.values(blocks[2], self.device)
        return found


class Local:
    """A compressed model; this base has the whole network's shape and sends all values.

    Attributes:
        start: the values at which training starts, [m].
        shape: the network that trains, of the size m.
        part: the same where it is not the whole one, else None.
        mask: which values are trained, float32 [m]; None if all are.
        places: positions in the whole model of the values that are sent, int64; None for all.
        bits: of a value of the update that is sent; EXACT for the value itself.
    """

    def __init__(
        self,
        start: Tensor,
        whole: Flat,
        part: Network | Narrow | None = None,
        mask: Tensor | None = None,
        places: Tensor | None = None,
        bits: int = EXACT,
    ) -> None:
        self.start, self.shape = start, whole if part is None else part.flat
        self.part, self.mask, self.places, self.bits = part, mask, places, bits

    def upload(self, update: Tensor, key: np.ndarray) -> list[Block]:
        """Encodes those values of an update [m] that are sent; codes are rounded with the key."""
        values = update
        if self.mask is not None and self.places is not None:
            values = update.index_select(0, self.places)
        if self.bits == EXACT:
            return [sparse.block(Kind.GRADIENT, values)]
        return self._codes.encode(Kind.GRADIENT, values, self.bits, key)

    def sent(self, blocks: Sequence[Block], device: torch.device) -> Tensor:
        """Decodes what `upload` encoded."""
        if self.bits == EXACT:
            return sparse.values(blocks[0], device)
        return self._codes.decode(blocks)

    @cached_property
    def _codes(self) -> Codes:
        trained = None if self.mask is None else self.places
        return Codes(self.shape, self.start.device, trained)

    def adjust(self, w: Tensor, g: Tensor) -> None:
        """Changes the gradient g [m] of the model w [m] in place."""
        if self.mask is not None:
            g.mul_(self.mask)

    def whole(self, values: Tensor, size: int) -> Tensor:
        """Returns the whole model [size] for some values [m]."""
        if self.places is None or self.mask is not None:
            return values
        return torch.zeros(size, device=values.device).index_copy_(0, self.places, values)

    def lifted(self, sent: Tensor, size: int) -> Tensor:
        """Maps an update that was sent to one of the whole model, [size], zero elsewhere."""
        if self.places is None:
            return sent
        return torch.zeros(size, device=sent.device).index_copy_(0, self.places, sent)


class Compressor(ABC):
    """Base of the compressors.

    Attributes:
        bits: of a value of an update; EXACT for the value itself.
    """

    def __init__(self, flat: Flat, device: torch.device, bits: int = EXACT) -> None:
        self.flat, self.device, self.bits = flat, device, bits

    @abstractmethod
    def blocks(self, w: Tensor, keep: float) -> list[Block]:
        """Encodes a model [n] for a device with the share `keep`."""

    @abstractmethod
    def local(self, blocks: Sequence[Block], keep: float) -> Local:
        """Builds the compressed model that these blocks encode."""


class Prune(Compressor):
    """Keeps the weights of largest magnitude, and all parameters that are no layer's weights.

    Args:
        by_layer: whether the share holds for each layer, instead of all weights together.
    """

    def __init__(
        self, flat: Flat, device: torch.device, bits: int = EXACT, by_layer: bool = False
    ) -> None:
        super().__init__(flat, device, bits)
        self.prunable = flat.prunable().to(device)
        whole = (0, int(self.prunable.sum()))
        self.spans = [whole]
        if by_layer:
            sizes = (piece.stop - piece.start for piece in pruning.weights(flat))
            self.spans = list(pairwise(accumulate(sizes, initial=0)))

    def blocks(self, w: Tensor, keep: float) -> list[Block]:
        """Encodes the values that are kept, and positions of the kept weights."""
        weights, kept = w[self.prunable], []
        for start, stop in self.spans:
            count = keep_round(stop - start, keep)
            kept.append(start + select.top(weights[start:stop], count).positions)
        best = torch.cat(kept)
        values = sparse.block(Kind.MODEL, w[self._stay(best)], self.flat.size)
        return [values, sparse.places(best, len(weights))]

    def _stay(self, best: Tensor) -> Tensor:
        """Returns positions in the model of these weights and of all other parameters: int64."""
        found = ~self.prunable
        found[self.prunable.nonzero().squeeze(1)[best]] = True
        return found.nonzero().squeeze(1)

    def local(self, blocks: Sequence[Block], keep: float) -> Local:
        """Builds a model that is zero, and stays zero, where weights were pruned."""
        places = self._stay(sparse.indices(blocks[1], self.device))
        start = sparse.vector(blocks[0], self.flat.size, self.device, places)
        mask = torch.zeros_like(start).index_fill_(0, places, 1)
        return Local(start, self.flat, None, mask, places, self.bits)


class Width(Compressor):
    """Keeps the first channels of each hidden layer, as a narrower network (see `narrow`)."""

    def __init__(
        self, flat: Flat, device: torch.device, shape: Sequence[int], bits: int = EXACT
    ) -> None:
        super().__init__(flat, device, bits)
        self.models = SubModels(flat, shape)
        self.parts: dict[float, Narrow] = {}

    def _part(self, keep: float) -> Narrow:
        if keep not in self.parts:
            self.parts[keep] = self.models.narrow(narrow.prefix(keep))
        return self.parts[keep]

    def blocks(self, w: Tensor, keep: float) -> list[Block]:
        """Encodes the values of the narrower network."""
        positions = self._part(keep).positions.to(w.device)
        return [sparse.block(Kind.MODEL, w.index_select(0, positions), self.flat.size)]

    def local(self, blocks: Sequence[Block], keep: float) -> Local:
        """Builds the narrower network."""
        part = self._part(keep)
        start = sparse.values(blocks[0], self.device)
        places = part.positions.to(self.device)
        return Local(start, self.flat, part, None, places, self.bits)


class Quant(Compressor):
    """Quantizes each tensor uniformly between its least and its greatest value, in both directions.

    A share below 1 is one of 32 bits, limited to 1 and 16 bits a value. The model is rounded to the
    nearest; updates are rounded at random, so that they are right on average. Running statistics
    are sent exactly. The device trains in float32. If `bits` are fewer, they hold for updates.
    """

    def __init__(self, flat: Flat, device: torch.device, bits: int = EXACT) -> None:
        super().__init__(flat, device, bits)
        self.codes = Codes(flat, device)

    def blocks(self, w: Tensor, keep: float) -> list[Block]:
        """Encodes the model by its share of bits."""
        if keep == 1:
            return [sparse.block(Kind.MODEL, w)]
        return self.codes.encode(Kind.MODEL, w, bits_of(keep), None)

    def local(self, blocks: Sequence[Block], keep: float) -> Local:
        """Decodes the model."""
        if keep == 1:
            return Local(sparse.values(blocks[0], self.device), self.flat, bits=self.bits)
        bits = min(self.bits, bits_of(keep))
        return Local(self.codes.decode(blocks), self.flat, bits=bits)


def bits_of(keep: float) -> int:
    """Returns the bits of a value for a share below 1 of 32 bits: 1 to 16."""
    return min(16, keep_round(32, keep))


class LowRank(Compressor):
    """Factors the weights of convolutions and linear layers into two thin matrices.

    A weight of o outputs and i inputs (times the window's pixels) gets the rank r = share * o i /
    (o + i), rounded down but at least 1, so that the factors have that share of its values. A
    weight stays whole if its factors would have no fewer values. In the network two layers replace
    one.
    """

    def __init__(self, flat: Flat, device: torch.device, bits: int = EXACT) -> None:
        super().__init__(flat, device, bits)
        self.shapes: dict[float, Factors] = {}

    def _factors(self, keep: float) -> "Factors":
        if keep not in self.shapes:
            self.shapes[keep] = Factors(self.flat, keep)
        return self.shapes[keep]

    def blocks(self, w: Tensor, keep: float) -> list[Block]:
        """Encodes factors, from singular value decompositions, and all other values."""
        return [sparse.block(Kind.MODEL, self._factors(keep).split(w))]

    def local(self, blocks: Sequence[Block], keep: float) -> Local:
        """Builds a network with factored layers."""
        return Factored(sparse.values(blocks[0], self.device), self._factors(keep), self.bits)


class Factored(Local):
    """A model with factored layers, all of whose values are sent.

    Its gradients are scaled (`Factors.scale`).
    """

    def __init__(self, start: Tensor, factors: "Factors", bits: int) -> None:
        part = Network(factors.flat, torch.arange(len(factors.flat.local_stats)))
        super().__init__(start, factors.whole, part, bits=bits)
        self.factors = factors

    def whole(self, values: Tensor, size: int) -> Tensor:
        """Returns the whole model, with the products of the factors."""
        return self.factors.product(values)

    def lifted(self, sent: Tensor, size: int) -> Tensor:
        """Returns the change of the products that an update of the factors causes.

        Let D be the derivative of the products by the factors and G the gradient of the whole
        model. The factors' gradient is D* G, and to first order a step maps to D D* G.
        """
        return self.factors.product(self.start + sent) - self.factors.product(self.start)

    def adjust(self, w: Tensor, g: Tensor) -> None:
        """Scales the gradient g [m] of the model w [m] in place."""
        self.factors.scale(w, g)


class Factors:
    """A network with pairs of thin layers, and the mapping between its values and the whole's.

    Attributes:
        whole: the whole network.
        flat: the network with factors.
        pairs: for each factored weight its piece, and the pieces of its two factors.
        others: for each other tensor its piece in the whole network and in the factored one.
    """

    def __init__(self, whole: Flat, keep: float) -> None:
        self.whole, network, factored = whole, copy.deepcopy(whole.stages), set()
        inner = [f"{n}." for n, m in network.named_modules() if isinstance(m, Recurrent)]
        for name, layer in list(network.named_modules()):
            if isinstance(layer, PRUNABLE) and not name.startswith(tuple(inner)) and keep < 1:
                rows, columns = layer.weight.flatten(1).shape
                rank = max(1, int(keep * rows * columns / (rows + columns)))
                if rank * (rows + columns) < rows * columns and getattr(layer, "groups", 1) == 1:
                    parent, _, own = name.rpartition(".")
                    setattr(network.get_submodule(parent), own, two(layer, rank))
                    factored.add(name)
        self.flat = Flat(network, whole.is_local) if factored else whole
        pieces = {p.name: p for p in self.flat.parameters + self.flat.statistics}
        self.pairs: list[tuple[Piece, Piece, Piece]] = []
        self.others: list[tuple[Piece, Piece]] = []
        for piece in whole.parameters + ([] if whole.is_local else whole.statistics):
            name, _, own = piece.name.rpartition(".")
            if name in factored and own == "weight":
                inside, outside = (pieces[f"{name}.{place}.weight"] for place in (0, 1))
                self.pairs.append((piece, inside, outside))
            else:
                there = f"{name}.1.{own}" if name in factored else piece.name
                self.others.append((piece, pieces[there]))

    def split(self, w: Tensor) -> Tensor:
        """Factors a whole model w [whole.size]; returns the nearest values [flat.size].

        Those of a model that is not finite are NaN, because it has no nearest one.
        """
        if not torch.isfinite(w).all():
            return torch.full((self.flat.size,), torch.nan, device=w.device)
        values = torch.empty(self.flat.size, device=w.device)
        for piece, inside, outside in self.pairs:
            rank = inside.shape[0]
            u, s, v = torch.linalg.svd(piece.of(w).flatten(1), full_matrices=False)
            root = s[:rank].sqrt()
            inside.of(values).copy_((root[:, None] * v[:rank]).view(inside.shape))
            outside.of(values).copy_((u[:, :rank] * root).view(outside.shape))
        for piece, other in self.others:
            other.of(values).copy_(piece.of(w))
        return values

    def product(self, values: Tensor) -> Tensor:
        """Multiplies the factors in values [flat.size]; returns the whole model [whole.size]."""
        w = torch.empty(self.whole.size, device=values.device)
        for piece, inside, outside in self.pairs:
            found = outside.of(values).flatten(1) @ inside.of(values).flatten(1)
            piece.of(w).copy_(found.view(piece.shape))
        for piece, other in self.others:
            piece.of(w).copy_(other.of(values))
        return w

    def scale(self, w: Tensor, g: Tensor) -> None:
        """Scales the factors' gradients in g [flat.size], in place, by the model w [flat.size].

        The weight is B A. The gradient of A is multiplied by (B^T B + d I)^-1, and that of B by (A
        A^T + d I)^-1, so that a step's length in the weight does not depend on how large factors
        are: T. Tong, C. Ma, Y. Chi, *Accelerating Ill-Conditioned Low-Rank Matrix Estimation via
        Scaled Gradient Descent*, JMLR 2021. d is `DAMPING` times the mean of the diagonal, because
        a factor may lack directions: X. Xu, Y. Shen, Y. Chi, C. Ma, *The Power of Preconditioning
        in Overparameterized Low-Rank Matrix Sensing*, ICML 2023.
        """
        for _, inside, outside in self.pairs:
            a, b = inside.of(w).flatten(1), outside.of(w).flatten(1)
            of_a, of_b = inside.of(g).flatten(1), outside.of(g).flatten(1)
            scaled = _solved(b.t() @ b, of_a), _solved(a @ a.t(), of_b.t()).t()
            for piece, found in zip((inside, outside), scaled, strict=True):
                piece.of(g).copy_(found.reshape(piece.shape))


DAMPING = 0.3
"""Of scaled gradients. With much less the noise of minibatches makes factors diverge."""


def _solved(gram: Tensor, right: Tensor) -> Tensor:
    """(gram + d I)^-1 right; NaN where something is not finite, so that it stays visible."""
    damping = DAMPING * gram.diagonal().mean().clamp(min=1e-12)
    return torch.linalg.solve_ex(gram + damping * torch.eye(len(gram), device=gram.device), right)[
        0
    ]


def two(layer: Any, rank: int) -> nn.Sequential:
    """Returns two layers that replace one, with `rank` channels between them."""
    if isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, rank, bias=False)
        return nn.Sequential(first, nn.Linear(rank, layer.out_features, layer.bias is not None))
    kind: Any = type(layer)
    window = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    thin = kind(layer.in_channels, rank, *window, bias=False)
    return nn.Sequential(thin, kind(rank, layer.out_channels, 1, bias=layer.bias is not None))
