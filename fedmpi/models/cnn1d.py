"""Convolutions along time and a hidden layer, for windows of sensors: samples [channels, steps].

Reconstruction, after a network that public code for federated activity recognition calls
`196-16C_4M_1024D`: 196 channels with windows of 16 steps, max pooling over 4, 1024 hidden units,
half of which are dropped in training, for windows of 128 steps of accelerometer and gyroscope, [6,
128]. All else is ours: a convolution without padding, ReLU, dropout behind the hidden layer. This
makes 5,645,898 parameters for six classes; no paper states the number.

Split points: conv1, conv2, ..., dense.
"""

from collections import OrderedDict

from pydantic import Field
from torch import nn

from fedmpi import config
from fedmpi.config import ConfigError, Width
from fedmpi.networks.layers import dropouts


class Config(config.Model):
    channels: tuple[Width, ...] = Field((196,), min_length=1, strict=False)
    """Output channels of each convolution."""
    kernel: int = Field(16, ge=1, le=config.MOST)
    """Length of the convolution kernels in time steps."""
    pool: int = Field(4, ge=1, le=config.MOST)
    """Window of the max pooling after each convolution, in time steps. 1 disables pooling."""
    hidden: int = Field(1024, ge=1, le=config.MOST)
    """Width of the hidden layer."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout rate of the hidden layer."""


def stages(config: Config, shape: tuple[int, ...], classes: int) -> OrderedDict[str, nn.Module]:
    """Builds conv1, ... (each with ReLU and pooling), dense (with ReLU), head.

    Raises:
        ConfigError: if the samples are no windows, or too short.
    """
    if len(shape) != 2:
        raise ConfigError(
            "model.name = 'cnn1d': wanted windows of shape (channels, steps), "
            f"found samples of shape {shape}"
        )
    found: OrderedDict[str, nn.Module] = OrderedDict()
    inputs, steps = shape
    for number, outputs in enumerate(config.channels, 1):
        window = nn.Conv1d(inputs, outputs, config.kernel)
        found[f"conv{number}"] = nn.Sequential(window, nn.ReLU(), nn.MaxPool1d(config.pool))
        inputs, steps = outputs, (steps - config.kernel + 1) // config.pool
    if steps < 1:
        raise ConfigError(
            f"model.kernel = {config.kernel}: nothing is left of {shape[1]} steps behind "
            f"{len(config.channels)} convolutions with model.pool = {config.pool}; a smaller "
            "kernel or pool, or fewer convolutions, helps"
        )
    dense = (nn.Flatten(), nn.Linear(inputs * steps, config.hidden), nn.ReLU())
    found["dense"] = nn.Sequential(*dense, *dropouts(config.dropout))
    found["head"] = nn.Linear(config.hidden, classes)
    return found
