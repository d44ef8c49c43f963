"""EF-signSGD: clients send the signs of their updates, one bit a value, with error feedback.

S. P. Karimireddy, Q. Rebjock, S. U. Stich, M. Jaggi, *Error Feedback Fixes SignSGD and other
Gradient Compression Schemes*, ICML 2019, arXiv 1901.09847, algorithm 1: p = update + residual is
sent as ||p||_1 / n * sign(p).

Differs from the paper: the update of a whole round of local training is compressed. Running
statistics are sent exactly.
"""

from collections.abc import Sequence

from torch import Tensor

from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.methods import fedavg, topk
from fedmpi.training import feedback


class Config(feedback.Config):
    """Whether clients use error feedback."""


class Server(fedavg.Server):
    def add(self, t: int, client: int, blocks: Sequence[Block], weight: float) -> None:
        """Adds the signs of all parameters, times their scale."""
        self.sum.add(blocks[0], weight, self.flat.movable.to(self.w.device))


class Clients(topk.Compressing):
    def encode(self, t: int, client: int, update: Tensor) -> tuple[Block, Tensor]:
        """Sends the signs of all parameters, and their mean absolute value as scale."""
        where = self.flat.movable.to(update.device)
        block = sparse.signs(Kind.GRADIENT, update[where], self.flat.size)
        sent = sparse.vector(block, self.flat.size, update.device, where)
        return block, update.sub_(sent)
