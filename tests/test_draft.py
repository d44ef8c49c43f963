"""Files that are replaced as a whole, or not at all."""

import errno
import os
import re
import resource
from contextlib import suppress
from pathlib import Path

import pytest

from fedmpi.draft import draft, try_out
from fedmpi.errors import REASONS, BadInput, Failure, number, sentence, told

ANY = re.compile(b"")
"""Of a kind that may begin in any way."""
PLACES = {
    "file/a": "a part of the path is a file, no folder|what has that name is no folder",
    "n" * 255: "the name is too long",
    "link": "no such file or folder, or a link that leads nowhere",
    "folder": "it is no plain file",
    "pipe": "it is no plain file",
    "/dev/null": "it is no plain file",
    "/proc/a": "no such file or folder",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    Path("link").symlink_to("nowhere/a")
    os.mkfifo("pipe")
    return tmp_path


@pytest.mark.parametrize("place", PLACES)
def test_places_that_take_no_file(place: str, here: Path) -> None:
    """It is said with the option that names another; and nothing changes."""
    before = sorted(here.iterdir())
    with pytest.raises(BadInput, match=PLACES[place]) as caught:
        try_out(Path(place), "--plot", ANY)
    assert "name another file with --plot" in str(caught.value)
    with pytest.raises(BadInput, match=PLACES[place]), draft(Path(place), "--plot", ANY):
        pytest.fail("it was begun")
    assert sorted(here.iterdir()) == before


def test_a_file_is_replaced_when_it_is_whole(here: Path) -> None:
    Path("alias").symlink_to("file")
    for path in (Path("file"), Path("new/file"), Path("alias")):
        try_out(path, "--out", ANY)
        with draft(path, "--out", ANY) as file:
            file.write(b"half")
            assert not path.exists() or path.read_bytes() == b"" or path.name == "alias"
        assert path.read_bytes() == b"half"
    assert Path("alias").is_symlink() and Path("file").read_bytes() == b"half"


def test_a_file_of_another_kind_is_not_replaced(here: Path) -> None:
    """An empty one is of any kind."""
    kind = re.compile(rb"kind 1\n.{2}end", re.DOTALL)
    Path("thesis").write_text("kind 1\n\n\nbegin")
    before = sorted(here.iterdir())
    said = "thesis: holds something else than --out writes, and is not replaced; remove it or name"
    with pytest.raises(BadInput, match=said):
        try_out(Path("thesis"), "--out", kind)
    with pytest.raises(BadInput, match=said), draft(Path("thesis"), "--out", kind):
        pytest.fail("it was begun")
    assert Path("thesis").read_text() == "kind 1\n\n\nbegin"
    assert sorted(here.iterdir()) == before
    for text in (b"kind 1\n\n\nend", b"kind 1\nabend", b""):
        Path("file").write_bytes(text)
        with draft(Path("file"), "--out", kind) as file:
            file.write(b"kind 1\n")
        assert Path("file").read_bytes() == b"kind 1\n"


def test_what_is_cut_off_leaves_nothing(here: Path) -> None:
    Path("file").write_text("before")
    for fault in (KeyboardInterrupt, ValueError):
        with suppress(fault), draft(Path("file"), "--out", ANY) as file:
            file.write(b"half")
            raise fault
    assert Path("file").read_text() == "before"
    assert sorted(path.name for path in here.iterdir()) == ["file", "folder", "link", "pipe"]


def test_a_full_disk(here: Path) -> None:
    """Also if the last bytes are written when the file is closed."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        words = "file: larger than a file may be here"
        with pytest.raises(BadInput, match=words), draft(Path("file"), "--out", ANY) as file:
            file.write(bytes(1001))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert Path("file").read_bytes() == b""
    assert sorted(path.name for path in here.iterdir()) == ["file", "folder", "link", "pipe"]


def test_sentences() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert sentence("a", full) == "a: no space is left on the disk; make room"
    assert sentence("a", full, "go away") == (
        "a: no space is left on the disk; make room or go away"
    )
    text = "can't write (errno = 122, error message = 'Disk quota exceeded', buf = 0x1)"
    assert number(RuntimeError(text)) == errno.EDQUOT
    assert sentence("a", RuntimeError(text)).startswith("a: your disk quota is used up; ")
    assert sentence("a", OSError("what\n else")) == "a: what else"
    assert sentence("a", OSError(errno.EXDEV, "")) == "a: invalid cross-device link"
    assert all(os.strerror(code) for code in REASONS)


def test_only_what_the_system_refuses_is_told() -> None:
    for kind in (BadInput, Failure):
        with pytest.raises(kind, match="a: the file system is read-only"), told("a", "", kind):
            raise OSError(errno.EROFS, "")
    for defect in (RuntimeError("a defect"), KeyError("x"), Failure("said already")):
        with pytest.raises(type(defect)), told("a"):
            raise defect
