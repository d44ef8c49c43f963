"""The fronts of a wave's clients, which compute with narrower networks of their own."""

from collections.abc import Callable

from fedmpi.networks.flat import Flat
from fedmpi.networks.narrow import Narrow
from fedmpi.split.lockstep import WaveParts
from fedmpi.training.descent import Descent, descent
from fedmpi.training.inner import Inner
from fedmpi.training.rows import Rows


class NarrowedWaveParts(WaveParts):
    """Fronts for all clients of a wave; each is whole, and goes through a narrower network."""

    def made(self, count: int) -> Descent:
        """Makes so many rows of narrowed fronts, with what moves them."""
        trainer = self.trainer

        def make(flat: Flat, count: int) -> Rows[object]:
            return trainer.descent_of(flat, count).rows

        rows = Inner(self.flat, count, trainer.device, trainer.settings, make)
        return descent(trainer.settings, rows)

    def narrow(self, part: Callable[[int], Narrow]) -> None:
        """Gives the wave's clients their networks."""
        for party in self.parties:
            assert isinstance(party.rows, Inner)
            party.rows.place([part(client) for client in party.order])
