"""Learning rates: of each round, of each local step, and what they add up to."""

from collections.abc import Sequence
from math import cos, pi

import torch
from torch import Tensor

from fedmpi.clients.population import Population
from fedmpi.config import Settings


def rate(settings: Settings, t: int, through: float = 0.0) -> float:
    """Returns the learning rate of round t.

    Args:
        settings: settings with `schedule`; `restarts` is half a cosine in each round, as in SGDR
            with a period of one round (I. Loshchilov, F. Hutter, ICLR 2017), stepped once a pass.
        t: the round; an agreement before the first round has the first round's rate.
        through: share of the round's local passes that are done.
    """
    t = max(t, 0)
    if settings.schedule in ("cosine", "restarts"):
        share = through if settings.schedule == "restarts" else t / settings.rounds
        return settings.lr_min + (settings.lr - settings.lr_min) * (1 + cos(pi * share)) / 2
    powers = t if settings.schedule == "decay" else sum(t >= step for step in settings.lr_steps)
    return settings.lr * settings.lr_decay**powers


class Rates:
    """The learning rates of clients' local steps.

    Args:
        settings: settings with `schedule`.
        population: knows how many steps each client takes.
        device: the device of rates that differ by client.
    """

    def __init__(self, settings: Settings, population: Population, device: torch.device) -> None:
        self.settings, self.population, self.device = settings, population, device

    def of_step(
        self, t: int, clients: Sequence[int], step: int, passes: int | None = None
    ) -> float | Tensor:
        """The learning rate of a step: one for all, or [k, 1] if it depends on the client.

        Args:
            t: the round.
            clients: the clients that take the step.
            step: the number of the step, from 0 on.
            passes: local passes in all, if they are not those of the round's local training.
        """
        if self.settings.schedule != "restarts":
            return rate(self.settings, t)
        found = []
        for client in clients:
            each = -(-int(self.population.sizes[client]) // self.settings.batch)
            whole = -(-self.population.steps(t, client, passes) // each)
            found.append(rate(self.settings, t, (step // each) / whole))
        return torch.tensor(found, device=self.device).unsqueeze(1)

    def of_round(self, t: int, client: int) -> list[float]:
        """The learning rate of each of the client's steps in round t."""
        steps = range(self.population.steps(t, client))
        return [float(self.of_step(t, [client], step)) for step in steps]

    def total(self, t: int, client: int) -> float:
        """The sum of the client's learning rates in round t."""
        return sum(self.of_round(t, client))

    def effective_steps(self, t: int, client: int) -> float:
        """The sum of the weights of the client's gradients in its update, over the first rate.

        A gradient has a weight in each later step: the momentum, to the power of the steps between
        (the norm of a_k in FedNova).
        """
        rates, weight, total = self.of_round(t, client), 0.0, 0.0
        for each in reversed(rates):
            weight = each + self.settings.momentum * weight
            total += weight
        return total / rates[0]
