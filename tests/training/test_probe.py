"""Models that are measured and stay as they are, against plain torch."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

from fedmpi.engine import Engine
from fedmpi.training import probe
from tests import plain
from tests.small import small


def test_gradient_is_autograds() -> None:
    engine = Engine(small(*plain.CNN))
    w = engine.flat.initial * 1.5
    positions = np.array([3, 1, 250])
    module = plain.network(engine, w)
    loss = cross_entropy(module(engine.trainer.feed.x[positions]), engine.trainer.feed.y[positions])
    wanted = parameters_to_vector(torch.autograd.grad(loss, list(module.parameters())))
    found = probe.gradient(engine.trainer, 2, w, positions)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("count", [0, 1, probe.BATCH, 2 * probe.BATCH + 7])
def test_correct_judges_every_sample_once_and_in_order(count: int) -> None:
    engine = Engine(small(f"data.test_samples={max(count, 1)}"))
    x, y = engine.evaluation.test_x[:count], engine.evaluation.test_y[:count]
    (found,) = probe.correct(engine.trainer, [engine.flat.initial], [x], [y])
    module = plain.network(engine, engine.flat.initial)
    with torch.no_grad():
        wanted = module(x).argmax(1) == y
    assert found.dtype == bool
    assert found.tolist() == wanted.tolist()
    assert count < 2 or 0 < found.sum() < count


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_models_are_judged_each_on_its_own_samples(rows: int) -> None:
    """Of different lengths, one of them nothing, and more than fit into a batch."""
    engine = Engine(small(f"rows={rows}", "data.test_samples=3000"))
    x, y = engine.evaluation.test_x, engine.evaluation.test_y
    random = torch.Generator().manual_seed(2)
    counts, n = (5, 0, 2100, 700, 1), engine.flat.size
    models = [engine.flat.initial + torch.randn(n, generator=random) / 5 for _ in counts]
    xs, ys = [x[:count] for count in counts], [y[:count] for count in counts]
    found = probe.correct(engine.trainer, models, xs, ys)
    for model, some, labels, right in zip(models, xs, ys, found, strict=True):
        with torch.no_grad():
            wanted = plain.network(engine, model)(some).argmax(1) == labels
        assert right.tolist() == wanted.tolist()
    assert 0 < found[2].mean() < 1
