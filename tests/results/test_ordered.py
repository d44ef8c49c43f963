"""What is written through `Ordered` is what was written, in the order that a reader needs."""

import os
import random
from pathlib import Path

import pytest

from fedmpi.results.ordered import END, Ordered

SIZE = 600


def test_any_writes_and_reads(tmp_path: Path) -> None:
    """Against plain memory: overlapping or not, held back or passed on."""
    chance = random.Random(1)
    for number in range(50):
        path, memory = tmp_path / str(number), bytearray(SIZE)
        file = Ordered(path)
        file.write(memoryview(bytes(SIZE)))
        for _ in range(60):
            at = chance.randrange(END.stop, SIZE)
            content = chance.randbytes(chance.randrange(1, 80))[: SIZE - at]
            file.seek(at)
            assert file.write(memoryview(content)) == len(content)
            memory[at : at + len(content)] = content
            at, size = chance.randrange(SIZE), chance.randrange(1, 200)
            file.seek(at)
            assert file.read(min(size, SIZE - at)) == memory[at : at + size]
            if chance.random() < 0.1:
                file.flush()
                assert path.read_bytes() == memory
        file.seek(0, os.SEEK_END)
        assert file.tell() == file.size == SIZE
        file.drop()
        file.flush()
        file.close()


def test_the_end_comes_first_and_then_what_lies_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, write = [], os.pwrite

    def noted(handle: int, content: bytes, at: int) -> int:
        places.append(at)
        return write(handle, content, at)

    monkeypatch.setattr(os, "pwrite", noted)
    file = Ordered(tmp_path / "x")
    for at in (100, 0, 5000, 300):
        file.seek(at)
        file.write(memoryview(b"x" * 96))
    file.flush()
    assert places == [END.start, 5000, 300, 100, 0]
    places.clear()
    file.seek(100)
    file.write(memoryview(b"y"))
    file.flush()
    assert places == [100], "the file has the same end"
    file.cut()
    file.close()
    assert (tmp_path / "x").stat().st_size == 5096


def test_what_could_not_be_written_is_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Ordered(tmp_path / "x")
    file.write(memoryview(b"first"))
    monkeypatch.setattr(os, "pwrite", lambda *args: os.write(-1, b""))
    with pytest.raises(OSError, match="Bad file"):
        file.flush()
    monkeypatch.undo()
    file.drop()
    file.flush()
    file.seek(0)
    assert file.read(5) == b"first"
    assert b"first" not in (tmp_path / "x").read_bytes()
    file.close()
