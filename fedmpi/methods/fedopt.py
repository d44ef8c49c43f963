"""FedOpt: a server-side optimizer takes the mean of the clients' updates as its gradient.

S. J. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konecny, S. Kumar, H. B. McMahan,
*Adaptive Federated Optimization*, ICLR 2021, arXiv 2003.00295, algorithm 2: FedAdagrad, FedYogi and
FedAdam. T.-M. H. Hsu, H. Qi, M. Brown, *Measuring the Effects of Non-Identical Data Distribution
for Federated Visual Classification*, arXiv 1909.06335: FedAvgM, heavy-ball momentum on the server.

Differs from the paper: updates are averaged by samples; running statistics are averaged, without an
optimizer.
"""

from typing import Literal

import torch
from pydantic import Field

from fedmpi import config
from fedmpi.config import Settings
from fedmpi.methods import fedavg
from fedmpi.methods.fedavg import Clients
from fedmpi.training.train import Trainer

__all__ = ["Clients", "Config", "Server"]


class Config(config.Method):
    rule: Literal["adam", "yogi", "adagrad", "momentum"] = "adam"
    """Optimizer of the server."""
    lr: float = Field(0.1, gt=0, le=config.LARGEST)
    """Learning rate of the server. With rule = momentum and beta1 = 0, a rate of 1 is FedAvg."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay rate of the mean update, or the momentum."""
    beta2: float = Field(0.99, ge=0, lt=1)
    """Decay rate of the mean squared update, in adam and yogi."""
    tau: float = Field(1e-3, gt=0, le=1)
    """Adaptivity: added to the root of the mean squared update, which starts at tau^2."""


class Server(fedavg.Server):
    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.mean = torch.zeros_like(self.w)
        self.square = torch.full_like(self.w, self.method.tau**2)

    def state(self) -> dict[str, torch.Tensor]:
        """The model, and the optimiser's moments."""
        return super().state() | {"mean": self.mean, "square": self.square}

    def step(self, t: int) -> None:
        """Moves the model by one step of the server's optimizer along the mean update."""
        method = self.method
        delta = self.sum.mean()
        if method.rule == "momentum":
            direction = self.mean.mul_(method.beta1).add_(delta)
        else:
            self.mean.lerp_(delta, 1 - method.beta1)
            self._watch(delta.square())
            direction = self.mean / (self.square.sqrt() + method.tau)
        self.sum.total = direction * (method.lr * self.sum.weight)
        self.sum.total[self.stat_positions] = delta[self.stat_positions] * self.sum.weight
        super().step(t)

    def _watch(self, seen: torch.Tensor) -> None:
        """Updates the running mean of squared updates by the chosen rule."""
        match self.method.rule:
            case "adagrad":
                self.square.add_(seen)
            case "adam":
                self.square.lerp_(seen, 1 - self.method.beta2)
            case "yogi":
                sign = torch.sign(self.square - seen)
                self.square.addcmul_(seen, sign, value=self.method.beta2 - 1)
