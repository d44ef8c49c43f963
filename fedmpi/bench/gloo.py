"""torch's all_reduce over gloo, among the ranks of a job."""

from collections.abc import Callable
from datetime import timedelta

import numpy as np
import torch
from torch import distributed

from fedmpi.messages import wire as wires
from fedmpi.messages.wire import Wire

PATIENCE = timedelta(seconds=20)
"""For the ranks to find each other."""
NAME = 256
"""Bytes for the name of the root's node."""


class Gloo:
    """The group of all ranks; all of them make it, and leave it, together.

    Attributes:
        problem: why there is none, on the root; empty on every rank if there is one.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire, self.problem = wire, ""
        if not (distributed.is_available() and distributed.is_gloo_available()):
            self.problem = "torch has none"
        if wire.lowest(bool(self.problem)) is None:
            self._join()
        if wire.lowest(bool(self.problem)) is not None:
            self.problem = self.problem or "it does not join all ranks"
            self.end()

    def _join(self) -> None:
        """Meets at a port of the root that the system chooses."""
        host, port, store = np.zeros(NAME, np.uint8), np.zeros(1, np.int64), None
        if self.wire.is_root:
            name = np.frombuffer(wires.host().encode(), np.uint8)
            host[: len(name)] = name
            try:
                store = distributed.TCPStore(
                    wires.host(), 0, self.wire.size, True, PATIENCE, wait_for_workers=False
                )
                port[0] = store.port
            except (RuntimeError, ValueError) as error:
                self.problem = _sentence(error)
        host, port = self.wire.publish(host), self.wire.publish(port)
        if not port[0]:
            return
        try:
            if store is None:
                place = host.tobytes().rstrip(b"\0").decode()
                store = distributed.TCPStore(place, int(port[0]), self.wire.size, False, PATIENCE)
            distributed.init_process_group(
                "gloo", None, PATIENCE, self.wire.size, self.wire.rank, store
            )
        except (RuntimeError, ValueError) as error:
            self.problem = _sentence(error)

    def reduce(self, size: int) -> Callable[[], list[np.ndarray]]:
        """An all_reduce of so many bytes of float32 on each rank; the root's sum is returned."""
        mine = torch.full((size // 4,), 1.0 + self.wire.rank)
        total = torch.empty_like(mine)

        def work() -> list[np.ndarray]:
            total.copy_(mine)
            distributed.all_reduce(total)
            return [total.numpy()] if self.wire.is_root else []

        return work

    def end(self) -> None:
        """Leaves the group."""
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def _sentence(error: Exception) -> str:
    """An error on one line."""
    return " ".join(str(error).split()) or type(error).__name__
