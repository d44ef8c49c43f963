"""Control variates: by what clients correct the drift of their gradients, as SCAFFOLD does.

S. P. Karimireddy, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh, *SCAFFOLD: Stochastic
Controlled Averaging for Federated Learning*, ICML 2020, arXiv 1910.06378, algorithm 1. The server
has c, and each client c_k. Clients follow g + c - c_k instead of their gradient g.

With `control = mean` a client's new c_k is the mean of its raw gradients g, those before the
correction, each weighted by the rate of its step. For plain SGD this is the paper's option II, c_k
- c + (w - w_k) / (sum of rates). With momentum, Adam, weight decay or a clip option II is not a
mean gradient. With momentum it even multiplies c_k - c by about -m / (1 - m) in each round, and
diverges.

With `control = niid` the correction is a step of its own: after the optimizer's step, w -= rate *
(c - c_k), and c_k follows option II. This is what NIID-Bench does (Q. Li, Y. Diao, Q. Chen, B. He,
*Federated Learning on Non-IID Data Silos*, ICDE 2022, arXiv 2102.02079) and what SPATL's released
code does.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedmpi.training.train import Trainer


class Variates:
    """The control variates of a rank: c, and its clients' c_k. All are [n], and zeros at first.

    Args:
        trainer: keeps the c_k, and knows the settings.
        free: positions that have no control variate, such as running statistics: int64.

    Attributes:
        common: c, as the server sent it.
        own: each client's c_k, if it has moved.
    """

    def __init__(self, trainer: Trainer, free: Tensor) -> None:
        self.trainer, self.free = trainer, free
        self.is_mean = trainer.settings.control == "mean"
        self.common = torch.zeros(trainer.flat.size, device=trainer.device)
        self.own = trainer.provisional("variate", len(self.common))
        self.t, self.chunk = -1, tuple[int, ...]()
        self.drift = self.seen = torch.zeros(0, len(self.common), device=trainer.device)

    def begin(self, t: int, common: Tensor) -> None:
        """Round t begins, with that c."""
        self.t, self.common, self.chunk = t, common, ()

    def of(self, client: int) -> Tensor:
        """The client's c_k: [n]."""
        if client in self.own:
            return self.own[client].to(self.common.device)
        return torch.zeros_like(self.common)

    def _enter(self, clients: Sequence[int]) -> None:
        """A chunk begins, or the clients of the chunk with fewest steps have taken all of them."""
        if self.chunk[: len(clients)] != tuple(clients):
            self.chunk = tuple(clients)
            self.drift = torch.stack([self.common - self.of(client) for client in clients])
            self.seen = torch.zeros_like(self.drift)

    def correct(self, clients: Sequence[int], g: Tensor) -> None:
        """Adds c - c_k to the clients' gradients [k, n], and takes note of these gradients."""
        self._enter(clients)
        rate = self.trainer.rates.of_step(self.t, clients, self.trainer.at)
        if isinstance(rate, Tensor):
            self.seen[: len(clients)].addcmul_(g, rate)
        else:
            self.seen[: len(clients)].add_(g, alpha=rate)
        g.add_(self.drift[: len(clients)])

    def follow(self, clients: Sequence[int], w: Tensor, rate: float | Tensor) -> None:
        """Moves the clients' models [k, n] by -rate * (c - c_k)."""
        self._enter(clients)
        w.sub_(self.drift[: len(clients)] * rate)

    def change(self, client: int, w: Tensor, start: Tensor) -> Tensor:
        """Returns the new c_k minus the old one: [n].

        Args:
            client: one of the last chunk that trained.
            w: the model at which its training ended, [n].
            start: the model at which it started, [n].
        """
        total = self.trainer.rates.total(self.t, client)
        if self.is_mean:
            change = self.seen[self.chunk.index(client)] / total - self.of(client)
        else:
            change = (w - start) / -total - self.common
        change[self.free] = 0
        return change

    def move(self, client: int, change: Tensor) -> None:
        """Moves c_k by what the server hears of its change, [n]; not if the upload is lost."""
        before = self.of(client)
        self.own.put(client, before + change, before)
