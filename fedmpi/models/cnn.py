"""Two convolutions and a hidden layer, after McMahan et al. (AISTATS 2017, arXiv 1602.05629).

Split points: conv1, conv2, dense. With the default settings on 1x28x28 images and ten classes it
has the paper's 1,663,370 parameters (5x5 convolutions of 32 and 64 channels, each padded and
followed by 2x2 max pooling; 512 hidden units).
"""

from collections import OrderedDict

from pydantic import Field
from torch import nn

from fedmpi import config
from fedmpi.config import ConfigError, Width
from fedmpi.networks.layers import Norm, dropouts, norms


class Config(config.Model):
    channels: tuple[Width, Width] = Field((32, 64), strict=False)
    """Output channels of the two convolutions."""
    kernel: int = Field(5, ge=1, le=config.MOST)
    """Side length of the convolution kernels in pixels."""
    padding: bool = True
    """Pad the convolutions, so that an odd kernel keeps height and width."""
    norm: Norm = "none"
    """Normalisation after each convolution. none: no normalisation. group: GroupNorm. batch:
    BatchNorm with running statistics (see the setting statistics). static: BatchNorm without
    running statistics."""
    groups: int = Field(8, ge=1, le=config.MOST)
    """Number of groups of each GroupNorm. It must divide the number of channels."""
    hidden: int = Field(512, ge=1, le=config.MOST)
    """Width of the hidden layer."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate of the hidden layer."""


def stages(config: Config, shape: tuple[int, ...], classes: int) -> OrderedDict[str, nn.Module]:
    """Builds conv1, conv2 (each with ReLU and pooling), dense (with ReLU), head.

    Raises:
        ConfigError: if the samples are no images, or too small for the windows, or `groups` does
            not divide the channels.
    """
    if len(shape) != 3:
        raise ConfigError(f"model.name = 'cnn': wanted images, found samples of shape {shape}")
    first, second = config.channels
    if config.norm == "group" and (first % config.groups or second % config.groups):
        raise ConfigError(
            f"model.groups = {config.groups}: must divide {first} and {second}, the channels"
        )
    padding = config.kernel // 2 if config.padding else 0
    height, width = shape[1:]
    for _ in range(2):
        height, width = ((side + 2 * padding - config.kernel + 1) // 2 for side in (height, width))
    if height < 1 or width < 1:
        raise ConfigError(
            f"model.kernel = {config.kernel}: nothing is left of {shape[1]}x{shape[2]} images "
            "after two convolutions and poolings; a smaller kernel or model.padding = true helps"
        )

    def convolution(inputs: int, outputs: int) -> nn.Sequential:
        window = nn.Conv2d(inputs, outputs, config.kernel, padding=padding)
        norm = norms(config.norm, outputs, config.groups)
        return nn.Sequential(window, *norm, nn.ReLU(), nn.MaxPool2d(2))

    flat = second * height * width
    return OrderedDict(
        conv1=convolution(shape[0], first),
        conv2=convolution(first, second),
        dense=nn.Sequential(
            nn.Flatten(), nn.Linear(flat, config.hidden), nn.ReLU(), *dropouts(config.dropout)
        ),
        head=nn.Linear(config.hidden, classes),
    )
