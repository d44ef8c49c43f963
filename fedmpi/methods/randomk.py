"""Random-k: clients send values at random positions, which both sides draw from the seed.

J. Konecny, H. B. McMahan, F. X. Yu, P. Richtarik, A. T. Suresh, D. Bacon, *Federated Learning:
Strategies for Improving Communication Efficiency*, arXiv 1610.05492, section 2 ("random mask"); S.
U. Stich, J.-B. Cordonnier, M. Jaggi, *Sparsified SGD with Memory*, NeurIPS 2018, arXiv 1809.07599.

Without error feedback values are scaled by n / k, so that the update is unbiased. With it they are
sent unscaled, as in the second paper. Positions are drawn anew for each client and round. No
positions are sent. Running statistics are all sent.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.messages.counts import keep_round
from fedmpi.methods import fedavg, topk
from fedmpi.networks.flat import Flat
from fedmpi.streams import Purpose, stream
from fedmpi.training import feedback


class Config(feedback.Config):
    sparsity: float = Field(0.9, ge=0, lt=1)
    """Share of an update's values that are not sent. 0 is FedAvg."""
    error_feedback: bool = False
    """Add what was not sent to the client's next update. Otherwise sent values are scaled up, so
    that updates are unbiased."""

    def idle(self, settings: Settings) -> dict[str, str]:
        """Adds error feedback, where nothing is left out."""
        wanted = {} if self.sparsity else {"error_feedback": config.SPARSE}
        return super().idle(settings) | wanted


def drawn(settings: Settings, flat: Flat, t: int, client: int) -> Tensor:
    """Draws the positions of the client's values in round t, ascending: int64 [k]."""
    assert isinstance(settings.method, Config)
    random = stream(settings.seed, Purpose.POSITIONS, t, client)
    count = keep_round(flat.count, 1 - settings.method.sparsity)
    chosen = torch.from_numpy(random.permutation(flat.count)[:count]).sort().values
    return flat.movable[chosen]


class Positions(fedavg.Half):
    """Both sides draw the positions."""

    def sent_positions(self, t: int, client: int, blocks: Sequence[Block]) -> Tensor:
        """Returns the positions of the client's values, int64 [k]."""
        return drawn(self.settings, self.flat, t, client).to(self.trainer.device)

    def add(self, t: int, client: int, blocks: Sequence[Block], weight: float) -> None:
        """Adds a client's values at the drawn positions."""
        self.sum.add(blocks[0], weight, self.sent_positions(t, client, blocks))


class Server(Positions, fedavg.Server):
    method: Config


class Clients(Positions, topk.Compressing):
    method: Config

    def encode(self, t: int, client: int, update: Tensor) -> tuple[list[Block], Tensor]:
        """Sends the values at the drawn positions; the others are the error."""
        where = drawn(self.settings, self.flat, t, client).to(update.device)
        scale = 1.0 if self.method.error_feedback else self.flat.count / len(where)
        block = sparse.block(Kind.GRADIENT, scale * update[where], self.flat.size)
        update[where] = 0
        return [block], update
