"""FedRolex: HeteroFL with a window of channels that rolls on each round, so that all are trained.

S. Alam, L. Liu, M. Yan, M. Zhang, *FedRolex: Model-Heterogeneous Federated Learning with Rolling
Sub-Model Extraction*, NeurIPS 2022, arXiv 2212.01548. In round t a client of rate r trains ceil(r *
C) of the C channels of each hidden layer, starting at channel t mod C and wrapping around. Layers
whose outputs are added have the same channels. All clients may be narrower than the model. A share
is judged by the round's window.

Differs from the paper: clients are weighted by their samples.
Differs from the code: as HeteroFL does; the window rolls forward, as the paper has it (in the code
it starts at channel -t mod C); the sub-model's channels are in the same order as in the whole
model.
"""

from fedmpi.config import Settings
from fedmpi.methods import heterofl
from fedmpi.methods.heterofl import Clients, Server
from fedmpi.networks import narrow
from fedmpi.networks.narrow import Choose

__all__ = ["Clients", "Config", "Server"]


class Config(heterofl.Config):
    """Settings of HeteroFL."""

    def choose(self, settings: Settings, t: int, client: int, rate: float) -> Choose:
        """Returns the window of channels of round t."""
        return narrow.window(rate, max(t, 0))
