"""FedLite: activations are vector-quantized at the cut, and the client corrects its gradients.

J. Wang, H. Qi, A. S. Rawat, S. Reddi, S. Waghmare, F. X. Yu, G. Joshi, *FedLite: A Scalable
Approach for Federated Learning on Resource-constrained Clients*, arXiv 2201.11865. A sample's
activations are divided into vectors, which are clustered over the batch (`quantized.clusters`);
codebooks and codes are sent. The server returns the exact gradient g of the activations a' that it
restored. The front learns from g + lambda (a - a'), where a are its own activations. The second
term is the gradient of lambda / 2 ||a - a'||^2 and pulls activations to what the codebook can
express. If there are no more vectors than centroids, this is SplitFed.

Differs from the paper: all clients take each step together, as in SplitFed.
Reconstruction: how vectors are grouped and clustered is ours. So are the correction's sign and its
factor, which does not depend on the batch size, because gradients are those of the batch's mean
loss.
"""

from collections.abc import Sequence
from math import prod

from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.config import ConfigError, Settings
from fedmpi.messages import quantized
from fedmpi.messages.codec import Block, Kind
from fedmpi.methods import splitfed
from fedmpi.split import links
from fedmpi.split.cuts import Crossing, shape_behind
from fedmpi.streams import Purpose, stream
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

    @property
    def has_link(self) -> bool:
        """Whether activations are quantized: always."""
        return True

    @property
    def keeps_zeros(self) -> bool:
        """Whether activations are sent as they are: a quantized zero is another number."""
        return not self.has_link

    def divided(self, trainer: Trainer) -> list[int]:
        """Returns the number of vectors that a sample is divided into, for each cut.

        Raises:
            ConfigError: if the sample's values, or these vectors, cannot be divided so.
        """
        before = self.parts(trainer.flat)[: 1 if self.tail is None else 2]
        cuts = [shape_behind(before[: 1 + cut], trainer.feed.x) for cut in range(len(before))]
        found = [self.vectors or shape[0] for shape in cuts]
        for shape, vectors in zip(cuts, found, strict=True):
            divide("vectors", vectors, prod(shape), "a sample's values at the cut")
            divide("groups", self.groups, vectors, "its vectors")
        return found


def divide(setting: str, number: int, whole: int, what: str) -> None:
    """Checks that a setting divides a whole number.

    Raises:
        ConfigError: if it does not; names all divisors.
    """
    if whole % number:
        possible = ", ".join(str(n) for n in range(1, whole + 1) if whole % n == 0)
        raise ConfigError(
            f"method.{setting} = {number}: wanted a divisor of {whole}, {what}; there are: "
            f"{possible}"
        )


class Link(links.Link[Tensor | None]):
    """The link on both sides; the sender's memory is the correction, or None without one.

    Attributes:
        vectors: number of vectors of a sample, for each cut.
    """

    method: Config
    vectors: list[int]

    def sent(self, crossing: Crossing, x: Tensor) -> tuple[list[Block], Tensor | None]:
        """Sends codebooks and codes."""
        method, vectors = self.method, self.vectors[crossing.cut]
        split, random = (vectors, method.groups), self.random(Purpose.LINK, crossing)
        centroids, iterations = method.centroids, method.iterations
        blocks = quantized.clusters(crossing.kind, x, *split, centroids, random, iterations)
        if not method.correction:
            return blocks, None
        there = quantized.clustered(blocks, (len(x), x.shape[1]), *split, x.device)
        return blocks, method.correction * (x - there)

    def judged(self, cut: int, x: Tensor) -> Tensor:
        """Returns activations by the batch's codebooks; its first centroids are always the same."""
        method, split = self.method, (self.vectors[cut], self.method.groups)
        random = stream(self.trainer.settings.seed, Purpose.LINK, cut)
        given = (x, *split, method.centroids, random, method.iterations)
        blocks = quantized.clusters(Kind.ACTIVATION, *given)
        return quantized.clustered(blocks, (len(x), x.shape[1]), *split, x.device)

    def arrived(self, crossing: Crossing, blocks: Sequence[Block]) -> tuple[Tensor, None]:
        """Restores activations from the centroids."""
        vectors, (_, codes) = self.vectors[crossing.cut], blocks
        shape, device = (codes.count // vectors, self.size), self.trainer.device
        return quantized.clustered(blocks, shape, vectors, self.method.groups, device), None

    def returned(
        self, crossing: Crossing, blocks: Sequence[Block], memory: Tensor | None
    ) -> Tensor:
        """Restores the gradients and adds the correction."""
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
