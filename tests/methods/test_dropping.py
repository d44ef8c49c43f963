"""Dropout at a cut: right on average both ways, and of one support on both."""

import numpy as np
import pytest
import torch

from fedmpi.engine import Engine
from fedmpi.messages import sparse
from fedmpi.messages.codec import Kind
from fedmpi.split.cuts import Crossing
from tests.small import small


def engine(dropout: float) -> Engine:
    return Engine(small("method.name=fedsl", f"method.dropout={dropout}"))


def test_both_ways_are_right_on_average() -> None:
    """Over steps, that is over draws: each value within five of the largest standard errors."""
    found, draws = engine(0.4), 800
    a = torch.randn(6, 12, generator=torch.Generator().manual_seed(1))
    for kind, one, other in (
        (Kind.ACTIVATION, found.clients, found.server),
        (Kind.GRADIENT, found.server, found.clients),
    ):
        ways = [Crossing(kind, 0, 1, 2, step) for step in range(draws)]
        every = torch.stack([other.decode(way, one.encode(way, a)) for way in ways])
        off = (every.mean(0) - a.reshape(-1)).abs()
        assert off.max() <= 5 * every.std(0).max() / draws**0.5
        assert float((every != 0).float().mean()) == pytest.approx(0.6, abs=0.01)
        kept = every != 0
        torch.testing.assert_close(every[kept], (a.reshape(-1) / 0.6).expand_as(every)[kept])


def test_a_gradient_comes_back_where_its_activation_went() -> None:
    """And elsewhere in another step, round, client or cut."""
    found, ones = engine(0.5), torch.ones(9, 12)
    there = Crossing(Kind.ACTIVATION, 0, 1, 2, 3)
    activations = found.server.decode(there, found.clients.encode(there, ones))
    back = there._replace(kind=Kind.GRADIENT)
    gradients = found.clients.decode(back, found.server.encode(back, ones))
    assert torch.equal(activations, gradients)
    assert not found.server._drawn and not found.clients._drawn, "nothing outlives a step"
    for other in ({"t": 2}, {"client": 3}, {"step": 4}, {"cut": 1}):
        way = there._replace(**other)
        assert not torch.equal(found.server.decode(way, found.clients.encode(way, ones)), gradients)


def test_survivors_alone_travel_and_no_positions() -> None:
    found, a = engine(0.3), torch.arange(1.0, 121).view(10, 12)
    way = Crossing(Kind.ACTIVATION, 0, 0, 0, 0)
    (block,) = found.clients.encode(way, a)
    assert block.size == 120 and block.indices is None and 60 < block.count < 108
    values = found.server.decode(way, [block])
    torch.testing.assert_close(values[values != 0], sparse.values(block))
    assert np.isin((values * 0.7).round().unique(), np.arange(121)).all()


def test_without_a_share_all_travel_as_they_are() -> None:
    found, a = engine(0.0), torch.randn(4, 12)
    way = Crossing(Kind.ACTIVATION, 0, 0, 0, 0)
    (block,) = found.clients.encode(way, a)
    assert torch.equal(found.server.decode(way, [block]), a.reshape(-1))
