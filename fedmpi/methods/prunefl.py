"""PruneFL: the server keeps the weights whose gradients buy most for the time that they take.

Y. Jiang, S. Wang, V. Valls, B. J. Ko, W.-H. Lee, K. K. Leung, L. Tassiulas, *Model Pruning Enables
Efficient Federated Learning on Edge Devices*, IEEE TNNLS 2022, arXiv 1909.12326.

Clients sum up the squares of their gradients, dense ones, round by round, and upload them every so
many rounds. The server protects the larger weights of each layer, and adds others, pruned or not,
in the order of their squares, as long as that raises the sum of squares over the time of a round.
A weight that comes back is zero at first. Masks travel as in `feddst`.

Differs from the paper: there is no initial pruning at one client, with data of its own; training
begins dense, or on the largest weights of each layer (`start`). A weight's time is the same in all
layers, which is that of its transfer, and not measured on a device.
Differs from the code: its prototype uploads squares of pruned weights alone, and works the others
out of updates, which plain SGD alone allows; here the squares of all parameters are uploaded.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.messages.counts import keep_floor, part_floor
from fedmpi.methods import feddst, staticmask
from fedmpi.networks import pruning
from fedmpi.networks.flat import Flat
from fedmpi.training.store import Store
from fedmpi.training.train import Trainer


class Config(staticmask.Masked):
    sends: ClassVar[bool] = True
    pools: ClassVar[bool] = False
    keeps_state: ClassVar[bool] = True

    start: float = Field(0.0, ge=0, lt=1)
    """Share of each layer's weights that are zero at first."""
    sparsity: float = Field(0.0, ge=0, lt=1)
    """Share of the prunable weights below which none is added, however much it buys."""
    every: int = Field(50, ge=1, le=config.MOST)
    """Rounds from one reconfiguration to the next; the first is after so many."""
    decrease: float = Field(0.3, ge=0, le=1)
    """Share of a layer's kept weights that may be pruned at once, in round 0."""
    halving: float = Field(10000.0, gt=0, le=config.LARGEST)
    """Rounds in which that share halves."""
    constant: float = Field(1.0, ge=0, le=config.LARGEST)
    """Time of a round that does not depend on the mask, over that of all prunable weights; about 1
    in the released settings for VGG-11."""

    def initial_mask(self, flat: Flat, seed: int) -> Tensor:
        """Each layer's largest initial weights: bool [n]."""
        return pruning.largest(flat, flat.initial.abs(), pruning.uniform(flat, self.start))

    def changes_at(self, t: int) -> bool:
        """Is there a reconfiguration at the end of round t?"""
        return (t + 1) % self.every == 0


def worth(squares: Tensor, candidates: Tensor, gain: float, time: float) -> Tensor:
    """Those candidates that raise gain / time, when each takes a time of 1: positions, int64.

    Args:
        squares: what each weight gains, [n].
        candidates: positions that may be added, int64.
        gain: of what is kept already.
        time: of that.
    """
    order = candidates[pruning.best(squares[candidates], len(candidates))]
    each = squares[order].double()
    before = gain + each.cumsum(0) - each
    rises = each * (time + torch.arange(len(each), device=each.device)) > before
    # From the first on that does not, none does: they gain less and less, and the ratio has risen.
    return order[: int(rises.long().cumprod(0).sum())]


class Server(feddst.Server):
    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.movable = self.flat.movable.to(trainer.device)
        self.squares = torch.zeros_like(self.w)

    def add(self, t: int, client: int, blocks: Sequence[Block], weight: float) -> None:
        """An update on the mask, and now and then the squares of gradients."""
        staticmask.Server.add(self, t, client, blocks[:1], weight)
        if len(blocks) > 1:
            sparse.add(self.squares, blocks[1], weight, self.movable)

    def step(self, t: int) -> None:
        """The mean, and now and then a new mask."""
        staticmask.Server.step(self, t)
        if self.method.changes_at(t):
            self.change(self.reconfigured(t))
            self.squares.zero_()

    def reconfigured(self, t: int) -> Tensor:
        """The mask that buys most: bool [n]."""
        share = self.method.decrease * 0.5 ** (t / self.method.halving)
        mask = ~self.prunable
        for piece in pruning.weights(self.flat):
            part = slice(piece.start, piece.stop)
            kept = self.mask[part]
            size, count = self.w[part].abs().masked_fill(~kept, -1), int(kept.sum())
            mask[piece.start + pruning.best(size, count - part_floor(count, share))] = True
        gain, protected = float(self.squares[mask].double().sum()), int(mask[self.prunable].sum())
        total = int(self.prunable.sum())
        time = self.method.constant * total + protected
        candidates = (self.prunable & ~mask).nonzero().squeeze(1)
        added = worth(self.squares, candidates, gain, time)
        mask[added[: max(0, keep_floor(total, 1 - self.method.sparsity) - protected)]] = True
        return mask


class Clients(feddst.Clients):
    """Clients that look at dense gradients, which costs more than their `burden` says."""

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.movable = self.flat.movable.to(trainer.device)
        self.squares = Store(settings.state, self.flat.size)
        self.sums: dict[int, Tensor] = {}

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Local training on the mask, while dense gradients are summed up."""
        self.sums = {client: torch.zeros_like(self.start) for client in clients}
        found = super().work(t, clients)
        for client, total in self.sums.items():
            square = total.square_()
            if client in self.squares:
                square += self.squares[client].to(square.device)
            self.squares[client] = square
        return found

    def adjust(self, clients: Sequence[int], w: Tensor, g: Tensor) -> None:
        """Sums up gradients before the mask is laid on them."""
        for row, client in enumerate(clients):
            if client in self.sums:
                self.sums[client] += g[row]
        super().adjust(clients, w, g)

    def readjust(self, t: int, clients: Sequence[int], found: Tensor) -> Tensor:
        """Masks are the server's alone."""
        return found

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """The update's values on the mask, and now and then the squares of gradients."""
        blocks = super().upload(t, client, w)
        if not self.method.changes_at(t):
            return blocks
        squares = self.squares[client].to(w.device, copy=True)
        self.squares[client] = torch.zeros_like(squares)
        return [*blocks, sparse.block(Kind.GRADIENT, squares[self.movable], self.flat.size)]
