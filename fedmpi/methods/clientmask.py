"""Client-wise masks: every client prunes the global model by a random mask of its own.

A baseline of R. Ohib, B. Thapaliya, G. K. Dziugaite, J. Liu, V. Calhoun, S. Plis, *SSFL*, TMLR
2026, arXiv 2405.09037, that shows the benefit of a shared subnetwork. A mask keeps the same number
of weights in each layer, follows from the seed and the client, and never changes. As in the
released code, the server averages the pruned models, zeros included: a weight that half of a
round's clients keep shrinks by half, and one that no client keeps is zero afterwards.

Values of the paper: those of its comparison on CIFAR-10, as in the released code of SSFL.
Reconstruction: both sides know the masks, so that a client is sent only the values on its mask.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.clients.burden import Burden
from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.methods import fedavg, staticmask
from fedmpi.networks import pruning
from fedmpi.networks.flat import Flat
from fedmpi.streams import Purpose, stream
from fedmpi.training.train import Trainer


class Config(config.Method):
    paper: ClassVar[Mapping[str, Any]] = staticmask.PAPER
    optimizes: ClassVar[bool] = False
    adds: ClassVar[bool] = False
    broadcasts = False
    feedbacks: ClassVar[tuple[str, ...]] = ("none",)
    sends: ClassVar[bool] = True
    can_send_changes: ClassVar[bool] = False

    sparsity: float = Field(0.5, ge=0, lt=1)
    """Share of each layer's weights that a client prunes."""

    def mask(self, flat: Flat, seed: int, client: int) -> Tensor:
        """Returns the mask of the weights that the client keeps: bool [n]."""
        random = stream(seed, Purpose.MASK, client)
        return pruning.drawn(flat, pruning.uniform(flat, self.sparsity), random)


class Half(fedavg.Half):
    """Both sides draw the clients' masks."""

    method: Config

    def sent_positions(self, t: int, client: int, blocks: Sequence[Block]) -> Tensor:
        """Returns the positions that the client keeps, int64."""
        return self.places(client)

    def places(self, client: int) -> Tensor:
        """Returns the positions that the client keeps, int64."""
        mask = self.method.mask(self.flat, self.settings.seed, client)
        return mask.to(self.trainer.device).nonzero().squeeze(1)


class Server(Half, staticmask.Pruned):
    method: Config

    def send(self, t: int, client: int) -> list[Block]:
        """Sends the values on the client's mask."""
        return [sparse.block(Kind.MODEL, self.w[self.places(client)], self.flat.size)]

    def add(
        self,
        t: int,
        client: int,
        blocks: Sequence[Block],
        update: Block,
        where: Tensor | None,
        weight: float,
    ) -> None:
        """Adds the client's model: the values that it was sent, and their update."""
        assert where is not None
        self.sum.total.index_add_(0, where, self.w.index_select(0, where), alpha=weight)
        super().add(t, client, blocks, update, where, weight)


class Clients(Half, fedavg.Clients):
    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.masks: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def mask(self, client: int) -> Tensor:
        """Returns the mask of the weights that the client keeps: bool [n]."""
        if client not in self.masks:
            mask = self.method.mask(self.flat, self.settings.seed, client)
            self.masks[client] = mask.to(self.trainer.device)
        return self.masks[client]

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Forgets the last round's masks; models come to each client by `accept`."""
        self.masks.clear()

    def accept(self, t: int, client: int, blocks: Sequence[Block]) -> None:
        """Receives the values on the client's mask."""
        self.values[client] = sparse.values(blocks[0], self.trainer.device)

    def begin(self, client: int) -> Tensor:
        """Returns the pruned model that the client was sent, [n]."""
        start = torch.zeros(self.flat.size, device=self.trainer.device)
        start[self.mask(client)] = self.values[client]
        return start

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Trains each client from its own pruned model."""
        starts = torch.stack([self.begin(client) for client in clients])
        return self.trainer.train(t, clients, starts, self.hooks)

    def adjust(self, clients: Sequence[int], w: Tensor, g: Tensor) -> None:
        """Masks each client's gradient, so that pruned weights stay zero."""
        for row, client in enumerate(clients):
            g[row].mul_(self.mask(client))

    def update(self, client: int, w: Tensor) -> Tensor:
        """Returns the update on the client's mask, [values on it]."""
        return w[self.mask(client)] - self.values.pop(client)

    def encode_update(self, t: int, client: int, update: Tensor) -> list[Block]:
        """Sends the update on the client's mask."""
        return [sparse.block(Kind.GRADIENT, update, self.flat.size)]

    def burden(self, t: int, client: int) -> Burden:
        """Returns the cost of training the weights that the client keeps."""
        return replace(super().burden(t, client), kept=self.mask(client))
