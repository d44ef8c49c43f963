"""Optimisers on rows, against torch's own, and the schedules of the rate."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from fedmpi.config import Settings
from fedmpi.engine import Engine
from fedmpi.training.descent import Descent, descent
from fedmpi.training.rates import rate
from fedmpi.training.rows import OneByOne
from tests import plain
from tests.small import small


def moving(engine: Engine, count: int, settings: Settings | None = None) -> Descent:
    """So many rows of the engine's model, and what moves them."""
    settings = settings or engine.settings
    return descent(settings, OneByOne(engine.flat, count, torch.device("cpu"), settings))


EVERYTHING = ("weight_decay=0.1", "clip=2.0", "lr_decay=0.5")


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("momentum=0.9",),
        ("weight_decay=0.1",),
        ("clip=1.0",),
        ("momentum=0.5", *EVERYTHING),
        ("optimizer=adam",),
        ("optimizer=adam", "beta1=0.5", "beta2=0.9", "epsilon=0.01", *EVERYTHING),
    ],
    ids=["plain", "momentum", "decay", "clip", "all", "adam", "adam-all"],
)
def test_descent_is_torchs_on_each_row(words: tuple[str, ...]) -> None:
    """Three rows whose gradients' norms are below, around and above the clip; two rounds."""
    engine = Engine(small("lr=0.1", *words))
    settings, n = engine.settings, engine.flat.size
    ours = moving(engine, 3)
    random = torch.Generator().manual_seed(5)
    scales = torch.tensor([[0.1], [1.0], [30.0]]) / n**0.5
    for t in range(2):
        start = torch.randn(n, generator=random)
        ours.reset(start)
        parameters = [nn.Parameter(start.clone()) for _ in range(3)]
        optimisers = [plain.optimiser(engine, nn.ParameterList([p]), t) for p in parameters]
        for step in range(5):
            busy = 3 if step < 3 else 2
            g = torch.randn(3, n, generator=random) * scales * (step + 1)
            ours.rows.g.copy_(g)
            ours.step(busy, rate(settings, t))
            for row in range(busy):
                parameters[row].grad = g[row].clone()
                if settings.clip:
                    clip_grad_norm_([parameters[row]], settings.clip)
                optimisers[row].step()
            wanted = torch.stack([parameter.detach() for parameter in parameters])
            np.testing.assert_allclose(ours.rows.w, wanted, rtol=1e-5, atol=2e-6)


def test_the_clip_is_a_rows_own() -> None:
    """By hand: a gradient of norm 5 becomes one of norm 2, and the row beside it stays."""
    engine = Engine(small("clip=2.0", "lr=1.0"))
    ours = moving(engine, 2)
    ours.reset(torch.zeros(engine.flat.size))
    ours.rows.g[0, :2] = torch.tensor([3.0, 4.0])
    ours.rows.g[1, :2] = torch.tensor([0.6, 0.8])
    ours.step(2, 1.0)
    assert ours.rows.w[0, :2].tolist() == pytest.approx([-1.2, -1.6], rel=1e-6)
    assert ours.rows.w[1, :2].tolist() == pytest.approx([-0.6, -0.8], rel=1e-6)


def test_decay_comes_after_the_clip_and_before_momentum() -> None:
    """By hand, one parameter: g = 4 -> 1 (clip), + 0.5 * 2 = 2, v = 2; then g = 0 -> v = 1 + ..."""
    engine = Engine(small("clip=1.0", "weight_decay=0.5", "momentum=0.5", "lr=1.0"))
    ours = moving(engine, 1)
    ours.reset(torch.zeros(engine.flat.size))
    w, g = ours.rows.w, ours.rows.g
    w[0, 0], g[0, 0] = 2.0, 4.0
    ours.step(1, 1.0)
    assert w[0, 0].item() == pytest.approx(0.0, abs=1e-6)
    g.zero_()
    ours.step(1, 1.0)
    assert w[0, 0].item() == pytest.approx(-1.0, abs=1e-6)
    ours.reset(torch.zeros(engine.flat.size))
    g.zero_()
    ours.step(1, 1.0)
    assert not w.any(), "after a reset there is no momentum left"


@pytest.mark.parametrize("words", [("momentum=0.9",), ("optimizer=adam",)], ids=["sgd", "adam"])
def test_a_row_that_is_done_does_not_move(words: tuple[str, ...]) -> None:
    engine = Engine(small("weight_decay=0.1", "clip=1.0", *words))
    ours = moving(engine, 3)
    ours.reset(engine.flat.initial)
    ours.rows.g.fill_(1)
    ours.step(3, 0.1)
    before = ours.rows.w[1:].clone()
    ours.step(1, 0.1)
    assert torch.equal(ours.rows.w[1:], before)
    assert (ours.rows.w[0] != before[0]).all()


@pytest.mark.parametrize("words", [(), ("optimizer=adam",)], ids=["sgd", "adam"])
def test_rates_may_be_the_rows_own(words: tuple[str, ...]) -> None:
    engine = Engine(small(*words))
    together, alone = moving(engine, 2), moving(engine, 1)
    together.reset(engine.flat.initial)
    together.rows.g.fill_(0.5)
    together.step(2, torch.tensor([[0.1], [0.3]]))
    for row, each in enumerate((0.1, 0.3)):
        alone.reset(engine.flat.initial)
        alone.rows.g.fill_(0.5)
        alone.step(1, each)
        np.testing.assert_allclose(together.rows.w[row], alone.rows.w[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("words", [("momentum=0.9",), ("optimizer=adam",)], ids=["sgd", "adam"])
def test_no_step_moves_statistics(words: tuple[str, ...]) -> None:
    """Whatever a method wrote into their gradient; nor do they count in the clip's norm."""
    engine = Engine(small("model.name=resnet", "model.norm=batch", "data.shape=[1, 8, 8]"))
    settings = small("weight_decay=0.1", "clip=1.0", *words)
    marks = engine.flat.moving > 0
    assert 0 < marks.sum() < engine.flat.size
    found = []
    for extra in (0.0, 50.0):
        ours = moving(engine, 1, settings)
        ours.reset(engine.flat.initial)
        for _ in range(2):
            ours.rows.g.fill_(0.25)
            ours.rows.g[:, ~marks] = extra
            ours.step(1, 0.5)
        found.append(ours.rows.w[0].clone())
        assert torch.equal(found[-1][~marks], engine.flat.initial[~marks])
        assert (found[-1][marks] != engine.flat.initial[marks]).all()
    assert torch.equal(*found)
