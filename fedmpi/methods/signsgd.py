"""EF-signSGD: clients send the signs of their updates, one bit a value, with error feedback.

S. P. Karimireddy, Q. Rebjock, S. U. Stich, M. Jaggi, *Error Feedback Fixes SignSGD and other
Gradient Compression Schemes*, ICML 2019, arXiv 1901.09847, algorithm 1: p = update + residual is
sent as ||p||_1 / n * sign(p). By default, as in the released code, p is a tensor of n values.

Differs from the paper: the update of a whole round of local training is compressed. Running
statistics are sent exactly.
Values of the paper: algorithm 1, for a gradient of one step a round, and the released code.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from fedmpi.config import Settings
from fedmpi.messages import quantized, sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.methods import fedavg, topk
from fedmpi.training import feedback, spans
from fedmpi.training.train import Trainer


class Config(feedback.Config, spans.Tensorwise):
    """Whether clients use error feedback, and how many scales they send."""

    paper: ClassVar[Mapping[str, Any]] = {
        "method.error_feedback": True,
        "method.spans": "tensor",
        "local_steps": 1,
    }


class Signs(fedavg.Half):
    """What both sides know.

    Attributes:
        where: positions of all parameters, int64.
        lengths: numbers of values that share a scale.
    """

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.where = self.flat.movable.to(trainer.device)
        self.lengths = self.method.lengths(self.flat, self.flat.movable)
        self.blocks_per_upload = min(2, len(self.lengths))

    def add(self, t: int, client: int, blocks: Sequence[Block], weight: float) -> None:
        """Adds the signs of all parameters, times their scales."""
        self.sum.add(quantized.signed(blocks, self.lengths), weight, self.where)


class Server(Signs, fedavg.Server):
    method: Config


class Clients(Signs, topk.Compressing):
    method: Config

    def encode(self, t: int, client: int, update: Tensor) -> tuple[list[Block], Tensor]:
        """Sends the signs of all parameters, and their mean absolute values as scales."""
        given = update[self.where], self.lengths, self.flat.size
        blocks = quantized.signs(Kind.GRADIENT, *given)
        sent = quantized.signed(blocks, self.lengths)
        return blocks, update.sub_(sparse.vector(sent, self.flat.size, update.device, self.where))
