"""The clients: who holds which samples, who takes part in a round, and with which weight."""

from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedmpi import config, partitions
from fedmpi.clients.devices import Fleet
from fedmpi.clients.trace import Trace
from fedmpi.config import ConfigError, Settings
from fedmpi.data import Dataset
from fedmpi.partitions import Samples, Shards, counted
from fedmpi.streams import Purpose, stream

EVERYONE_ROUND = -1
"""The round before the first, for methods that agree on something before it."""


class Population:
    """All logical clients of a run: the same on every rank, from the settings alone.

    Attributes:
        shards: each client's training samples, int64 positions in the training set.
        test_shards: each client's test samples; may be empty.
        held_out: training samples that no client has, for validation.
        reserved: training samples that a client has, but that are not in its shard: the method
            wants to know how its model does on them.
        sizes: int64 [clients], number of training samples.
        fleet: the clients' devices.
        fitting: by round and client, the number of local steps that fit before the deadline; None
            without a deadline.
        trace: who is available when; None if everyone always is.
        agreements: the rounds in which all clients agree on something, and none trains.
        newcomers: clients that are new after the last round: the last ones.
        excluded: clients that never take part: newcomers, and others if `rest` says so.

    Raises:
        ConfigError: if the samples cannot be divided so, or are divided wrongly, or the trace is
            not one for these clients.
    """

    def __init__(self, settings: Settings, data: Dataset) -> None:
        self.settings, self.fleet = settings, Fleet(settings)
        self.fitting: Callable[[int, int], int] | None = None
        self._epochs: dict[tuple[int, int], int] = {}
        self.agreements = settings.method.agreements(settings.rounds)
        self.trace = self._trace()
        self.labels, self.classes = data.train_y, data.classes
        module = config.module("partition", settings.partition.name)
        if hasattr(module, "restore"):
            self._restore(module.restore, data)
        else:
            self._divide(module.divide, data)
        self._check()
        self.reserved = [self._reserve(client) for client in range(settings.clients)]
        self.sizes = np.array([len(shard) for shard in self.shards])
        count = settings.clients
        self.newcomers = frozenset(range(count - settings.newcomers, count))
        self.excluded = self.newcomers

    def _trace(self) -> Trace | None:
        """The trace that the settings name, if it is the one that they mean."""
        file, wanted = self.settings.trace, self.settings.trace_sha256
        trace = None if file is None else Trace(Path(file), self.settings.clients)
        if trace is not None and wanted not in (None, trace.sha256):
            raise ConfigError(f"trace_sha256 = {wanted}: found {trace.sha256}, the hash of {file}")
        return trace

    def _divide(self, divide: Any, data: Dataset) -> None:
        """Holds samples out, and divides the others."""
        settings, samples = self.settings, len(data.train_y)
        order = stream(settings.seed, Purpose.VALIDATION).permutation(samples)
        self.held_out = np.sort(order[: round(settings.validation * samples)])
        ours = np.setdiff1d(np.arange(samples), self.held_out)
        if settings.clients > len(ours):
            raise ConfigError(
                f"clients = {settings.clients}: wanted at most {len(ours)}, the training samples "
                f"left of {samples} after validation = {settings.validation}"
            )
        owners = None if data.train_owners is None else data.train_owners[ours]
        shards, self.test_shards = divide(
            settings.partition,
            Samples(data.train_y[ours], data.classes, owners, data.groups),
            Samples(data.test_y, data.classes, data.test_owners, data.groups),
            settings.clients,
            stream(settings.seed, Purpose.PARTITION),
        )
        self.shards = [ours[shard] for shard in shards]

    def _restore(self, restore: Any, data: Dataset) -> None:
        """Takes what was divided before, if as much was held out as the settings say."""
        settings, samples = self.settings, len(data.train_y)
        self.held_out, self.shards, self.test_shards = restore(
            settings.partition, data.train_y, data.test_y, settings.clients
        )
        wanted, found = round(settings.validation * samples), len(self.held_out)
        if wanted != found:
            raise ConfigError(
                f"validation = {settings.validation}: wanted {wanted} of {samples} samples held "
                f"out, found {found} in partition.name = '{settings.partition.name}'; possible is "
                f"{found / samples}"
            )

    def _reserve(self, client: int) -> np.ndarray:
        """Takes samples out of the client's shard, of which one is left at least."""
        shard, share = self.shards[client], self.settings.method.reserve()
        if not share:
            return shard[:0]
        count = min(max(1, round(share * len(shard))), len(shard) - 1)
        order = stream(self.settings.seed, Purpose.RESERVE, client).permutation(len(shard))
        self.shards[client] = shard[np.sort(order[count:])]
        return shard[np.sort(order[:count])]

    def _check(self) -> None:
        """Refuses a partition that gives a sample twice, or a training sample that is held out."""
        self._check_once("training", {"held out": self.held_out}, self.shards)
        self._check_once("test", {}, self.test_shards)

    def _check_once(self, kind: str, others: dict[str, np.ndarray], shards: Shards) -> None:
        owners = np.bincount(np.concatenate([*others.values(), *shards]))
        twice = np.flatnonzero(owners > 1)
        if len(twice):
            sample = int(twice[0])
            named = others | {f"client {k}": shard for k, shard in enumerate(shards)}
            has = [name for name, some in named.items() if sample in some]
            raise ConfigError(
                f"partition.name = '{self.settings.partition.name}': wanted each {kind} sample "
                f"in one place, found {len(twice)} in several, the first of them, {sample}, in: "
                f"{', '.join(has)}"
            )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of which client holds which samples."""
        return partitions.fingerprint([self.held_out, *self.shards, *self.test_shards])

    @property
    def owned(self) -> list[np.ndarray]:
        """All training samples of each client, those that it has reserved behind the others."""
        pairs = zip(self.shards, self.reserved, strict=True)
        return [np.concatenate([shard, reserved]) for shard, reserved in pairs]

    @cached_property
    def owners(self) -> list[int]:
        """The client that trains on each training sample, by its position; -1 if none does."""
        found = np.full(len(self.labels), -1)
        for client, shard in enumerate(self.shards):
            found[shard] = client
        return found.tolist()

    @property
    def counts(self) -> np.ndarray:
        """Training samples of each class that each client has, int64 [classes, clients].

        By their true labels, whatever `skew.labels` makes of them.
        """
        return counted(self.shards, self.labels, self.classes)

    def exclude(self, clients: Collection[int]) -> None:
        """From now on these clients take no part.

        Raises:
            ConfigError: if a round has nobody else.
        """
        self.excluded = self.newcomers | frozenset(clients)
        last = self.settings.rounds if self.trace is not None and self.excluded else 1
        empty = next((t for t in range(last) if not len(self._able(t))), None)
        if empty is not None:
            raise ConfigError(
                f"devices.unfit = 'rest': wanted a client for every round, found none for round "
                f"{empty}: {len(self.excluded)} of {self.settings.clients} devices are too small"
            )

    @property
    def first_round(self) -> int:
        """The first round: an agreement may come before round 0."""
        return EVERYONE_ROUND if EVERYONE_ROUND in self.agreements else 0

    def is_agreement(self, t: int) -> bool:
        """Whether every client takes part in round t, and none trains; so before round 0."""
        return self.settings.is_agreement(t)

    def _able(self, t: int) -> np.ndarray:
        """The clients that can take part in a round: int64, ascending."""
        everyone = np.arange(self.settings.clients)
        if self.trace is not None and not self.is_agreement(t):
            everyone = self.trace.available(t)
        return everyone[~np.isin(everyone, list(self.excluded))]

    def sample(self, t: int) -> tuple[int, ...]:
        """The clients of round `t`, ascending: all that can in an agreement.

        If the method averages every several rounds, these have the clients of their first one. Who
        came later would start from nothing, or from what it had an average ago.
        """
        if not self.is_agreement(t):
            t -= t % self.settings.method.average_every
        some = self._able(t)
        if self.drawn < len(some) and not self.is_agreement(t):
            # With p, numpy draws one after the other, in proportion among those that are left.
            by_size = self.settings.sampling == "samples"
            p = self.sizes[some] / self.sizes[some].sum() if by_size else None
            random = stream(self.settings.seed, Purpose.SAMPLE, t)
            some = np.sort(random.choice(some, self.drawn, replace=False, p=p))
        return tuple(some.tolist())

    @cached_property
    def drawn(self) -> int:
        """Clients that are drawn in a round, if so many are there."""
        return max(1, round(self.settings.participation * self.experienced))

    @cached_property
    def experienced(self) -> int:
        """Clients that are no newcomers."""
        return self.settings.clients - len(self.newcomers)

    def weight(self, t: int, client: int) -> float:
        """Returns the client's weight in averages of round `t`: its training samples, or 1.

        Where samples decided already who was drawn, they would count twice. Then all uploads count
        alike, as in T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith, *Federated
        Optimization in Heterogeneous Networks*, MLSys 2020, arXiv 1812.06127, algorithm 2 (with
        p_k = n_k / n). Nobody is drawn twice here, so that large clients are drawn less often than
        in proportion, and this mean is biased towards small ones: hardly where few of many take
        part. Nobody is drawn in an agreement, nor if everyone takes part.
        """
        is_drawn = not self.is_agreement(t) and self.drawn < self.experienced
        is_equal = self.settings.aggregation.weights == "equal"
        if is_equal or (is_drawn and self.settings.sampling == "samples"):
            return 1.0
        return float(self.sizes[client])

    def share(self, client: int) -> float:
        """Returns the client's share in the objective.

        The shares of all clients that can take part sum to 1. They are in proportion to training
        samples, or equal where all uploads have equal weight.
        """
        count, pooled = self.settings.clients - len(self.excluded), self.settings.aggregation
        if pooled.weights == "equal" or not pooled.is_mean:
            return 1 / count
        return float(self.sizes[client] / np.delete(self.sizes, list(self.excluded)).sum())

    def epochs(self, t: int, client: int) -> int:
        """Local passes of the client over its samples that the settings want in round t."""
        settings = self.settings
        own = self.fleet.tier(client).epochs if self.fleet.tiers else None
        if own is not None or settings.epochs_to is None or t < 0:
            return settings.epochs if own is None else own
        if (t, client) not in self._epochs:
            if len(self._epochs) >= settings.clients:
                self._epochs.clear()
            random = stream(settings.seed, Purpose.EPOCHS, t, client)
            drawn = random.integers(settings.epochs, settings.epochs_to, endpoint=True)
            self._epochs[t, client] = int(drawn)
        return self._epochs[t, client]

    def steps(self, t: int, client: int, passes: int | None = None) -> int:
        """Local steps that the client makes in round t, or in so many passes over its samples.

        With a deadline the steps of a round are those that fit before it, and 1 at least.
        """
        if passes is None and self.settings.local_steps is not None:
            found = self.settings.local_steps
        else:
            each = -(-int(self.sizes[client]) // self.settings.batch)
            found = (passes or self.epochs(t, client)) * each
        if passes is not None or self.fitting is None:
            return found
        return max(1, min(found, self.fitting(t, client)))

    def seen(self, t: int, client: int) -> int:
        """Samples that the steps of round t learn from, again and again counted again."""
        size = int(self.sizes[client])
        passes, steps = divmod(self.steps(t, client), -(-size // self.settings.batch))
        return passes * size + steps * self.settings.batch

    def is_late(self, t: int, client: int) -> bool:
        """Whether not even one step of the client fits before the deadline; never in an agreement.

        The server does not wait for its upload.
        """
        return self.fitting is not None and not self.is_agreement(t) and self.fitting(t, client) < 1

    def is_lost(self, t: int, client: int) -> bool:
        """Whether the server never gets the client's upload of round t, or gets it too late."""
        if not self.fleet.can_lose:
            return False
        return self.fleet.is_lost(t, client) or self.is_late(t, client)
