"""Optimizers of rows: everything between a gradient and the next model, computed row by row."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from fedmpi.config import Settings
from fedmpi.training.rows import Rows


class Descent(ABC):
    """Moves rows along their gradients: clipping, weight decay, and an optimizer's step.

    Running statistics are never moved, whatever a method wrote into their gradient. What rests in
    a step follows no gradient, decay or momentum, and its running statistics stay as they were
    before the step. When other positions rest than in the step before, the optimizer of that row
    begins anew.

    Attributes:
        rested: what rested in the last step, bool [k, n]; None if nothing did.
        settled: running statistics after the last step, [rows, statistics].
    """

    def __init__(self, settings: Settings, rows: Rows[Any]) -> None:
        self.settings, self.rows = settings, rows
        moving = rows.flat.moving
        self.moving = None if moving is None else moving.to(rows.device)
        self.stat_positions = rows.flat.stat_positions.to(rows.device)
        self.rested: Tensor | None = None
        self.settled = rows.w[:, self.stat_positions]

    def reset(self, start: Tensor) -> None:
        """Sets all rows to `start` [n], or the first k to [k, n], and resets the optimizer."""
        (self.rows.w if start.dim() == 1 else self.rows.w[: len(start)]).copy_(start)
        self.rested, self.settled = None, self.rows.w[:, self.stat_positions]

    def pull(self, count: int, near: Tensor, strength: float) -> None:
        """Adds strength * (w - near) to the gradients of the first rows; near is [n] or [k, n]."""
        w, g = self.rows.head(count)
        g.add_(w - near, alpha=strength)

    def step(self, count: int, rate: float | Tensor, rests: Tensor | None = None) -> None:
        """Takes a step of the first rows.

        Args:
            count: number of rows.
            rate: their learning rate, one number or [count, 1].
            rests: the positions that do not move, bool [count, n]; None if all do.
        """
        if rests is None:
            self.move(count, rate)
            return
        w, g = self.rows.head(count)
        if self.rested is not None:
            changed = (rests != self.rested[:count]).any(1)
            self.renew(changed.nonzero().squeeze(1))
        self.rested = rests
        w[:, self.stat_positions] = torch.where(
            rests[:, self.stat_positions], self.settled[:count], w[:, self.stat_positions]
        )
        before = w[rests]
        g.masked_fill_(rests, 0)
        self.move(count, rate)
        w[rests] = before
        self.settled[:count] = w[:, self.stat_positions]

    @abstractmethod
    def renew(self, rows: Tensor) -> None:
        """Resets the optimizer's state of some rows, int64."""

    def move(self, count: int, rate: float | Tensor) -> None:
        """Moves the first rows; their rate is one number, or [count, 1]."""
        settings, (w, g) = self.settings, self.rows.head(count)
        if self.moving is not None:
            g.mul_(self.moving)
        if settings.clip:
            norms = torch.linalg.vector_norm(g, dim=1, keepdim=True)
            g.mul_((settings.clip / (norms + 1e-6)).clamp(max=1))
        if settings.weight_decay:
            g.add_(w if self.moving is None else w * self.moving, alpha=settings.weight_decay)
        direction = self.direction(g)
        if isinstance(rate, Tensor):
            w.addcmul_(direction, rate, value=-1)
        else:
            w.add_(direction, alpha=-rate)

    @abstractmethod
    def direction(self, g: Tensor) -> Tensor:
        """Returns the optimizer's direction for gradients g [k, n] of the first rows: [k, n]."""


class Sgd(Descent):
    """Stochastic gradient descent with heavy-ball momentum, as in `torch.optim.SGD`."""

    def __init__(self, settings: Settings, rows: Rows[Any]) -> None:
        super().__init__(settings, rows)
        self.velocity = torch.zeros_like(rows.w) if settings.momentum else None
        changes = settings.momentum or settings.clip or settings.weight_decay
        self.is_plain = not changes and self.moving is None

    def move(self, count: int, rate: float | Tensor) -> None:
        """Moves the first rows; plain SGD is done in one operation."""
        if self.is_plain and isinstance(rate, float):
            self.rows.move(count, rate)
        else:
            super().move(count, rate)

    def renew(self, rows: Tensor) -> None:
        """Sets the velocity of some rows to zero."""
        if self.velocity is not None:
            self.velocity[rows] = 0

    def reset(self, start: Tensor) -> None:
        """Sets rows to `start`, and the velocity to zero."""
        super().reset(start)
        if self.velocity is not None:
            self.velocity.zero_()

    def direction(self, g: Tensor) -> Tensor:
        """Returns the velocity, m * velocity + g."""
        if self.velocity is None:
            return g
        return self.velocity[: len(g)].mul_(self.settings.momentum).add_(g)


class Adam(Descent):
    """Adam: D. P. Kingma, J. Ba, ICLR 2015, algorithm 1, as in `torch.optim.Adam`."""

    def __init__(self, settings: Settings, rows: Rows[Any]) -> None:
        super().__init__(settings, rows)
        self.mean, self.square = torch.zeros_like(rows.w), torch.zeros_like(rows.w)
        # In float64, because 1 - beta2 has only three digits left in float32.
        self.steps = torch.zeros(len(rows), 1, device=rows.device, dtype=torch.float64)

    def reset(self, start: Tensor) -> None:
        """Sets rows to `start`, and both means and the step count to zero."""
        super().reset(start)
        for state in (self.mean, self.square, self.steps):
            state.zero_()

    def renew(self, rows: Tensor) -> None:
        """Sets both means and the step count of some rows to zero."""
        for state in (self.mean, self.square, self.steps):
            state[rows] = 0

    def direction(self, g: Tensor) -> Tensor:
        """Returns the mean gradient over the root of the mean square, both bias-corrected."""
        beta1, beta2 = self.settings.beta1, self.settings.beta2
        steps = self.steps[: len(g)].add_(1)
        mean = self.mean[: len(g)].lerp_(g, 1 - beta1)
        square = self.square[: len(g)].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        root = (square / (1 - beta2**steps).float()).sqrt_().add_(self.settings.epsilon)
        return (mean / (1 - beta1**steps).float()).div_(root)


def descent(settings: Settings, rows: Rows[Any]) -> Descent:
    """Returns the optimizer of the settings for these rows."""
    return {"sgd": Sgd, "adam": Adam}[settings.optimizer](settings, rows)
