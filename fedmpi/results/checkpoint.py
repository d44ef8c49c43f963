"""Checkpoints: all that the next round depends on, in files beside a result.

What is state
-------------
Every value that outlives a round is found in one place:

* `Server.state` and `Server.stores`: the model, the server's optimizer, control variates, masks,
  what clients are known to have, and vectors that the server keeps for clients.
* `Clients.state`: what all clients know alike, such as a mask. Where only ranks whose clients took
  part have learned of it, `since` says when, and the last one to learn counts.
* `Trainer.stores`: the vectors that clients keep (residuals, control variates, private parts,
  agents, statistics). A rank has those of the clients that it hosts.
* `Observer.state`: the bytes so far, and whether the target is reached.

`Engine.state` collects them. The rest is a function of (settings, round): sampling, batches,
devices, and every random number (`streams`). A test compares all that a resumed engine holds with
all that an uninterrupted one does, so that nothing can be forgotten. The rows of earlier rounds
are in the result.

The files
---------
Beside NAME.h5 lies the folder NAME.h5.checkpoints while its run is not finished:

    round-000012/rank-00000.state    what rank 0 knew after 12 rounds
    round-000012/rank-00001.state
    round-000012/manifest.json       sizes and hashes of the files above, and whose run it is

All ranks write at the same time, each its own file. The manifest comes last, by rename, when every
file is on the disk: a folder without it is no checkpoint. The newest two checkpoints are kept.
`keeper` decides when; it writes from a copy, while the next round trains.

A file begins with the length of its head, 8 bytes, little-endian; the head (JSON) has the name,
type, shape and place of each array. Arrays follow as they lie in memory; bools are packed, 8 in a
byte; zeros fill the file's last block. Vectors of clients are found by their client, so that other
ranks, and more or fewer of them, can read what they need.
"""

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from time import sleep
from typing import Any, BinaryIO

import numpy as np
from xxhash import xxh3_128

from fedmpi.errors import Failure, told
from fedmpi.results.lease import INSTEAD

SUFFIX = ".checkpoints"
MANIFEST = "manifest.json"
FORMAT = 2
"""Version of the files' layout."""
KEPT = 2
"""So many whole checkpoints stay: if the newest is damaged, there is another one."""
PIECE = 1 << 24
"""Bytes that are read, or written, and hashed at once."""
LINE = 64
"""Every array begins at a multiple of it."""
BLOCK = 4096
"""A file's length, and where its copy lies in memory, are multiples of it, as devices want it."""
HEAD = 1 << 28
"""Bytes of the longest head that is read."""
SIGHT, NAP = 30.0, 0.1
"""Seconds in which a file system must show what another node wrote, and those between two looks."""


CLIENTS, SINCE = "clients.", "clients.since"
"""Names of arrays that clients know alike begin so; the one that says since when they do."""


class Broken(Exception):
    """A checkpoint that cannot be used; the text says why."""


@dataclass
class State:
    """What a rank holds between two rounds.

    Attributes:
        arrays: by name.
        vectors: by name, for each client a vector; all of a name are alike in type and length.
    """

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    vectors: dict[str, Mapping[int, np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself.

    Attributes:
        round: the round before which it was written.
        identity: of the run.
        code: SHA-256 of the method's, the model's and the data set's sources, by name.
        data: SHA-256 of the data set.
        written: when, in UTC.
        sizes: bytes of each rank's file.
        hashes: their XXH3, 128 bits, in hex: it finds damage, and is no seal.
        format: version of the layout.
    """

    round: int
    identity: str
    code: dict[str, str]
    data: str
    written: str = ""
    sizes: tuple[int, ...] = ()
    hashes: tuple[str, ...] = ()
    format: int = FORMAT


def folder_of(path: Path) -> Path:
    """The folder of a result's checkpoints."""
    return path.with_name(f"{path.name}{SUFFIX}")


def place(path: Path, t: int) -> Path:
    """The folder of the checkpoint of a result before round t, 0 at least."""
    return folder_of(path) / f"round-{t:06}"


def file_of(folder: Path, rank: int) -> Path:
    """A rank's file."""
    return folder / f"rank-{rank:05}.state"


class Content:
    """The bytes of a rank's file.

    Args:
        state: what the file holds; it is read when the bytes are asked for.

    Attributes:
        size: number of bytes, a multiple of `BLOCK`.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        head, at = {"format": FORMAT, "arrays": {}, "vectors": {}}, 0
        for name, array in state.arrays.items():
            about = {"type": _type(array.dtype), "shape": list(array.shape), "at": at}
            head["arrays"][name] = about  # type: ignore[index]
            at += _stride(array.dtype, array.size)
        for name, vectors in state.vectors.items():
            clients = list(vectors)
            first = vectors[clients[0]] if clients else np.zeros(0)
            about = {"type": _type(first.dtype), "size": first.size, "at": at, "clients": clients}
            head["vectors"][name] = about  # type: ignore[index]
            at += _stride(first.dtype, first.size) * len(clients)
        text = json.dumps(head, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % LINE)
        self.head = len(text).to_bytes(8, "little") + text
        self.filled = len(self.head) + at
        self.size = -(-self.filled // BLOCK) * BLOCK

    def __iter__(self) -> Iterator[memoryview | bytes]:
        """The bytes in parts, from the head on."""
        yield self.head
        vectors = (some.values() for some in self.state.vectors.values())
        for array in chain(self.state.arrays.values(), *vectors):
            content = np.packbits(array) if array.dtype.kind == "b" else np.ascontiguousarray(array)
            yield content.reshape(-1).view(np.uint8).data
            yield bytes(_stride(array.dtype, array.size) - content.nbytes)
        yield bytes(self.size - self.filled)

    def copied(self, room: np.ndarray) -> Iterator[memoryview]:
        """The bytes in pieces, as copies in memory.

        Args:
            room: the memory, see `room`. If it is shorter than the file, it is used again and
                again: a piece is gone when the next one is asked for.
        """
        start = at = 0
        for part in self:
            while part:
                end = min(start + PIECE, len(room))
                some = np.frombuffer(part[: end - at], np.uint8)
                room[at : at + len(some)] = some
                at, part = at + len(some), part[len(some) :]
                if at == end:
                    yield room[start:end].data
                    start = at = end % len(room)
        if at > start:
            yield room[start:at].data


def room(size: int) -> np.ndarray:
    """Memory that a device can write from, uint8 [size]; the size is a multiple of `BLOCK`."""
    whole = np.empty(size + BLOCK, np.uint8)
    start = -whole.ctypes.data % BLOCK
    return whole[start : start + size]


def write(folder: Path, rank: int, content: Iterable[memoryview]) -> tuple[int, bytes]:
    """Writes a rank's file, and waits until it is on the disk.

    The system does not keep it in its cache, where it can do without: that would be one more copy,
    and memory to be found, written and freed while the next round trains.

    Args:
        folder: the checkpoint's.
        rank: the rank.
        content: the file's bytes, see `Content.copied`.

    Returns:
        How many bytes, and their hash, 16 bytes.

    Raises:
        Failure: if the system does not let it write.
    """
    xxh3, size = xxh3_128(), 0
    with told(folder, INSTEAD, Failure):
        folder.mkdir(parents=True, exist_ok=True)
        with file_of(folder, rank).open("wb", buffering=0) as file:
            is_direct = _direct(file.fileno(), True)
            for rest in content:
                xxh3.update(rest)
                while rest:
                    try:
                        done = os.write(file.fileno(), rest)
                    except OSError as error:
                        # A device with other blocks, or the rest of what it wrote in part.
                        if error.errno != errno.EINVAL or not is_direct:
                            raise
                        is_direct = _direct(file.fileno(), False)
                        continue
                    size, rest = size + done, rest[done:]
            os.fsync(file.fileno())
    return size, xxh3.digest()


def _direct(handle: int, wanted: bool) -> bool:
    """Has a file be written past the system's cache, or not; returns whether it is."""
    bit = getattr(os, "O_DIRECT", 0)  # macOS has none
    known = fcntl.fcntl(handle, fcntl.F_GETFL)
    with suppress(OSError):
        fcntl.fcntl(handle, fcntl.F_SETFL, known | bit if wanted else known & ~bit)
    return bool(fcntl.fcntl(handle, fcntl.F_GETFL) & bit)


def _type(dtype: np.dtype) -> str:
    return np.dtype(dtype).newbyteorder("<").str


def _nbytes(dtype: np.dtype, size: int) -> int:
    """Bytes of so many values."""
    return -(-size // 8) if dtype.kind == "b" else size * dtype.itemsize


def _stride(dtype: np.dtype, size: int) -> int:
    """Those bytes, up to where the next array begins."""
    return -(-_nbytes(dtype, size) // LINE) * LINE


def commit(path: Path, manifest: Manifest) -> None:
    """Makes a checkpoint of the files of all ranks, and removes those before the last but one.

    Args:
        path: the result.
        manifest: says what they are.

    Raises:
        Failure: if a rank's file is not seen here, or the system refuses something.
    """
    folder = place(path, manifest.round)
    for rank, size in enumerate(manifest.sizes):
        _see(file_of(folder, rank), size)
    about = {**asdict(manifest), "written": datetime.now(UTC).isoformat(timespec="seconds")}
    with told(folder, INSTEAD, Failure):
        part = folder / f"{MANIFEST}.part"
        with part.open("w", encoding="utf-8") as file:
            json.dump(about, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / MANIFEST)
        for known in (folder, folder.parent, path.parent):
            _sync(known)
    kept = there(path)[:KEPT]
    for old in _folders(path):
        # Other ranks may be writing the next one already.
        if old not in kept and _round(old) < manifest.round:
            shutil.rmtree(old, ignore_errors=True)


def _see(file: Path, size: int) -> None:
    """Waits until another node's file is seen here."""
    left, found = SIGHT, -1
    while left > 0:
        with suppress(OSError):
            found = file.stat().st_size
        if found == size:
            return
        sleep(NAP)
        left -= NAP
    raise Failure(
        f"{file}: wanted {size} bytes, which another rank has written, found "
        f"{'no such file' if found < 0 else found}; checkpoints want a folder that all nodes share"
    )


def _sync(folder: Path) -> None:
    """Waits until the names in a folder are on the disk, where a file system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _folders(path: Path) -> list[Path]:
    """The folders of a result's checkpoints, whole or not, the newest first."""
    with suppress(OSError):
        found = [p for p in folder_of(path).iterdir() if re.fullmatch(r"round-\d{6,}", p.name)]
        return sorted(found, key=_round, reverse=True)
    return []


def _round(folder: Path) -> int:
    """The round that a checkpoint's folder is named after."""
    return int(folder.name.removeprefix("round-"))


def there(path: Path) -> list[Path]:
    """The folders of a result's checkpoints that claim to be whole, the newest first."""
    return [folder for folder in _folders(path) if (folder / MANIFEST).exists()]


def manifest_of(folder: Path) -> Manifest:
    """Reads the manifest of a checkpoint.

    Raises:
        Broken: if it is none.
    """
    try:
        found: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise Broken(f"its layout is version {found['format']}, and this one reads {FORMAT}")
        lists = {name: tuple(found[name]) for name in ("sizes", "hashes")}
        manifest = Manifest(**(found | lists))
        if place(Path("x"), manifest.round).name != folder.name:
            raise Broken("its folder is named otherwise than its round")
    except (OSError, ValueError, TypeError, LookupError):
        raise Broken("its manifest is missing, or is no longer what was written") from None
    return manifest


def verify(folder: Path, manifest: Manifest, rank: int) -> None:
    """Makes sure that a rank's file is what was written.

    Raises:
        Broken: if it is not.
    """
    file, xxh3 = file_of(folder, rank), xxh3_128()
    try:
        size = file.stat().st_size
        if size != manifest.sizes[rank]:
            raise Broken(f"{file.name} has {size} bytes of {manifest.sizes[rank]}")
        with file.open("rb") as content:
            while piece := content.read(PIECE):
                xxh3.update(piece)
    except OSError as error:
        raise Broken(f"{file.name} cannot be read: {os.strerror(error.errno or 0)}") from None
    if xxh3.hexdigest() != manifest.hashes[rank]:
        raise Broken(f"the content of {file.name} has changed")


def read(folder: Path, ranks: int, wants: Callable[[str, int], bool]) -> State:
    """Reads what a rank needs of a checkpoint whose files were verified.

    Args:
        folder: the checkpoint's.
        ranks: that wrote it.
        wants: whether the vector of that name and client is wanted.

    Returns:
        Arrays of rank 0, but those named `clients.` of the first rank with the greatest
        `clients.since`; and the wanted vectors, of whatever rank.

    Raises:
        Failure: if a file cannot be read.
    """
    found, last = State(), -2
    for rank in range(ranks):
        name = file_of(folder, rank)
        with told(name, kind=Failure), name.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > HEAD:
                raise Failure(f"{name}: its head claims {length} bytes")
            head = json.loads(file.read(length))
            known, since = head["arrays"], -1
            if SINCE in known:
                since = int(_named(file, 8 + length, known[SINCE]))
            for key, about in known.items():
                if since > last if key.startswith(CLIENTS) else rank == 0:
                    found.arrays[key] = _named(file, 8 + length, about)
            last = max(last, since)
            for key, about in head["vectors"].items():
                dtype, size = np.dtype(about["type"]), about["size"]
                some = dict(found.vectors.get(key, {}))
                for row, client in enumerate(about["clients"]):
                    if wants(key, client):
                        place = 8 + length + about["at"] + row * _stride(dtype, size)
                        some[client] = _array(file, place, dtype, [size])
                found.vectors[key] = some
    return found


def _named(file: BinaryIO, base: int, about: Mapping[str, Any]) -> np.ndarray:
    """Reads an array that the head describes; they begin at `base`."""
    return _array(file, base + about["at"], np.dtype(about["type"]), about["shape"])


def _array(file: BinaryIO, at: int, dtype: np.dtype, shape: list[int]) -> np.ndarray:
    """Reads an array that begins at a place of the file."""
    size = int(np.prod(shape, dtype=np.int64))
    file.seek(at)
    content = file.read(_nbytes(dtype, size))
    if len(content) != _nbytes(dtype, size):
        raise Failure(f"{file.name}: it ends too early")
    if dtype.kind == "b":
        bits = np.unpackbits(np.frombuffer(content, np.uint8), count=size)
        return bits.view(bool).reshape(shape)
    return np.frombuffer(content, dtype).reshape(shape)


def remove(path: Path) -> None:
    """Removes all checkpoints of a result; what cannot be removed stays."""
    shutil.rmtree(folder_of(path), ignore_errors=True)


def forget(folder: Path) -> None:
    """Removes one checkpoint; it is none from the first moment on."""
    with suppress(OSError):
        (folder / MANIFEST).unlink()
    shutil.rmtree(folder, ignore_errors=True)
