"""The lock of a result: one holder at a time, whoever dies, on whatever machine."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from fedmpi.errors import BadInput, Failure
from fedmpi.results import lease
from fedmpi.results.lease import Held, Holder
from tests import PATIENCE, linux, until

ROOM = Path(__file__).parents[2]
ELSEWHERE = Holder("0123456789abcdef", "elsewhere", 1, 2, "another boot", "pid:[1]", "", 0)
"""A process of another machine."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.h5"


@pytest.fixture
def lock(path: Path) -> Path:
    return path.with_name("run.h5.lock")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A moment without a touch is long."""
    monkeypatch.setattr(lease, "STALE", 0.2)
    monkeypatch.setattr(lease, "NAP", 0.01)


def leave(lock: Path, holder: Holder) -> None:
    """A lock that somebody left behind."""
    lock.write_text(json.dumps(asdict(holder)))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_holder_at_a_time(path: Path, lock: Path) -> None:
    assert lease.holder(path) is None
    with lease.take(path) as first:
        found = json.loads(lock.read_text())
        assert (found["pid"], found["token"]) == (os.getpid(), first.mine.token)
        assert str(lease.holder(path)) == f"process {os.getpid()} on {found['host']}"
        for _ in range(2):
            with pytest.raises(Held, match=rf"another job is writing it \(process {os.getpid()} "):
                lease.take(path)
        first.check()
    assert names(path.parent) == []
    first.release()
    with lease.take(path) as second:
        first.release()
        second.check()
        assert names(path.parent) == ["run.h5.lock"]


KILLED = """
import os, signal, sys
from pathlib import Path
from fedmpi.results import lease
lease.take(Path(sys.argv[1]))
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(path: Path) -> "subprocess.Popen[bytes]":
    """A process that was killed while it held the lock; nobody has waited for it yet."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], cwd=ROOM)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    return process


@linux
def test_the_lock_of_a_killed_process_is_taken_over_at_once(path: Path) -> None:
    """Also while the process is a zombie. Nobody waits: that would be said."""
    said: list[str] = []
    with killed(path):
        assert names(path.parent) == ["run.h5.lock"]
        assert lease.holder(path) is None
        with lease.take(path, said.append) as mine:
            mine.check()
    assert said == []
    assert names(path.parent) == []


@linux
def test_a_number_that_another_process_has_by_now(path: Path, lock: Path) -> None:
    with lease.take(path) as mine:
        former = replace(mine.mine, token="ab" * 8, began=mine.mine.began - 1)
    leave(lock, former)
    with lease.take(path) as mine:
        mine.check()


@pytest.mark.parametrize("days", [-400, 0, 400])
def test_what_nobody_touches_is_taken_over(path: Path, lock: Path, short: None, days: int) -> None:
    """Clocks of machines differ: when it was touched says nothing, only that it is touched."""
    said: list[str] = []
    leave(lock, ELSEWHERE)
    when = time.time() + 86400 * days
    os.utime(lock, (when, when))
    assert lease.holder(path) == ELSEWHERE
    begin = time.monotonic()
    with lease.take(path, said.append) as mine:
        mine.check()
    assert time.monotonic() - begin >= lease.STALE
    assert said == [
        f"{path}: locked by process 1 on elsewhere; waiting up to 0.2 s for a sign of life"
    ]
    assert names(path.parent) == []


@pytest.fixture
def touched(lock: Path) -> Iterator[None]:
    """Another machine touches the lock, whoever holds it."""
    ended = Event()

    def beat() -> None:
        while not ended.wait(0.01):
            if lock.exists():
                os.utime(lock)

    thread = Thread(target=beat)
    thread.start()
    yield
    ended.set()
    thread.join()


def test_what_somebody_touches_is_left(
    path: Path, lock: Path, touched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "STALE", PATIENCE)
    leave(lock, replace(ELSEWHERE, job="77 on big"))
    with pytest.raises(Held, match=r"\(process 1 on elsewhere, SLURM job 77 on big\)"):
        lease.take(path)
    assert names(path.parent) == ["run.h5.lock"]


def test_a_holder_touches_its_lock(path: Path, lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.01)
    with lease.take(path):
        before = lock.stat().st_mtime_ns
        assert until(lambda: lock.stat().st_mtime_ns > before)


@pytest.mark.parametrize(("restarts", "is_dead"), [("0", False), ("1", False), ("2", True)])
def test_a_job_that_was_requeued(
    path: Path,
    lock: Path,
    touched: None,
    monkeypatch: pytest.MonkeyPatch,
    restarts: str,
    is_dead: bool,
) -> None:
    """Its former start has ended, whatever the lock looks like."""
    for name, value in (("JOB_ID", "77"), ("CLUSTER_NAME", "big"), ("RESTART_COUNT", restarts)):
        monkeypatch.setenv(f"SLURM_{name}", value)
    leave(lock, replace(ELSEWHERE, job="77 on big", restarts=1))
    if is_dead:
        with lease.take(path) as mine:
            mine.check()
    else:
        with pytest.raises(Held):
            lease.take(path)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"[" * 60000, b'{"pid": "x"}', b"\xff\x00", b'{"token": 5}'),
        *(b'{"token": "../x"}', b'{"token": "\\u0000"}', b'{"token": "%s"}' % (b"a" * 300)),
    ],
)
def test_a_lock_that_says_nothing(path: Path, lock: Path, short: None, content: bytes) -> None:
    lock.write_bytes(content)
    assert str(lease.holder(path)) == "unknown"
    with lease.take(path) as mine:
        mine.check()
    assert names(path.parent) == []


@pytest.mark.parametrize("number", [0, -1, 2**70])
def test_a_lock_with_an_impossible_process(path: Path, lock: Path, number: int) -> None:
    """It is somebody's; whose cannot be known."""
    with lease.take(path) as mine:
        odd = replace(mine.mine, pid=number, token="ab" * 8)
    leave(lock, odd)
    assert lease.holder(path) == odd


@linux
def test_a_takeover_that_was_cut_off_is_taken_over(path: Path, lock: Path) -> None:
    """What marks one is a lock, too; here of one that died, and of one that died taking that."""
    with lease.take(path) as mine:
        first, second, third = (
            replace(mine.mine, token=token, began=1) for token in ("a" * 16, "b" * 16, "c" * 16)
        )
    leave(lock, first)
    leave(path.with_name(f"run.h5.lock.{first.token}"), second)
    leave(path.with_name(f"run.h5.lock.{second.token}"), third)
    with lease.take(path) as mine:
        mine.check()
    assert names(path.parent) == []


@linux
def test_what_a_cut_off_takeover_left_goes_with_the_lock(path: Path, lock: Path) -> None:
    """A process may die with the lock in its hands, before its marker is removed."""
    with lease.take(path) as mine:
        alive = replace(mine.mine, token="a" * 16)
        dead = replace(mine.mine, token="b" * 16, began=1)
        leave(path.with_name(f"run.h5.lock.{dead.token}"), dead)
        path.with_name(f"run.h5.lock.{'c' * 16}").touch()
        path.with_name("run.h5.lock.unknown").touch()
        old = path.with_name(f"run.h5.lock.{'d' * 16}")
        leave(old, ELSEWHERE)
        os.utime(old, (time.time() - 1000,) * 2)
        kept = [f"run.h5.lock.{alive.token}", f"run.h5.lock.{'e' * 16}", "run.h5.locked"]
        kept += ["other.h5.lock." + "f" * 16]
        for name, holder in zip(kept, (alive, ELSEWHERE, dead, dead), strict=True):
            leave(path.with_name(name), holder)
    assert names(path.parent) == sorted(kept)


@pytest.mark.parametrize("other", [ELSEWHERE, None])
def test_a_holder_that_has_lost_its_lock_finds_out(
    path: Path, lock: Path, other: Holder | None
) -> None:
    mine = lease.take(path)
    if other is None:
        lock.unlink()
    else:
        leave(lock, other)
    said = r"its lock run\.h5\.lock is gone" if other is None else "has taken it over while this"
    with pytest.raises(Failure, match=said):
        mine.check()
    mine.release()
    assert lock.exists() == (other is not None), "it removes no other's lock"


def test_a_copy_of_the_process_releases_nothing(path: Path, lock: Path) -> None:
    with lease.take(path) as mine:
        child = os.fork()
        if child == 0:
            mine.release()
            os._exit(0)
        os.waitpid(child, 0)
        mine.check()


def test_a_process_that_ends_gives_its_lock_back(path: Path, lock: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from fedmpi.results import lease\n"
        "lease.take(Path(sys.argv[1])); raise RuntimeError"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOM, timeout=PATIENCE)
    assert done.returncode == 1
    assert names(path.parent) == []


@pytest.mark.parametrize("make", [Path.mkdir, lambda lock: lock.symlink_to("nowhere")])
def test_a_lock_that_is_no_file(path: Path, lock: Path, make: Any) -> None:
    make(lock)
    with pytest.raises(BadInput, match=rf"{lock.name}: wanted a file that locks .*; remove it"):
        lease.take(path)


def test_a_holder_is_told_in_letters_that_a_terminal_shows() -> None:
    assert str(replace(ELSEWHERE, host="a\x1b[31mb")).endswith(" on a?[31mb")


def test_links_to_a_result_have_its_lock(path: Path, tmp_path: Path) -> None:
    path.touch()
    other = tmp_path / "other.h5"
    other.symlink_to(path)
    with lease.take(other) as mine:
        assert mine.path == path.resolve()
        with pytest.raises(Held):
            lease.take(path)


RACE = """
import json, os, sys
from dataclasses import asdict, replace
from pathlib import Path
from fedmpi.results import lease

path = Path(sys.argv[1])
lock = path.with_name(path.name + ".lock")
lease.STALE, lease.NAP = 0.05, 0.001
with lease.take(path) as mine:
    here = replace(mine.mine, began=1)
for turn in range(int(sys.argv[2])):
    kind = turn % 4
    if kind == 1:
        lock.write_text(json.dumps(asdict(replace(here, token=f"{turn:x}"))))
    elif kind == 2:
        lock.write_text(json.dumps(asdict(replace(here, token=f"{turn:x}", host="elsewhere"))))
    elif kind == 3:
        lock.touch()
    (go, start), (tell, told), (end, stop) = os.pipe(), os.pipe(), os.pipe()
    children = []
    for _ in range(int(sys.argv[3])):
        child = os.fork()
        if child == 0:
            os.close(start), os.close(stop)
            os.read(go, 1)
            try:
                mine, word = lease.take(path), b"w"
            except lease.Held:
                mine, word = None, b"h"
            os.write(told, word)
            os.read(end, 1)
            if mine is not None:
                try:
                    mine.check()
                except BaseException:
                    os._exit(1)
                mine.release()
            os._exit(0)
        children.append(child)
    os.close(go), os.close(end), os.close(told)
    os.close(start)
    words = b""
    while len(words) < len(children) and (more := os.read(tell, 99)):
        words += more
    os.close(stop)
    codes = [os.waitpid(child, 0)[1] for child in children]
    os.close(tell)
    print(words.count(b"w"), words.count(b"h"), any(codes), *sorted(os.listdir(path.parent)))
"""
"""So many turns in which so many processes begin at once to take a lock: one that is not there, one
of a process that has died, one of another machine that nobody touches, one that says nothing."""


@linux
def test_of_many_exactly_one_takes_it(path: Path) -> None:
    turns, many = 40, 12
    words = [sys.executable, "-c", RACE, str(path), str(turns), str(many)]
    done = subprocess.run(words, cwd=ROOM, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"1 {many - 1} False"] * turns


@linux
def test_a_process_of_somebody_else(path: Path, lock: Path) -> None:
    """It lives although it may not be signalled."""
    if os.geteuid() == 0:
        pytest.skip("root may signal every process")
    with lease.take(path) as mine:
        began = lease._began(1)
        assert began is not None
        leave(lock, replace(mine.mine, token="ab" * 8, pid=1, began=began))
        with pytest.raises(Held):
            lease.take(path)
