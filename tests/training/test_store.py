"""What clients keep: as a dict would hold it, within the memory that it may take."""

import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmpi.config import State
from fedmpi.errors import BadInput, Failure
from fedmpi.training import store
from fedmpi.training.store import Store, StoreError, Stores
from tests import linux
from tests.small import run, small

ROOM = Path(__file__).parent.parent.parent
MIB = 1 << 20


def vector(number: float, size: int = 4) -> Tensor:
    return torch.arange(size) + float(number)


def in_memory(kept: Store) -> int:
    """Bytes that its blocks take."""
    return sum(block.nbytes for block in kept.blocks)


def in_file(kept: Store) -> int:
    """Bytes of its file."""
    return os.fstat(kept.file.fileno()).st_size


@pytest.mark.parametrize("block", [1, 5000, store.BLOCK])
@pytest.mark.parametrize(
    ("size", "memory"),
    # In memory lie: all; 260; 26; 1; all, none.
    [(3, 1), (1001, 1), (10_007, 1), (200_000, 1), (70_001, 64), (300_001, 1), (1001, 0)],
)
def test_it_is_a_dict(size: int, memory: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random clients put and get; sizes fit neither pages nor blocks."""
    monkeypatch.setattr(store, "BLOCK", block)
    kept, plain = Store(State(memory=memory), size), dict[int, Tensor]()
    random, torch_random = np.random.default_rng(size), torch.Generator().manual_seed(size)
    clients = min(400, 4_000_000 // size)
    for client in random.integers(clients, size=3 * clients).tolist():
        assert (client in kept) == (client in plain)
        if client in plain:
            assert torch.equal(kept[client], plain[client])
        given = torch.randn(size, generator=torch_random)
        kept[client], plain[client] = given, given.clone()
        given.fill_(torch.nan)
    assert len(kept) == len(plain)
    assert list(kept) == list(plain)
    for client, wanted in plain.items():
        found = kept[client]
        assert (found.shape, found.dtype, found.device.type) == ((size,), torch.float32, "cpu")
        assert found.data_ptr() % 64 == 0
        assert torch.equal(found, wanted)
    whole = (4 * size + 63) // 64 * 64
    held = min(len(kept), memory * MIB // whole)
    assert held * whole <= in_memory(kept) <= min(memory * MIB, held * whole + block)
    # The last vector has no padding behind it.
    assert 0 <= (len(kept) - held) * whole - in_file(kept) < 64


@pytest.mark.parametrize("memory", [1, 0], ids=["memory", "file"])
def test_what_goes_in_and_what_comes_out(memory: int) -> None:
    kept = Store(State(memory=memory), 4)
    assert not kept
    assert 7 not in kept
    with pytest.raises(KeyError):
        kept[7]
    kept[7] = vector(1)
    kept[3] = torch.arange(8.0)[::2]
    kept[5] = torch.ones(4, requires_grad=True)
    early, other = kept[7], kept[3]
    assert (early.tolist(), other.tolist()) == ([1, 2, 3, 4], [0, 2, 4, 6])
    kept[3] = vector(9)
    assert early.tolist() == [1, 2, 3, 4], "another client's change is none of mine"
    assert kept[3].tolist() == [9, 10, 11, 12]
    assert not kept[5].requires_grad
    assert len(kept) == 3
    bits = torch.tensor([-0.0, torch.inf, torch.nan, 1e-45])
    kept[7] = bits
    assert torch.equal(kept[7].view(torch.int32), bits.view(torch.int32))


@pytest.mark.parametrize("memory", [1, 0])
@pytest.mark.parametrize(
    "wrong", [vector(0, 5), vector(0)[:1], vector(0)[None], vector(0).double(), torch.tensor(1.0)]
)
def test_only_such_vectors_go_in(wrong: Tensor, memory: int) -> None:
    kept = Store(State(memory=memory), 4)
    with pytest.raises(ValueError, match=r"wanted a vector, torch.float32 \[4\], found torch"):
        kept[0] = wrong
    assert 0 not in kept


TYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
]


def some(size: int, dtype: torch.dtype, seed: int) -> Tensor:
    """A vector of any bits that the type can have, but for NaN."""
    random = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.rand(size, generator=random) < 0.3
    if dtype.is_floating_point:
        return torch.randn(size, generator=random).to(dtype)
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max, (size,), generator=random, dtype=dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1001, 300_001])
@pytest.mark.parametrize("memory", [1, 0], ids=["memory", "file"])
def test_vectors_of_every_type_come_back_as_they_were(
    dtype: torch.dtype, size: int, memory: int
) -> None:
    """Of the largest, some lie in memory and some in the file."""
    kept = Store(State(memory=memory), size, dtype)
    given = {client: some(size, dtype, client) for client in (5, 2, 9, 4, 0, 7)}
    for client in (*given, 2):
        kept[client] = given[client]
    if size:
        kept[9] = given[9] = some(2 * size, dtype, 99)[::2]
    assert list(kept) == list(given)
    for client, wanted in given.items():
        found = kept[client]
        assert (found.dtype, found.shape, found.device.type) == (dtype, (size,), "cpu")
        assert not size or dtype == torch.bool or found.data_ptr() % 64 == 0
        assert torch.equal(found, wanted)


def test_bools_take_a_bit_each_in_memory_and_in_the_file() -> None:
    """A mask of float32 takes 32 times as much; every vector begins at a cache line."""
    size, clients = 1_000_000, 12
    assert Store(State(), size, torch.bool).nbytes == 125_000
    assert [Store(State(), n, torch.bool).nbytes for n in (0, 1, 8, 9)] == [0, 1, 1, 2]
    for memory in (1024, 0):
        masks, factors = Store(State(memory=memory), size, torch.bool), Store(State(), size)
        for client in range(clients):
            masks[client] = torch.ones(size, dtype=torch.bool)
        assert factors.nbytes == 32 * masks.nbytes
        each = (masks.nbytes + 63) // 64 * 64
        taken = in_memory(masks) if memory else in_file(masks)
        assert taken == (store.BLOCK // each * each if memory else 11 * each + masks.nbytes)
    assert Store(State(memory=1), size, torch.bool).capacity == 8
    assert Store(State(memory=1), size).capacity == 0


def test_what_a_mask_gives_is_not_the_stores_own() -> None:
    kept = Store(State(), 10, torch.bool)
    kept[0] = torch.ones(10, dtype=torch.bool)
    kept[0].fill_(False)
    assert kept[0].all()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("memory", [1, 0])
def test_a_vector_of_another_type_is_refused(dtype: torch.dtype, memory: int) -> None:
    kept = Store(State(memory=memory), 4, dtype)
    wrong = torch.zeros(4, dtype=torch.int64 if dtype == torch.bool else torch.bool)
    with pytest.raises(ValueError, match=rf"wanted a vector, {dtype} \[4\], found {wrong.dtype} "):
        kept[0] = wrong
    assert 0 not in kept


def test_stores_have_names() -> None:
    stores = Stores(State(memory=3))
    assert not stores
    residuals, masks = stores.add("residual", 4), stores.add("mask", 9, torch.bool)
    assert dict(stores) == {"residual": residuals, "mask": masks}
    assert (masks.size, masks.dtype, masks.settings.memory) == (9, torch.bool, 3)
    with pytest.raises(
        ValueError, match=r"store 'mask': wanted a name of its own, .*taken are: residual, mask"
    ):
        stores.add("mask", 9, torch.bool)
    assert stores["mask"] is masks


def test_a_ranks_stores_are_the_trainers() -> None:
    engine = run(small("method.name=topk")).engine
    assert dict(engine.trainer.stores) == {"residual": engine.clients.feedback.residuals.arrived}
    assert sorted(engine.trainer.stores["residual"]) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="store 'residual'"):
        engine.trainer.stores.add("residual", 1)


@linux
@pytest.mark.parametrize("given", [True, False], ids=["given", "the system's"])
def test_nothing_is_left_in_the_folder(
    given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = os.listdir("/proc/self/fd")
    kept = Store(State(memory=0, folder=str(tmp_path) if given else None), 1000)
    for client in range(9):
        kept[client] = vector(client, 1000)
    assert str(tmp_path) in os.readlink(f"/proc/self/fd/{kept.file.fileno()}")
    assert in_file(kept) >= 9 * 4000
    assert list(tmp_path.iterdir()) == [], "not even while it is in use"
    del kept
    assert len(os.listdir("/proc/self/fd")) == len(before), "its space is free again at once"


@linux
def test_a_run_that_is_over_gives_its_file_back() -> None:
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))
        run(small("method.name=topk", "state.memory=0"))
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("folder", "found"), [("missing", "no such file or folder"), ("file", "a part of the path")]
)
def test_a_folder_that_is_none(folder: str, found: str, tmp_path: Path) -> None:
    """Known when the store is built, that is before anything is sent."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=f"state.folder = {tmp_path / folder}: {found}"):
        Store(State(folder=str(tmp_path / folder)), 4)
    assert issubclass(StoreError, BadInput)


def test_no_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "lost")])
    with pytest.raises(StoreError, match=r"state.folder = absent: no such file or folder"):
        Store(State(), 4)


@linux
def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> object:
        return open("/dev/full", "w+b", buffering=0)

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    kept = Store(State(memory=1, folder="/scratch"), MIB // 8)
    kept[0] = kept[1] = vector(0, MIB // 8)
    with pytest.raises(Failure, match=r"/scratch: no space is left .*memory = 1 MiB"):
        kept[2] = vector(2, MIB // 8)
    assert 2 not in kept
    kept[1] = vector(1, MIB // 8)


FILE_LIMIT = """
import resource, sys, torch
from fedmpi.config import State
from fedmpi.errors import Failure
from fedmpi.training.store import Store, Stores

resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000))
kept = Store(State(memory=0), 1_000_000)
kept[0] = kept[1] = torch.ones(1_000_000)
try:
    kept[2] = torch.ones(1_000_000)
except Failure as error:
    print(error)
print(list(kept), float(kept[0].sum() + kept[1].sum()))
"""

BOUND = """
import torch
from fedmpi.config import State
from fedmpi.training.store import Store

def peak():
    lines = (line.split() for line in open("/proc/self/status"))
    return next(int(words[0]) / 1024 for name, *words in lines if name == "VmHWM:")

vector = torch.ones(1_000_000)
for memory in (32, 1024):
    before, kept = peak(), Store(State(memory=memory), len(vector))
    for client in range(64):
        kept[client] = vector.fill_(client)
    for client, found in kept.items():
        assert found[-1] == client
        kept[client] = vector
    print(peak() - before)
"""


def said(program: str, *words: str) -> str:
    """What the program prints, run by itself."""
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=ROOM, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_vector_that_fits_in_part() -> None:
    problem, rest = said(FILE_LIMIT).splitlines()
    assert "larger than a file may be here (ulimit -f); raise the limit or name a folder" in problem
    assert rest == "[0, 1] 2000000.0", "what was there before is still there"


@linux
def test_memory_is_bounded() -> None:
    """64 vectors take 244 MiB; the limit is 32, and some 20 are code, and vectors that are read."""
    bounded, free = map(float, said(BOUND).split())
    assert bounded < 32 + 64
    assert free > bounded + 64


@pytest.mark.parametrize("memory", [1, 0])
def test_a_vector_in_memory_is_lent(memory: int) -> None:
    kept = Store(State(memory=memory), 4)
    kept[3] = vector(1)
    kept[5] = vector(2)
    lent = kept.lend(3)
    assert (lent is not None) == bool(memory)
    if lent is not None:
        lent += 10
        kept[3] = lent
        assert lent.data_ptr() == kept[3].data_ptr()
        assert torch.equal(kept[3], vector(11))
    assert torch.equal(kept[5], vector(2))


def test_packed_bools_are_not_lent() -> None:
    kept = Store(State(), 9, torch.bool)
    kept[0] = torch.ones(9, dtype=torch.bool)
    assert kept.lend(0) is None
