"""LeNet for small images: two 5x5 convolutions and two hidden layers; NIID-Bench's `simple-cnn`.

Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, *Gradient-Based Learning Applied to Document
Recognition*, Proceedings of the IEEE 1998; with ReLU and max pooling as in Q. Li, Y. Diao, Q.
Chen, B. He, *Federated Learning on Non-IID Data Silos*, ICDE 2022, arXiv 2102.02079. With the
default settings and ten classes it has 62,006 parameters for 3x32x32 samples and 44,426 for
1x28x28, as in their code.

Split points: conv1, conv2, dense1, dense2.
"""

from collections import OrderedDict

from pydantic import Field
from torch import nn

from fedmpi import config
from fedmpi.config import ConfigError, Width

LEAST = 16
"""Side of the smallest images that leave a pixel: ((16 - 4) / 2 - 4) / 2 = 1."""


class Config(config.Model):
    channels: tuple[Width, Width] = Field((6, 16), strict=False)
    """Output channels of the two convolutions."""
    hidden: tuple[Width, Width] = Field((120, 84), strict=False)
    """Widths of the two hidden layers."""


def stages(config: Config, shape: tuple[int, ...], classes: int) -> OrderedDict[str, nn.Module]:
    """Builds conv1, conv2 (each with ReLU and pooling), dense1, dense2 (each with ReLU), head.

    Raises:
        ConfigError: if the samples are no images, or too small.
    """
    if len(shape) != 3 or min(shape[1:]) < LEAST:
        raise ConfigError(
            f"model.name = 'lenet': wanted images of at least {LEAST}x{LEAST} pixels, "
            f"found samples of shape {shape}"
        )
    first, second = config.channels
    height, width = (((side - 4) // 2 - 4) // 2 for side in shape[1:])

    def convolution(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 5), nn.ReLU(), nn.MaxPool2d(2))

    def dense(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs), nn.ReLU())

    return OrderedDict(
        conv1=convolution(shape[0], first),
        conv2=convolution(first, second),
        dense1=dense(second * height * width, config.hidden[0]),
        dense2=dense(*config.hidden),
        head=nn.Linear(config.hidden[1], classes),
    )
