"""FLOPs of one sample's way through a network, counted by torch, as a whole and by layer.

FLOPs are those of convolutions and matrix products, of which a multiplication and an addition are
two. Biases, norms, activations and pooling count nothing. SSFL and DisPFL count so (2 * weights *
height * width for a convolution). An attention has products of activations besides, 4 * heads *
size * tokens^2, which no mask makes fewer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedmpi.networks.attention import Heads
from fedmpi.networks.flat import PRUNABLE, Flat, Piece


@dataclass(frozen=True)
class Front:
    """A network up to a split point, or as a whole.

    Attributes:
        name: of its last stage.
        parameters: how many it has.
        flops: of one sample's way through it.
        floats: that come out of it for one sample, and are sent if it is split there.
    """

    name: str
    parameters: int
    flops: int
    floats: int


@dataclass(frozen=True)
class Forward:
    """FLOPs of one sample's way through a network, as it is judged.

    Attributes:
        all: of them.
        layers: the weights of convolutions and linear layers, and the layer's share of all.
        products: those of queries and keys, and of values, by the name of the heads.
        fronts: the network up to each split point, and at last as a whole.
    """

    all: int
    layers: list[tuple[Piece, int]]
    products: dict[str, int]
    fronts: list[Front]


def forward(flat: Flat, shape: Sequence[int]) -> Forward:
    """FLOPs of a network for a sample of that shape."""
    # Here, because a GPU's torch loads its compiler for it, which most runs have no use for.
    from torch.utils.flop_counter import FlopCounterMode

    network = flat.network(flat.initial.clone()).train(False).requires_grad_(False)
    pieces = {piece.name: piece for piece in flat.parameters}
    spent: dict[str, int] = {}
    products: dict[str, int] = {}
    fronts: list[Front] = []
    x, parameters = torch.zeros(1, *shape), 0
    with torch.no_grad(), FlopCounterMode(display=False) as counter:

        def listen(found: dict[str, int], name: str, layer: nn.Module) -> None:
            def before(*_: Any) -> None:
                found[name] = found.get(name, 0) - counter.get_total_flops()

            def after(*_: Any) -> None:
                found[name] += counter.get_total_flops()

            layer.register_forward_pre_hook(before)
            layer.register_forward_hook(after)

        for name, layer in network.named_modules():
            if isinstance(layer, PRUNABLE):
                listen(spent, f"{name}.weight", layer)
            if isinstance(layer, Heads):
                listen(products, name, layer)
        for name, stage in network.named_children():
            x = stage(x)
            parameters += sum(parameter.numel() for parameter in stage.parameters())
            fronts.append(Front(name, parameters, counter.get_total_flops(), x.numel()))
    layers = [(pieces[name], flops) for name, flops in spent.items() if name in pieces]
    for name in products:
        inside = (flops for weight, flops in spent.items() if weight.startswith(f"{name}."))
        products[name] -= sum(inside)
    return Forward(counter.get_total_flops(), layers, products, fronts)
