"""What clients keep between rounds: a vector each, in host memory up to a limit, then in a file.

A rank hosts many clients of which few are at work; what the others keep waits here. The file has
no name, so nothing of it is left behind, however the run ends. It is read and written, not mapped:
then a full disk is an error and not a signal, its pages are not the process's memory, and a vector
comes and goes in a third of the time that faulting its pages in would take.
"""

import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

import torch
from torch import Tensor

from fedmpi import config
from fedmpi.config import State
from fedmpi.errors import BadInput

BLOCK = 1 << 22
"""Bytes by which the memory grows, unless one vector takes more. They are mapped, not allocated:
what stays for good would break up the heap, which then took half as much again."""
LINE = 16
"""Float32 in a cache line, at which every vector begins: what is computed from it must not depend
on who else is on the rank, and some sums depend on alignment."""


class StoreError(BadInput):
    """A folder that does not take what clients keep."""


class Store(Mapping[int, Tensor]):
    """Client -> vector: float32 [size], on the host.

    The first clients to come stay in memory, all others in the file. Moving them about would gain
    nothing: who takes part next is drawn at random.

    `store[client] = vector` copies the vector, from any device. What `store[client]` gives is the
    store's: not to be changed, and good until the client's next vector comes.

    Args:
        settings: how much memory this store may take, and where its file goes.
        size: length of the vectors.

    Raises:
        StoreError: if the folder takes no file; later, from a vector that comes or goes, if the
            disk is full or broken.
    """

    def __init__(self, settings: State, size: int) -> None:
        self.settings, self.size = settings, size
        self.stride = max(1, -(-size // LINE)) * LINE
        self.room = settings.memory * 2**20 // (4 * self.stride)
        self.rows = max(1, BLOCK // (4 * self.stride))
        self.places: dict[int, int] = {}
        self.blocks: list[Tensor] = []
        self.file = self._open()
        weakref.finalize(self, self.file.close)

    def __contains__(self, client: object) -> bool:
        return client in self.places

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, client: int) -> Tensor:
        place = self.places[client]
        if place < self.room:
            return self._row(place)
        vector = torch.empty(self.size)
        self._move(self.file.readinto, place, vector)
        return vector

    def __setitem__(self, client: int, vector: Tensor) -> None:
        if vector.shape != (self.size,) or vector.dtype != torch.float32:
            found = f"{vector.dtype} {list(vector.shape)}"
            raise ValueError(f"wanted a vector, torch.float32 [{self.size}], found {found}")
        place = self.places.get(client, len(self.places))
        if place < self.room:
            self._row(place).copy_(vector.detach())
        else:
            self._move(self.file.write, place, vector.detach().cpu().contiguous())
        self.places[client] = place

    def _open(self) -> FileIO:
        """The file; at once, though it may stay empty: its folder is judged before the run."""
        try:
            return tempfile.TemporaryFile(dir=self.settings.folder, buffering=0)
        except OSError as error:
            raise self._problem(error) from None

    def _row(self, place: int) -> Tensor:
        """The vector in memory at that place: a view, which may be fresh."""
        block, row = divmod(place, self.rows)
        if block == len(self.blocks):
            rows = min(self.rows, self.room - place)
            fresh = mmap(-1, rows * 4 * self.stride, MAP_PRIVATE | MAP_ANONYMOUS)
            self.blocks.append(torch.frombuffer(fresh, dtype=torch.float32).view(rows, -1))
        return self.blocks[block][row, : self.size]

    def _move(self, move: Callable[[memoryview], int | None], place: int, vector: Tensor) -> None:
        """Reads or writes the vector [size] that has that place, beyond those in memory."""
        rest = vector.numpy().data.cast("B")
        try:
            self.file.seek((place - self.room) * 4 * self.stride)
            while rest:  # the system moves 2 GiB at a time at most
                rest = rest[move(rest) :]
        except OSError as error:
            raise self._problem(error) from None

    def _problem(self, error: OSError) -> StoreError:
        folder = config.written(self.settings.folder or tempfile.tempdir)
        return StoreError(
            f"state.folder = {folder}: {error.strerror}; wanted a folder with room for what "
            f"clients keep beyond state.memory = {self.settings.memory} MiB"
        )
