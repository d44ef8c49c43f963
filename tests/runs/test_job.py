"""A job: its ranks check together, run together, and the root records what comes out."""

import gc
import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from mpi4py import MPI

from fedmpi.config import ConfigError, Settings
from fedmpi.datasets import synthetic
from fedmpi.engine import Engine
from fedmpi.errors import BadInput, Failure
from fedmpi.messages import wire
from fedmpi.results import record, tables
from fedmpi.runs import earlier, launch
from fedmpi.runs.job import Job
from fedmpi.runs.sweep import Sweep
from fedmpi.terminal.show import show_result
from fedmpi.training.train import Trainer
from tests import PATIENCE, until
from tests.made import write_idx
from tests.small import small

on_ranks = pytest.mark.parallel([1, 2, 3])
WORLD = MPI.COMM_WORLD
ROOM = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job replaces the hook; standard error is no terminal, whatever it is here."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv(launch.PROGRESS, "0")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The root's folder, the same for all ranks."""
    return Path(WORLD.bcast(str(tmp_path)))


def path_of(settings: Settings, folder: Path) -> Path:
    return record.file_of(folder, settings.method.name, settings.identity())


@on_ranks
def test_check_gives_each_rank_its_own() -> None:
    assert Job().check(lambda: WORLD.rank * 2) == WORLD.rank * 2


@on_ranks
@pytest.mark.parametrize("guilty", [{0}, {WORLD.size - 1}, set(range(WORLD.size))])
def test_check_fails_on_all_ranks_and_speaks_on_one(guilty: set[int]) -> None:
    def make() -> None:
        if WORLD.rank in guilty:
            raise ConfigError(f"rank {WORLD.rank} does not like it")

    with pytest.raises(BadInput) as caught:
        Job().check(make)
    first, said = min(guilty), str(caught.value)
    if WORLD.rank != first:
        assert said == ""
    elif first == 0:
        assert said == "rank 0 does not like it"
    else:
        host = MPI.Get_processor_name()
        assert said == f"rank {first} on {host}: rank {first} does not like it"


@on_ranks
def test_a_run_is_recorded_by_the_root(folder: Path) -> None:
    settings = small("method.name=ssfl", "rounds=3")
    Job().run(settings, folder)
    if WORLD.rank:
        return
    path = path_of(settings, folder)
    assert list(folder.iterdir()) == [path]
    with h5py.File(path) as file:
        about = file.attrs
        assert about["status"] == record.DONE
        assert about["ranks"] == len(about["hosts"].splitlines()) == WORLD.size
        assert about["started"] <= about["finished"]
        assert len(about["model_sha256"]) == len(about["partition_sha256"]) == 64
        assert 0 < about["partition_tv_mean"] < about["partition_tv_max"] < 1
        assert 0 < about["partition_gini"] < 1 < about["partition_classes"] < 10
        assert file["rounds"]["round"].tolist() == [-1, 0, 1, 2]
        assert file["rounds"]["warmup"][1:].tolist() == [True, False, False]
        assert set(file["ranks"]["rank"].tolist()) == set(range(WORLD.size))
        assert {name: list(file[name].dtype.names) for name in tables.TABLES} == {
            name: list(columns) for name, columns in tables.TABLES.items()
        }
        best = np.argmax(file["rounds"]["validation"][1:])
        assert about["best_round"] == best


@pytest.mark.parametrize(
    ("word", "ended", "rounds"),
    [
        ("seed=1", "rounds", 2),
        ("target=accuracy:0.05", "target", 1),
        ("target=accuracy:1.0", "rounds", 2),
        ("budget=up_bytes:1B", "budget", 1),
        ("lr=1e20", None, 1),
    ],
)
def test_a_result_says_what_ended_the_run(
    word: str, ended: str | None, rounds: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small("rounds=2", word)
    Job().run(settings, folder)
    with h5py.File(path_of(settings, folder)) as file:
        assert (file.attrs.get("ended"), len(file["rounds"])) == (ended, rounds)
    show_result(path_of(settings, folder))
    said = capsys.readouterr().out
    for name in ("target", "budget"):
        assert (f" 1 rounds, after which the {name} was" in said) == (name == ended)


@on_ranks
def test_all_ranks_have_the_threads_of_the_root(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher may not pass the environment on to other nodes."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(2 + WORLD.rank))
    before = torch.get_num_threads()
    try:
        Job().run(small("rounds=1", "data.samples=100"), folder)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    if WORLD.rank == 0:
        with h5py.File(path_of(small("rounds=1", "data.samples=100"), folder)) as file:
            assert file.attrs["threads_per_rank"] == 2
            assert json.loads(file.attrs["settings"])["threads"] is None, "as it was written"


def test_another_file_at_the_same_path_makes_another_run(folder: Path) -> None:
    """Its content is part of the identity; the old result stays."""
    file = folder / "a.csv"
    settings = small("sampling=trace", f"trace={file}")
    found = set()
    for line_of_one in ("1,0,1", "2,0,1"):
        file.write_text(f"client,first,last\n{line_of_one}\n")
        found.add(path_of(settings, folder))
        assert earlier.state(path_of(settings, folder), settings) is None
        Job().run(settings, folder)
        assert earlier.state(path_of(settings, folder), settings) == record.DONE
    sampled = []
    for path in found:
        with h5py.File(path) as result:
            sampled += result["clients"]["client"].tolist()
    assert sorted(sampled) == [1, 1, 2, 2]


def test_a_result_on_other_data_is_not_this_run(folder: Path) -> None:
    """Neither a single run nor a sweep counts it as done; what is not here cannot be compared."""
    pixels = folder / "pixels"
    write_idx(pixels, [0, 1, 2, 3] * 10, [0, 1, 2, 3])
    words = ("data.name=mnist", f"data.root={pixels}", f"data.cache={folder / 'cache'}")
    words = (*words, "clients=2", "partition.name=iid", "rounds=1", "model.hidden=[4]")
    settings = small(*words)
    Job().run(settings, folder)
    path = path_of(settings, folder)
    assert earlier.state(path, settings) == record.DONE
    Job().run(settings, folder)
    with h5py.File(path) as result:
        first = result.attrs["data_sha256"]
        assert (result.attrs["train_samples"], result.attrs["test_samples"]) == (40, 4)
    write_idx(pixels, [3, 2, 1, 0] * 10, [0, 1, 2, 3])
    for again in (lambda: Job().run(settings, folder), lambda: earlier.state(path, settings)):
        with pytest.raises(BadInput, match=f"holds the run on other data, of SHA-256 {first}"):
            again()
    shutil.rmtree(pixels)
    assert earlier.state(path, settings) == record.DONE


@on_ranks
def test_a_result_says_which_trace_it_had(folder: Path) -> None:
    """By its content: the name is among the settings."""
    file = folder / "a.csv"
    if WORLD.rank == 0:
        file.write_text("client,first,last\n1,0,1\n3,0,0\n")
    WORLD.Barrier()
    settings = small("sampling=trace", f"trace={file}")
    Job().run(settings, folder)
    if WORLD.rank:
        return
    with h5py.File(path_of(settings, folder)) as found:
        assert json.loads(found.attrs["files_sha256"]) == {
            "trace": hashlib.sha256(file.read_bytes()).hexdigest()
        }
        assert found["clients"]["client"].tolist() == [1, 3, 1]
        assert found["rounds"]["sampled"].tolist() == [2, 1]


@on_ranks
@pytest.mark.parametrize(
    ("words", "status"), [([], record.DONE), (["lr=1e20", "rounds=9"], record.DIVERGED)]
)
def test_what_is_finished_is_not_run_again(
    words: list[str], status: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = small(*words)
    path = path_of(settings, folder)
    Job().run(settings, folder)
    capfd.readouterr()
    # The other ranks are done before the root has closed the file.
    WORLD.Barrier()
    before = path.read_bytes()
    WORLD.Barrier()
    Job().run(settings, folder)
    WORLD.Barrier()
    assert path.read_bytes() == before
    said = capfd.readouterr().err
    assert said == (f"{path}: {status} already\n" if WORLD.rank == 0 else "")
    with h5py.File(path) as file:
        assert file.attrs["status"] == status
        assert len(file["rounds"]) < 9


@on_ranks
@pytest.mark.parametrize("kind", [ConfigError, Failure])
def test_bad_input_in_the_middle_ends_the_job(
    kind: type[Exception], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, say: whoever finds it cannot tell the others, who wait in a collective.

    What is there of the result says that it failed, and nobody holds it.
    """
    said: list[str] = []

    def rounds(*_: object) -> None:
        raise kind("no room")

    monkeypatch.setattr(Engine, "rounds", rounds)
    monkeypatch.setattr(wire, "abort", said.append)
    with pytest.raises(kind, match="no room"):
        Job().run(small(), folder)
    assert said == ([] if WORLD.size == 1 else ["no room"])
    if WORLD.rank == 0:
        path = path_of(small(), folder)
        assert list(folder.iterdir()) == [path]
        assert earlier.state(path, small()) == record.FAILED


@on_ranks
@pytest.mark.parametrize("status", [record.RUNNING, record.FAILED])
def test_what_is_not_finished_is_run_again(status: str, folder: Path) -> None:
    settings = small()
    path = path_of(settings, folder)
    if WORLD.rank == 0:
        held = record.begin(path)
        record.Record(held, settings.tree(), settings.identity(), {}, tables.TABLES).close(status)
    WORLD.Barrier()
    Job().run(settings, folder)
    if WORLD.rank == 0:
        with h5py.File(path) as file:
            assert file.attrs["status"] == record.DONE
            assert len(file["rounds"]) == 2


@pytest.mark.parametrize("locks", ["TRUE", "FALSE", None])
def test_what_another_job_is_writing_is_left_alone(
    tmp_path: Path, locks: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether HDF5 locks its files or not, and for whoever asks: a run, or who marks the dead."""
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    if locks is not None:
        monkeypatch.setenv("HDF5_USE_FILE_LOCKING", locks)
    settings = small("rounds=100000")
    path = path_of(settings, tmp_path)
    program = (
        "import sys; from pathlib import Path\n"
        "from fedmpi.runs.job import Job; from tests.small import small\n"
        "Job().run(small('rounds=100000'), Path(sys.argv[1]))"
    )
    words = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(words, cwd=ROOM, stderr=subprocess.DEVNULL) as writer:
        try:
            assert until(lambda: path.exists() or writer.poll() is not None)
            before = path.stat().st_ino
            with pytest.raises(
                BadInput, match=rf"another job is writing it \(process {writer.pid} "
            ):
                Job().run(settings, tmp_path)
            record.mark_failed(path)
            assert earlier.state(path, settings) == record.RUNNING
            assert path.stat().st_ino == before
        finally:
            writer.kill()
    record.mark_failed(path)
    assert earlier.state(path, settings) == record.FAILED
    assert list(tmp_path.iterdir()) == [path]


def test_of_two_jobs_that_start_together_one_runs(tmp_path: Path) -> None:
    """The other is refused. The one that runs is killed, and two more start."""
    for _ in range(3):
        refused, said, killed = race(tmp_path / "r.h5")
        assert refused == 2
        assert f"another job is writing it (process {killed} " in said
        with record.open_result(tmp_path / "r.h5") as file:
            assert len(file["rounds"]) >= 1
            assert file.attrs["status"] == record.RUNNING


def race(path: Path) -> tuple[int, str, int]:
    """Starts a long run twice, and kills the one that is not refused after some rounds.

    Returns:
        The exit code of the other, what it said, and the number of the killed process.
    """
    words = ["-m", "fedmpi", "run", "rounds=100000", "clients=2", "--out", str(path)]
    words += ["data={name='synthetic', samples=200, shape=[1,4,4]}", "model.hidden=[4]"]
    start = partial(subprocess.Popen, cwd=ROOM, stderr=subprocess.PIPE, text=True)
    both = [start([sys.executable, *words]) for _ in range(2)]
    said = {job.pid: "" for job in both}
    readers = [Thread(target=_listen, args=(job, said)) for job in both]
    for reader in readers:
        reader.start()
    try:
        assert until(lambda: any(job.poll() is not None for job in both))
        both.sort(key=lambda job: job.poll() is None)
        refused, runs = both
        assert until(lambda: "round 2/" in said[runs.pid] or runs.poll() is not None)
        assert runs.poll() is None
    finally:
        for job in both:
            job.kill()
            job.wait()
        for reader in readers:
            reader.join()
    return refused.returncode, said[refused.pid], runs.pid


def _listen(job: "subprocess.Popen[str]", said: dict[int, str]) -> None:
    assert job.stderr is not None
    for line_of_it in job.stderr:
        said[job.pid] += line_of_it


@on_ranks
def test_a_sweep_goes_on_behind_bad_members(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Settings that no file shows to be wrong are refused one by one; the code tells."""
    file = folder / "a.toml"
    if WORLD.rank == 0:
        file.write_text(
            '[base]\nrounds = 1\ndata = { name = "synthetic", samples = 200, shape = [1, 4, 4] }\n'
            '[[grid]]\nclients = [3, 999, 2]\n"method.name" = ["fedavg"]'
        )
    WORLD.Barrier()
    plan = Sweep(file, folder, ())
    assert Job().sweep(plan) == 2
    WORLD.Barrier()
    states = [plan.state(number) for number in range(3)]
    assert states == [record.DONE, None, record.DONE]
    said = capfd.readouterr().err
    if WORLD.rank == 0:
        assert said.count("run 1 (clients=999  method.name=fedavg): clients = 999: wanted") == 1
        assert "[1/3] clients=3" in said
        assert re.search(r"\[3/3, .* gone, about .* left\] clients=2", said)
    else:
        assert said == ""


def test_the_runs_of_a_sweep_do_not_pile_up_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(
        "[base]\nrounds = 1\nclients = 2\n"
        'data = { name = "synthetic", samples = 200, shape = [1, 4, 4] }\n'
        "[[grid]]\nseed = [1, 2, 3]"
    )
    gc.collect()
    before = sum(type(one) is Trainer for one in gc.get_objects())
    Job().sweep(Sweep(file, tmp_path, ()))
    assert sum(type(one) is Trainer for one in gc.get_objects()) == before


@pytest.mark.parallel(2)
def test_ranks_read_files_that_the_root_alone_may_have_written(folder: Path) -> None:
    """Whether a result is there is the root's word; others may not see its disk."""
    settings = small()
    mine = folder if WORLD.rank == 0 else folder / "elsewhere"
    Job().run(settings, mine)
    Job().run(settings, mine)
    assert not (folder / "elsewhere").exists()


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("other", ["seed=2", "exchange.window=1", "exchange.down=node"])
def test_ranks_that_are_about_to_do_different_things(folder: Path, other: str) -> None:
    """As with an older file of settings on a node's own disk: all of them refuse."""
    last = WORLD.rank == WORLD.size - 1
    with pytest.raises(BadInput) as caught:
        Job().run(small(other) if last else small(), folder)
    wanted = f"rank {WORLD.size - 1} has other words or files of settings than rank 0; wanted the"
    assert str(caught.value).startswith(wanted) if WORLD.rank == 0 else not str(caught.value)
    assert WORLD.rank or not list(folder.iterdir())


@pytest.mark.parallel(2)
def test_ranks_with_other_tasks(folder: Path) -> None:
    """A sweep on one rank and its only run on another."""
    (folder / "a.toml").write_text("[base]\nrounds = 1\n")
    WORLD.Barrier()
    plan = Sweep(folder / "a.toml", folder / "out")
    settings = plan.members[0].settings
    job = Job()
    task = partial(job.sweep, plan) if WORLD.rank else partial(job.run, settings, folder / "out")
    with pytest.raises(BadInput):
        task()


@pytest.mark.parallel(2)
def test_ranks_with_other_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with another copy of a data set on a node's own disk."""
    load = synthetic.load

    def other(settings: Any, seed: int) -> Any:
        return replace(load(settings, seed), sha256=str(WORLD.rank))

    monkeypatch.setattr(synthetic, "load", other)
    with pytest.raises(BadInput) as caught:
        Job().run(small(), folder)
    if WORLD.rank == 0:
        assert str(caught.value) == "rank 1 has other data than rank 0; wanted the same"
        assert not list(folder.iterdir())


def test_one_rank_that_dies_ends_the_job(tmp_path: Path) -> None:
    """Rank 1 raises while rank 0 waits for it in a collective."""
    script = tmp_path / "dies.py"
    script.write_text(
        "from fedmpi.messages import wire\n"
        "wire.join()\n"
        "wire.abort_on_exception()\n"
        "wire.join()\n"
        "if wire.MPI.COMM_WORLD.rank == 1:\n"
        "    raise RuntimeError('out of patience')\n"
        "wire.MPI.COMM_WORLD.Barrier()\n"
    )
    launcher = launch.find()
    done = subprocess.run(
        launcher.command(2, [sys.executable, str(script)]),
        env=launcher.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode != 0
    assert "rank 1 of 2 failed:\nTraceback" in done.stderr
    assert "RuntimeError: out of patience" in done.stderr
