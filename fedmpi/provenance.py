"""Provenance of a result: versions, machine, job, command and commit. Standard library only."""

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

PACKAGES = ("fedmpi", "torch", "numpy", "h5py", "mpi4py", "pydantic")

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


def cores() -> int:
    """Returns the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu() -> str:
    """Returns the model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
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
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
