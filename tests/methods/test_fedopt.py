"""FedOpt's algebra: the server's optimisers against torch's own, and against their formulas."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmpi.engine import Engine
from tests.plain import average, play
from tests.small import run, small

FEDOPT = ("method.name=fedopt", "rounds=5", "participation=0.6")


def updates(*words: str) -> tuple[list[Tensor], list[Tensor]]:
    """The models [n] at which rounds begin and the last ends, and the mean update of each."""
    engine = Engine(small(*FEDOPT, *words))
    models, deltas = [engine.server.w.clone()], []
    for t, _ in enumerate(play(engine)):
        deltas.append(average(engine, t, models[-1]) - models[-1])
        models.append(engine.server.w.clone())
    return models, deltas


def near(found: Tensor, wanted: Tensor) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=2e-5)


def test_momentum_is_torchs() -> None:
    models, deltas = updates("method.rule=momentum", "method.lr=0.7", "method.beta1=0.8")
    weight = torch.nn.Parameter(models[0].clone())
    steps = torch.optim.SGD([weight], lr=0.7, momentum=0.8)
    for model, delta in zip(models[1:], deltas, strict=True):
        weight.grad = -delta
        steps.step()
        near(model, weight.detach())


@pytest.mark.parametrize("rule", ["adam", "yogi", "adagrad"])
def test_adaptive_rules_against_algorithm_2(rule: str) -> None:
    given = ("method.lr=0.05", "method.beta1=0.7", "method.beta2=0.9", "method.tau=0.01")
    models, deltas = updates(f"method.rule={rule}", *given)
    m, v = torch.zeros_like(models[0]), torch.full_like(models[0], 0.01**2)
    for before, after, delta in zip(models, models[1:], deltas, strict=False):
        m = 0.7 * m + 0.3 * delta
        if rule == "adagrad":
            v = v + delta**2
        elif rule == "adam":
            v = 0.9 * v + 0.1 * delta**2
        else:
            v = v - 0.1 * delta**2 * torch.sign(v - delta**2)
        near(after, before + 0.05 * m / (v.sqrt() + 0.01))


def test_rate_one_without_momentum_is_fedavg() -> None:
    words = ("method.rule=momentum", "method.lr=1.0", "method.beta1=0.0")
    found, plain = run(small(*FEDOPT, *words)), run(small(*FEDOPT[1:]))
    np.testing.assert_allclose(found.model, plain.model, rtol=1e-4, atol=2e-5)
