"""Static masks: some weights are zero for good, which ones follows from the seed.

The controls of R. Ohib, B. Thapaliya, G. K. Dziugaite, J. Liu, V. Calhoun, S. Plis, *SSFL*, TMLR
2026, arXiv 2405.09037: masks that look at no data, for all clients the same (a mask for each client
is `clientmask`). The model lives on the mask, and values alone travel: everyone draws the mask from
the seed of the run. Also the base of methods whose masks are found otherwise.

Reconstruction: `magnitude`, which keeps the largest initial weights of all layers together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.clients.burden import Burden
from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.methods import fedavg
from fedmpi.networks import pruning
from fedmpi.networks.flat import Flat
from fedmpi.streams import Purpose, stream
from fedmpi.training.train import Trainer


class Masked(config.Method):
    """Settings of a method whose model lives on a mask."""

    def initial_mask(self, flat: Flat, seed: int) -> Tensor:
        """The mask that training starts with, bool [n]: all of the model."""
        return torch.ones(flat.size, dtype=torch.bool)


class Config(Masked):
    sparsity: float = Field(0.5, ge=0, lt=1)
    """Share of the prunable weights that are zero for good; 0 is FedAvg."""
    mask: Literal["random", "layerwise", "magnitude"] = "random"
    """Which are kept: any at random; at random, as many in each layer; those that begin largest."""

    def initial_mask(self, flat: Flat, seed: int) -> Tensor:
        """The mask that training starts with, and stays with: bool [n]."""
        random = stream(seed, Purpose.MASK)
        if self.mask == "layerwise":
            return pruning.drawn(flat, pruning.uniform(flat, self.sparsity), random)
        prunable = flat.prunable()
        count = pruning.kept(int(prunable.sum()), self.sparsity)
        if self.mask == "random":
            return pruning.anywhere(flat, count, random)
        places = prunable.nonzero().squeeze(1)
        mask = ~prunable
        mask[places[pruning.best(flat.initial[places].abs(), count)]] = True
        return mask


class Server(fedavg.Server):
    """A server whose model lives on a mask.

    Attributes:
        prunable: which weights can be pruned, bool [n].
        mask: which positions are kept, bool [n].
        active: the same as positions, int64.
    """

    method: Masked

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.prunable = self.flat.prunable().to(trainer.device)
        self.adopt(self.method.initial_mask(self.flat, settings.seed))

    def adopt(self, mask: Tensor) -> None:
        """From now on the model lives on that mask; it is zero elsewhere."""
        self.mask = mask.to(self.w.device)
        self.active = self.mask.nonzero().squeeze(1)
        self.w[~self.mask] = 0

    def state(self) -> dict[str, Tensor]:
        """The model, and its mask."""
        return super().state() | {"mask": self.mask}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes the state of another server, and lives on its mask."""
        super().restore(state)
        self.adopt(self.mask)

    def broadcast(self, t: int) -> list[Block]:
        """The values on the mask."""
        return [sparse.block(Kind.MODEL, self.w[self.active], self.flat.size)]

    def add(self, t: int, client: int, blocks: Sequence[Block], weight: float) -> None:
        """Updates of the values on the mask."""
        self.sum.add(blocks[0], weight, self.active)


class Clients(fedavg.Clients):
    """Clients whose models live on one mask; attributes as the server's.

    Attributes:
        kept: the mask as factors of a gradient, float32 [n].
    """

    method: Masked

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.prunable = self.flat.prunable().to(trainer.device)
        self.adopt(self.method.initial_mask(self.flat, settings.seed))

    def adopt(self, mask: Tensor) -> None:
        """From now on the models live on that mask."""
        self.mask = mask.to(self.start.device)
        self.active, self.kept = self.mask.nonzero().squeeze(1), self.mask.float()

    def state(self) -> dict[str, Tensor]:
        """The mask that this rank's clients train on."""
        return super().state() | {"mask": self.mask}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes the state of other clients, and lives on its mask."""
        super().restore(state)
        self.adopt(self.mask)

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """The values on the mask."""
        size, device = self.flat.size, self.trainer.device
        self.start = sparse.vector(blocks[0], size, device, self.active)

    def adjust(self, clients: Sequence[int], w: Tensor, g: Tensor) -> None:
        """Keeps the models on the mask."""
        g.mul_(self.kept)

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """The update's values on the mask."""
        update = w[self.active] - self.start[self.active]
        return [sparse.block(Kind.GRADIENT, update, self.flat.size)]

    def burden(self, t: int, client: int) -> Burden:
        """What is not pruned."""
        return replace(super().burden(t, client), kept=self.kept)


class Pruned(fedavg.Server):
    """A server that averages models, which its clients have pruned each for itself, not updates.

    `add` adds weight * model to `sum`.
    """

    def step(self, t: int) -> None:
        """The mean of the pruned models, zeros included, is the new model."""
        self.w.zero_()
        super().step(t)


def encode_mask(mask: Tensor, prunable: Tensor) -> Block:
    """The mask [n] as a block: positions among the weights that can be pruned."""
    salient = mask[prunable]
    return sparse.places(salient.nonzero().squeeze(1), len(salient))


def decode_mask(block: Block, prunable: Tensor) -> Tensor:
    """The mask [n] that such a block tells."""
    salient = torch.zeros(block.size, dtype=torch.bool, device=prunable.device)
    salient[sparse.indices(block, prunable.device)] = True
    mask = ~prunable
    mask[prunable] = salient
    return mask


def encode_model(w: Tensor, mask: Tensor, prunable: Tensor) -> list[Block]:
    """A model [n] on a mask that the receiver does not know, as two blocks: values and mask."""
    return [sparse.block(Kind.MODEL, w[mask], len(w)), encode_mask(mask, prunable)]


def decode_model(blocks: Sequence[Block], prunable: Tensor) -> tuple[Tensor, Tensor]:
    """The model, [n], and the mask; without the second block that is all."""
    mask = torch.ones_like(prunable)
    if len(blocks) > 1:
        mask = decode_mask(blocks[1], prunable)
    w = torch.zeros(len(prunable), device=prunable.device)
    w[mask] = sparse.values(blocks[0], prunable.device)
    return w, mask
