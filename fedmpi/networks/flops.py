"""FLOPs of one sample's way through a network, counted by torch, as a whole and by layer.

FLOPs are those of convolutions and matrix products, of which a multiplication and an addition are
two. Biases, norms, activations and pooling count nothing. SSFL and DisPFL count so (2 * weights *
height * width for a convolution). An attention has products of activations besides, 4 * heads *
size * tokens^2, which no mask makes fewer.

The way back has twice as many where all parameters train: for the gradients of the weights, and for
those of the inputs, the network's own included. Where something is frozen they are those of
autograd: none for frozen weights, and none before the first layer that trains.
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
        back: of the loss's way back.
        layers: the weights of convolutions and linear layers that train, and the layer's share of
            all.
        backs: for each of them its share of the way back.
        products: those of queries and keys, and of values, by the name of the heads.
        fronts: the network up to each split point, and at last as a whole.
    """

    all: int
    back: int
    layers: list[tuple[Piece, int]]
    backs: list[int]
    products: dict[str, int]
    fronts: list[Front]

    @property
    def training(self) -> int:
        """Of a sample's way forward and back."""
        return self.all + self.back


def forward(flat: Flat, shape: Sequence[int]) -> Forward:
    """FLOPs of a network for a sample of that shape."""
    # Here, because a GPU's torch loads its compiler for it, which most runs have no use for.
    from torch.utils.flop_counter import FlopCounterMode

    network = flat.network(flat.initial.clone()).train(False)
    if not flat.frozen:
        network.requires_grad_(False)
    pieces = {piece.name: piece for piece in flat.parameters}
    spent: dict[str, int] = {}
    passed = set[str]()
    products: dict[str, int] = {}
    fronts: list[Front] = []
    x, parameters = torch.zeros(1, *shape), 0
    with torch.set_grad_enabled(bool(flat.frozen)), FlopCounterMode(display=False) as counter:

        def listen(found: dict[str, int], name: str, layer: nn.Module) -> None:
            def before(_: Any, inputs: Any) -> None:
                found[name] = found.get(name, 0) - counter.get_total_flops()
                if not flat.frozen or inputs[0].requires_grad:
                    passed.add(name)

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
        count = counter.get_total_flops()
        if flat.frozen and x.requires_grad:
            x.sum().backward()
        back = counter.get_total_flops() - count if flat.frozen else 2 * count
    layers = [(pieces[name], flops) for name, flops in spent.items() if name in pieces]
    backs = [flops * (1 + (piece.name in passed)) for piece, flops in layers]
    for name in products:
        inside = (flops for weight, flops in spent.items() if weight.startswith(f"{name}."))
        products[name] -= sum(inside)
    return Forward(count, back, layers, backs, products, fronts)
