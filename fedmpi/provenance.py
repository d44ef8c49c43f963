"""Provenance of a result: versions, machine, job, command and commit. Standard library only."""

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

ROOT = Path("/")
UNIFIED = (".", "unified")
"""Where version 2 of the control groups is mounted, alone or beside version 1."""
PACKAGES = ("fedmpi", "torch", "numpy", "h5py", "mpi4py", "pydantic", "zstandard")

SLURM = tuple(
    f"SLURM_{name}"
    for name in (
        *("ARRAY_JOB_ID", "ARRAY_TASK_COUNT", "ARRAY_TASK_ID", "CLUSTER_NAME", "CPUS_ON_NODE"),
        *("CPUS_PER_GPU", "CPUS_PER_TASK", "CPU_BIND", "DISTRIBUTION", "GPUS", "GPUS_ON_NODE"),
        *("GPUS_PER_NODE", "GPUS_PER_TASK", "JOB_CPUS_PER_NODE", "JOB_GPUS", "JOB_ID", "JOB_NAME"),
        *("JOB_NODELIST", "JOB_NUM_NODES", "JOB_PARTITION", "MEM_PER_CPU", "MEM_PER_GPU"),
        *("MEM_PER_NODE", "MPI_TYPE", "NTASKS", "NTASKS_PER_NODE", "RESTART_COUNT", "STEP_ID"),
        *("STEP_NODELIST", "STEP_NUM_NODES", "STEP_NUM_TASKS", "STEP_TASKS_PER_NODE"),
        *("TASKS_PER_NODE", "THREADS_PER_CORE"),
    )
)
"""Variables of a SLURM job that a result records: where it ran, and on how much. No others, because
some hold credentials (`SLURM_JWT`) or what the user exports."""


def about() -> dict[str, str | int]:
    """Returns attributes of this process, with the same names in every result."""
    slurm = {name: os.environ[name] for name in SLURM if name in os.environ}
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "system": platform.platform(),
        "cpu": cpu(),
        "cores": cores(),
        "slurm": "\n".join(f"{name}={' '.join(v.split())}" for name, v in slurm.items()),
        "command": shlex.join(["fedmpi", *sys.argv[1:]]),
        "commit": commit(),
    }


def source(module: str) -> str:
    """Returns the SHA-256 of a module's source, of all files of its folder if it is a package.

    The module is not imported.

    Args:
        module: its name, such as fedmpi.methods.topk; there must be such a package fedmpi.methods.

    Raises:
        FileNotFoundError: if there is no such module.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(module)
    path, sha256 = Path(spec.origin), hashlib.sha256()
    files = sorted(path.parent.glob("*.py")) if path.name == "__init__.py" else [path]
    for file in files:
        content = file.read_bytes()
        sha256.update(f"{file.name} {len(content)}\n".encode() + content)
    return sha256.hexdigest()


def cores() -> int:
    """Returns the number of processors that this process may use, by affinity and by quota.

    A quota, such as `docker run --cpus`, is rounded down: a thread more would be stopped in between
    while the others wait for it.
    """
    whole = hasattr(os, "sched_getaffinity")
    count = len(os.sched_getaffinity(0)) if whole else os.cpu_count() or 1
    return max(1, int(min([count, *_quotas()])))


def _quotas() -> Iterator[float]:
    """The processors that this process's control groups, and those above them, allow for."""
    try:
        lines = (ROOT / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError):
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        # A container may see the path outside of it, and yet only what is mounted for it.
        group = PurePosixPath(path.lstrip("/"))
        for above in (group, *group.parents):
            if not controllers:  # version 2
                yield from _quota(*(_words(f"{top}/{above}/cpu.max") for top in UNIFIED))
            elif "cpu" in controllers.split(","):
                for top in (controllers, "cpu"):
                    files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                    yield from _quota([w for f in files for w in _words(f"{top}/{above}/{f}")])


def _quota(*pairs: Sequence[str]) -> Iterator[float]:
    """Microseconds in a period of so many; there is none where it says "max" or -1."""
    for pair in pairs:
        if len(pair) == 2 and all(word.isdecimal() and int(word) for word in pair):
            yield int(pair[0]) / int(pair[1])


def _words(path: str) -> list[str]:
    try:
        return (ROOT / "sys/fs/cgroup" / path).read_text(encoding="utf-8").split()
    except (OSError, UnicodeError):
        return []


def cpu() -> str:
    """Returns the model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def version(package: str) -> str:
    """Returns an installed package's version; "" if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def commit() -> str:
    """Returns the checkout's commit, with `+` if files are changed; "" outside of a checkout."""
    here = Path(__file__)
    if not _git("ls-files", here.name):  # it may lie in somebody else's checkout, in a .venv
        return ""
    return _git("describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*")


def _git(*words: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
