"""Files with flipped bytes and lost ends: whoever reads them says so in a sentence."""

import json
import os
import random
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas
import pytest
from click.testing import CliRunner

from analysis import frames
from fedmpi.__main__ import main
from fedmpi.results import record, tables
from fedmpi.runs import launch
from fedmpi.runs.sweep import Sweep

QUICK = """
rounds = 2
clients = 4
data = { name = "synthetic", samples = 200, test_samples = 40, shape = [1, 4, 4] }
model.hidden = [8]
"""
MANY = 60
"""Damaged files; each meets all readers."""


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of the sweep a.toml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for name in (*launch.RANK_VARIABLES, "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    Path("a.toml").write_text(f"[base]{QUICK}")
    assert fedmpi("sweep", "a.toml").exit_code == 0
    return Sweep(Path("a.toml"), Path("results")).path(0)


def fedmpi(*words: str) -> Any:
    return CliRunner().invoke(main, words)


def read(path: Path) -> list[str]:
    """What every reader of a file says; empty if no one ends other than with 0 or 2."""
    said = []
    for words in (
        ("show", str(path)),
        ("run", str(path), "lr=0"),
        ("sweep", "a.toml", "--dry-run"),
    ):
        found = fedmpi(*words)
        if found.exit_code not in (0, 2):
            said.append(f"{words}: {found.exit_code} {found.exception!r}")
    try:
        for table in (frames.runs, frames.clients, frames.final):
            table(path.parent)
    except Exception:
        said.append(traceback.format_exc())
    return said


def spoilt(content: bytes, settings: bytes, dice: random.Random) -> bytes:
    """The file without its end, or with a few other bytes: anywhere, or among its settings."""
    found = bytearray(content)
    kind = dice.choice(["cut", "settings", "head", "metadata", "anywhere"])
    if kind == "cut":
        return content[: dice.randrange(len(content))]
    if kind == "settings":
        begin, end = content.index(settings), content.index(settings) + len(settings)
    else:
        begin, end = (
            0,
            {"head": 2000, "metadata": min(1 << 16, len(found)), "anywhere": len(found)}[kind],
        )
    for _ in range(dice.choice([1, 2, 8, 64])):
        found[dice.randrange(begin, end)] = dice.randrange(256)
    return bytes(found)


def test_flipped_bytes(result: Path) -> None:
    """Each in a process of its own, because HDF5 might end it."""
    content, dice = result.read_bytes(), random.Random(3)
    settings = json.dumps(record.settings_of(result)).encode()
    for _ in range(MANY):
        result.write_bytes(spoilt(content, settings, dice))
        child = os.fork()
        if child == 0:
            signal.alarm(120)
            said = read(result)
            print(*said, sep="\n", file=sys.stderr, flush=True)
            os._exit(bool(said))
        code = os.waitpid(child, 0)[1]
        if code:
            shutil.copy(result, "bad.h5")
        assert code == 0, "kept as bad.h5"


def change(path: Path, **attributes: Any) -> None:
    with h5py.File(path, "r+", locking=False) as file:
        for name, value in attributes.items():
            if value is None:
                del file.attrs[name]
            else:
                file.attrs[name] = value


def shorten(path: Path, table: str, **columns: Any) -> None:
    """Replaces a table by one with these columns."""
    with h5py.File(path, "r+", locking=False) as file:
        del file[table]
        kinds = [(name, np.asarray(values).dtype) for name, values in columns.items()]
        rows = np.zeros(2, kinds)
        for name, values in columns.items():
            rows[name] = values
        file[table] = rows


DAMAGES = {
    "settings that are no JSON": lambda path: change(path, settings="{"),
    "settings that are a list": lambda path: change(path, settings="[]"),
    "settings that are a number": lambda path: change(path, settings=5),
    "settings without rounds": lambda path: change(path, settings="{}"),
    "no status": lambda path: change(path, status=None, identity=None),
    "a start that is no time": lambda path: change(path, started="soon"),
    "files that are no JSON": lambda path: change(path, files_sha256="x"),
    "rounds of other columns": lambda path: shorten(path, "rounds", round=[0, 1]),
    "rounds that are no table": lambda path: shorten(path, "rounds", x=[0.5, 1.5]),
    "clients of other columns": lambda path: shorten(path, "clients", round=[0, 1]),
}


IN_WORDS = {
    "settings that are no JSON": "its settings are no JSON",
    "no status": "it lacks status",
    "a start that is no time": "wanted a time in ISO 8601, found started = 'soon'",
    "files that are no JSON": "its files_sha256 are no JSON",
    "rounds that are no table": "the table rounds lacks the column round",
    "clients of other columns": "a table lacks the column ",
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_content(
    case: str, result: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever needs what is lacking says so, and names the file."""
    DAMAGES[case](result)
    monkeypatch.setattr(frames, "_reported", set())
    assert read(result) == []
    shown = fedmpi("show", str(result))
    assert shown.exit_code == 2
    assert shown.stderr.startswith(f"{result}: a damaged result: {IN_WORDS.get(case, '')}")
    assert shown.stderr.count("\n") == 1
    said = capsys.readouterr().err
    for raw in ("Unable to", "Can't ", "not in index", "Expecting"):
        assert raw not in said + shown.stderr


def test_the_analysis_says_in_words_what_is_lacking(
    result: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shorten(result, "rounds", round=[0, 1], warmup=[True, False])
    folder = result.parent
    change(shutil.copy(result, folder / "b.h5"), settings="{")
    (folder / "c.h5").write_text("no HDF5")
    assert frames.find(folder) == []
    said = capsys.readouterr().err
    assert "b.h5: left out: a damaged result: its settings are no JSON\n" in said
    assert "c.h5: left out: not an HDF5 file, or one that was cut off\n" in said
    lacks = "left out: a damaged result: the table rounds lacks the column accuracy\n"
    assert f"{result}: {lacks}" in said


@pytest.mark.parametrize(
    "attributes", [{"best_round": "{"}, {"status": 3}, {"finished": [1, 2]}, {"settings": "{}"}]
)
def test_attributes_of_another_type_hide_no_other_result(
    attributes: dict[str, Any], result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "_reported", set())
    whole = shutil.copy(result, result.with_name("whole.h5"))
    change(result, **attributes)
    assert frames.runs([result, whole])["path"].tolist() == [str(whole)]


def test_more_rows_than_the_file_holds(result: Path) -> None:
    """A length of a billion rows takes no memory."""
    with h5py.File(result, "r+", locking=False) as file:
        file["clients"].resize(10**12, axis=0)
    shown = fedmpi("show", str(result))
    assert (shown.exit_code, "the table clients lacks rows" in shown.stderr) == (2, True)
    with pytest.raises(ValueError, match="lacks rows"):
        frames._read(result, "clients")


class Torn:
    """In place of a reader: it fails so many times, as beside a writer."""

    def __init__(self, read: Any, times: int) -> None:
        self.read, self.left = read, times

    def __call__(self, *args: Any) -> Any:
        if self.left:
            self.left -= 1
            raise OSError("wrong B-tree signature")
        return self.read(*args)


@pytest.mark.parametrize("times", [1, record.TRIES - 1])
def test_disorder_beside_a_writer_is_read_again(
    result: Path, times: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    identity = Sweep(Path("a.toml"), Path("results")).members[0].settings.identity()
    monkeypatch.setattr(record, "NAP", 0.001)
    monkeypatch.setattr(frames, "NAP", 0.001)
    monkeypatch.setattr(frames, "_reported", set())
    reader = record.open_result
    with record.lease.take(result):
        for ask in (
            lambda: record.state_of(result, identity),
            lambda: record.settings_of(result),
            lambda: record.content(result),
        ):
            torn = Torn(reader, times)
            monkeypatch.setattr(record, "open_result", torn)
            ask()
            assert torn.left == 0
        monkeypatch.setattr(frames, "_read_once", Torn(frames._read_once, times))
        assert len(frames.runs(result)) == 1
    assert capsys.readouterr().err == ""


def test_damage_is_said_at_once_where_nobody_writes(
    result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (record, frames):
        monkeypatch.setattr(module, "sleep", lambda _: pytest.fail("it waited"))
    result.write_text("half")
    with pytest.raises(record.Damaged, match="not an HDF5 file"):
        record.content(result)
    assert frames.runs(result).empty


def as_before(path: Path) -> None:
    """Rewrites a result as the first format had it: plain chunks, fewer tables and attributes."""
    with h5py.File(path) as now:
        about, found = dict(now.attrs), {name: now[name][:] for name in tables.TABLES}
    settings = json.loads(about["settings"])
    for name in ("keep", "keep_limit", "checkpoint"):
        del settings[name]
    path.unlink()
    with h5py.File(path, "w") as file:
        for name in ("sample_shape", "sample_kind", "classes", "kept_round", "changed"):
            about.pop(name, None)
        file.attrs.update(about | {"format": 1, "settings": json.dumps(settings)})
        file.attrs["hosts"] = ["a", "a", "b"]
        for name, rows in found.items():
            if name not in tables.LATER:
                file.create_dataset(name, data=rows, maxshape=(None,), chunks=(1024,))


def test_a_result_of_an_earlier_version(result: Path) -> None:
    """Hosts are an array there, and tables are lacking; all else is read as from a new one."""
    wanted = {table: getattr(frames, table)(result) for table in ("clients", "phases")}
    shown = fedmpi("show", str(result)).stdout
    as_before(result)
    assert "2 on a, 1 on b" in fedmpi("show", str(result)).stdout
    assert frames.runs(result)["about.hosts"].tolist() == [("a", "a", "b")]
    for table, rows in wanted.items():
        pandas.testing.assert_frame_equal(getattr(frames, table)(result), rows)
    for line in shown.splitlines():
        if line.startswith(("identity", "status", "global model")):
            assert line in fedmpi("show", str(result)).stdout
    again = fedmpi("sweep", "a.toml", "--dry-run")
    assert again.stdout.split()[1] == "done"
    judged = fedmpi("evaluate", str(result))
    assert (judged.exit_code, "it keeps no model" in judged.stderr) == (2, True)
    assert fedmpi("run", str(result), "--out", "again.h5").exit_code == 0


def test_texts_are_read_as_texts(result: Path) -> None:
    """By the analysis, and by the lines that the documentation gives for pandas alone."""
    assert set(frames.phases(result)["phase"]) >= {"train", "wait"}
    with h5py.File(result) as file:
        phases = pandas.DataFrame(file["phases"][:])
    for name in phases.select_dtypes("object"):
        phases[name] = phases[name].str.decode("ascii")
    assert set(phases["phase"]) == set(frames.phases(result)["phase"])


def test_a_small_result_is_a_small_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rounds of ten clients, without the model."""
    monkeypatch.chdir(tmp_path)
    words = ("rounds=5", "clients=10", "data.name=synthetic", "keep=none", "--out", "small.h5")
    assert fedmpi("run", *words).exit_code == 0
    assert Path("small.h5").stat().st_size < 50_000
