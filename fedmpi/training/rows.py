"""Models of one shape as the rows of a matrix, and their losses and gradients.

`Rows` is the memory and the interface. `OneByOne` runs one network after the other in plain
autograd, which suits a CPU's caches; `stacked.Stacked` runs all of them at once, which suits a GPU.
Callers do not depend on which one runs.

Active rows are always the first k: callers put the clients with most steps first.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedmpi.config import Settings
from fedmpi.networks.attention import Heads
from fedmpi.networks.flat import Flat
from fedmpi.networks.layers import BatchNorm, Dropout
from fedmpi.networks.recurrent import Recurrent
from fedmpi.training.feed import Batch, Feed

Each = Callable[..., Iterable[Any]]
"""A function like `map`: applies a function to each of its arguments, and keeps their order."""

Lesson = TypeVar("Lesson")
"""Batch of a row in one step, in the form that a kind of rows needs."""

ALIGNMENT = 16
"""Rows begin at multiples of so many values, 64 bytes: results do not depend on a client's row."""


class Rows(ABC, Generic[Lesson]):
    """`count` models of one shape.

    Attributes:
        w: the models, [count, n].
        g: their gradients, [count, n]; only `head` makes sure that they are there.
        local_stats: their local statistics, [count, m].
        each: applies work to each row; `map`, or that of a thread pool.
    """

    def __init__(self, flat: Flat, count: int, device: torch.device, settings: Settings) -> None:
        width = -(-flat.size // ALIGNMENT) * ALIGNMENT
        self.flat, self.device, self.precision = flat, device, settings.precision
        self.w = torch.zeros(count, width, device=device)[:, : flat.size]
        self.g = torch.zeros(count, width, device=device)[:, : flat.size]
        self.local_stats = flat.local_stats.to(device).repeat(count, 1)
        self.each: Each = map
        self.modules: list[nn.Module] = []
        self.mode = (True, False)
        self.views: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.w)

    def train_mode(self, on: bool, batch_statistics: bool = False) -> None:
        """Switches all rows between training and evaluation mode.

        Args:
            on: training mode: batch normalization by batch statistics, and dropout.
            batch_statistics: batch normalization by batch statistics in evaluation mode, too.
        """
        if (on, batch_statistics) != self.mode:
            self.mode = (on, batch_statistics)
            for module in self.modules:
                module.training = on or (batch_statistics and isinstance(module, BatchNorm))

    def autocast(self) -> AbstractContextManager[object]:
        """Returns the context in which networks run: in bfloat16, if the settings say so."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)
        return nullcontext()

    @abstractmethod
    def forward(self, xs: Sequence[Tensor], keys: Sequence[int] = ()) -> list[Tensor]:
        """Runs the first k rows' networks, each on its own batch; returns their outputs.

        Args:
            xs: a batch for each row, [B_i, ...].
            keys: each row's random key of the step (see `Feed.keys`); in training only.
        """

    @abstractmethod
    def backward(self, cotangents: Sequence[Tensor]) -> list[Tensor]:
        """Backpropagates from the outputs of the last `forward`, and sets g of those rows.

        Args:
            cotangents: gradients at each row's output, in any shape.

        Returns:
            The gradient at each of those inputs that require one.
        """

    @abstractmethod
    def losses(
        self, xs: Sequence[Tensor], ys: Sequence[Tensor], keys: Sequence[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """Computes mean cross-entropies of the first k rows on a batch of each, and sets their g.

        Returns:
            Losses [k], and the gradient at each of those inputs that require one.
        """

    @abstractmethod
    def lessons(
        self, feed: Feed, t: int, client: int, passes: int | None = None
    ) -> Iterator[Lesson]:
        """Yields the batches of a client's steps in round t for `backprop` (see `Feed.picks`)."""

    @abstractmethod
    def backprop(self, feed: Feed, lessons: Sequence[Lesson]) -> Tensor:
        """Sets g of the first k rows for one batch each; returns their losses [k]."""

    def head(self, count: int) -> tuple[Tensor, Tensor]:
        """Returns the first rows' w and g, [count, n]; g is zero at running statistics."""
        if count not in self.views:
            self.views[count] = self.w[:count], self.g[:count]
        return self.views[count]

    def move(self, count: int, rate: float) -> None:
        """Takes a step of plain SGD of the first rows: w -= rate * g."""
        w, g = self.head(count)
        w.add_(g, alpha=-rate)


class Networks(Rows[Lesson]):
    """Rows with a network each, run one after the other, or by `each` in several threads.

    Autograd returns gradients as tensors of the parameters' shapes. They are copied to g only when
    `head` is called. Plain SGD does not call it, which saves two passes over the vector.
    """

    def __init__(self, flat: Flat, count: int, device: torch.device, settings: Settings) -> None:
        super().__init__(flat, count, device, settings)
        self.networks = [flat.network(*both) for both in zip(self.w, self.local_stats, strict=True)]
        self.layers = [list(layers(network)) for network in self.networks]
        self.parameters = [trained(flat, network) for network in self.networks]
        self.models = [[piece.of(row) for piece in flat.parameters] for row in self.w]
        self.gradients = [[piece.of(row) for piece in flat.parameters] for row in self.g]
        self.fresh: dict[int, tuple[Tensor, ...]] = {}
        self.modules = [m for network in self.networks for m in network.modules()]
        for module in self.modules:
            if isinstance(module, (Heads, Recurrent)):
                module.is_fused = True
        self.dropouts = [
            [module for module in network.modules() if isinstance(module, Dropout)]
            for network in self.networks
        ]
        self.inputs: Sequence[Tensor] = ()
        self.outputs: list[Tensor] = []

    def _run(self, row: int, x: Tensor, keys: Sequence[int]) -> Tensor:
        for module in self.dropouts[row] if keys else ():
            module.key.fill_(keys[row])
        with self.autocast():
            for layer in self.layers[row]:
                x = layer(x)
        return x.float()

    def _gradient(
        self, row: int, output: Tensor, x: Tensor, cotangent: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Keeps a row's gradient; returns that at its input, if the input requires one."""
        ours, also = self.parameters[row], [x] if x.requires_grad else []
        if not (ours or also):  # nothing here trains
            return ()
        given = None if cotangent is None else cotangent.view_as(output)
        found = torch.autograd.grad(output, [*ours, *also], given)
        if ours:
            self.fresh[row] = found[: len(ours)]
        return found[len(ours) :]

    def head(self, count: int) -> tuple[Tensor, Tensor]:
        """Copies the rows' gradients to g; returns the first rows' w and g, [count, n]."""
        for row, found in self.fresh.items():
            torch._foreach_copy_(self.gradients[row], found)
        self.fresh.clear()
        return super().head(count)

    def move(self, count: int, rate: float) -> None:
        """Takes a step of plain SGD of the first rows, without copying gradients to g."""
        if not self.fresh:
            super().move(count, rate)
        for row, found in self.fresh.items():
            torch._foreach_add_(self.models[row], found, alpha=-rate)
        self.fresh.clear()

    def forward(self, xs: Sequence[Tensor], keys: Sequence[int] = ()) -> list[Tensor]:
        """Runs each row's network on its batch, one after the other or by `each`."""
        self.inputs, run = xs, partial(self._run, keys=keys)
        self.outputs = list(self.each(run, range(len(xs)), xs))
        return self.outputs

    def backward(self, cotangents: Sequence[Tensor]) -> list[Tensor]:
        """Backpropagates each row, one after the other or by `each`."""
        given = range(len(cotangents)), self.outputs, self.inputs, cotangents
        return [g for found in self.each(self._gradient, *given) for g in found]

    def losses(
        self, xs: Sequence[Tensor], ys: Sequence[Tensor], keys: Sequence[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """Computes each row's loss and gradient, one after the other or by `each`."""
        run = partial(self._loss, keys=keys)
        losses, inputs = zip(*self.each(run, range(len(xs)), xs, ys), strict=True)
        some = torch.stack(losses) if len(losses) > 1 else losses[0].view(1)
        return some, [g for found in inputs for g in found]

    def _loss(
        self, row: int, x: Tensor, y: Tensor, keys: Sequence[int]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss = cross_entropy(self._run(row, x, keys), y)
        return loss.detach(), self._gradient(row, loss, x)


class OneByOne(Networks[Batch]):
    """Rows that take their steps one after the other."""

    def lessons(
        self, feed: Feed, t: int, client: int, passes: int | None = None
    ) -> Iterator[Batch]:
        """Yields the client's batches with their samples."""
        return feed.batches(t, client, passes)

    def backprop(self, feed: Feed, lessons: Sequence[Batch]) -> Tensor:
        """Sets the first rows' gradients for one batch each; returns their losses [k]."""
        return self.losses(*zip(*lessons, strict=True))[0]


def trained(flat: Flat, network: nn.Module) -> list[nn.Parameter]:
    """The parameters of a network of that shape that train, in the order of `flat.parameters`."""
    return [network.get_parameter(piece.name) for piece in flat.parameters]


def layers(network: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yields the forward functions of a network's layers, in order.

    Calling a nested sequence, with its checks for hooks, takes as long as a small layer itself.
    """
    if type(network) is nn.Sequential:
        for module in network:
            yield from layers(module)
    else:
        yield network.forward
