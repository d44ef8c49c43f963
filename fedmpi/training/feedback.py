"""Feedback: what compression left out of a client's update is not lost.

Classic error feedback: what was left out is added to the client's next update. F. Seide, H. Fu, J.
Droppo, G. Li, D. Yu, *1-Bit Stochastic Gradient Descent and its Application to Data-Parallel
Distributed Training of Speech DNNs*, Interspeech 2014; S. P. Karimireddy, Q. Rebjock, S. U. Stich,
M. Jaggi, *Error Feedback Fixes SignSGD and other Gradient Compression Schemes*, ICML 2019, arXiv
1901.09847.

EF21: client k and the server keep the same estimate g_k of the client's update u_k. The client
sends C(u_k - g_k), by which both move g_k, and the server averages the g_k of the round's clients.
P. Richtarik, I. Sokolov, I. Fatkhullin, *EF21: A New, Simpler, Theoretically Better, and
Practically Faster Error Feedback*, NeurIPS 2021, arXiv 2106.05203, algorithm 2, with the update of
a round of local training for a gradient. All g_k are zero at first.

If the upload was lost, all of it was left out, and the estimate stays. The client learns of that
with the next word from the server.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedmpi import config
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block
from fedmpi.messages.kernels import adding
from fedmpi.training.store import Provisional, Store
from fedmpi.training.train import Trainer


class Config(config.Method):
    """A method that compresses updates, by default with classic feedback."""

    controls: ClassVar[bool] = True
    apart: ClassVar[bool] = True
    implies: ClassVar[Mapping[str, Any]] = {"feedback": "classic"}

    @property
    def loses(self) -> bool:
        """Whether something is left out: always."""
        return True


class Feedback:
    """Each client's residual, float32 [size]: the update that was to be sent, minus what was.

    Args:
        trainer: keeps the residuals.
        size: length of an update.
        stat_positions: positions of running statistics, int64, which are sent exactly: they have no
            residual, even if the upload is lost.
        is_on: without it nothing is kept, and nothing added.
        name: of the store.
    """

    def __init__(
        self,
        trainer: Trainer,
        size: int,
        stat_positions: Tensor,
        is_on: bool = True,
        name: str = "residual",
    ) -> None:
        self.is_on, self.stat_positions = is_on, stat_positions
        self.residuals: Provisional | dict[int, Tensor] = {}
        if is_on:
            self.residuals = trainer.provisional(name, size)

    def add(self, client: int, after: Tensor, before: Tensor) -> Tensor:
        """Returns the update after - before, plus the client's residual if it has one, [size].

        It may be changed: it is in new memory, or in that where the residual is kept. There, what
        is left out later need not be copied.
        """
        if not isinstance(self.residuals, Provisional) or client not in self.residuals:
            return after - before
        own = self.residuals.lend(client)
        if own is None or own.device != after.device:
            return (after - before).add_(self.residuals[client].to(after.device))
        if own.device.type == "cpu" and own.dtype == after.dtype == torch.float32:
            adding.add_difference(own.numpy(), after.numpy(), before.numpy())
            return own
        return own.add_(after - before)

    def kept(self, update: Tensor) -> Tensor:
        """Returns what the residual is if the upload is lost: the update [size] as it is now.

        It is a copy if the update may still be needed after its compression.
        """
        if not isinstance(self.residuals, Provisional) or self.residuals.is_sure:
            return update
        whole = update.clone()
        if len(self.stat_positions):
            whole[self.stat_positions] = 0
        return whole

    def remember(self, client: int, rest: Tensor, whole: Tensor) -> None:
        """Takes what is left out of an update.

        Args:
            client: the client.
            rest: what was not sent, [size].
            whole: the update that was to be sent, with the old residual, [size] (see `kept`).
        """
        if isinstance(self.residuals, Provisional):
            self.residuals.put(client, rest, whole)

    def take_back(self, client: int, where: Tensor, values: Tensor) -> None:
        """Adds values that were sent, and came back, at some positions of the client's residual.

        Args:
            client: the client, whose upload was not lost.
            where: their positions, int64 [k].
            values: the values, [k].
        """
        if isinstance(self.residuals, Provisional):
            self.residuals.change(client, where, values)

    def learn(self, client: int, update: Tensor, sent: Block, where: Tensor | None) -> None:
        """Remembers what is left of an update without what was sent of it.

        Args:
            client: the client.
            update: the update that was to be sent, [size]; changed in place.
            sent: what the server decodes.
            where: positions of its values, int64; None for all, or if the block has positions.
        """
        whole = self.kept(update)
        sparse.add(update, sent, -1.0, where)
        self.remember(client, update, whole)


class Estimates:
    """EF21's estimates g_k of clients' updates, float32 [size], on either side.

    Args:
        store: keeps them.
        stat_positions: positions of running statistics, int64, which are sent exactly: they have no
            estimate.
    """

    is_on = True

    def __init__(self, store: Provisional | Store, stat_positions: Tensor) -> None:
        self.store, self.stat_positions = store, stat_positions

    def of(self, client: int, like: Tensor) -> Tensor:
        """Returns a copy of the client's estimate [size], on the device of `like`."""
        if client in self.store:
            return self.store[client].to(like.device, copy=True)
        return torch.zeros_like(like)

    def add(self, client: int, after: Tensor, before: Tensor) -> Tensor:
        """Returns the update after - before, minus the client's estimate: [size], to be sent."""
        update = after - before
        return update.sub_(self.of(client, update))

    def learn(self, client: int, update: Tensor, sent: Block, where: Tensor | None) -> Tensor:
        """Moves the estimate by what was sent; on a client, unless the upload is lost.

        Args:
            client: the client.
            update: a vector [size], such as the difference that was to be sent.
            sent: what the server decodes.
            where: positions of its values, int64; None for all, or if the block has positions.

        Returns:
            What the server takes for the client's update: the new estimate with the running
            statistics that were sent, [size].
        """
        before = self.of(client, update)
        found = before.clone()
        sparse.add(found, sent, 1.0, where)
        after = found
        if len(self.stat_positions):
            after = found.clone()
            after[self.stat_positions] = 0
        if isinstance(self.store, Provisional):
            self.store.put(client, after, before)
        else:
            self.store[client] = after
        return found
