"""Top-k: clients send only an update's largest values and add the rest to their next update.

S. U. Stich, J.-B. Cordonnier, M. Jaggi, *Sparsified SGD with Memory*, NeurIPS 2018, arXiv
1809.07599, algorithm 1; A. F. Aji, K. Heafield, *Sparse Communication for Distributed Gradient
Descent*, EMNLP 2017, arXiv 1704.05021.

Differs from the paper: the update of a whole round of local training is sparsified, not one
gradient. Running statistics are no gradients and are all sent: a part of a variance that is added
in a later round could make it negative.
"""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.methods import fedavg
from fedmpi.methods.fedavg import Server
from fedmpi.training import feedback, spans

__all__ = ["Clients", "Config", "Server"]


class Config(feedback.Config, spans.Config):
    chooses: ClassVar[bool] = True

    sparsity: float = Field(0.9, ge=0, lt=1)
    """Share of an update's values that are not sent. 0 is FedAvg."""

    @property
    def loses(self) -> bool:
        """Whether some values are not sent."""
        return self.sparsity > 0

    @property
    def travels(self) -> bool:
        """Whether positions are sent: if values are left out."""
        return self.sparsity > 0

    def idle(self, settings: Settings) -> dict[str, str]:
        """Adds what says how values are left out, where none is."""
        return super().idle(settings) | ({} if self.sparsity else {"spans": config.SPARSE})


class Clients(fedavg.Clients):
    method: Config

    def count(self, t: int) -> int:
        """Returns how many of an update's values are sent."""
        return self.method.count(self.flat, self.method.sparsity)

    def encode_update(self, t: int, client: int, update: Tensor) -> list[Block]:
        """Keeps the largest values."""
        chosen = self.method.largest(update, self.flat, self.method.sparsity)
        if len(chosen.places) == self.flat.count:
            return [sparse.block(Kind.GRADIENT, update.clone())]
        return [sparse.block(Kind.GRADIENT, chosen.values, self.flat.size, chosen.places)]
