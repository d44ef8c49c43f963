"""The terms of a bound on convergence, measured at the averaged model and off the clock.

A bound on the mean squared gradient norm of local SGD has a term for the noise of minibatches, for
the drift of clients between two averages, and for each error that a method adds. With the setting
`evaluate.theory` they are measured in rounds that are evaluated and that end with an average, so
that `analysis.convergence` can hold them against the gradient. With the model w after round t:

* the objective F(w) is the mean of the clients' mean losses F_k(w) over their training samples, as
  `Population.share` weighs them. Networks are in evaluation mode; nothing is augmented. Penalties
  and weight decay are no part of F;
* a minibatch is one of the client's first pass in round t + 1, which w does not know yet;
* drift is the squared distance of a client's local model from the weighted mean of those whose
  uploads arrived.

Sums over clients are in float64 and in their order, so that they do not depend on ranks. The cost
is a pass over all training samples.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedmpi.clients.placement import Placement
from fedmpi.clients.population import Population
from fedmpi.config import Settings
from fedmpi.messages.clock import Clock, Phase
from fedmpi.messages.wire import Wire
from fedmpi.training import probe
from fedmpi.training.store import Store
from fedmpi.training.train import Trainer

OF_CLIENTS = ("variance", "drift", "pruning", "rounding")
"""Terms of single clients; `tables.CLIENTS` has them as `theory_*`."""
FOUND = np.dtype([("client", "i8"), *((name, "f8") for name in ("loss", *OF_CLIENTS))])

Rounded = Callable[[int, Tensor], float]
"""A client and a gradient g [n] -> its E||Q(g) - g||^2: `Clients.rounded`."""


@dataclass(frozen=True)
class Terms:
    """What was measured after a round.

    Attributes:
        objective: F(w).
        gradient: ||grad F(w)||^2.
        clients: `FOUND`, by client, of all that are in the objective.
    """

    objective: float
    gradient: float
    clients: np.ndarray


class Theory:
    """Measures the terms on a rank.

    Attributes:
        models: the round's local models [n] that this rank knows, by client.
        here: whose model of this round is among them.
        pruned: what pruning took from the models of this rank's clients.
    """

    def __init__(self, settings: Settings, population: Population, trainer: Trainer) -> None:
        self.settings, self.population, self.trainer = settings, population, trainer
        self.models: dict[int, Tensor] | Store = {}
        if settings.evaluate.theory:
            self.models = Store(settings.state, trainer.flat.size)
        self.begin()

    def begin(self) -> None:
        """A round begins: nothing is known."""
        self.here: set[int] = set()
        self.pruned: dict[int, float] = {}

    def keep(self, models: Sequence[tuple[int, Tensor]]) -> None:
        """Keeps local models [n] of the round until they have been compared with their mean."""
        for client, w in models:
            self.models[client] = w
            self.here.add(client)

    def after(
        self,
        t: int,
        w: Tensor,
        rounded: Rounded,
        placement: Placement,
        wire: Wire,
        clock: Clock,
    ) -> Terms | None:
        """Returns the terms after round t on the root, and None elsewhere; all ranks take part.

        Args:
            t: the round.
            w: the server's model [n], on every rank.
            rounded: a client's error of rounding a gradient.
            placement: of the clients on the ranks.
            wire: to the other ranks.
            clock: of this one.
        """
        drifts, excluded = self._drifts(t, wire, clock), self.population.excluded
        hosted = [client for client in placement.hosted(wire.rank) if client not in excluded]
        rows, total = dict[int, tuple[float, ...]](), np.zeros(len(w))
        for block in self._blocks(np.setdiff1d(range(self.settings.clients), list(excluded))):
            mine = {}
            with clock(Phase.EVALUATE):
                for client in sorted(set(hosted).intersection(block)):
                    g, *found = self._gradient(t, client, w, rounded)
                    mine[client], rows[client] = g, tuple(found)
            self._add(total, mine, self.population.share, wire)
        # A local model may lie on the root, and its client elsewhere.
        nan, known = np.nan, sorted({*rows, *drifts, *self.pruned})
        table = [
            (
                *(c, *rows.get(c, (nan, nan))[:2], drifts.get(c, nan), self.pruned.get(c, nan)),
                rows[c][2] if c in rows else nan,
            )
            for c in known
        ]
        reports = wire.report(np.array(table, FOUND))
        if not wire.is_root:
            return None
        clients = _merged(np.concatenate(reports))
        shares = [self.population.share(client) for client in clients["client"].tolist()]
        objective = float(np.sum(clients["loss"] * shares))
        return Terms(objective, float(np.square(total).sum()), clients)

    def _gradient(
        self, t: int, client: int, w: Tensor, rounded: Rounded
    ) -> tuple[np.ndarray, float, float, float]:
        """Returns the gradient of F_k at w, float64 [n], its F_k, and its variance and rounding."""
        size, mean = int(self.population.sizes[client]), torch.zeros_like(w, dtype=torch.float64)
        loss = squares = rounding = 0.0
        for pick in self.trainer.feed.picks(t + 1, client, passes=1):
            share = len(pick.positions) / size
            own, g = probe.loss(self.trainer, client, w, pick.positions)
            rounding += share * rounded(client, g)
            exact = g.double()
            loss += share * float(own)
            squares += share * float(exact.square().sum())
            mean += share * exact
        variance = max(0.0, squares - float(mean.square().sum()))
        return mean.cpu().numpy(), loss, variance, rounding

    def _drifts(self, t: int, wire: Wire, clock: Clock) -> dict[int, float]:
        """Returns the drift of each client whose local model is on this rank."""
        size = self.trainer.flat.size
        weights = {
            client: self.population.weight(t, client)
            for client in self.population.sample(t)
            if not self.population.is_lost(t, client)
        }
        total, known = np.zeros(size), np.zeros(1)
        for block in self._blocks(sorted(weights)):
            ours = sorted(self.here.intersection(block))
            mine = {client: self.models[client].double().numpy() for client in ours}
            for client in self._add(total, mine, weights.__getitem__, wire):
                known += weights[client]
        with np.errstate(invalid="ignore"):  # where no local model is whole
            mean = wire.publish(total / known)
        with clock(Phase.EVALUATE):
            return {
                client: float(np.square(self.models[client].double().numpy() - mean).sum())
                for client in sorted(self.here.intersection(weights))
            }

    def _blocks(self, clients: Collection[int]) -> Iterator[list[int]]:
        """Yields clients by so many that the server has room for their vectors."""
        order, size = list(map(int, clients)), 8 * self.trainer.flat.size
        step = max(1, self.settings.exchange.window * 2**20 // (2 * size))
        for first in range(0, len(order), step):
            yield order[first : first + step]

    def _add(
        self,
        total: np.ndarray,
        mine: dict[int, np.ndarray],
        weight: Callable[[int], float],
        wire: Wire,
    ) -> list[int]:
        """Adds weighted vectors [n] of all ranks to the root's total; returns whose they are."""
        form = np.dtype([("client", "i8"), ("values", "f8", (len(total),))])
        rows = np.empty(len(mine), form)
        rows["client"] = list(mine)
        for row, values in zip(rows["values"], mine.values(), strict=True):
            row[:] = values
        found = {int(row["client"]): row["values"] for part in wire.report(rows) for row in part}
        for client in sorted(found):
            total += weight(client) * found[client]
        return sorted(found)


def _merged(rows: np.ndarray) -> np.ndarray:
    """Returns a row for each client: what any of its rows knows."""
    clients, places = np.unique(rows["client"], return_inverse=True)
    found = np.zeros(len(clients), FOUND)
    found["client"] = clients
    for name in ("loss", *OF_CLIENTS):
        found[name], known = np.nan, np.isfinite(rows[name])
        found[name][places[known]] = rows[name][known]
    return found
