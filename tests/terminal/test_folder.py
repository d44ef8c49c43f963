"""A folder's results, a line each."""

import errno
import os
import re
import shutil
from pathlib import Path
from typing import Any

import h5py
import pytest

from fedmpi.results import record
from fedmpi.results.record import RecordError
from fedmpi.terminal import folder
from tests.terminal.test_show import write

pytestmark = pytest.mark.usefixtures("here")


def shown(capsys: pytest.CaptureFixture[str], path: str = "runs") -> list[str]:
    folder.show_folder(Path(path))
    return capsys.readouterr().out.splitlines()


def test_a_line_for_each_result(capsys: pytest.CaptureFixture[str]) -> None:
    """At any depth, finished or not, by any of the usual names; nothing else is one."""
    for name, rounds, status, method in (
        ("b.h5", 20, record.DONE, "fedavg"),
        ("a.hdf5", 3, record.RUNNING, "topk"),
        ("lr=0.1/c.H5", 0, record.FAILED, "fedavg"),
    ):
        path = Path("runs") / name
        write(path, rounds, status, once=True, setup=(f"method.name={method}",))
    Path("runs/d.h5.part").touch()
    Path("runs/d.h5").mkdir()
    write(Path("runs/d.h5/e.h5"), 1)
    head, *lines = (re.split(r" {2,}", line.strip()) for line in shown(capsys)[:5])
    assert head == list(folder.HEADS)
    # With the agreement 15,000 bytes a round.
    assert [line[:5] + line[6:] for line in lines] == [
        ["topk", "running", "3 of 20", "0.120", "60 kB", "a.hdf5"],
        ["fedavg", "done", "20 of 20", "0.290", "315 kB", "b.h5"],
        ["fedavg", "done", "1 of 20", "0.100", "15 kB", "d.h5/e.h5"],
        ["fedavg", "failed", "0 of 20", "-", "15 kB", "lr=0.1/c.H5"],
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", line[5]) for line in lines)


def test_long_names_are_neither_cut_nor_folded(capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{'x' * 200}.h5"
    write(Path("runs") / name, 1)
    assert shown(capsys)[1].rstrip().endswith(f" {name}")


def test_damaged_files_are_named_and_hide_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    whole = write(Path("runs/whole.h5"), 1)
    Path("runs/empty.h5").touch()
    Path("runs/cut.h5").write_bytes(whole.read_bytes()[:3000])
    with h5py.File("runs/other.h5", "w") as file:
        file["x"] = 1
    for name, change in (("json", "{"), ("tree", "[]"), ("name", "{}")):
        shutil.copy(whole, path := f"runs/{name}.h5")
        with h5py.File(path, "r+") as file:
            file.attrs["settings"] = change
    os.symlink("nowhere", "runs/link.h5")
    lines = shown(capsys)
    assert lines[1].split()[-1] == "whole.h5"
    assert lines[2] == ""
    damaged = [line.split()[1] for line in lines if line.startswith(("damaged: ", "unr"))]
    names = ("cut", "empty", "json", "link", "name", "other", "tree")
    assert damaged == [f"{name}.h5:" for name in names]


def test_what_cannot_be_read_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file or a folder of somebody else is neither damaged nor passed over."""
    write(Path("runs/whole.h5"), 1)
    write(Path("runs/mine.h5"), 1)
    Path("runs/theirs").mkdir()
    scan, is_file = os.scandir, Path.is_file

    def scandir(place: str) -> Any:
        if str(place).endswith("theirs"):
            raise PermissionError(errno.EACCES, "Permission denied", place)
        return scan(place)

    def refused(path: Path) -> bool:
        if path.name == "mine.h5":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(Path, "is_file", refused)
    lines = shown(capsys)
    assert "whole.h5" in lines[1]
    mend = "permission denied; have its owner allow it"
    assert lines[-2:] == [f"unreadable: theirs: {mend}", f"unreadable: mine.h5: {mend}"]


def test_nothing_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs").mkdir()
    with pytest.raises(RecordError, match=r"runs: no results in this folder; wanted files \*\.h5"):
        shown(capsys)
