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

from fedmpi import config
from fedmpi.config import Settings
from fedmpi.messages import quantized
from fedmpi.messages.codec import Block, Kind
from fedmpi.methods import fedavg
from fedmpi.training import feedback, spans
from fedmpi.training.train import Trainer


class Config(feedback.Config, spans.Tensorwise):
    """How many scales clients send."""

    uploads: ClassVar[config.Uploads] = "codes"

    paper: ClassVar[Mapping[str, Any]] = {
        "feedback": "classic",
        "method.spans": "tensor",
        "local_steps": 1,
    }


class Signs(fedavg.Half):
    """Both sides know the positions: those of all parameters.

    Attributes:
        where: these positions, int64.
        lengths: how many of them share a scale.
    """

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.where = self.flat.movable.to(trainer.device)
        self.lengths = self.method.lengths(self.flat, self.flat.movable)

    def sent_positions(self, t: int, client: int, blocks: Sequence[Block]) -> Tensor:
        """Returns the positions of all parameters."""
        return self.where

    def decode_update(self, t: int, client: int, blocks: Sequence[Block]) -> Block:
        """Restores the signs of all parameters, times their scales."""
        return quantized.signed(blocks, self.lengths)


class Server(Signs, fedavg.Server):
    pass


class Clients(Signs, fedavg.Clients):
    def encode_update(self, t: int, client: int, update: Tensor) -> list[Block]:
        """Sends the signs of all parameters, and their mean absolute values as scales."""
        return quantized.signs(
            Kind.GRADIENT, update.index_select(0, self.where), self.lengths, self.flat.size
        )
