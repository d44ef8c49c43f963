"""Weights by distance, against their formulas, and where formulas would divide by nothing."""

import numpy as np
import pytest
import torch

from fedmpi.methods.sgcfl import distance
from tests.small import small

WEIGHTS = np.array([40.0, 10.0, 30.0, 20.0])
FAR = np.array([0.5, 2.0, 1.0, 4.0])


def config(rule: str, **more: float) -> distance.Config:
    return distance.Config(weight_rule=rule, **more)


RULES = ("inv_dist", "exp_dist", "prop_dist", "fedavg")
every_rule = pytest.mark.parametrize("rule", RULES)


@pytest.mark.parametrize(
    ("rule", "more", "wanted"),
    [
        ("inv_dist", {}, [80, 5, 30, 5]),
        ("inv_dist", {"epsilon": 1.0}, [40 / 1.5, 10 / 3, 15, 4]),
        ("exp_dist", {}, WEIGHTS * np.exp([-0.5 / 1.875, -2 / 1.875, -1 / 1.875, -4 / 1.875])),
        ("exp_dist", {"temperature": 0.8}, WEIGHTS * np.exp([-1 / 3, -4 / 3, -2 / 3, -8 / 3])),
        ("prop_dist", {}, [20, 20, 30, 80]),
        ("fedavg", {}, WEIGHTS),
    ],
)
def test_each_rule_is_its_formula(rule: str, more: dict[str, float], wanted: np.ndarray) -> None:
    found = config(rule, **more).weigh(WEIGHTS, FAR)
    np.testing.assert_allclose(found / found.sum(), np.array(wanted) / sum(wanted), rtol=1e-7)
    assert found.sum() == pytest.approx(100)


def test_what_distance_does() -> None:
    """For clients of one size: near ones count most, or far ones, or all alike."""
    alike = np.ones(4)
    for rule, order in (("inv_dist", -FAR), ("exp_dist", -FAR), ("prop_dist", FAR)):
        found = config(rule).weigh(alike, FAR)
        assert np.array_equal(np.argsort(found), np.argsort(order)), rule
    assert np.array_equal(config("fedavg").weigh(alike, FAR), alike)


@every_rule
def test_where_nobody_moves_samples_decide(rule: str) -> None:
    np.testing.assert_allclose(config(rule).weigh(WEIGHTS, np.zeros(4)), WEIGHTS)


@pytest.mark.parametrize("rule", ["inv_dist", "exp_dist", "prop_dist"])
def test_a_distance_that_is_no_number_hides_nothing(rule: str) -> None:
    assert np.isnan(config(rule).weigh(WEIGHTS, np.array([1.0, np.nan, 1.0, 1.0]))).any()


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 1e30])
@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1.0, 1e30])
def test_extremes(factor: float, temperature: float) -> None:
    """Of a small temperature only the nearest is left, of a large one the distance does nothing."""
    found = config("exp_dist", temperature=temperature).weigh(WEIGHTS, factor * FAR)
    assert found.sum() == pytest.approx(100)
    if temperature < 0.01:
        np.testing.assert_allclose(found, [100, 0, 0, 0], atol=1e-9)
    if temperature > 100:
        np.testing.assert_allclose(found, WEIGHTS)


@every_rule
def test_what_waits_is_added_up_when_all_is_there(rule: str) -> None:
    """Twice: nothing is left of the first round."""
    random = torch.Generator().manual_seed(3)
    method = config(rule)
    waiting = distance.Waiting(method)
    for clients in ((4, 7, 9), (1, 7)):
        updates = torch.randn(len(clients), 50, generator=random)
        total = torch.ones(50)
        for client, update in zip(clients, updates, strict=True):
            waiting.add(client, float(client), 1, update)
        noted = waiting.close(total.split([20, 25, 5]))
        far = np.linalg.norm(updates.double().numpy(), axis=1)
        weights = method.weigh(np.array(clients, float), far)
        np.testing.assert_allclose(total, 1 + weights @ updates.numpy(), rtol=1e-4, atol=1e-4)
        assert list(noted["distance"]) == list(noted["weight"]) == list(clients)
        np.testing.assert_allclose(list(noted["distance"].values()), far)
        np.testing.assert_allclose(list(noted["weight"].values()), weights / sum(clients))


def test_settings_of_other_rules_are_idle() -> None:
    assert set(config("inv_dist").idle(small())) == {"temperature"}
    assert set(config("exp_dist").idle(small())) == {"epsilon"}
    assert set(config("fedavg").idle(small())) == {"temperature", "epsilon", "per_step"}
    assert "per_step" in config("inv_dist").idle(small("local_steps=2"))
