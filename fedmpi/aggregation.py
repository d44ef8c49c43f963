"""What the server makes of a round's updates, where it is not their mean: robust or noisy ones.

Coordinate-wise median and trimmed mean: D. Yin, Y. Chen, K. Ramchandran, P. Bartlett,
*Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates*, ICML 2018, arXiv
1803.01498, definitions 1 and 2. Clipped updates with Gaussian noise on their mean: H. B. McMahan,
D. Ramage, K. Talwar, L. Zhang, *Learning Differentially Private Recurrent Language Models*, ICLR
2018, arXiv 1710.06963, algorithm 1 with a fixed clip.

It stands between the engine and any method: what a method adds up of one upload is an update, and
what comes out takes the place of the sum. All clients count alike then. Other sums, such as
SCAFFOLD's control variates, are as they were.
Reconstruction: noise falls only where some client's update is not zero, so that a sparse model
stays sparse; for a guarantee of privacy it would have to fall everywhere.
"""

from dataclasses import replace

import torch
from torch import Tensor

from fedmpi.codec import Message
from fedmpi.config import Settings
from fedmpi.methods.fedavg import Server
from fedmpi.streams import Purpose, torch_seed


class Aggregation:
    """The settings `[aggregation]` at work on a server; by default they change nothing.

    Unless `is_plain`, the server holds all updates of a round until they are in.
    """

    def __init__(self, settings: Settings, server: Server) -> None:
        self.settings, self.chosen, self.server = settings, settings.aggregation, server
        self.is_plain = self.chosen.is_mean
        self.updates: list[Tensor] = []

    def absorb(self, t: int, message: Message) -> None:
        """Has the server take in one upload of a round of training."""
        server = self.server
        if self.is_plain:
            server.absorb(t, message)
            return
        before, server.total = server.total, torch.zeros_like(server.total)
        server.absorb(t, replace(message, weight=1.0))
        server.total, update = before, server.total
        if self.chosen.clip:
            norm = torch.linalg.vector_norm(update)
            update.mul_((self.chosen.clip / (norm + 1e-12)).clamp(max=1))
        self.updates.append(update)

    def close(self, t: int) -> None:
        """All are in: puts the aggregate, times their number, in the place of the sum."""
        if self.is_plain:
            return
        rows, self.updates = torch.stack(self.updates), []
        result = aggregate(rows, self.chosen.rule, self.chosen.trim)
        if self.chosen.noise:
            random = torch.Generator().manual_seed(torch_seed(self.settings.seed, Purpose.BLUR, t))
            noise = torch.randn(len(result), generator=random).to(result.device)
            deviation = self.chosen.noise * self.chosen.clip / len(rows)
            result = result + deviation * noise * (rows != 0).any(0)
        self.server.total = result * len(rows)


def aggregate(updates: Tensor, rule: str, trim: float) -> Tensor:
    """One update [n] of those in the rows of [K, n].

    Args:
        updates: a client's update in each row.
        rule: mean, median or trimmed.
        trim: of the trimmed mean: share of the values that is left out at each end, rounded down.
    """
    if rule == "mean":
        return updates.mean(0)
    ordered = updates.sort(0).values
    count = len(updates)
    left = (count - 1) // 2 if rule == "median" else int(trim * count)
    return ordered[left : count - left].mean(0)
