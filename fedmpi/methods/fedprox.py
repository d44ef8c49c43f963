"""FedProx: a proximal term keeps local models near the global one.

T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith, *Federated Optimization in
Heterogeneous Networks*, MLSys 2020, arXiv 1812.06127, algorithm 2.

Differs from the paper: all clients make the same number of passes (no gamma-inexact solutions), are
sampled uniformly and averaged by samples, as in NIID-Bench.
"""

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.methods import fedavg
from fedmpi.methods.fedavg import Server

__all__ = ["Clients", "Config", "Server"]


class Config(config.Method):
    mu: float = Field(0.01, ge=0, le=config.LARGEST)
    """Weight of the proximal term mu / 2 * ||w - w_t||^2. 0 is FedAvg."""


class Clients(fedavg.Clients):
    method: Config

    def adjust(self, clients: Sequence[int], w: Tensor, g: Tensor) -> None:
        """Adds the proximal term's gradient."""
        g.add_(w - self.start, alpha=self.method.mu)
