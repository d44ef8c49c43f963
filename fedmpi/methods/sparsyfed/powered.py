"""Layers whose weights are powers of their parameters, with weight gradients from sparse inputs.

The weight is sign(v) |v|^beta of the parameter v: J. Schwarz, S. Jayakumar, R. Pascanu, P. Latham,
Y. W. Teh, *Powerpropagation: A sparsity inducing weight reparameterisation*, NeurIPS 2021, arXiv
2110.00296. The gradient of v is that of the weight times beta |v|^(beta - 1), so that small values
stay small, and zeros stay zero.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fedmpi.networks.recurrent import Recurrent


class Powered(nn.Module):
    """A layer with such a weight; all other attributes are those of the layer that it replaces.

    In training, the gradient of the weight is computed from sparse inputs: the largest values of
    each sample, with the same share as the weights that are not zero. Gradients of the inputs are
    exact.
    """

    weight: Tensor
    bias: Any
    beta: float

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Applies the replaced layer with this weight and bias."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer; in training the weight's gradient comes from sparse inputs."""
        weight = power(self.weight, self.beta)
        if not self.training:
            return self.apply_weight(x, weight, self.bias)
        exact = self.apply_weight(x, weight.detach(), self.bias)
        few = self.apply_weight(largest(x.detach(), weight.detach()), weight, None)
        # The term in parentheses is zero; only its gradient counts.
        return exact + (few - few.detach())


class PoweredLinear(Powered, nn.Linear):
    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Applies a linear layer with this weight and bias."""
        return linear(x, weight, bias)


class PoweredConv1d(Powered, nn.Conv1d):
    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Applies a convolution with this weight and bias."""
        return self._conv_forward(x, weight, bias)


class PoweredConv2d(Powered, nn.Conv2d):
    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Applies a convolution with this weight and bias."""
        return self._conv_forward(x, weight, bias)


REPLACED: dict[type[nn.Module], type[Powered]] = {
    nn.Linear: PoweredLinear,
    nn.Conv1d: PoweredConv1d,
    nn.Conv2d: PoweredConv2d,
}


def power(v: Tensor, beta: float) -> Tensor:
    """Returns sign(v) |v|^beta."""
    return v.sign() * v.abs().pow(beta)


def largest(x: Tensor, weight: Tensor) -> Tensor:
    """Keeps the largest values of each sample of x [B, ...], at least one; others become 0.

    Of equal values the first ones are kept, as by `select.largest`. The share that is kept is that
    of the weights that are not zero. It is a tensor, because rows that are computed at once have
    different weights.
    """
    size = x.abs().flatten(1)
    width = size.shape[1]
    share = (weight != 0).float().mean()
    count = (share * width).round().long().clamp(1, width)
    order = size.sort(dim=1, descending=True, stable=True).indices
    is_kept = (torch.arange(width, device=x.device) < count).expand(size.shape)
    return x * torch.zeros_like(is_kept).scatter(1, order, is_kept).view_as(x)


def rebuilt(network: nn.Sequential, beta: float) -> nn.Sequential:
    """Replaces a network's convolutions and linear layers whose weights train, in place.

    Those in recurrent layers stay.

    The network computes the same as before, because the new parameters are roots of the weights.
    """
    for module in list(network.modules()):
        # Recurrent layers use the weights of their inner layers, but not their `forward`.
        for name, layer in () if isinstance(module, Recurrent) else module.named_children():
            kind = REPLACED.get(type(layer))
            if kind is not None and layer.weight.requires_grad:
                setattr(module, name, replaced(layer, kind, beta))
    return network


def replaced(layer: nn.Module, kind: type[Powered], beta: float) -> Powered:
    """Returns the layer as one of another kind, with the same attributes."""
    found = kind.__new__(kind)
    found.__dict__.update(layer.__dict__)
    found.beta = beta
    found.weight.data = power(found.weight.data, 1 / beta)
    return found
