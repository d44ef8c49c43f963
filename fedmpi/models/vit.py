"""Vision transformer: an image as a sequence of patches; DeiT's sizes tiny and small.

A. Dosovitskiy et al., *An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale*,
ICLR 2021, arXiv 2010.11929: a linear layer on each patch, trainable positions, blocks with
LayerNorm in front of attention and of two linear layers with GELU between them, LayerNorm, and a
linear layer on a class token. The sizes are those of H. Touvron et al., *Training data-efficient
image transformers & distillation through attention*, ICML 2021, arXiv 2012.12877: ViT-Ti with 192
numbers and 3 heads, ViT-S with 384 and 6, both of 12 blocks. With `patch = 16`, 3x224x224 samples
and 1000 classes they have 5,717,416 and 22,050,664 parameters.
Differs from DeiT: neither stochastic depth nor a distillation token.

Names of parameters: embed.patches (a convolution), embed.token, embed.positions (the class token's
first); of each block norm1, attention.heads.query, .key and .value, attention.output, norm2,
mlp.hidden, mlp.output; head.norm, head.classes; each with weight, and bias where there is one.

Split points: embed, block1, block2, ...; each sends all tokens.
"""

from collections import OrderedDict
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedmpi import config
from fedmpi.config import ConfigError, Factor
from fedmpi.networks.attention import Attention, Places, Pool, initialise, mlp
from fedmpi.networks.initial import Layout, by_table
from fedmpi.networks.layers import dropout

EPSILON = 1e-6
"""Added to variances, in the code of ViT and DeiT."""
SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6)}
"""Width, depth and heads."""
DISTILLED = "a token of distillation"
PUBLISHED = (
    Layout(
        by_table(
            {
                "embed.patches": "embeddings.patch_embeddings.projection",
                "embed.token.weight": "embeddings.cls_token",
                "embed.positions.weight": "embeddings.position_embeddings",
                "block*.norm1": "encoder.layer.*.layernorm_before",
                "block*.attention.heads.query": "encoder.layer.*.attention.attention.query",
                "block*.attention.heads.key": "encoder.layer.*.attention.attention.key",
                "block*.attention.heads.value": "encoder.layer.*.attention.attention.value",
                "block*.attention.output": "encoder.layer.*.attention.output.dense",
                "block*.norm2": "encoder.layer.*.layernorm_after",
                "block*.mlp.hidden": "encoder.layer.*.intermediate.dense",
                "block*.mlp.output": "encoder.layer.*.output.dense",
                "head.norm": "layernorm",
                "head.classes": "classifier",
            }
        ),
        roots=("vit.", "deit."),
        others=("pooler.",),
        strange={"embeddings.distillation_token": DISTILLED},
    ),
    Layout(
        by_table(
            {
                "embed.patches": "patch_embed.proj",
                "embed.token.weight": "cls_token",
                "embed.positions.weight": "pos_embed",
                "block*.norm1": "blocks.*.norm1",
                "block*.attention.heads.query": "blocks.*.attn.query",
                "block*.attention.heads.key": "blocks.*.attn.key",
                "block*.attention.heads.value": "blocks.*.attn.value",
                "block*.attention.output": "blocks.*.attn.proj",
                "block*.norm2": "blocks.*.norm2",
                "block*.mlp.hidden": "blocks.*.mlp.fc1",
                "block*.mlp.output": "blocks.*.mlp.fc2",
                "head.norm": "norm",
                "head.classes": "head",
            }
        ),
        fused={"qkv": ("query", "key", "value")},
        strange={"dist_token": DISTILLED},
    ),
)
"""Hugging Face's ViT, also the one in which it keeps DeiT, and that of timm and DeiT's own code."""


class Config(config.Model):
    size: Literal["tiny", "small"] = "tiny"
    """Published size: the defaults of width, depth and heads. tiny: 192, 12, 3 (ViT-Ti). small:
    384, 12, 6 (ViT-S)."""
    patch: int = Field(4, ge=1, le=config.MOST)
    """Side length of the square patches in pixels. It must divide height and width. DeiT has 16 for
    224x224 images."""
    width: int | None = Field(None, ge=1, le=config.MOST)
    """Numbers of a token. If absent, by size."""
    depth: int | None = Field(None, ge=1, le=100)
    """Number of blocks. If absent, by size."""
    heads: int | None = Field(None, ge=1, le=config.MOST)
    """Heads of each attention. They must divide the width. If absent, by size."""
    ratio: Factor = 4.0
    """Hidden units of a block's two linear layers, as a multiple of the width."""
    pooling: Literal["class", "mean"] = "class"
    """What the classes are read from. class: a class token in front of the patches. mean: the mean
    of all patches, without a class token."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate behind the positions and behind each linear layer but queries, keys, values and
    classes."""


class Embed(nn.Module):
    """Patches as tokens, behind a class token if there is one, and with their positions."""

    def __init__(self, config: Config, channels: int, patches: int, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, config.patch, config.patch)
        self.token = Places(1, width) if config.pooling == "class" else None
        self.positions = Places(patches + (self.token is not None), width)
        self.dropout = dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, height, width] -> [B, tokens, width], patches row by row."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            tokens = torch.cat([self.token(x), tokens], 1)
        return self.dropout(tokens + self.positions(x))


class Block(nn.Module):
    """Attention and two linear layers, each behind a norm and with a shortcut around both."""

    def __init__(self, config: Config, width: int, heads: int) -> None:
        super().__init__()
        hidden = int(config.ratio * width)
        self.norm1 = nn.LayerNorm(width, EPSILON)
        self.attention = Attention(width, heads)
        self.dropout = dropout(config.dropout)
        self.norm2 = nn.LayerNorm(width, EPSILON)
        self.mlp = mlp(width, hidden, config.dropout, config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, width], likewise: equations 2 and 3."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.mlp(self.norm2(x))


def stages(config: Config, shape: tuple[int, ...], classes: int) -> OrderedDict[str, nn.Module]:
    """Builds embed, block1, ..., head (a norm, a class token or a mean, and a linear layer).

    Raises:
        ConfigError: if the samples are no images, patches do not divide them, or heads the width.
    """
    if len(shape) != 3:
        raise ConfigError(f"model.name = 'vit': wanted images, found samples of shape {shape}")
    _, height, breadth = shape
    if height % config.patch or breadth % config.patch:
        raise ConfigError(
            f"model.patch = {config.patch}: must divide height and width of the images, which are "
            f"{height}x{breadth}"
        )
    given = (config.width, config.depth, config.heads)
    width, depth, heads = (
        own or known for own, known in zip(given, SIZES[config.size], strict=True)
    )
    if width % heads:
        raise ConfigError(f"model.heads = {heads}: must divide {width}, the width")
    patches = (height // config.patch) * (breadth // config.patch)
    found: OrderedDict[str, nn.Module] = OrderedDict()
    found["embed"] = Embed(config, shape[0], patches, width)
    for number in range(1, depth + 1):
        found[f"block{number}"] = Block(config, width, heads)
    found["head"] = nn.Sequential(
        OrderedDict(
            norm=nn.LayerNorm(width, EPSILON),
            pool=Pool("first" if config.pooling == "class" else "mean"),
            classes=nn.Linear(width, classes),
        )
    )
    initialise(nn.Sequential(found))
    return found
