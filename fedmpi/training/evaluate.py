"""Accuracies of the global model, of local models, and of what clients have after a round.

Where devices hold different shares of the global model, each of these variants is measured. The
global model then is judged by the variant of the largest share, because no device has another.

All of it is off the clock. Who measures may look at models of server and clients alike: that these
meet only in messages binds methods.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fedmpi.clients.placement import Placement, Wave
from fedmpi.clients.population import EVERYONE_ROUND, Population
from fedmpi.config import Settings
from fedmpi.data import Dataset
from fedmpi.messages.clock import Clock, Phase
from fedmpi.messages.wire import Wire
from fedmpi.networks.slicing import Channels
from fedmpi.training import inference, probe
from fedmpi.training.probe import Variant
from fedmpi.training.train import Part, Trainer

ENDS = {
    "final": np.dtype([("client", "i8"), ("accuracy", "f8"), ("tuned", "f8")]),
    "slices": np.dtype(
        [
            ("client", "i8"),
            *((name, "f8") for name in ("channels", "whole_accuracy", "accuracy", "tuned")),
            *((name, "f8") for name in ("whole_flops", "flops", "whole_seconds", "seconds")),
            *((name, "f8") for name in ("whole_batch_seconds", "batch_seconds")),
        ]
    ),
    "newcomers": np.dtype([("client", "i8"), ("start", "S8"), ("epoch", "i8"), ("accuracy", "f8")]),
}
"""What a rank finds out about the clients that it hosts after the last round, by table."""
SHARD = np.dtype([("client", "i8"), ("accuracy", "f8")])
"""What a rank knows of each client that it hosts, whether or not it took part."""

Personal = Callable[[int], Tensor | None]
"""A client's whole local model [n], where the server alone has it: `Server.personal`."""
Deployed = Callable[[int, Tensor], Tensor]
"""What a client has once it knows the server's w [n]: `Clients.deployed`."""
Variants = Callable[[int], Sequence[Variant]]
"""The variants after a round, the largest share first: `Server.variants`."""


class Owners(Protocol):
    """What a rank's clients are asked for after the last round: see `methods.fedavg.Clients`."""

    def owned(self, t: int, client: int, w: Tensor) -> Tensor: ...

    def tune(
        self, t: int, clients: Sequence[int], models: Tensor, gone: Tensor | None = None
    ) -> Tensor: ...

    def keep(self, t: int, client: int, w: Tensor) -> tuple[Channels, Tensor]: ...


@dataclass
class Verdict:
    """Accuracies after a round.

    Attributes:
        accuracy: of the global model on the test set; NaN if there is none.
        validation: likewise, on the held-out samples.
        shards: on each client's test shard, [clients]: of the global model, or of what the client
            has of its own and of the server's.
        variants: each variant of the global model with its accuracy on the test set; the accuracies
            above are those of the first one.
    """

    accuracy: float
    validation: float
    shards: np.ndarray
    variants: Sequence[tuple[Variant, float]] = ()

    def figures(self, newcomers: Iterable[int]) -> dict[str, float]:
        """The accuracies of a round by columns of the table `rounds`, without those clients."""
        shards = np.delete(self.shards, list(newcomers))
        shards = shards[np.isfinite(shards)]
        return {
            "accuracy": self.accuracy,
            "validation": self.validation,
            "shard_mean": shards.mean(),
            "shard_std": shards.std(),
            "shard_min": shards.min(),
        }


class Evaluation:
    """Measures accuracies on a rank.

    Attributes:
        test_x: the test set, [N, *shape].
        test_y: its labels, int64 [N].
        held_x: samples that no client has, for validation.
        held_y: their labels.
        skewed: all test shards with their clients' skew, concatenated; None if no sample changes.
        seen: the same in this round.
        personal: accuracies of clients' local models in this round, by client.
        chain: the network in parts, if activations at a cut are judged as the method changes them.
    """

    def __init__(
        self, settings: Settings, data: Dataset, population: Population, trainer: Trainer
    ) -> None:
        self.settings, self.population, self.trainer = settings, population, trainer
        self.test_x = torch.from_numpy(data.test_x).to(trainer.device)
        self.test_y = torch.from_numpy(data.test_y).to(trainer.device)
        held_out = torch.from_numpy(population.held_out).to(trainer.device)
        self.held_x, self.held_y = trainer.feed.take(held_out)
        self.counts = np.array([len(shard) for shard in population.test_shards])
        self.owners = np.repeat(np.arange(settings.clients), self.counts)
        self.owned = np.concatenate(population.test_shards)
        seen = trainer.feed.traits.test(data, population)
        self.skewed = None if seen is None else torch.from_numpy(seen).to(trainer.device)
        self.ends = np.cumsum(self.counts)
        self.chain: probe.Chain | None = None
        self.begin(EVERYONE_ROUND)

    def begin(self, t: int) -> None:
        """Round t begins: nothing is known, and test shards have skew from `skew.since` on."""
        self.seen = self.skewed if self.settings.skew.holds(t) else None
        self.kept: list[tuple[int, Tensor]] = []
        self.personal: dict[int, float] = {}

    def is_due(self, t: int) -> bool:
        """Whether accuracies are measured in round t."""
        last = t == self.settings.rounds - 1
        return t > EVERYONE_ROUND and (last or (t + 1) % self.settings.evaluate.every == 0)

    def set_aside(self, client: int, w: Tensor | None) -> None:
        """Sets a trained local model [n], if there is one, aside until all have sent theirs."""
        if w is not None:
            self.kept.append((client, w.clone()))

    def after(
        self,
        t: int,
        w: Tensor | None,
        variants: Variants | None,
        deployed: Deployed | None,
        placement: Placement,
        wire: Wire,
        clock: Clock,
    ) -> Verdict | None:
        """Accuracies after round t, on the root, if they are due; all ranks take part.

        Args:
            t: the round.
            w: the server's model [n], on the root.
            variants: gives the variants of it that devices hold; None off the root.
            deployed: where no model is global, makes what a client has of the server's.
            placement: of the clients on the ranks.
            wire: to the other ranks.
            clock: of this one.
        """
        verdict = None
        if self.is_due(t) and not self.settings.method.is_global:
            verdict = self.evaluate_deployed(w, deployed, placement, wire, clock)
        elif self.is_due(t) and w is not None:
            with clock(Phase.EVALUATE):
                verdict = self.evaluate(w, () if variants is None else variants(t))
        wire.settle()
        return verdict

    def evaluate_locals(
        self, wave: Wave, personal: Personal | None, wire: Wire, clock: Clock
    ) -> list[tuple[int, Tensor]]:
        """Measures the wave's local models on their clients' test shards.

        Args:
            wave: the clients.
            personal: gives the local models that the server alone has whole; None off the root.
            wire: to the other ranks, who wait.
            clock: of this one.

        Returns:
            The clients whose models [n] are on this rank, and the models.
        """
        with clock(Phase.EVALUATE):
            whole, self.kept = self.kept, []
            if personal is not None:
                theirs = [(client, personal(client)) for client in wave.clients]
                whole += [(client, w) for client, w in theirs if w is not None]
            self.personal |= self.on_shards(whole)
        wire.settle()
        return whole

    def evaluate_deployed(
        self,
        w: Tensor | None,
        deployed: Deployed | None,
        placement: Placement,
        wire: Wire,
        clock: Clock,
    ) -> Verdict | None:
        """Accuracies of what all clients have after the round, on the root; None elsewhere.

        Each is measured where the client lives, for there is what it keeps to itself.

        Args:
            w: the server's model [n], on the root.
            deployed: makes a client's model of it; None if clients have no such.
            placement: of the clients on the ranks.
            wire: to the other ranks.
            clock: of this one.
        """
        if deployed is None:
            return None
        w = self.published(w, wire)
        rows: list[tuple[int, float]] = []
        with clock(Phase.EVALUATE):
            # Not all at once: that would be a whole model for each client of the rank.
            for clients in self.trainer.chunks(0, placement.hosted(wire.rank), 1):
                models = [(client, deployed(client, w)) for client in clients]
                rows += self.on_shards(models).items()
        wire.settle()
        reports = wire.report(np.array(rows, SHARD))
        if not wire.is_root:
            return None
        report = np.sort(np.concatenate(reports), order="client")
        return Verdict(np.nan, np.nan, report["accuracy"])

    def final(
        self, t: int, w: Tensor | None, owners: Owners, placement: Placement, wire: Wire
    ) -> dict[str, np.ndarray]:
        """Measurements of what every client has after the last round; empty off the root.

        Args:
            t: the last round.
            w: the server's model [n], on the root.
            owners: the clients, who make models of it, and train or slice them if the settings say
                so.
            placement: of the clients on the ranks.
            wire: to the other ranks.

        Returns:
            `ENDS` by table, ordered by client.
        """
        w, way = self.published(w, wire), self.settings.evaluate.final
        passes = self.settings.evaluate.final_epochs
        found: dict[str, list[tuple[Any, ...]]] = {name: [] for name in ENDS}
        for clients in self.trainer.chunks(t, placement.hosted(wire.rank), passes):
            models = torch.stack([owners.owned(t, client, w) for client in clients])
            known = self.on_shards(list(zip(clients, models, strict=True)))
            tuned = dict.fromkeys(clients, np.nan)
            if way == "slice":
                found["slices"] += self._slices(t, clients, models, known, owners)
            if way == "tune":
                after = owners.tune(t, clients, models).clone()
                tuned = self.on_shards(list(zip(clients, after, strict=True)))
                found["newcomers"] += self._adapted(t, clients, known)
            found["final"] += [(client, known[client], tuned[client]) for client in clients]
        tables = {}
        for name, kind in ENDS.items():
            reports = wire.report(np.array(found[name], kind))
            if wire.is_root:
                tables[name] = np.concatenate(reports)
                tables[name] = tables[name][np.argsort(tables[name]["client"], kind="stable")]
        return tables

    def _adapted(
        self, t: int, clients: Sequence[int], known: Mapping[int, float]
    ) -> list[tuple[int, str, int, float]]:
        """Accuracies of the newcomers among a chunk of clients after each epoch of training.

        The models that they have are tuned already (`trainer.passed`); then they train from the
        initial model, all of it, in the same batches and at the same rate.

        Args:
            t: the last round.
            clients: the chunk.
            known: accuracies of the models that they have, by client.

        Returns:
            Rows of the table `newcomers`.
        """
        new = [client for client in clients if client in self.population.newcomers]
        if not new:
            return []
        trainer, passes = self.trainer, self.settings.evaluate.final_epochs
        initial = trainer.flat.initial.to(trainer.device)
        begun = {"model": (known, trainer.passed)}
        trainer.tune(t, new, initial, passes, watched=new)
        first = self.on_shards([(client, initial) for client in new])
        begun["scratch"] = (first, trainer.passed)
        rows = []
        for start, (accuracies, passed) in begun.items():
            rows += [(client, start, 0, accuracies[client]) for client in new]
            for epoch in range(passes):
                models = [(client, passed[client][epoch]) for client in new]
                found = self.on_shards(models)
                rows += [(client, start, epoch + 1, found[client]) for client in new]
        return rows

    def _slices(
        self,
        t: int,
        clients: Sequence[int],
        models: Tensor,
        known: Mapping[int, float],
        owners: Owners,
    ) -> list[tuple[float, ...]]:
        """What becomes of the models [C, n] of a chunk of clients if they are sliced.

        Args:
            t: the last round.
            clients: the chunk.
            models: theirs.
            known: their accuracies, by client.
            owners: say which channels stay, and train what is left.

        Returns:
            Rows of the table `slices`.
        """
        kept = [owners.keep(t, *pair) for pair in zip(clients, models, strict=True)]
        masks = [
            channels.masked(torch.ones_like(model), chosen)
            for model, (channels, chosen) in zip(models, kept, strict=True)
        ]
        left = torch.stack(masks)
        tuned = owners.tune(t, clients, models * left, left == 0).clone()
        flat, shape = self.trainer.flat, tuple(self.test_x.shape[1:])
        some = torch.arange(self.settings.batch) % len(self.test_x)
        batch = self.test_x[some.to(self.test_x.device)].cpu()
        rows = []
        for place, client in enumerate(clients):
            x, y = (part.cpu() for part in self.shard(client))
            channels, chosen = kept[place]
            about = channels, chosen, shape
            slice = inference.Slice(flat, models[place], *about)
            after = inference.Slice(flat, tuned[place], *about)
            accuracies = [inference.accuracy(each.small, x, y) for each in (slice, after)]
            share = len(chosen) / channels.count
            seconds = slice.seconds(batch[:1]), slice.seconds(batch)
            numbers = (share, known[client], *accuracies, *slice.flops())
            rows.append((client, *numbers, *seconds[0], *seconds[1]))
        return rows

    def published(self, w: Tensor | None, wire: Wire) -> Tensor:
        """The root's model [n], on every rank."""
        size, device = self.trainer.flat.size, self.trainer.device
        published = np.empty(size, "f4") if w is None else w.cpu().numpy()
        return torch.from_numpy(wire.publish(published)).to(device)

    def _correct(
        self,
        models: Sequence[Tensor],
        xs: Sequence[Tensor],
        ys: Sequence[Tensor],
        owners: Sequence[int] = (),
    ) -> list[np.ndarray]:
        """See `probe.correct`."""
        return probe.correct(self.trainer, models, xs, ys, owners, self.chain)

    def on_shards(self, models: Sequence[tuple[int, Tensor]]) -> dict[int, float]:
        """Accuracies of clients' models [n] on their test shards."""
        clients = [client for client, _ in models]
        shards = [self.shard(client) for client in clients]
        xs, ys = ([shard[part] for shard in shards] for part in range(2))
        right = self._correct([w for _, w in models], xs, ys, clients)
        return {client: mean(theirs) for client, theirs in zip(clients, right, strict=True)}

    def shard(self, client: int) -> tuple[Tensor, Tensor]:
        """The client's test samples as it sees them, and their labels."""
        positions = torch.from_numpy(self.population.test_shards[client])
        if self.seen is None:
            return self.test_x[positions], self.test_y[positions]
        end = self.ends[client]
        return self.seen[end - self.counts[client] : end], self.test_y[positions]

    def evaluate(self, w: Tensor, variants: Sequence[Variant] = ()) -> Verdict:
        """Accuracies of the global model w [n].

        Args:
            w: the model.
            variants: those of it that devices hold, the largest share first.
        """
        models = [(one.w, one.part) for one in variants] or [(w, None)]
        right = [self._right(self.test_x, self.test_y, *model) for model in models]
        theirs = right[0][self.owned]
        if self.seen is not None:
            theirs = self._right(self.seen, self.test_y[self.owned], *models[0])
        hits = np.bincount(self.owners, theirs, minlength=self.settings.clients)
        shards = hits / np.where(self.counts, self.counts, np.nan)
        known = self._right(self.held_x, self.held_y, *models[0])
        judged = [(one, mean(hits)) for one, hits in zip(variants, right, strict=False)]
        return Verdict(mean(right[0]), mean(known), shards, judged)

    def _right(self, x: Tensor, y: Tensor, w: Tensor, part: Part | None) -> np.ndarray:
        """Which samples a model classifies correctly, bool [N]."""
        chain = self.chain if part is None else probe.Chain([part])
        (found,) = probe.correct(self.trainer, [w], [x], [y], chain=chain)
        return found


def mean(values: np.ndarray) -> float:
    """The mean; NaN of nothing."""
    return float(values.mean()) if len(values) else np.nan
