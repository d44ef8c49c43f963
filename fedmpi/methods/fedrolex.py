"""FedRolex: HeteroFL whose window of channels rolls on each round, so that all are trained.

S. Alam, L. Liu, M. Yan, M. Zhang, *FedRolex: Model-Heterogeneous Federated Learning with Rolling
Sub-Model Extraction*, NeurIPS 2022, arXiv 2212.01548. In round t a client of rate r has of each
hidden layer's C channels the ceil(r * C) from channel t mod C on, and behind the last the first
again; where outputs are added, layers have the same. All clients may be narrower than the model.

Differs from the paper: clients count by their samples.
Differs from the code: as HeteroFL does; channels stand in the sub-model in the whole one's order.
"""

from fedmpi.config import Settings
from fedmpi.methods import heterofl
from fedmpi.methods.heterofl import Clients, Server
from fedmpi.networks import narrow
from fedmpi.networks.narrow import Choose

__all__ = ["Clients", "Config", "Server"]


class Config(heterofl.Config):
    """Those of HeteroFL."""

    def choose(self, settings: Settings, t: int, client: int, rate: float) -> Choose:
        """The window of round t."""
        return narrow.window(rate, max(t, 0))
