"""What is known after a round: bytes, seconds, losses, accuracies. All of it is off the clock.

Who measures may look at server and clients alike: that they meet only in messages binds methods.

Where devices are simulated, what the round would cost on them stands beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedmpi import tables
from fedmpi.burden import Burden, Burdens, Meter
from fedmpi.clock import Clock, Phase
from fedmpi.codec import Kind
from fedmpi.config import Settings
from fedmpi.data import Dataset
from fedmpi.devices import Fleet
from fedmpi.methods.fedavg import Clients, Server
from fedmpi.population import EVERYONE_ROUND, Population, Wave
from fedmpi.train import Trainer
from fedmpi.wire import ROOT, Wire

UP, DOWN = 0, 1
"""Directions of a client's bytes, in the order of `tables.DIRECTIONS`."""
SPENT = ("flops", "server_flops", "memory", "whole_flops", "whole_memory")
"""What a client's round asks of the devices, as `burden` counts it; NaN without devices."""
REPORT = np.dtype([("client", "i8"), *((n, "f8") for n in ("loss", "seconds", "personal", *SPENT))])
"""What a rank knows of each of its clients after a round."""
SHARD = np.dtype([("client", "i8"), ("accuracy", "f8")])
"""What a rank knows of each client that it hosts, whether or not it took part."""


@dataclass
class Outcome:
    """One round's rows, for each table of a result.

    Attributes:
        tables: the rows.
        finite: whether the model is still finite.
        is_spent: whether the run has reached its budget.
    """

    tables: dict[str, np.ndarray]
    finite: bool
    is_spent: bool


@dataclass
class Verdict:
    """Accuracies after a round.

    Attributes:
        accuracy: of the global model on the test set; NaN if there is none.
        validation: likewise, on the held-out samples.
        shards: on each client's test shard, [clients]: of the global model, or of what the client
            has of its own and of the server's.
    """

    accuracy: float
    validation: float
    shards: np.ndarray


class Observer:
    """Measures a rank's part of each round; on the root it makes the rows of all tables."""

    def __init__(
        self,
        settings: Settings,
        data: Dataset,
        population: Population,
        trainer: Trainer,
        fleet: Fleet,
        meter: Meter,
    ) -> None:
        self.settings, self.population, self.trainer = settings, population, trainer
        self.fleet, self.meter = fleet, meter
        self.test_x = torch.from_numpy(data.test_x).to(trainer.device)
        self.test_y = torch.from_numpy(data.test_y).to(trainer.device)
        held_out = torch.from_numpy(population.held_out).to(trainer.device)
        self.held_x, self.held_y = trainer.feed.take(held_out)
        self.counts = np.array([len(shard) for shard in population.test_shards])
        self.owners = np.repeat(np.arange(settings.clients), self.counts)
        self.owned = np.concatenate(population.test_shards)
        seen = trainer.feed.traits.test(data, population)
        self.seen = None if seen is None else torch.from_numpy(seen).to(trainer.device)
        self.ends = np.cumsum(self.counts)
        self.last_personal = np.full(settings.clients, np.nan)
        self.total = [0, 0]
        self.begin()

    def begin(self) -> None:
        """A round begins: nothing is known."""
        self.account = np.zeros((self.settings.clients, 2, len(Kind)), np.int64)
        self.messages = np.zeros((self.settings.clients, 2), np.int64)
        self.kept: list[tuple[int, Tensor]] = []
        self.personal: dict[int, float] = {}

    def is_due(self, t: int) -> bool:
        """Whether accuracies are measured in round t."""
        last = t == self.settings.rounds - 1
        return t > EVERYONE_ROUND and (last or (t + 1) % self.settings.evaluate == 0)

    def is_lost(self, t: int, client: int) -> bool:
        """Whether what the client uploads in round t gets lost; never in an agreement."""
        return not self.population.is_agreement(t) and self.fleet.is_lost(t, client)

    def charge(self, direction: int, clients: Sequence[int], account: np.ndarray) -> None:
        """Adds messages' bytes (int64 [messages, kinds], or one row for all) to their clients."""
        if len(clients) and len(account):
            self.account[list(clients), direction] += account
            self.messages[list(clients), direction] += 1

    def keep(self, client: int, w: Tensor | None) -> None:
        """Sets a trained local model [n], if there is one, aside until all have sent theirs."""
        if w is not None:
            self.kept.append((client, w.clone()))

    def judge_locals(self, wave: Wave, server: Server | None, wire: Wire, clock: Clock) -> None:
        """Accuracies of the wave's local models on their clients' test shards."""
        with clock(Phase.EVALUATE):
            whole, self.kept = self.kept, []
            if server is not None:
                theirs = [(client, server.personal(client)) for client in wave.clients]
                whole += [(client, w) for client, w in theirs if w is not None]
            self.personal |= self._on_shards(whole)
        wire.settle()

    def judge_deployed(
        self,
        server: Server | None,
        ours: Clients,
        hosts: Sequence[int],
        wire: Wire,
        clock: Clock,
    ) -> Verdict | None:
        """Accuracies of what all clients have after the round, on the root; None elsewhere.

        Each is measured where the client lives, for there is what it keeps to itself.
        """
        if ours.deployed is None:
            return None
        size, device = self.trainer.flat.size, self.trainer.device
        published = np.empty(size, "f4") if server is None else server.w.cpu().numpy()
        w = torch.from_numpy(wire.publish(published)).to(device)
        rows: list[tuple[int, float]] = []
        with clock(Phase.EVALUATE):
            # Not all at once: that would be a whole model for each client of the rank.
            for clients in self.trainer.chunks(self.population.hosted(hosts, wire.rank)):
                models = [(client, ours.deployed(client, w)) for client in clients]
                rows += self._on_shards(models).items()
        wire.settle()
        reports = wire.report(np.array(rows, SHARD))
        if not wire.is_root:
            return None
        report = np.sort(np.concatenate(reports), order="client")
        return Verdict(np.nan, np.nan, report["accuracy"])

    def _on_shards(self, models: Sequence[tuple[int, Tensor]]) -> dict[int, float]:
        """Accuracies of clients' models [n] on their test shards."""
        clients = [client for client, _ in models]
        shards = [self.shard(client) for client in clients]
        xs, ys = ([shard[part] for shard in shards] for part in range(2))
        right = self.trainer.correct([w for _, w in models], xs, ys, clients)
        return {client: mean(theirs) for client, theirs in zip(clients, right, strict=True)}

    def shard(self, client: int) -> tuple[Tensor, Tensor]:
        """The client's test samples as it sees them, and their labels."""
        positions = torch.from_numpy(self.population.test_shards[client])
        if self.seen is None:
            return self.test_x[positions], self.test_y[positions]
        end = self.ends[client]
        return self.seen[end - self.counts[client] : end], self.test_y[positions]

    def judge(self, w: Tensor) -> Verdict:
        """Accuracies of the global model w [n]."""
        (right,) = self.trainer.correct([w], [self.test_x], [self.test_y])
        theirs = right[self.owned]
        if self.seen is not None:
            (theirs,) = self.trainer.correct([w], [self.seen], [self.test_y[self.owned]])
        hits = np.bincount(self.owners, theirs, minlength=self.settings.clients)
        shards = hits / np.where(self.counts, self.counts, np.nan)
        (known,) = self.trainer.correct([w], [self.held_x], [self.held_y])
        return Verdict(mean(right), mean(known), shards)

    def outcome(
        self,
        t: int,
        waves: Sequence[Wave],
        server: Server | None,
        ours: Clients,
        hosts: Sequence[int],
        wire: Wire,
        clock: Clock,
    ) -> Outcome | None:
        """All ranks' measurements as rows, on the root; None elsewhere.

        Args:
            t: the round.
            waves: who took part.
            server: the server's half of the method, on the root.
            ours: the clients' half.
            hosts: ranks that host clients.
            wire: to the other ranks.
            clock: of this one.
        """
        seconds, verdict, method = clock.elapsed(), None, self.settings.method
        if self.is_due(t) and not method.is_global:
            verdict = self.judge_deployed(server, ours, hosts, wire, clock)
        elif self.is_due(t) and server is not None:
            with clock(Phase.EVALUATE):
                verdict = self.judge(server.w)
        wire.settle()
        reports = wire.report(self._report(t, waves, ours.burden, wire.rank))
        moved = wire.report(np.array([wire.up, wire.down]))
        spent = wire.report(clock.seconds)
        if server is None:
            return None
        report = np.sort(np.concatenate(reports), order="client")
        clients = self._client_rows(t, waves, report, verdict)
        for name, noted in server.noted.items():
            clients[name] = [noted.get(client, np.nan) for client in clients["client"].tolist()]
            clients[name][clients["lost"]] = np.nan  # the server knows an earlier round's, if any
        rounds = self._round_row(t, seconds, clients, verdict)
        rounds["flops"] = clients["flops"].sum()
        rounds["server_flops"] = report["server_flops"].sum()
        rounds["server_seconds"] = spent[ROOT][Phase.SERVE]
        if self.fleet.tiers:
            self._simulate(t, clients, rounds, method.in_turn)
        rows = {
            "rounds": rounds,
            "clients": clients,
            "phases": _phase_rows(t, spent),
            "ranks": _rank_rows(t, moved),
        }
        for way, name in enumerate(tables.DIRECTIONS):
            self.total[way] += int(rounds[name][0])
        finite = bool(torch.isfinite(server.w).all())
        if not method.is_global:  # then its model may be at rest while the clients' own are lost
            finite = finite and bool(np.isfinite(clients["loss"]).any())
        return Outcome(rows, finite, self.settings.is_spent(*self.total))

    def _report(self, t: int, waves: Sequence[Wave], burdens: Burdens, rank: int) -> np.ndarray:
        mine = [client for wave in waves for client in wave.on(rank)]
        trainer, nan = self.trainer, np.nan
        rows = [
            (
                *(c, trainer.loss(c), trainer.seconds.get(c, nan), self.personal.get(c, nan)),
                *self._spent(t, burdens, c),
            )
            for c in mine
        ]
        return np.array(rows, REPORT)

    def _spent(self, t: int, burdens: Burdens, client: int) -> tuple[float, ...]:
        """The columns `SPENT`, of one client; unknown where nobody asks."""
        converses = self.settings.method.converses
        if not (self.fleet.tiers or converses):
            return (np.nan,) * len(SPENT)
        burden, meter = burdens(t, client), self.meter
        whole = Burden(meter.whole, burden.samples, burden.batch)
        behind = meter.behind(burden) if converses else 0.0
        return (
            *(meter.flops(burden), behind, meter.memory(burden)),
            *(meter.flops(whole), meter.memory(whole)),
        )

    def _client_rows(
        self, t: int, waves: Sequence[Wave], report: np.ndarray, verdict: Verdict | None
    ) -> np.ndarray:
        clients = report["client"]
        rows = tables.empty(tables.CLIENTS, len(clients))
        rows["round"], rows["client"] = t, clients
        rows["rank"] = [host for wave in waves for host in wave.hosts]
        rows["samples"] = self.population.sizes[clients]
        if not self.population.is_agreement(t):
            rows["steps"] = [self.population.steps(client) for client in clients.tolist()]
        # Where the server computes a loss or judges a local model, its rank alone knows the value.
        losses = [self.trainer.loss(client) for client in clients.tolist()]
        personal = [self.personal.get(client, np.nan) for client in clients.tolist()]
        for name, ours in (("loss", losses), ("personal", personal)):
            rows[name] = np.where(np.isnan(report[name]), ours, report[name])
        for name in ("seconds", "flops", "memory", "whole_flops", "whole_memory"):
            rows[name] = report[name]
        if verdict is not None:
            rows["accuracy"] = verdict.shards[clients]
        bytes_of = self.account.reshape(len(self.account), -1)
        for column, name in enumerate(tables.BYTES):
            rows[name] = bytes_of[clients, column]
        rows["lost"] = [self.is_lost(t, client) for client in clients.tolist()]
        fresh = np.isfinite(rows["personal"])
        self.last_personal[clients[fresh]] = rows["personal"][fresh]
        return rows

    def _round_row(
        self, t: int, seconds: float, clients: np.ndarray, verdict: Verdict | None
    ) -> np.ndarray:
        row = tables.empty(tables.ROUNDS, 1)
        row["round"], row["warmup"], row["sampled"] = t, t <= 0, len(clients)
        row["loss"], row["seconds"] = clients["loss"].mean(), seconds
        row["up"], row["down"] = self.account.sum((0, 2))
        if self.is_due(t):
            row["personal_mean"] = mean(self.last_personal[np.isfinite(self.last_personal)])
        row["lost"] = clients["lost"].sum()
        if verdict is not None:
            shards = verdict.shards[np.isfinite(verdict.shards)]
            row["accuracy"], row["validation"] = verdict.accuracy, verdict.validation
            row["shard_mean"], row["shard_std"] = shards.mean(), shards.std()
            row["shard_min"] = shards.min()
        return row

    def _simulate(self, t: int, rows: np.ndarray, row: np.ndarray, in_turn: bool) -> None:
        """Fills in what the round costs on the devices, in the clients' rows and the round's."""
        clients, flops = rows["client"].tolist(), rows["flops"]
        moved, messages = self.account[clients].sum(2), self.messages[clients]
        rows["tier"] = [self.fleet.tier(client).name for client in clients]
        for name, column in self.fleet.cost(t, clients, moved, messages, flops).items():
            rows[name] = column
        served = self.fleet.serve(float(row["server_flops"][0]))
        spent = rows["sim_seconds"].sum() if in_turn else rows["sim_seconds"].max()
        row["sim_seconds"] = spent + served
        row["sim_joules"] = (rows["sim_compute_joules"] + rows["sim_transmit_joules"]).sum()


def _phase_rows(t: int, spent: Sequence[np.ndarray]) -> np.ndarray:
    rows = tables.empty(tables.PHASES, len(spent) * len(Phase))
    rows["round"], rows["rank"] = t, np.repeat(range(len(spent)), len(Phase))
    rows["phase"] = [phase.name.lower() for phase in Phase] * len(spent)
    rows["seconds"] = np.concatenate(spent)
    return rows


def _rank_rows(t: int, moved: Sequence[np.ndarray]) -> np.ndarray:
    rows = tables.empty(tables.RANKS, len(moved))
    rows["round"], rows["rank"] = t, range(len(moved))
    rows["up"], rows["down"] = np.array(moved).T
    return rows


def mean(values: np.ndarray) -> float:
    """The mean; NaN of nothing."""
    return float(values.mean()) if len(values) else np.nan
