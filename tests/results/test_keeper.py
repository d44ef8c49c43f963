"""A run that is stopped goes on from its checkpoint on other ranks, bit for bit."""

from collections.abc import Sequence
from pathlib import Path
from threading import Event, current_thread
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from fedmpi.config import Settings
from fedmpi.engine import Engine
from fedmpi.errors import Failure
from fedmpi.messages.clock import Clock, Phase
from fedmpi.messages.wire import Wire
from fedmpi.results import checkpoint
from fedmpi.results.checkpoint import Manifest, State
from fedmpi.results.keeper import Keeper, Word
from fedmpi.results.outcome import Outcome
from tests import PATIENCE
from tests.plain import METHODS, families, member
from tests.small import Run, alike, run, small
from tests.suites.test_state import differences

WORLD = MPI.COMM_WORLD
on_ranks = pytest.mark.parallel([1, 2, 3])
FEW = ("participation=0.6", "momentum=0.5", "batch=32", "devices.dropouts=0.3", "rounds=4")
BY_SAMPLE = [
    ("method.name=sgcfl", "method.cut_feedback=true", "method.tail=head"),
    ("method.name=splitcom", "method.threshold=0.9"),
    ("method.name=splitcom", "method.gradient_threshold=0.9", "method.tail=head"),
]
"""Clients keep something of each of their samples."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The root's folder, the same for all ranks."""
    return Path(WORLD.bcast(str(tmp_path)))


def play(
    settings: Settings, comm: MPI.Intracomm, path: Path, stop: int | None = None
) -> tuple[Engine, Sequence[Outcome | None]]:
    """Runs settings from the newest checkpoint on; the last rank is signalled in round stop - 1."""
    clock = Clock()
    wire = Wire(clock, comm)
    engine, first = Engine(settings, wire.place), None
    comm.Barrier()
    for newest in checkpoint.there(path)[:1]:
        manifest = checkpoint.manifest_of(newest)
        for rank in range(len(manifest.sizes)):
            checkpoint.verify(newest, manifest, rank)
        engine.restore(checkpoint.read(newest, len(manifest.sizes), engine.wants))
        first = manifest.round

    def is_signalled() -> bool:
        return stop is not None and wire.rank == wire.size - 1 and engine.last == stop - 1

    keeper = Keeper(settings, path, Manifest(0, "", {}, ""), is_signalled)
    found = list(engine.rounds(wire, clock, first, keeper))
    assert engine.is_stopped == (stop is not None)
    return engine, found


def compare(settings: Settings, engine: Engine, found: Sequence[Outcome | None]) -> None:
    """Compares the last rounds, on the root, with those of a run on one rank alone."""
    whole = run(settings)
    outcomes = [outcome for outcome in found if outcome is not None]
    for outcome in outcomes:
        (t,) = outcome.tables["rounds"]["round"].tolist()
        for rows in outcome.tables.values():
            if "rank" in (rows.dtype.names or ()):
                rows["rank"] = 0
        theirs = {
            n: rows[rows["round"] == t]
            for n, rows in whole.tables.items()
            if "round" in str(rows.dtype)
        }
        alike(Run(engine, outcome.tables), Run(whole.engine, theirs), but=("ranks",))
    assert [int(o.tables["rounds"]["round"][0]) for o in outcomes] == [2, 3]


@on_ranks
@families
def test_from_several_ranks_to_one(family: str, folder: Path) -> None:
    settings, path = small(*member(family), *FEW), folder / "x.h5"
    _, found = play(settings, WORLD, path, stop=2)
    assert len(found) == 2 - Engine(settings).population.first_round
    if WORLD.rank == 0:
        compare(settings, *play(settings, MPI.COMM_SELF, path))


@pytest.mark.parallel([3])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_on_from_several_ranks_on_one(name: str, folder: Path) -> None:
    settings, path = small(f"method.name={name}", "rounds=4", "participation=0.6"), folder / "x.h5"
    play(settings, WORLD, path, stop=2)
    if WORLD.rank == 0:
        compare(settings, *play(settings, MPI.COMM_SELF, path))


@on_ranks
@families
def test_from_one_rank_to_several(family: str, folder: Path) -> None:
    settings, path = small(*member(family), *FEW), folder / "x.h5"
    if WORLD.rank == 0:
        play(settings, MPI.COMM_SELF, path, stop=2)
    engine, found = play(settings, WORLD, path)
    if WORLD.rank == 0:
        compare(settings, engine, found)


@on_ranks
@pytest.mark.parametrize("words", BY_SAMPLE, ids=lambda words: words[0])
def test_what_is_kept_of_samples_follows_their_clients(
    words: tuple[str, ...], folder: Path
) -> None:
    """From several ranks to one, and from one to several."""
    settings = small(*words, *FEW)
    several, alone = folder / "several.h5", folder / "alone.h5"
    play(settings, WORLD, several, stop=2)
    if WORLD.rank == 0:
        compare(settings, *play(settings, MPI.COMM_SELF, several))
        play(settings, MPI.COMM_SELF, alone, stop=2)
    engine, found = play(settings, WORLD, alone)
    owners, homes = engine.population.owners, engine.placement.homes
    stores = [one for one in engine.trainer.stores.values() if one.by_sample]
    assert stores
    assert {homes[owners[sample]] for store in stores for sample in store} <= {WORLD.rank}
    if WORLD.rank == 0:
        compare(settings, engine, found)


@on_ranks
@pytest.mark.parametrize("name", ["ssfl", "feddst", "prunefl", "fedsl", "dispfl"])
def test_what_clients_know_alike_is_what_the_last_rank_learned(name: str, folder: Path) -> None:
    """A rank none of whose clients took part does not know the newest mask."""
    settings = small(f"method.name={name}", "rounds=4", "participation=0.6")
    engine, _ = play(settings, WORLD, folder / "x.h5", stop=3)
    mine = {name: tensor.tolist() for name, tensor in engine.clients.state().items()}
    every = WORLD.allgather(mine)
    newest = max(every, key=lambda state: state.get("since", 0))
    assert all(state == newest for state in every if state.get("since") == newest.get("since"))
    other = Engine(settings)
    (folder_of,) = checkpoint.there(folder / "x.h5")
    other.restore(checkpoint.read(folder_of, WORLD.size, other.wants))
    assert {name: tensor.tolist() for name, tensor in other.clients.state().items()} == newest


@on_ranks
def test_checkpoints_are_written_every_so_many_rounds(folder: Path) -> None:
    """Nothing else changes, and their seconds are off the clock."""
    plain = run(small("rounds=6"), WORLD)
    settings, path, clock = small("rounds=6", "checkpoint.every=2"), folder / "x.h5", Clock()
    wire, saved = Wire(clock, WORLD), []
    engine = Engine(settings, wire.place)
    keeper = Keeper(settings, path, Manifest(0, "", {}, ""))
    outcomes = []
    for outcome in engine.rounds(wire, clock, None, keeper):
        saved.append(clock.seconds[Phase.SAVE] > 0)
        outcomes.append(outcome)
    WORLD.Barrier()
    assert [each.name for each in checkpoint.there(path)] == ["round-000004", "round-000002"]
    assert saved == [False, False, True, False, True, False]
    assert keeper.count == 2
    if WORLD.rank == 0:
        tables = {
            "rounds": plain.tables["rounds"][5:],
            "ranks": plain.tables["ranks"][-WORLD.size :],
        }
        some = {name: outcomes[-1].tables[name] for name in tables}
        alike(Run(engine, some), Run(plain.engine, tables))
        assert keeper.bytes == 2 * sum(checkpoint.manifest_of(checkpoint.there(path)[0]).sizes)


class Gate:
    """In place of `checkpoint.write`: writes when it is opened, and not before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.write, self.opened, self.refused = checkpoint.write, Event(), False
        self.places: list[str] = []
        monkeypatch.setattr(checkpoint, "write", self)

    def __call__(self, folder: Path, rank: int, content: Any) -> tuple[int, bytes]:
        assert self.opened.wait(PATIENCE)
        self.places.append(current_thread().name)
        if self.refused:
            raise Failure(f"{folder}: no room on rank {rank}")
        return self.write(folder, rank, content)


def equal(one: State, other: State) -> None:
    """Asserts that two states hold the same."""
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(array, other.arrays[name], err_msg=name)
    assert one.vectors.keys() == other.vectors.keys()
    for name, vectors in one.vectors.items():
        assert vectors.keys() == other.vectors[name].keys()
        for client, vector in vectors.items():
            np.testing.assert_array_equal(vector, other.vectors[name][client], err_msg=name)


def held(engine: Engine) -> State:
    """What an engine holds now, in memory of its own."""
    state = engine.state()
    arrays = {name: array.copy() for name, array in state.arrays.items()}
    vectors = {n: {c: v.copy() for c, v in some.items()} for n, some in state.vectors.items()}
    return State(arrays, dict(vectors))


@pytest.mark.parametrize("name", ["topk", "spatl", "splitfed", "dispfl"])
def test_a_checkpoint_has_what_was_before_the_round_beside_which_it_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small(f"method.name={name}", "rounds=3", "checkpoint.every=2", "participation=0.6")
    gate, path, clock = Gate(monkeypatch), tmp_path / "x.h5", Clock()
    wire = Wire(clock, MPI.COMM_SELF)
    engine = Engine(settings, wire.place)
    states = {}
    for _ in engine.rounds(wire, clock, None, Keeper(settings, path, Manifest(0, "", {}, ""))):
        states[engine.last] = held(engine)
        if engine.last == 2:
            assert checkpoint.there(path) == []
            gate.opened.set()
    (folder,) = checkpoint.there(path)
    manifest = checkpoint.manifest_of(folder)
    checkpoint.verify(folder, manifest, 0)
    equal(checkpoint.read(folder, 1, lambda name, client: True), states[1])
    with pytest.raises(AssertionError):
        equal(states[2], states[1])
    assert gate.places == ["checkpoint_0"]


def test_the_next_checkpoint_waits_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, path, wire = Gate(monkeypatch), tmp_path / "x.h5", Wire(Clock(), MPI.COMM_SELF)
    keeper = Keeper(small("checkpoint.every=1"), path, Manifest(0, "", {}, ""))
    keeper.keep(1, lambda: State({"w": np.zeros(1)}), wire)
    keeper.hear(keeper.report()[None])
    assert checkpoint.there(path) == []

    def state() -> State:
        assert [folder.name for folder in checkpoint.there(path)] == ["round-000001"]
        return State({"w": np.ones(1)})

    gate.opened.set()
    keeper.keep(2, state, wire, is_end=True)
    newest, oldest = checkpoint.there(path)
    for folder, wanted in ((newest, 1), (oldest, 0)):
        assert checkpoint.read(folder, 1, lambda name, client: True).arrays["w"] == [wanted]
    assert (keeper.count, keeper.bytes > 0, keeper.seconds > 0) == (2, True, True)


def test_it_is_a_checkpoint_when_all_ranks_have_written(tmp_path: Path) -> None:
    """Each rank says when it has; the root waits for the last one."""
    path, wire = tmp_path / "x.h5", Wire(Clock(), MPI.COMM_SELF)
    keeper = Keeper(small("checkpoint.every=1"), path, Manifest(0, "", {}, ""))
    keeper.keep(1, lambda: State({"w": np.zeros(1)}), wire)
    keeper.close()
    mine, other = keeper.report(), np.zeros_like(keeper.report())
    keeper.hear(np.array([mine, other]))
    keeper.close()
    assert checkpoint.there(path) == []
    file = checkpoint.file_of(checkpoint.place(path, 1), 0)
    checkpoint.file_of(file.parent, 1).write_bytes(file.read_bytes())
    keeper.hear(np.array([mine, mine]))
    keeper.close()
    (folder,) = checkpoint.there(path)
    assert checkpoint.manifest_of(folder).sizes == (file.stat().st_size,) * 2


def test_without_memory_for_a_copy_it_is_written_before_the_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, wire = tmp_path / "x.h5", Wire(Clock(), MPI.COMM_SELF)
    monkeypatch.setattr(checkpoint, "PIECE", checkpoint.BLOCK)
    settings = small("checkpoint.every=1", "checkpoint.memory=0")
    keeper = Keeper(settings, path, Manifest(0, "", {}, ""))
    w = np.zeros(1000)
    keeper.keep(1, lambda: State({"w": w}), wire)
    w += 1
    keeper.finish(wire)
    (folder,) = checkpoint.there(path)
    checkpoint.verify(folder, checkpoint.manifest_of(folder), 0)
    assert not checkpoint.read(folder, 1, lambda name, client: True).arrays["w"].any()
    assert len(keeper.room) == checkpoint.BLOCK


def test_what_the_system_refuses_is_raised_in_the_next_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, gate = small("rounds=4", "checkpoint.every=2"), Gate(monkeypatch)
    clock, gate.refused = Clock(), True
    wire = Wire(clock, MPI.COMM_SELF)
    engine, keeper = Engine(settings), Keeper(settings, tmp_path / "x.h5", Manifest(0, "", {}, ""))
    rounds = engine.rounds(wire, clock, None, keeper)
    for _ in range(3):
        next(rounds)
    gate.opened.set()
    keeper.close()
    with pytest.raises(Failure, match="no room on rank 0"):
        next(rounds)


@on_ranks
def test_a_run_that_is_over_ends_well_without_its_last_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another rank than the root could not write it."""
    settings, gate, clock = small("rounds=3", "checkpoint.every=2"), Gate(monkeypatch), Clock()
    wire, path, done = Wire(clock, WORLD), folder / "x.h5", 0
    engine, keeper = Engine(settings, wire.place), Keeper(settings, path, Manifest(0, "", {}, ""))
    gate.refused = wire.rank == wire.size - 1
    for _ in engine.rounds(wire, clock, None, keeper):
        done += 1
        if done == 3:
            gate.opened.set()
    WORLD.Barrier()
    assert (done, keeper.count, checkpoint.there(path)) == (3, 1, [])


def test_time_and_signals_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = [0.0], [False]
    monkeypatch.setattr("fedmpi.results.keeper.monotonic", lambda: now[0])
    chosen = small("checkpoint.seconds=10")
    keeper = Keeper(chosen, tmp_path / "x.h5", None, lambda: asked[0])
    keeper.begin(0)
    now[0] = 11.0
    assert keeper.word(0) == Word.ROUND, "there is nothing new"
    assert keeper.word(1) == Word.KEEP
    keeper.begin(1)
    assert keeper.word(2) == Word.ROUND
    asked[0] = True
    assert keeper.word(2) == Word.STOP
    assert Keeper(chosen, None, None, lambda: True).word(5) == Word.ROUND


def test_the_walk_finds_what_is_forgotten() -> None:
    """Its own check: a number, or a vector, that one engine has and the other has not."""
    settings = small("rounds=1")
    one, other = Engine(settings), Engine(settings)
    assert differences(one, other) == []
    other.observer.total[0] += 1
    assert other.server is not None
    other.server.w[3] += 1
    assert differences(one, other) == ["engine.observer.total[0]", "engine.server.w"]
