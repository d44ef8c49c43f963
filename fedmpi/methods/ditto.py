"""Ditto: beside FedAvg's model each client trains a personal one, pulled towards the global one.

T. Li, S. Hu, A. Beirami, V. Smith, *Ditto: Fair and Robust Federated Learning Through
Personalization*, ICML 2021, arXiv 2012.04221, algorithm 1: v_k <- v_k - rate * (gradient of F_k at
v_k + lambda (v_k - w)), where w is the model at the beginning of the round.

Differs from the paper: personal models take as many steps as the global one, on the same batches,
and clients are averaged by samples. `personal` is the personal model's accuracy; losses, seconds
and FLOPs include both models.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.clients.burden import Burden
from fedmpi.methods import local
from fedmpi.methods.fedavg import Server
from fedmpi.training.train import Hooks

__all__ = ["Clients", "Config", "Server"]


class Config(config.Method):
    keeps_state: ClassVar[bool] = True
    owns: ClassVar[bool] = True
    controls: ClassVar[bool] = True

    pull: float = Field(0.1, ge=0, le=config.LARGEST)
    """Lambda: strength of the pull of personal models towards the global model. 0 is local
    training."""


class Clients(local.Owners):
    method: Config

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Trains the personal models, and then the global one as FedAvg does."""
        self.go_on(t, clients, Hooks(self.draw))
        return super().work(t, clients)

    def draw(self, clients: Sequence[int], w: Tensor, g: Tensor) -> None:
        """Adds the gradient of lambda / 2 * ||v - w||^2."""
        g.add_(w - self.start, alpha=self.method.pull)

    def burden(self, t: int, client: int) -> Burden:
        """Returns the cost of training two models, one after the other."""
        once = super().burden(t, client)
        return replace(once, samples=2 * once.samples)

    def owned(self, t: int, client: int, w: Tensor) -> Tensor:
        """Returns the client's personal model, or the global one if it has none."""
        return self.models.get(client, w).to(w.device)

    def personal(self, client: int, w: Tensor) -> Tensor | None:
        """Returns the client's personal model."""
        return self.models[client].to(w.device)
