"""Server optimizers: how the mean of a round's updates moves the global model.

S. J. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konecny, S. Kumar, H. B. McMahan,
*Adaptive Federated Optimization*, ICLR 2021, arXiv 2003.00295, algorithm 2: `adam`, `yogi` and
`adagrad`. T.-M. H. Hsu, H. Qi, M. Brown, *Measuring the Effects of Non-Identical Data Distribution
for Federated Visual Classification*, arXiv 1909.06335: `momentum`. D. Jhunjhunwala, S. Wang, G.
Joshi, *FedExP: Speeding Up Federated Averaging via Extrapolation*, ICLR 2023, arXiv 2301.09604,
algorithm 1: `fedexp`, whose rate is max(1, (mean of ||update_k||^2) / (2 (||mean update||^2 +
tau))).

Running statistics are averaged, without an optimizer.
Differs from the paper: updates are averaged with the weights of `[aggregation]`, in FedExP's rate,
too. FedExP's authors evaluate the mean of the last two models; here the last one is evaluated.
"""

import torch
from torch import Tensor

from fedmpi.config import Settings
from fedmpi.messages.sums import Measured, Sum


class ServerOptimizer:
    """Moves a model [n] by mean updates.

    Attributes:
        mean: running mean of the updates, or their velocity, [n]; [0] if the rule has none.
        square: running mean or sum of their squares, [n]; [0] if the rule has none.
    """

    def __init__(
        self, settings: Settings, size: int, device: torch.device, stat_positions: Tensor
    ) -> None:
        self.chosen, self.stat_positions = settings.aggregation, stat_positions
        rule = self.chosen.server
        has_mean, has_square = rule not in ("none", "fedexp"), rule in ("adam", "yogi", "adagrad")
        self.mean = torch.zeros(size if has_mean else 0, device=device)
        self.square = torch.full((size if has_square else 0,), self.chosen.tau**2, device=device)

    def state(self) -> dict[str, Tensor]:
        """Returns what goes on from round to round, by name."""
        both = {"mean": self.mean, "square": self.square}
        return {name: moment for name, moment in both.items() if len(moment)}

    def forget(self, where: Tensor) -> None:
        """Sets the running mean to zero at positions that leave the model, bool [n]."""
        if len(self.mean):
            self.mean[where] = 0

    def step(self, w: Tensor, total: Sum) -> None:
        """Moves w [n] in place by the mean of a round's updates, and clears the sum."""
        if self.chosen.server == "none" and self.chosen.rate == 1:
            total.move(w)
            return
        delta = total.mean()
        moved = w[self.stat_positions] + delta[self.stat_positions]
        delta[self.stat_positions] = 0
        w.add_(self.direction(delta), alpha=self.rate(delta, total))
        w[self.stat_positions] = moved
        total.clear()

    def rate(self, delta: Tensor, total: Sum) -> float:
        """Returns the learning rate of the step along `delta`, the mean update [n]."""
        if not isinstance(total, Measured):
            return self.chosen.rate
        square = float(delta.square().sum(dtype=torch.float64)) + self.chosen.tau
        return max(1.0, total.squares / total.weight / (2 * square))

    def direction(self, delta: Tensor) -> Tensor:
        """Returns the direction of the step for a mean update, [n]."""
        rule = self.chosen.server
        if rule in ("none", "fedexp"):
            return delta
        if rule == "momentum":
            return self.mean.mul_(self.chosen.momentum).add_(delta)
        self.mean.lerp_(delta, 1 - self.chosen.momentum)
        seen = delta.square()
        if rule == "adagrad":
            self.square.add_(seen)
        elif rule == "adam":
            self.square.lerp_(seen, 1 - self.chosen.beta2)
        else:
            sign = torch.sign(self.square - seen)
            self.square.addcmul_(seen, sign, value=self.chosen.beta2 - 1)
        return self.mean / (self.square.sqrt() + self.chosen.tau)
