"""Jobs that are cut off go on from their checkpoints, and say so."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from fedmpi import loading, provenance
from fedmpi.__main__ import main
from fedmpi.config import Settings
from fedmpi.engine import Engine
from fedmpi.errors import BadInput, Failure
from fedmpi.results import checkpoint, record, tables
from fedmpi.runs import earlier, launch
from fedmpi.runs.job import Job
from fedmpi.runs.sweep import Sweep
from tests import PATIENCE, until
from tests.plain import families, member
from tests.small import SMALL, small
from tests.soak import CASES, same

ROOM = Path(__file__).parents[2]
FEW = ("rounds=4", "participation=0.6", "evaluate.final=evaluate")

AT_ONCE = ("checkpoint.memory=0",)
"""A round waits for its checkpoint: what a crash leaves does not depend on the disk."""


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job replaces the hook; standard error is no terminal, whatever it is here."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv(launch.PROGRESS, "0")


class Cut(Exception):
    """What cuts a run off, as a crash would."""


@pytest.fixture
def after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, Callable[[], None]], None]]:
    """Lets something happen at the end of a round, once."""
    outcome, waiting = Engine.outcome, dict[int, Callable[[], None]]()

    def ending(engine: Engine, t: int, waves: Any) -> Any:
        found = outcome(engine, t, waves)
        if t in waiting:
            waiting.pop(t)()
        return found

    monkeypatch.setattr(Engine, "outcome", ending)
    yield waiting.__setitem__
    assert waiting == {}


def crash() -> None:
    raise Cut


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def content(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    return record.content(path)


def whole(settings: Settings, folder: Path) -> Path:
    """The result of a run that nothing cuts off."""
    path = folder / "whole.h5"
    Job().run(settings, path)
    return path


@families
def test_a_job_that_is_stopped_goes_on(
    family: str, tmp_path: Path, after: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    settings, path = small(*member(family), *FEW), tmp_path / "x.h5"
    wanted = whole(settings, tmp_path)
    after(1, stop)
    assert Job().run(settings, path) == record.STOPPED
    about, found = content(path)
    assert about["status"] == "stopped"
    assert "model_sha256" not in about
    assert found["rounds"]["round"][-1] == 1
    assert len(checkpoint.there(path)) == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    Job().run(settings, path)
    same(path, wanted)
    assert sorted(tmp_path.iterdir()) == sorted([path, wanted])
    (line,) = record.resumes(content(path)[0])
    assert (line["round"], line["ranks"], len(line["hosts"])) == (2, 1, 1)
    assert content(path)[0]["started"] == about["started"]
    assert "goes on after round 2 of 4" in capsys.readouterr().err


def test_rounds_after_the_checkpoint_are_done_again(
    tmp_path: Path, after: Callable[..., None]
) -> None:
    """Twice: the result has a line for each job that went on."""
    settings = small("method.name=ssfl", *FEW, *AT_ONCE, "checkpoint.every=2")
    path = tmp_path / "x.h5"
    for _ in range(2):
        after(2, crash)
        with pytest.raises(Cut):
            Job().run(settings, path)
        assert content(path)[0]["status"] == "failed"
        assert content(path)[1]["rounds"]["round"].tolist() == [-1, 0, 1]
    Job().run(settings, path)
    same(path, whole(settings, tmp_path))
    assert [line["round"] for line in record.resumes(content(path)[0])] == [2, 2]


def damage(folder: Path) -> None:
    with checkpoint.file_of(folder, 0).open("r+b") as file:
        file.seek(-70, os.SEEK_END)
        file.write(b"?")


def foreign(folder: Path) -> None:
    file = folder / checkpoint.MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | {"identity": "0" * 16}))


def unfinished(folder: Path) -> None:
    (folder / checkpoint.MANIFEST).write_text("{")


def former(folder: Path) -> None:
    """As a former version would have written it."""
    file = folder / checkpoint.MANIFEST
    about = json.loads(file.read_text())
    content = checkpoint.file_of(folder, 0).read_bytes()
    old = {"format": 1, "hashes": [hashlib.sha256(content).hexdigest()]}
    file.write_text(json.dumps(about | old))


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (damage, "the content of rank-00000.state has changed"),
        (foreign, "it is of another run"),
        (unfinished, "its manifest is missing, or is no longer what was written"),
        (former, "its layout is version 1, and this one reads 2"),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_a_checkpoint_that_cannot_be_used_is_left_out(
    harm: Callable[[Path], None],
    why: str,
    count: int,
    tmp_path: Path,
    after: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = small("method.name=topk", *FEW, *AT_ONCE, "checkpoint.every=1")
    path = tmp_path / "x.h5"
    after(3, crash)
    with pytest.raises(Cut):
        Job().run(settings, path)
    newest = checkpoint.there(path)
    assert [folder.name for folder in newest] == ["round-000003", "round-000002"]
    for folder in newest[:count]:
        harm(folder)
    Job().run(settings, path)
    same(path, whole(settings, tmp_path))
    said = capsys.readouterr().err
    assert said.count(f"not used: {why}") == said.count("not used: ") == count
    assert [line["round"] for line in record.resumes(content(path)[0])] == [2] * (2 - count)
    assert ("goes on after round 2 of 4" in said) == (count == 1)


def test_a_result_that_lacks_rounds_begins_anew(
    tmp_path: Path, after: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    settings, path = small(*FEW), tmp_path / "x.h5"
    after(1, stop)
    Job().run(settings, path)
    with h5py.File(path, "r+") as file:
        file["rounds"].resize(1, axis=0)
    Job().run(settings, path)
    same(path, whole(settings, tmp_path))
    assert "the result lacks rounds before it" in capsys.readouterr().err


def test_other_code_is_refused(
    tmp_path: Path, after: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, path = small("method.name=topk", *FEW), tmp_path / "x.h5"
    now = earlier.code(settings)
    assert {"methods.topk", "methods.fedavg", "models.mlp", "datasets.synthetic"} <= now.keys()
    after(1, stop)
    Job().run(settings, path)
    other = now | {"methods.topk": "0" * 64}
    monkeypatch.setattr(earlier, "code", lambda settings: other)
    wanted = f"of other code .methods.topk then {now['methods.topk'][:8]}, now 00000000.; --again"
    with pytest.raises(BadInput, match=wanted):
        Job().run(settings, path)
    Job().run(small("method.name=topk", *FEW, "checkpoint.code=any"), path)
    (line,) = record.resumes(content(path)[0])
    assert line["code_sha256"] == other
    Job().run(settings, path, again=True)
    about, found = content(path)
    assert "resumed" not in about
    assert found["rounds"]["round"].tolist() == [0, 1, 2, 3]


def test_a_finished_run_of_other_code_is_said_to_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the run, the sweep, its dry run and its ranks' launcher, and by the result's display."""
    file, out = tmp_path / "s.toml", tmp_path / "out"
    sweep_of(file, "method.name = ['topk', 'fedavg']")
    words = ["sweep", str(file), "--out", str(out)]
    assert Job().sweep(Sweep(file, out)) == 0
    topk, _ = (Sweep(file, out).path(number) for number in (0, 1))
    (then, source), mine = (content(topk)[0]["code_sha256"], provenance.source), "methods.topk"
    monkeypatch.setattr(
        provenance, "source", lambda name: "0" * 64 if name == f"fedmpi.{mine}" else source(name)
    )
    changed = f"{mine} then {json.loads(then)[mine][:8]}, now 00000000"
    wanted = f"done by other code ({changed}); --again runs it anew"
    capsys.readouterr()
    before = topk.read_bytes()
    assert Job().sweep(Sweep(file, out)) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith(f"  {topk}: {wanted}") and said[1].endswith(": done already")
    last = "2 runs: 1 done by other code (run 0), 1 done already"
    assert said[2] == last
    found = CliRunner().invoke(main, [*words, "--ranks", "2"])
    assert found.exit_code == 0
    assert found.stderr.splitlines() == [f"run 0 (method.name=topk) {wanted}", last]
    found = CliRunner().invoke(main, [*words, "--dry-run"])
    lines = found.stdout.splitlines()
    assert lines == [
        f"   0  done        method.name=topk  {wanted}",
        "   1  done        method.name=fedavg",
    ]
    given = ["run", str(topk), "--out", str(topk)]
    for more in ([], ["--ranks", "2"]):
        assert CliRunner().invoke(main, [*given, *more]).stderr == f"{topk}: {wanted}\n"
    shown = " ".join(CliRunner().invoke(main, ["show", str(topk)]).output.split())
    assert f"other code {changed}" in shown
    assert topk.read_bytes() == before
    monkeypatch.undo()
    assert Job().run(small("method.name=topk"), topk) == "done already"


def test_sources_that_are_gone_or_were_not_recorded() -> None:
    here = {"methods.topk": provenance.source("fedmpi.methods.topk")}
    gone = here | {"methods.moo": "ab" * 32}
    assert earlier.changes({}) == ""
    assert earlier.changes({"code_sha256": json.dumps(here)}) == ""
    assert (
        earlier.changes({"code_sha256": json.dumps(gone)})
        == "methods.moo then abababab, now absent"
    )
    later = [{"round": 1}, {"round": 2, "code_sha256": {"methods.topk": "cd" * 32}}]
    about = {"code_sha256": json.dumps(here), "resumed": json.dumps(later)}
    assert earlier.changes(about).startswith("methods.topk then cdcdcdcd, now ")


def test_again_begins_anew(tmp_path: Path, after: Callable[..., None]) -> None:
    settings, path = small(*FEW), tmp_path / "x.h5"
    after(1, stop)
    Job().run(settings, path)
    Job().run(settings, path, again=True)
    assert "resumed" not in content(path)[0]
    assert list(tmp_path.iterdir()) == [path]
    before = path.stat().st_mtime_ns
    assert Job().run(settings, path) == "done already"
    assert path.stat().st_mtime_ns == before
    assert Job().run(settings, path, again=True) == "done"
    assert path.stat().st_mtime_ns != before


KILLED = """
import os, signal, sys
from pathlib import Path
from fedmpi.results.lease import Lease
from fedmpi.runs.job import Job
from tests.small import small
Lease.release = lambda lease: os.kill(os.getpid(), signal.SIGKILL)
Job().run(small(*sys.argv[2:]), Path(sys.argv[1]))
"""


@pytest.mark.parametrize("how", ["run", "run --ranks 2", "sweep --ranks 2"])
def test_what_a_kill_at_the_very_end_leaves_is_cleared_away(how: str, tmp_path: Path) -> None:
    """The run is done; its checkpoints and its lock are there, until somebody asks for it again."""
    words = [*FEW, "checkpoint.every=1"]
    path = earlier.place(tmp_path, small(*words))
    program = [sys.executable, "-c", KILLED, str(path), *words]
    done = subprocess.run(program, cwd=ROOM, env=launch.plain(os.environ))
    assert done.returncode == -signal.SIGKILL and content(path)[0]["status"] == "done"
    left = {path, checkpoint.folder_of(path), path.with_name(f"{path.name}.lock")}
    assert set(tmp_path.iterdir()) == left
    (command, *ranks), file = how.split(), tmp_path.with_suffix(".toml")
    rows = [f"{name} = {json.dumps(value)}" for name, value in loading.leaves(SMALL)]
    file.write_text("\n".join(["[base]"] * (command == "sweep") + rows))
    given = [command, str(file), *words, "--out", str(tmp_path), *ranks]
    found = CliRunner().invoke(main, given)
    assert found.exit_code == 0 and "done already" in found.stderr
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    settings, path = small(*FEW, *AT_ONCE, "checkpoint.every=1"), tmp_path / "x.h5"
    checkpoint.folder_of(path).write_text("")
    with pytest.raises(Failure, match=r"x\.h5\.checkpoints"):
        Job().run(settings, path)
    assert content(path)[0]["status"] == "failed"
    assert content(path)[1]["rounds"]["round"].tolist() == [0]


def test_rows_of_other_columns_are_not_gone_on_with() -> None:
    found = {name: tables.empty(columns, 0) for name, columns in tables.TABLES.items()}
    assert record.before(found, 0, 0) is not None
    assert record.before(found, -1, 0) is None
    found["rounds"] = tables.empty(tables.ROUNDS, 3)
    found["rounds"]["round"] = [0, 1, 2]
    kept = record.before(found, 0, 2)
    assert kept is not None
    assert kept["rounds"]["round"].tolist() == [0, 1]
    assert record.before(found, 0, 4) is None
    found["clients"] = np.zeros(0, [("round", "i4")])
    assert record.before(found, 0, 2) is None


SLOW = """
import sys, time
from fedmpi.engine import Engine
outcome = Engine.outcome
def slow(engine, t, waves):
    found = outcome(engine, t, waves)
    time.sleep(0.5)
    return found
Engine.outcome = slow
from fedmpi.__main__ import main
main(prog_name="fedmpi")
"""
WORDS = (
    *("rounds=40", "clients=4", "data.name=synthetic", "data.samples=200", "data.shape=[4]"),
    *("data.test_samples=20", "model.hidden=[4]", "control=mean"),
)


STARTER = (
    "import sys; from fedmpi.runs import launch; "
    "sys.exit(launch.find().run(2, [sys.executable, *sys.argv[1:]], is_gentle=True))"
)
"""Starts a program on two ranks, as the command does, and hands signals on."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_the_ranks_of_the_command(number: signal.Signals, tmp_path: Path) -> None:
    """The command hands it on; its exit code is 75. `fedmpi resume` goes on, on one rank."""
    program, out = tmp_path / "fedmpi_slow.py", tmp_path / "x.h5"
    program.write_text(SLOW)
    python, environment = sys.executable, os.environ | {"PYTHONPATH": str(ROOM)}
    words = ["run", *WORDS, "--out", str(out)]
    job = subprocess.Popen(
        [python, "-c", STARTER, str(program), *words], env=environment, stderr=subprocess.DEVNULL
    )
    assert until(lambda: len(_rounds(out)) >= 2, nap=0.05)
    job.send_signal(number)
    assert job.wait(PATIENCE) == launch.STOPPED
    done = _rounds(out)
    assert 2 <= len(done) < 40
    assert len(checkpoint.there(out)) == 1
    more = ["resume", str(out), "threads=1"]
    again = subprocess.run(
        [python, "-m", "fedmpi", *more], env=environment, capture_output=True, text=True
    )
    assert (again.returncode, "goes on after round" in again.stderr) == (0, True), again.stderr
    assert _rounds(out) == list(range(40))
    (line,) = record.resumes(content(out)[0])
    assert (line["round"], line["ranks"]) == (len(done), 1)
    assert not checkpoint.folder_of(out).exists()


def test_a_signal_before_ranks_listen_stops_the_command_as_well(tmp_path: Path) -> None:
    """They end by it; nothing has begun, and scripts that wait for 75 submit the job again."""
    mark = tmp_path / "began"
    program = f"import pathlib, time; pathlib.Path({str(mark)!r}).touch(); time.sleep(600)"
    job = subprocess.Popen(
        [sys.executable, "-c", STARTER, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOM)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert until(mark.exists, nap=0.05)
    job.terminate()
    _, said = job.communicate(timeout=PATIENCE)
    assert job.returncode == launch.STOPPED, said
    assert "the signal came while the ranks were starting or ending" in said


def _rounds(path: Path) -> list[int]:
    if not path.exists():
        return []
    return content(path)[1]["rounds"]["round"].tolist()


def test_resume_wants_a_checkpoint(tmp_path: Path, after: Callable[..., None]) -> None:
    settings, path = small(*FEW), tmp_path / "x.h5"
    after(1, stop)
    Job().run(settings, path)
    checkpoint.remove(path)
    words = [sys.executable, "-m", "fedmpi", "resume", str(path)]
    done = subprocess.run(words, cwd=ROOM, capture_output=True, text=True)
    assert done.returncode == 2
    assert "wanted a checkpoint, found none in" in done.stderr


def sweep_of(file: Path, *axes: str) -> None:
    """Writes a sweep of the small run, with a grid of these axes."""
    rows = [f"{path} = {json.dumps(value)}" for path, value in loading.leaves(SMALL)]
    file.write_text("\n".join(["[base]", *rows, "[[grid]]", *axes]))


def test_a_sweep_stops_and_goes_on(
    tmp_path: Path, after: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "s.toml", tmp_path / "out"
    sweep_of(file, "seed = [1, 2, 3]")
    after(0, stop)
    assert Job().sweep(Sweep(file, out)) == launch.STOPPED
    assert "3 runs: 1 stopped (run 0), 2 not begun (runs 1, 2)" in capsys.readouterr().err
    assert Job().sweep(Sweep(file, out)) == 0
    assert "3 runs: 3 done" in capsys.readouterr().err
    found = sorted(out.iterdir())
    assert len(found) == 3
    lines = [record.resumes(content(path)[0]) for path in found]
    assert sorted(map(len, lines)) == [0, 0, 1]


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_is_killed_at_any_moments_ends_alike(name: str, tmp_path: Path) -> None:
    """In a process that has nothing else; `python -m tests.soak` has more of it."""
    ranks = {"topk": "112", "splitfed": "112"}.get(name, "1")
    words = [word for count in ranks for word in ("--ranks", count)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", "--kills", "5", "--case", name, *words],
        cwd=ROOM,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert lines and all("models and tables equal" in line for line in lines)
    found = re.match(r"all: 5 kills \((\d+) in checkpoints, .*\), (\d+) runs? ended", last)
    assert found and int(found[1]) > 0 and int(found[2]) == len(lines), last
