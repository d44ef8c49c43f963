"""FedAvg's algebra: what is told, what is said, and the average by samples, worked out by hand."""

import numpy as np
import pytest
import torch

from fedmpi.engine import Engine
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind, Message, WireError
from tests.plain import EVERYTHING, average, play
from tests.small import small

TINY = ("data.shape=[1]", "data.classes=2", "data.samples=40", "data.test_samples=10")
TINY += ("model.hidden=[]", "partition.name=iid", "clients=3")
"""Logistic regression on one number: four parameters, two weights and two biases."""


def tiny(*words: str) -> Engine:
    """An engine with four parameters, which are 1, 2, 3, 4 on the server."""
    engine = Engine(small(*TINY, *words))
    engine.server.w.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    return engine


def update(*values: float) -> list[Block]:
    """An upload of these values."""
    return [sparse.block(Kind.GRADIENT, torch.tensor(values))]


def test_the_mean_is_weighted_by_samples() -> None:
    server = tiny().server
    server.absorb(0, Message(0, update(1, 0, 0, -8), 3.0))
    server.absorb(0, Message(2, update(0, 4, 0, 8), 1.0))
    assert server.w.tolist() == [1, 2, 3, 4], "nothing moves before all uploads are in"
    server.step(0)
    assert server.w.tolist() == [1.75, 3, 3, 0]


def test_each_round_begins_an_average_anew() -> None:
    server = tiny().server
    for weight in (3.0, 2.0):
        server.absorb(0, Message(0, update(1, 1, 1, 1), weight))
        server.step(0)
    assert server.w.tolist() == [3, 4, 5, 6]


def test_equal_updates_are_the_average_whatever_the_weights() -> None:
    server = tiny().server
    for client, weight in enumerate((1.0, 2.0, 5.0)):
        server.absorb(0, Message(client, update(0, 0, 0, 16), weight))
    server.step(0)
    assert server.w.tolist() == [1, 2, 3, 20]


@pytest.mark.parametrize("values", [(1.0, 2.0, 3.0), (1.0, 2.0, 3.0, 4.0, 5.0)])
def test_an_update_of_another_length_is_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(WireError, match="wanted 4"):
        tiny().server.absorb(0, Message(0, update(*values), 1.0))


def test_clients_start_where_they_are_told_and_say_how_far_they_came() -> None:
    engine = tiny()
    (block,) = engine.server.broadcast(0)
    assert (block.kind, block.count, block.indices) == (Kind.MODEL, 4, None)
    engine.clients.receive(0, [0, 1], [block])
    assert engine.clients.start.tolist() == [1, 2, 3, 4]
    (said,) = engine.clients.upload(0, 0, torch.tensor([1.5, 2.0, 0.0, 8.0]))
    assert said.kind == Kind.GRADIENT
    assert sparse.values(said).tolist() == [0.5, 0, -3, 4]


def test_what_clients_are_told_is_theirs() -> None:
    """The broadcast is a copy: training must not reach into the server, nor the other way."""
    engine = tiny()
    engine.clients.receive(0, [0], engine.server.broadcast(0))
    engine.server.w.zero_()
    assert engine.clients.start.tolist() == [1, 2, 3, 4]


def test_a_model_is_heard_in_the_memory_of_the_one_before() -> None:
    """New memory for a large model takes longer than what is written to it."""
    engine, found = tiny(), []
    for value in (1.0, 2.0):
        model = torch.full((engine.flat.size,), value)
        engine.clients.receive(0, range(1), [sparse.block(Kind.MODEL, model)])
        assert torch.equal(engine.clients.start, model)
        found.append(engine.clients.start.data_ptr())
    assert found[0] == found[1]


def test_training_starts_at_the_model_of_the_round() -> None:
    engine = tiny("lr=0.5", "epochs=1")
    engine.clients.receive(0, [1], engine.server.broadcast(0))
    w = engine.clients.work(0, (1,))[0].clone()
    shard = engine.population.shards[1]
    x, y = engine.trainer.feed.x[shard].double().reshape(-1), engine.trainer.feed.y[shard]
    assert len(shard) <= engine.settings.batch, "one step is all"
    logits = x[:, None] * torch.tensor([1.0, 2.0]) + torch.tensor([3.0, 4.0])
    error = torch.softmax(logits, 1) - torch.nn.functional.one_hot(y, 2)
    slope = torch.cat([(error * x[:, None]).mean(0), error.mean(0)])
    wanted = torch.tensor([1.0, 2.0, 3.0, 4.0]) - 0.5 * slope
    np.testing.assert_allclose(w, wanted, rtol=1e-6)


def test_rounds_equal_plain_training() -> None:
    engine = Engine(small(*EVERYTHING, "participation=0.6", "rounds=3"))
    w = engine.server.w.clone()
    for t, _ in enumerate(play(engine)):
        w = average(engine, t, w)
        np.testing.assert_allclose(engine.server.w, w, rtol=1e-4, atol=2e-5)
        # From here on both take the same path, so that roundings do not add up.
        w = engine.server.w.clone()


def test_a_clients_own_model_is_the_one_that_it_trained() -> None:
    engine = tiny()
    w = torch.tensor([5.0, 6.0, 7.0, 8.0])
    assert engine.clients.personal(0, w).tolist() == [5, 6, 7, 8]
    assert engine.server.personal(0) is None
