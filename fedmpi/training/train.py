"""Clients through their local steps, as rows: the loop that all time is spent in.

On a CPU clients train one after the other, because the caches like it, unless their networks are
dense and small; on a GPU as many at once as its memory holds. The model and the settings `device`
and `rows` decide, and nothing outside of this module knows.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from fedmpi.clients.population import EVERYONE_ROUND, Population
from fedmpi.config import Settings
from fedmpi.data import Dataset
from fedmpi.networks.flat import Flat
from fedmpi.training import dense
from fedmpi.training.dense import Dense
from fedmpi.training.descent import Descent, descent
from fedmpi.training.feed import Feed
from fedmpi.training.rates import Rates
from fedmpi.training.rows import Each, OneByOne, Rows
from fedmpi.training.stacked import Stacked
from fedmpi.training.store import Provisional, Store, Stores

Adjust = Callable[[Sequence[int], Tensor, Tensor], None]
"""Changes gradients in place before a step: clients of the rows, w [k, n], g [k, n]."""
Follow = Callable[[Sequence[int], Tensor, float | Tensor], None]
"""Changes models in place after a step: clients of the rows, w [k, n], their rate."""
Rests = Callable[[Sequence[int], int], Tensor]
"""What rests in a step: clients of the rows, number of the step -> bool [k, n]."""


@dataclass(frozen=True)
class Hooks:
    """What a method changes in its clients' local steps.

    Attributes:
        adjust: called with the gradients of each step, before the optimizer.
        follow: called after the optimizer's step.
        rests: called before the optimizer's step; returns which positions do not move in it. They
            follow no gradient, decay or momentum, and their running statistics stay as they are.
        proximal: mu; each step's gradient has the term mu * (w - start) besides.
    """

    adjust: Adjust | None = None
    follow: Follow | None = None
    rests: Rests | None = None
    proximal: float = 0.0


PLAIN = Hooks()
"""Local steps as the settings have them."""


class Part(Protocol):
    """A network that is not the whole one.

    Attributes:
        flat: the network.
        local_stats: where its local statistics lie in the whole network's, int64 [len(flat.aside)].
    """

    @property
    def flat(self) -> Flat: ...

    @property
    def local_stats(self) -> Tensor: ...


@runtime_checkable
class Composite(Part, Protocol):
    """A part that makes the rows it is trained in."""

    def rows(self, trainer: "Trainer", count: int) -> Rows[Any]:
        """So many models of the part's shape."""


SHARE_OF_MEMORY = 0.8
"""Of a device's free memory; the rest is for what comes and goes."""
SHAPES = 8
"""Networks of other shapes than the whole one whose rows are kept for the next time."""


class Trainer:
    """The samples, the networks and the local steps of one rank.

    Attributes:
        feed: what clients learn from.
        rates: the learning rates of their steps.
        pool: how a split model's parts on the server are gone through (see `Rows.each`).
        keeps_statistics: whether clients have statistics of their own, which stay on their rank.
        losses: each client's losses in local training, this round: their sum and their number.
        seconds: each client's time in local training, and in preparing its upload, this round.
        is_dense: whether the whole network is a dense one on a CPU.
        row_limit: number of clients that train together at most; None until memory was measured.
        at: steps that those at work have behind them, for methods whose steps differ.
        planned: steps of each of them in all.
        tuned: local statistics of the models that clients have tuned this round.
        passed: models of watched clients after each pass of the last call of `tune`, by client.
        stores: by name, everything that this rank keeps for its clients from round to round.
        pending: those of them that depend on whether uploads arrive.
        statistics: the clients' local statistics: one of the stores, if statistics are local.
    """

    def __init__(
        self,
        settings: Settings,
        flat: Flat,
        data: Dataset,
        population: Population,
        device: torch.device,
        pool: Each = map,
    ) -> None:
        self.pool = pool
        self.settings, self.flat, self.population, self.device = settings, flat, population, device
        self.rates = Rates(settings, population, device)
        self.feed = Feed(settings, data, population, device, flat.is_random)
        self.is_dense = device.type == "cpu" and dense.fits(settings, flat)
        self.row_limit = settings.rows
        if settings.rows is None and device.type == "cpu":
            self.row_limit = dense.limit(flat) if self.is_dense else 1
        self.keeps_statistics = flat.is_local and len(flat.statistics) > 0
        self.descent = self.descent_of(flat, 1)
        self.others: dict[Flat | Composite, Descent] = {}
        self.stores = Stores(settings.state)
        self.pending: list[Provisional] = []
        self.statistics: dict[int, Tensor] | Store = {}
        if self.keeps_statistics:
            self.statistics = self.stores.add("statistics", len(flat.local_stats))
        self.begin(EVERYONE_ROUND)

    def provisional(self, name: str, size: int) -> Provisional:
        """Makes a store of float32 vectors [size] that depend on whether uploads arrive."""
        can_lose = self.settings.devices.can_lose
        lost = self.stores.add(f"{name} if lost", size) if can_lose else None
        self.pending.append(Provisional(self.stores.add(name, size), lost))
        return self.pending[-1]

    def lose(self, client: int) -> None:
        """A client of this rank hears that its last upload was lost: its state follows."""
        for store in self.pending:
            store.lose(client)

    @property
    def rows(self) -> Rows[Any]:
        """The whole networks that train here."""
        return self.descent.rows

    def begin(self, t: int) -> None:
        """Round t begins."""
        self.feed.begin(t)
        self.at, self.planned = 0, dict[int, int]()
        self.losses: dict[int, tuple[Tensor, int]] = {}
        self.seconds: dict[int, float] = {}
        self.tuned: dict[int, Tensor] = {}
        self.passed: dict[int, list[Tensor]] = {}

    def descent_of(self, flat: Flat, count: int) -> Descent:
        """`count` models of a shape, the whole network's or a part's, and what moves them."""
        kind = self.kind(flat)
        return descent(self.settings, kind(flat, count, self.device, self.settings))

    def kind(self, flat: Flat) -> type[Rows[Any]]:
        """Returns the kind of rows of such networks: the whole one, or parts of it."""
        if self.is_dense:
            return Dense if dense.fits(self.settings, flat) else OneByOne
        is_stacked = self.device.type == "cuda" or (self.settings.rows or 1) > 1
        return Stacked if is_stacked else OneByOne

    def note(self, clients: Sequence[int], losses: Tensor, steps: int) -> None:
        """Takes down clients' losses [k], each the sum over so many steps."""
        for client, loss in zip(clients, losses.unbind(), strict=True):
            total, before = self.losses.get(client, (None, 0))
            self.losses[client] = loss if total is None else loss + total, before + steps

    def loss(self, client: int) -> float:
        """The client's mean loss, as far as this rank has seen its steps; else NaN."""
        total, count = self.losses.get(client, (torch.nan, 1))
        return float(total) / count

    def spend(self, clients: Sequence[int], began: float) -> None:
        """Adds the time since `began` to the clients' seconds, in equal shares."""
        share = (perf_counter() - began) / len(clients)
        for client in clients:
            self.seconds[client] = self.seconds.get(client, 0.0) + share

    def chunks(
        self, t: int, clients: Sequence[int], passes: int | None = None
    ) -> Iterator[tuple[int, ...]]:
        """The groups in which clients train together, in each those with most steps first.

        Args:
            t: the round.
            clients: the clients.
            passes: local passes, if they are not those of the round's local training.
        """
        if self.row_limit == 1:
            yield from ((client,) for client in clients)
            return
        if self.row_limit is None and clients:
            self.row_limit = self._fitting()
        order = self.ordered(t, clients, passes)
        count = -(-len(order) // (self.row_limit or 1))
        for number in range(count):
            yield tuple(order[number * len(order) // count : (number + 1) * len(order) // count])

    def ordered(self, t: int, clients: Sequence[int], passes: int | None = None) -> list[int]:
        """The clients with most steps first, as rows want them, and then by samples."""
        sizes = self.population.sizes

        def key(client: int) -> tuple[int, int, int]:
            return -self.population.steps(t, client, passes), -int(sizes[client]), client

        return sorted(clients, key=key)

    def _fitting(self) -> int:
        """How many rows the device's free memory holds, by what two need beyond one."""
        largest = int(self.population.sizes.argmax())
        needed = []
        for count in (1, 2):
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            some = self.descent_of(self.flat, count)
            lesson = next(some.rows.lessons(self.feed, 0, largest))
            some.rows.backprop(self.feed, [lesson] * count)
            needed.append(torch.cuda.max_memory_allocated(self.device) - before)
            del some
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.device)
        # At least its model and gradients, twice, whatever libraries took for the first row alone.
        each = max(needed[1] - needed[0], 16 * self.flat.size)
        return max(1, int(SHARE_OF_MEMORY * free) // each)

    def _other(self, shape: Flat | Composite, count: int) -> Descent:
        """`count` models of a shape."""
        if isinstance(shape, Flat):
            return self.descent_of(shape, count)
        return descent(self.settings, shape.rows(self, count))

    def rows_for(self, count: int, part: Part | None = None) -> Descent:
        """Returns at least so many rows of the whole network, or of another one."""
        if part is not None and (part.flat is not self.flat or isinstance(part, Composite)):
            key = part if isinstance(part, Composite) else part.flat
            found = self.others.pop(key, None)
            if found is None or len(found.rows) < count:
                found = self._other(key, count)
            self.others[key] = found  # who was used last is last
            while len(self.others) > SHAPES:
                self.others.pop(next(iter(self.others)))
            return found
        if len(self.rows) < count:
            self.descent = self.descent_of(self.flat, 0)  # the old ones go before the new ones come
            self.descent = self.descent_of(self.flat, count)
        return self.descent

    def train(
        self,
        t: int,
        clients: Sequence[int],
        start: Tensor,
        hooks: Hooks = PLAIN,
        part: Part | None = None,
    ) -> Tensor:
        """Round t's local steps of a chunk of clients, from `start` [n] or [C, n].

        Args:
            t: the round.
            clients: those with most steps first.
            start: their models.
            hooks: what the method changes in their steps.
            part: the network that trains, if it is not the whole one; n is its size then.

        Returns:
            Their models, [C, n], until the next call for the same network.
        """
        began = perf_counter()
        rows = self._descend(t, clients, start, hooks, part)
        self._remember(clients, rows, None if part is None else part.local_stats)
        self.spend(clients, began)
        return rows.head(len(clients))[0]

    def tune(
        self,
        t: int,
        clients: Sequence[int],
        start: Tensor,
        passes: int,
        hooks: Hooks = PLAIN,
        watched: Collection[int] = (),
    ) -> Tensor:
        """Models of their own for clients that have trained: so many passes from `start`.

        Steps are as in `train`, but nothing of them remains beyond the models: no loss, no second.
        Where statistics are local, these models' go on from the clients', which stay as they are,
        and `probe.correct` uses them until the round is over.

        Args:
            t: the round, whose learning rate and batches are used.
            clients: those with most steps first.
            start: their models, [n] or [C, n].
            passes: over each client's samples.
            hooks: what the method changes in their steps.
            watched: clients whose models after each pass are kept in `passed`.

        Returns:
            The models, [C, n], until the next call for the same network.
        """
        each = {c: self.population.steps(t, c, 1) for c in clients if c in watched}
        self.passed = {client: [] for client in each}
        before = hooks.follow

        def follow(busy: Sequence[int], w: Tensor, rate: float | Tensor) -> None:
            if before is not None:
                before(busy, w, rate)
            for row, client in enumerate(busy):
                if client in each and (self.at + 1) % each[client] == 0:
                    self.passed[client].append(w[row].clone())

        hooks = replace(hooks, follow=follow) if each else hooks
        rows = self._descend(t, clients, start, hooks, None, passes)
        for row, client in enumerate(clients if self.keeps_statistics else ()):
            self.tuned[client] = rows.local_stats[row].clone()
        return rows.head(len(clients))[0]

    def _descend(
        self,
        t: int,
        clients: Sequence[int],
        start: Tensor,
        hooks: Hooks,
        part: Part | None,
        passes: int | None = None,
    ) -> Rows[Any]:
        """Rows of which the first have made the clients' steps in round t; see `train`, `tune`."""
        steps = [self.population.steps(t, client, passes) for client in clients]
        assert steps == sorted(steps, reverse=True), "a chunk has those with most steps first"
        descent = self.rows_for(len(clients), part)
        rows = descent.rows
        lessons = [rows.lessons(self.feed, t, client, passes) for client in clients]
        self.planned = dict(zip(clients, steps, strict=True))
        descent.reset(start)
        self.recall(clients, rows, None if part is None else part.local_stats)
        rows.train_mode(True)
        done, losses = 0, torch.empty(len(clients), steps[0], device=self.device)
        for count in range(len(clients), 0, -1):
            busy = clients[:count]
            for step in range(done, steps[count - 1]):
                batches = [next(lesson) for lesson in lessons[:count]]
                losses[:count, step] = rows.backprop(self.feed, batches)
                self.at = step
                rate = self.rates.of_step(t, busy, step, passes)
                if hooks.adjust is not None:
                    hooks.adjust(busy, *rows.head(count))
                if hooks.proximal:
                    near = start if start.dim() == 1 else start[:count]
                    descent.pull(count, near, hooks.proximal)
                rests = None if hooks.rests is None else hooks.rests(busy, step)
                descent.step(count, rate, rests)
                if hooks.follow is not None:
                    hooks.follow(busy, rows.head(count)[0], rate)
            done = steps[count - 1]
        # Each client's losses are added at once, so that no neighbour changes their rounding.
        for own in sorted(set(steps)) if passes is None else ():
            first = steps.index(own)
            some = slice(first, first + steps.count(own))
            self.note(clients[some], losses[some, :own].sum(1), own)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return rows

    def train_apart(
        self,
        t: int,
        clients: Sequence[int],
        starts: Sequence[Tensor],
        parts: Sequence[Part | None],
        hooks: Hooks = PLAIN,
        masks: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Local steps of a chunk of clients whose networks may differ; those alike train together.

        Args:
            t: the round.
            clients: those with most steps first.
            starts: their models, each of its network's size.
            parts: their networks; None for the whole one.
            hooks: what the method changes in their steps, of those alike together.
            masks: what gradients are multiplied by, each of its network's size, in place of
                `hooks.adjust`.

        Returns:
            Their models, until the next call.
        """
        found: dict[int, Tensor] = {}
        flats = [self.flat if part is None else part.flat for part in parts]
        for flat in dict.fromkeys(flats):
            some = [place for place, other in enumerate(flats) if other is flat]
            change = hooks.adjust
            if masks is not None:
                change = _masking(torch.stack([masks[place] for place in some]))
            start = torch.stack([starts[place] for place in some])
            theirs = [clients[place] for place in some]
            hooked = replace(hooks, adjust=change)
            rows = self.train(t, theirs, start, hooked, parts[some[0]])
            found |= zip(some, rows, strict=True)
        return [found[place] for place in range(len(clients))]

    def recall(
        self, clients: Sequence[int], rows: Rows[Any], local_stats: Tensor | None = None
    ) -> None:
        """Gives the first rows their clients' local statistics.

        Args:
            clients: the clients of the rows.
            rows: of the whole network, or of a part of it.
            local_stats: positions of the part's statistics among all local ones.
        """
        for row, client in enumerate(clients if self.keeps_statistics else ()):
            own = self.statistics.get(client, self.flat.local_stats)
            rows.local_stats[row] = own if local_stats is None else own[local_stats]

    def _remember(
        self, clients: Sequence[int], rows: Rows[Any], local_stats: Tensor | None
    ) -> None:
        """Stores the local statistics of the first rows for their clients."""
        for row, client in enumerate(clients if self.keeps_statistics else ()):
            own = rows.local_stats[row]
            if local_stats is not None:
                own = self.statistics.get(client, self.flat.local_stats).clone()
                own[local_stats] = rows.local_stats[row].to(own.device)
            self.statistics[client] = own


def _masking(mask: Tensor) -> Adjust:
    """Multiplies the first rows' gradients by theirs of mask [k, n]."""

    def adjust(busy: Sequence[int], w: Tensor, g: Tensor) -> None:
        g.mul_(mask[: len(busy)])

    return adjust
