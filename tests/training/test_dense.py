"""Dense networks of several clients in one step: the bits are those of each alone by autograd."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

from fedmpi import models
from fedmpi.engine import Engine
from fedmpi.networks.flat import Flat
from fedmpi.networks.layers import BatchNorm, Dropout
from fedmpi.training.dense import MOST, VALUES, Dense, limit, plan
from fedmpi.training.feed import Batch, Feed, Pick
from fedmpi.training.rows import OneByOne
from tests.small import run, small

CPU = torch.device("cpu")
WIDTHS = st.sampled_from([2, 3, 5, 8, 10, 16, 33, 64])
LENGTHS = st.lists(st.sampled_from([1, 2, 5, 16, 16, 31, 64]), min_size=1, max_size=9)


def bits(x: Tensor) -> bytes:
    """Of zeros their signs, too."""
    return x.contiguous().numpy().tobytes()


def step(rows: Dense, batches: Sequence[Batch]) -> Tensor:
    """Sets gradients by `backprop`, of samples that lie in some order with others between them."""
    gap = torch.full((3, *batches[0].x.shape[1:]), torch.nan)
    pieces = [part for batch in reversed(batches) for part in (gap, batch.x)]
    marks = [part for batch in reversed(batches) for part in (torch.zeros(3, dtype=int), batch.y)]
    feed: Any = SimpleNamespace(x=torch.cat(pieces), y=torch.cat(marks))
    feed.take = partial(Feed.take, feed)
    picks, end = [], len(feed.y)
    for x, _, key in batches:
        picks.append(Pick(torch.arange(end - len(x), end), None, key))
        end -= len(x) + 3
    return rows.backprop(feed, picks)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Flat, list[Batch], bool]:
    """A dense network, a batch for each of some clients, and whether they train."""
    hidden = draw(st.lists(WIDTHS, max_size=3))
    config = small(f"model.hidden={hidden}", f"model.dropout={draw(st.sampled_from([0.0, 0.3]))}")
    shape, classes = draw(st.sampled_from([(1, 1, 1), (3, 5, 7), (1, 28, 28)])), draw(WIDTHS)
    flat = Flat(models.build(config.model, shape, classes, draw(st.integers(0, 99))))
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    keys = st.integers(0, (1 << 63) - 1)
    batches = [
        Batch(
            torch.randn(length, *shape, generator=random),
            torch.randint(classes, (length,), generator=random),
            draw(keys),
        )
        for length in draw(LENGTHS)
    ]
    return flat, batches, draw(st.booleans())


def is_as_alone(flat: Flat, batches: list[Batch], trains: bool) -> None:
    """Losses, gradients and models after a step are those of each client alone, in every bit."""
    count, config = len(batches), small()
    rows = Dense(flat, count + 1, CPU, config)
    rows.train_mode(trains)
    rows.w.copy_(flat.initial * torch.linspace(0.9, 1.1, count + 1)[:, None])
    rows.g.fill_(7)
    alone = OneByOne(flat, 1, CPU, config)
    alone.train_mode(trains)
    for _ in range(2):
        start = rows.w.clone()
        losses = step(rows, batches)
        g = rows.head(count)[1].clone()
        rows.move(count, 0.05)
        for row, batch in enumerate(batches):
            alone.w[0] = start[row]
            assert bits(losses[row]) == bits(alone.backprop(None, [batch])[0])
            alone.move(1, 0.05)
            assert bits(rows.w[row]) == bits(alone.w[0])
            alone.w[0] = start[row]
            alone.backprop(None, [batch])
            assert bits(g[row]) == bits(alone.head(1)[1][0])
    assert torch.equal(rows.w[-1], start[-1]), "a row without a batch stays"
    assert (rows.g[-1] == 7).all()


@given(cases())
@settings(max_examples=60, deadline=None)
def test_a_step_together_is_each_clients_own_by_autograd(
    case: tuple[Flat, list[Batch], bool],
) -> None:
    is_as_alone(*case)


def test_so_it_is_with_several_threads() -> None:
    """Where matrix products and elementwise work are large enough to be divided."""
    flat = Flat(models.build(small("model.hidden=[33, 64]").model, (1, 28, 28), 10, 1))
    random = torch.Generator().manual_seed(1)
    batches = [
        Batch(torch.randn(n, 1, 28, 28, generator=random), torch.arange(n) % 10, 0)
        for n in (64, 64, 64, 64, 64, 64, 64, 64, 64, 31, 1)
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        is_as_alone(flat, batches, True)
    finally:
        torch.set_num_threads(before)


def test_gradients_are_those_of_plain_torch_in_float64() -> None:
    flat = Engine(small("model.hidden=[9, 4]")).flat
    rows = Dense(flat, 2, CPU, small())
    rows.w.copy_(flat.initial)
    random = torch.Generator().manual_seed(1)
    batches = [
        Batch(torch.randn(n, 1, 8, 8, generator=random), torch.arange(n) % 10, 0) for n in (6, 3)
    ]
    losses = step(rows, batches)
    network = flat.network(flat.initial.clone()).double()
    for row, (x, y, _) in enumerate(batches):
        loss = cross_entropy(network(x.double()), y)
        wanted = parameters_to_vector(torch.autograd.grad(loss, list(network.parameters())))
        assert losses[row].item() == pytest.approx(loss.item(), rel=1e-6)
        np.testing.assert_allclose(rows.g[row], wanted.float(), rtol=1e-4, atol=1e-6)


def test_a_step_after_a_loss_has_its_own_gradient() -> None:
    """A gradient that autograd found, and nobody asked for, is forgotten."""
    flat = Engine(small()).flat
    rows = Dense(flat, 1, CPU, small())
    batch = Batch(torch.ones(3, 1, 8, 8), torch.zeros(3, dtype=torch.int64), 0)
    step(rows, [batch])
    wanted = rows.head(1)[1].clone()
    rows.losses([2 * batch.x], [batch.y], ())
    step(rows, [batch])
    assert torch.equal(rows.head(1)[1], wanted)


LINEAR = nn.Linear(4, 3)


@pytest.mark.parametrize(
    ("layers", "is_dense"),
    [
        ([nn.Flatten(), LINEAR], True),
        ([LINEAR], True),
        ([LINEAR, nn.ReLU(), nn.Linear(3, 2)], True),
        ([LINEAR, Dropout(0.5), nn.Flatten(), nn.Linear(3, 2)], True),
        ([LINEAR, nn.ReLU(), Dropout(0.5), nn.Linear(3, 2)], True),
        ([LINEAR, nn.Sequential(nn.ReLU(), nn.Linear(3, 2))], True),
        ([LINEAR, nn.Linear(3, 2)], True),
        ([], False),
        ([nn.Flatten()], False),
        ([nn.ReLU(), LINEAR], False),
        ([LINEAR, nn.ReLU()], False),
        ([LINEAR, nn.ReLU(), nn.ReLU(), nn.Linear(3, 2)], False),
        ([LINEAR, Dropout(0.5), nn.ReLU(), nn.Linear(3, 2)], False),
        ([LINEAR, Dropout(0.5), Dropout(0.5), nn.Linear(3, 2)], False),
        ([LINEAR, nn.Tanh(), nn.Linear(3, 2)], False),
        ([LINEAR, BatchNorm(3), nn.Linear(3, 2)], False),
        ([nn.Linear(4, 3, bias=False)], False),
        ([nn.Linear(4, 1), nn.Linear(1, 2)], False),
        ([nn.Linear(1, 3), nn.Linear(3, 2)], True),
        ([nn.Flatten(2), LINEAR], False),
        ([nn.Conv2d(1, 4, 3), nn.Flatten(), LINEAR], False),
    ],
)
def test_networks_of_linear_layers_are_dense(layers: list[nn.Module], is_dense: bool) -> None:
    network = nn.Sequential(OrderedDict((f"a{n}", layer) for n, layer in enumerate(layers)))
    assert (plan(network) is not None) == is_dense


@pytest.mark.parametrize("size", [1, 8192, 8193, 100_000, VALUES, VALUES + 1, 10**7])
def test_a_chunk_is_as_large_as_a_cache(size: int) -> None:
    flat = Flat(nn.Sequential(nn.Linear(1, 1)))
    flat.size = size
    count = limit(flat)
    assert 1 <= count <= MOST
    assert count == 1 or count * size <= VALUES
    assert count == MOST or (count + 1) * size > VALUES


@pytest.mark.parametrize("words", [(), ("model.dropout=0.4", "momentum=0.9")], ids=" ".join)
def test_the_number_of_rows_changes_no_bit_of_a_run(words: tuple[str, ...]) -> None:
    given = ("clients=9", "partition.minimum=1", "batch=3", *words)
    wanted = run(small(*given, "rows=1"))
    for more in ((), ("rows=2",), ("rows=5",)):
        found = run(small(*given, *more))
        assert found.sha256 == wanted.sha256
        assert (found.tables["clients"]["loss"] == wanted.tables["clients"]["loss"]).all()
