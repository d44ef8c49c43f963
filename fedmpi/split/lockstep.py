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
"""One side of a conversation, a generator: in each turn it yields messages and is sent the
answers."""


class Lockstep:
    """A part of the network for each client of a party, as rows; or one row that all share.

    Attributes:
        t: the round.
        clients: the clients in the order in which the server processes them.
        order: the clients in the order of their rows, those with most steps first.
        rows: the parts.
        done: number of steps taken.
    """

    def __init__(self, trainer: Trainer, t: int, clients: Sequence[int], descent: Descent) -> None:
        self.trainer, self.t, self.clients, self.descent = trainer, t, clients, descent
        self.rows: Rows[Any] = descent.rows
        self.order, self.done = trainer.ordered(t, clients), 0

    def busy(self) -> list[int]:
        """Returns the clients that have a step left; theirs are the first rows."""
        return [c for c in self.order if self.trainer.population.steps(self.t, c) > self.done]

    def step(self, clients: Sequence[int]) -> None:
        """Moves the rows of these clients, which are the first ones, along their gradients."""
        self.descent.step(len(clients), self.trainer.rates.of_step(self.t, clients, self.done))


class WaveParts:
    """A part of the network for all clients of a wave, party by party.

    Args:
        trainer: trainer of the rank.
        flat: the part.
        is_one: whether all clients share one part, instead of having one each.
        each: maps work over rows (see `Rows`).
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
        """Starts a wave at `start` [n] with reset optimizers; None continues from the last wave."""
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
        """Returns at least `count` rows; reuses those of the last wave if they are enough."""
        found = self.descents[place : place + 1]
        if not found or len(found[0].rows) < count:
            self.descents[place : place + 1] = [self.made(count)]
            self.descents[place].rows.each = self.each
        return self.descents[place]

    def made(self, count: int) -> Descent:
        """Returns `count` new rows with their optimizer."""
        return self.trainer.descent_of(self.flat, count)

    @property
    def first_row(self) -> Tensor:
        """The values of the first row's part, [n]."""
        return self.descents[0].rows.w[0]

    def of(self, client: int) -> Tensor:
        """Returns the values of the client's part, or of the shared one, [n]."""
        party = next(party for party in self.parties if client in party.order)
        return party.rows.w[0 if self.is_one else party.order.index(client)]
