"""Compiled code: when it is compiled, where it is kept, and that its arithmetic is the source's."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedmpi.messages import kernels
from fedmpi.messages.kernels import ALIGNED, LEAST, kernel
from tests import PATIENCE

ROOM = Path(__file__).parents[3]


@kernel("float32(float32, float32)")
def _twice(x: np.float32, y: np.float32) -> np.float32:
    return x * y + x * y


@kernel("void(const float32[::1], const float32[::1], float32[::1])")
def _fused(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(x)):
        out[i] += x[i] * y[i]


@kernel("float32(const float32[::1])")
def _sum(x: np.ndarray) -> np.float32:
    total = np.float32(0)
    for i in range(len(x)):
        total += _twice(x[i], x[i])
    return total


def test_products_are_rounded_before_they_are_added() -> None:
    """A processor with a fused multiply-add must not use it: others have none."""
    random = np.random.default_rng(0)
    x, y, out = random.standard_normal((3, 10_000)).astype(np.float32)
    wanted = out + x * y
    _fused(x, y, out)
    assert np.array_equal(out, wanted)


def test_sums_are_added_in_the_order_of_the_source() -> None:
    """Vector units would add every eighth value; and a kernel can call another."""
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    x.flags.writeable = False
    total = np.float32(0)
    for each in x:
        total += each * each + each * each
    assert _sum(x) == total


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("size", [0, 1, ALIGNED, LEAST, 2 * LEAST - 1, 2 * LEAST, 5 * LEAST + 7])
def test_parts_make_up_the_vector(size: int, threads: int) -> None:
    kernels.use_threads(threads)
    try:
        parts = kernels.parts(size)
        found = kernels.spread(lambda start, stop: list(range(start, stop)), size)
    finally:
        kernels.use_threads(1)
    assert [i for part in found for i in part] == list(range(size))
    assert len(parts) == len(found) == max(1, min(threads, size // LEAST))
    assert all(start % ALIGNED == 0 for start, _ in parts)


def test_a_failure_in_a_thread_is_raised() -> None:
    def fail(start: int, _: int) -> None:
        if start:
            raise ValueError("here")

    kernels.use_threads(2)
    try:
        with pytest.raises(ValueError, match="here"):
            kernels.spread(fail, 2 * LEAST)
    finally:
        kernels.use_threads(1)


PROGRAM = """
import sys
import numpy as np
from fedmpi.messages import kernels
from fedmpi.messages.kernels import kernel

@kernel("int64(const int64[::1])")
def total(x):
    found = 0
    for each in x:
        found += each * each
    return found

assert "numba" not in sys.modules
print(total(np.arange(1000)), sum(total.compiled.stats.cache_hits.values()))
"""


def _start(cache: Path, **more: str) -> subprocess.Popen:
    # As a file, because numba keeps code of functions that come from one.
    program = cache.parent / "program.py"
    program.write_text(PROGRAM)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOM)} | more
    words = [sys.executable, str(program)]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, env=environment, stdout=pipe, stderr=pipe, text=True)


def _end(process: subprocess.Popen) -> tuple[int, ...]:
    """Returns the kernel's result, and how often its code was found in the folder."""
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    return tuple(map(int, out.split()))


WANTED = sum(x * x for x in range(1000))


def test_processes_that_start_together_keep_code_for_the_next(tmp_path: Path) -> None:
    cache = tmp_path / "new" / "cache"
    cache.parent.mkdir()
    for process in [_start(cache) for _ in range(4)]:
        assert _end(process)[0] == WANTED
    files = sorted(path for path in cache.rglob("*") if path.is_file())
    assert [path.suffix for path in files] == [".nbc", ".nbi"], "and nothing half written"
    assert _end(_start(cache)) == (WANTED, 1)


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("left", [0, 100])
def test_damaged_files_are_replaced(suffix: str, left: int, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    _end(_start(cache))
    (damaged,) = cache.rglob(f"*{suffix}")
    damaged.write_bytes(damaged.read_bytes()[:left])
    assert _end(_start(cache)) == (WANTED, 0)
    _end(_start(cache))
    assert _end(_start(cache)) == (WANTED, 1)


def test_without_a_folder_every_process_compiles_for_itself(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.write_text("a file")
    assert _end(_start(cache)) == (WANTED, 0)
    assert cache.read_text() == "a file"


def test_machines_of_two_kinds_share_no_files(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert _end(_start(cache)) == (WANTED, 0)
    assert _end(_start(cache, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")) == (WANTED, 0)
    assert len(list(cache.iterdir())) == 2
    assert len({path.parent for path in cache.rglob("*.nbc")}) == 2


@pytest.mark.parametrize("method", ["fedavg", "splitfed"])
def test_runs_that_send_dense_vectors_never_import_numba(method: str) -> None:
    program = (
        "import sys; from tests.small import run, small\n"
        f"run(small('method.name={method}'))\n"
        "print('numba' in sys.modules)"
    )
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, cwd=ROOM, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout.strip(), done.stderr) == ("False", "")
