"""Disks that refuse something in the middle of a run: one sentence, and the rest can be read."""

import builtins
import errno
import io
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fedmpi import loading
from fedmpi.__main__ import main
from fedmpi.engine import Engine
from fedmpi.results import checkpoint, record
from fedmpi.results.record import DONE, FAILED, RUNNING
from fedmpi.runs import launch
from tests import PATIENCE
from tests.small import SMALL

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


WORDS = [f"{path}={value}" for path, value in loading.leaves(SMALL) if path != "rounds"]


def faced(
    path: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[], None], *words: str
) -> list[str]:
    """Runs four rounds, after two of which harm is done; returns the lines of the error.

    Args:
        path: the result.
        monkeypatch: pytest's.
        harm: what happens.
        words: more settings.
    """
    outcome = Engine.outcome

    def ending(engine: Engine, t: int, waves: Any) -> Any:
        engine.keeper.close()
        found = outcome(engine, t, waves)
        engine.keeper.close()  # the checkpoint before this round is whole
        if t == 1:
            harm()
        return found

    monkeypatch.setattr(Engine, "outcome", ending)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv(launch.PROGRESS, "0")
    words = (*WORDS, "rounds=4", "checkpoint.every=1", *words)
    done = CliRunner().invoke(main, ["run", *words, "--out", str(path)])
    monkeypatch.undo()
    assert done.exit_code == 1, done.output
    return [line for line in done.stderr.splitlines()[1:] if not line.startswith("round ")]


REFUSED = [
    ("fsync", errno.EDQUOT, "quota is used up"),
    ("fsync", errno.EIO, "input/output error"),
    ("mkdir", errno.EROFS, "the file system is read-only"),
    ("open", errno.EROFS, "the file system is read-only"),
    ("open", errno.ESTALE, "stale handle"),
    ("replace", errno.ESTALE, "stale handle"),
    ("stat", errno.ESTALE, "stale handle"),
]


@pytest.mark.parametrize("memory", [0, 9])
@pytest.mark.parametrize(("name", "number", "wanted"), REFUSED)
def test_what_a_file_system_refuses_is_one_sentence(
    name: str,
    number: int,
    wanted: str,
    memory: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From a moment on, for everything in the folder; checkpoints are written before, or beside."""
    path = tmp_path / "there" / "x.h5"
    known: Any = io.open if name == "open" else getattr(os, name)

    def refusing(what: Any, *rest: Any, **named: Any) -> Any:
        place = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.fspath(what)
        if str(place).startswith(str(path.parent)):
            raise OSError(number, os.strerror(number), place)
        return known(what, *rest, **named)

    def harm() -> None:
        for module in (io, builtins) if name == "open" else (os,):
            monkeypatch.setattr(module, name, refusing)

    said = faced(path, monkeypatch, harm, f"checkpoint.memory={memory}")
    assert len(said) == 1 and said[0].startswith(str(path)) and wanted in said[0], said
    about, found = record.content(path)
    assert about["status"] in (FAILED, RUNNING)
    assert len(found["rounds"]) >= 1
    names = {file.name for file in path.parent.iterdir()}
    assert names - {"x.h5.lock"} == {"x.h5", "x.h5.checkpoints"}
    assert [folder.name for folder in checkpoint.there(path)] == ["round-000001"]


def test_a_folder_that_vanishes_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "there" / "x.h5"
    said = faced(path, monkeypatch, lambda: shutil.rmtree(path.parent))
    assert len(said) == 1 and said[0].startswith(f"{path}: "), said
    assert not path.exists()
