"""FedNova: updates are normalized by the effective number of a client's local steps.

J. Wang, Q. Liu, H. Liang, G. Joshi, H. V. Poor, *Tackling the Objective Inconsistency Problem in
Heterogeneous Federated Optimization*, NeurIPS 2020, arXiv 2007.07481, eq. 6 and section 4.

Let a_k be the sum of the weights of client k's gradients in its update, d_k its update divided by
a_k, and p_k its share of the samples. The model moves by (sum of p_k a_k) * (sum of p_k d_k). For
SGD with tau equal steps a_k = tau; with momentum m it is (tau - m (1 - m^tau) / (1 - m)) / (1 - m).
If all clients take the same number of steps, this is FedAvg.

Differs from the code: a client's number of steps follows from the settings, so that the server
knows a_k without communication, and clients upload the same as in FedAvg. Running statistics are
averaged.
Values of the paper: those of NIID-Bench (`fedavg.NIID_BENCH`).
Reconstruction: Adam's steps count like those of plain SGD.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedmpi import config
from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block
from fedmpi.methods import fedavg
from fedmpi.methods.fedavg import NIID_BENCH, Clients
from fedmpi.training.train import Trainer

__all__ = ["Clients", "Config", "Server"]


class Config(config.Method):
    """FedNova has no settings of its own."""

    paper: ClassVar[Mapping[str, Any]] = NIID_BENCH
    controls: ClassVar[bool] = True
    adds: ClassVar[bool] = False


class Server(fedavg.Server):
    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.effective = 0.0
        self.plain = torch.zeros_like(self.w[self.stat_positions])

    def add(
        self,
        t: int,
        client: int,
        blocks: Sequence[Block],
        update: Block,
        where: Tensor | None,
        weight: float,
    ) -> None:
        """Adds a client's normalized update."""
        scale = self.trainer.rates.effective_steps(t, client)
        self.effective += weight * scale
        found = sparse.vector(update, self.flat.size, self.w.device, where)
        self.plain.add_(found[self.stat_positions], alpha=weight)
        self.sum.total.add_(found, alpha=weight / scale)

    def step(self, t: int) -> None:
        """Moves the model along the mean normalized update, scaled by the mean effective steps."""
        self.sum.scale(self.effective / self.sum.weight)
        self.sum.total[self.stat_positions] = self.plain
        super().step(t)
        self.effective = 0.0
        self.plain.zero_()
