"""Where a result comes from: versions, machine, job, command and commit. Standard library only."""

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

PACKAGES = ("fedmpi", "torch", "numpy", "h5py", "mpi4py", "pydantic")


def about() -> dict[str, str | int]:
    """Attributes of this process, the same names in every result."""
    slurm = {k: v for k, v in sorted(os.environ.items()) if k.startswith("SLURM_")}
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "system": platform.platform(),
        "cpu": cpu(),
        "cores": cores(),
        "slurm": "\n".join(f"{name}={value}" for name, value in slurm.items()),
        "command": shlex.join(["fedmpi", *sys.argv[1:]]),
        "commit": commit(),
    }


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu() -> str:
    """The processor's model, as it calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def version(package: str) -> str:
    """An installed package's version; empty where it is only on the path."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def commit() -> str:
    """The checkout's commit, with `+` if it is changed; empty outside of one."""
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
