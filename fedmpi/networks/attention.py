"""Parts of transformers: attention, vectors of places, and padding that travels in activations.

A head of an attention is a channel: its rows of query, key and value go together, and so do the
columns of the layer behind that read it. The numbers of a token are channels in the last dimension.

Padding is a vector of zeros. A network is a sequence of stages through which one tensor passes, and
it may be cut between any two of them; so what tells padded tokens from real ones has to be in that
tensor. An embedding makes padded tokens zero, and every block leaves them zero. They are nobody's
key, and no mean counts them.
"""

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fedmpi.networks.layers import dropouts

LOWEST = -1e30
"""Added to the products with padded keys: their weight is zero, and no sample makes a NaN."""
PARTS = ("query", "key", "value")
"""The linear layers of an attention's heads."""


class Heads(nn.Module):
    """Scaled dot-product attention of several heads: A. Vaswani et al., NeurIPS 2017, section 3.2.

    head_i = softmax(Q_i K_i^T / sqrt(size)) V_i, with Q, K and V linear in the tokens. Rows
    [i * size, (i + 1) * size) of each of the three are head i.

    Args:
        width: numbers of a token.
        heads: how many.
        size: numbers of a token in each head.
        is_padded: whether tokens of zeros are padding, and no keys.

    Attributes:
        query: linear layer, [heads * size, width]; `key` and `value` likewise.
        is_fused: run torch's own operation, which neither `vmap` nor a counter of FLOPs knows;
            `rows.OneByOne` asks for it.
    """

    def __init__(self, width: int, heads: int, size: int, is_padded: bool = False) -> None:
        super().__init__()
        self.heads, self.size, self.is_padded, self.is_fused = heads, size, is_padded, False
        self.query, self.key, self.value = (nn.Linear(width, heads * size) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, width] -> [B, tokens, heads * size]."""
        query, key, value = (
            layer(x).unflatten(2, (self.heads, self.size)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        bias = self._bias(x).to(query.dtype) if self.is_padded else None
        if self.is_fused:
            found = scaled_dot_product_attention(query, key, value, bias)
        else:
            scores = query @ key.transpose(2, 3) * self.size**-0.5
            scores = scores if bias is None else scores + bias
            found = scores.softmax(3).to(value.dtype) @ value
        return found.transpose(1, 2).flatten(2)

    @staticmethod
    def _bias(x: Tensor) -> Tensor:
        """Zero for real keys, `LOWEST` for padded ones: [B, 1, 1, tokens]."""
        return ((x == 0).all(2) * LOWEST)[:, None, None]


class Attention(nn.Module):
    """Heads, and a linear layer that reads all of them.

    Args:
        width: numbers of a token.
        heads: how many; they share the width.
        is_padded: see `Heads`.
    """

    def __init__(self, width: int, heads: int, is_padded: bool = False) -> None:
        super().__init__()
        self.heads = Heads(width, heads, width // heads, is_padded)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, width], likewise."""
        return self.output(self.heads(x))


class Places(nn.Embedding):
    """A trainable vector for each of some places, the same for every sample."""

    def forward(self, x: Tensor) -> Tensor:
        """Takes samples [B, ...], which only say how many; returns [B, places, width]."""
        return self.weight.expand(x.shape[0], -1, -1)


class Padding(nn.Module):
    """Makes padded tokens zero."""

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        """Returns x [B, tokens, width] with zeros where given [B, tokens, any] has zeros alone."""
        return x * (given != 0).any(2, keepdim=True)


class Pool(nn.Module):
    """One vector of all tokens.

    Args:
        kind: that of the first token, or the mean.
        is_padded: whether the mean leaves out tokens of zeros.
    """

    def __init__(self, kind: Literal["first", "mean"], is_padded: bool = False) -> None:
        super().__init__()
        self.kind, self.is_padded = kind, is_padded

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, width] -> [B, width]."""
        if self.kind == "first":
            return x[:, 0]
        if not self.is_padded:
            return x.mean(1)
        return x.sum(1) / (x != 0).any(2).sum(1, keepdim=True).clamp(min=1)


def mlp(width: int, hidden: int, inner: float, outer: float) -> nn.Sequential:
    """Two linear layers with GELU between them, by the normal distribution itself.

    D. Hendrycks, K. Gimpel, *Gaussian Error Linear Units*, arXiv 1606.08415.

    Args:
        width: numbers of a token, in and out.
        hidden: units between.
        inner: dropout rate of the hidden units.
        outer: dropout rate of the outputs.
    """
    layers = [("hidden", nn.Linear(width, hidden)), ("gelu", nn.GELU())]
    layers += [("inner", layer) for layer in dropouts(inner)]
    layers += [("output", nn.Linear(hidden, width))]
    layers += [("outer", layer) for layer in dropouts(outer)]
    return nn.Sequential(OrderedDict[str, nn.Module](layers))


def initialise(stages: nn.Module, deviation: float = 0.02) -> None:
    """Draws weights from a normal distribution that is cut off at -2 and 2; biases are zero.

    BERT's code and DeiT's begin so. Norms stay as they are.
    """
    for module in stages.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
            nn.init.trunc_normal_(module.weight, std=deviation)
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
            nn.init.zeros_(module.bias)
