"""FedProx: a proximal term keeps local models near the global one.

T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith, *Federated Optimization in
Heterogeneous Networks*, MLSys 2020, arXiv 1812.06127, algorithm 2. It is FedAvg with the setting
`proximal`.

Differs from the paper: clients are sampled uniformly and averaged by samples, as in NIID-Bench. The
paper's unequal work of clients is not the method's own: see the settings `epochs_to` and
`devices.deadline`.
Values of the paper: those of NIID-Bench (`fedavg.NIID_BENCH`), which tries mu = 1, 0.1, 0.01 and
0.001.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from fedmpi import config
from fedmpi.methods.fedavg import NIID_BENCH, Clients, Server

__all__ = ["Clients", "Config", "Server"]


class Config(config.Method):
    """FedProx has no settings of its own."""

    implies: ClassVar[Mapping[str, Any]] = {"proximal": 0.01}
    paper: ClassVar[Mapping[str, Any]] = {**NIID_BENCH, "proximal": 0.01}
    controls: ClassVar[bool] = True
