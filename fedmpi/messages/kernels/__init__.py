"""Loops over numpy arrays that run as machine code; they know neither torch nor the wire format.

A kernel is a function that numba compiles when it is first called, so that a process that calls
none never imports numba. It has one signature, its loops release Python's lock, and its arithmetic
is that of the source, operation by operation: a processor with other instructions computes the
same bits. `spread` runs a kernel over the parts of a vector in the threads of a rank.

Compiled code is kept in a folder, $NUMBA_CACHE_DIR or in the user's cache folder, for the next
process. In it each kind of machine and each version of these sources has a folder of its own.
Ranks that start together on a shared file system may write it at once: a kernel has two files there
that always have the same names and content, and each appears under its name as a whole. Where
nothing can be written, every process compiles for itself.
"""

import functools
import hashlib
import os
import platform
import re
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar, cast

LEAST = 1 << 15
"""Elements of a part that are worth a thread."""
ALIGNED = 64
"""Parts begin at multiples of this, so that no two share a byte of a bitmap or a cache line."""

Function = TypeVar("Function", bound=Callable)
Result = TypeVar("Result")

_lock = RLock()


class _Kernel:
    """A function that is compiled at its first call, or when another kernel that calls it is."""

    def __init__(self, signature: str, function: Callable) -> None:
        functools.update_wrapper(self, function)
        # numba reads signatures in terms of its types.
        self.signature = re.sub(r"const (\w+)\[((?::, )*)::1\]", _read_only, signature)
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.compiled(*arguments)

    @functools.cached_property
    def compiled(self) -> Callable:
        with _lock:
            found = self.__dict__.get("compiled")
            return self._compile() if found is None else found

    @property
    def _numba_type_(self) -> Any:
        """What numba takes this object for where another kernel calls it."""
        return self.compiled._numba_type_  # type: ignore[attr-defined]

    def _compile(self) -> Callable:
        import numba

        options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
        folder = _folder()
        if folder is not None:
            config: Any = numba.config
            before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
            try:
                return numba.njit(self.signature, cache=True, **options)(self.function)
            except Exception:  # a full disk, or a file that a crash of the machine damaged
                _discard(folder, self.function.__qualname__)
            finally:
                config.CACHE_DIR = before
        return numba.njit(self.signature, **options)(self.function)


def _read_only(found: re.Match) -> str:
    return f"Array({found[1]}, {found[2].count(':') + 1}, 'C', True)"


def kernel(signature: str) -> Callable[[Function], Function]:
    """Compiles a function of numbers and numpy arrays with numba at its first call.

    Kernels may call kernels. All code that a kernel depends on lies in this package.

    Args:
        signature: types of the result and arguments in numba's terms, `void(float32[::1], int64)`.
            An array that is only read is `const float32[::1]`: others must be writable.
    """

    def made(function: Function) -> Function:
        return cast(Function, _Kernel(signature, function))

    return made


@functools.cache
def _folder() -> Path | None:
    """Returns the folder of code for this machine from these sources; None if none is writable."""
    import numba
    from numba.core.registry import cpu_target
    from platformdirs import user_cache_path

    named = os.environ.get("NUMBA_CACHE_DIR")
    versions = platform.python_version(), numba.__version__
    machine = cpu_target.target_context.codegen().magic_tuple()
    identity = hashlib.sha256(repr((machine, versions)).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        identity.update(path.read_bytes())
    above = Path(named).absolute() if named else user_cache_path("fedmpi") / "kernels"
    folder = above / f"{machine[1]}-{identity.hexdigest()[:16]}"
    try:
        if above.is_absolute():  # it is not where the user has no home
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            return folder
    except OSError:
        pass
    return None


def _discard(folder: Path, name: str) -> None:
    """Removes a kernel's files, so that the next process makes them anew."""
    for path in folder.rglob(f"*.{name}-*"):
        try:
            path.unlink(missing_ok=True)
        except OSError:
            return


_pool: ThreadPoolExecutor | None = None
_threads = 1


def use_threads(count: int) -> None:
    """Sets how many threads `spread` uses. Results never depend on it."""
    global _pool, _threads
    with _lock:
        if count != _threads:
            _pool, _threads = None if count == 1 else ThreadPoolExecutor(count - 1), count


def parts(size: int) -> list[tuple[int, int]]:
    """Divides a vector of `size` elements among the threads: starts and stops, at least one."""
    count = max(1, min(_threads, size // LEAST))
    step = -(-size // (count * ALIGNED)) * ALIGNED
    return [(start, min(size, start + step)) for start in range(0, max(1, size), max(1, step))]


def spread(function: Callable[[int, int], Result], size: int) -> list[Result]:
    """Returns function(start, stop) for each part of a vector, in order; parts run in threads.

    Args:
        function: calls a kernel for a part; it must not call `spread`.
        size: elements of the vector.
    """
    if _pool is None or size < 2 * LEAST:
        return [function(0, size)]
    return run(function, parts(size))


def run(function: Callable[..., Result], arguments: Sequence[tuple]) -> list[Result]:
    """Returns function(*each) for each of the `arguments`, in order; the calls run in threads."""
    pool, (first, *rest) = _pool, arguments
    if pool is None or not rest:
        return [function(*each) for each in arguments]
    others = [pool.submit(function, *each) for each in rest]
    return [function(*first), *(each.result() for each in others)]
