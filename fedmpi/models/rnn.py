"""Recurrent network of characters: which one comes next; LEAF's stacked LSTM, or GRU.

S. Caldas et al., *LEAF: A Benchmark for Federated Settings*, arXiv 1812.01097: an embedding into 8
numbers, two layers of 256 LSTM cells, and a linear layer on what the second has said at last; it is
the network that McMahan et al. (AISTATS 2017, arXiv 1602.05629) describe for Shakespeare. With the
default settings it has 819,920 parameters for a vocabulary of 80 characters.
Differs from the code: a gate has two biases, as in torch, one at its inputs and one at its last
outputs; LEAF's LSTM has one, which makes 817,872.
Differs from the paper: McMahan et al. state 866,578 parameters, which no size of the vocabulary
makes with one bias or with two.

Samples are symbols, [steps], and the labels are symbols of the same vocabulary.
Split points: recurrent1 (the embedding and the first layer: a cut carries the outputs of all
steps), recurrent2, ... (the last carries that of the last step only).
"""

from collections import OrderedDict

from pydantic import Field
from torch import Tensor, nn

from fedmpi import config
from fedmpi.config import ConfigError
from fedmpi.networks.recurrent import Cell, Recurrent

READS = "symbols"
"""See `fedmpi.models`."""


class Config(config.Model):
    cell: Cell = "lstm"
    """Type of the recurrent layers."""
    embedding: int = Field(8, ge=1)
    """Dimension of the symbol embedding."""
    hidden: int = Field(256, ge=1)
    """Width of each recurrent layer."""
    layers: int = Field(2, ge=1, le=100)
    """Number of recurrent layers."""


class Embedding(nn.Embedding):
    """A row of numbers for each symbol."""

    def forward(self, x: Tensor) -> Tensor:
        """Symbols of any type, [B, steps] -> [B, steps, numbers]."""
        return super().forward(x.long())


class Last(nn.Module):
    """What the last step said."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, steps, hidden] -> [B, hidden]."""
        return x[:, -1]


def stages(config: Config, shape: tuple[int, ...], classes: int) -> OrderedDict[str, nn.Module]:
    """recurrent1 (with the embedding), recurrent2, ... (the last for the last step), head.

    Raises:
        ConfigError: if the samples are no sequences.
    """
    if len(shape) != 1:
        raise ConfigError(
            f"model.name = 'rnn': wanted sequences of symbols, found samples of shape {shape}"
        )
    found: OrderedDict[str, nn.Module] = OrderedDict()
    parts: list[nn.Module] = [Embedding(classes, config.embedding)]
    inputs = config.embedding
    for number in range(1, config.layers + 1):
        parts.append(Recurrent(config.cell, inputs, config.hidden))
        if number == config.layers:
            parts.append(Last())
        found[f"recurrent{number}"] = nn.Sequential(*parts)
        parts, inputs = [], config.hidden
    found["head"] = nn.Linear(config.hidden, classes)
    return found
