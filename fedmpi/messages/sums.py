"""What a server adds uploads up in, and what it takes in the place of their mean.

`Sum` is a weighted sum, `Held` a sum whose mean at each position is over those who have a value
there, and `Kept` holds all updates of a round, for a median, a trimmed mean, a clip or noise.
`vectors` of a sum are what may be added up on the way to the server.

Coordinate-wise median and trimmed mean: D. Yin, Y. Chen, K. Ramchandran, P. Bartlett,
*Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates*, ICML 2018, arXiv
1803.01498, definitions 1 and 2. Clipped updates with Gaussian noise on their mean: H. B. McMahan,
D. Ramage, K. Talwar, L. Zhang, *Learning Differentially Private Recurrent Language Models*, ICLR
2018, arXiv 1710.06963, algorithm 1 with a fixed clip.

Reconstruction: noise falls only where some client's update is not zero, so that a sparse model
stays sparse; for a guarantee of privacy it would have to fall everywhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Message
from fedmpi.streams import Purpose, torch_seed


class Sum:
    """A weighted sum of clients' vectors.

    Attributes:
        total: the sum of weight * vector, float32 [n].
        weight: the sum of the weights of those who uploaded.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.total, self.weight = torch.zeros(size, device=device), 0.0

    def vectors(self) -> list[Tensor]:
        """What two such sums add up of theirs, beside `weight`: each [n]."""
        return [self.total]

    @contextmanager
    def taking(self, message: Message) -> Iterator[Message]:
        """While one client's upload is added: yields the message as it is to be added."""
        yield message

    def add(self, block: Block, weight: float, at: Tensor | None = None) -> None:
        """Adds weight * vector.

        Args:
            block: the vector; without positions it gives all values, or those at `at`.
            weight: of the client.
            at: positions that both sides know, int64 [count].

        Raises:
            WireError: if the block is not of a vector of that length, or has another count.
        """
        sparse.add(self.total, block, weight, at)

    def close(self, t: int) -> None:
        """All uploads of round t are in."""

    def mean(self) -> Tensor:
        """The weighted mean, [n]."""
        return self.total / self.weight

    def move(self, w: Tensor) -> None:
        """Adds the weighted mean to a model w [n] in place, and begins afresh."""
        w.add_(self.total, alpha=1 / self.weight)
        self.clear()

    def clear(self) -> None:
        """Begins afresh: nothing is added up."""
        self.total.zero_()
        self.weight = 0.0


class Held(Sum):
    """A sum of vectors of which clients have some values each: the mean is over those who have one.

    Attributes:
        weights: by which weight each position was added, float32 [n].
    """

    def __init__(self, size: int, device: torch.device) -> None:
        super().__init__(size, device)
        self.weights = torch.zeros(size, device=device)

    def vectors(self) -> list[Tensor]:
        """The sum and its weights."""
        return [self.total, self.weights]

    def add(self, block: Block, weight: float, at: Tensor | None = None) -> None:
        """Adds weight * vector at the positions `at`, or everywhere; see `Sum.add`."""
        super().add(block, weight, at)
        self.cover(weight, at)

    def cover(self, weight: float, at: Tensor | None = None) -> None:
        """Counts a client at the positions `at`, or everywhere, whose values are added apart."""
        self.weights[slice(None) if at is None else at] += weight

    def mean(self) -> Tensor:
        """Each position's mean over those who have it, [n]; zero where nobody has."""
        return sparse.mean(self.total, self.weights)

    def clear(self) -> None:
        """Begins afresh."""
        super().clear()
        self.weights.zero_()


class Kept(Sum):
    """A round's updates one by one, until all are in; then what the settings make of them.

    All clients count alike. While an upload is added, `total` is that update alone; after `close`
    it is what takes the place of the sum.
    """

    def __init__(self, size: int, device: torch.device, settings: Settings) -> None:
        super().__init__(size, device)
        self.settings, self.chosen = settings, settings.aggregation
        self.updates: list[Tensor] = []

    @contextmanager
    def taking(self, message: Message) -> Iterator[Message]:
        """Adds the upload, with weight 1, to a vector of its own, and clips it."""
        self.total = torch.zeros_like(self.total)
        yield replace(message, weight=1.0)
        if self.chosen.clip:
            norm = torch.linalg.vector_norm(self.total)
            self.total.mul_((self.chosen.clip / (norm + 1e-12)).clamp(max=1))
        self.updates.append(self.total)

    def close(self, t: int) -> None:
        """Puts the aggregate, times the number of updates, in the place of their sum."""
        rows, self.updates = torch.stack(self.updates), []
        result = aggregate(rows, self.chosen.rule, self.chosen.trim)
        if self.chosen.noise:
            random = torch.Generator().manual_seed(torch_seed(self.settings.seed, Purpose.BLUR, t))
            noise = torch.randn(len(result), generator=random).to(result.device)
            deviation = self.chosen.noise * self.chosen.clip / len(rows)
            result = result + deviation * noise * (rows != 0).any(0)
        self.total = result * len(rows)


def chosen(settings: Settings, size: int, device: torch.device) -> Sum:
    """The sum of updates [size] that the settings `[aggregation]` ask for."""
    if settings.aggregation.is_mean:
        return Sum(size, device)
    return Kept(size, device, settings)


def aggregate(updates: Tensor, rule: str, trim: float) -> Tensor:
    """One update [n] of those in the rows of [K, n].

    Args:
        updates: a client's update in each row.
        rule: mean, median or trimmed.
        trim: of the trimmed mean: share of the values that is left out at each end, rounded down.
    """
    if rule == "mean":
        return updates.mean(0)
    ordered = updates.sort(0).values
    count = len(updates)
    left = (count - 1) // 2 if rule == "median" else int(trim * count)
    return ordered[left : count - left].mean(0)
