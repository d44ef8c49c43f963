"""SCAFFOLD: control variates correct the drift of local training.

S. P. Karimireddy, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh, *SCAFFOLD: Stochastic
Controlled Averaging for Federated Learning*, ICML 2020, arXiv 1910.06378, algorithm 1. It is FedAvg
with the setting `control`, of which `training.variates` says more.

Differs from the paper: models and control variates are averaged by samples, so that both stand for
the same objective. The paper's uniform averages are those of `aggregation.weights = equal`. The
server's learning rate is `aggregation.server_lr`. Running statistics are averaged and have no
control variate. If an upload is lost, c_k stays as it was, and so does c; the client hears of the
loss with the server's next word.
Values of the paper: those of NIID-Bench (`fedavg.NIID_BENCH`), which corrects the weights after
each step.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from fedmpi import config
from fedmpi.methods.fedavg import NIID_BENCH, Clients, Server

__all__ = ["Clients", "Config", "Server"]


class Config(config.Method):
    """SCAFFOLD has no settings of its own."""

    implies: ClassVar[Mapping[str, Any]] = {"control": "mean"}
    paper: ClassVar[Mapping[str, Any]] = {**NIID_BENCH, "control": "niid"}
    controls: ClassVar[bool] = True
