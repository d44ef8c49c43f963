"""Multilayer perceptron; without hidden layers, multinomial logistic regression.

Split points: hidden1, hidden2, ...
"""

from collections import OrderedDict
from itertools import pairwise
from math import prod

from pydantic import Field
from torch import nn

from fedmpi import config
from fedmpi.config import Width
from fedmpi.networks.layers import dropouts


class Config(config.Model):
    hidden: tuple[Width, ...] = Field((200, 200), strict=False)
    """Width of each hidden layer. [] is logistic regression. The default is the 2NN of McMahan et
    al. (AISTATS 2017)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate of each hidden layer."""


def stages(config: Config, shape: tuple[int, ...], classes: int) -> OrderedDict[str, nn.Module]:
    """Builds linear layer and ReLU for each hidden layer, then a linear head."""
    widths = [prod(shape), *config.hidden]
    found: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (inputs, outputs) in enumerate(pairwise(widths), 1):
        parts = [nn.Flatten(), nn.Linear(inputs, outputs), nn.ReLU(), *dropouts(config.dropout)]
        found[f"hidden{number}"] = nn.Sequential(*parts)
    found["head"] = nn.Sequential(nn.Flatten(), nn.Linear(widths[-1], classes))
    return found
