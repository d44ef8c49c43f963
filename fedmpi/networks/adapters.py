"""Adapters: small layers that train in the place of the linear layers that they are put around.

 * `Lora` adds a product of two narrow matrices to a linear layer: W x + b + alpha / rank * B A x.
   E. Hu, Y. Shen, P. Wallis et al., *LoRA: Low-Rank Adaptation of Large Language Models*, ICLR
   2022, arXiv 2106.09685, section 4.1. A is drawn, and B is zero, so that training begins at the
   network as it was. `merged` puts the product into the weight for inference.
 * `Bottleneck` follows a linear layer: y + U relu(D y + d) + u for its output y. N. Houlsby et al.,
   *Parameter-Efficient Transfer Learning for NLP*, ICML 2019, arXiv 1902.00751, section 2.1.
   Differs from the paper: it can follow any linear layer, and U is zero at first, not near zero. It
   is not linear, and cannot be merged.

All matrices of an adapter are linear layers, which are counted, pruned and compressed like others.
"""

import copy
from collections.abc import Iterator, Sequence
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from fedmpi import config
from fedmpi.config import ConfigError
from fedmpi.networks.recurrent import Recurrent


class Adapter(nn.Module):
    """A linear layer with an adapter.

    Attributes:
        base: the linear layer.
        down: from inputs, or from outputs of the layer, to the adapter's few values.
        up: from these to outputs of the layer; zero at first.
    """

    base: nn.Linear
    down: nn.Linear
    up: nn.Linear


class Lora(Adapter):
    """A linear layer plus a low-rank product; `down` is the paper's A, and `up` its B.

    Args:
        base: the linear layer.
        rank: of the product.
        alpha: over the rank, the product's factor.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.factor = base, alpha / rank
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        # As the paper's code draws A: uniform, with the variance 1 / (3 inputs).
        nn.init.kaiming_uniform_(self.down.weight, a=sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return self.base(x) + self.factor * self.up(self.down(x))

    def merged(self) -> nn.Linear:
        """The linear layer that computes the same, a new one."""
        found = copy.deepcopy(self.base)
        with torch.no_grad():
            found.weight.add_(self.up.weight @ self.down.weight, alpha=self.factor)
        return found


class Bottleneck(Adapter):
    """A linear layer and a narrow pair of layers behind it, with a shortcut around the pair.

    Args:
        base: the linear layer.
        width: of the pair's hidden layer.
    """

    def __init__(self, base: nn.Linear, width: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.out_features, width)
        self.up = nn.Linear(width, base.out_features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        y = self.base(x)
        return y + self.up(relu(self.down(y)))


def names(network: nn.Sequential) -> list[str]:
    """The linear layers that can have an adapter: all but the last stage's and recurrent ones."""
    inner = [f"{n}." for n, module in network.named_modules() if isinstance(module, Recurrent)]
    head = f"{[name for name, _ in network.named_children()][-1]}."
    return [
        name
        for name, module in network.named_modules()
        if type(module) is nn.Linear and not f"{name}.".startswith((head, *inner))
    ]


def fitted(network: nn.Sequential, settings: config.Model) -> None:
    """Puts adapters around linear layers, in place; their values are drawn from torch's generator.

    Raises:
        ConfigError: if there is no linear layer to put one around.
    """
    lora, bottleneck = settings.lora, settings.bottleneck
    if not (lora.rank or bottleneck.width):
        return
    kind, wanted = ("lora", lora.layers) if lora.rank else ("bottleneck", bottleneck.layers)
    for name in _chosen(network, f"model.{kind}.layers", wanted):
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        made: Adapter
        if lora.rank:
            alpha = lora.rank if lora.alpha is None else lora.alpha
            made = Lora(layer, lora.rank, alpha)
        else:
            made = Bottleneck(layer, bottleneck.width)
        replace(network, name, made)


def _chosen(network: nn.Sequential, setting: str, wanted: Sequence[str]) -> list[str]:
    """The names of the linear layers that a setting names; of all that are possible, if none."""
    possible, problems = names(network), []
    if not possible:
        raise ConfigError(
            f"{setting}: the model has no linear layer before its last stage; wanted one to put an "
            "adapter around"
        )
    for one in wanted:
        if not any(_is_named(name, one) for name in possible):
            problems.append(
                f"{setting}: no linear layer '{one}'; possible are: {', '.join(possible)}"
            )
    if problems:
        raise ConfigError(*problems)
    return [n for n in possible if not wanted or any(_is_named(n, one) for one in wanted)]


def _is_named(name: str, wanted: str) -> bool:
    """Whether a layer is of that name, within a module of that name, or ends with that name."""
    return name == wanted or name.startswith(f"{wanted}.") or name.endswith(f".{wanted}")


def parameters(network: nn.Module) -> Iterator[str]:
    """The names of the adapters' own parameters."""
    for name, module in network.named_modules():
        if isinstance(module, Adapter):
            for own in ("down", "up"):
                yield from (f"{name}.{own}.{n}" for n, _ in getattr(module, own).named_parameters())


def drawn(network: nn.Module) -> Iterator[str]:
    """The names of the drawn factors A of low-rank products, which can be frozen."""
    for name, module in network.named_modules():
        if isinstance(module, Lora):
            yield f"{name}.down.weight"


def merged(network: nn.Sequential) -> nn.Sequential:
    """A copy of a network that computes the same without low-rank products.

    Raises:
        ConfigError: if an adapter is not linear, or if there is none.
    """
    if not any(isinstance(module, Adapter) for module in network.modules()):
        raise ConfigError("nothing can be merged: wanted a model with model.lora, found no adapter")
    found = copy.deepcopy(network)
    for name, module in list(found.named_modules()):
        if isinstance(module, Adapter):
            if not isinstance(module, Lora) or type(module.base) is not nn.Linear:
                raise ConfigError(
                    f"the model's layer '{name}' has an adapter that cannot be merged into its "
                    "weight; wanted a low-rank product (model.lora) with a linear layer"
                )
            replace(found, name, module.merged())
    return found


def replace(network: nn.Module, name: str, module: nn.Module) -> None:
    """Replaces a module of a network, in place."""
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, module)
