"""Local training: batches, steps and rates, against torch's own optimiser."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_, parameters_to_vector

from fedmpi.engine import Engine
from fedmpi.flat import Rows
from fedmpi.streams import Purpose, stream
from fedmpi.train import EVALUATION_BATCH, Descent, rate
from tests import plain
from tests.small import run, small


def batches(engine: Engine, t: int, client: int) -> list[list[int]]:
    """Positions in each of the client's steps."""
    return [positions.tolist() for positions in engine.trainer.batches(t, client)]


def flat(some: list[list[int]]) -> list[int]:
    """The positions in all batches, in their order."""
    return [position for batch in some for position in batch]


def nothing(clients: Sequence[int], w: Tensor, g: Tensor) -> None:
    """Leaves gradients alone."""


def test_a_pass_covers_the_shard_exactly_once() -> None:
    engine = Engine(small("epochs=3", "batch=16"))
    for client, shard in enumerate(engine.population.shards):
        found, each = batches(engine, 0, client), -(-len(shard) // 16)
        assert len(found) == 3 * each == engine.population.steps(client)
        passes = [found[at : at + each] for at in range(0, len(found), each)]
        for some in passes:
            assert sorted(flat(some)) == shard.tolist()
            assert [len(batch) for batch in some[:-1]] == [16] * (each - 1)
            assert len(some[-1]) == (len(shard) - 1) % 16 + 1, "the last may be smaller"
        if len(shard) > 4:
            assert passes[0] != passes[1] != passes[2], "each pass has its own order"


def test_a_batch_larger_than_the_shard_is_the_shard() -> None:
    engine = Engine(small("epochs=2", "batch=1000"))
    for client, shard in enumerate(engine.population.shards):
        assert [sorted(batch) for batch in batches(engine, 0, client)] == [shard.tolist()] * 2


def test_local_steps_cycle_through_the_shard() -> None:
    engine = Engine(small("local_steps=5", "batch=16", "partition.name=iid", "clients=13"))
    for client, shard in enumerate(engine.population.shards):
        assert 16 < len(shard) < 32
        found = batches(engine, 3, client)
        rest = len(shard) - 16
        assert [len(batch) for batch in found] == [16, rest, 16, rest, 16]
        for first, second in (found[:2], found[2:4]):
            assert sorted(first + second) == shard.tolist()
        assert set(found[4]) <= set(shard.tolist())


def test_fewer_steps_are_the_beginning_of_more() -> None:
    one, many = (Engine(small(f"local_steps={steps}")) for steps in (2, 9))
    for client in range(5):
        assert batches(one, 1, client) == batches(many, 1, client)[:2]


def test_the_order_is_the_clients_and_the_rounds_own() -> None:
    engine = Engine(small("partition.name=iid"))
    shard = engine.population.shards[2]
    first = stream(1, Purpose.BATCH, 4, 2).permutation(len(shard))
    assert flat(batches(engine, 4, 2))[: len(shard)] == shard[first].tolist()
    places = {
        tuple(np.searchsorted(engine.population.shards[client], batches(engine, t, client)[0]))
        for t in range(3)
        for client in range(3)
    }
    assert len(places) == 9
    torch.manual_seed(7)
    again = Engine(small("partition.name=iid"))
    np.random.default_rng(7).permutation(3)
    assert batches(again, 4, 2) == batches(engine, 4, 2)
    # Two that are read in turns do not disturb each other.
    one, other = engine.trainer.batches(4, 2), engine.trainer.batches(4, 2)
    assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("momentum=0.9",),
        ("weight_decay=0.1",),
        ("clip=1.0",),
        ("momentum=0.5", "weight_decay=0.1", "clip=2.0", "lr_decay=0.5"),
    ],
    ids=["plain", "momentum", "decay", "clip", "all"],
)
def test_descent_is_torchs_sgd_on_each_row(words: tuple[str, ...]) -> None:
    """Three rows whose gradients' norms are below, around and above the clip; two rounds."""
    engine = Engine(small("lr=0.1", *words))
    settings, n = engine.settings, engine.flat.size
    rows = Rows(engine.flat, 3, torch.device("cpu"))
    descent = Descent(settings, rows)
    random = torch.Generator().manual_seed(5)
    scales = torch.tensor([[0.1], [1.0], [30.0]]) / n**0.5
    for t in range(2):
        start = torch.randn(n, generator=random)
        descent.reset(start)
        parameters = [nn.Parameter(start.clone()) for _ in range(3)]
        optimisers = [plain.sgd(engine, nn.ParameterList([p]), t) for p in parameters]
        for step in range(5):
            g = torch.randn(3, n, generator=random) * scales * (step + 1)
            rows.g.copy_(g)
            descent.step(t)
            for parameter, optimiser, gradient in zip(parameters, optimisers, g, strict=True):
                parameter.grad = gradient.clone()
                if settings.clip:
                    clip_grad_norm_([parameter], settings.clip)
                optimiser.step()
            wanted = torch.stack([parameter.detach() for parameter in parameters])
            np.testing.assert_allclose(rows.w, wanted, rtol=1e-5, atol=1e-6)


def test_the_clip_is_a_rows_own() -> None:
    """By hand: a gradient of norm 5 becomes one of norm 2, and the row beside it stays."""
    engine = Engine(small("clip=2.0", "lr=1.0"))
    rows = Rows(engine.flat, 2, torch.device("cpu"))
    descent = Descent(engine.settings, rows)
    descent.reset(torch.zeros(engine.flat.size))
    rows.g[0, :2] = torch.tensor([3.0, 4.0])
    rows.g[1, :2] = torch.tensor([0.6, 0.8])
    descent.step(0)
    assert rows.w[0, :2].tolist() == pytest.approx([-1.2, -1.6], rel=1e-6)
    assert rows.w[1, :2].tolist() == pytest.approx([-0.6, -0.8], rel=1e-6)


def test_decay_comes_after_the_clip_and_before_momentum() -> None:
    """By hand, one parameter: g = 4 -> 1 (clip), + 0.5 * 2 = 2, v = 2; then g = 0 -> v = 1 + ..."""
    engine = Engine(small("clip=1.0", "weight_decay=0.5", "momentum=0.5", "lr=1.0"))
    rows = Rows(engine.flat, 1, torch.device("cpu"))
    descent = Descent(engine.settings, rows)
    descent.reset(torch.zeros(engine.flat.size))
    rows.w[0, 0], rows.g[0, 0] = 2.0, 4.0
    descent.step(0)
    assert rows.w[0, 0].item() == pytest.approx(0.0, abs=1e-6)
    rows.g.zero_()
    descent.step(0)
    assert rows.w[0, 0].item() == pytest.approx(-1.0, abs=1e-6)
    descent.reset(torch.zeros(engine.flat.size))
    rows.g.zero_()
    descent.step(0)
    assert not rows.w.any(), "after a reset there is no momentum left"


def test_the_rate_decays_by_the_round() -> None:
    settings = small("lr=0.5", "lr_decay=0.9")
    assert [rate(settings, t) for t in (0, 1, 10)] == pytest.approx([0.5, 0.45, 0.5 * 0.9**10])
    assert rate(settings, -1) == 0.5
    assert rate(small("lr=0.5"), 100) == 0.5


@pytest.mark.parametrize("words", [(), plain.CNN], ids=["mlp", "cnn"])
def test_training_is_plain_training(words: tuple[str, ...]) -> None:
    engine = Engine(small(*words, *plain.EVERYTHING))
    start = engine.flat.initial
    for t, client in ((0, 0), (3, 4)):
        (w,) = engine.trainer.train(t, (client,), start, nothing)
        wanted, loss = plain.train(engine, t, client, start)
        np.testing.assert_allclose(w, wanted, rtol=1e-4, atol=1e-5)
        assert engine.trainer.loss(client) == pytest.approx(loss, rel=1e-5)
        assert engine.trainer.seconds[client] > 0
    assert np.isnan(engine.trainer.loss(1)), "nothing is known of others"
    engine.trainer.begin()
    assert np.isnan(engine.trainer.loss(0)), "a round begins"
    assert engine.trainer.seconds == {}


def test_adjusting_comes_before_each_step() -> None:
    engine = Engine(small("weight_decay=0.0", "momentum=0.0", "local_steps=4", "lr=0.5"))
    seen = []

    def ones(clients: Sequence[int], w: Tensor, g: Tensor) -> None:
        seen.append((tuple(clients), w.shape, g.shape))
        g.fill_(1)

    (w,) = engine.trainer.train(0, (3,), torch.zeros(engine.flat.size), ones)
    assert (w == -2).all()
    assert seen == [((3,), (1, engine.flat.size), (1, engine.flat.size))] * 4


def test_gradient_is_autograds() -> None:
    engine = Engine(small(*plain.CNN))
    w = engine.flat.initial * 1.5
    positions = np.array([3, 1, 250])
    module = plain.network(engine, w)
    loss = cross_entropy(module(engine.trainer.x[positions]), engine.trainer.y[positions])
    wanted = parameters_to_vector(torch.autograd.grad(loss, list(module.parameters())))
    np.testing.assert_allclose(engine.trainer.gradient(w, positions), wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("count", [0, 1, EVALUATION_BATCH, 2 * EVALUATION_BATCH + 7])
def test_correct_judges_every_sample_once_and_in_order(count: int) -> None:
    engine = Engine(small(f"data.test_samples={max(count, 1)}"))
    x, y = engine.observer.test_x[:count], engine.observer.test_y[:count]
    found = engine.trainer.correct(engine.flat.initial, x, y)
    module = plain.network(engine, engine.flat.initial)
    with torch.no_grad():
        wanted = module(x).argmax(1) == y
    assert found.dtype == bool
    assert found.tolist() == wanted.tolist()
    assert count < 2 or 0 < found.sum() < count


def test_training_takes_one_client_at_a_time_here() -> None:
    engine = Engine(small())
    assert list(engine.trainer.chunks([4, 0, 2])) == [(4,), (0,), (2,)]
    with pytest.raises(AssertionError, match="as long as there are rows"):
        engine.trainer.train(0, (0, 1), engine.flat.initial, nothing)


def test_momentum_starts_afresh_each_round() -> None:
    """Two rounds of one client are two runs of torch's optimiser, not one."""
    found = run(small("clients=1", "rounds=2", "epochs=2", "momentum=0.9", "lr=0.1"))
    engine = found.engine
    w = engine.flat.initial
    for t in range(2):
        w, _ = plain.train(engine, t, 0, w)
    np.testing.assert_allclose(found.model, w, rtol=1e-4, atol=2e-5)
    module = plain.network(engine, engine.flat.initial)
    optimiser = plain.sgd(engine, module, 0)
    for t in range(2):
        for positions in engine.trainer.batches(t, 0):
            optimiser.zero_grad()
            x, y = engine.trainer.x[positions], engine.trainer.y[positions]
            cross_entropy(module(x), y).backward()
            optimiser.step()
    assert np.abs(found.model - plain.vector(module).numpy()).max() > 1e-3
