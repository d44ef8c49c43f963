"""Recurrent network that predicts the next character: LEAF's stacked LSTM, or GRU.

S. Caldas et al., *LEAF: A Benchmark for Federated Settings*, arXiv 1812.01097: an embedding into 8
numbers, two layers of 256 LSTM cells, and a linear layer on the last output of the second. It is
the network that McMahan et al. (AISTATS 2017, arXiv 1602.05629) describe for Shakespeare. With the
default settings it has 819,920 parameters for a vocabulary of 80 characters.
Differs from the code: a gate has two biases, as in torch, one for its inputs and one for its last
outputs; LEAF's LSTM has one, which makes 817,872 parameters.
Differs from the paper: McMahan et al. state 866,578 parameters, which no size of the vocabulary
makes with one bias or with two.

Samples are symbols, [steps]. Of characters the labels are symbols of the same vocabulary.
Split points: recurrent1 (the embedding and the first layer; the outputs of all steps are sent at
this cut), recurrent2, ... (at the last, only the output of the last step is sent).
"""

from collections import OrderedDict

from pydantic import Field
from torch import Tensor, nn

from fedmpi import config
from fedmpi.config import ConfigError
from fedmpi.networks.recurrent import Cell, Recurrent

READS = "symbols"
"""Kind of the samples' values (see `fedmpi.models`)."""


class Config(config.Model):
    cell: Cell = "lstm"
    """Type of the recurrent layers."""
    embedding: int = Field(8, ge=1, le=config.MOST)
    """Dimension of the symbol embedding."""
    hidden: int = Field(256, ge=1, le=config.MOST)
    """Width of each recurrent layer."""
    layers: int = Field(2, ge=1, le=100)
    """Number of recurrent layers."""


class Embedding(nn.Embedding):
    """A trainable vector for each symbol."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps symbols of any type, [B, steps], to vectors, [B, steps, numbers]."""
        return super().forward(x.long())


class Last(nn.Module):
    """Selects the output of the last step."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, steps, hidden] to [B, hidden]."""
        return x[:, -1]


def stages(
    config: Config, shape: tuple[int, ...], classes: int, symbols: int
) -> OrderedDict[str, nn.Module]:
    """Builds recurrent1 (with the embedding), recurrent2, ... and a head on the last step.

    Raises:
        ConfigError: if the samples are no sequences.
    """
    if len(shape) != 1:
        raise ConfigError(
            f"model.name = 'rnn': wanted sequences of symbols, found samples of shape {shape}"
        )
    found: OrderedDict[str, nn.Module] = OrderedDict()
    parts: list[nn.Module] = [Embedding(symbols, config.embedding)]
    inputs = config.embedding
    for number in range(1, config.layers + 1):
        parts.append(Recurrent(config.cell, inputs, config.hidden))
        if number == config.layers:
            parts.append(Last())
        found[f"recurrent{number}"] = nn.Sequential(*parts)
        parts, inputs = [], config.hidden
    found["head"] = nn.Linear(config.hidden, classes)
    return found
