"""One run, one file: what is appended can be read, whenever the writer is killed."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedmpi import config
from fedmpi.errors import BadInput, Failure, sentence
from fedmpi.results import record, tables
from fedmpi.results.record import DIVERGED, DONE, FAILED, RUNNING, Record, RecordError
from tests import PATIENCE, until

ROOM = Path(__file__).parent.parent.parent
SETTINGS = {"rounds": 3, "method": {"name": "topk", "sparsity": 0.9}, "root": None}
IDENTITY = config.identity(SETTINGS, {})
COUNTS = {
    **{"rounds": 1, "clients": 4, "phases": 7, "ranks": 2, "variants": 3},
    **{"layers": 2, "masks": 5},
}
"""Rows of a round in each table."""


def rows(t: int, validation: float = np.nan, counts: dict[str, int] = COUNTS) -> dict[str, Any]:
    """A round's tables; every value is a number of its own that follows from its place."""
    found = {}
    for name, columns in tables.OF_ROUNDS.items():
        table = tables.empty(columns, counts[name])
        for place, column in enumerate(table.dtype.names):
            if table.dtype[column].kind in "if":
                table[column] = 1000 * t + 100 * np.arange(len(table)) + place
        table["round"] = t
        found[name] = table
    found["rounds"]["validation"] = validation
    return found


def begin(path: Path, **about: Any) -> Record:
    return Record(record.begin(path), SETTINGS, IDENTITY, about, tables.TABLES)


def finished(path: Path, *validations: float, status: str = DONE) -> Path:
    """A result with as many rounds as there are accuracies."""
    file = begin(path)
    for t, validation in enumerate(validations):
        file.append(rows(t, validation))
    file.close(status)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.h5"


def test_what_is_appended_can_be_read(path: Path) -> None:
    file = begin(path)
    for t in range(3):
        file.append(rows(t, 0.5))
    file.close(DONE)
    with record.open_result(path) as found:
        assert set(found) == set(tables.TABLES)
        for name in tables.OF_ROUNDS:
            wanted = np.concatenate([rows(t, 0.5)[name] for t in range(3)])
            assert found[name].dtype == wanted.dtype
            assert found[name][:].tobytes() == wanted.tobytes()


def test_tables_say_what_their_columns_mean(path: Path) -> None:
    begin(path).close(DONE)
    with record.open_result(path) as found:
        for name, columns in tables.TABLES.items():
            meanings = json.loads(found[name].attrs["columns"])
            assert meanings == {column: text for column, (_, text) in columns.items()}
            assert list(meanings) == list(found[name].dtype.names)
            assert len(found[name]) == 0


def test_attributes(path: Path) -> None:
    file = begin(path, torch="2.0", ranks=4, hosts=["a", "b"])
    assert "finished" not in file.file.attrs
    file.close(DIVERGED, {"model_sha256": "ab"})
    with record.open_result(path) as found:
        about = dict(found.attrs)
    assert (about["format"], about["status"], about["identity"]) == (2, DIVERGED, IDENTITY)
    assert (about["torch"], about["ranks"], record.listed(about["hosts"])) == ("2.0", 4, ["a", "b"])
    assert about["model_sha256"] == "ab"
    times = [datetime.fromisoformat(about[name]) for name in ("started", "finished")]
    assert all(time.utcoffset().total_seconds() == 0 for time in times)
    assert times == sorted(times)
    assert record.settings_of(path) == SETTINGS


OTHERS = """
import sys
from pathlib import Path
from fedmpi.results import lease, record

path = Path(sys.argv[1])
record.mark_failed(path)
with record.open_result(path) as file:
    rounds = file["rounds"]["round"]
print(lease.holder(path) is not None, record.state_of(path, sys.argv[2]), *rounds)
"""
"""Another process looks at a file, and takes its run for dead."""


def test_others_can_read_a_run_under_way_but_not_fail_it(path: Path) -> None:
    def seen() -> str:
        words = [sys.executable, "-c", OTHERS, str(path), IDENTITY]
        done = subprocess.run(words, cwd=ROOM, timeout=PATIENCE, capture_output=True, text=True)
        return done.stdout.strip() or done.stderr

    file = begin(path)
    file.append(rows(0))
    file.append(rows(1))
    assert seen() == "True running 0 1"
    file.append(rows(2))
    file.file.close()
    file.held.release()
    assert seen() == "False failed 0 1 2"


def test_a_finished_file_is_compressed_and_holds_the_same(path: Path) -> None:
    """Before the end nothing is, so that an append changes no byte of an earlier round."""
    file = begin(path)
    for t in range(3):
        file.append(rows(t, 0.5))
    with record.open_result(path) as found:
        assert all(found[name].compression is None for name in tables.TABLES)
        before = {name: found[name][:].tobytes() for name in tables.TABLES}
    large = path.stat().st_size
    kept = {"model": {"b.weight": np.arange(6, dtype="f4").reshape(2, 3), "a": np.zeros(0)}}
    file.close(DONE, groups=kept)
    with record.open_result(path) as found:
        assert all(found[name].compression == "gzip" for name in tables.TABLES)
        assert {name: found[name][:].tobytes() for name in tables.TABLES} == before
        assert list(found["model"]) == ["b.weight", "a"]
        np.testing.assert_array_equal(found["model"]["b.weight"][:], kept["model"]["b.weight"])
        assert json.loads(found["rounds"].attrs["columns"])["loss"]
    assert path.stat().st_size < large / 8
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_more_rows_than_a_compressed_chunk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "SLAB", 3)
    finished(path, 0.1, 0.2, 0.3)
    _, found = record.content(path)
    for name in tables.OF_ROUNDS:
        wanted = np.concatenate([rows(t, (t + 1) / 10)[name] for t in range(3)])
        assert found[name].tobytes() == wanted.tobytes()


def test_a_model_that_the_disk_has_no_room_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rounds are there, and what is missing is said; tables alone may stay uncompressed."""

    def refuses(self: Path, *modes: str) -> Any:
        if self.name.endswith(".part") and modes == ("wb",):
            raise OSError(28, "")
        return opened(self, *modes)

    opened = Path.open
    for groups, said in (({"model": {"w": np.zeros(9)}}, True), (None, False)):
        file = begin(path)
        file.append(rows(0))
        monkeypatch.setattr(Path, "open", refuses)
        if said:
            with pytest.raises(
                Failure, match=r"no space .* all rounds are recorded, but the model"
            ):
                file.close(DONE, groups=groups)
        else:
            file.close(DONE)
        monkeypatch.undo()
        assert record.state_of(path, IDENTITY) == DONE
        with record.open_result(path) as found:
            assert found["rounds"]["round"].tolist() == [0]
            assert "model" not in found
        assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_a_result_of_a_later_version_is_refused(path: Path) -> None:
    finished(path, 0.1)
    with h5py.File(path, "r+", locking=False) as file:
        file.attrs["format"] = record.FORMAT + 1
    for read in (record.content, record.settings_of, lambda path: record.state_of(path, IDENTITY)):
        with pytest.raises(RecordError, match=r"of a later version of fedmpi, of format 3; wanted"):
            read(path)


def test_rounds_of_unequal_length(path: Path) -> None:
    """The agreement has all clients, later rounds a sample; and more rows than a chunk."""
    counts = [COUNTS | {"clients": number} for number in (5, 0, record.CHUNK + 3, 1)]
    file = begin(path)
    for t, count in enumerate(counts, -1):
        file.append(rows(t, counts=count))
    file.close(DONE)
    with record.open_result(path) as found:
        wanted = np.repeat([-1, 0, 1, 2], [count["clients"] for count in counts])
        np.testing.assert_array_equal(found["clients"]["round"], wanted)
        assert found["rounds"]["round"].tolist() == [-1, 0, 1, 2]


@pytest.mark.parametrize(
    ("validations", "best"),
    [
        ([0.1, 0.5, 0.3], 1),
        ([0.5, 0.5, 0.5], 0),
        ([0.0, np.nan, 0.1], 2),
        ([np.nan, 0.2, np.nan], 1),
        ([np.nan, np.nan], None),
        ([], None),
    ],
)
def test_best_round_is_the_first_with_the_best_validation(
    path: Path, validations: list[float], best: int | None
) -> None:
    finished(path, *validations)
    with record.open_result(path) as found:
        assert found.attrs.get("best_round") == best


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.rename(path.with_name("x.h5"))])
def test_a_file_that_goes_while_it_is_written(path: Path, change: Any) -> None:
    """It is said, and not written to nowhere."""
    for last in (lambda file: file.append(rows(1)), lambda file: file.close(DONE)):
        file = begin(path)
        file.append(rows(0))
        change(path)
        with pytest.raises(Failure, match="removed or replaced while this process wrote it"):
            last(file)
        file.fail()
        assert not path.exists()


def test_a_new_run_replaces_the_file(path: Path) -> None:
    finished(path, 0.1, 0.2, status=FAILED)
    begin(path).close(DONE)
    assert record.state_of(path, IDENTITY) == DONE
    with record.open_result(path) as found:
        assert len(found["rounds"]) == 0
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_folders_are_made(tmp_path: Path) -> None:
    finished(tmp_path / "a" / "b" / "run.h5", 0.1)
    assert record.state_of(tmp_path / "a" / "b" / "run.h5", IDENTITY) == DONE


def test_file_of(tmp_path: Path) -> None:
    for name in ("x.h5", "x.hdf5", "X.H5", "lr=0.1.Hdf5"):
        assert record.file_of(tmp_path / name, "topk", "ab") == tmp_path / name
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "file").touch()
    for name in ("results", "v1.5", "h5", ".h5", "x.h5.part", "folder.h5", "file"):
        assert record.file_of(tmp_path / name, "topk", "ab") == tmp_path / name / "topk-ab.h5"


def test_what_is_read_as_a_result(tmp_path: Path) -> None:
    """By its first bytes, and by its name, so that a result of no bytes is not read as settings."""
    for name in ("a.toml", "noname", "x.h5"):
        with h5py.File(tmp_path / name, "w"):
            pass
        assert record.is_result(tmp_path / name)
    for name, wanted in (("empty.h5", True), ("EMPTY.HDF5", True), ("empty.toml", False)):
        (tmp_path / name).touch()
        assert record.is_result(tmp_path / name) == wanted
    assert not record.is_result(tmp_path / "not here.toml")
    assert record.is_result(tmp_path / "not here.h5")


@pytest.mark.parametrize("status", [RUNNING, DONE, FAILED, DIVERGED])
def test_state_of(path: Path, status: str) -> None:
    assert record.state_of(path, IDENTITY) is None
    finished(path, 0.1, status=status)
    assert record.state_of(path, IDENTITY) == status
    assert (status in record.FINISHED) == (status in (DONE, DIVERGED))


def test_state_of_another_run(path: Path) -> None:
    finished(path, 0.1)
    with pytest.raises(RecordError, match=f"holds the run {IDENTITY}; wanted the run fedcba"):
        record.state_of(path, "fedcba")


def not_hdf5(path: Path) -> None:
    path.write_text("lr = 0.1")


def empty(path: Path) -> None:
    path.touch()


def foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["rounds"] = [1, 2]


def cut_short(path: Path) -> None:
    finished(path, 0.1)
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize("make", [not_hdf5, empty, foreign, cut_short, Path.mkdir])
def test_what_is_no_result(path: Path, make: Any) -> None:
    make(path)
    before = path.read_bytes() if path.is_file() else None
    for read in (lambda: record.state_of(path, IDENTITY), lambda: record.settings_of(path)):
        with pytest.raises(RecordError, match=path.name):
            read()
    assert (path.read_bytes() if path.is_file() else None) == before


def test_errors_are_bad_input(path: Path) -> None:
    assert issubclass(RecordError, BadInput)
    with pytest.raises(RecordError, match=r"run\.h5: no such file"):
        record.settings_of(path)


def test_a_folder_that_is_a_file(path: Path) -> None:
    path.touch()
    for inside in (path / "run.h5", path / "deeper" / "run.h5"):
        with pytest.raises(BadInput, match=r"run\.h5: a .* is a file|run\.h5: what has that name"):
            record.begin(inside)


@pytest.mark.parametrize(
    ("before", "after"), [(RUNNING, FAILED), (DONE, DONE), (DIVERGED, DIVERGED), (FAILED, FAILED)]
)
def test_mark_failed(path: Path, before: str, after: str) -> None:
    record.mark_failed(path)
    assert not path.exists()
    finished(path, 0.1, 0.2, status=before)
    record.mark_failed(path)
    assert record.state_of(path, IDENTITY) == after
    with record.open_result(path) as found:
        assert len(found["rounds"]) == 2


# Stopped and killed: `WRITER` makes one result after the other, is stopped at any moment, looked
# at, and goes on; a process that was stopped has written what a killed one would have. How far it
# is, as far as it knows itself, is in a file beside each result, written past all buffers. It is
# stopped again when it has got further: that takes as long as it takes.

LENGTH = 80
"""Rounds of a result of `WRITER`."""
STOPS = 250
"""How often it is stopped: more often than it says something of one result."""
WRITER = """
import itertools, os, sys
from pathlib import Path
from tests.results.test_record import LENGTH, begin, rows

for number in itertools.count():
    path = Path(sys.argv[1]) / f"{number}.h5"
    said = os.open(path.with_suffix(".txt"), os.O_CREAT | os.O_WRONLY)
    file = begin(path)
    os.write(said, b"begun ")
    for t in range(LENGTH):
        file.append(rows(t, t / LENGTH))
        os.write(said, b"round ")
    file.close("done")
    os.write(said, b"done ")
    os.close(said)
"""


def check_whole(path: Path, everything: dict[str, np.ndarray]) -> None:
    """What is finished is there, to the bit, and can be read."""
    said = path.with_suffix(".txt").read_text().split()
    done = said.count("round")
    if not path.exists():
        assert not said
        return
    state = record.state_of(path, IDENTITY)
    assert state == DONE if "done" in said else state == RUNNING or done == LENGTH
    with record.open_result(path) as found:
        held = {name: found[name][:] for name in tables.OF_ROUNDS}
        best = found.attrs.get("best_round", -1)
    listed = len(held["rounds"])
    assert listed - done in (0, 1)
    assert listed - best in (1, 2)
    for name, count in COUNTS.items():
        whole = listed * count
        assert held[name][:whole].tobytes() == everything[name][:whole].tobytes(), name
        assert len(held[name]) in ((whole,) if name == "rounds" else (whole, whole + count))


def test_a_writer_that_is_stopped_or_killed_leaves_every_round_that_it_finished(
    tmp_path: Path,
) -> None:
    every_round = [rows(t, t / LENGTH) for t in range(LENGTH)]
    everything = {name: np.concatenate([part[name] for part in every_round]) for name in COUNTS}
    moments, seen = random.Random(1), [(-1, 0)]

    def announced() -> tuple[int, int]:
        """The last result that was begun, and how much was said of it."""
        paths = {int(path.stem): path for path in tmp_path.glob("*.txt")}
        last = max(paths, default=-1)
        return last, paths[last].stat().st_size if paths else 0

    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOM) as writer:
        try:
            for _ in range(STOPS):
                assert until(lambda: announced() > seen[-1] or writer.poll() is not None)
                assert writer.poll() is None
                time.sleep(moments.uniform(0, 0.003))
                writer.send_signal(signal.SIGSTOP)
                os.waitpid(writer.pid, os.WUNTRACED)
                seen.append(announced())
                check_whole(tmp_path / f"{seen[-1][0]}.h5", everything)
                writer.send_signal(signal.SIGCONT)
        finally:
            writer.kill()
    assert seen[-1][0] > 1, "results were finished, and others begun"
    path = max(tmp_path.glob("*.h5"), key=lambda path: int(path.stem))
    check_whole(path, everything)
    state = record.state_of(path, IDENTITY)
    record.mark_failed(path)
    assert record.state_of(path, IDENTITY) == (DONE if state == DONE else FAILED)


def test_rounds_can_be_read_after_each_write_to_the_disk(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever of a round had not been written yet: neither headers nor the end come too early."""
    finished, lengths, copy, write = 0, [], tmp_path / "copy.h5", os.pwrite

    def look(handle: int, content: Any, at: int) -> int:
        size = write(handle, content, at)
        if path.exists():
            shutil.copy(path, copy)
            with record.open_result(copy) as found:
                held = {name: record.rows(found, name) for name in tables.OF_ROUNDS}
            lengths.append(len(held["rounds"]))
            assert lengths[-1] - finished in (0, 1)
            for name, count in COUNTS.items():
                wanted = [rows(t, t / LENGTH)[name] for t in range(lengths[-1])]
                assert held[name][: lengths[-1] * count].tobytes() == b"".join(wanted)
        return size

    monkeypatch.setattr(record, "CHUNK", 8)
    monkeypatch.setattr(os, "pwrite", look)
    file = begin(path)
    for finished in range(30):
        file.append(rows(finished, finished / LENGTH))
    finished += 1
    file.close(FAILED, {"why": "because " * 1000})
    assert set(lengths) == set(range(31))
    assert len(lengths) > 300


class Deadly(dict[str, np.ndarray]):
    """Tables of which one kills whoever looks at it."""

    def __getitem__(self, name: str) -> np.ndarray:
        if name == "rounds":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(name)


def test_killed_between_the_tables_of_a_round(path: Path) -> None:
    """Other tables may then have rows of a round that `rounds` does not list; it comes last."""
    program = (
        "import sys; from pathlib import Path\n"
        "from tests.results.test_record import Deadly, begin, rows\n"
        "file = begin(Path(sys.argv[1])); file.append(rows(0)); file.append(Deadly(rows(1)))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOM, timeout=PATIENCE)
    assert done.returncode == -signal.SIGKILL
    with record.open_result(path) as found:
        assert found["rounds"]["round"].tolist() == [0]
        assert found["clients"]["round"].tolist() == [0] * 4 + [1] * 4
        assert found["ranks"]["round"].tolist() == [0] * 2 + [1] * 2
        assert found["phases"][:7].tobytes() == rows(0)["phases"].tobytes()


WIDE = COUNTS | {"clients": 700}
"""So many rows that every second round opens another chunk."""
FULL = """
import os, shutil, sys
from pathlib import Path
from fedmpi.errors import BadInput, Failure, sentence
from tests.results.test_record import MADE, begin, limit, rows, WIDE

every_round = [rows(t, t / MADE, WIDE) for t in range(MADE)]
for size in map(int, sys.argv[2:]):
    path = Path(sys.argv[1]) / f"{size}.h5"
    (found, say), child = os.pipe(), os.fork()
    if child == 0:
        done, said = 0, ""
        try:
            limit(path, size)
            file = begin(path)
            try:
                for part in every_round:
                    file.append(part)
                    done += 1
                file.close("done")
            except BaseException:
                file.fail()
                raise
        except (BadInput, Failure) as error:
            said = str(error)
        os.write(say, f"{size} {done} {said}\\n".encode())
        sys.exit(0)  # as a run ends: HDF5 closes what is open
    os.close(say)
    code = os.waitpid(child, 0)[1]
    print(os.read(found, 4096).decode().strip() or f"{size} died of {code}", code, sep="|")
    os.close(found)
    if path.exists():
        shutil.move(path, path.parent.parent)
    assert os.listdir(path.parent) == []
"""
MADE = 10
"""Rounds that it makes of each result."""


def limit(path: Path, size: int) -> None:
    """Gives this process room for so many bytes: on a disk of its own, or by `ulimit -f`."""
    if path.parent.is_mount():
        words = ["mount", "-o", f"remount,size={size}", str(path.parent)]
        subprocess.run(words, check=True)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def check_full(folder: Path, sizes: list[int], words: str) -> None:
    """Results on a disk with so much room have every round that was finished, and say so."""
    every_round = [rows(t, t / MADE, WIDE) for t in range(MADE)]
    everything = {name: np.concatenate([part[name] for part in every_round]) for name in COUNTS}
    program = [sys.executable, "-c", FULL, str(folder), *map(str, sizes)]
    done = subprocess.run(program, cwd=ROOM, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == len(sizes)
    ends = set()
    for size, line in zip(sizes, lines, strict=True):
        path, kept = folder / f"{size}.h5", folder.parent / f"{size}.h5"
        said, _, code = line.partition("|")
        assert code == "0", line
        rounds = int(said.split()[1])
        is_whole = not said.split(maxsplit=2)[2:]
        assert is_whole or f"{path}: {words}" in said, line
        ends.add((is_whole, rounds > 0))
        if not kept.exists():
            assert rounds == 0 and not is_whole
            continue
        with record.open_result(kept) as found:
            assert found.attrs["status"] == (DONE if is_whole else FAILED)
            for name, count in WIDE.items():
                held = found[name][:]
                assert len(held) == rounds * count
                assert held.tobytes() == everything[name][: rounds * count].tobytes()
    assert ends == {(True, True), (False, True), (False, False)}


def test_files_that_may_not_become_large(tmp_path: Path) -> None:
    """By `ulimit -f`, at any place of the file."""
    sizes = random.Random(1).sample(range(3_500_000), 57)
    folder = tmp_path / "disk"
    folder.mkdir()
    check_full(folder, [*sizes, 0, 1, 4_000_000], "larger than a file may be here")


def test_a_disk_that_becomes_full(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("needs the right to mount a disk")
    try:
        sizes = random.Random(2).sample(range(1, 850), 12)
        check_full(folder, [4096 * size for size in (*sizes, 1, 1000)], "no space is left")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


BROKEN = """
import os, sys
from pathlib import Path
from fedmpi.errors import Failure
from tests.results.test_record import begin, rows

file = begin(Path(sys.argv[1]))
for t in range(5):
    file.append(rows(t))
os.dup2(os.open("/dev/full", os.O_RDWR), file.store.handle)
try:
    file.append(rows(5))
except Failure as error:
    print(error)
file.fail()
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_refuses_what_it_promised(path: Path) -> None:
    """HDF5 meets the error in the middle of a round; the process lives, and the file is whole."""
    words = [sys.executable, "-c", BROKEN, str(path)]
    done = subprocess.run(words, cwd=ROOM, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{path}: no space is left on the disk; make room or choose")
    with record.open_result(path) as found:
        assert found.attrs["status"] == FAILED
        assert found["rounds"]["round"].tolist() == [0, 1, 2, 3, 4]
        assert found["clients"][:20].tobytes() == b"".join(
            rows(t)["clients"].tobytes() for t in range(5)
        )
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_nothing_is_written_without_the_lease(path: Path) -> None:
    """Somebody took it over and wrote a result; what is there stays as it is."""
    file = begin(path)
    file.append(rows(0))
    path.with_name("run.h5.lock").unlink()
    path.unlink()
    finished(path, 0.1, 0.2, 0.3)
    before = path.read_bytes()
    for act in (lambda: file.append(rows(1)), lambda: file.close(DONE)):
        with pytest.raises(Failure, match=r"its lock run\.h5\.lock is gone"):
            act()
    file.fail()
    assert path.read_bytes() == before
    assert not file.file


def test_the_file_takes_no_more_room_than_it_needs(path: Path) -> None:
    """What was reserved for rounds that did not come is given back."""
    finished(path, 0.1)
    with h5py.File(path, "r+", locking=False) as found:
        needed = found.id.get_filesize()
    before = path.stat()
    assert before.st_size == needed


ODD = ["", "a\0b", "\ud800x", "\udcff", "ä" * 40_000, "x" * 3_000_000, -(2**63) - 1, 2**70, 2**31]


@pytest.mark.parametrize("value", [*ODD, None, b"\xff", float("nan"), np.float32(0.5), np.int64(7)])
def test_every_value_can_be_an_attribute(path: Path, value: Any) -> None:
    begin(path, odd=value, name="x").close(DONE, {"late": value})
    about, _ = record.content(path)
    for name in ("odd", "late"):
        if isinstance(value, float | np.generic):
            np.testing.assert_equal(about[name], value)
        elif isinstance(value, int) and abs(value) < 2**63:
            assert about[name] == value
        else:
            escaped = str(value).encode("utf-8", "backslashreplace").decode()
            assert about[name] == escaped.replace("\0", "\\0")
    assert about["name"] == "x"


def test_the_hosts_of_many_ranks(path: Path) -> None:
    """An array of texts may take 64 KiB: 4,092 ranks."""
    hosts = [f"node{rank // 64:05}" for rank in range(100_000)]
    begin(path, hosts=hosts).close(DONE)
    about, _ = record.content(path)
    assert record.listed(about["hosts"]) == hosts
    assert record.listed(np.array(["a", "b"], object)) == ["a", "b"]


LOCKED = """
import fcntl, sys
from pathlib import Path
from analysis import frames
from fedmpi.errors import BadInput
from fedmpi.results import record

path = Path(sys.argv[1])
with path.open("rb+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        record.content(path)
    except BadInput as error:
        print(error)
    frames.find(path)
"""


def test_a_lock_of_hdf5_is_told_from_a_job_s(path: Path) -> None:
    """It is asked for only if the environment insists."""
    finished(path, 0.1)
    words, mend = [sys.executable, "-c", LOCKED, str(path)], "set HDF5_USE_FILE_LOCKING=FALSE"
    held = f"{path}: another program holds HDF5's lock of it; {mend}: results have"
    for value, said in (("FALSE", ""), ("TRUE", held)):
        variables = {**os.environ, "HDF5_USE_FILE_LOCKING": value}
        done = subprocess.run(
            words, cwd=ROOM, env=variables, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0
        assert done.stdout.startswith(said) and bool(done.stdout) == bool(said)
        assert (mend in done.stderr) == bool(said), "the analysis, too"


def test_a_file_system_without_locks_of_hdf5() -> None:
    raised = OSError(37, "Unable to open file (unable to lock file, errno = 37, error message = x)")
    assert sentence("a.h5", raised).startswith("a.h5: HDF5 cannot lock files here; set HDF5_USE_")
    assert "no locks" in sentence("a.h5", OSError(37, ""))
