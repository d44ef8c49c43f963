"""Under mpiexec: rank 0 speaks for all, and one rank's failure ends the whole job."""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from time import sleep

import pytest
from mpi4py import MPI

from fedmpi.data import files

# Decoded sets are kept from test to test, and from rank to rank, but not among the user's.
os.environ["FEDMPI_CACHE"] = str(Path(__file__).parent.parent / ".pytest_cache" / "decoded")

# Tests have no terminal, and no data of the user's; one that wants a width or a folder says so.
for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "FEDMPI_DATA"):
    os.environ.pop(name, None)
os.environ["OMP_NUM_THREADS"] = "1"  # a run without `threads` takes it

# A shell lets what it starts in the background ignore Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

RANK, SIZE = MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """One report a job, not one a rank."""
    if RANK:
        config.option.xmlpath = None


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """One voice a job."""
    if RANK:
        plugins = session.config.pluginmanager
        plugins.unregister(plugins.get_plugin("terminalreporter"))


@pytest.hookimpl(hookwrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Garbage is looked for in what tests make, and not again and again in all that is imported."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Says what failed and aborts: the others would wait in a collective for ever."""
    outcome = yield
    report = outcome.get_result()
    if report.failed and SIZE > 1:
        sys.stderr.write(f"rank {RANK}: {item.nodeid}\n{report.longreprtext}\n")
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(1)


@pytest.fixture(autouse=True)
def asleep(barrier_finalize: None) -> Iterator[None]:
    """Ranks that are done sleep until all are; mpi-pytest's barrier would take others' cores."""
    yield
    if SIZE > 1:
        request = MPI.COMM_WORLD.Ibarrier()
        while not request.Test():
            sleep(0.001)


@pytest.fixture
def nowhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, which is home as well; nothing is found that a test did not make."""
    folder = tmp_path_factory.mktemp("nowhere") / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("FEDMPI_DATA", raising=False)
    monkeypatch.setenv("FEDMPI_CACHE", str(folder.parent / "cache"))
    monkeypatch.setattr(files, "USUAL", files.USUAL[:-1])
    return folder


@pytest.fixture
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose path, unlike `tmp_path`, does not hold the name of the test."""
    return tmp_path_factory.mktemp("sets")
