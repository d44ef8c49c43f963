"""Deep Gradient Compression: top-k with error feedback and momentum correction.

Y. Lin, S. Han, H. Mao, Y. Wang, W. J. Dally, *Deep Gradient Compression: Reducing the Communication
Bandwidth for Distributed Training*, ICLR 2018, arXiv 1712.01887, algorithm 1 with momentum
correction and factor masking: u = m u + update and v = v + u; the largest values of v are sent, and
u and v are set to zero at these positions. Sparsity warms up as in the paper: 75 % in the first
round, then a quarter of the density in each further one.

Differs from the paper: the update of a whole round of local training is sparsified; the choice is
exact and needs no threshold from a sample; gradients are clipped by the setting `clip`. Running
statistics are all sent.
Values of the paper: sections 3 and 4, for data-parallel training, a gradient of one step a round;
one choice a tensor, as in the released code (synxlin/deep-gradient-compression).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

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


class Config(feedback.Config, spans.Tensorwise):
    keeps_state: ClassVar[bool] = True
    travels: ClassVar[bool] = True
    chooses: ClassVar[bool] = True
    feedbacks: ClassVar[tuple[str, ...]] = ("classic",)
    paper: ClassVar[Mapping[str, Any]] = {
        "method.sparsity": 0.999,
        "method.momentum": 0.9,
        "method.warmup": 4,
        "method.spans": "tensor",
        "momentum": 0.0,
        "local_steps": 1,
    }

    sparsity: float = Field(0.999, ge=0, lt=1)
    """Share of the values that are not sent, after the warm-up."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of a client's updates, in place of a momentum of the local steps. 0 without warm-up
    is top-k with error feedback."""
    warmup: int = Field(4, ge=0, le=config.MOST)
    """Number of warm-up rounds. In round t sparsity is then at most 1 - 0.25^(t + 1)."""

    def idle(self, settings: Settings) -> dict[str, str]:
        """Adds what says how values are left out, where none is."""
        wanted = {}
        if not self.sparsity:
            wanted["spans"] = config.SPARSE
        if self.momentum and not self.sparsity:
            wanted["momentum"] = config.SPARSE
        if self.warmup and self.sparsity <= FIRST:
            wanted["warmup"] = f"method.sparsity above {FIRST}, found {self.sparsity}"
        return super().idle(settings) | wanted

    def problems(self, settings: Settings) -> list[str]:
        """Adds a second momentum."""
        found = super().problems(settings)
        if settings.momentum and self.momentum:
            found.append(
                f"momentum = {settings.momentum}: wanted 0 beside method.momentum = "
                f"{self.momentum}, which takes its place"
            )
        return found


FIRST = 0.75
"""Sparsity of the first round of a warm-up."""


class Clients(fedavg.Clients):
    """The clients' half.

    Attributes:
        velocities: each client's u, [n].
        velocity: u of the client whose update is being encoded, [n].
    """

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.velocities = Feedback(trainer, self.flat.size, self.stat_positions, name="velocity")
        self.velocity = self.start

    def sparsity(self, t: int) -> float:
        """Returns the sparsity of round t, counted from 0, which rises during the warm-up."""
        wanted = self.method.sparsity
        return min(wanted, 1 - (1 - FIRST) ** (t + 1)) if t < self.method.warmup else wanted

    def count(self, t: int) -> int:
        """Returns how many values of v are sent in round t."""
        return self.method.count(self.flat, self.sparsity(t))

    def update(self, client: int, w: Tensor) -> Tensor:
        """Adds the update to u, and u to v; returns v."""
        self.velocity = self.velocities.add(client, w, self.start)
        return self.feedback.add(client, self.velocity, w.new_zeros(w.shape))

    def encode_update(self, t: int, client: int, update: Tensor) -> list[Block]:
        """Sends the largest values of v, and keeps the rest of u."""
        chosen = self.method.largest(update, self.flat, self.sparsity(t))
        velocity = self.velocity.mul_(self.method.momentum)
        velocity[self.stat_positions] = 0
        whole = self.velocities.kept(velocity)
        velocity[chosen.positions] = 0
        self.velocities.remember(client, velocity, whole)
        return [sparse.block(Kind.GRADIENT, chosen.values, self.flat.size, chosen.places)]
