"""Top-k: only an update's largest values travel, and what was left out is remembered.

S. U. Stich, J.-B. Cordonnier, M. Jaggi, *Sparsified SGD with Memory*, NeurIPS 2018, arXiv
1809.07599, algorithm 1; A. F. Aji, K. Heafield, *Sparse Communication for Distributed Gradient
Descent*, EMNLP 2017, arXiv 1704.05021.

Differs from the paper: what is sparsified is the update of a whole round of local training, not one
gradient; the values are chosen over all parameters together, not layer by layer. Running statistics
are no gradients and all travel: what is left over of a variance, added later, may make it negative.
"""

from pydantic import Field
from torch import Tensor

from fedmpi import config, sparse
from fedmpi.codec import Block, Kind
from fedmpi.config import Settings
from fedmpi.feedback import Feedback
from fedmpi.methods import fedavg
from fedmpi.methods.fedavg import Server
from fedmpi.train import Trainer

__all__ = ["Clients", "Config", "Server"]


class Config(config.Method):
    sparsity: float = Field(0.9, ge=0, lt=1)
    """Share of an update's values that are not sent; 0 is FedAvg."""
    error_feedback: bool = True
    """Add what was not sent to the client's next update."""


class Clients(fedavg.Clients):
    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.keeps = self.method.error_feedback
        self.feedback = Feedback(settings.state, self.flat.size, self.keeps)

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """The largest values of update + residual; the rest is the next residual."""
        update = w - self.start
        statistics = self.part(update)
        self.feedback.add(client, update)
        count = sparse.kept(self.flat.count, self.method.sparsity)
        if count == self.flat.count:
            return [sparse.block(Kind.GRADIENT, update), *statistics]
        positions = sparse.top(update, count)
        block = sparse.block(Kind.GRADIENT, update[positions], self.flat.size, positions)
        update[positions] = 0
        self.feedback.keep(client, update)
        return [block, *statistics]
