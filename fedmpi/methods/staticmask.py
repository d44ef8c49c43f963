"""Static masks: a fixed mask, drawn before training, keeps some weights at zero.

The baselines of R. Ohib, B. Thapaliya, G. K. Dziugaite, J. Liu, V. Calhoun, S. Plis, *SSFL*, TMLR
2026, arXiv 2405.09037: masks that do not depend on data and are the same for all clients
(`clientmask` has one mask for each client). Every rank derives the mask from the seed of the run,
so that only the values on the mask are sent. Also the base of methods that find masks in other
ways.

Values of the paper: those of its comparison on CIFAR-10, as in the released code of SSFL.
Reconstruction: `magnitude`, which keeps the largest initial weights of all layers together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.clients.burden import Burden
from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.messages.counts import keep_floor
from fedmpi.methods import fedavg
from fedmpi.networks import pruning
from fedmpi.networks.flat import Flat
from fedmpi.streams import Purpose, stream
from fedmpi.training.train import Trainer

PAPER: Mapping[str, Any] = {
    "data.name": "cifar10",
    "partition.name": "dirichlet-balanced",
    "partition.alpha": 0.3,
    "model.name": "resnet",
    "model.depth": 18,
    "model.norm": "group",
    "model.groups": 32,
    "clients": 100,
    "participation": 0.1,
    "rounds": 999,
    "epochs": 5,
    "batch": 16,
    "augment": ["crop", "flip"],
    "lr": 0.1,
    "lr_decay": 0.998,
    "momentum": 0.0,
    "weight_decay": 5e-4,
    "clip": 10.0,
    "method.sparsity": 0.5,
}
"""Settings of the paper's comparison on CIFAR-10, by path."""


class Masked(config.Method):
    """Settings of a method whose model is sparse, with one mask for all clients.

    A mask that changes leaves no feedback: its positions are other ones later.
    """

    feedbacks: ClassVar[tuple[str, ...]] = ("none",)

    can_send_changes: ClassVar[bool] = False

    def initial_mask(self, flat: Flat, seed: int) -> Tensor:
        """Returns the mask at the start of training, bool [n]; by default the whole model."""
        return torch.ones(flat.size, dtype=torch.bool)


class Config(Masked):
    paper: ClassVar[Mapping[str, Any]] = PAPER
    feedbacks: ClassVar[tuple[str, ...]] = config.Method.feedbacks

    sparsity: float = Field(0.5, ge=0, lt=1)
    """Share of the prunable weights that are zero for the whole run. 0 is FedAvg."""
    mask: Literal["random", "layerwise", "magnitude"] = "random"
    """Which weights are kept. random: uniformly at random. layerwise: at random, the same share of
    each layer. magnitude: the largest initial weights."""

    def idle(self, settings: Settings) -> dict[str, str]:
        """Adds how the mask is drawn, if it keeps all."""
        return super().idle(settings) | ({} if self.sparsity else {"mask": config.SPARSE})

    def initial_mask(self, flat: Flat, seed: int) -> Tensor:
        """Returns the mask of the whole run: bool [n]."""
        random = stream(seed, Purpose.MASK)
        if self.mask == "layerwise":
            return pruning.drawn(flat, pruning.uniform(flat, self.sparsity), random)
        prunable = flat.prunable()
        count = keep_floor(int(prunable.sum()), 1 - self.sparsity)
        if self.mask == "random":
            return pruning.anywhere(flat, count, random)
        places = prunable.nonzero().squeeze(1)
        mask = ~prunable
        mask[places[pruning.best(flat.initial[places].abs(), count)]] = True
        return mask


class Half(fedavg.Half):
    """Both sides know the mask.

    Attributes:
        active: positions that are kept, int64.
    """

    active: Tensor

    def sent_positions(self, t: int, client: int, blocks: Sequence[Block]) -> Tensor:
        """Returns the positions that are kept."""
        return self.active

    def agreed(self, t: int) -> Tensor | None:
        """Returns the positions that are kept."""
        return self.active


class Server(Half, fedavg.Server):
    """A server with a sparse model.

    Attributes:
        prunable: which weights can be pruned, bool [n].
        mask: which positions are kept, bool [n].
    """

    method: Masked

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.prunable = self.flat.prunable().to(trainer.device)
        self.adopt(self.method.initial_mask(self.flat, settings.seed))

    def adopt(self, mask: Tensor) -> None:
        """Changes to another mask; the model becomes zero outside of it."""
        self.mask = mask.to(self.w.device)
        self.active = self.mask.nonzero().squeeze(1)
        self.w[~self.mask] = 0
        self.optimizer.forget(~self.mask)

    def state(self) -> dict[str, Tensor]:
        """The model, and its mask."""
        return super().state() | {"mask": self.mask}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes the state of another server, and lives on its mask."""
        super().restore(state)
        self.adopt(self.mask)

    def broadcast(self, t: int) -> list[Block]:
        """Sends the values on the mask."""
        return [sparse.block(Kind.MODEL, self.w.index_select(0, self.active), self.flat.size)]


class Clients(Half, fedavg.Clients):
    """Clients that share one mask; `prunable`, `mask` and `active` as in the server.

    Attributes:
        kept: the mask as factors of a gradient, float32 [n].
    """

    method: Masked

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.prunable = self.flat.prunable().to(trainer.device)
        self.adopt(self.method.initial_mask(self.flat, settings.seed))

    def adopt(self, mask: Tensor) -> None:
        """Changes to another mask."""
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
        """Receives the values on the mask."""
        sparse.fill(self.start, blocks[0], self.active)

    def adjust(self, clients: Sequence[int], w: Tensor, g: Tensor) -> None:
        """Masks the gradients, so that pruned weights stay zero."""
        g.mul_(self.kept)

    def encode_update(self, t: int, client: int, update: Tensor) -> list[Block]:
        """Sends the update on the mask."""
        return [sparse.block(Kind.GRADIENT, update.index_select(0, self.active), self.flat.size)]

    def burden(self, t: int, client: int) -> Burden:
        """Returns the cost of training the weights on the mask."""
        return replace(super().burden(t, client), kept=self.kept)


class Pruned(fedavg.Server):
    """A server that averages models, which clients have pruned themselves, instead of updates.

    What its `add` adds to `sum` must be weight * model.
    """

    def step(self, t: int) -> None:
        """Replaces the model by the mean of the pruned models, zeros included."""
        self.w.zero_()
        super().step(t)


def encode_mask(mask: Tensor, prunable: Tensor) -> Block:
    """Encodes a mask [n] as a block: positions among the weights that can be pruned."""
    salient = mask[prunable]
    return sparse.places(salient.nonzero().squeeze(1), len(salient))


def decode_mask(block: Block, prunable: Tensor) -> Tensor:
    """Restores the mask [n] from such a block."""
    salient = torch.zeros(block.size, dtype=torch.bool, device=prunable.device)
    salient[sparse.indices(block, prunable.device)] = True
    mask = ~prunable
    mask[prunable] = salient
    return mask


def encode_model(w: Tensor, mask: Tensor, prunable: Tensor) -> list[Block]:
    """Encodes a model [n] and its mask, which the receiver does not know, as two blocks."""
    return [sparse.block(Kind.MODEL, w[mask], len(w)), encode_mask(mask, prunable)]


def decode_model(blocks: Sequence[Block], prunable: Tensor) -> tuple[Tensor, Tensor]:
    """Restores a model [n] and its mask [n]; without a second block the mask is full."""
    mask = torch.ones_like(prunable)
    if len(blocks) > 1:
        mask = decode_mask(blocks[1], prunable)
    w = torch.zeros(len(prunable), device=prunable.device)
    w[mask] = sparse.values(blocks[0], prunable.device)
    return w, mask
