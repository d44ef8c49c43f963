"""A small share of `tests.stress`: nobody but the writer changes a result."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import PATIENCE
from tests.stress import MEETINGS, lockless, stress

TRY = """
import fcntl, sys
for lock in (fcntl.flock, fcntl.lockf):
    try:
        lock(open(sys.argv[1], "w"), fcntl.LOCK_EX)
    except OSError as error:
        print(error.errno)
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    found = lockless(tmp_path)
    if found is None:
        pytest.skip("needs a compiler, cc")
    return found


def test_the_library_refuses_locks(library: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRY, str(library.with_name("file"))],
        env=os.environ | {"LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert [int(word) for word in done.stdout.split()] == [errno.ENOSYS, errno.ENOLCK]


def test_a_writer_with_readers_and_a_second_job(tmp_path: Path, library: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    found = stress(folder, 150, library)
    assert (found["rounds"], found["wrong"], found["faults"]) == (150, 0, 0)
    assert found["rows"] > 0
    assert found["refused"] >= MEETINGS
