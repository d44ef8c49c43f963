"""Where clients train: the waves of a round, and the rank that hosts each client.

Placement never changes a result. Waves and halves follow from the clients alone, and only the hosts
depend on the ranks.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedmpi.clients.population import Population
from fedmpi.streams import Purpose, stream


@dataclass(frozen=True)
class Wave:
    """Clients whose uploads the server holds at the same time, in ascending order, and their hosts.

    Attributes:
        clients: their numbers.
        hosts: the rank of each.
    """

    clients: tuple[int, ...]
    hosts: tuple[int, ...]

    def on(self, rank: int) -> tuple[int, ...]:
        """The clients of the wave that `rank` hosts."""
        return tuple(c for c, host in zip(self.clients, self.hosts, strict=True) if host == rank)

    def only(self, clients: Sequence[int]) -> "Wave":
        """A wave of some of the clients, in the order that is given, with their hosts."""
        host = dict(zip(self.clients, self.hosts, strict=True))
        return Wave(tuple(clients), tuple(host[client] for client in clients))


class Placement:
    """The placement of a population on the ranks of a run.

    Args:
        population: the clients.
        ranks: the ranks that host clients.
        width: clients in a wave, at most.
        is_settled: whether a client stays on one rank for the whole run, because it has state.
        in_step: whether all clients take each step together. Then a rank gains nothing if it has
            one large client for many small ones, and all ranks get equally many busy clients.
    """

    def __init__(
        self,
        population: Population,
        ranks: Sequence[int],
        width: int,
        is_settled: bool = False,
        in_step: bool = False,
    ) -> None:
        self.population, self.ranks, self.width = population, ranks, width
        self.is_settled, self.in_step = is_settled, in_step

    def waves(self, t: int) -> list[Wave]:
        """The clients of round t in waves, each of them spread over the ranks.

        Waves are ascending, or in drawn order if clients work one after the other. They do not
        depend on the ranks, so that the server absorbs uploads in the same order, whoever hosts
        the clients.
        """
        clients, waves = self.population.sample(t), []
        if self.population.settings.method.in_turn:
            clients = tuple(sorted(clients, key=self._drawn(t).__getitem__))
        for start in range(0, len(clients), self.width):
            members = clients[start : start + self.width]
            if self.is_settled:
                hosts = [self.homes[client] for client in members]
            elif self.in_step:
                hosts = self._deal(t, members, start)
            else:
                hosts = place(self.population.sizes[list(members)], self.ranks)
            waves.append(Wave(members, tuple(hosts)))
        return waves

    def halves(self, t: int, clients: Sequence[int]) -> list[tuple[int, ...]]:
        """Divides clients that take their steps together into two halves, drawn for round t.

        Clients are ranked by their number of steps, and of each pair of neighbours one is drawn for
        either half. So the halves stay even when some clients are done before the others. A single
        client is the only half. The order of the clients in a half is drawn, too.
        """
        population, draw = self.population, self._drawn(t)
        ranked = sorted(clients, key=lambda client: (-population.steps(t, client), draw[client]))
        halves: tuple[list[int], list[int]] = [], []
        for start in range(0, len(ranked), 2):
            pair = sorted(ranked[start : start + 2], key=draw.__getitem__)
            for half, client in zip(halves, pair, strict=False):
                half.append(client)
        return [tuple(sorted(half, key=draw.__getitem__)) for half in halves if half]

    def _drawn(self, t: int) -> np.ndarray:
        """The place of each client in an order that is drawn for round t: int64 [clients]."""
        settings = self.population.settings
        return stream(settings.seed, Purpose.ORDER, t).permutation(settings.clients)

    def _deal(self, t: int, clients: Sequence[int], turn: int) -> list[int]:
        """Deals clients out to the ranks in turns, half by half, those with most steps first.

        Args:
            t: the round.
            clients: the clients of a wave.
            turn: the turn to begin with.

        Returns:
            The host of each client.
        """
        host = {}
        for half in self.halves(t, clients):
            for client in sorted(half, key=lambda client: -self.population.steps(t, client)):
                host[client], turn = self.ranks[turn % len(self.ranks)], turn + 1
        return [host[client] for client in clients]

    def hosted(self, rank: int) -> tuple[int, ...]:
        """The clients, ascending, that stay on `rank` for the whole run if they are settled."""
        return tuple(client for client, home in enumerate(self.homes) if home == rank)

    @cached_property
    def homes(self) -> list[int]:
        """The rank of each client for the whole run. All clients are placed for it, only once."""
        return place(self.population.sizes, self.ranks)


def place(loads: np.ndarray, ranks: Sequence[int]) -> list[int]:
    """Gives each load to a rank: the largest load first, to the rank with the least so far."""
    least = [(0, rank) for rank in ranks]
    heapq.heapify(least)
    hosts = [0] * len(loads)
    for position in np.argsort(-loads, kind="stable").tolist():
        laden, rank = heapq.heappop(least)
        hosts[position] = rank
        heapq.heappush(least, (laden + int(loads[position]), rank))
    return hosts
