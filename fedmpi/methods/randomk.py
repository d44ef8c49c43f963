"""Random-k: clients send values at random positions, which both sides draw from the seed.

J. Konecny, H. B. McMahan, F. X. Yu, P. Richtarik, A. T. Suresh, D. Bacon, *Federated Learning:
Strategies for Improving Communication Efficiency*, arXiv 1610.05492, section 2 ("random mask"); S.
U. Stich, J.-B. Cordonnier, M. Jaggi, *Sparsified SGD with Memory*, NeurIPS 2018, arXiv 1809.07599.

Without feedback values are scaled by n / k, so that the update is unbiased. With it they are sent
unscaled, as in the second paper. Positions are drawn anew for each client and round. No
positions are sent. Running statistics are all sent.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.messages.counts import keep_round
from fedmpi.methods import fedavg
from fedmpi.networks.flat import Flat
from fedmpi.streams import Purpose, stream
from fedmpi.training import feedback


class Config(feedback.Config):
    implies: ClassVar[Mapping[str, Any]] = {}

    sparsity: float = Field(0.9, ge=0, lt=1)
    """Share of an update's values that are not sent. 0 is FedAvg."""

    @property
    def loses(self) -> bool:
        """Whether some values are not sent."""
        return self.sparsity > 0


def drawn(settings: Settings, flat: Flat, t: int, client: int) -> Tensor:
    """Draws the positions of the client's values in round t, ascending: int64 [k]."""
    assert isinstance(settings.method, Config)
    random = stream(settings.seed, Purpose.POSITIONS, t, client)
    count = keep_round(flat.count, 1 - settings.method.sparsity)
    chosen = torch.from_numpy(random.permutation(flat.count)[:count]).sort().values
    return flat.movable[chosen]


class Positions(fedavg.Half):
    """Both sides draw the positions."""

    def sent_count(self, t: int) -> int:
        """Returns how many values are sent."""
        assert isinstance(self.method, Config)
        return keep_round(self.flat.count, 1 - self.method.sparsity)

    def sent_positions(self, t: int, client: int, blocks: Sequence[Block]) -> Tensor:
        """Returns the positions of the client's values, int64 [k]."""
        return drawn(self.settings, self.flat, t, client).to(self.trainer.device)


class Server(Positions, fedavg.Server):
    method: Config


class Clients(Positions, fedavg.Clients):
    method: Config

    def encode_update(self, t: int, client: int, update: Tensor) -> list[Block]:
        """Sends the values at the drawn positions, scaled up if there is no feedback."""
        where = drawn(self.settings, self.flat, t, client).to(update.device)
        scale = 1.0 if self.feedback.is_on else self.flat.count / len(where)
        return [sparse.block(Kind.GRADIENT, scale * update.index_select(0, where), self.flat.size)]
