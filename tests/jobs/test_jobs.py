"""The SLURM scripts: what they would start, with stand-ins for SLURM; real jobs where it is."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NoReturn

import h5py
import pandas as pd
import pytest

from fedmpi.results import record
from fedmpi.runs import launch
from tests import PATIENCE, until

ROOT = Path(__file__).parent.parent.parent
JOBS = ROOT / "jobs"
SCRIPTS = sorted(JOBS.glob("*.sbatch"))
FILES = [*SCRIPTS, *sorted(JOBS.glob("*.sh"))]
TOOLS = ("bash", "timeout", "grep")
"""All that the scripts may need besides Python, fedmpi and a launcher."""

lost = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(bool(lost), reason=f"no {', '.join(lost)} on $PATH")

LAUNCHER = r"""#!{bash}
words="${{0##*/}} $*"
printf '%s\x1f' "${{0##*/}}" "$@" >> '{log}'
echo >> '{log}'
if [[ $words =~ -n\ ([0-9]+)\ python3 ]]; then
    size=${{BASH_REMATCH[1]}}
    case $words in
        {works})
            printf 'sizes [%s' "$size"
            for ((i = 1; i < size; i++)); do printf ', %s' "$size"; done
            echo ']' ;;
        *) for ((i = 0; i < size; i++)); do echo 'sizes [1]'; done ;;
    esac
else
    export -p > '{log}.environment'
fi
"""
"""Stands for srun and mpirun: notes its words; in a trial, ranks are alone unless `works` fits."""


def named(path: Path) -> str:
    """A test's name."""
    return path.name


class Site:
    """A cluster of stand-ins: programs that note how they are called, and nothing else on the path.

    Args:
        folder: an empty folder.
        works: patterns of the launchers' command lines that make a working MPI job.
    """

    def __init__(self, folder: Path, works: tuple[str, ...] = ()) -> None:
        self.log, self.here, self.bin = folder / "log", folder / "here", folder / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        own = {"bash": shutil.which("bash"), "log": self.log, "works": "|".join(works) or "-"}
        for name in ("srun", "mpirun"):
            self.program(name, LAUNCHER.format(**own))
        venv = self.here / ".venv" / "bin"
        venv.mkdir(parents=True)
        (venv / "activate").write_text("PATH=${BASH_SOURCE[0]%/*}:$PATH")
        self.program("fedmpi", "", venv)
        (self.here / "jobs").symlink_to(JOBS)

    def program(self, name: str, text: str, folder: Path | None = None) -> None:
        """Puts an executable on the path."""
        path = (folder or self.bin) / name
        path.write_text(text)
        path.chmod(0o755)

    def submit(
        self, script: str, *words: str, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a script as `sbatch` would: a copy of it, in the folder where it was submitted."""
        copy = self.here.parent / "slurm_script"
        shutil.copy(JOBS / script, copy)
        environment = {
            "PATH": str(self.bin),
            "SLURM_SUBMIT_DIR": str(self.here),
            "SLURM_NTASKS": "3",
            "SLURM_CPUS_PER_TASK": "1",
        } | variables
        command = [str(self.bin / "bash"), str(copy), *words]
        given = {"capture_output": True, "text": True, "timeout": PATIENCE}
        return subprocess.run(command, env=environment, cwd=self.here, **given)

    def calls(self) -> list[list[str]]:
        """The launchers' command lines, trials first."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.split("\x1f")[:-1] for line in lines]

    def started(self) -> str:
        """The last command line; no word of it has a blank."""
        return " ".join(self.calls()[-1])

    def environment(self) -> str:
        """What the ranks would find in their environment, as bash declares it."""
        return Path(f"{self.log}.environment").read_text()


class TestText:
    """What can be seen without running them."""

    @pytest.mark.parametrize("path", FILES, ids=named)
    def test_syntax(self, path: Path) -> None:
        done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize("path", FILES, ids=named)
    @pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck on $PATH")
    def test_shellcheck(self, path: Path) -> None:
        command = ["shellcheck", "--external-sources", "--source-path", str(ROOT), str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout

    @pytest.mark.parametrize("path", FILES, ids=named)
    def test_lines(self, path: Path) -> None:
        for line in path.read_text().splitlines():
            assert len(line) <= 100
            assert "\t" not in line
            assert line == line.rstrip()

    @pytest.mark.parametrize("path", SCRIPTS, ids=named)
    def test_directives(self, path: Path) -> None:
        lines = path.read_text().splitlines()
        assert lines[0] == "#!/bin/bash"
        first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
        directives = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
        assert directives[-1] < first, "SLURM stops reading at the first command"
        names = {lines[i].split()[1].partition("=")[0] for i in directives}
        assert names >= {"--job-name", "--output", "--time", "--ntasks", "--signal", "--requeue"}
        assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", lines[i]) for i in directives)
        assert lines[first] == "set -euo pipefail"

    @pytest.mark.parametrize("path", SCRIPTS, ids=named)
    def test_output(self, path: Path) -> None:
        output = re.search(r"^#SBATCH --output=(\S+)$", path.read_text(), re.MULTILINE)
        assert output is not None
        assert re.fullmatch(r"slurm-.*\.out", output[1]), "as in .gitignore"
        assert ("%A_%a" if "array" in path.read_text() else "%j") in output[1]

    def test_readme(self) -> None:
        text = (JOBS / "README.md").read_text()
        variables = set(re.findall(r"\bFEDMPI_[A-Z]+\b", "".join(p.read_text() for p in FILES)))
        assert variables <= set(re.findall(r"\bFEDMPI_[A-Z]+\b", text))
        for name in re.findall(r"\bjobs/[\w/.]+\w", text):
            assert (ROOT / name).exists(), name


SRUN = "srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task=1"
RUN = "-n 3 fedmpi run lr=0.05"


class TestLauncher:
    """Which program starts the ranks."""

    @pytest.mark.parametrize(
        ("works", "started"),
        [
            (("*srun*", "*mpirun*"), f"{SRUN} {RUN}"),
            (("*--mpi=pmix*", "*mpirun*"), f"{SRUN} --mpi=pmix {RUN}"),
            (("*--mpi=pmi2*", "*mpirun*"), f"{SRUN} --mpi=pmi2 {RUN}"),
            (("*--mpi=pmi*",), f"{SRUN} --mpi=pmix {RUN}"),
            (("*mpirun*",), f"mpirun {RUN}"),
        ],
    )
    def test_trial(self, tmp_path: Path, works: tuple[str, ...], started: str) -> None:
        site = Site(tmp_path, works)
        done = site.submit("fedmpi.sbatch", "lr=0.05")
        assert done.returncode == 0, done.stderr
        assert site.started() == started
        assert done.stderr.splitlines() == [started]
        assert all(call[call.index("-n") + 1] == "2" for call in site.calls()[:-1])

    def test_the_sites_pmi_is_tried_first(self, tmp_path: Path) -> None:
        site = Site(tmp_path, ("*--mpi=pmix_v4*", "*--mpi=pmix*", "*mpirun*"))
        assert site.submit("fedmpi.sbatch", "lr=0.05", SLURM_MPI_TYPE="pmix_v4").returncode == 0
        assert site.started() == f"{SRUN} --mpi=pmix_v4 {RUN}"

    def test_no_srun(self, tmp_path: Path) -> None:
        site = Site(tmp_path, ("*mpirun*",))
        (site.bin / "srun").unlink()
        assert site.submit("fedmpi.sbatch", "lr=0.05").returncode == 0
        assert site.started() == f"mpirun {RUN}"

    def test_none(self, tmp_path: Path) -> None:
        site = Site(tmp_path)
        done = site.submit("fedmpi.sbatch", "lr=0.05")
        assert done.returncode == 2
        assert "neither srun nor mpirun starts the MPI behind mpi4py" in done.stderr
        assert not any("fedmpi" in call for call in site.calls())

    @pytest.mark.parametrize(("choice", "command"), [("srun", SRUN), ("mpirun", "mpirun")])
    def test_choice(self, tmp_path: Path, choice: str, command: str) -> None:
        site = Site(tmp_path)
        assert site.submit("fedmpi.sbatch", "lr=0.05", FEDMPI_START=choice).returncode == 0
        assert [" ".join(call) for call in site.calls()] == [f"{command} {RUN}"], "no trial"

    def test_wrong_choice(self, tmp_path: Path) -> None:
        done = Site(tmp_path).submit("fedmpi.sbatch", FEDMPI_START="prun")
        assert (done.returncode, done.stderr) == (2, "FEDMPI_START=prun: wanted srun or mpirun\n")

    def test_mpiexec(self, tmp_path: Path) -> None:
        site = Site(tmp_path)
        other = shutil.copy(site.bin / "mpirun", tmp_path / "mpiexec.hydra")
        variables = {"FEDMPI_START": "mpirun", "FEDMPI_MPIEXEC": str(other)}
        assert site.submit("fedmpi.sbatch", "lr=0.05", **variables).returncode == 0
        assert site.started() == f"mpiexec.hydra {RUN}"

    def test_one_rank(self, tmp_path: Path) -> None:
        site = Site(tmp_path, ("*srun*",))
        assert site.submit("fedmpi.sbatch", SLURM_NTASKS="1").returncode == 0
        assert site.calls()[0][: len(SRUN.split()) + 2] == [*SRUN.split(), "-n", "1"]
        assert site.started() == f"{SRUN} -n 1 fedmpi run"

    def test_exit_code(self, tmp_path: Path) -> None:
        site = Site(tmp_path)
        site.program("srun", f"#!{shutil.which('bash')}\nexit 7")
        assert site.submit("fedmpi.sbatch", FEDMPI_START="srun").returncode == 7


class TestEnvironment:
    """What the ranks find."""

    @pytest.fixture
    def site(self, tmp_path: Path) -> Site:
        return Site(tmp_path, ("*mpirun*",))

    def test_threads(self, site: Site) -> None:
        site.submit("fedmpi.sbatch", "lr=0.05", SLURM_CPUS_PER_TASK="4", FEDMPI_START="srun")
        wanted = "srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task=4 -n 3 fedmpi run lr=0.05"
        assert site.started() == wanted
        assert 'declare -x OMP_NUM_THREADS="4"' in site.environment()

    def test_no_cpus_per_task(self, site: Site) -> None:
        site.submit("fedmpi.sbatch", SLURM_CPUS_PER_TASK="")
        assert 'declare -x OMP_NUM_THREADS="1"' in site.environment()

    def test_whatever_is_exported_to_the_job(self, site: Site) -> None:
        """`sbatch --export=NONE` has srun pass nothing on."""
        site.submit("fedmpi.sbatch", SLURM_EXPORT_ENV="NONE")
        assert 'declare -x SLURM_EXPORT_ENV="ALL"' in site.environment()

    def test_unbound(self, site: Site) -> None:
        site.submit("fedmpi.sbatch", OMPI_MCA_hwloc_base_binding_policy="core")
        assert 'PRTE_MCA_hwloc_default_binding_policy="none"' in site.environment()
        assert 'OMPI_MCA_hwloc_base_binding_policy="core"' in site.environment()

    def test_place_of_another_rank(self, site: Site) -> None:
        """A job that is sent from inside an interactive `srun` has no rank yet."""
        stale = dict.fromkeys([*launch.RANK_VARIABLES, *launch.SIZE_VARIABLES], "1")
        names = ("PMI_FD", "PMIX_NAMESPACE", "PMIX_SERVER_URI4", "HYDI_CONTROL_FD", "PRTE_LAUNCHED")
        stale |= dict.fromkeys((*names, "SLURM_PROCID", "SLURM_STEP_ID"), "x")
        kept = {
            "PMIX_MCA_gds": "hash",
            "PMI_NO_FORK": "1",
            "SLURM_JOB_ID": "7",
            "OMPI_ALLOW_X": "1",
        }
        kept |= {"HYDRA_BOOTSTRAP": "ssh", "FLUX_URI": "x", "OMPI_MCA_btl": "self"}
        assert launch.plain(stale | kept) == kept, "the one says the same as the other"
        site.submit("fedmpi.sbatch", **stale, **kept)
        found = set(re.findall(r"^declare -x (\w+)=", site.environment(), re.MULTILINE))
        assert not found & stale.keys()
        assert found >= kept.keys()


class TestInstallation:
    """Where fedmpi comes from."""

    @pytest.fixture
    def site(self, tmp_path: Path) -> Site:
        return Site(tmp_path, ("*mpirun*",))

    @pytest.mark.parametrize("absolute", [True, False])
    def test_venv(self, site: Site, absolute: bool) -> None:
        (site.here / ".venv").rename(site.here / "other")
        venv = str(site.here / "other") if absolute else "other"
        assert site.submit("fedmpi.sbatch", FEDMPI_VENV=venv).returncode == 0
        assert f'declare -x PATH="{site.here}/other/bin:' in site.environment()
        assert site.started() == "mpirun -n 3 fedmpi run"

    def test_no_venv(self, site: Site) -> None:
        done = site.submit("fedmpi.sbatch", FEDMPI_VENV="gone")
        assert done.returncode == 2
        assert done.stderr == f"FEDMPI_VENV: no virtual environment at {site.here}/gone\n"

    def test_path(self, site: Site) -> None:
        (site.here / ".venv" / "bin" / "fedmpi").rename(site.bin / "fedmpi")
        shutil.rmtree(site.here / ".venv")
        assert site.submit("fedmpi.sbatch").returncode == 0
        assert site.started() == "mpirun -n 3 fedmpi run"

    def test_none(self, site: Site) -> None:
        shutil.rmtree(site.here / ".venv")
        done = site.submit("fedmpi.sbatch")
        assert done.returncode == 2
        assert done.stderr.startswith(f"no fedmpi in {site.here}/.venv, nor on $PATH")
        assert not site.calls()

    def test_scripts_elsewhere(self, site: Site) -> None:
        (site.here / "jobs").unlink()
        done = site.submit("fedmpi.sbatch")
        assert done.returncode == 2
        assert done.stderr.startswith(f"no {site.here}/jobs/start.sh: submit from the repository's")
        assert site.submit("fedmpi.sbatch", FEDMPI_JOBS=str(JOBS)).returncode == 0


class TestSweep:
    """An array's task is one run."""

    @pytest.mark.parametrize(
        "out", [(), ("my results",), ("my results", "--size", "small", "data.root=a b")]
    )
    def test_words(self, tmp_path: Path, out: tuple[str, ...]) -> None:
        """Words behind the folder are the sweep's."""
        site = Site(tmp_path, ("*mpirun*",))
        done = site.submit("sweep.sbatch", "a b.toml", *out, SLURM_ARRAY_TASK_ID="5")
        assert done.returncode == 0, done.stderr
        rest = ["--out", *out] if out else []
        wanted = [
            "mpirun",
            "-n",
            "3",
            "fedmpi",
            "sweep",
            "a b.toml",
            *rest,
            "--only",
            "5",
        ]
        assert site.calls()[-1] == wanted

    @pytest.mark.parametrize(
        ("words", "task"),
        [
            ((), "0"),
            (("a.toml",), ""),
            (("a.toml", "--size", "small"), "0"),
            (("a.toml", "lr=1"), "0"),
        ],
    )
    def test_usage(self, tmp_path: Path, words: tuple[str, ...], task: str) -> None:
        site = Site(tmp_path, ("*mpirun*",))
        done = site.submit("sweep.sbatch", *words, SLURM_ARRAY_TASK_ID=task)
        wanted = "wanted: sbatch --array=0-LAST jobs/sweep.sbatch SWEEP.toml [OUT [WORD]...]\n"
        assert (done.returncode, done.stderr) == (2, wanted)
        assert not site.calls()


SMALL = ("rounds=2", "clients=4", "epochs=1", "batch=256")


def shim(folder: Path) -> Path:
    """A virtual environment that is this Python with this fedmpi."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for name, words in {"fedmpi": "-m fedmpi ", "python3": ""}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
        (programs / name).chmod(0o755)
    beside = Path(launch.find().path).parent
    found = f"PATH={programs}:{beside}:$PATH PYTHONPATH={ROOT}${{PYTHONPATH:+:$PYTHONPATH}}"
    (programs / "activate").write_text(f"export {found}\n")
    return folder


def test_really_run(tmp_path: Path) -> None:
    """All but SLURM is real: the trial, the launcher, two ranks and their result."""
    site, out = Site(tmp_path), tmp_path / "run.h5"
    launcher = launch.find()
    more = {
        "PATH": f"{site.bin}:{os.environ['PATH']}",
        "FEDMPI_VENV": str(shim(tmp_path / "venv")),
        "FEDMPI_MPIEXEC": launcher.path,
        "SLURM_NTASKS": "2",
        # For a machine with one core.
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
    }
    variables = {k: v for k, v in launcher.environment().items() if not k.startswith("SLURM_")}
    done = site.submit("fedmpi.sbatch", *SMALL, "--out", str(out), **variables | more)
    assert done.returncode == 0, done.stderr
    assert [call[0] for call in site.calls()] == ["srun"] * 3, "tried, and found not to do"
    with record.open_result(out) as file:
        assert (file.attrs["status"], file.attrs["ranks"]) == (record.DONE, 2)


@cache
def missing() -> str:
    """Why there is no SLURM to submit to; empty if there is."""
    for name in ("sbatch", "sinfo", "squeue", "scontrol", "scancel"):
        if shutil.which(name) is None:
            return f"no {name} on $PATH"
    command = ["sinfo", "--noheader", "--states=idle,mixed,allocated", "--format=%D"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return "sinfo does not answer"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["sinfo fails"])[-1]
    return "" if done.stdout.strip() else "no node that takes jobs"


UNDER_WAY = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}
"""States of a job that is not over."""


class Slurm:
    """The real one. Account and partition are those of SBATCH_ACCOUNT and SBATCH_PARTITION.

    Args:
        folder: an empty folder that the compute nodes see, too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: list[str] = []
        self.venv = shim(folder / "venv")

    def submit(self, script: str, *words: str, options: tuple[str, ...] = (), **more: str) -> str:
        """Submits two ranks, with more variables; returns the job's number."""
        output = f"--output={self.folder}/%j.out"
        own = ["--parsable", "--ntasks=2", "--time=5", output, *options]
        environment = self.environment() | more
        command = ["sbatch", *own, str(JOBS / script), *words]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.jobs.append(done.stdout.strip().partition(";")[0])
        return self.jobs[-1]

    def environment(self) -> dict[str, str]:
        """That of a shell which jobs are sent from."""
        found = {k: v for k, v in launch.find().environment().items() if not k.startswith("SLURM_")}
        return found | {"FEDMPI_VENV": str(self.venv), "PYTHONPATH": str(ROOT)}

    def srun(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a program in a step of its own."""
        given = {"capture_output": True, "text": True, "timeout": PATIENCE}
        command = ["srun", "--time=5", *words]
        return subprocess.run(command, cwd=ROOT, env=self.environment(), **given)

    def state(self, job: str) -> list[tuple[str, int]]:
        """State and exit code of a job, or of each task of an array."""
        text = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True
        ).stdout
        return [(s, int(c)) for s, c in re.findall(r"JobState=(\w+).*?ExitCode=(\d+)", text)]

    def wait(self, job: str) -> list[tuple[str, int]]:
        """The same, at its end."""
        if not until(lambda: not self.states(job) & UNDER_WAY, nap=0.5):
            self.give_up(job)
        return self.state(job)

    def reach(self, job: str, text: str) -> None:
        """Waits until a job has said so, or is over."""
        if not until(lambda: text in self.output(job) or not self.states(job) & UNDER_WAY, nap=0.1):
            self.give_up(job)

    def states(self, job: str) -> set[str]:
        """Its state, or those of its tasks; a job that is not known yet is as good as waiting."""
        return {state for state, _ in self.state(job)} or {"PENDING"}

    def give_up(self, job: str) -> NoReturn:
        """A job that a busy cluster does not start says nothing of us; one that hangs does."""
        if "PENDING" in self.states(job):
            pytest.skip(f"job {job} did not start within {PATIENCE} s")
        pytest.fail(f"job {job} did not end within {PATIENCE} s: {self.output(job)}")

    def output(self, job: str) -> str:
        """What a job has said so far."""
        path = self.folder / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def end(self) -> None:
        """Takes back what is still under way."""
        for job in self.jobs:
            subprocess.run(["scancel", job], capture_output=True)


def read(path: Path) -> tuple[Mapping[str, object], int]:
    """A result's attributes and how many rounds it has; every table of it can be read."""
    with record.open_result(path) as file:
        tables = {name: one for name, one in file.items() if isinstance(one, h5py.Dataset)}
        lengths = {name: len(table[:]) for name, table in tables.items()}
        return dict(file.attrs), lengths["rounds"]


@pytest.mark.slurm
class TestSlurm:
    """Real jobs."""

    @pytest.fixture
    def slurm(self) -> Iterator[Slurm]:
        if missing():
            pytest.skip(missing())
        results = ROOT / "results"
        results.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="test-", dir=results) as folder:
            slurm = Slurm(Path(folder))
            try:
                yield slurm
            finally:
                slurm.end()

    def test_run(self, slurm: Slurm) -> None:
        out = slurm.folder / "run.h5"
        job = slurm.submit("fedmpi.sbatch", *SMALL, "--out", str(out))
        assert slurm.wait(job) == [("COMPLETED", 0)], slurm.output(job)
        found, rounds = read(out)
        assert (found["status"], found["ranks"], rounds) == (record.DONE, 2, 2)
        assert f"SLURM_JOB_ID={job}" in str(found["slurm"]).splitlines()

    def test_bench_mpi(self, slurm: Slurm) -> None:
        """Under srun it measures two ranks, and its file opens in pandas."""
        out = slurm.folder / "mpi.h5"
        if "pmix" not in kinds_of_mpi():
            pytest.skip("no --mpi=pmix")
        words = ("--collective", "gather", "--exchange", "star", "--bytes", "4096")
        program = str(slurm.venv / "bin" / "fedmpi"), "bench", "mpi", *words, "--repeats", "1"
        done = slurm.srun("-n", "2", "--mpi=pmix", *program, "--out", str(out))
        assert done.returncode == 0, done.stderr
        with h5py.File(out) as file:
            frame = pd.DataFrame(file["mpi"][:])
            assert "SLURM_NTASKS=2" in file.attrs["slurm"].splitlines()
        assert set(frame["ranks"]) == {2}
        assert {b"gather", b"star"} <= set(frame["name"])

    def test_bad_setting(self, slurm: Slurm) -> None:
        job = slurm.submit("fedmpi.sbatch", "roundz=2", "--out", str(slurm.folder))
        assert slurm.wait(job) == [("FAILED", 2)], slurm.output(job)
        assert slurm.output(job).count("no setting 'roundz' (did you mean 'rounds'?)") == 1
        assert not list(slurm.folder.glob("*.h5"))

    def test_sweep(self, slurm: Slurm) -> None:
        base = "".join(f"{word}\n" for word in SMALL)
        file = slurm.folder / "sweep.toml"
        file.write_text(f'[base]\n{base}[[grid]]\nmethod.name = ["fedavg", "topk"]\n')
        for _ in range(2):
            words = str(file), str(slurm.folder)
            job = slurm.submit("sweep.sbatch", *words, options=("--array=0-1",))
            assert slurm.wait(job) == [("COMPLETED", 0)] * 2, slurm.output(job)
        found = [read(path)[0]["status"] for path in slurm.folder.glob("*.h5")]
        assert found == [record.DONE] * 2
        said = "".join(path.read_text() for path in slurm.folder.glob("*.out"))
        assert said.count("done already") == 2, "the second array had nothing to do"

    def test_cancelled(self, slurm: Slurm) -> None:
        out = slurm.folder / "run.h5"
        words = ("rounds=300", *SMALL[1:], "evaluate.every=1000", "--out", str(out))
        job = slurm.submit("fedmpi.sbatch", *words)
        slurm.reach(job, "round 3/")
        subprocess.run(["scancel", job], check=True)
        state = slurm.wait(job)[0][0]
        if state == "COMPLETED":
            pytest.skip(f"job {job} was done before it was cancelled")
        assert state == "CANCELLED", slurm.output(job)
        found, rounds = read(out)
        assert found["status"] in (record.STOPPED, record.RUNNING)  # the latter if it was killed
        assert 3 <= rounds < 300
        again = slurm.submit("fedmpi.sbatch", *words)
        assert slurm.wait(again) == [("COMPLETED", 0)], slurm.output(again)
        found, rounds = read(out)
        assert (found["status"], rounds) == (record.DONE, 300)

    def test_requeued(self, slurm: Slurm) -> None:
        """As before a time limit: exit code 75, and the same job goes on from the checkpoint."""
        out = slurm.folder / "run.h5"
        words = ("rounds=300", *SMALL[1:], "evaluate.every=1000", "--out", str(out))
        job = slurm.submit("fedmpi.sbatch", *words)
        slurm.reach(job, "round 3/")
        subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)
        ended = slurm.wait(job)
        if ended == [("COMPLETED", 0)]:
            pytest.skip(f"job {job} was done before the signal")
        assert ended == [("FAILED", launch.STOPPED)], slurm.output(job)
        found, before = read(out)
        assert found["status"] == record.STOPPED and 3 <= before < 300
        subprocess.run(["scontrol", "requeue", job], check=True)
        assert slurm.wait(job) == [("COMPLETED", 0)], slurm.output(job)
        found, rounds = read(out)
        assert (found["status"], rounds) == (record.DONE, 300)
        assert [line["round"] for line in json.loads(str(found["resumed"]))] == [before]

    @pytest.mark.parametrize("kind", ["none", "pmi2", "pmix"])
    def test_tasks_that_mpi_does_not_connect(self, slurm: Slurm, kind: str) -> None:
        """They are refused; whichever kind connects them makes one job of two ranks."""
        if kind not in kinds_of_mpi():
            pytest.skip(f"no --mpi={kind}")
        out = slurm.folder / "run.h5"
        words = (sys.executable, "-m", "fedmpi", "run", *SMALL, "--out", str(out))
        done = slurm.srun("-n", "2", f"--mpi={kind}", *words)
        if done.returncode == 0 and kind != "none":
            assert read(out)[0]["ranks"] == 2
            return
        assert done.returncode == 2, done.stderr
        assert "srun started 2 tasks, but MPI does not connect them" in done.stderr
        assert not out.exists()

    @pytest.mark.parametrize("kind", ["none", "pmi2", "pmix"])
    def test_ranks_from_an_interactive_step(self, slurm: Slurm, kind: str) -> None:
        """A shell of `srun --pty` has the place of a rank, whatever the site's default is."""
        if kind not in kinds_of_mpi():
            pytest.skip(f"no --mpi={kind}")
        out = slurm.folder / "run.h5"
        words = (sys.executable, "-m", "fedmpi", "run", *SMALL, "--ranks", "2", "--out", str(out))
        done = slurm.srun("-n", "1", f"--mpi={kind}", "sh", "-c", '"$@"', "sh", *words)
        assert done.returncode == 0, done.stderr
        assert read(out)[0]["ranks"] == 2

    def test_nothing_exported(self, slurm: Slurm) -> None:
        """What the script sets, and what was named, reaches srun's tasks all the same."""
        out = slurm.folder / "run.h5"
        options = (f"--export=FEDMPI_VENV={slurm.venv}", "--cpus-per-task=2")
        more = {"SLURM_MPI_TYPE": "pmix"} if "pmix" in kinds_of_mpi() else {}
        words = (*SMALL, "--out", str(out))
        job = slurm.submit("fedmpi.sbatch", *words, options=options, **more)
        assert slurm.wait(job) == [("COMPLETED", 0)], slurm.output(job)
        found, _ = read(out)
        assert (found["ranks"], found["threads_per_rank"]) == (2, 2)
        if "pmix" in kinds_of_mpi():
            assert slurm.output(job).startswith("srun "), "not mpirun, which needs no environment"

    def test_threads_of_a_sweep(self, slurm: Slurm) -> None:
        """They win over the job's CPUs; another number of these makes no other runs."""
        file = slurm.folder / "sweep.toml"
        for base, cpus, threads in (("threads = 1", 2, 1), ("", 1, 1)):
            text = "".join(f"{word}\n" for word in (*SMALL, base))
            file.write_text(f"[base]\n{text}[[grid]]\nseed = [1]\n")
            options = ("--array=0-0", f"--cpus-per-task={cpus}")
            job = slurm.submit("sweep.sbatch", str(file), str(slurm.folder), options=options)
            assert slurm.wait(job) == [("COMPLETED", 0)], slurm.output(job)
            (path,) = slurm.folder.glob("*.h5")
            assert read(path)[0]["threads_per_rank"] == threads
        said = "".join(path.read_text() for path in slurm.folder.glob("*.out"))
        assert said.count("done already") == 1


@cache
def kinds_of_mpi() -> set[str]:
    """What `srun --mpi` can be."""
    done = subprocess.run(["srun", "--mpi=list"], capture_output=True, text=True)
    return set((done.stdout + done.stderr).split())
