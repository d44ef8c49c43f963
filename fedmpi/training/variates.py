"""Control variates: by what clients correct the drift of their gradients, as SCAFFOLD does.

S. P. Karimireddy, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh, *SCAFFOLD: Stochastic
Controlled Averaging for Federated Learning*, ICML 2020, arXiv 1910.06378, algorithm 1, option II.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedmpi.training.train import Trainer


class Variates:
    """The control variates of a rank: c, and its clients' c_k. All are [n], and zeros at first.

    Args:
        trainer: keeps the c_k.

    Attributes:
        common: c, as the server sent it.
        own: each client's c_k, if it has moved.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.common = torch.zeros(trainer.flat.size, device=trainer.device)
        self.own = trainer.store("variate", len(self.common))
        self.chunk: tuple[int, ...] = ()
        self.drift = torch.zeros_like(self.common)

    def begin(self, common: Tensor) -> None:
        """A round begins, with that c."""
        self.common, self.chunk = common, ()

    def of(self, client: int) -> Tensor:
        """The client's c_k: [n]."""
        if client in self.own:
            return self.own[client].to(self.common.device)
        return torch.zeros_like(self.common)

    def correct(self, clients: Sequence[int], g: Tensor) -> None:
        """Adds c - c_k to the clients' gradients [k, n]; put together when a chunk begins."""
        if self.chunk[: len(clients)] != tuple(clients):
            self.chunk = tuple(clients)
            self.drift = torch.stack([self.common - self.of(client) for client in clients])
        g.add_(self.drift[: len(clients)])

    def move(self, client: int, update: Tensor, distance: float, stat_positions: Tensor) -> Tensor:
        """Moves c_k to c_k - c + (w - w_k) / distance, and returns the change: [n].

        Args:
            client: whose.
            update: w_k - w, [n].
            distance: the sum of the rates of its steps.
            stat_positions: positions that have no gradient, and so no variate: int64.
        """
        change = update / -distance - self.common
        change[stat_positions] = 0
        self.own[client] = self.of(client) + change
        return change
