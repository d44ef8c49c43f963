"""A round's outcome: bytes, seconds, losses and accuracies of all ranks as rows of tables.

If devices are simulated, the rows also have the round's simulated costs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedmpi.clients.burden import Burden, Burdens, Meter
from fedmpi.clients.devices import Fleet
from fedmpi.clients.placement import Wave
from fedmpi.clients.population import Population
from fedmpi.config import Settings
from fedmpi.messages import codec, select
from fedmpi.messages.clock import Clock, Phase
from fedmpi.messages.ledger import Ledger
from fedmpi.messages.wire import ROOT, Wire
from fedmpi.networks import pruning
from fedmpi.results import tables
from fedmpi.results.keeper import Keeper
from fedmpi.training.evaluate import Evaluation, Verdict, mean
from fedmpi.training.probe import Overlap
from fedmpi.training.theory import OF_CLIENTS, Terms
from fedmpi.training.train import Trainer

SPENT = ("flops", "work", "server_flops", "memory", *tables.MEMORY, "whole_flops", "whole_memory")
"""Costs of a client's round on a device, as `burden` counts them; NaN without devices."""
REPORT = np.dtype(
    [("client", "i8"), ("base", "i8")]
    + [(name, "f8") for name in ("loss", "seconds", "personal", *SPENT)]
)
"""Measurements of each client on a rank, which are sent to the root after a round."""


@dataclass
class Outcome:
    """One round's rows, for each table of a result.

    Attributes:
        tables: the rows.
        finite: whether the model is still finite.
        ends: what ends the run after this round, before all are done: `target` or `budget`; else
            empty.
    """

    tables: dict[str, np.ndarray]
    finite: bool
    ends: str


class Observer:
    """Reports a rank's measurements of each round; on the root it makes the rows of all tables.

    Args:
        settings: settings of the run.
        population: the clients and their shards.
        trainer: trainer of the rank.
        fleet: the clients' devices.
        meter: counts the costs of training on a device.
        evaluation: evaluation of the rank.
        ledger: byte counts on the root.
    """

    def __init__(
        self,
        settings: Settings,
        population: Population,
        trainer: Trainer,
        fleet: Fleet,
        meter: Meter,
        evaluation: Evaluation,
        ledger: Ledger,
    ) -> None:
        self.settings, self.population, self.trainer = settings, population, trainer
        self.fleet, self.meter, self.evaluation, self.ledger = fleet, meter, evaluation, ledger
        self.total, self.is_reached = [0, 0], False
        self.has_base = np.zeros(settings.clients, bool)
        self.prunable = select.positions(trainer.flat.prunable()).to(trainer.device)

    def state(self) -> dict[str, np.ndarray]:
        """What the next rounds depend on, by name.

        Bytes up and down and the target decide whether the run ends; then who has taken part.
        """
        found = {"total": np.array(self.total), "is_reached": np.array(self.is_reached)}
        return found | {"has_base": self.has_base}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes the state of another observer."""
        self.total, self.is_reached = state["total"].tolist(), bool(state["is_reached"])
        self.has_base = state["has_base"].copy()

    def outcome(
        self,
        t: int,
        waves: Sequence[Wave],
        burdens: Burdens,
        verdict: Verdict | None,
        terms: Terms | None,
        w: Tensor | None,
        noted: Mapping[str, Mapping[int, float]],
        figures: Mapping[str, float],
        overlaps: Sequence[Overlap],
        seconds: float,
        keeper: Keeper,
        wire: Wire,
        clock: Clock,
    ) -> Outcome | None:
        """Returns all ranks' measurements as rows, on the root; None elsewhere.

        Args:
            t: the round.
            waves: the clients that took part.
            burdens: returns what a client of this rank trained.
            verdict: accuracies after the round, on the root, if it was evaluated.
            terms: those of a bound on convergence, on the root, if they were measured.
            w: the server's model [n], on the root.
            noted: numbers that the server found out about clients (see `Server.noted`).
            figures: numbers about its model (see `Server.figures`).
            overlaps: how far masks of an agreement overlap (see `Server.overlaps`).
            seconds: seconds of the round, on the clock.
            keeper: reports of its checkpoint and of signals, and hears what all ranks report.
            wire: connection to the other ranks.
            clock: clock of this rank.
        """
        method = self.settings.method
        reports = wire.report(self._report(t, waves, burdens, wire.rank))
        counts = [getattr(wire, name) for name in tables.MOVED]
        moved = wire.report(np.array([*counts, *keeper.report()]))
        spent = wire.report(clock.seconds)
        if w is None:
            return None
        keeper.hear(np.array(moved)[:, len(counts) :])
        report = np.sort(np.concatenate(reports), order="client")
        clients = self._client_rows(t, waves, report, verdict)
        for name, found in noted.items():
            clients[name] = [found.get(client, np.nan) for client in clients["client"].tolist()]
            clients[name][clients["lost"]] = np.nan  # the server knows an earlier round's, if any
        rounds = self._round_row(t, seconds, clients, verdict)
        if method.is_global and len(self.prunable):
            rounds["density"] = int(w[self.prunable].count_nonzero()) / len(self.prunable)
        for name, figure in figures.items():
            rounds[name] = figure
        if terms is not None:
            rounds["theory_objective"] = terms.objective
            rounds["theory_gradient"] = terms.gradient
            places = np.searchsorted(terms.clients["client"], clients["client"])
            for name in OF_CLIENTS:
                clients[f"theory_{name}"] = terms.clients[name][places]
        rounds["flops"] = clients["flops"].sum()
        rounds["server_flops"] = report["server_flops"].sum()
        rounds["server_seconds"] = spent[ROOT][Phase.SERVE]
        if self.fleet.tiers:
            self._simulate(t, clients, report["work"], rounds, method.in_turn)
        rows = {
            "rounds": rounds,
            "clients": clients,
            "phases": _phase_rows(t, spent),
            "ranks": _rank_rows(t, [row[: len(counts)] for row in moved]),
            "variants": self._variant_rows(t, verdict),
            "layers": self._layer_rows(t, w),
            "masks": _mask_rows(t, overlaps),
        }
        for way, name in enumerate(tables.DIRECTIONS):
            self.total[way] += int(rounds[name][0])
        finite = bool(torch.isfinite(torch.stack(torch.aminmax(w))).all())  # NaN is either
        if not method.is_global:  # then its model may be at rest while the clients' own are lost
            finite = finite and bool(np.isfinite(clients["loss"]).any())
        return Outcome(rows, finite, self._ends(t, rounds[0]))

    def _ends(self, t: int, row: np.void) -> str:
        """What ends the run after the round of that row; empty if nothing does."""
        names = ("accuracy", "shard_mean", "personal_mean")
        self.is_reached |= self.settings.is_reached({name: float(row[name]) for name in names})
        if not self.settings.is_average(t):
            return ""
        if self.is_reached:
            return "target"
        return "budget" if self.settings.is_spent(*self.total) else ""

    def _report(self, t: int, waves: Sequence[Wave], burdens: Burdens, rank: int) -> np.ndarray:
        mine = [client for wave in waves for client in wave.on(rank)]
        trainer, personal, nan = self.trainer, self.evaluation.personal, np.nan
        rows = [
            (
                *(c, self._base(t, burdens, c)),
                *(trainer.loss(c), trainer.seconds.get(c, nan), personal.get(c, nan)),
                *self._spent(t, burdens, c),
            )
            for c in mine
        ]
        return np.array(rows, REPORT)

    def _base(self, t: int, burdens: Burdens, client: int) -> int:
        """Bytes of what is frozen of a client's network; 0 if they are drawn from the seed."""
        is_drawn = self.settings.model.initial is None or not self.trainer.flat.frozen
        return 0 if is_drawn else self.meter.base(burdens(t, client))

    def _spent(self, t: int, burdens: Burdens, client: int) -> tuple[float, ...]:
        """Returns the columns `SPENT` of one client; NaN without devices and split models."""
        converses = self.settings.method.converses
        if not (self.fleet.tiers or converses):
            return (np.nan,) * len(SPENT)
        burden, meter = burdens(t, client), self.meter
        whole = Burden(meter.whole, burden.samples, burden.batch)
        behind, memory = meter.behind(burden) if converses else 0.0, meter.memory(burden)
        faster = self.fleet.tier(client).faster(burden.bits) if self.fleet.tiers else 1.0
        return (
            *(meter.flops(burden), meter.work(burden, faster), behind),
            *(memory.total, *memory, meter.flops(whole), meter.memory(whole).total),
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
            rows["steps"] = [self.population.steps(t, client) for client in clients.tolist()]
        # If the server computes a loss or evaluates a local model, only its rank knows the value.
        losses = [self.trainer.loss(client) for client in clients.tolist()]
        personal = [self.evaluation.personal.get(client, np.nan) for client in clients.tolist()]
        for name, ours in (("loss", losses), ("personal", personal)):
            rows[name] = np.where(np.isnan(report[name]), ours, report[name])
        for name in ("seconds", "flops", "memory", *tables.MEMORY, "whole_flops", "whole_memory"):
            rows[name] = report[name]
        if verdict is not None:
            rows["accuracy"] = verdict.shards[clients]
        bytes_of = self.ledger.bytes.reshape(len(self.ledger.bytes), -1)
        for column, name in enumerate(tables.BYTES):
            rows[name] = bytes_of[clients, column]
        rows["base"] = np.where(self.has_base[clients], 0, report["base"])
        self.has_base[clients] = True
        rows["lost"] = [self.population.is_lost(t, client) for client in clients.tolist()]
        return rows

    def _round_row(
        self, t: int, seconds: float, clients: np.ndarray, verdict: Verdict | None
    ) -> np.ndarray:
        row = tables.empty(tables.ROUNDS, 1)
        row["round"], row["warmup"], row["sampled"] = t, t <= 0, len(clients)
        row["loss"], row["seconds"] = clients["loss"].mean(), seconds
        row["up"], row["down"] = self.ledger.bytes.sum((0, 2))
        row["base"] = clients["base"].sum()
        if self.evaluation.is_due(t):
            row["personal_mean"] = mean(clients["personal"][np.isfinite(clients["personal"])])
        row["lost"] = clients["lost"].sum()
        if verdict is not None:
            for name, value in verdict.figures(self.population.newcomers).items():
                row[name] = value
        return row

    def _variant_rows(self, t: int, verdict: Verdict | None) -> np.ndarray:
        found = () if verdict is None else verdict.variants
        rows = tables.empty(tables.VARIANTS, len(found))
        for row, (variant, accuracy) in zip(rows, found, strict=True):
            sent = codec.pack([codec.Message(codec.EVERYONE, variant.blocks)]).bytes.sum()
            costs = self.meter.flops(variant.burden), self.meter.memory(variant.burden).total
            row["round"], row["share"], row["clients"] = t, variant.share, variant.clients
            row["kind"] = variant.kind
            row["accuracy"], row["bytes"] = accuracy, sent
            row["flops"], row["memory"] = costs
        return rows

    def _layer_rows(self, t: int, w: Tensor) -> np.ndarray:
        """Returns the density of each layer after an agreement."""
        agrees = self.population.is_agreement(t)
        layers = pruning.weights(self.trainer.flat) if agrees else []
        rows = tables.empty(tables.LAYERS, len(layers))
        for row, piece in zip(rows, layers, strict=True):
            row["round"], row["layer"] = t, piece.name.removesuffix(".weight")
            row["weights"], row["kept"] = piece.of(w).numel(), int(piece.of(w).count_nonzero())
        return rows

    def final(self, reports: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns `evaluate.ENDS` of all clients as rows of the tables of these names."""
        found, newcomers = {}, list(self.population.newcomers)
        for table, report in reports.items():
            rows = tables.empty(tables.OF_END[table], len(report))
            for name in report.dtype.names or ():
                rows[name] = report[name]
            if "newcomer" in (rows.dtype.names or ()):
                rows["newcomer"] = np.isin(rows["client"], newcomers)
            found[table] = rows
        found["final"]["samples"] = self.population.sizes
        found["slices"]["batch"] = self.settings.batch
        return found

    def _simulate(
        self, t: int, rows: np.ndarray, work: np.ndarray, row: np.ndarray, in_turn: bool
    ) -> None:
        """Fills in the simulated costs of the round, in the clients' rows and the round's."""
        clients = rows["client"].tolist()
        moved, messages = self.ledger.bytes[clients].sum(2), self.ledger.messages[clients]
        moved[:, tables.DIRECTIONS.index("down")] += rows["base"]
        rows["tier"] = [self.fleet.tier(client).name for client in clients]
        for name, column in self.fleet.cost(t, clients, moved, messages, work).items():
            rows[name] = column
        served = self.fleet.serve(float(row["server_flops"][0]))
        waits = rows["sim_seconds"].copy()
        late = [self.population.is_late(t, client) for client in clients]
        waits[late] = self.fleet.devices.deadline
        spent = waits.sum() if in_turn else waits.max()
        row["sim_seconds"] = spent + served
        row["sim_joules"] = (rows["sim_compute_joules"] + rows["sim_transmit_joules"]).sum()


def _mask_rows(t: int, overlaps: Sequence[Overlap]) -> np.ndarray:
    rows = tables.empty(tables.MASKS, len(overlaps))
    rows["round"] = t
    for row, found in zip(rows, overlaps, strict=True):
        for name, value in found._asdict().items():
            row[name] = value
    return rows


def _phase_rows(t: int, spent: Sequence[np.ndarray]) -> np.ndarray:
    rows = tables.empty(tables.PHASES, len(spent) * len(Phase))
    rows["round"], rows["rank"] = t, np.repeat(range(len(spent)), len(Phase))
    rows["phase"] = [phase.name.lower() for phase in Phase] * len(spent)
    rows["seconds"] = np.concatenate(spent)
    return rows


def _rank_rows(t: int, moved: Sequence[np.ndarray]) -> np.ndarray:
    rows = tables.empty(tables.RANKS, len(moved))
    rows["round"], rows["rank"] = t, range(len(moved))
    for name, column in zip(tables.MOVED, np.array(moved).T, strict=True):
        rows[name] = column
    return rows
