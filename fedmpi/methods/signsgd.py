"""EF-signSGD: one bit a value, its sign, and what that leaves out is remembered.

S. P. Karimireddy, Q. Rebjock, S. U. Stich, M. Jaggi, *Error Feedback Fixes SignSGD and other
Gradient Compression Schemes*, ICML 2019, arXiv 1901.09847, algorithm 1: p = update + residual
travels as ||p||_1 / n * sign(p).

Differs from the paper: what is compressed is the update of a whole round of local training. Running
statistics travel as they are.
"""

from collections.abc import Sequence

from torch import Tensor

from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.methods import fedavg, topk
from fedmpi.training import feedback


class Config(feedback.Config):
    """Whether there is error feedback."""


class Server(fedavg.Server):
    def add(self, t: int, client: int, blocks: Sequence[Block], weight: float) -> None:
        """Signs of all parameters."""
        self.sum.add(blocks[0], weight, self.flat.movable.to(self.w.device))


class Clients(topk.Compressing):
    def encode(self, t: int, client: int, update: Tensor) -> tuple[Block, Tensor]:
        """Signs of all values, and their scale."""
        where = self.flat.movable.to(update.device)
        block = sparse.signs(Kind.GRADIENT, update[where], self.flat.size)
        sent = sparse.vector(block, self.flat.size, update.device, where)
        return block, update.sub_(sent)
