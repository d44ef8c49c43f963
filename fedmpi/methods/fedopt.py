"""FedOpt: a server-side optimizer takes the mean of the clients' updates as its gradient.

S. J. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konecny, S. Kumar, H. B. McMahan,
*Adaptive Federated Optimization*, ICLR 2021, arXiv 2003.00295. It is FedAvg with the setting
`aggregation.server`; without another choice it is FedAdam. `training.server_optimizer` says more.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from fedmpi import config
from fedmpi.methods.fedavg import Clients, Server

__all__ = ["Clients", "Config", "Server"]


class Config(config.Method):
    """FedOpt has no settings of its own."""

    implies: ClassVar[Mapping[str, Any]] = {"aggregation.server": "adam"}
    controls: ClassVar[bool] = True
