"""Weighted sums of uploads, and robust or private alternatives to their mean.

`Sum` is a weighted sum. `Measured` also sums up the squared lengths of the updates. `Held` is a sum
whose mean at each position is over the clients that have a value there. `Kept` keeps all updates of
a round, for a median, a trimmed mean, clipping or noise.
`vectors` returns the parts that can be added up elementwise on the way to the server; `Addends` are
those of a rank, as buffers.

Coordinate-wise median and trimmed mean: D. Yin, Y. Chen, K. Ramchandran, P. Bartlett,
*Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates*, ICML 2018, arXiv
1803.01498, definitions 1 and 2. Clipped updates with Gaussian noise on their mean: H. B. McMahan,
D. Ramage, K. Talwar, L. Zhang, *Learning Differentially Private Recurrent Language Models*, ICLR
2018, arXiv 1710.06963, algorithm 1 with a fixed clip.

Running statistics are no gradients: whatever the rule, they are averaged, and neither clipped nor
blurred.
Reconstruction: noise is added only where some client's update is not zero, so that a sparse model
stays sparse. A guarantee of privacy would need noise everywhere.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Message
from fedmpi.streams import Purpose, torch_seed


class Sum:
    """A weighted sum of clients' vectors.

    As long as all vectors have values at the same positions, which both sides know, only these
    values are added up, one behind the other. A model is moved at these positions alone; where
    `total` is asked for, they are put in their places.

    Attributes:
        weight: the sum of the weights of the clients that uploaded.
        packed: the sum at `where`, float32 [k], beside what `whole` has; None if there is none.
        where: positions, int64 [k].
        whole: the sum but for `packed`, [n].
        is_zero: whether `whole` is zero for certain.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.whole, self.is_zero, self.weight = torch.zeros(size, device=device), True, 0.0
        self.packed: Tensor | None = None
        self.where: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """The sum of weight * vector, float32 [n], which may be changed in place."""
        if self.packed is not None and self.where is not None:
            if self.is_zero:
                self.whole.index_copy_(0, self.where, self.packed)
            else:
                self.whole.index_add_(0, self.where, self.packed)
        self.packed = self.where = None
        self.is_zero = False
        return self.whole

    @total.setter
    def total(self, found: Tensor) -> None:
        self.packed = self.where = None
        self.whole, self.is_zero = found, False

    @property
    def beside(self) -> list[Tensor]:
        """The vectors that are added up beside `total`, each [n]."""
        return []

    def vectors(self) -> list[Tensor]:
        """Returns the vectors by which two such sums can be added, besides `numbers`: each [n]."""
        return [self.total, *self.beside]

    def values(self, where: Tensor) -> list[Tensor]:
        """Returns their values at some positions, int64 [k], outside of which all are zero."""
        if self._packs(where):
            if self.packed is None:
                self.packed = torch.zeros(len(where), device=self.whole.device)
            return [self.packed, *(vector.index_select(0, where) for vector in self.beside)]
        return [vector.index_select(0, where) for vector in self.vectors()]

    def take(self, where: Tensor, values: Sequence[Tensor]) -> None:
        """Takes other values at these positions."""
        if self._packs(where):
            self.packed = values[0]
        else:
            self.total.index_copy_(0, where, values[0])
        for vector, some in zip(self.beside, values[1:], strict=True):
            vector.index_copy_(0, where, some)

    def _packs(self, where: Tensor) -> bool:
        """Whether the sum has nothing but values at these positions, the same tensor each time."""
        if self.is_zero and self.packed is None:
            self.where = where
        return self.is_zero and self.where is where

    @property
    def numbers(self) -> list[float]:
        """The numbers by which two such sums can be added; they can be set."""
        return [self.weight]

    @numbers.setter
    def numbers(self, found: Sequence[float]) -> None:
        (self.weight,) = found

    def taking(self, message: Message) -> AbstractContextManager[Message]:
        """Context in which one client's upload is added; yields the message that is to be added."""
        return nullcontext(message)

    def add(self, block: Block, weight: float, at: Tensor | None = None) -> None:
        """Adds weight * vector.

        Args:
            block: the vector; without positions it has all values, or those at `at`.
            weight: weight of the client.
            at: positions that both sides know, int64 [count].

        Raises:
            WireError: if the block's vector has another length, or its values another count.
        """
        is_fit = block.size == self.whole.numel() and block.indices is None
        if is_fit and at is not None and self._packs(at):
            if self.packed is None:
                self.packed = sparse.scaled(block, weight, len(at), self.whole.device)
            else:
                sparse.add_values(self.packed, block, weight)
        else:
            sparse.add(self.total, block, weight, at)

    def close(self, t: int) -> None:
        """Called after the last upload of round t; does nothing here."""

    def mean(self) -> Tensor:
        """Returns the weighted mean, [n]."""
        return self.total / self.weight

    def scale(self, factor: float) -> None:
        """Multiplies all vectors that were added by a factor."""
        self.total.mul_(factor)

    def move(self, w: Tensor) -> None:
        """Adds the weighted mean to a model w [n] in place, and clears the sum."""
        if self.is_zero and self.packed is not None and self.where is not None:
            moved = w.index_select(0, self.where).add_(self.packed, alpha=1 / self.weight)
            w.index_copy_(0, self.where, moved)
        else:
            w.add_(self.total, alpha=1 / self.weight)
        self.clear()

    def clear(self) -> None:
        """Sets sum and weight to zero."""
        if not self.is_zero:
            self.whole.zero_()
        self.packed = self.where = None
        self.is_zero, self.weight = True, 0.0


class Measured(Sum):
    """A sum that also knows how long the updates are.

    Attributes:
        stat_positions: positions of running statistics, int64; they count for no length.
        squares: the sum of weight * ||update||^2.
    """

    def __init__(self, size: int, device: torch.device, stat_positions: Tensor) -> None:
        super().__init__(size, device)
        self.stat_positions, self.squares = stat_positions, 0.0

    @contextmanager
    def taking(self, message: Message) -> Iterator[Message]:
        """Adds the upload to a vector of its own first, to measure it."""
        before, self.total = self.total, torch.zeros_like(self.total)
        yield message
        before += self.total
        self.total[self.stat_positions] = 0
        self.squares += float(self.total.square().sum(dtype=torch.float64)) / message.weight
        self.total = before

    @property
    def numbers(self) -> list[float]:
        """The sum of the weights, and that of the lengths."""
        return [self.weight, self.squares]

    @numbers.setter
    def numbers(self, found: Sequence[float]) -> None:
        self.weight, self.squares = found

    def scale(self, factor: float) -> None:
        """Multiplies all updates by a factor, and so their lengths."""
        super().scale(factor)
        self.squares *= factor**2

    def clear(self) -> None:
        """Sets the sums to zero."""
        super().clear()
        self.squares = 0.0


class Held(Sum):
    """A sum of partial vectors, whose mean at each position is over the clients that have it.

    Attributes:
        weights: sum of the weights at each position, float32 [n].
    """

    def __init__(self, size: int, device: torch.device) -> None:
        super().__init__(size, device)
        self.weights = torch.zeros(size, device=device)

    @property
    def beside(self) -> list[Tensor]:
        """The weights."""
        return [self.weights]

    def add(self, block: Block, weight: float, at: Tensor | None = None) -> None:
        """Adds weight * vector, and the weight, at the positions `at` or everywhere."""
        super().add(block, weight, at)
        self.cover(weight, at)

    def cover(self, weight: float, at: Tensor | None = None) -> None:
        """Adds a client's weight at the positions `at`, or everywhere, without values."""
        if at is None:
            self.weights += weight
        else:
            self.weights.index_add_(0, at, self.weights.new_tensor(weight).expand(len(at)))

    def mean(self) -> Tensor:
        """Returns the mean at each position, [n]; zero where no client has a value."""
        return sparse.mean(self.total, self.weights)

    def clear(self) -> None:
        """Sets sum and weights to zero."""
        super().clear()
        self.weights.zero_()


class Kept(Sum):
    """Keeps a round's updates one by one, and aggregates them by the settings at the end.

    All clients have equal weights. While an upload is added, `total` is that update alone. After
    `close` it is the aggregate times the number of updates.

    Attributes:
        stat_positions: positions of running statistics, int64; there the aggregate is the mean.
    """

    def __init__(
        self, size: int, device: torch.device, settings: Settings, stat_positions: Tensor
    ) -> None:
        super().__init__(size, device)
        self.settings, self.chosen = settings, settings.aggregation
        self.stat_positions = stat_positions
        self.updates: list[Tensor] = []

    def vectors(self) -> list[Tensor]:
        """Refuses: a rule that needs every update by itself leaves nothing to add up on the way.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"aggregation.rule = '{self.chosen.rule}', clip = {self.chosen.clip}: the server needs "
            "each client's update by itself"
        )

    @contextmanager
    def taking(self, message: Message) -> Iterator[Message]:
        """Adds the upload, with weight 1, to a vector of its own, and clips its parameters."""
        self.total = torch.zeros_like(self.total)
        yield replace(message, weight=1.0)
        if self.chosen.clip:
            statistics = self.total[self.stat_positions]
            self.total[self.stat_positions] = 0
            norm = torch.linalg.vector_norm(self.total)
            self.total.mul_((self.chosen.clip / (norm + 1e-12)).clamp(max=1))
            self.total[self.stat_positions] = statistics
        self.updates.append(self.total)

    def close(self, t: int) -> None:
        """Sets `total` to the aggregate, with noise, times the number of updates."""
        rows, self.updates = torch.stack(self.updates), []
        result = aggregate(rows, self.chosen.rule, self.chosen.trim)
        if self.chosen.noise:
            random = torch.Generator().manual_seed(torch_seed(self.settings.seed, Purpose.BLUR, t))
            noise = torch.randn(len(result), generator=random).to(result.device)
            deviation = self.chosen.noise * self.chosen.clip / len(rows)
            result = result + deviation * noise * (rows != 0).any(0)
        result[self.stat_positions] = rows[:, self.stat_positions].mean(0)
        self.total = result * len(rows)


@dataclass
class Addends:
    """All that a rank adds uploads to, so that it can be added to that of the other ranks.

    Attributes:
        sums: the sums; none of them is a `Kept`.
        more: vectors beside them, each [n].
        where: positions outside of which all vectors are zero on every rank, int64 [k]; None if
            there are no such positions, and then k = n.
    """

    sums: Sequence[Sum]
    more: Sequence[Tensor]
    where: Tensor | None

    @property
    def vectors(self) -> list[Tensor]:
        """The vectors of all sums, and those beside them."""
        return [vector for each in self.sums for vector in each.vectors()] + list(self.more)

    @property
    def values(self) -> list[Tensor]:
        """What these are at `where`."""
        if self.where is None:
            return self.vectors
        found = [value for each in self.sums for value in each.values(self.where)]
        return found + [vector.index_select(0, self.where) for vector in self.more]

    def buffers(self) -> list[np.ndarray]:
        """Returns float32 [k] for each vector, and float64 for all numbers; to be `fill`ed again.

        A buffer may be the vector's own memory where all of it is on the host.
        """
        numbers = [number for each in self.sums for number in each.numbers]
        return [*(value.cpu().numpy() for value in self.values), np.array(numbers)]

    def fill(self, buffers: Sequence[np.ndarray]) -> None:
        """Takes what became of the buffers."""
        *values, numbers = buffers
        found = [torch.from_numpy(value) for value in values]
        if self.where is None:
            for vector, value in zip(self.vectors, found, strict=True):
                if value.data_ptr() != vector.data_ptr():
                    vector.copy_(value)
        else:
            for each in self.sums:
                count = 1 + len(each.beside)
                device = each.whole.device
                each.take(self.where, [value.to(device) for value in found[:count]])
                found = found[count:]
            for vector, value in zip(self.more, found, strict=True):
                vector.index_copy_(0, self.where, value.to(vector.device))
        left = numbers.tolist()
        for each in self.sums:
            count = len(each.numbers)
            each.numbers, left = left[:count], left[count:]

    def clear(self) -> None:
        """Sets everything to zero."""
        for each in self.sums:
            each.clear()
        for vector in self.more:
            vector.zero_()


def chosen(settings: Settings, size: int, device: torch.device, stat_positions: Tensor) -> Sum:
    """Returns an empty sum of updates for the settings `[aggregation]`.

    Args:
        settings: settings of the run.
        size: length of an update.
        device: where the sum is.
        stat_positions: positions of running statistics in an update, int64; may be empty.
    """
    if settings.aggregation.server == "fedexp":
        return Measured(size, device, stat_positions)
    if settings.aggregation.is_mean:
        return Sum(size, device)
    return Kept(size, device, settings, stat_positions)


def aggregate(updates: Tensor, rule: str, trim: float) -> Tensor:
    """Aggregates the updates in the rows of [K, n] to one, [n].

    Args:
        updates: a client's update in each row.
        rule: mean, median or trimmed.
        trim: share of the values that a trimmed mean leaves out at each end, rounded down.
    """
    if rule == "mean":
        return updates.mean(0)
    ordered = updates.sort(0).values
    count = len(updates)
    left = (count - 1) // 2 if rule == "median" else int(trim * count)
    return ordered[left : count - left].mean(0)
