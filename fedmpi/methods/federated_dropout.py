"""Federated Dropout: each client trains a random sub-model, drawn anew each round.

S. Caldas, J. Konecny, H. B. McMahan, A. Talwalkar, *Expanding the Reach of Federated Learning by
Reducing Client Resource Requirements*, arXiv 1812.07210, section on Federated Dropout. A fixed
number of units or filters of each hidden layer is kept and the others are dropped, so that the
weight matrices are really smaller. Both sides draw the same channels, so that no positions are
sent.

Reconstruction: each value is averaged over the clients that trained it, as in HeteroFL, of which
this is a variant. The paper also compresses what is sent; other methods here do that. Layers whose
outputs are added (shortcuts) keep the same channels. The channels of a recurrent layer are its
cells. A share is judged by the round's draw of the first client that has it.
"""

from typing import Annotated

from pydantic import Field

from fedmpi.config import Settings
from fedmpi.methods import heterofl
from fedmpi.methods.heterofl import Clients, Server
from fedmpi.networks import narrow
from fedmpi.networks.narrow import Choose
from fedmpi.streams import Purpose, stream

__all__ = ["Clients", "Config", "Server"]


class Config(heterofl.Config):
    rates: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.75,), min_length=1, strict=False
    )
    """Shares of the channels that clients train. Clients are spread evenly over them. Used if no
    device has a keep."""
    scaler: bool | None = False
    """Divide the outputs of hidden layers by the client's share in training. If absent, only in
    models with normalisation."""
    masked: bool = False
    """Ignore classes that a client has no samples of in its training: their logits are set to 0."""

    def choose(self, settings: Settings, t: int, client: int, rate: float) -> Choose:
        """Draws the client's channels at random, anew for each client and round."""
        return narrow.drawn(rate, stream(settings.seed, Purpose.CHANNELS, t, client))
