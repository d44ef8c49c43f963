"""Residual networks for small images: depths 8, 14, 20, 32, 56 (16-32-64 channels) and 18, 50.

K. He, X. Zhang, S. Ren, J. Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016, arXiv
1512.03385. Depths 20, 32 and 56 are those of section 4.2, with 6n + 2 layers and shortcuts without
parameters (option A). Depths 8 and 14 are the same for n = 1 and 2, for weak devices and machines.
Depths 18 and 50 are those of table 1, with a 3x3 stem and no pooling behind it, as usual for 32x32
images. By default norm layers are those of Y. Wu, K. He, *Group Normalization*, ECCV 2018, arXiv
1803.08494, because batches of federated clients are small and heterogeneous. `norm = batch` is the
paper's, and `norm = static` that of HeteroFL (ICLR 2021, arXiv 2010.01264).

Split points: stem, and the blocks: group1_block1, group1_block2, ...
"""

from collections import OrderedDict
from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import relu

from fedmpi import config
from fedmpi.config import ConfigError
from fedmpi.networks.initial import Layout
from fedmpi.networks.layers import OptionA, norms

SMALL = (8, 14, 20, 32, 56)
"""The depths of section 4.2."""
BLOCKS = {depth: (depth // 6,) * 3 for depth in SMALL} | {18: (2,) * 4, 50: (3, 4, 6, 3)}
"""Number of blocks in each group, by depth."""


class Config(config.Model):
    depth: Literal[8, 14, 18, 20, 32, 50, 56] = 20
    """Number of layers with weights, not counting shortcuts."""
    width: int | None = Field(None, ge=1, le=config.MOST)
    """Channels of the first group of blocks; each further group has twice as many. If absent: 64
    for depth 18 and 50, else 16."""
    norm: Literal["group", "batch", "static"] = "group"
    """Normalisation layers. group: GroupNorm. batch: BatchNorm with running statistics (see the
    setting statistics). static: BatchNorm without running statistics."""
    groups: int = Field(8, ge=1, le=config.MOST)
    """Number of groups of each GroupNorm. It must divide the number of channels. SSFL uses 32 with
    depth 18."""


def stages(config: Config, shape: tuple[int, ...], classes: int) -> OrderedDict[str, nn.Module]:
    """Builds a stem, one stage for each block, and a head behind global average pooling.

    Raises:
        ConfigError: if the samples are no images, or `groups` does not divide the channels.
    """
    width = config.width or (16 if config.depth in SMALL else 64)
    if len(shape) != 3:
        raise ConfigError(f"model.name = 'resnet': wanted images, found samples of shape {shape}")
    if config.norm == "group" and width % config.groups:
        raise ConfigError(f"model.groups = {config.groups}: must divide {width}, the channels")
    found: OrderedDict[str, nn.Module] = OrderedDict()
    found["stem"] = nn.Sequential(*convolution(config, shape[0], width, 3, 1), nn.ReLU())
    channels = width
    for group, blocks in enumerate(BLOCKS[config.depth]):
        for number in range(blocks):
            stride = 2 if group and not number else 1
            block = Block(config, channels, width << group, stride)
            found[f"group{group + 1}_block{number + 1}"] = block
            channels = block.channels
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
    found["head"] = nn.Sequential(*head)
    return found


def _torchvision(name: str) -> str:
    """The name of a tensor in torchvision's ResNets, of which depths 18 and 50 are the same."""
    stage, *inner, own = name.split(".")
    if stage == "stem":
        return f"{('conv1', 'bn1')[int(inner[0])]}.{own}"
    if stage == "head":
        return f"fc.{own}"
    group, block = (int(part.lstrip("groupblck")) for part in stage.split("_"))
    place, number = inner[0], int(inner[1])
    kind = f"downsample.{number}"
    if place == "residual":  # convolution, norm and ReLU, again and again
        kind = f"{('conv', 'bn')[number % 3]}{number // 3 + 1}"
    return f"layer{group}.{block - 1}.{kind}.{own}"


PUBLISHED = (Layout(_torchvision),)


def convolution(
    config: Config, inputs: int, outputs: int, side: int, stride: int
) -> list[nn.Module]:
    """Builds a padded convolution and its norm; only the stride changes height and width."""
    layer = nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False)
    return [layer, *norms(config.norm, outputs, config.groups)]


class Block(nn.Module):
    """Two convolutions, or three at depth 50, with a shortcut around them."""

    def __init__(self, config: Config, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        if config.depth == 50:
            self.channels = 4 * inner
            layers = [(inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, 4 * inner, 1, 1)]
        else:
            self.channels = inner
            layers = [(inputs, inner, 3, stride), (inner, inner, 3, 1)]
        parts: list[nn.Module] = []
        for layer in layers:
            parts += [*convolution(config, *layer), nn.ReLU()]
        self.residual = nn.Sequential(*parts[:-1])
        self.shortcut: nn.Module = nn.Identity()
        if (inputs, 1) != (self.channels, stride):
            narrow = convolution(config, inputs, self.channels, 1, stride)
            more = self.channels - inputs
            is_small = config.depth in SMALL
            self.shortcut = OptionA(stride, more) if is_small else nn.Sequential(*narrow)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, inputs, H, W] to [B, channels, H / stride, W / stride]."""
        return relu(self.residual(x) + self.shortcut(x))
