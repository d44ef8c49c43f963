"""Fine-tuning: FedAvg whose final model each client personalizes by further local training.

G. Cheng, K. Chadha, J. Duchi, *Fine-tuning is Fine in Federated Learning*, 2021, arXiv 2108.07313;
called FedAvg-FT in the tables of R. Dai, L. Shen, F. He, X. Tian, D. Tao, *DisPFL: Towards
Communication-Efficient Personalized Federated Learning via Decentralized Sparse Training*, ICML
2022, arXiv 2206.00187. It is FedAvg with the setting `evaluate.final = tune`, and five epochs, as
in DisPFL's code. Like that, it fine-tunes the last average at every client.

Differs from the code: the rate is that of the last round; DisPFL's code has that of the first.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from fedmpi import config
from fedmpi.methods.fedavg import Clients, Server

__all__ = ["Clients", "Config", "Server"]


class Config(config.Method):
    """Fine-tuning has no settings of its own."""

    implies: ClassVar[Mapping[str, Any]] = {"evaluate.final": "tune"}
    controls: ClassVar[bool] = True
