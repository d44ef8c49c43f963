"""PruneFL: the server keeps the weights with the largest squared gradients per unit of time.

Y. Jiang, S. Wang, V. Valls, B. J. Ko, W.-H. Lee, K. K. Leung, L. Tassiulas, *Model Pruning Enables
Efficient Federated Learning on Edge Devices*, IEEE TNNLS 2022, arXiv 1909.12326.

Clients square the sum of a round's dense gradients, add the squares up round by round, and upload
them every `every` rounds. The server then reconfigures the mask. It protects the larger weights of
each layer, and adds other weights, pruned or not, in descending order of their squares, as long as
that raises the ratio of the sum of squares to the time of a round. A weight that is added back
starts at zero. Masks are sent as in `feddst`.

Differs from the paper: there is no initial pruning at one client with data of its own; training
starts with the dense model, or with the largest weights of each layer (`start`). A weight's time is
the same in all layers: it is that of its transfer, and not measured on a device.
Values of the paper: those of VGG-11 on CIFAR-10 in the released code (jiangyuang/PruneFL).
Differs from the code: its prototype uploads squares of pruned weights alone and derives the others
from updates, which works for plain SGD only; here the squares of all parameters are uploaded.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

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
from fedmpi.training.train import Trainer


class Config(staticmask.Masked):
    sends: ClassVar[bool] = True
    pools: ClassVar[bool] = False
    optimizes: ClassVar[bool] = False
    keeps_state: ClassVar[bool] = True
    adds: ClassVar[bool] = False
    paper: ClassVar[Mapping[str, Any]] = {
        "data.name": "cifar10",
        "model.name": "vgg",
        "model.depth": 11,
        "clients": 10,
        "rounds": 10001,
        "local_steps": 5,
        "batch": 20,
        "lr": 0.1,
        "method.every": 50,
        "method.decrease": 0.3,
    }

    start: float = Field(0.0, ge=0, lt=1)
    """Share of each layer's weights that are zero at the start."""
    sparsity: float = Field(0.0, ge=0, lt=1)
    """Minimum sparsity of the prunable weights: no weight is added below it."""
    every: int = Field(5, ge=1, le=config.MOST)
    """Rounds between two reconfigurations of the mask. The first comes after as many rounds. The
    released settings are 50, in 10,000 rounds."""
    decrease: float = Field(0.3, ge=0, le=1)
    """Share of a layer's kept weights that one reconfiguration may prune, in round 0."""
    halving: float = Field(10000.0, gt=0, le=config.LARGEST)
    """Number of rounds after which that share has halved."""
    constant: float = Field(1.0, ge=0, le=config.LARGEST)
    """Time of a round that does not depend on the mask, relative to the time of all prunable
    weights. About 1 in the released settings for VGG-11."""

    def idle(self, settings: Settings) -> dict[str, str]:
        """Names the settings that have no effect, and what would give them one."""
        found = super().idle(settings)
        if self.every > settings.rounds:
            names = ("every", "sparsity", "decrease", "halving", "constant")
            text = f"rounds of at least method.every = {self.every}, found {settings.rounds}"
            found |= dict.fromkeys(names, text)
        return found

    def initial_mask(self, flat: Flat, seed: int) -> Tensor:
        """Returns the mask of each layer's largest initial weights: bool [n]."""
        return pruning.largest(flat, flat.initial.abs(), pruning.uniform(flat, self.start))

    def changes_at(self, t: int) -> bool:
        """Whether the mask is reconfigured at the end of round t."""
        return (t + 1) % self.every == 0


def worth(squares: Tensor, candidates: Tensor, gain: float, time: float) -> Tensor:
    """Returns the candidates that raise gain / time, if each of them takes a time of 1.

    Args:
        squares: gain of each weight, [n].
        candidates: positions that may be added, int64.
        gain: total gain of the weights that are kept already.
        time: time of a round with these.

    Returns:
        Positions of the chosen candidates, int64, in descending order of their gain.
    """
    order = candidates[squares[candidates].sort(descending=True, stable=True).indices]
    each = squares[order].double()
    before = gain + each.cumsum(0) - each
    rises = each * (time + torch.arange(len(each), device=each.device)) > before
    # After the first one that does not raise the ratio, none does, because gains descend.
    return order[: int(rises.long().cumprod(0).sum())]


class Server(feddst.Server):
    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.movable = self.flat.movable.to(trainer.device)
        self.squares = torch.zeros_like(self.w)

    def add(
        self,
        t: int,
        client: int,
        blocks: Sequence[Block],
        update: Block,
        where: Tensor | None,
        weight: float,
    ) -> None:
        """Adds an update on the mask and, before a reconfiguration, the squares of gradients."""
        super().add(t, client, blocks, update, where, weight)
        if len(blocks) > 1:
            sparse.add(self.squares, blocks[1], weight, self.movable)

    def step(self, t: int) -> None:
        """Moves the model by the mean update, and reconfigures the mask when that is due."""
        staticmask.Server.step(self, t)
        if self.method.changes_at(t):
            self.change(self.reconfigured(t))
            self.squares.zero_()

    def reconfigured(self, t: int) -> Tensor:
        """Returns the mask with the highest gain per time: bool [n]."""
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
    """Clients that also compute dense gradients, whose cost is not in their `burden`."""

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.movable = self.flat.movable.to(trainer.device)
        self.squares = trainer.provisional("squares", self.flat.size)
        self.sums: dict[int, Tensor] = {}

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Trains on the mask, sums up the dense gradients, and adds the squares of the sums."""
        self.sums = {client: torch.zeros_like(self.start) for client in clients}
        found = super().work(t, clients)
        for client, total in self.sums.items():
            square = total.square_()
            if client in self.squares:
                square += self.squares[client].to(square.device)
            self.squares.put(client, square, square)
        return found

    def adjust(self, clients: Sequence[int], w: Tensor, g: Tensor) -> None:
        """Sums up the dense gradients, and then masks them."""
        for row, client in enumerate(clients):
            if client in self.sums:
                self.sums[client] += g[row]
        super().adjust(clients, w, g)

    def readjust(self, t: int, clients: Sequence[int], found: Tensor) -> Tensor:
        """Returns the models unchanged: only the server changes masks."""
        return found

    def encode_update(self, t: int, client: int, update: Tensor) -> list[Block]:
        """Sends the update on the mask and, before a reconfiguration, the squares of gradients."""
        blocks = super().encode_update(t, client, update)
        if not self.method.changes_at(t):
            return blocks
        squares = self.squares[client].to(update.device, copy=True)
        self.squares.put(client, torch.zeros_like(squares), squares)
        return [
            *blocks,
            sparse.block(Kind.GRADIENT, squares.index_select(0, self.movable), self.flat.size),
        ]
