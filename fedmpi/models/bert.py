"""Transformer encoder of texts: BERT; sizes BERT-tiny and MiniLM-L6-H384.

J. Devlin, M.-W. Chang, K. Lee, K. Toutanova, *BERT: Pre-training of Deep Bidirectional Transformers
for Language Understanding*, NAACL 2019, arXiv 1810.04805: vectors of symbols, of positions and of
the text of a pair, added and normalised; blocks with LayerNorm behind attention and behind two
linear layers with GELU between them; a linear layer with tanh on the first token, and another one
to the classes. The sizes are BERT-tiny (2 blocks, 128 numbers, 2 heads) of I. Turc et al.,
*Well-Read Students Learn Better*, arXiv 1908.08962, and MiniLM-L6-H384 (6, 384, 12) of W. Wang et
al., *MiniLM*, NeurIPS 2020, arXiv 2002.10957. With `vocabulary = 30522` and `positions = 512` they
have 4,385,920 and 22,713,216 parameters in front of the classes, as published.
Differs from the paper: attention weights have no dropout.

Samples are symbols, [tokens]. `pad = 0` and `separator = 102` are those of the published
vocabularies. A padded token is a vector of zeros between stages, so that a cut carries padding,
too; whatever compresses the values at a cut has to leave zeros zero.

Names of parameters: embed.symbols, embed.positions, embed.types, embed.norm; of each block
attention.heads.query, .key and .value, attention.output, norm1, mlp.hidden, mlp.output, norm2;
head.pooler, head.classes; each with weight, and bias where there is one.

Split points: embed, block1, block2, ...; each sends all tokens.
"""

from collections import OrderedDict
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from fedmpi import config
from fedmpi.config import ConfigError, Factor
from fedmpi.networks.attention import Attention, Padding, Places, Pool, initialise, mlp
from fedmpi.networks.initial import Layout, by_table
from fedmpi.networks.layers import dropout, dropouts

READS = "symbols"
"""Kind of the samples' values (see `fedmpi.models`)."""
EPSILON = 1e-12
"""Added to variances, in BERT's code."""
SIZES = {"tiny": (128, 2, 2), "minilm-l6": (384, 6, 12)}
"""Width, depth and heads."""
PUBLISHED = (
    Layout(
        by_table(
            {
                "embed.symbols": "embeddings.word_embeddings",
                "embed.positions": "embeddings.position_embeddings",
                "embed.types": "embeddings.token_type_embeddings",
                "embed.norm": "embeddings.LayerNorm",
                "block*.attention.heads.query": "encoder.layer.*.attention.self.query",
                "block*.attention.heads.key": "encoder.layer.*.attention.self.key",
                "block*.attention.heads.value": "encoder.layer.*.attention.self.value",
                "block*.attention.output": "encoder.layer.*.attention.output.dense",
                "block*.norm1": "encoder.layer.*.attention.output.LayerNorm",
                "block*.mlp.hidden": "encoder.layer.*.intermediate.dense",
                "block*.mlp.output": "encoder.layer.*.output.dense",
                "block*.norm2": "encoder.layer.*.output.LayerNorm",
                "head.pooler": "pooler.dense",
                "head.classes": "classifier",
            }
        ),
        roots=("bert.",),
        renamed={"gamma": "weight", "beta": "bias"},
        others=("cls.", "pooler."),
    ),
)
"""Hugging Face's BERT, by itself or within a model for a task; MiniLM has the same names."""


class Config(config.Model):
    size: Literal["tiny", "minilm-l6"] = "tiny"
    """Published size: the defaults of width, depth and heads. tiny: 128, 2, 2 (BERT-tiny).
    minilm-l6: 384, 6, 12 (MiniLM-L6-H384)."""
    width: int | None = Field(None, ge=1, le=config.MOST)
    """Numbers of a token. If absent, by size."""
    depth: int | None = Field(None, ge=1, le=100)
    """Number of blocks. If absent, by size."""
    heads: int | None = Field(None, ge=1, le=config.MOST)
    """Heads of each attention. They must divide the width. If absent, by size."""
    ratio: Factor = 4.0
    """Hidden units of a block's two linear layers, as a multiple of the width."""
    vocabulary: int | None = Field(None, ge=1, le=config.MOST)
    """Number of symbols. If absent, that of the samples. Published models have 30522."""
    positions: int | None = Field(None, ge=1, le=config.MOST)
    """Longest sequence. If absent, the samples' length. Published models have 512."""
    pad: int | None = Field(None, ge=0, le=config.MOST)
    """Symbol that fills up short texts. If absent, every symbol is one of the text. Published
    models have 0."""
    separator: int | None = Field(None, ge=0, le=config.MOST)
    """Symbol that ends the first of two texts; tokens behind it are of the second type. If absent,
    all are of the first one."""
    pooling: Literal["first", "mean"] = "first"
    """What the classes are read from: the first token, or the mean of all tokens but padding."""
    pooler: bool = True
    """Put a linear layer with tanh in front of the classes, as BERT does."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate of the embedding, of the outputs of attention and of the linear layers behind
    it, and in front of the classes."""

    @property
    def pads(self) -> str:
        """Padded tokens are vectors of zeros, if there is a pad."""
        return "" if self.pad is None else f"model.pad = {self.pad}"


class Embed(nn.Module):
    """Symbols as tokens: the sum of three trainable vectors, normalised; zeros for padding."""

    def __init__(self, config: Config, vocabulary: int, positions: int, width: int) -> None:
        super().__init__()
        self.pad, self.separator = config.pad, config.separator
        self.symbols = nn.Embedding(vocabulary, width)
        self.positions = Places(positions, width)
        self.types = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, EPSILON)
        self.padding = Padding()
        self.dropout = dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Maps symbols of any type, [B, tokens], to [B, tokens, width]."""
        x = x.long()
        types = x * 0
        if self.separator is not None:
            ends = x == self.separator
            types = (ends.cumsum(1) - ends.long()).clamp(max=1)
        places = self.positions(x)[:, : x.shape[1]]
        found = self.norm(self.symbols(x) + places + self.types(types))
        if self.pad is not None:
            found = self.padding(found, (x - self.pad).unsqueeze(2))
        return self.dropout(found)


class Block(nn.Module):
    """Attention and two linear layers, each with a shortcut around it and a norm behind both."""

    def __init__(self, config: Config, width: int, heads: int) -> None:
        super().__init__()
        self.is_padded = config.pad is not None
        self.attention = Attention(width, heads, self.is_padded)
        self.dropout = dropout(config.dropout)
        self.norm1 = nn.LayerNorm(width, EPSILON)
        self.mlp = mlp(width, int(config.ratio * width), 0.0, config.dropout)
        self.norm2 = nn.LayerNorm(width, EPSILON)
        self.padding = Padding()

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, width], likewise."""
        inner = self.norm1(x + self.dropout(self.attention(x)))
        found = self.norm2(inner + self.mlp(inner))
        return self.padding(found, x) if self.is_padded else found


def stages(
    config: Config, shape: tuple[int, ...], classes: int, symbols: int
) -> OrderedDict[str, nn.Module]:
    """Builds embed, block1, ..., head (one vector of all tokens, a pooler, and a linear layer).

    Raises:
        ConfigError: if the samples are no sequences, too long, or of more symbols than the
            vocabulary; if `pad` or `separator` is no symbol; or if heads do not divide the width.
    """
    if len(shape) != 1:
        raise ConfigError(
            f"model.name = 'bert': wanted sequences of symbols, found samples of shape {shape}"
        )
    given = (config.width, config.depth, config.heads)
    width, depth, heads = (
        own or known for own, known in zip(given, SIZES[config.size], strict=True)
    )
    vocabulary, positions = config.vocabulary or symbols, config.positions or shape[0]
    problems = []
    if width % heads:
        problems.append(f"model.heads = {heads}: must divide {width}, the width")
    if vocabulary < symbols:
        problems.append(
            f"model.vocabulary = {vocabulary}: wanted at least {symbols}, the samples' symbols"
        )
    if positions < shape[0]:
        problems.append(f"model.positions = {positions}: wanted at least {shape[0]}, a sample's")
    for name, symbol in (("pad", config.pad), ("separator", config.separator)):
        if symbol is not None and symbol >= vocabulary:
            problems.append(f"model.{name} = {symbol}: wanted less than {vocabulary}, the symbols")
    if problems:
        raise ConfigError(*problems)
    found: OrderedDict[str, nn.Module] = OrderedDict()
    found["embed"] = Embed(config, vocabulary, positions, width)
    for number in range(1, depth + 1):
        found[f"block{number}"] = Block(config, width, heads)
    head = OrderedDict[str, nn.Module](pool=Pool(config.pooling, config.pad is not None))
    if config.pooler:
        head["pooler"], head["tanh"] = nn.Linear(width, width), nn.Tanh()
    for layer in dropouts(config.dropout):
        head["dropout"] = layer
    head["classes"] = nn.Linear(width, classes)
    found["head"] = nn.Sequential(head)
    initialise(nn.Sequential(found))
    return found
