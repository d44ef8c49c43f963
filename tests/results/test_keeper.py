"""A run that is stopped goes on from its checkpoint on other ranks, bit for bit."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from mpi4py import MPI

from fedmpi.config import Settings
from fedmpi.engine import Engine
from fedmpi.messages.clock import Clock, Phase
from fedmpi.messages.wire import Wire
from fedmpi.results import checkpoint
from fedmpi.results.checkpoint import Manifest
from fedmpi.results.keeper import Keeper, Word
from fedmpi.results.outcome import Outcome
from tests.plain import METHODS, families, member
from tests.small import Run, alike, run, small
from tests.suites.test_state import differences

WORLD = MPI.COMM_WORLD
on_ranks = pytest.mark.parallel([1, 2, 3])
FEW = ("participation=0.6", "momentum=0.5", "batch=32", "devices.dropouts=0.3", "rounds=4")


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
    wire, names, saved = Wire(clock, WORLD), [], []
    engine = Engine(settings, wire.place)
    keeper = Keeper(settings, path, Manifest(0, "", {}, ""))
    outcomes = []
    for outcome in engine.rounds(wire, clock, None, keeper):
        WORLD.Barrier()
        names.append([each.name for each in checkpoint.there(path)])
        saved.append(clock.seconds[Phase.SAVE] > 0)
        outcomes.append(outcome)
    assert (
        names
        == [[], [], ["round-000002"], ["round-000002"]] + [["round-000004", "round-000002"]] * 2
    )
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
