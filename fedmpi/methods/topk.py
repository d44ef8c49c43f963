"""Top-k: clients send only an update's largest values and add the rest to their next update.

S. U. Stich, J.-B. Cordonnier, M. Jaggi, *Sparsified SGD with Memory*, NeurIPS 2018, arXiv
1809.07599, algorithm 1; A. F. Aji, K. Heafield, *Sparse Communication for Distributed Gradient
Descent*, EMNLP 2017, arXiv 1704.05021. Also the base of other compression methods.

Differs from the paper: the update of a whole round of local training is sparsified, not one
gradient. Running statistics are no gradients and are all sent: a part of a variance that is added
in a later round could make it negative.
"""

from abc import ABC, abstractmethod

from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.methods import fedavg
from fedmpi.methods.fedavg import Server
from fedmpi.training import feedback, spans
from fedmpi.training.feedback import Feedback
from fedmpi.training.train import Trainer

__all__ = ["Clients", "Config", "Server"]


class Config(feedback.Config, spans.Config):
    sparsity: float = Field(0.9, ge=0, lt=1)
    """Share of an update's values that are not sent. 0 is FedAvg."""

    def idle(self, settings: Settings) -> dict[str, str]:
        """Adds what says how values are left out, where none is."""
        return super().idle(settings) | ({} if self.sparsity else {"spans": config.SPARSE})


class Compressing(fedavg.Clients, ABC):
    """Clients that compress their updates, with error feedback if the settings want it."""

    method: feedback.Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.feedback = Feedback(trainer, self.flat.size, self.method.error_feedback)

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """Compresses update + residual; the compression error becomes the next residual."""
        update = w - self.start
        statistics = self.take_statistics(update)
        self.feedback.add(client, update)
        whole = self.feedback.kept(update)
        blocks, rest = self.encode(t, client, update)
        if rest is not None:
            self.feedback.remember(client, rest, whole)
        return [*blocks, *statistics]

    @abstractmethod
    def encode(self, t: int, client: int, update: Tensor) -> tuple[list[Block], Tensor | None]:
        """Compresses an update [n], which may be changed in place.

        Returns:
            The blocks to send, and the compression error [n], or None if there is no error.
        """


class Clients(Compressing):
    method: Config

    def encode(self, t: int, client: int, update: Tensor) -> tuple[list[Block], Tensor | None]:
        """Keeps the largest values; the others are the error."""
        positions = self.method.largest(update, self.flat, self.method.sparsity)
        if len(positions) == self.flat.count:
            return [sparse.block(Kind.GRADIENT, update)], None
        block = sparse.block(Kind.GRADIENT, update[positions], self.flat.size, positions)
        update[positions] = 0
        return [block], update
