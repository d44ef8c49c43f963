"""Parts of networks whose clients take each local step together, as split learning needs it."""

from collections.abc import Generator, Sequence
from typing import Any

from torch import Tensor

from fedmpi.messages.codec import Message
from fedmpi.networks.flat import Flat
from fedmpi.training.descent import Descent
from fedmpi.training.rows import Each, Rows
from fedmpi.training.train import Trainer

Talk = Generator[list[Message], Sequence[Message], None]
"""One side of a conversation, turn by turn: yields what it says, and is sent what it hears."""


class Lockstep:
    """A part of the network for each client of a party, as rows; or one row for all.

    Attributes:
        t: the round.
        clients: in the order in which the server takes them.
        order: in the order of their rows, those with most steps first.
        rows: the parts.
        done: steps that are behind them.
    """

    def __init__(self, trainer: Trainer, t: int, clients: Sequence[int], descent: Descent) -> None:
        self.trainer, self.t, self.clients, self.descent = trainer, t, clients, descent
        self.rows: Rows[Any] = descent.rows
        self.order, self.done = trainer.ordered(clients), 0

    def busy(self) -> list[int]:
        """The clients that have a step left: the first rows' ones."""
        return [c for c in self.order if self.trainer.population.steps(c) > self.done]

    def step(self, clients: Sequence[int]) -> None:
        """Moves the first rows, which are those clients', against their gradients."""
        self.descent.step(len(clients), self.trainer.rates(self.t, clients, self.done))


class WaveParts:
    """A part of the network for all clients of a wave, party by party.

    Args:
        trainer: of the rank.
        flat: the part.
        is_one: whether there is one for all clients, instead of one for each.
        each: see `Rows`.
    """

    def __init__(
        self, trainer: Trainer, flat: Flat, is_one: bool = False, each: Each = map
    ) -> None:
        self.trainer, self.flat, self.is_one = trainer, flat, is_one
        self.each = map if is_one else each
        self.descents: list[Descent] = []
        self.parties: list[Lockstep] = []

    def open(
        self, t: int, parties: Sequence[Sequence[int]], start: Tensor | None
    ) -> list[Lockstep]:
        """A wave begins, at `start` [n] and at rest; or where the last one ended, if None."""
        places = [(0, 1) if self.is_one else (n, len(some)) for n, some in enumerate(parties)]
        self.parties = [
            Lockstep(self.trainer, t, some, self._rows_for(*place))
            for some, place in zip(parties, places, strict=True)
        ]
        if start is not None:
            for descent in self.descents:
                descent.reset(start)
        return self.parties

    def _rows_for(self, place: int, count: int) -> Descent:
        """At least so many rows: the same ones as before, if they are enough."""
        found = self.descents[place : place + 1]
        if not found or len(found[0].rows) < count:
            self.descents[place : place + 1] = [self.made(count)]
            self.descents[place].rows.each = self.each
        return self.descents[place]

    def made(self, count: int) -> Descent:
        """So many rows, and what moves them."""
        return self.trainer.descent_of(self.flat, count)

    @property
    def first_row(self) -> Tensor:
        """The part of the first row, [n]."""
        return self.descents[0].rows.w[0]

    def of(self, client: int) -> Tensor:
        """The client's part, [n], or the only one."""
        party = next(party for party in self.parties if client in party.order)
        return party.rows.w[0 if self.is_one else party.order.index(client)]
