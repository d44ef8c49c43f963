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

import numpy as np
from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.messages import quantized, sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.methods import fedavg
from fedmpi.training import feedback


class Config(feedback.Config):
    paper: ClassVar[Mapping[str, Any]] = {
        "method.bits": 4,
        "method.bucket": 512,
        "local_steps": 1,
    }
    implies: ClassVar[Mapping[str, Any]] = {}
    uploads: ClassVar[config.Uploads] = "codes"

    bits: int = Field(4, ge=2, le=16)
    """Bits per value: a sign and one of 2^(bits - 1) - 1 levels."""
    bucket: int = Field(512, ge=1, le=config.MOST)
    """Number of values that share one norm."""


class Levels(fedavg.Half):
    """Updates, and the changes of control variates, travel as levels and norms."""

    method: Config

    @property
    def blocks_per_change(self) -> int:
        """Levels and norms."""
        return 2

    def levels(self, values: Tensor, key: np.ndarray) -> list[Block]:
        """Encodes values as levels and norms."""
        return quantized.levels(Kind.GRADIENT, values, self.method.bits, self.method.bucket, key)

    def decode_update(self, t: int, client: int, blocks: Sequence[Block]) -> Block:
        """Joins levels and norms."""
        return quantized.leveled(blocks, self.method.bucket)

    def encode_change(
        self, t: int, client: int, values: Tensor, where: Tensor | None
    ) -> list[Block]:
        """Quantizes the change of a client's control variate."""
        return self.levels(values, self.rounding(t, client, 1))

    def decode_change(self, blocks: Sequence[Block], where: Tensor | None) -> Tensor:
        """Restores the change from its levels and norms."""
        return sparse.values(quantized.leveled(blocks, self.method.bucket), self.trainer.device)


class Server(Levels, fedavg.Server):
    method: Config


class Clients(Levels, fedavg.Clients):
    method: Config

    def encode_update(self, t: int, client: int, update: Tensor) -> list[Block]:
        """Sends the update as levels and norms."""
        return self.levels(update, self.rounding(t, client))
