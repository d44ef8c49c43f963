"""A set is decoded once, whoever comes together, and whatever kills him in the middle."""

import os
import signal
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from fedmpi import config
from fedmpi.data import Dataset, cache, content
from fedmpi.data.files import DataError
from fedmpi.datasets import cifar10, mnist
from tests import PATIENCE, until
from tests.made import SHARED, binary, read, real, write_cifar10, write_idx, write_qmnist, writers

pytestmark = pytest.mark.usefixtures("nowhere")

ROOM = Path(__file__).parent.parent.parent


class Config(config.Data):
    size: int = 4


class Set:
    """A set of one file, which counts how often it was decoded."""

    def __init__(self, folder: Path, **given: Any) -> None:
        self.home = folder / "cache"
        self.settings = Config(name="made", cache=str(self.home), **given)
        self.source, self.known = folder / "source", {"source": "unlike any"}
        self.count = 0
        if not self.source.exists():
            self.source.write_bytes(bytes(range(100)))

    def decode(self) -> Dataset:
        self.count += 1
        x = np.frombuffer(self.source.read_bytes(), np.uint8).astype(np.float32)[:, np.newaxis]
        y = np.arange(len(x)) % self.settings.size
        return Dataset(x, y, x[:5] + 1, y[:5], self.settings.size, train_owners=y // 2)

    def __call__(self) -> Dataset:
        return cache.decoded(self.settings, [self.source], self.known, lambda: self.decode())

    @property
    def folders(self) -> list[Path]:
        return [path for path in self.home.iterdir() if path.is_dir()]


@pytest.fixture
def made(root: Path) -> Set:
    return Set(root)


def equal(one: Dataset, other: Dataset) -> None:
    for name in ("train_x", "train_y", "test_x", "test_y", "train_owners", "test_owners"):
        left, right = getattr(one, name), getattr(other, name)
        assert (left is None) == (right is None), name
        if left is not None:
            np.testing.assert_array_equal(left, right)
            assert left.dtype == right.dtype
    assert (one.classes, one.origin) == (other.classes, other.origin)


# ---- what is kept


def test_it_is_decoded_once(made: Set) -> None:
    wanted = replace(made.decode(), origin="not the official source")
    made.count = 0
    for _ in range(3):
        equal(made(), wanted)
    assert made.count == 1
    (folder,) = made.folders
    assert folder.name.startswith("test-cache-")


def test_arrays_are_mapped_and_writes_are_private(made: Set) -> None:
    first = made()
    for _ in range(2):
        found = made()
        owner = found.train_x
        while not isinstance(owner, np.memmap):
            owner = owner.base
        assert type(found.train_x) is np.ndarray
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tensor = torch.from_numpy(found.train_x)
        assert tensor[7, 0] == 7
        tensor[7, 0] = -1
        found.train_y[:] = 3
    equal(made(), first)


def test_without_owners(made: Set) -> None:
    made.decode, whole = lambda: replace(whole, train_owners=None), made.decode()
    for _ in range(2):
        assert made().train_owners is None


def test_origin(made: Set) -> None:
    made.known = {}
    assert made().origin == "unknown"
    made.source.write_bytes(b"one")
    made.known = {"source": "f97c5d29941bfb1b2fdab0874906ab82"}
    assert [made().origin for _ in range(2)] == ["official"] * 2
    made.source.write_bytes(b"four")
    assert made().origin == "not the official source"


@pytest.mark.parametrize(
    ("module", "origin"),
    [
        pytest.param(mnist, "official", id="mnist", marks=real("mnist")),
        pytest.param(cifar10, "unknown", id="cifar10", marks=real("cifar10-12k")),
    ],
)
def test_origin_of_real_files(module: ModuleType, origin: str) -> None:
    assert read(module, SHARED).origin == origin


def test_origin_of_a_subset(root: Path) -> None:
    write_idx(root, [1], [2], packed=True)
    names = ", ".join(f"{path.name}" for path in mnist.idx.paths(root))
    assert read(mnist, root).origin == f"not the official {names}"


# ---- when it is decoded anew


def test_a_changed_file(made: Set) -> None:
    made()
    made.source.write_bytes(bytes(50))
    assert len(made().train_x) == 50
    made.source.write_bytes(bytes(49) + b"\1")
    os.utime(made.source, ns=(1, 1))
    assert made().train_x[-1] == 1
    assert made.count == 3


def test_a_changed_setting(root: Path, made: Set) -> None:
    made()
    other = Set(root, size=3)
    assert other().classes == 3 and other.count == 1
    elsewhere = Set(root, root="elsewhere")
    assert elsewhere().classes == 4 and elsewhere.count == 0


def test_a_changed_reader(made: Set, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made()
    folder = root / "layouts"
    folder.mkdir()
    for path in Path(cache.layouts.__path__[0]).glob("*.py"):
        (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(cache.layouts, "__path__", [str(folder)])
    made()
    assert made.count == 1
    with (folder / "idx.py").open("a") as file:
        file.write("\n")
    made()
    assert made.count == 2


def test_a_file_that_changes_meanwhile(made: Set) -> None:
    def decode() -> Dataset:
        found = Set.decode(made)
        made.source.write_bytes(b"other")
        return found

    made.decode = decode
    with pytest.raises(DataError, match="changed while they were read"):
        made()
    assert not made.folders


def test_a_file_that_is_missing(made: Set) -> None:
    made.source.unlink()
    with pytest.raises(DataError, match=r"source: No such file"):
        made()


@pytest.mark.parametrize(
    "name",
    ["train_x.npy", "train_y.npy", "test_x.npy", "test_y.npy", "train_owners.npy", "about.json"],
)
@pytest.mark.parametrize("keep", [None, 0, 40, -1])
def test_a_damaged_file_in_the_cache(made: Set, name: str, keep: int | None) -> None:
    first = made()
    (folder,) = made.folders
    content = (folder / name).read_bytes()
    # What is mapped must not shrink under its user, so that the damage is another file.
    (folder / name).unlink()
    if keep is not None:
        (folder / name).write_bytes(content[:keep])
    for _ in range(2):
        equal(made(), first)
    assert made.count == 2
    assert made.folders == [folder]


@pytest.mark.parametrize(
    "name", ["train_x", "train_y", "test_x", "test_y", "train_owners", "about.json"]
)
def test_a_flipped_bit_in_the_cache(made: Set, name: str) -> None:
    first = made()
    (folder,) = made.folders
    path = folder / (name if "." in name else f"{name}.npy")
    content = bytearray(path.read_bytes())
    at = content.index(b'"classes": 4') + 11 if "." in name else -8
    content[at] ^= 1
    # What is mapped must not change under its user, so that the damage is another file.
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    for _ in range(2):
        equal(made(), first)
    assert made.count == 2
    assert made.folders == [folder]


def test_arrays_are_hashed_once_per_process(made: Set, monkeypatch: pytest.MonkeyPatch) -> None:
    first, hashed = made(), []
    monkeypatch.setattr(cache, "content", lambda *given: hashed.append(given))
    for _ in range(3):
        equal(made(), first)
    assert not hashed and made.count == 1


def test_what_is_hashed_is_not_held(made: Set, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash of a set that is read in pieces is that of its arrays."""
    monkeypatch.setattr(cache, "PIECE", 7)
    assert made().sha256 == content(made.decode())
    assert made.count == 2


# ---- who comes together, and who is killed

TOGETHER = """
import hashlib, os, pathlib, signal, sys
from fedmpi.datasets import mnist
from fedmpi.data.layouts import idx
from tests import until

marks, root = map(pathlib.Path, sys.argv[1:3])
victims = int(sys.argv[3])
real = idx.images

def counting(*given):
    (marks / str(os.getpid())).touch(exist_ok=False)
    if len(list(marks.iterdir())) <= victims:
        until(lambda: len(list(marks.parent.glob("wants*"))) == 8)
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*given)

idx.images = counting
(marks.parent / f"ready{os.getpid()}").touch()
until((marks.parent / "go").exists)
(marks.parent / f"wants{os.getpid()}").touch()
found = mnist.load(mnist.Config(root=str(root)), 1)
for name in ("train_x", "train_y", "test_x", "test_y", "train_owners", "test_owners"):
    print(name, hashlib.sha256(getattr(found, name)).hexdigest())
print(found.origin, found.classes)
"""


@pytest.mark.parametrize("victims", [0, 2])
def test_eight_processes_on_a_cold_cache(
    root: Path, victims: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One decodes; if he is killed, one of those who wait for him does."""
    marks, source = root / "marks", root / "mnist"
    marks.mkdir()
    monkeypatch.setenv("FEDMPI_CACHE", str(root / "cache"))
    if (SHARED / "mnist").is_dir():
        source = SHARED / "mnist"
    else:
        digits = [number % 10 for number in range(1000)]
        write_idx(source, digits, digits[:100], packed=True)
        write_qmnist(source, writers(digits, digits), writers(digits[:100], digits[:100]))
    words = [sys.executable, "-c", TOGETHER, str(marks), str(source), str(victims)]
    processes = [
        subprocess.Popen(words, cwd=ROOM, stdout=subprocess.PIPE, text=True) for _ in range(8)
    ]
    assert until(lambda: len(list(root.glob("ready*"))) == 8)
    (root / "go").touch()
    said = Counter(process.communicate(timeout=PATIENCE)[0] for process in processes)
    codes = Counter(process.returncode for process in processes)
    assert codes == Counter({0: 8 - victims, -signal.SIGKILL: victims})
    assert len(list(marks.iterdir())) == 1 + victims
    assert said.pop("", 0) == victims
    ((text, count),) = said.items()
    assert count == 8 - victims and text.count("\n") == 7
    (folder,) = [path for path in (root / "cache").iterdir() if path.is_dir()]
    assert folder.name.startswith("mnist-")


KILLED = """
import os, pathlib, signal, sys
import numpy as np
from fedmpi.datasets import cifar10
from fedmpi.data.layouts import cifar

root, when = sys.argv[1:]
calls = 0

def killing(real, last):
    def called(*given, **named):
        global calls
        calls += 1
        if calls == last:
            file = given[0]
            if when == "write":
                pathlib.Path(file).write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)
    return called

if when == "decode":
    cifar.read = killing(cifar.read, 3)
elif when == "write":
    np.save = killing(np.save, 2)
else:
    os.rename = pathlib.os.rename = killing(os.rename, 1)
cifar10.load(cifar10.Config(root=root), 1)
"""


@pytest.mark.parametrize("when", ["decode", "write", "rename"])
def test_a_process_that_is_killed(root: Path, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home, source = root / "cache", root / "set"
    monkeypatch.setenv("FEDMPI_CACHE", str(home))
    write_cifar10(source, binary, ".bin")
    words = [sys.executable, "-c", KILLED, str(source), when]
    for _ in range(2):
        assert subprocess.run(words, cwd=ROOM, timeout=PATIENCE).returncode == -signal.SIGKILL
        left = [path for path in home.iterdir() if path.is_dir()]
        assert all(path.suffix == ".part" for path in left)
        assert len(left) == (when != "decode"), "what one left the next cleans up"
    found = read(cifar10, source)
    assert np.bincount(found.train_y).tolist() == [0, 1, 2, 3, 4, 5]
    (folder,) = [path for path in home.iterdir() if path.is_dir()]
    assert folder.suffix == "" and folder.name.startswith("cifar10-")


def test_another_node_was_faster(made: Set, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder is there, but the file system shows it only when ours cannot be moved there."""
    real, seen = cache._mapped, []

    def blind(whole: Path) -> Dataset | None:
        seen.append(whole)
        return None if len(seen) == 2 else real(whole)

    def decode() -> Dataset:
        found = Set.decode(made)
        cache._write(replace(found, origin="theirs", sha256=content(found)), seen[0])
        return found

    made.decode = decode
    monkeypatch.setattr(cache.shutil, "rmtree", lambda *_, **__: None)
    monkeypatch.setattr(cache, "_mapped", blind)
    assert made().origin == "theirs"


# ---- folders


def test_folders(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMPI_CACHE", "~/theirs")
    assert cache.folder(config.Data(cache="mine")) == nowhere / "mine"
    assert cache.folder(config.Data()) == nowhere / "theirs"
    monkeypatch.delenv("FEDMPI_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.folder(config.Data()) == nowhere / ".cache" / "fedmpi" / "decoded"


def test_a_folder_that_cannot_be_made(made: Set) -> None:
    made.home.write_bytes(b"a file")
    with pytest.raises(
        DataError, match=r"name another folder for decoded data.*data\.cache"
    ) as error:
        made()
    assert str(error.value).startswith(str(made.home))


def test_a_file_system_without_locks(made: Set, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(lock: Any) -> None:
        raise NotImplementedError("no locks here")

    monkeypatch.setattr(cache.FileLock, "acquire", acquire)
    with pytest.raises(DataError, match="the file system has no locks; name another folder"):
        made()


def test_what_fails_in_a_reader_is_not_blamed_on_the_cache(made: Set) -> None:
    def decode() -> Dataset:
        raise OSError("of the reader")

    made.decode = decode
    with pytest.raises(OSError, match="of the reader"):
        made()
    made.decode = lambda: Set.decode(made)
    assert len(made().train_x) == 100


FULL = """
import resource, sys
from fedmpi.datasets import cifar10
from fedmpi.data.files import DataError

resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    cifar10.load(cifar10.Config(root=sys.argv[1]), 1)
except DataError as error:
    sys.exit(str(error))
"""


def test_no_room(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the size of files stands in for a full disk."""
    home, source = root / "cache", root / "set"
    monkeypatch.setenv("FEDMPI_CACHE", str(home))
    write_cifar10(source, binary, ".bin")
    words = [sys.executable, "-c", FULL, str(source)]
    done = subprocess.run(words, cwd=ROOM, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1 and "name another folder for decoded data" in done.stderr
    assert not [path for path in home.iterdir() if path.is_dir()]
