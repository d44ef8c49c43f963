"""Layers whose weights are powers of their parameters, and that learn from few of their inputs.

The weight is sign(v) |v|^beta of the parameter v: J. Schwarz, S. Jayakumar, R. Pascanu, P. Latham,
Y. W. Teh, *Powerpropagation: A sparsity inducing weight reparameterisation*, NeurIPS 2021, arXiv
2110.00296. Its gradient is the weight's times beta |v|^(beta - 1): what is small stays small, and
what is zero stays zero.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

from fedmpi.networks.recurrent import Recurrent


class Powered(nn.Module):
    """A layer with such a weight; what it has besides is the layer's that it replaces.

    In learning, the gradient of the weight is that of sparse inputs: of each sample's values the
    largest, as great a share as that of the weights that are not zero. Inputs' own gradients are
    exact.
    """

    weight: Tensor
    bias: Any
    beta: float

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer that is replaced."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """As the layer that is replaced."""
        weight = power(self.weight, self.beta)
        if not self.training:
            return self.apply_weight(x, weight, self.bias)
        exact = self.apply_weight(x, weight.detach(), self.bias)
        few = self.apply_weight(largest(x.detach(), weight.detach()), weight, None)
        # Zero, but for its gradient.
        return exact + (few - few.detach())


class PoweredLinear(Powered, nn.Linear):
    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See `Powered`."""
        return linear(x, weight, bias)


class PoweredConv1d(Powered, nn.Conv1d):
    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See `Powered`."""
        return self._conv_forward(x, weight, bias)


class PoweredConv2d(Powered, nn.Conv2d):
    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See `Powered`."""
        return self._conv_forward(x, weight, bias)


REPLACED: dict[type[nn.Module], type[Powered]] = {
    nn.Linear: PoweredLinear,
    nn.Conv1d: PoweredConv1d,
    nn.Conv2d: PoweredConv2d,
}


def power(v: Tensor, beta: float) -> Tensor:
    """sign(v) |v|^beta."""
    return v.sign() * v.abs().pow(beta)


def largest(x: Tensor, weight: Tensor) -> Tensor:
    """Of each sample x [B, ...] the largest values, at least one; zeros elsewhere.

    As great a share of them as of the weights that are not zero. The number is a tensor, because
    rows that run at once have different weights.
    """
    size = x.abs().flatten(1)
    width = size.shape[1]
    share = (weight != 0).float().mean()
    count = (share * width).round().long().clamp(1, width)
    order = size.sort(1, descending=True).values
    least = order.take_along_dim((count - 1).expand(len(size), 1), 1)
    return x * (size >= least).view_as(x)


def rebuilt(network: nn.Sequential, beta: float) -> nn.Sequential:
    """The network with such layers for its convolutions and linear layers, changed in place.

    Those inside of recurrent layers stay as they are.

    It computes the same: its parameters are the roots of the weights.
    """
    for module in list(network.modules()):
        # Recurrent layers read the weights of those in them, and do without their forward.
        for name, layer in () if isinstance(module, Recurrent) else module.named_children():
            kind = REPLACED.get(type(layer))
            if kind is not None:
                setattr(module, name, replaced(layer, kind, beta))
    return network


def replaced(layer: nn.Module, kind: type[Powered], beta: float) -> Powered:
    """The layer in another kind."""
    found = kind.__new__(kind)
    found.__dict__.update(layer.__dict__)
    found.beta = beta
    found.weight.data = power(found.weight.data, 1 / beta)
    return found
