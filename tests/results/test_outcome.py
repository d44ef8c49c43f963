"""What is known after a round is right: bytes, losses, accuracies; and it is off the clock."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from mpi4py import MPI

from fedmpi import engine as engines
from fedmpi.config import Way
from fedmpi.engine import Engine
from fedmpi.messages import clock
from fedmpi.messages.clock import OFF, Clock, Phase
from fedmpi.messages.codec import BLOCK, BUFFER, MESSAGE, Block
from fedmpi.messages.wire import Line, Wire
from fedmpi.results import tables
from fedmpi.results.outcome import Outcome
from fedmpi.training import probe, train
from fedmpi.training.evaluate import Verdict, mean
from tests import plain
from tests.plain import METHODS, families, member, play
from tests.small import run, small

WORLD = MPI.COMM_WORLD
HEADS = MESSAGE.size + BLOCK.size
"""Bytes of headers in a message of one block."""
SKEWED = ("clients=40", "partition.alpha=0.1", "partition.minimum=1", "batch=4")
"""More clients than the test set can serve: some test shards are empty."""


def one(*words: str) -> tuple[Engine, Outcome]:
    """An engine after a single round, and that round's outcome."""
    engine = Engine(small("rounds=1", *words))
    (outcome,) = play(engine)
    assert outcome is not None
    return engine, outcome


class Listening(Wire):
    """A wire that writes down the lengths of what it is handed."""

    def listen(self) -> None:
        """Begins a round."""
        self.told: list[int] = []
        self.gathered: list[int] = []
        self.scattered: list[list[int]] = []

    def bcast(self, data: np.ndarray | None, way: Way = "bcast") -> np.ndarray:
        """See `Wire.bcast`."""
        found = super().bcast(data, way)
        self.told.append(found.nbytes)
        return found

    def gather(self, data: np.ndarray) -> list[np.ndarray]:
        """See `Wire.gather`."""
        self.gathered.append(data.nbytes)
        return super().gather(data)

    def scatter(self, data: np.ndarray | None, lengths: Sequence[int]) -> np.ndarray:
        """See `Wire.scatter`."""
        self.scattered.append(list(lengths))
        return super().scatter(data, lengths)

    def lines(self, count: int) -> list[Line]:
        """See `Wire.lines`."""
        while len(self.known) < count:
            for line in super().lines(len(self.known) + 1)[-1:]:
                self.tap(line)
        return super().lines(count)

    def tap(self, line: Line) -> None:
        """Listens to a line, too."""
        ask, answer = line.send_up, line.send_down

        def asked(data: np.ndarray) -> None:
            self.gathered.append(data.nbytes)
            ask(data)

        def answered(data: np.ndarray, lengths: Sequence[int]) -> None:
            self.scattered.append(list(lengths))
            answer(data, lengths)

        line.send_up, line.send_down = asked, answered


@pytest.mark.parametrize("name", METHODS)
def test_clients_are_charged_what_mpi_was_handed(name: str) -> None:
    charged((f"method.name={name}", "participation=0.6", "rounds=3"), MPI.COMM_SELF)


@pytest.mark.parallel([1, 3])
@families
def test_clients_are_charged_what_mpi_was_handed_on_all_ranks(family: str) -> None:
    charged(member(family, "participation=0.6", "rounds=3"), WORLD)


def charged(words: Sequence[str], world: MPI.Intracomm) -> None:
    """All of it but the buffers' own heads, and a word to all as often as it has hearers."""
    clock = Clock()
    wire = Listening(clock, world)
    engine = Engine(small(*words), wire.place)
    wire.listen()
    for outcome in engine.rounds(wire, clock):
        up = np.array([sum(wire.gathered), len(wire.gathered)])
        total = np.zeros_like(up)
        world.Reduce(up, total, MPI.SUM)
        if outcome is not None:
            (row,), ranks = outcome.tables["rounds"], outcome.tables["ranks"]
            assert ranks["up"].sum() == total[0]
            assert row["up"] == total[0] - BUFFER.size * total[1]
            pieces = [length for lengths in wire.scattered for length in lengths]
            assert row["down"] == (
                row["sampled"] * sum(length - BUFFER.size for length in wire.told)
                + sum(length - BUFFER.size for length in pieces)
            )
            assert ranks["down"].sum() == world.size * sum(wire.told) + sum(pieces)
            clients = outcome.tables["clients"]
            for way in tables.DIRECTIONS:
                columns = [c for c in tables.BYTES if c.startswith(f"{way}_")]
                assert sum(clients[c].sum() for c in columns) == row[way]
        wire.listen()


def test_bytes_of_a_round_by_hand() -> None:
    engine, outcome = one()
    n = engine.flat.size
    (row,) = outcome.tables["rounds"]
    assert row["up"] == row["down"] == 5 * (HEADS + 4 * n)
    (rank,) = outcome.tables["ranks"]
    assert rank["up"] == BUFFER.size + 5 * (HEADS + 4 * n)
    assert rank["down"] == BUFFER.size + HEADS + 4 * n


def test_tables_are_as_described() -> None:
    _, outcome = one("method.name=splitfed")
    assert list(outcome.tables) == list(tables.OF_ROUNDS)
    for name, rows in outcome.tables.items():
        wanted = np.dtype([(column, form) for column, (form, _) in tables.TABLES[name].items()])
        assert rows.dtype == wanted
    assert [len(rows) for rows in outcome.tables.values()] == [1, 5, len(Phase), 1, 0, 0, 0]


def test_rows_of_clients() -> None:
    found = run(small("participation=0.6", "rounds=3", "epochs=3"))
    population = found.engine.population
    for row in found.tables["clients"]:
        client = int(row["client"])
        assert client in population.sample(int(row["round"]))
        assert row["samples"] == len(population.shards[client])
        assert row["steps"] == 3 * -(-len(population.shards[client]) // 16)
        assert row["seconds"] > 0
        assert row["rank"] == 0


def test_losses_are_means_over_steps_then_over_clients() -> None:
    engine, outcome = one(*plain.EVERYTHING, "participation=0.6")
    rows = outcome.tables["clients"]
    wanted = [plain.train(engine, 0, int(c), engine.flat.initial)[1] for c in rows["client"]]
    np.testing.assert_allclose(rows["loss"], wanted, rtol=1e-5)
    assert outcome.tables["rounds"]["loss"][0] == pytest.approx(np.mean(wanted), rel=1e-5)


def test_verdict_on_the_global_model() -> None:
    words = ("rounds=6", "lr=0.5", "data.separation=6.0", "partition.alpha=0.3")
    engine = Engine(small(*words))
    evaluation, population = engine.evaluation, engine.population
    for outcome in play(engine):
        module = plain.network(engine, engine.server.w)
        everything = plain.accuracy(module, evaluation.test_x, evaluation.test_y)
        shards = np.array(
            [
                plain.accuracy(module, evaluation.test_x[shard], evaluation.test_y[shard])
                for shard in population.test_shards
            ]
        )
        out = torch.from_numpy(population.held_out)
        validation = plain.accuracy(module, engine.trainer.feed.x[out], engine.trainer.feed.y[out])
        (row,) = outcome.tables["rounds"]
        found = [row[c] for c in ("accuracy", "validation", "shard_mean", "shard_std", "shard_min")]
        known = shards[np.isfinite(shards)]
        wanted = [everything, validation, known.mean(), known.std(), known.min()]
        np.testing.assert_allclose(found, wanted, atol=1e-6)
        np.testing.assert_allclose(outcome.tables["clients"]["accuracy"], shards, atol=1e-6)
    assert row["accuracy"] > 0.3
    assert row["shard_std"] > 0


def test_empty_test_shards_are_unknown_and_do_not_count() -> None:
    engine = Engine(small(*SKEWED, "rounds=2"))
    empty = np.array([len(shard) == 0 for shard in engine.population.test_shards])
    assert 0 < empty.sum() < 40
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcomes = list(play(engine))
    for outcome in outcomes:
        rows, (row,) = outcome.tables["clients"], outcome.tables["rounds"]
        for column, average in (("accuracy", "shard_mean"), ("personal", "personal_mean")):
            np.testing.assert_array_equal(np.isnan(rows[column]), empty)
            assert row[average] == pytest.approx(rows[column][~empty].mean())
    verdict = engine.evaluation.evaluate(engine.server.w)
    assert isinstance(verdict, Verdict)
    np.testing.assert_array_equal(np.isnan(verdict.shards), empty)


def test_without_held_out_samples_there_is_no_validation() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, outcome = one("validation=0.0")
    (row,) = outcome.tables["rounds"]
    assert np.isnan(row["validation"])
    assert np.isfinite(row["accuracy"])


def test_empty_test_shards_of_clients_with_models_of_their_own_do_not_count() -> None:
    engine = Engine(small(*SKEWED, "rounds=1", "method.name=fedper"))
    empty = np.array([len(shard) == 0 for shard in engine.population.test_shards])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (outcome,) = play(engine)
    rows, (row,) = outcome.tables["clients"], outcome.tables["rounds"]
    np.testing.assert_array_equal(np.isnan(rows["accuracy"]), empty)
    known = rows["accuracy"][~empty]
    found = [row[column] for column in ("shard_mean", "shard_std", "shard_min")]
    np.testing.assert_allclose(found, [known.mean(), known.std(), known.min()])


def test_what_clients_have_is_looked_at_in_due_rounds_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Looking changes nothing, and where nothing is due it costs nothing."""
    publish, published = Wire.publish, []

    def note(wire: Wire, values: np.ndarray) -> np.ndarray:
        published.append(values)
        return publish(wire, values)

    monkeypatch.setattr(Wire, "publish", note)
    words = ("method.name=fedper", "rounds=5", "participation=0.6")
    rare, always = (Engine(small(*words, f"evaluate.every={every}")) for every in (2, 1))
    for one, other in zip(play(rare), play(always), strict=True):
        found, wanted = (outcome.tables["rounds"]["shard_mean"][0] for outcome in (one, other))
        is_due = rare.evaluation.is_due(int(one.tables["rounds"]["round"][0]))
        assert found == wanted if is_due else np.isnan(found)
        assert len(published) == (2 if is_due else 1)
        published.clear()
    assert rare.model_sha256() == always.model_sha256()
    assert all(torch.equal(own, always.clients.own[c]) for c, own in rare.clients.own.items())


def test_personal_models_are_those_that_clients_trained() -> None:
    """Trained by plain torch from the round's model; the mean is that of the round's clients."""
    words = ("participation=0.4", "rounds=5", "lr=0.5", "epochs=4", "data.separation=6.0")
    engine = Engine(small(*words))
    evaluation, everything = engine.evaluation, []
    w = engine.server.w.clone()
    for t, outcome in enumerate(play(engine)):
        rows, last = outcome.tables["clients"], np.full(5, np.nan)
        for row in rows:
            client = int(row["client"])
            module = plain.network(engine, plain.train(engine, t, client, w)[0])
            shard = engine.population.test_shards[client]
            x, y = evaluation.test_x[shard], evaluation.test_y[shard]
            last[client] = plain.accuracy(module, x, y)
            assert row["personal"] == pytest.approx(last[client], abs=1e-6)
        found = outcome.tables["rounds"]["personal_mean"][0]
        assert found == pytest.approx(np.nanmean(last), abs=1e-6)
        everything.append(found)
        w = engine.server.w.clone()
    assert len(set(everything)) > 1


@pytest.mark.parametrize(
    ("evaluate", "rounds", "due"),
    [(1, 3, [0, 1, 2]), (2, 5, [1, 3, 4]), (2, 4, [1, 3]), (10, 4, [3]), (3, 1, [0])],
)
def test_when_accuracies_are_due(evaluate: int, rounds: int, due: list[int]) -> None:
    evaluation = Engine(small(f"evaluate.every={evaluate}", f"rounds={rounds}")).evaluation
    assert [t for t in range(-1, rounds) if evaluation.is_due(t)] == due


@pytest.mark.parametrize("name", ["fedavg", "fedper"])
def test_evaluation_is_off_the_clock(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that moves 100 seconds at each evaluation, and one when a client uploads."""
    engine = Engine(small("rounds=2", "evaluate.every=2", f"method.name={name}"))
    correct, upload, now = probe.correct, engine.clients.upload, 0.0

    def judging(*args: Any, **named: Any) -> list[np.ndarray]:
        nonlocal now
        now += 100
        return correct(*args, **named)

    def uploading(*args: Any) -> list[Block]:
        nonlocal now
        now += 1
        return upload(*args)

    monkeypatch.setattr(probe, "correct", judging)
    monkeypatch.setattr(engine.clients, "upload", uploading)
    for module in (clock, engines, train):
        monkeypatch.setattr(module, "perf_counter", lambda: now)
    outcomes = list(play(engine))
    for outcome in outcomes:
        assert outcome.tables["rounds"]["seconds"].tolist() == [5]
        assert outcome.tables["clients"]["seconds"].tolist() == [1] * 5
    first, second = (dict(o.tables["phases"][["phase", "seconds"]].tolist()) for o in outcomes)
    assert first == dict.fromkeys(first, 0) | {b"train": 5}
    # All personal models, the test set and the held-out samples; or what each client has.
    assert second == first | {b"evaluate": now - 10}
    assert now - 10 >= 200


def test_phases_fit_into_the_round() -> None:
    _, outcome = one("method.name=splitfed")
    phases = outcome.tables["phases"]
    assert [name.decode() for name in phases["phase"]] == [phase.name.lower() for phase in Phase]
    off = [phase.name.lower().encode() for phase in OFF]
    on = phases["seconds"][~np.isin(phases["phase"], off)]
    assert (on > 0).all()
    assert on.sum() <= outcome.tables["rounds"]["seconds"][0]
    assert outcome.tables["clients"]["seconds"].sum() <= phases["seconds"][Phase.TRAIN]


def test_an_outcome_says_whether_the_model_is_finite() -> None:
    engine = Engine(small("rounds=1"))
    for outcome in play(engine):
        assert outcome.finite
    for value in (torch.inf, -torch.inf, torch.nan):
        engine = Engine(small("rounds=3"))
        outcomes = []
        for outcome in play(engine):
            outcomes.append(outcome.finite)
            engine.server.w[5] = value
        # The second round is told of, and trains on, what then is no number.
        assert outcomes == [True, False], value


def test_the_mean_of_nothing_is_unknown() -> None:
    assert np.isnan(mean(np.zeros(0)))
    assert mean(np.array([True, False, False, True])) == 0.5
