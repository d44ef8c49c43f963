"""Checkpoints as files: written, read on other ranks, damaged, kept and removed."""

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedmpi.errors import Failure
from fedmpi.results import checkpoint
from fedmpi.results.checkpoint import Broken, Content, Manifest, State

WHOSE = Manifest(0, "0123456789abcdef", {"methods.fedavg": "ab"}, "cd")
ARRAYS = {
    "w": np.arange(7, dtype="f4"),
    "version": np.array(3),
    "mask": np.array([True] * 3 + [False] * 8),
    "empty": np.zeros(0, "f8"),
    "grid": np.arange(6, dtype="i8").reshape(2, 3),
    "bytes": np.arange(200, dtype="u1"),
}


def states(ranks: int) -> list[State]:
    """What so many ranks hold; client k is on rank k % ranks, and client 5 has nothing."""
    found = []
    for rank in range(ranks):
        mine = [client for client in (7, 3, 0, 2) if client % ranks == rank]
        vectors = {
            "residual": {client: np.full(5, client + 0.5, "f4") for client in mine},
            "mask": {client: np.arange(21) % (client + 2) == 0 for client in mine},
        }
        found.append(State(ARRAYS if rank == 0 else {"w": np.zeros(1)}, vectors))
    return found


def copied(state: State) -> Iterator[memoryview]:
    """The bytes of a rank's file, through memory that has no room for all of them."""
    return Content(state).copied(checkpoint.room(checkpoint.BLOCK))


def written(path: Path, t: int, ranks: int = 2) -> Path:
    """Writes a checkpoint before round t, and returns its folder."""
    pieces = [
        checkpoint.write(checkpoint.place(path, t), k, copied(s))
        for k, s in enumerate(states(ranks))
    ]
    sizes, hashes = (size for size, _ in pieces), (digest.hex() for _, digest in pieces)
    checkpoint.commit(path, replace(WHOSE, round=t, sizes=tuple(sizes), hashes=tuple(hashes)))
    return checkpoint.place(path, t)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_any_number_of_ranks_reads_what_another_number_wrote(tmp_path: Path, ranks: int) -> None:
    folder = written(tmp_path / "x.h5", 12, ranks)
    for clients in ({0, 7}, {2, 3, 5}, set()):
        found = checkpoint.read(folder, ranks, lambda _, client, some=clients: client in some)
        assert found.arrays.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(found.arrays[name], array)
            assert found.arrays[name].dtype == array.dtype
        assert found.vectors.keys() == {"residual", "mask"}
        for name, vectors in found.vectors.items():
            assert vectors.keys() == clients - {5}
            for client, vector in vectors.items():
                wanted = states(1)[0].vectors[name][client]
                np.testing.assert_array_equal(vector, wanted)
                assert vector.dtype == wanted.dtype


@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("piece", [1, 2, 4])
def test_a_copy_has_the_bytes_of_what_it_copies(
    blocks: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And keeps them when that changes, if there is room for all."""
    monkeypatch.setattr(checkpoint, "PIECE", piece * checkpoint.BLOCK)
    w = np.arange(2100.0)
    content = Content(State(ARRAYS | {"w": w}, states(1)[0].vectors))
    before = b"".join(content)
    assert len(before) == content.size == 5 * checkpoint.BLOCK
    room = checkpoint.room(blocks * checkpoint.BLOCK)
    found = []
    for one in content.copied(room):
        assert one.nbytes <= piece * checkpoint.BLOCK
        found.append(bytes(one))
    assert b"".join(found) == before
    kept = [*content.copied(room)]
    w += 1
    assert (b"".join(kept) == before) == (blocks >= 5)
    assert b"".join(content) != before


def test_what_is_written_lies_as_devices_want_it() -> None:
    for size in (1, 3, 1000):
        room = checkpoint.room(size * checkpoint.BLOCK)
        assert (room.ctypes.data % checkpoint.BLOCK, len(room)) == (0, size * checkpoint.BLOCK)


class Device:
    """In place of `os.write`: what it does with a file that is written past the cache."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, block: int, most: int) -> None:
        self.write, self.block, self.most = os.write, block, most
        self.direct: list[bool] = []
        monkeypatch.setattr(checkpoint.os, "write", self)

    def __call__(self, handle: int, content: memoryview) -> int:
        is_direct = bool(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT)
        self.direct.append(is_direct)
        if is_direct and len(content) % self.block:
            raise OSError(errno.EINVAL, "Invalid argument")
        return self.write(handle, content[: self.most])


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="only Linux writes past its cache")
@pytest.mark.parametrize(
    ("block", "most"), [(1, 1 << 30), (1 << 16, 1 << 30), (4096, 5000), (4096, 4096)]
)
def test_what_a_device_cannot_write_directly_goes_through_the_cache(
    block: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Larger blocks than ours, and writes that are done in part."""
    state = State({"w": np.arange(5000.0)})
    content = Content(state)
    wanted = b"".join(content)
    device = Device(monkeypatch, block, most)
    size, _ = checkpoint.write(tmp_path, 0, content.copied(checkpoint.room(content.size)))
    assert checkpoint.file_of(tmp_path, 0).read_bytes() == wanted
    assert size == len(wanted)
    if block == 1 << 16 or most == 5000:
        assert not device.direct[-1], "it tried no further"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_what_the_system_refuses_to_write_is_a_failure(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int, content: memoryview) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(checkpoint.os, "write", refuse)
    with pytest.raises(Failure, match=str(tmp_path)):
        checkpoint.write(tmp_path, 0, copied(states(1)[0]))


def test_what_was_written_is_verified(tmp_path: Path) -> None:
    folder = written(tmp_path / "x.h5", 3)
    manifest = checkpoint.manifest_of(folder)
    assert manifest.round == 3
    assert manifest.sizes == tuple(checkpoint.file_of(folder, k).stat().st_size for k in (0, 1))
    for rank in (0, 1):
        checkpoint.verify(folder, manifest, rank)


@pytest.mark.parametrize("place", [0, 8, 100, -1])
def test_a_changed_byte_is_found(tmp_path: Path, place: int) -> None:
    folder = written(tmp_path / "x.h5", 3)
    file = checkpoint.file_of(folder, 1)
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(Broken, match=r"content of rank-00001\.state has changed"):
        checkpoint.verify(folder, checkpoint.manifest_of(folder), 1)


def test_a_file_that_is_cut_off_or_gone_is_found(tmp_path: Path) -> None:
    folder = written(tmp_path / "x.h5", 3)
    file, manifest = checkpoint.file_of(folder, 0), checkpoint.manifest_of(folder)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(Broken, match="bytes of"):
        checkpoint.verify(folder, manifest, 0)
    file.unlink()
    with pytest.raises(Broken, match="cannot be read"):
        checkpoint.verify(folder, manifest, 0)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 2}', '{"format": 3}', "\x00\xff", '{"format": 2, "x": 1}']
)
def test_a_damaged_manifest_is_none(tmp_path: Path, text: str) -> None:
    folder = written(tmp_path / "x.h5", 3)
    (folder / checkpoint.MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(Broken):
        checkpoint.manifest_of(folder)


def test_a_manifest_of_another_round_is_none(tmp_path: Path) -> None:
    folder = written(tmp_path / "x.h5", 3)
    file = folder / checkpoint.MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | {"round": 4}))
    with pytest.raises(Broken, match="otherwise than its round"):
        checkpoint.manifest_of(folder)


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    for t in (2, 4, 10):
        written(path, t)
    half = checkpoint.place(path, 11)
    checkpoint.write(half, 0, copied(states(1)[0]))
    assert [folder.name for folder in checkpoint.there(path)] == ["round-000010", "round-000004"]
    written(path, 12)
    names = {folder.name for folder in checkpoint.folder_of(path).iterdir()}
    assert names == {"round-000012", "round-000010"}, "what is not whole is removed, too"
    checkpoint.forget(checkpoint.place(path, 12))
    assert [folder.name for folder in checkpoint.there(path)] == ["round-000010"]
    checkpoint.remove(path)
    assert list(tmp_path.iterdir()) == []
    checkpoint.remove(path)


def test_the_manifest_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without every file there is none, and those before stay."""
    path = tmp_path / "x.h5"
    monkeypatch.setattr(checkpoint, "SIGHT", 0.05)
    for t in (2, 4):
        written(path, t)
    pieces = [checkpoint.write(checkpoint.place(path, 6), 0, copied(states(2)[0]))] * 2
    sizes, hashes = (size for size, _ in pieces), (digest.hex() for _, digest in pieces)
    manifest = replace(WHOSE, round=6, sizes=tuple(sizes), hashes=tuple(hashes))
    with pytest.raises(Failure, match=r"rank-00001\.state: wanted .* found no such file"):
        checkpoint.commit(path, manifest)
    assert [folder.name for folder in checkpoint.there(path)] == ["round-000004", "round-000002"]


def test_a_folder_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "x.h5.checkpoints").write_text("")
    with pytest.raises(Failure, match=r"x\.h5\.checkpoints"):
        written(tmp_path / "x.h5", 1)


@pytest.mark.parametrize(("since", "wanted"), [((3, 5, 4), 1), ((5, 2, 5), 0), ((-1, -1, -1), 0)])
def test_what_clients_know_is_of_the_rank_that_learned_last(
    tmp_path: Path, since: tuple[int, ...], wanted: int
) -> None:
    for rank, t in enumerate(since):
        known = {"clients.mask": np.full(4, rank), "clients.since": np.array(t)}
        checkpoint.write(tmp_path, rank, copied(State(known | {"server.w": np.array(rank)})))
    found = checkpoint.read(tmp_path, len(since), lambda name, client: True)
    assert found.arrays["clients.mask"].tolist() == [wanted] * 4
    assert found.arrays["clients.since"] == since[wanted]
    assert found.arrays["server.w"] == 0


def test_the_hash_is_xxh3_of_128_bits(tmp_path: Path) -> None:
    """That of no bytes is published with its source code (XXH3, seed 0)."""
    nothing: list[bytes] = []
    empty = (0, bytes.fromhex("99aa06d3014798d86001c324468d497f"))
    assert checkpoint.write(tmp_path, 0, nothing) == empty
