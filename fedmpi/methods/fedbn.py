"""FedBN: normalization layers stay with the client, all others are averaged.

X. Li, M. Jiang, X. Zhang, M. Kamp, Q. Dou, *FedBN: Federated Learning on Non-IID Features via Local
Batch Normalization*, ICLR 2021, arXiv 2102.07623, algorithm 1. Scale, shift and running statistics
of every norm are the client's own; a model without norms is trained as in FedAvg.

There is no global model; accuracies are measured as in FedPer.
Differs from the paper: scales and shifts of GroupNorm are personal as well; clients are averaged by
samples.
"""

from torch import Tensor

from fedmpi.methods import fedper
from fedmpi.methods.fedper import Clients, Server
from fedmpi.networks.flat import Flat

__all__ = ["Clients", "Config", "Server"]


class Config(fedper.Config):
    """FedBN has no settings of its own."""

    def private(self, flat: Flat) -> Tensor:
        """Returns the positions of normalization layers, which stay with clients: bool [size]."""
        return flat.normalising()
