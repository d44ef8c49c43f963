"""SCAFFOLD: control variates correct the drift of local training.

S. P. Karimireddy, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh, *SCAFFOLD: Stochastic
Controlled Averaging for Federated Learning*, ICML 2020, arXiv 1910.06378, algorithm 1, option II.

Differs from the paper: models are averaged by samples, as in NIID-Bench (the paper: uniformly); the
server's learning rate is 1. As in both, c moves by the sum of the clients' changes divided by the
number of all clients. With momentum, weight decay, clipping or Adam, the paper's formula (w - w_k)
/ (sum of rates) is still used, but is no longer the mean gradient; SCAFFOLD is known to collapse
with momentum and few of many clients (NIID-Bench). Running statistics are averaged and have no
control variate. If an upload is lost, the client's c_k has moved all the same, so that c is no
longer exactly the mean of all c_k.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fedmpi import config
from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.methods import fedavg
from fedmpi.training.train import Trainer
from fedmpi.training.variates import Variates


class Config(config.Method):
    """SCAFFOLD has no settings of its own."""

    keeps_state: ClassVar[bool] = True


class Server(fedavg.Server):
    blocks_per_upload = 2

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.control = torch.zeros_like(self.w)

    def state(self) -> dict[str, Tensor]:
        """The model, and c."""
        return super().state() | {"control": self.control}

    def broadcast(self, t: int) -> list[Block]:
        """Sends the model and the control variate c."""
        return [*super().broadcast(t), sparse.block(Kind.GRADIENT, self.control)]

    def add(self, t: int, client: int, blocks: Sequence[Block], weight: float) -> None:
        """Adds a client's update, and the change of its control variate c_k to c."""
        super().add(t, client, blocks[:1], weight)
        sparse.add(self.control, blocks[1], 1 / self.settings.clients)


class Clients(fedavg.Clients):
    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.variates = Variates(trainer)

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Receives the model and the control variate c."""
        super().receive(t, clients, blocks[:1])
        self.variates.begin(sparse.vector(blocks[1], self.flat.size, self.trainer.device))

    def adjust(self, clients: Sequence[int], w: Tensor, g: Tensor) -> None:
        """Corrects the gradients by c - c_k."""
        self.variates.correct(clients, g)

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """Sends the update and the change of the control variate c_k."""
        update = w - self.start
        change = self.variates.move(
            client, update, self.trainer.rates.total(t, client), self.stat_positions
        )
        return [sparse.block(Kind.GRADIENT, update), sparse.block(Kind.GRADIENT, change)]
