"""Client weights by the Euclidean norms of their updates."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.config import Settings


class Config(config.Method):
    """Settings of a method that weights clients by distance.

    Reconstruction: a client's weight is its number of samples times 1 / (d + epsilon), exp(-d /
    (temperature * mean of all d)), d, or 1, where d is its distance. A distance grows with the
    number of local steps, so that d also tells large clients from small ones; `per_step` divides it
    by that number.
    """

    weight_rule: Literal["inv_dist", "exp_dist", "prop_dist", "fedavg"] = "inv_dist"
    """How a client's weight depends on the norm d of its update. inv_dist: 1 / (d + epsilon).
    exp_dist: exp(-d / (temperature * mean d)). prop_dist: d. fedavg: samples only. The factor
    multiplies the weight by samples."""
    temperature: float = Field(1.0, gt=0, le=config.LARGEST)
    """Scale of exp_dist, in mean distances: after so many the weight has fallen by a factor of
    e."""
    epsilon: float = Field(1e-8, gt=0, le=config.LARGEST)
    """Added to every distance in inv_dist."""

    per_step: bool = False
    """Divide distances by the client's number of local steps before they are weighed. Otherwise
    clients with more samples are also farther away, because they make more steps."""

    def idle(self, settings: Settings) -> dict[str, str]:
        """Names the settings that have no effect, and what would give them one."""
        rules = {"temperature": "exp_dist", "epsilon": "inv_dist"}
        found = super().idle(settings) | {
            name: f"method.weight_rule = '{rule}'"
            for name, rule in rules.items()
            if self.weight_rule != rule
        }
        if self.weight_rule == "fedavg":
            found["per_step"] = "another method.weight_rule, found 'fedavg'"
        elif settings.local_steps is not None and settings.devices.deadline is None:
            found["per_step"] = "clients that make unequal numbers of steps, found local_steps"
        return found

    def weigh(self, weights: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """Returns the weights by samples changed by distance, both [clients], with the same sum.

        If no client has moved, all weights stay. A distance that is not a number makes all weights
        invalid.
        """
        found = weights
        with np.errstate(over="ignore", invalid="ignore"):
            if self.weight_rule == "inv_dist":
                found = weights / (distances + self.epsilon)
            elif self.weight_rule == "prop_dist":
                found = weights * distances
            elif self.weight_rule == "exp_dist" and distances.any():
                # Relative to the least distance, because all weights might underflow otherwise.
                far = (distances - distances.min()) / distances.mean() / self.temperature
                found = weights * np.exp(-far)
            total = found.sum()
            return found * (weights.sum() / total) if total else weights


class Waiting:
    """Stores a round's updates until all distances are known."""

    def __init__(self, method: Config) -> None:
        self.method = method
        self.updates: list[Tensor] = []
        self.weights: dict[int, float] = {}
        self.steps: list[int] = []

    def add(self, client: int, weight: float, steps: int, update: Tensor) -> None:
        """Stores a client's update [n], its weight by samples, and its number of local steps."""
        self.weights[client] = weight
        self.steps.append(steps)
        self.updates.append(update)

    def close(self, totals: Sequence[Tensor]) -> dict[str, dict[int, float]]:
        """Weights all updates by distance, and adds them to the vector whose parts are `totals`.

        Returns:
            Each client's distance, and its share in the sum of weights, for `Server.noted`.
        """
        before, sizes = np.array(list(self.weights.values())), [len(part) for part in totals]
        norms = [torch.linalg.vector_norm(update, dtype=torch.float64) for update in self.updates]
        distances = np.array([float(norm) for norm in norms])
        per = np.array(self.steps) if self.method.per_step else 1
        after = self.method.weigh(before, distances / per)
        for update, weight in zip(self.updates, after.tolist(), strict=True):
            # Part by part, because a kernel may round a vector's last values differently.
            for total, part in zip(totals, update.split(sizes), strict=True):
                total.add_(part, alpha=weight)
        columns = {"distance": distances, "weight": after / before.sum()}
        noted = {
            n: dict(zip(self.weights, some.tolist(), strict=True)) for n, some in columns.items()
        }
        self.updates, self.weights, self.steps = [], {}, []
        return noted
