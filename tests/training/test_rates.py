"""Learning rates, against torch's own schedules."""

from math import cos, pi

import numpy as np
import pytest
import torch
from torch import nn

from fedmpi.engine import Engine
from fedmpi.training.rates import rate
from tests.small import small


def test_the_rate_decays_by_the_round() -> None:
    settings = small("lr=0.5", "lr_decay=0.9")
    assert [rate(settings, t) for t in (0, 1, 10)] == pytest.approx([0.5, 0.45, 0.5 * 0.9**10])
    assert rate(settings, -1) == 0.5
    assert rate(small("lr=0.5"), 100) == 0.5


def test_the_rate_falls_in_steps() -> None:
    """HeteroFL's: a tenth at two rounds."""
    settings = small("lr=0.1", "schedule=steps", "lr_decay=0.1", "lr_steps=[3, 5]", "rounds=8")
    found = [rate(settings, t) for t in range(8)]
    assert found == pytest.approx([0.1] * 3 + [0.01] * 2 + [0.001] * 3)


def test_the_rate_is_half_a_cosine_over_the_rounds() -> None:
    settings = small("lr=0.4", "schedule=cosine", "lr_min=0.2", "rounds=4")
    found = [rate(settings, t) for t in range(4)]
    assert found == pytest.approx([0.2 + 0.1 * (1 + cos(pi * t / 4)) for t in range(4)])
    assert found[0] == pytest.approx(0.4)
    assert found[2] == pytest.approx(0.3)


def test_restarts_are_torchs_cosine_in_each_round() -> None:
    """Whole passes of a client, as `CosineAnnealingWarmRestarts(T_0=passes)` has them."""
    words = ("schedule=restarts", "lr=0.4", "lr_min=0.1", "epochs=4", "batch=16")
    engine = Engine(small(*words))
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    torchs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimiser, 4, eta_min=0.1)
    wanted = []
    for _ in range(4):
        wanted.append(torchs.get_last_lr()[0])
        optimiser.step()
        torchs.step()
    clients = engine.trainer.ordered(0, range(5))
    steps = [engine.population.steps(0, client) for client in clients]
    assert steps[0] > steps[-1]
    for t in (0, 3):
        for client, count in zip(clients, steps, strict=True):
            rates = [
                float(engine.trainer.rates.of_step(t, [client], step)) for step in range(count)
            ]
            assert rates == pytest.approx(np.repeat(wanted, count // 4).tolist(), rel=1e-6)
    together = engine.trainer.rates.of_step(0, clients, steps[-1] - 1)
    assert together.shape == (5, 1)
    assert together[0] > together[-1], "who has fewer steps is further on"
