"""Checkpoints as files: written, read on other ranks, damaged, kept and removed."""

import json
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


def written(path: Path, t: int, ranks: int = 2) -> Path:
    """Writes a checkpoint before round t, and returns its folder."""
    pieces = [
        checkpoint.write(checkpoint.place(path, t), k, Content(s))
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


def test_a_copy_has_the_bytes_of_what_it_copies() -> None:
    """And keeps them when that changes."""
    w = np.ones(5)
    content = Content(State(ARRAYS | {"w": w}, states(1)[0].vectors))
    before = b"".join(content)
    copied = content.copy(np.full(content.size + 100, 255, np.uint8))
    w += 1
    assert b"".join(copied) == before != b"".join(content)
    assert len(before) == content.size


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
    checkpoint.write(half, 0, Content(states(1)[0]))
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
    pieces = [checkpoint.write(checkpoint.place(path, 6), 0, Content(states(2)[0]))] * 2
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
        checkpoint.write(tmp_path, rank, Content(State(known | {"server.w": np.array(rank)})))
    found = checkpoint.read(tmp_path, len(since), lambda name, client: True)
    assert found.arrays["clients.mask"].tolist() == [wanted] * 4
    assert found.arrays["clients.since"] == since[wanted]
    assert found.arrays["server.w"] == 0


def test_the_hash_is_xxh3_of_128_bits(tmp_path: Path) -> None:
    """That of no bytes is published with its source code (XXH3, seed 0)."""
    nothing: list[bytes] = []
    empty = (0, bytes.fromhex("99aa06d3014798d86001c324468d497f"))
    assert checkpoint.write(tmp_path, 0, nothing) == empty
