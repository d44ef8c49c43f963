"""Hardware of a rank: its device and threads."""

import os
from concurrent.futures import ThreadPoolExecutor

import torch

from fedmpi.config import ConfigError, Settings
from fedmpi.messages import kernels
from fedmpi.messages.wire import Place
from fedmpi.provenance import cores
from fedmpi.training.rows import Each

MOST = 1024
"""Threads of a rank, whatever $OMP_NUM_THREADS says."""


def pick_device(settings: Settings, place: Place) -> torch.device:
    """Returns the device of a rank: `device`, or `server_device` on a dedicated server.

    `cuda` spreads the ranks of a node over its devices.

    Raises:
        ConfigError: if there is no such device; a GPU that is asked for is never replaced.
    """
    setting, name = "device", settings.device
    if settings.server_device and place.is_root and place.ranks > 1:
        setting, name = "server_device", settings.server_device
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    number = int(name[5:]) if ":" in name else place.local_rank % max(count, 1)
    if number >= count:
        raise ConfigError(
            f"{setting} = '{name}': there are {count} CUDA devices here; cpu is possible"
        )
    # Streams and graphs are created on the current device by default.
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def threads(settings: Settings) -> int:
    """Returns the number of threads of a rank.

    It is the setting `threads`, or else the first number in $OMP_NUM_THREADS, as OpenMP reads it,
    or 1.
    """
    if settings.threads is not None:
        return settings.threads
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(max(1, int(first)), MOST) if first.isdecimal() else 1


def use_threads(count: int) -> None:
    """Sets how many threads the operations of this process use: Torch's, and our kernels."""
    torch.set_num_threads(count)
    kernels.use_threads(count)


def pool(settings: Settings, place: Place) -> tuple[int, Each]:
    """Returns the `map` by which the server of a split method processes its clients' backs.

    On the server this is a thread pool on the cores that no rank of the node needs. On all other
    ranks, and with one thread, it is the built-in `map`. A client's back runs in one thread of the
    pool, with as many Torch threads as a rank has, so that results do not depend on the size of the
    pool.

    Returns:
        The number of threads, and the `map`.
    """
    each = threads(settings)
    left = cores() - (place.local_size - 1) * each
    count = settings.server_threads or max(1, left // each)
    if count == 1 or not place.is_root:
        return 1, map
    # Set in each thread, because a new thread may start a product before it reads the number.
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(each,))
    return count, pool.map


def use_tf32(on: bool) -> None:
    """Allows or forbids a GPU to round the inputs of matrix products to TF32."""
    kind = "tf32" if on else "ieee"
    torch.backends.cuda.matmul.fp32_precision = kind
    torch.backends.cudnn.conv.fp32_precision = kind  # type: ignore[attr-defined]
