"""SparsyFed: powers of weights, sparse inputs for gradients, and pruned models that travel."""

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy

from fedmpi import models
from fedmpi.engine import Engine
from fedmpi.methods.sparsyfed import powered
from tests.plain import CNN, EVERYTHING, play, positions
from tests.small import run, small, smooth

networks = pytest.mark.parametrize("words", [(), CNN], ids=["mlp", "cnn"])
SPARSE = ("method.name=sparsyfed", "method.sparsity=0.6")


def root(w: Tensor, beta: float = 1.25) -> Tensor:
    """What the power of is w."""
    return torch.sign(w) * torch.abs(w) ** (1 / beta)


def test_a_network_with_powers_computes_the_same() -> None:
    settings = small(*CNN).model
    plain, other = (models.build(settings, (1, 8, 8), 4, seed=3) for _ in range(2))
    powers = powered.rebuilt(other, 1.25)
    x = torch.randn(5, 1, 8, 8)
    for is_learning in (True, False):
        torch.testing.assert_close(powers.train(is_learning)(x), plain.train(is_learning)(x))
    for (name, w), (other_name, v) in zip(
        plain.named_parameters(), powers.named_parameters(), strict=True
    ):
        assert name == other_name
        torch.testing.assert_close(v, root(w) if name.endswith("weight") else w)


def few(x: Tensor, count: int) -> Tensor:
    """Each sample's largest values."""
    found = torch.zeros_like(x).flatten(1)
    for row, sample in enumerate(x.flatten(1)):
        places = sample.abs().argsort(descending=True)[:count]
        found[row, places] = sample[places]
    return found.view_as(x)


def test_gradients_of_a_linear_layer() -> None:
    """By hand: two of six weights are zero, so that each sample has two of its three inputs."""
    (layer,) = powered.rebuilt(nn.Sequential(nn.Linear(3, 2)), 1.5)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, 0.0, -1.0], [2.0, 0.3, 0.0]]))
    x = torch.tensor([[1.0, -2.0, 0.5], [0.1, 0.2, -3.0]], requires_grad=True)
    back = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
    layer(x).backward(back)
    v = layer.weight.detach()
    w = v.sign() * v.abs() ** 1.5
    assert few(x.detach(), 2).tolist() == [[1.0, -2.0, 0.0], [0.0, pytest.approx(0.2), -3.0]]
    chain = 1.5 * v.abs() ** 0.5
    torch.testing.assert_close(layer.weight.grad, chain * (back.T @ few(x.detach(), 2)))
    torch.testing.assert_close(x.grad, back @ w)
    torch.testing.assert_close(layer.bias.grad, back.sum(0))
    assert (layer.weight.grad[v == 0] == 0).all(), "what is zero stays zero"


def test_gradients_of_a_convolution() -> None:
    (layer,) = powered.rebuilt(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, stride=2)), 1.25)
    with torch.no_grad():
        layer.weight[torch.rand(layer.weight.shape) < 0.5] = 0
    x = torch.randn(4, 2, 6, 6)
    back = torch.randn(4, 3, 3, 3)
    layer(x).backward(back)
    share = float((layer.weight != 0).float().mean())
    w = (layer.weight.detach().sign() * layer.weight.detach().abs() ** 1.25).requires_grad_()
    conv2d(few(x, round(share * 72)), w, None, stride=2, padding=1).backward(back)
    wanted = w.grad * 1.25 * layer.weight.detach().abs() ** 0.25
    torch.testing.assert_close(layer.weight.grad, wanted, rtol=1e-4, atol=1e-5)
    layer.train(False)
    layer.weight.grad = None
    layer(x).backward(back)
    w.grad = None
    conv2d(x, w, None, stride=2, padding=1).backward(back)
    wanted = w.grad * 1.25 * layer.weight.detach().abs() ** 0.25
    torch.testing.assert_close(layer.weight.grad, wanted, rtol=1e-4, atol=1e-5)


def pruned(engine: Engine, v: Tensor, sparsity: float) -> Tensor:
    """All but the largest of the prunable weights, position by position."""
    prunable = engine.flat.prunable().nonzero().squeeze(1).tolist()
    order = sorted(prunable, key=lambda i: -abs(float(v[i])))
    found = v.clone()
    found[order[int(round((1 - sparsity) * len(prunable), 6)) :]] = 0
    return found


@networks
def test_rounds_are_averages_of_pruned_models(words: tuple[str, ...]) -> None:
    """Local training by torch's own optimiser on a network with powers."""
    engine = Engine(small(*SPARSE, *words, "momentum=0.9", "weight_decay=0.01", "rounds=3"))
    v, feed = engine.server.w.clone(), engine.trainer.feed
    for t, _ in enumerate(play(engine)):
        total, samples = torch.zeros_like(v), 0
        for client in engine.population.sample(t):
            module = engine.flat.network(v.clone())
            module.train(True)
            steps = torch.optim.SGD(module.parameters(), 0.1, 0.9, weight_decay=0.01)
            for some in positions(engine, t, client):
                steps.zero_grad()
                cross_entropy(module(feed.x[some]), feed.y[some]).backward()
                steps.step()
            local = torch.cat([p.detach().flatten() for p in module.parameters()])
            size = len(engine.population.shards[client])
            total, samples = total + size * pruned(engine, local, 0.6), samples + size
        # Near the threshold roundings decide.
        near = torch.isclose(engine.server.w, total / samples, rtol=1e-3, atol=1e-5)
        assert (~near).sum() <= 2
        v = engine.server.w.clone()
    assert 0 < float((v == 0).float().mean()) < 0.6, "others have what some do not"


def test_it_begins_where_the_model_does() -> None:
    engine, plain = Engine(small(*SPARSE)), Engine(small())
    prunable = engine.flat.prunable()
    torch.testing.assert_close(engine.server.w[prunable], root(plain.server.w[prunable]))
    assert torch.equal(engine.server.w[~prunable], plain.server.w[~prunable])


def test_without_sparsity_and_power_it_is_fedavg() -> None:
    words = ("method.name=sparsyfed", "method.sparsity=0.0", "method.beta=1.0")
    found = run(small(*words, *EVERYTHING))
    np.testing.assert_allclose(found.model, run(small(*EVERYTHING)).model, rtol=1e-4, atol=2e-5)


def test_what_is_not_zero_travels_with_its_positions() -> None:
    engine = Engine(small("method.name=sparsyfed", "method.sparsity=0.95", "rounds=3"))
    n, d = engine.flat.size, int(engine.flat.prunable().sum())
    kept, before = int(round(0.05 * d, 6)), engine.server.w.clone()
    for outcome in play(engine):
        rows = outcome.tables["clients"]
        assert set(rows["up_model"].tolist()) == {4 * (kept + n - d)}
        assert set(rows["up_mask"].tolist()) == {min(4 * kept, -(-d // 8))}
        active = int((before[engine.flat.prunable()] != 0).sum())
        assert set(rows["down_model"].tolist()) == {4 * (active + n - d)}
        told = 0 if active == d else min(4 * active, -(-d // 8))
        assert set(rows["down_mask"].tolist()) == {told}
        before = engine.server.w.clone()


@pytest.mark.parallel([1, 2, 3])
def test_it_does_not_depend_on_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "build", smooth)
    settings = small(*SPARSE, "rounds=4", "participation=0.6", "server=shared")
    found = run(settings, MPI.COMM_WORLD)
    if MPI.COMM_WORLD.rank == 0:
        assert found.sha256 == run(settings).sha256


def test_of_equal_inputs_as_many_are_kept_as_asked() -> None:
    """The first ones, in each sample by itself; also where all are zero but one."""
    x = torch.tensor([[1.0, -1, 1, 1, -1, 1], [0, 2, 2, 0, 3, -2], [0, 0, 0, 0, 0, 5]])
    found = powered.largest(x, torch.tensor([1.0, 0, 4, 0]))
    assert found.tolist() == [[1, -1, 1, 0, 0, 0], [0, 2, 2, 0, 3, 0], [0, 0, 0, 0, 0, 5]]
