"""Hosts of network namespaces: a job across them is one of any nodes, and nothing of them stays."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from fedmpi.results import record
from fedmpi.runs import launch
from tests import PATIENCE, until
from tests.small import run, small

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "jobs" / "hosts.sh"
TOOLS = ("bash", "ip", "tc", "ssh", "ssh-keygen", "sshd", "unshare", "setpriv")
WORDS = ("clients=8", "server=shared", "rounds=1", "local_steps=2", "model.hidden=[256]")
EXCHANGES = ("star", "reduce", "tree")

JOB = """
import sys
from pathlib import Path
import numpy as np
from fedmpi.messages.clock import Clock, Phase
from fedmpi.messages.wire import Wire, abort_on_exception, host
from tests.small import run, small

abort_on_exception()
wire, found = Wire(Clock()), {}
lan = Path("/sys/class/net/lan/statistics/tx_bytes")
for name in EXCHANGES:
    wire.settle()
    before = int(lan.read_text())
    done = run(small(*WORDS, f"exchange.name={name}"), wire.comm)
    wire.settle()
    found[f"{name} sent"] = np.array(wire.report(np.array([int(lan.read_text()) - before])))
    if wire.is_root:
        found[f"{name} model"] = done.model
        found[f"{name} between"] = done.tables["ranks"]["up_between"]
wire.clock.reset()
wire.gather(np.zeros(500_000 * (wire.rank == 2), np.uint8))
found["seconds"] = np.array([wire.clock.seconds[Phase.TRANSFER]])
found["hosts"] = np.array(wire.report(np.array([host().encode()], "S8")))
found["nodes"] = np.array(wire.nodes)
if wire.is_root:
    np.savez(sys.argv[1], **found)
"""
DEATH = """
import os, signal, sys
import numpy as np
from fedmpi.messages.clock import Clock
from fedmpi.messages.wire import Wire

wire = Wire(Clock())
wire.settle()
if wire.rank == int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
wire.gather(np.zeros(8, np.uint8))
wire.settle()
"""


def environment(**more: str) -> dict[str, str]:
    """That of a shell, whose programs are those of this Python."""
    beside = str(Path(sys.executable).parent)
    found = launch.plain(os.environ) | {"PYTHONPATH": str(ROOT)}
    return found | {"PATH": f"{beside}:{found['PATH']}:/usr/sbin:/sbin"} | more


@cache
def missing() -> str:
    """Why hosts cannot be made here; empty if they can."""
    if os.geteuid() != 0:
        return "no root"
    path = environment()["PATH"]
    if lost := [tool for tool in TOOLS if shutil.which(tool, path=path) is None]:
        return f"no {', '.join(lost)}"
    if shutil.which("mpirun", path=path) is None or not launch.find().is_open_mpi:
        return "no mpirun of Open MPI"
    try_it = ["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "true"]
    done = subprocess.run(try_it, capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else ""


@contextmanager
def job(*words: str) -> Iterator[subprocess.Popen]:
    """The script, which is killed if it has not ended."""
    with subprocess.Popen(
        [str(SCRIPT), *words],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(*words: str) -> tuple[int, str]:
    """Exit code and output of the script."""
    with job(*words) as process:
        try:
            said, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{words}: not ended after {PATIENCE} s")
        return process.returncode, said


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "wanted a command for the ranks, such as: fedmpi run"),
        (("--hosts", "3"), "wanted a command"),
        (("--hosts",), "--hosts: wanted a value"),
        (("--hosts", "0", "true"), "--hosts 0: wanted a number from 1 to 99"),
        (("--ranks", "few", "true"), "--ranks few: wanted a number from 1 to 9999"),
        (("--host", "2", "true"), "no option --host; there are: --hosts, --ranks, --rate"),
    ],
)
def test_words_are_checked_before_anything_is_made(words: tuple[str, ...], problem: str) -> None:
    code, said = ended(*words)
    assert (code, said.count("\n")) == (2, 1), said
    assert said.startswith(f"hosts.sh: {problem}")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """The package, too; without root that comes first."""
    for tool in ("bash", "id"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    done = subprocess.run(
        ["bash", str(SCRIPT), "true"],
        cwd=tmp_path,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    wanted = "no ip on the path; on Debian the package iproute2 has it"
    if os.geteuid() != 0:
        wanted = "wanted root, who may make network namespaces"
    assert done.returncode == 2
    assert wanted in done.stderr


@pytest.mark.hosts
class TestHosts:
    """Real ones."""

    @pytest.fixture(autouse=True)
    def possible(self) -> None:
        if missing():
            pytest.skip(missing())

    def test_exchanges_over_two_hosts(self, tmp_path: Path) -> None:
        """Two ranks on each: results are those of one rank, and bytes those on the link."""
        out, text = tmp_path / "found.npz", f"EXCHANGES, WORDS = {EXCHANGES}, {WORDS}\n{JOB}"
        words = ("--ranks", "4", "--rate", "10mbit", sys.executable, "-c", text, str(out))
        code, said = ended(*words)
        assert code == 0, said
        found = np.load(out)
        assert found["hosts"].ravel().tolist() == [b"host1", b"host1", b"host2", b"host2"]
        assert found["nodes"].tolist() == [0, 0, 1, 1]
        wanted = run(small(*WORDS))
        np.testing.assert_array_equal(found["star model"], wanted.model)
        for name in EXCHANGES:
            np.testing.assert_allclose(found[f"{name} model"], wanted.model, rtol=1e-4, atol=1e-6)
            assert found[f"{name} between"][:2].tolist() == [0, 0]
            # Also acknowledgements, words of the launcher, and reports off the clock.
            between, sent = found[f"{name} between"].sum(), found[f"{name} sent"][2, 0]
            assert sent < 1.1 * between + 50_000
            assert sent > (0.5 if name == "reduce" else 1) * between, "MPI adds two sums of a node"
        star, reduced, tree = (found[f"{name} between"].sum() for name in EXCHANGES)
        assert star > 1.9 * reduced > 3.7 * tree
        # 4 Mbit at 10 Mbit/s, of which the link may be ahead by some buffers.
        assert found["seconds"][0] > 0.3

    def test_a_run_of_fedmpi(self, tmp_path: Path) -> None:
        out = tmp_path / "run.h5"
        words = (*WORDS, "data.name=synthetic", "model.name=mlp", "exchange.name=tree")
        code, said = ended("--", sys.executable, "-m", "fedmpi", "run", *words, "--out", str(out))
        assert code == 0, said
        with record.open_result(out) as file:
            assert file.attrs["status"] == record.DONE
            assert record.listed(file.attrs["hosts"]) == ["host1", "host2"]

    def test_a_rate_that_is_none(self) -> None:
        code, said = ended("--rate", "5 apples", "true")
        assert (code, said) == (
            2,
            "hosts.sh: --rate 5 apples: wanted a rate as tc writes it, such as 50mbit or 1gbit\n",
        )

    @pytest.mark.parametrize("rank", [0, 1])
    def test_a_rank_that_is_killed_ends_the_job(self, rank: int) -> None:
        code, _ = ended(sys.executable, "-c", DEATH, str(rank))
        assert code not in (0, 2)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_nothing_stays(self, tmp_path: Path, number: signal.Signals) -> None:
        """However the script ends: no process and no network, nor a file of the launcher's."""
        mark = f"{tmp_path}/rank-"
        text = 'touch "$0$OMPI_COMM_WORLD_RANK"; sleep 1000'
        before = networks()
        with job("bash", "-c", text, mark) as process:
            assert until(lambda: len(list(tmp_path.iterdir())) == 2, nap=0.05)
            assert len(those(mark)) > 3
            process.send_signal(number)
            wanted = -9 if number == signal.SIGKILL else 128 + number
            assert process.wait(PATIENCE) == wanted
        assert until(lambda: not those(mark), nap=0.05), those(mark)
        assert networks() == before


def those(mark: str) -> list[int]:
    """Numbers of the processes that have a word in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue  # it has ended
    return found


def networks() -> set[str]:
    """Names of the networks' devices, and of namespaces."""
    named = Path("/run/netns")
    names = {path.name for path in named.iterdir()} if named.is_dir() else set()
    return names | {path.name for path in Path("/sys/class/net").iterdir()}
