"""SparsyFed: sparse training with reparameterized weights and pruned activations and models.

A. Guastella, L. Sani, A. Iacob, A. Mora, P. Bellavista, N. D. Lane, *SparsyFed: Sparse Adaptive
Federated Training*, ICLR 2025, arXiv 2504.05153.

The weights of convolutions and linear layers are sign(v) |v|^beta of the trained parameters v
(`powered`). Their gradients use only the largest of a layer's inputs, with the same share as the
layer's weights that are not zero. After local training a client prunes all but the largest weights,
of all layers together, and uploads those with their positions. The server averages by samples,
zeros included, and sends the values that are not zero. There is no common mask.

Differs from the code: each sample's activations are pruned separately, not the batch's together;
training starts at the weights that the model has without powers; recurrent layers are left
unchanged.
Reconstruction: as we understand the code, the model is pruned, and not the update. A few values of
an update would leave a dense model dense.
Values of the paper: those of its copy in the benchmark FedPruning.
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
from fedmpi.messages.codec import Block
from fedmpi.messages.counts import keep_floor
from fedmpi.methods import fedavg, staticmask
from fedmpi.methods.sparsyfed import powered
from fedmpi.networks import pruning
from fedmpi.training.train import Trainer


class Config(config.Method):
    can_send_changes: ClassVar[bool] = False
    optimizes: ClassVar[bool] = False
    uploads: ClassVar[config.Uploads] = "models"
    feedbacks: ClassVar[tuple[str, ...]] = ("none",)
    paper: ClassVar[Mapping[str, Any]] = {"schedule": "cosine", "method.beta": 1.25}

    sparsity: float = Field(0.9, ge=0, lt=1)
    """Share of the prunable weights that a client does not send."""
    beta: float = Field(1.25, ge=1, le=10)
    """Exponent of the weight reparameterisation. 1 trains the weights themselves."""

    def network(self, network: Any) -> Any:
        """Replaces the model's layers by those with reparameterized weights."""
        return powered.rebuilt(network, self.beta)


def encode_nonzero(w: Tensor, prunable: Tensor) -> list[Block]:
    """Encodes the values of a model [n] that are not zero, with positions unless that is all."""
    mask = (w != 0) | ~prunable
    blocks = staticmask.encode_model(w, mask, prunable)
    return blocks[:1] if bool(mask.all()) else blocks


class Half(fedavg.Half):
    """What both sides know: `prunable`, which weights can be pruned, bool [n]."""

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.prunable = self.flat.prunable().to(trainer.device)

    def add(
        self,
        t: int,
        client: int,
        blocks: Sequence[Block],
        update: Block,
        where: Tensor | None,
        weight: float,
    ) -> None:
        """Adds a client's pruned model."""
        self.sum.total.add_(staticmask.decode_model(blocks, self.prunable)[0], alpha=weight)


class Server(Half, staticmask.Pruned):
    def broadcast(self, t: int) -> list[Block]:
        """Sends the model's values that are not zero, with their positions."""
        return encode_nonzero(self.w, self.prunable)


class Clients(Half, fedavg.Clients):
    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.places = self.prunable.nonzero().squeeze(1)
        self.kept = torch.ones_like(self.prunable)

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Receives the model's values that are not zero, with their positions."""
        self.start, self.kept = staticmask.decode_model(blocks, self.prunable)

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Trains locally, and then prunes all but the largest weights."""
        found = super().work(t, clients)
        count = keep_floor(len(self.places), 1 - self.method.sparsity)
        for w in found:
            small = torch.ones_like(self.places, dtype=torch.bool)
            small[pruning.best(w[self.places].abs(), count)] = False
            w[self.places[small]] = 0
        return found

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """Sends the pruned model."""
        return encode_nonzero(w, self.prunable)

    def burden(self, t: int, client: int) -> Burden:
        """Returns the cost of the weights that were not zero at the start of training.

        The savings by pruned activations are not counted.
        """
        return replace(super().burden(t, client), kept=self.kept)
