"""The right to write a result: a lock beside it that works on any file system, across nodes.

Beside NAME.h5 lies NAME.h5.lock while somebody writes it. It says who: host, process, job. It is
made by O_EXCL, which every file system has, and not by locks of the system, which some lack. Its
owner touches it every `BEAT` seconds.

A lock that a killed process left behind is taken over:

* The process ran on this machine: at once, if it does not live any more.
* It belonged to this SLURM job before it was requeued: at once.
* Otherwise when no touch was seen for `STALE` seconds. They are seconds of the observer's clock,
  because the clocks of two machines, or of a file server, may differ.

Only one of several observers takes over: the one that makes a file named after the lock's token.
That file is a lock itself, so that it may be left behind, too; whoever holds the result's lock
removes it in the end. An owner that was stopped for long may have lost its lock; it finds out
before it writes again.
"""

import atexit
import json
import os
import re
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep
from types import TracebackType
from typing import Any

from fedmpi.errors import BadInput, Failure, told

SUFFIX = ".lock"
BEAT, STALE = 5.0, 60.0
"""Seconds between touches of a lock, and without one after which it is taken over."""
NAP = 0.05
"""Seconds between looks at a lock that somebody else may hold."""
TOKEN = re.compile("[0-9a-f]{16}")
"""What a lock's token looks like."""
UNKNOWN = "unknown"
"""What stands for the token of a lock that is unfinished or damaged."""
INSTEAD = "choose another place with --out"
"""What helps where no result can be written."""


class Held(BadInput):
    """Somebody else is writing the result."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: the content of its file.

    Attributes:
        token: different for each lock.
        host: name of the machine.
        pid: process.
        began: when the process started, in ticks since boot; a number is used again.
        boot: identifies the machine until it is started again.
        space: namespace of process numbers; a container has its own.
        job: SLURM cluster and job; empty outside.
        restarts: how often that job was requeued.
    """

    token: str = ""
    host: str = ""
    pid: int = 0
    began: int = 0
    boot: str = ""
    space: str = ""
    job: str = ""
    restarts: int = 0

    def __str__(self) -> str:
        if not self.token:
            return UNKNOWN
        text = f"process {self.pid} on {self.host}" + (f", SLURM job {self.job}" * bool(self.job))
        return "".join(letter if letter.isprintable() else "?" for letter in text)


@dataclass(frozen=True)
class Seen:
    """A lock as an observer found it: its file and content, and when it was touched last."""

    file: tuple[int, int]
    content: bytes
    touched: int

    @property
    def holder(self) -> Holder:
        """Returns whom it names; somebody unknown if it is unfinished or damaged."""
        try:
            found = json.loads(self.content)
            kinds = {field.name: field.type for field in fields(Holder)}
            given = {n: v for n, v in found.items() if type(v) is kinds.get(n)}
            holder = Holder(**given)
            return holder if TOKEN.fullmatch(holder.token) else Holder()
        except (ValueError, AttributeError, RecursionError):
            return Holder()

    def is_same(self, other: "Seen | None") -> bool:
        """Whether the other is the same lock, touched or not."""
        return other is not None and (self.file, self.content) == (other.file, other.content)


class Lease:
    """The lock of a result, held by this process.

    Attributes:
        path: the result.
    """

    def __init__(self, path: Path, mine: Holder) -> None:
        self.path, self.mine, self.ended = path, mine, Event()
        file = os.open(_lock(path), os.O_RDONLY | os.O_CLOEXEC)
        self.beats = Thread(target=self._beat, args=(file,), daemon=True, name="lease")
        self.beats.start()
        atexit.register(self.release)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def check(self) -> None:
        """Makes sure that this process may still write.

        Raises:
            Failure: if somebody has taken the lock over, or removed it.
        """
        found = None
        with suppress(OSError):
            found = _look(_lock(self.path))
            if found is None or found.holder.token != self.mine.token:
                what = f"its lock {_lock(self.path).name} is gone"
                if found is not None:
                    what = f"{found.holder} has taken it over while this process was stopped"
                raise Failure(f"{self.path}: {what}; rounds from here on are not recorded")

    def release(self) -> None:
        """Removes the lock, if it is still this process's. Can be called again."""
        if self.ended.is_set() or os.getpid() != self.mine.pid:
            return
        self.ended.set()
        atexit.unregister(self.release)
        self.beats.join(BEAT)  # it closes the file: some file systems keep what is open
        with suppress(OSError):
            _clear(_lock(self.path), self.mine)
        _remove(_lock(self.path), self.mine)

    def _beat(self, file: int) -> None:
        while not self.ended.wait(BEAT):
            with suppress(OSError):
                os.utime(file)  # its own file, also if another lies there by now
        os.close(file)


def take(path: Path, say: Callable[[str], None] = lambda text: None) -> Lease:
    """Takes the lock of a result, in a folder that is there.

    Args:
        path: the result.
        say: told why it takes time, if it does.

    Raises:
        Held: if somebody else is writing it.
        BadInput: if no file can be made there.
    """
    mine = _mine()
    with told(path, INSTEAD):
        path = _real(path)
    lock = _lock(path)
    with told(lock if os.path.lexists(lock) else path, INSTEAD):
        _take(path, lock, mine, say)
        return Lease(path, mine)


def is_there(path: Path) -> bool:
    """Whether a result has a lock, be it left behind."""
    return os.path.lexists(_lock(_real(path)))


def holder(path: Path) -> Holder | None:
    """Returns who writes a result, as far as one can tell at once; None if nobody does."""
    try:
        found = _look(_lock(_real(path)))
    except OSError:
        return None
    return None if found is None or _lives(found) is False else found.holder


def _real(path: Path) -> Path:
    """The result itself, where a link leads to it."""
    return path.resolve() if path.is_symlink() else path


def _lock(path: Path) -> Path:
    return path.with_name(f"{path.name}{SUFFIX}")


def _take(path: Path, lock: Path, mine: Holder, say: Callable[[str], None]) -> None:
    """Takes a lock, from whom left it behind if need be."""
    while True:
        with suppress(FileExistsError):
            return _make(lock, mine)
        if not lock.is_file() and os.path.lexists(lock):
            raise BadInput(f"{lock}: wanted a file that locks {path.name}, found none; remove it")
        found = _look(lock)
        if found is None or _changes(path, lock, found, say):
            continue
        # Whoever makes the marker may replace this very lock, and no later one.
        token = found.holder.token or UNKNOWN
        marker = _lock(path).with_name(f"{_lock(path).name}.{token}")
        second = _mine()
        _take(path, marker, second, say)
        try:
            if found.is_same(_look(lock)):
                return _replace(lock, mine)
        finally:
            _remove(marker, second)


def _make(lock: Path, mine: Holder) -> None:
    """Makes a lock.

    Raises:
        FileExistsError: if there is one.
    """
    file = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(file, "wb") as to:  # closed, so that a network file system shows it
            to.write(json.dumps(asdict(mine)).encode())
    except OSError:
        lock.unlink(missing_ok=True)
        raise
    found = _look(lock)
    if found is None or found.holder.token != mine.token:  # unfinished, it was taken over
        raise FileExistsError


def _replace(lock: Path, mine: Holder) -> None:
    """Replaces a lock that was left behind."""
    fresh = lock.with_name(f"{lock.name}.{mine.token}")
    _make(fresh, mine)
    try:
        fresh.replace(lock)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def _remove(lock: Path, mine: Holder) -> None:
    """Removes a lock, if it is this one."""
    with suppress(OSError):
        found = _look(lock)
        if found is not None and found.holder.token == mine.token:
            lock.unlink()


def _clear(lock: Path, mine: Holder) -> None:
    """Removes what processes that were killed left of taking a result's lock over, if it is this.

    While the lock is held, nobody needs such a file: who has just made one looks at the lock next,
    and finds it in other hands. Files of processes that may live stay, unless they were not touched
    for so long that they would be taken over.
    """
    ours = _look(lock)
    if ours is None or ours.holder.token != mine.token:
        return
    for file in lock.parent.iterdir():
        name, _, token = file.name.rpartition(".")
        if name == lock.name and (token == UNKNOWN or TOKEN.fullmatch(token)):
            found = _look(file)
            if found is not None and (
                not found.holder.token
                or _lives(found) is False
                or ours.touched - found.touched > STALE * 1e9
            ):
                file.unlink(missing_ok=True)


def _changes(path: Path, lock: Path, found: Seen, say: Callable[[str], None]) -> bool:
    """Waits until a lock has changed hands, which is true, or has been left behind, which is false.

    Raises:
        Held: if its owner lives.
    """
    lives = _lives(found)
    if lives is None:
        say(f"{path}: locked by {found.holder}; waiting up to {STALE:g} s for a sign of life")
        limit = monotonic() + STALE
        while lives is None and monotonic() < limit:
            sleep(NAP)
            now = _look(lock)
            if not found.is_same(now):
                return True
            assert now is not None
            if now.touched != found.touched:
                lives = True
    if lives:
        raise Held(f"{path}: another job is writing it ({found.holder})")
    return False


def _look(lock: Path) -> Seen | None:
    """Returns a lock as it is now; None if there is none.

    It is opened each time, because a network file system looks anew only then.
    """
    try:
        file = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        about = os.fstat(file)
        content = os.read(file, 1 << 16)
    finally:
        os.close(file)
    return Seen((about.st_dev, about.st_ino), content, about.st_mtime_ns)


def _lives(found: Seen) -> bool | None:
    """Whether the holder of a lock lives; None if that cannot be known from here."""
    its, mine = found.holder, _mine()
    if not its.token:
        return None
    here = (mine.host, mine.boot, mine.space)
    if all(here) and (its.host, its.boot, its.space) == here:
        began = _began(its.pid)
        try:
            os.kill(its.pid, 0)
        except ProcessLookupError:
            return False
        except OverflowError:  # a damaged lock
            return None
        except OSError:  # another user's process, of which no more may be known
            pass
        return began in (None, its.began)
    if its.job and its.job == mine.job and its.restarts < mine.restarts:
        return False
    return None


def _mine() -> Holder:
    """Returns this process as the holder of a new lock."""
    pid, variables = os.getpid(), os.environ
    job = variables.get("SLURM_JOB_ID", "")
    cluster = variables.get("SLURM_CLUSTER_NAME", "")
    restarts = variables.get("SLURM_RESTART_COUNT", "")
    return Holder(
        token=secrets.token_hex(8),
        host=socket.gethostname(),
        pid=pid,
        began=_began(pid) or 0,
        boot=_text(Path("/proc/sys/kernel/random/boot_id")),
        space=_link("/proc/self/ns/pid"),
        job=f"{job} on {cluster}" if job and cluster else job,
        restarts=int(restarts) if restarts.isdecimal() else 0,
    )


def _began(pid: int) -> int | None:
    """Returns when a process began, in ticks since boot; None if unknown, -1 if it has ended."""
    state: Any = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    if len(state) < 20:
        return None
    # A zombie has ended: only its parent has not asked yet.
    return -1 if state[0] in "ZX" else int(state[19])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
