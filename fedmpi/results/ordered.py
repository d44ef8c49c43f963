"""A file that HDF5 writes, and that can be read whenever its writer is killed.

HDF5 flushes in the order of addresses: first an object's header, which says how many rows a table
has, then the index that leads to them, and last of all where the file ends. If it is killed in
between, the table cannot be read. So `Ordered` holds the writes back until HDF5 has flushed all,
and passes them on from the end of the file to its start: rows, then indices, then headers.

What the system refuses is raised at `flush`, in words of Python. HDF5 cannot close a file after a
write has failed; it can when all later writes stay in memory, see `Ordered.drop`.
"""

import errno
import os
from pathlib import Path

LAYOUT, END = "earliest", slice(40, 48)
"""The layout that is wanted of HDF5, and the bytes in which it says where the file ends: a
superblock of version 0 (HDF5 File Format Specification, II.A)."""


class Ordered:
    """A new file, as `h5py.File` wants one that is not its own.

    Args:
        path: there is no such file yet.

    Attributes:
        handle: of the file.
        size: bytes that HDF5 counts; the file may be longer.

    Raises:
        OSError: if the system refuses it.
    """

    def __init__(self, path: Path) -> None:
        self.handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self.size, self.known, self.at, self.is_dropped = 0, 0, 0, False
        self.held: dict[int, bytes] = {}

    def seek(self, at: int, whence: int = os.SEEK_SET) -> int:
        """Goes to a place."""
        self.at = at if whence == os.SEEK_SET else self.size + at
        return self.at

    def tell(self) -> int:
        """The place."""
        return self.at

    def readinto(self, room: memoryview) -> int:
        """Reads what was written, held back or not."""
        found = os.pread(self.handle, len(room), self.at)
        room[: len(found)] = found
        for start, content in self.held.items():
            first, last = max(start, self.at), min(start + len(content), self.at + len(room))
            if first < last:
                room[first - self.at : last - self.at] = content[first - start : last - start]
        return len(room)

    def read(self, size: int) -> bytes:
        """Reads so many bytes; see `readinto`."""
        room = bytearray(size)
        self.readinto(memoryview(room))
        return bytes(room)

    def write(self, content: memoryview) -> int:
        """Holds a write back; of two that overlap, the later one counts."""
        first, last, whole = self.at, self.at + len(content), bytes(content)
        for start in [s for s, old in self.held.items() if s < last and first < s + len(old)]:
            old = self.held.pop(start)
            whole = old[: max(first - start, 0)] + whole + old[max(last - start, 0) :]
            first, last = min(first, start), max(last, start + len(old))
        self.held[first] = whole
        self.size = max(self.size, last)
        return len(content)

    def truncate(self, size: int) -> int:
        """HDF5 counts so many bytes; see `cut`."""
        self.size = size
        return size

    def flush(self) -> None:
        """Passes on all that was held back.

        If the file has become longer, its superblock says so first.

        Raises:
            OSError: if the system refuses it.
        """
        if self.is_dropped:
            return
        if self.size > self.known:
            self._end_at(max(self.size, os.fstat(self.handle).st_size))
            self.known = self.size
        for start in sorted(self.held, reverse=True):
            rest = memoryview(self.held[start])
            while rest:
                start += (done := os.pwrite(self.handle, rest, start))
                rest = rest[done:]
        self.held.clear()

    def reserve(self, more: int) -> None:
        """Makes sure that the disk has room for so many bytes behind the end of the file.

        Raises:
            OSError: if it has not.
        """
        size, wanted = os.fstat(self.handle).st_size, self.size + more
        if size < wanted:
            try:
                os.posix_fallocate(self.handle, size, wanted - size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                os.ftruncate(self.handle, wanted)  # such a disk may be full later

    def cut(self) -> None:
        """Ends the file where HDF5 ends it, after a flush.

        Raises:
            OSError: if the system refuses it.
        """
        self._end_at(self.size)
        os.ftruncate(self.handle, self.size)

    def drop(self) -> None:
        """Passes nothing on any more; HDF5 writes into memory what it has not written yet."""
        self.is_dropped = True

    def close(self) -> None:
        """Closes the file."""
        self.is_dropped = True
        os.close(self.handle)

    def _end_at(self, size: int) -> None:
        os.pwrite(self.handle, size.to_bytes(END.stop - END.start, "little"), END.start)
