"""EF-signSGD: one bit a value, its sign, and what that leaves out is remembered.

S. P. Karimireddy, Q. Rebjock, S. U. Stich, M. Jaggi, *Error Feedback Fixes SignSGD and other
Gradient Compression Schemes*, ICML 2019, arXiv 1901.09847, algorithm 1: p = update + residual
travels as ||p||_1 / n * sign(p).

Differs from the paper: what is compressed is the update of a whole round of local training. Running
statistics travel as they are.
"""

from collections.abc import Sequence

from torch import Tensor

from fedmpi import config, sparse
from fedmpi.codec import Block, Kind
from fedmpi.config import Settings
from fedmpi.feedback import Feedback
from fedmpi.methods import fedavg
from fedmpi.train import Trainer


class Config(config.Method):
    error_feedback: bool = True
    """Add what was not sent to the client's next update."""


class Server(fedavg.Server):
    def add(self, t: int, client: int, blocks: Sequence[Block], weight: float) -> None:
        """Signs of all parameters."""
        sparse.add(self.total, blocks[0], weight, self.flat.movable.to(self.w.device))


class Clients(fedavg.Clients):
    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.keeps = self.method.error_feedback
        self.feedback = Feedback(settings.state, self.flat.size, self.keeps)

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """Signs of update + residual, and their scale."""
        update = w - self.start
        statistics = self.part(update)
        self.feedback.add(client, update)
        where = self.flat.movable.to(update.device)
        block = sparse.signs(Kind.GRADIENT, update[where], self.flat.size)
        sent = sparse.vector(block, self.flat.size, update.device, where)
        self.feedback.keep(client, update - sent)
        return [block, *statistics]
