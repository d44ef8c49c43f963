"""Server optimizers against torch's own, and against their formulas."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmpi import models
from fedmpi.engine import Engine
from tests.plain import average, play, train
from tests.small import refusal, run, small, smooth

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
    given = ("aggregation.server_lr=0.7", "aggregation.beta1=0.8")
    models, deltas = updates("aggregation.server=momentum", *given)
    weight = torch.nn.Parameter(models[0].clone())
    steps = torch.optim.SGD([weight], lr=0.7, momentum=0.8)
    for model, delta in zip(models[1:], deltas, strict=True):
        weight.grad = -delta
        steps.step()
        near(model, weight.detach())


@pytest.mark.parametrize("rule", ["adam", "yogi", "adagrad"])
def test_adaptive_rules_against_algorithm_2(rule: str) -> None:
    given = ("aggregation.server_lr=0.05", "aggregation.beta1=0.7", "aggregation.tau=0.01")
    given += () if rule == "adagrad" else ("aggregation.beta2=0.9",)
    models, deltas = updates(f"aggregation.server={rule}", *given)
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
    words = ("aggregation.server=momentum", "aggregation.beta1=0.0")
    found, plain = run(small(*FEDOPT, *words)), run(small(*FEDOPT[1:]))
    np.testing.assert_allclose(found.model, plain.model, rtol=1e-4, atol=2e-5)


def test_a_rate_alone_scales_the_mean_update() -> None:
    models, deltas = updates("aggregation.server=none", "aggregation.server_lr=0.5")
    for before, after, delta in zip(models, models[1:], deltas, strict=False):
        near(after, before + 0.5 * delta)


@pytest.mark.parametrize("weights", ["samples", "equal"])
def test_fedexp_against_its_formula(weights: str) -> None:
    """Long steps where clients disagree: max(1, mean ||d_k||^2 / (2 (||mean d||^2 + eps)))."""
    words = ("aggregation.server=fedexp", f"aggregation.weights={weights}", "partition.alpha=0.1")
    engine, rates = Engine(small(*words, "rounds=6", "lr=0.05", "participation=0.8")), []
    w = engine.server.w.clone()
    for t, _ in enumerate(play(engine)):
        clients = engine.population.sample(t)
        moves = [(train(engine, t, c, w)[0] - w).double().numpy() for c in clients]
        sizes = engine.population.sizes[list(clients)] if weights == "samples" else [1.0] * 4
        p = np.array(sizes) / np.sum(sizes)
        mean = p @ moves
        squares = p @ [move @ move for move in moves]
        rates.append(max(1.0, squares / (2 * (mean @ mean + 1e-3))))
        near(engine.server.w, w + torch.from_numpy(rates[-1] * mean).float())
        w = engine.server.w.clone()
    assert max(rates) > 1.05


def test_defaults_follow_the_rule() -> None:
    """FedAvgM's rate is 1, FedAdagrad has no momentum."""
    found = {
        server: small(f"aggregation.server={server}").aggregation
        for server in ("none", "momentum", "adam", "yogi", "adagrad")
    }
    assert [one.rate for one in found.values()] == [1, 1, 0.1, 0.1, 0.1]
    assert [one.momentum for one in found.values()][1:] == [0.9, 0.9, 0.9, 0]


WITH = ("topk", "powersgd", "scaffold", "fednova", "ssfl", "fedper", "splitfed", "sgcfl", "qsgd")


@pytest.mark.parametrize("name", WITH)
def test_the_servers_optimizer_beside_other_methods(name: str) -> None:
    """A rate of 1 without momentum changes nothing, and momentum adds the last step's."""
    words = (f"method.name={name}", "rounds=2", "aggregation.server=momentum")
    plain, still = run(small(*words[:2])), run(small(*words, "aggregation.beta1=0.0"))
    near(still.model, plain.model)
    one, two = (run(small(*words, f"rounds={count}")) for count in (1, 2))
    first = one.model - one.engine.flat.initial.numpy()
    if name == "ssfl":
        first = np.where(one.engine.server.mask.numpy(), first, 0)
    engine = run(small(words[0], "rounds=1")).engine
    near(engine.server.w, torch.from_numpy(one.model))
    assert np.abs(first).max() > 1e-3
    gained = two.model - plain.model
    moved = np.abs(gained) > 1e-6
    np.testing.assert_allclose(gained[moved], 0.9 * first[moved], rtol=1e-3, atol=1e-5)


def test_statistics_follow_no_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "build", smooth)
    plain = run(small("rounds=1"))
    where = plain.engine.flat.stat_positions
    for server in ("momentum", "adam", "yogi", "adagrad", "fedexp"):
        found = run(small("rounds=1", f"aggregation.server={server}"))
        np.testing.assert_allclose(found.model[where], plain.model[where], rtol=1e-5, atol=1e-6)


def test_what_leaves_the_mask_keeps_no_momentum() -> None:
    """A mask that is found again: momentum does not bring pruned weights back."""
    words = ("method.name=ssfl", "method.rediscover=[3]", "rounds=6", "aggregation.server=momentum")
    server = run(small(*words)).engine.server
    assert not server.w[~server.mask].any()
    assert server.w[server.mask].any()


@pytest.mark.parametrize("name", ["local", "heterofl", "feddst", "sparsyfed", "stc", "spatl"])
def test_servers_that_move_otherwise_refuse_it(name: str) -> None:
    for words in (("aggregation.server=adam",), ("aggregation.server_lr=0.5",)):
        said = refusal(f"method.name={name}", *words)
        assert "wanted a method whose server moves its model by the mean of updates alone" in said
        assert f"found method.name = '{name}'; possible is 'none' with a rate of 1" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("aggregation.beta1=0.5",), "aggregation.beta1 = 0.5: wanted aggregation.server = 'mom"),
        (
            ("aggregation.server=momentum", "aggregation.beta2=0.5"),
            "wanted aggregation.server = 'a",
        ),
        (("aggregation.server=fedexp", "aggregation.server_lr=0.5"), "aggregation.server_lr = 0.5"),
        (("aggregation.server=fedexp", "aggregation.rule=median"), "wanted aggregation.rule = 'me"),
    ],
)
def test_settings_that_mean_nothing_are_refused(words: tuple[str, ...], said: str) -> None:
    assert said in refusal(*words)
