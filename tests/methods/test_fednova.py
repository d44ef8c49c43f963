"""FedNova's algebra: a_k in closed form, and updates that are normalised by it."""

import numpy as np
import pytest
import torch

from fedmpi.engine import Engine
from tests.small import run, small

NOVA = "method.name=fednova"


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_reach_in_closed_form(momentum: float) -> None:
    """a_k = (tau - m (1 - m^tau) / (1 - m)) / (1 - m), whatever the rate of the round."""
    engine = Engine(small(NOVA, f"momentum={momentum}", "epochs=3", "lr_decay=0.5"))
    found = set()
    for client in range(5):
        tau = engine.population.steps(0, client)
        closed = (tau - momentum * (1 - momentum**tau) / (1 - momentum)) / (1 - momentum)
        assert engine.trainer.rates.effective_steps(3, client) == pytest.approx(closed, rel=1e-12)
        found.add(round(closed, 6))
    assert len(found) > 1, "clients differ"


def test_reach_is_how_far_a_constant_gradient_carries() -> None:
    """Of any schedule: an optimiser that sees gradients of one moves by reach * first rate."""
    engine = Engine(small(NOVA, "momentum=0.8", "schedule=restarts", "lr_min=0.01", "epochs=4"))
    for client in range(5):
        weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        steps = torch.optim.SGD([weight], lr=1.0, momentum=0.8)
        paces = engine.trainer.rates.of_round(0, client)
        # Heavy-ball momentum as in torch: the rate scales the velocity of the step.
        for pace in paces:
            steps.param_groups[0]["lr"] = pace
            weight.grad = torch.ones(1, dtype=torch.float64)
            steps.step()
        moved = -float(weight.detach())
        assert engine.trainer.rates.effective_steps(0, client) * paces[0] == pytest.approx(
            moved, rel=1e-5
        )


@pytest.mark.parametrize("server", ["none", "momentum", "adam", "fedexp"])
def test_with_equal_steps_it_is_fedavg(server: str) -> None:
    """Under any server optimizer; FedExP's rate depends on the lengths of the updates, too."""
    words = ("local_steps=5", "momentum=0.9", "rounds=3", f"aggregation.server={server}")
    words += ("partition.alpha=0.1",)
    found = run(small(NOVA, *words)).model
    np.testing.assert_allclose(found, run(small(*words)).model, rtol=1e-4, atol=2e-5)
    unequal = run(small(NOVA, "epochs=3")).model
    assert np.abs(unequal - run(small("epochs=3")).model).max() > 1e-3
