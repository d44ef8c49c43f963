"""QSGD: clients quantize their updates to a few bits a value by unbiased stochastic rounding.

D. Alistarh, D. Grubic, J. Li, R. Tomioka, M. Vojnovic, *QSGD: Communication-Efficient SGD via
Gradient Quantization and Encoding*, NeurIPS 2017, arXiv 1610.02132, section 3. Applied to the
update of a round of local training it is FedPAQ: A. Reisizadeh, A. Mokhtari, H. Hassani, A.
Jadbabaie, R. Pedarsani, AISTATS 2020, arXiv 1909.13014.

Differs from the paper: levels are sent in a fixed number of bits, not in Elias' code. Running
statistics are sent exactly.
Values of the paper: its experiments with 4 bits, for a gradient of one step a round.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.messages import quantized
from fedmpi.messages.codec import Block, Kind
from fedmpi.methods import fedavg
from fedmpi.streams import Purpose, stream


class Config(config.Method):
    paper: ClassVar[Mapping[str, Any]] = {
        "method.bits": 4,
        "method.bucket": 512,
        "local_steps": 1,
    }
    controls: ClassVar[bool] = True

    bits: int = Field(4, ge=2, le=16)
    """Bits per value: a sign and one of 2^(bits - 1) - 1 levels."""
    bucket: int = Field(512, ge=1, le=config.MOST)
    """Number of values that share one norm."""


class Levels(fedavg.Half):
    """Control variates travel as updates do, as levels and norms."""

    method: Config
    blocks_per_change = 2
    blocks_per_upload = 2

    def encode_change(self, t: int, client: int, values: Tensor) -> list[Block]:
        """Quantizes the change of a client's control variate."""
        random = stream(self.settings.seed, Purpose.QUANTIZE, t, client, 1)
        method = self.method
        return quantized.levels(Kind.GRADIENT, values, method.bits, method.bucket, random)

    def decode_change(self, blocks: Sequence[Block]) -> Tensor:
        """Restores the change from its levels and norms."""
        codes, norms = blocks
        return quantized.leveled(codes, norms, self.method.bucket, self.trainer.device)

    def add(self, t: int, client: int, blocks: Sequence[Block], weight: float) -> None:
        """Restores an update from its levels and norms, and adds it."""
        self.sum.total.add_(self.decode_change(blocks), alpha=weight)


class Server(Levels, fedavg.Server):
    method: Config


class Clients(Levels, fedavg.Clients):
    method: Config

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """Sends the update as levels and norms, and running statistics exactly."""
        update = w - self.start
        statistics = self.take_statistics(update)
        random = stream(self.settings.seed, Purpose.QUANTIZE, t, client)
        method = self.method
        return [
            *quantized.levels(Kind.GRADIENT, update, method.bits, method.bucket, random),
            *statistics,
        ]
