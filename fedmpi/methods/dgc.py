"""Deep Gradient Compression: top-k with error feedback and momentum correction.

Y. Lin, S. Han, H. Mao, Y. Wang, W. J. Dally, *Deep Gradient Compression: Reducing the Communication
Bandwidth for Distributed Training*, ICLR 2018, arXiv 1712.01887, algorithm 1 with momentum
correction and factor masking: u = m u + update and v = v + u; the largest values of v are sent, and
u and v are set to zero at these positions. Sparsity warms up as in the paper: 75 % in the first
round, then a quarter of the density in each further one.

Differs from the paper: the update of a whole round of local training is sparsified; values are
chosen over all parameters together; the choice is exact and needs no threshold from a sample;
gradients are clipped by the setting `clip`. Running statistics are all sent.
"""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.config import Settings
from fedmpi.messages import select, sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.messages.counts import keep_round
from fedmpi.methods import fedavg
from fedmpi.methods.fedavg import Server
from fedmpi.training.feedback import Feedback
from fedmpi.training.train import Trainer

__all__ = ["Clients", "Config", "Server"]


class Config(config.Method):
    keeps_state: ClassVar[bool] = True
    controls: ClassVar[bool] = True

    sparsity: float = Field(0.99, ge=0, lt=1)
    """Share of the values that are not sent, after the warm-up."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of a client's updates. 0 without warm-up is top-k with error feedback."""
    warmup: int = Field(4, ge=0, le=config.MOST)
    """Number of warm-up rounds. In round t sparsity is then at most 1 - 0.25^(t + 1)."""


class Clients(fedavg.Clients):
    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.velocities = Feedback(trainer, self.flat.size, name="velocity")
        self.feedback = Feedback(trainer, self.flat.size)

    def sparsity(self, t: int) -> float:
        """Returns the sparsity of round t, counted from 0, which rises during the warm-up."""
        wanted = self.method.sparsity
        return min(wanted, 1 - 0.25 ** (t + 1)) if t < self.method.warmup else wanted

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """Sends the largest values of v, and keeps the rest of u and v."""
        velocity = w - self.start
        statistics = self.take_statistics(velocity)
        self.velocities.add(client, velocity)
        waiting = velocity.clone()
        self.feedback.add(client, waiting)
        positions = select.top(waiting, keep_round(self.flat.count, 1 - self.sparsity(t)))
        block = sparse.block(Kind.GRADIENT, waiting[positions], self.flat.size, positions)
        velocity.mul_(self.method.momentum)
        wholes = self.velocities.kept(velocity), self.feedback.kept(waiting)
        velocity[positions] = 0
        waiting[positions] = 0
        self.velocities.remember(client, velocity, wholes[0])
        self.feedback.remember(client, waiting, wholes[1])
        return [block, *statistics]
