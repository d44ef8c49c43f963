"""FedLite: activations cross the cut as codebooks and codes, and the client corrects gradients.

J. Wang, H. Qi, A. S. Rawat, S. Reddi, S. Waghmare, F. X. Yu, G. Joshi, *FedLite: A Scalable
Approach for Federated Learning on Resource-constrained Clients*, arXiv 2201.11865. A sample's
values are vectors, which are clustered over the batch (see `quantized.clusters`). The gradient g by
what arrives comes back as it is, and the front learns from g + lambda (a - a'), where a' stands for
its activations a: the gradient of a term lambda / 2 ||a - a'||^2 besides, which draws activations
to what can be said of them. If there are no more vectors than centroids, it is SplitFed.

Differs from the paper: all clients take each step together, as in SplitFed.
Reconstruction: how vectors are grouped and clustered; the correction's sign and its factor, which
is the same beside gradients of a batch's mean loss whatever its size, are as we understand them.
"""

from collections.abc import Sequence
from math import prod

from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.config import ConfigError, Settings
from fedmpi.messages import quantized
from fedmpi.messages.codec import Block
from fedmpi.methods import splitfed
from fedmpi.split import links
from fedmpi.split.cuts import Crossing, shape_behind
from fedmpi.streams import Purpose
from fedmpi.training.train import Trainer


class Config(splitfed.Config):
    vectors: int | None = Field(None, ge=1, le=config.MOST)
    """Vectors per sample at a cut (q in the paper). It must divide the number of activations. If
    absent, one per channel."""
    groups: int = Field(1, ge=1, le=config.MOST)
    """Number of codebooks (R in the paper), one per group of neighbouring vectors. It must divide
    vectors."""
    centroids: int = Field(16, ge=2, le=1 << 16)
    """Centroids per codebook (L in the paper)."""
    iterations: int = Field(10, ge=0, le=config.MOST)
    """Iterations of k-means (Lloyd's algorithm) in each step."""
    correction: float = Field(1e-4, ge=0, le=config.LARGEST)
    """Lambda: weight of the gradient correction. 0 disables it."""

    def divided(self, trainer: Trainer) -> list[int]:
        """Vectors of a sample at each cut.

        Raises:
            ConfigError: if its values, or these vectors, cannot be divided so.
        """
        before = self.parts(trainer.flat)[: 1 if self.tail is None else 2]
        cuts = [shape_behind(before[: 1 + cut], trainer.feed.x) for cut in range(len(before))]
        found = [self.vectors or shape[0] for shape in cuts]
        for shape, vectors in zip(cuts, found, strict=True):
            divide("vectors", vectors, prod(shape), "a sample's values at the cut")
            divide("groups", self.groups, vectors, "its vectors")
        return found


def divide(setting: str, number: int, whole: int, what: str) -> None:
    """Says what is possible if a setting is no divisor of a whole.

    Raises:
        ConfigError: if so.
    """
    if whole % number:
        possible = ", ".join(str(n) for n in range(1, whole + 1) if whole % n == 0)
        raise ConfigError(
            f"method.{setting} = {number}: wanted a divisor of {whole}, {what}; there are: "
            f"{possible}"
        )


class Link(links.Link[Tensor | None]):
    """Both sides; the one before the cut remembers the correction, unless there is none.

    Attributes:
        vectors: of a sample at each cut.
    """

    method: Config
    vectors: list[int]

    def sent(self, crossing: Crossing, x: Tensor) -> tuple[list[Block], Tensor | None]:
        """Codebooks and codes."""
        method, vectors = self.method, self.vectors[crossing.cut]
        split, random = (vectors, method.groups), self.random(Purpose.LINK, crossing)
        centroids, iterations = method.centroids, method.iterations
        blocks = quantized.clusters(crossing.kind, x, *split, centroids, random, iterations)
        if not method.correction:
            return blocks, None
        there = quantized.clustered(blocks, (len(x), x.shape[1]), *split, x.device)
        return blocks, method.correction * (x - there)

    def arrived(self, crossing: Crossing, blocks: Sequence[Block]) -> tuple[Tensor, None]:
        """The vectors' centroids."""
        vectors, (_, codes) = self.vectors[crossing.cut], blocks
        shape, device = (codes.count // vectors, self.size), self.trainer.device
        return quantized.clustered(blocks, shape, vectors, self.method.groups, device), None

    def returned(
        self, crossing: Crossing, blocks: Sequence[Block], memory: Tensor | None
    ) -> Tensor:
        """Gradients, corrected."""
        g = super().returned(crossing, blocks, memory)
        return g if memory is None else g.view_as(memory).add_(memory)


class Server(Link, splitfed.Server):
    """The server's half."""

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.vectors = self.method.divided(trainer)


class Clients(Link, splitfed.Clients):
    """The clients' half."""

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.vectors = self.method.divided(trainer)
