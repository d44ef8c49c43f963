"""One rank's failure ends the whole job."""

import sys

import pytest
from mpi4py import MPI


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """One rank's failure ends the job: the others would wait for it in a collective for ever."""
    outcome = yield
    report = outcome.get_result()
    if report.failed and MPI.COMM_WORLD.Get_size() > 1:
        sys.stderr.write(f"rank {MPI.COMM_WORLD.Get_rank()}: {item.nodeid}\n{report.longreprtext}\n")
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(1)
