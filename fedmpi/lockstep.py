"""Parts of networks whose clients take each local step together, as split learning needs it."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fedmpi.flat import Flat
from fedmpi.rows import Rows
from fedmpi.train import Trainer


class Lockstep:
    """A part of the network for each client of a wave, as rows.

    Attributes:
        order: the clients in the order of their rows, those with most steps first.
        done: steps that are behind them.
    """

    def __init__(self, trainer: Trainer, flat: Flat) -> None:
        self.trainer, self.flat = trainer, flat
        self.descent = trainer.descent_of(flat, 0)
        self.order: list[int] = []
        self.done = 0

    @property
    def rows(self) -> Rows[Any]:
        """The parts."""
        return self.descent.rows

    def open(self, clients: Sequence[int], start: Tensor | None) -> None:
        """A wave begins, at `start` [n] and at rest; or where the last one ended, if None."""
        if len(self.rows) < len(clients):
            self.descent = self.trainer.descent_of(self.flat, len(clients))
        if start is not None:
            self.descent.reset(start)
        self.order, self.done = self.trainer.ordered(clients), 0

    def busy(self) -> list[int]:
        """The clients that have a step left: the first rows' ones."""
        return [c for c in self.order if self.trainer.population.steps(c) > self.done]

    def step(self, t: int, clients: Sequence[int]) -> None:
        """Moves the first rows, which are those clients', against their gradients."""
        self.descent.step(len(clients), self.trainer.rates(t, clients, self.done))

    def of(self, client: int) -> Tensor:
        """The client's part, [n]."""
        return self.rows.w[self.order.index(client)]
