"""VGG for small images: depths 11, 13, 16 and 19, with or without norm layers.

K. Simonyan, A. Zisserman, *Very Deep Convolutional Networks for Large-Scale Image Recognition*,
ICLR 2015, arXiv 1409.1556: the convolutions of its table 1 (A, B, D and E), 3x3 with bias and ReLU,
in five blocks that each end in 2x2 max pooling.
Differs from the paper: the hidden layers have 512 units instead of 4096, as usual for 32x32 images,
of which one pixel is left. `depth = 11` is therefore the VGG-11 of NIID-Bench and SPATL (9,750,922
parameters for 3x32x32 samples of ten classes). `depth = 19`, `norm = batch` and `hidden = []` make
the 20,040,522 parameters of VGG-19 with BatchNorm and a linear head, as is usual for CIFAR-10.
Differs from the code: NIID-Bench has dropout in front of the hidden layers, the paper behind them.

Split points: conv1, conv2, ... (a block's last one with the pooling), dense1, dense2.
"""

from collections import OrderedDict
from typing import Literal

from pydantic import Field
from torch import nn

from fedmpi import config
from fedmpi.config import ConfigError, Width
from fedmpi.networks.layers import Norm, dropouts, norms

BLOCKS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Number of convolutions in each block, by depth."""
CHANNELS = (64, 128, 256, 512, 512)
"""Channels of the convolutions, by block."""
LEAST = 2 ** len(CHANNELS)
"""Side of the smallest images that leave a pixel behind the blocks."""


class Config(config.Model):
    depth: Literal[11, 13, 16, 19] = 11
    """VGG configuration, named by its layers with weights in the paper (with two hidden layers)."""
    norm: Norm = "none"
    """Normalisation after each convolution. none: no normalisation. group: GroupNorm. batch:
    BatchNorm with running statistics (see the setting statistics). static: BatchNorm without
    running statistics."""
    groups: int = Field(8, ge=1, le=config.MOST)
    """Number of groups of each GroupNorm. It must divide the number of channels."""
    hidden: tuple[Width, ...] = Field((512, 512), strict=False)
    """Width of each hidden layer. [] leaves only the linear output layer."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout rate of each hidden layer."""


def stages(config: Config, shape: tuple[int, ...], classes: int) -> OrderedDict[str, nn.Module]:
    """Builds conv1, conv2, ..., dense1, ..., head.

    Raises:
        ConfigError: if the samples are no images, or too small, or `groups` does not divide the
            channels.
    """
    if len(shape) != 3 or min(shape[1:]) < LEAST:
        raise ConfigError(
            f"model.name = 'vgg': wanted images of at least {LEAST}x{LEAST} pixels, "
            f"found samples of shape {shape}"
        )
    if config.norm == "group" and CHANNELS[0] % config.groups:
        raise ConfigError(
            f"model.groups = {config.groups}: must divide {CHANNELS[0]}, the channels"
        )
    found: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = shape[0]
    for count, outputs in zip(BLOCKS[config.depth], CHANNELS, strict=True):
        for number in range(1, count + 1):
            norm = norms(config.norm, outputs, config.groups)
            parts = [nn.Conv2d(inputs, outputs, 3, padding=1), *norm, nn.ReLU()]
            if number == count:
                parts.append(nn.MaxPool2d(2))
            found[f"conv{len(found) + 1}"] = nn.Sequential(*parts)
            inputs = outputs
    inputs *= (shape[1] // LEAST) * (shape[2] // LEAST)
    for number, outputs in enumerate(config.hidden, 1):
        linear = nn.Linear(inputs, outputs)
        dense = (nn.Flatten(), linear, nn.ReLU(), *dropouts(config.dropout))
        found[f"dense{number}"] = nn.Sequential(*dense)
        inputs = outputs
    found["head"] = nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))
    return found
