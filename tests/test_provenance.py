"""Where a result comes from: everything is said, and nothing is made up."""

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from fedmpi import provenance
from fedmpi.runs import launch
from fedmpi.runs.job import Job
from tests import PATIENCE
from tests.small import small


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fedmpi` has a version even where it is only on the path."""
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda p: "7.8.9" if p == "fedmpi" else real(p))


def git(folder: Path, *words: str) -> str:
    if shutil.which("git") is None:
        pytest.skip("no git on $PATH")
    who = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in which `provenance` believes to be."""
    package = tmp_path / "fedmpi"
    package.mkdir()
    (package / "provenance.py").write_text("one")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    return tmp_path


def test_about_names_versions_machine_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fedmpi", "run", "data.root=a b"])
    about = provenance.about()
    assert about["python"] == platform.python_version()
    assert (about["torch"], about["numpy"], about["h5py"], about["fedmpi"]) == (
        torch.__version__,
        np.__version__,
        h5py.__version__,
        "7.8.9",
    )
    assert set(provenance.PACKAGES) <= set(about)
    assert about["command"] == "fedmpi run 'data.root=a b'"
    assert about["cores"] == provenance.cores() >= 1
    assert about["system"] == platform.platform()


def test_about_fits_into_attributes(tmp_path: Path) -> None:
    about = provenance.about()
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, value in about.items():
            assert isinstance(value, str | int), name
            file.attrs[name] = value
        assert {name: file.attrs[name] for name in about} == about


def test_slurm_is_told_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    assert provenance.about()["slurm"] == ""
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_NAME", "a\nSLURM_NTASKS=9")
    monkeypatch.setenv("MY_SLURM_X", "no")
    assert provenance.about()["slurm"] == (
        "SLURM_JOB_ID=17\nSLURM_JOB_NAME=a SLURM_NTASKS=9\nSLURM_NTASKS=4"
    )


NEEDED = (
    "PATH",
    "HOME",
    "PWD",
    "LANG",
    "TMPDIR",
    "LD_",
    "LC_",
    "PYTHON",
    "PYTEST",
    "OMP_",
    "FEDMPI_",
)
"""Beginnings of the names of variables without which nothing works, or nothing the same."""
MORE = (
    *("SLURM_JWT", "SLURM_EXPORT_ENV", "SLURM_JOB_USER", "SLURM_JOB_ACCOUNT", "SLURM_JOB_COMMENT"),
    *("SLURM_SUBMIT_DIR", "SLURM_CONF", "SLURM_TOPOLOGY_ADDR", "SLURM_JOB_ID_X", "SLURM_", "SLURM"),
    *("SLURMD_NODENAME", "SBATCH_EXPORT", "PMIX_SECURITY", "GIT_TOKEN", "AWS_SECRET_ACCESS_KEY"),
)


def test_nothing_else_of_the_environment_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A credential may be in any variable."""
    secret, wanted = "eyJhbGciOiJIUzI1NiJ9", "wanted-value"
    for name in {*os.environ, *MORE} - set(provenance.SLURM):
        if not name.startswith(NEEDED):
            monkeypatch.setenv(name, f"{secret}-{name}")
    monkeypatch.setenv(secret, "1")
    monkeypatch.setenv(f"SLURM_{secret}", "1")
    for name in provenance.SLURM:
        monkeypatch.setenv(name, wanted)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv(launch.PROGRESS, "0")
    Job().run(small("rounds=1"), tmp_path / "a.h5")
    found = (tmp_path / "a.h5").read_bytes()
    assert found.count(wanted.encode()) == len(provenance.SLURM)
    assert secret.encode() not in found


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_cores_are_those_that_may_be_used() -> None:
    """In a process of its own, for affinity is not to be changed under the other tests."""
    program = (
        "import os; from fedmpi.provenance import cores\n"
        "os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1]); print(cores())"
    )
    room = Path(__file__).parent.parent
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, cwd=room, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.strip() == "1"


def test_cpu_is_one_line() -> None:
    assert "\n" not in provenance.cpu()


def test_commit_is_the_checkouts(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert len(head) == 40
    assert provenance.commit() == head


def test_changes_are_marked(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    (checkout / "fedmpi" / "provenance.py").write_text("two")
    assert provenance.commit() == f"{head}+"


def test_a_tag_does_not_hide_the_commit(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    git(checkout, "tag", "-a", "v1", "-m", "one")
    assert head in provenance.commit()


def test_outside_of_a_checkout_there_is_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.commit() == ""


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit() == ""


MANY = 64


def groups(root: Path, own: str, **files: str) -> None:
    """A machine whose control groups are these; names have two underscores for a slash."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(own)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("own", "files", "wanted"),
    [
        ("0::/\n", {"cpu_dot_max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu_dot_max": "max 100000\n"}, MANY),
        ("0::/\n", {"cpu_dot_max": "350000 100000\n"}, 3),
        ("0::/\n", {"cpu_dot_max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu_dot_max": "99900000 100000\n"}, MANY),
        ("0::/\n", {}, MANY),
        ("0::/\n", {"cpu_dot_max": "nonsense\n"}, MANY),
        ("", {"cpu_dot_max": "200000 100000\n"}, MANY),
        # The least on the way up counts.
        ("0::/a/b\n", {"a__b__cpu_dot_max": "max 100000", "a__cpu_dot_max": "400000 100000"}, 4),
        ("0::/a/b\n", {"a__b__cpu_dot_max": "300000 100000", "a__cpu_dot_max": "900000 100000"}, 3),
        # The path is that of the host, and the container sees its own group alone.
        ("0::/../outer\n", {"cpu_dot_max": "500000 100000"}, 5),
        (
            "3:cpuset:/x\n2:cpu,cpuacct:/docker/f00\n0::/\n",
            {
                "cpu,cpuacct__cpu_dot_cfs_quota_us": "600000",
                "cpu,cpuacct__cpu_dot_cfs_period_us": "100000",
            },
            6,
        ),
        (
            "1:cpu:/job\n",
            {
                "cpu__job__cpu_dot_cfs_quota_us": "-1",
                "cpu__job__cpu_dot_cfs_period_us": "100000",
                "cpu__cpu_dot_cfs_quota_us": "70000",
                "cpu__cpu_dot_cfs_period_us": "10000",
            },
            7,
        ),
        # Both versions beside each other.
        ("2:cpu:/\n0::/\n", {"unified__cpu_dot_max": "800000 100000"}, 8),
    ],
)
def test_a_quota_is_a_number_of_cores(
    own: str,
    files: dict[str, str],
    wanted: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups(tmp_path, own, **files)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(MANY)), raising=False)
    assert provenance.cores() == wanted
    assert launch.slots() <= wanted


def test_cores_without_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert provenance.cores() == 2
