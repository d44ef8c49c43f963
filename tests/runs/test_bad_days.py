"""A run whose file may not grow, at any size: one sentence, and what was written can be read."""

import os
import random
import subprocess
import sys
from pathlib import Path

from fedmpi.results import record
from fedmpi.results.record import DONE, FAILED
from tests import PATIENCE

ROOM = Path(__file__).parents[2]
TRIES = 100
RUN = """
import os, resource, sys
from click.testing import CliRunner
from mpi4py import MPI  # has files of its own
from fedmpi.__main__ import main

os.environ["FEDMPI_TERMINAL"] = "0"
words = ["rounds=2", "clients=3", "data.name=synthetic", "data.samples=60", "epochs=1"]
words += ["data.test_samples=10", "data.shape=[1,4,4]", "model.hidden=[9000]"]
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
for size in map(int, sys.argv[2:]):
    path = os.path.join(sys.argv[1], f"{size}.h5")
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    done = CliRunner().invoke(main, ["run", *words, "--out", path])
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    said = [line for line in done.stderr.splitlines() if not line.startswith("round ")]
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        said.append(repr(done.exception))
    print(size, done.exit_code, *said, sep="|")
"""


def test_files_that_may_not_grow_at_any_size(tmp_path: Path) -> None:
    """The limit is met before the run, in a round, at the end, or by the model alone."""
    sizes = random.Random(1).sample(range(1_100_000), TRIES - 3)
    sizes += [*random.Random(2).sample(range(100_000), 2), 3_000_000]
    words = [sys.executable, "-c", RUN, str(tmp_path), *map(str, sizes)]
    done = subprocess.run(words, cwd=ROOM, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    lines, ends = done.stdout.splitlines(), set()
    assert len(lines) == TRIES
    for line in lines:
        size, code, *said = line.split("|")
        path = tmp_path / f"{size}.h5"
        said = [one for one in said if one != str(path)]  # announces the run
        status, rounds = None, 0
        if path.exists():
            about, found = record.content(path)
            status, rounds = about["status"], len(found["rounds"])
        ends.add((code, status, "model" in "".join(said)))
        if code == "0":
            assert (status, rounds, said) == (DONE, 2, []), line
            continue
        assert len(said) == 1 and said[0].startswith(f"{path}: larger than a file may be"), line
        assert (code, status) in (("2", None), ("1", None), ("1", FAILED), ("1", DONE)), line
        assert (status == DONE) == said[0].endswith("but the model is not kept"), line
    assert {("0", DONE, False), ("2", None, False), ("1", FAILED, False), ("1", DONE, True)} <= ends
    assert all(name.endswith(".h5") for name in os.listdir(tmp_path))
