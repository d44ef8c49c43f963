"""Clients' state between rounds: a vector for each client, in host memory up to a limit.

A rank hosts many clients, and few of them work at a time. The vectors of the others wait here.
Those beyond the limit of memory go to a file. The file has no name, so that nothing of it is left
behind, however the run ends. It is read and written, and not mapped: a full disk is an error and
not a signal, its pages are not the process's memory, and a vector comes and goes in a third of the
time that page faults would take.
"""

import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

import numpy as np
import torch
from torch import Tensor

from fedmpi import config
from fedmpi.config import State
from fedmpi.errors import BadInput, Failure, sentence

BLOCK = 1 << 22
"""Bytes by which the memory grows, unless one vector takes more. They are mapped and not allocated:
memory that stays for good would fragment the heap, which then took half as much again."""
LINE = 64
"""Bytes of a cache line. Every vector begins at one, because some sums depend on alignment, and no
result may depend on which other clients are on the rank."""


class StoreError(BadInput):
    """The folder for clients' state cannot be used."""


class Store(Mapping[int, Tensor]):
    """Client -> vector [size] of one type, on the host.

    The first clients to come stay in memory, all others in the file. Moving them later would gain
    nothing, because the clients of the next round are drawn at random.

    `store[client] = vector` copies the vector, from any device. The tensor that `store[client]`
    returns belongs to the store: do not change it, and do not use it after the client's next vector
    has come. Bools are packed, 8 in a byte, in memory as in the file.

    Args:
        settings: how much memory this store may take, and where its file goes.
        size: length of the vectors.
        dtype: their type.
        by_sample: whether it is a vector for each training sample, in place of each client.

    Attributes:
        nbytes: bytes of a client's vector.
        capacity: vectors that fit in memory.

    Raises:
        StoreError: if the folder takes no file.
        Failure: later, when a vector is read or written, if the disk is full or broken.
    """

    def __init__(
        self,
        settings: State,
        size: int,
        dtype: torch.dtype = torch.float32,
        by_sample: bool = False,
    ) -> None:
        self.settings, self.size, self.dtype, self.by_sample = settings, size, dtype, by_sample
        self.nbytes = -(-size // 8) if dtype == torch.bool else size * dtype.itemsize
        self.stride = max(1, -(-self.nbytes // LINE)) * LINE
        self.capacity = settings.memory * 2**20 // self.stride
        self.rows = max(1, BLOCK // self.stride)
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
        if place < self.capacity:
            return self._decoded(self._row(place))
        content = torch.empty(self.nbytes, dtype=torch.uint8)
        self._move(self.file.readinto, place, content)
        return self._decoded(content)

    def arrays(self) -> Mapping[int, np.ndarray]:
        """The vectors as arrays [size], each read when it is asked for; clients ascending."""
        return _Arrays(self)

    def lend(self, client: int) -> Tensor | None:
        """The client's vector, to be changed in place before it is set again.

        None if it lies in the file, or as packed bools.
        """
        place = self.places[client]
        if place >= self.capacity or self.dtype == torch.bool:
            return None
        return self._decoded(self._row(place))

    def __setitem__(self, client: int, vector: Tensor) -> None:
        if vector.shape != (self.size,) or vector.dtype != self.dtype:
            found = f"{vector.dtype} {list(vector.shape)}"
            raise ValueError(f"wanted a vector, {self.dtype} [{self.size}], found {found}")
        place = self.places.get(client, len(self.places))
        if place < self.capacity:
            if self.dtype == torch.bool:
                self._row(place).copy_(self._encoded(vector))
            else:
                row = self._row(place).view(self.dtype)
                if row.data_ptr() != vector.data_ptr():  # it may have been lent
                    row.copy_(vector.detach())
        else:
            self._move(self.file.write, place, self._encoded(vector))
        self.places[client] = place

    def _encoded(self, vector: Tensor) -> Tensor:
        """The vector as bytes, uint8 [nbytes], on the host."""
        content = torch.empty(self.size, dtype=self.dtype).copy_(vector.detach())
        if self.dtype == torch.bool:
            return torch.from_numpy(np.packbits(content.numpy()))
        return content.view(torch.uint8)

    def _decoded(self, content: Tensor) -> Tensor:
        """The vector [size] of these bytes: a view of them, unless they are packed bools."""
        if self.dtype == torch.bool:
            bits = np.unpackbits(content.numpy(), count=self.size)
            return torch.from_numpy(bits.view(np.bool_))
        return content.view(self.dtype)

    def _open(self) -> FileIO:
        """Opens the file. It may stay empty, but its folder is checked before the run."""
        try:
            return tempfile.TemporaryFile(dir=self.settings.folder, buffering=0)
        except OSError as error:
            raise StoreError(self._problem(error)) from None

    def _row(self, place: int) -> Tensor:
        """The bytes in memory at that place, uint8 [nbytes]: a view, which may be new."""
        block, row = divmod(place, self.rows)
        if block == len(self.blocks):
            rows = min(self.rows, self.capacity - place)
            fresh = mmap(-1, rows * self.stride, MAP_PRIVATE | MAP_ANONYMOUS)
            self.blocks.append(torch.frombuffer(fresh, dtype=torch.uint8).view(rows, -1))
        return self.blocks[block][row, : self.nbytes]

    def _move(self, move: Callable[[memoryview], int | None], place: int, content: Tensor) -> None:
        """Reads or writes the bytes [nbytes] of a place beyond those in memory."""
        rest = content.numpy().data.cast("B")
        try:
            self.file.seek((place - self.capacity) * self.stride)
            while rest:  # the system moves 2 GiB at a time at most
                rest = rest[move(rest) :]
        except OSError as error:
            raise Failure(self._problem(error)) from None

    def _problem(self, error: OSError) -> str:
        folder = config.written(self.settings.folder or tempfile.tempdir)
        return sentence(
            f"state.folder = {folder}",
            error,
            "name a folder with room for what clients keep beyond state.memory = "
            f"{self.settings.memory} MiB",
        )


class _Arrays(Mapping[int, np.ndarray]):
    """See `Store.arrays`."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __getitem__(self, client: int) -> np.ndarray:
        return self.store[client].numpy()

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self.store))

    def __len__(self) -> int:
        return len(self.store)


class Provisional(Mapping[int, Tensor]):
    """State that depends on whether a client's upload arrives, which the client learns later.

    A client keeps two vectors until it hears from the server again: what it has if the upload
    arrived, and what it has if it was lost. Where no upload can be lost, it keeps the first one.

    Args:
        arrived: the vectors of clients whose uploads arrived.
        lost: those that count if the last upload was lost; None if none can be.
    """

    def __init__(self, arrived: Store, lost: Store | None) -> None:
        self.arrived, self.lost = arrived, lost

    def __getitem__(self, client: int) -> Tensor:
        return self.arrived[client]

    def __iter__(self) -> Iterator[int]:
        return iter(self.arrived)

    def __len__(self) -> int:
        return len(self.arrived)

    def lend(self, client: int) -> Tensor | None:
        """The client's vector as `Store.lend` gives it, to be changed before `put`."""
        return self.arrived.lend(client)

    @property
    def is_sure(self) -> bool:
        """Whether every upload arrives, so that vectors for lost ones are not needed."""
        return self.lost is None

    def put(self, client: int, arrived: Tensor, lost: Tensor) -> None:
        """Keeps a client's vectors [size] for both outcomes of its upload.

        Either may be the vector that is kept now.
        """
        if self.lost is not None:
            self.lost[client] = (
                lost  # first, because it may be a view of what the next line changes
            )
        self.arrived[client] = arrived

    def change(self, client: int, where: Tensor, values: Tensor) -> None:
        """Adds to a client's vector for the case that its upload arrived.

        Args:
            client: the client.
            where: positions, int64 [k], no two alike.
            values: what is added there, [k].
        """
        own = self.arrived.lend(client)
        found = self.arrived[client].clone() if own is None else own
        found.index_add_(0, where.to(found.device), values.to(found.device))
        self.arrived[client] = found

    def lose(self, client: int) -> None:
        """The client hears that its last upload was lost."""
        assert self.lost is not None
        if client in self.lost:
            self.arrived[client] = self.lost[client]


class Stores(Mapping[str, Store]):
    """Stores by name: everything that its owner keeps for clients from round to round.

    Args:
        settings: how much memory each store may take, and where its file goes.
    """

    def __init__(self, settings: State) -> None:
        self.settings, self.named = settings, dict[str, Store]()

    def __getitem__(self, name: str) -> Store:
        return self.named[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.named)

    def __len__(self) -> int:
        return len(self.named)

    def add(
        self,
        name: str,
        size: int,
        dtype: torch.dtype = torch.float32,
        by_sample: bool = False,
    ) -> Store:
        """Makes a store of vectors [size] under a name of its own; see `Store`.

        Raises:
            ValueError: if there is a store of that name.
            StoreError: see `Store`.
        """
        if name in self.named:
            raise ValueError(
                f"store '{name}': wanted a name of its own, found a store of this name; taken are: "
                f"{', '.join(self.named)}"
            )
        self.named[name] = Store(self.settings, size, dtype, by_sample)
        return self.named[name]
