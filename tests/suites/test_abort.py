"""One rank fails, the others are in a collective: the job ends, and says which rank, and why."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

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


def ended(rank: int, verb: str, how: str) -> str:
    """What a job of three ranks says on standard error, which has to end with one of them."""
    launcher = launch.find()
    words = launcher.command(3, [sys.executable, "-c", FAILURE, str(rank), verb, how])
    with subprocess.Popen(
        words,
        cwd=ROOM,
        env=launcher.environment(),
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
