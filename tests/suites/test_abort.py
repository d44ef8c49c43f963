"""One rank fails, the others are in a collective: the job ends, and says which rank, and why.

A rank that is killed says nothing. Its launcher ends the others.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedmpi import config
from fedmpi.messages import wire
from fedmpi.results import record
from fedmpi.runs import launch
from tests import PATIENCE

ROOM = Path(__file__).parent.parent.parent

FAILURE = """
import os, signal, sys
import numpy as np
from fedmpi.messages.clock import Clock
from fedmpi.messages.wire import Wire, abort_on_exception

abort_on_exception()
wire = Wire(Clock())
wire.lowest(True)  # all are here
if wire.rank == int(sys.argv[1]):
    if sys.argv[3] == "signal":
        os.kill(os.getpid(), signal.SIGINT)
    raise RuntimeError(f"no bread on rank {wire.rank}")
getattr(wire, sys.argv[2])(np.zeros(8, np.uint8))
wire.settle()
"""

DEATH = """
import os, signal, sys
import numpy as np
from fedmpi import config
from fedmpi.messages.clock import Clock
from fedmpi.messages.ledger import Ledger
from fedmpi.messages.wire import Wire, abort_on_exception

abort_on_exception()
wire = Wire(Clock())
exchange = config.module("exchange", sys.argv[2]).Exchange(wire, wire.clock, Ledger(1))

def turn(dies):
    for verb, given in (("broadcast", ([], [])), ("gather", ([],)), ("merge", (sums(),))):
        if dies and verb == sys.argv[3]:
            os.kill(os.getpid(), signal.SIGKILL)
        getattr(exchange, verb)(*given)

def sums():
    return [np.ones(100, np.float32), np.ones(1)]

turn(False)
turn(wire.rank == int(sys.argv[1]))
wire.settle()
print("nobody died", file=sys.stderr)
"""
ADDING = [name for name in config.exchanges() if config.module("exchange", name).Config.adds]
"""Exchanges that send something in `merge`; `star` sends all before."""


IN_A_RUN = """
import os, signal, sys
from fedmpi.engine import Engine

outcome = Engine.outcome

def dying(engine, t, waves):
    found = outcome(engine, t, waves)
    if t == 1 and engine.place.rank == int(sys.argv[1]):
        if sys.argv[2] == "signal":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError(f"no bread on rank {sys.argv[1]}")
    return found

Engine.outcome = dying
from fedmpi.__main__ import main
main(["run", *sys.argv[4:], "--out", sys.argv[3]])
"""
WORDS = (
    *("rounds=3", "clients=4", "data.name=synthetic", "data.samples=200", "data.shape=[4]"),
    *("data.test_samples=20", "model.hidden=[4]", "control=mean", "checkpoint.every=1"),
)


def ended(rank: int, *rest: str, text: str = FAILURE, nodes: str = "") -> str:
    """What a job of three ranks says on standard error, which has to end with one of them."""
    launcher = launch.find()
    words = launcher.command(3, [sys.executable, "-c", text, str(rank), *rest])
    with subprocess.Popen(
        words,
        cwd=ROOM,
        env=launcher.environment() | {wire.NODES: nodes},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as job:
        try:
            _, err = job.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            pytest.fail(f"rank {rank} failed, and after {PATIENCE} s the job had not ended")
    assert job.returncode not in (0, None)
    return err


@pytest.mark.parametrize("rank", [0, 1])
def test_an_interrupt_of_one_rank_ends_the_job(rank: int) -> None:
    """Ctrl-C may reach one process alone; it does not leave the others in their collective."""
    err = ended(rank, "gather", "signal")
    assert "RuntimeError" not in err


@pytest.mark.parametrize("verb", ["gather", "bcast"])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_any_rank_ends_the_job(rank: int, verb: str) -> None:
    err = ended(rank, verb, "exception")
    assert f"rank {rank} of 3 failed" in err
    assert f"RuntimeError: no bread on rank {rank}" in err
    assert "Traceback" in err
    others = [other for other in range(3) if other != rank]
    assert not any(f"rank {other} of 3 failed" in err for other in others)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize(
    ("exchange", "verb"),
    [("star", "broadcast"), ("star", "gather"), *((name, "merge") for name in ADDING)],
)
def test_a_rank_that_is_killed_ends_the_job_in_every_exchange(
    rank: int, exchange: str, verb: str
) -> None:
    """After a round that went well, and on two nodes, of which one has a single rank."""
    err = ended(rank, exchange, verb, text=DEATH, nodes="2")
    assert "nobody died" not in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("rank", "how"), [(0, "signal"), (2, "signal"), (1, "exception")])
def test_a_rank_that_dies_in_a_run_ends_the_job(rank: int, how: str, tmp_path: Path) -> None:
    """The launcher's SIGTERM to the others asks them to stop after the round, which never ends."""
    path = tmp_path / "x.h5"
    err = ended(rank, how, str(path), *WORDS, text=IN_A_RUN)
    if how == "exception":
        assert f"rank {rank} of 3 failed" in err
        assert err.index("Traceback") < err.index(f"RuntimeError: no bread on rank {rank}")
    else:
        assert "Traceback" not in err
    about, found = record.content(path)
    assert about["status"] in (record.RUNNING, record.FAILED)
    assert 1 <= len(found["rounds"]) <= 2
