"""FedRep: each round a client trains its personal head first, and then the shared body below it.

L. Collins, H. Hassani, A. Mokhtari, S. Shakkottai, *Exploiting Shared Representations for
Personalized Federated Learning*, ICML 2021, arXiv 2102.07078, algorithm 1.

Differs from the paper: clients are averaged by samples; the steps of head and body are shares of
the local steps that the settings name. With momentum, the part whose gradient is zero keeps moving
by its momentum.
"""

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from fedmpi.methods import fedper
from fedmpi.methods.fedper import Server

__all__ = ["Clients", "Config", "Server"]


class Config(fedper.Config):
    head: float = Field(0.5, ge=0, le=1)
    """Share of a client's local steps that train the head. The other steps train the body."""


class Clients(fedper.Clients):
    method: Config

    def adjust(self, clients: Sequence[int], w: Tensor, g: Tensor) -> None:
        """Sets the gradient of the part to zero that is not trained in this step."""
        for row, client in enumerate(clients):
            heads = round(self.method.head * self.trainer.population.steps(client))
            g[row].mul_(self.private if self.trainer.at < heads else ~self.private)
