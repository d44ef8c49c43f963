"""Local training: batches and steps, against torch's own optimiser."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedmpi.engine import Engine
from fedmpi.networks.flat import Flat
from fedmpi.training.dense import Dense
from fedmpi.training.descent import Descent
from fedmpi.training.rows import OneByOne, Rows
from fedmpi.training.stacked import Stacked
from fedmpi.training.train import Hooks
from tests import plain
from tests.plain import CNN
from tests.small import run, small


@pytest.mark.parametrize("words", [(), plain.CNN], ids=["mlp", "cnn"])
def test_training_is_plain_training(words: tuple[str, ...]) -> None:
    engine = Engine(small(*words, *plain.EVERYTHING))
    start = engine.flat.initial
    for t, client in ((0, 0), (3, 4)):
        (w,) = engine.trainer.train(t, (client,), start)
        wanted, loss = plain.train(engine, t, client, start)
        np.testing.assert_allclose(w, wanted, rtol=1e-4, atol=1e-5)
        assert engine.trainer.loss(client) == pytest.approx(loss, rel=1e-5)
        assert engine.trainer.seconds[client] > 0
    assert np.isnan(engine.trainer.loss(1)), "nothing is known of others"
    engine.trainer.begin(0)
    assert np.isnan(engine.trainer.loss(0)), "a round begins"
    assert engine.trainer.seconds == {}


def test_adjusting_comes_before_each_step() -> None:
    engine = Engine(small("weight_decay=0.0", "momentum=0.0", "local_steps=4", "lr=0.5"))
    seen = []

    def ones(clients: Sequence[int], w: Tensor, g: Tensor) -> None:
        seen.append((tuple(clients), w.shape, g.shape))
        g.fill_(1)

    (w,) = engine.trainer.train(0, (3,), torch.zeros(engine.flat.size), Hooks(ones))
    assert (w == -2).all()
    assert seen == [((3,), (1, engine.flat.size), (1, engine.flat.size))] * 4


@pytest.mark.parametrize(
    ("words", "kind", "limit"),
    [
        ((), Dense, 32),
        (("model.hidden=[]",), Dense, 32),
        (("model.hidden=[1000]",), Dense, 3),
        (("model.hidden=[4000]",), Dense, 1),
        (("model.hidden=[1000]", "rows=9"), Dense, 9),
        (("rows=1",), Dense, 1),
        (("model.hidden=[1, 9]",), OneByOne, 1),
        (("precision=bf16",), OneByOne, 1),
        (("precision=bf16", "rows=2"), Stacked, 2),
        (CNN, OneByOne, 1),
        ((*CNN, "rows=2"), Stacked, 2),
        (("method.name=sparsyfed",), OneByOne, 1),
    ],
    ids=str,
)
def test_the_model_says_how_many_clients_train_together(
    words: tuple[str, ...], kind: type[Rows], limit: int
) -> None:
    trainer = Engine(small(*words)).trainer
    assert (type(trainer.rows), trainer.row_limit) == (kind, limit)


def test_clients_that_train_one_by_one_do_so_in_their_order() -> None:
    trainer = Engine(small(*CNN)).trainer
    assert list(trainer.chunks(0, [4, 0, 2])) == [(4,), (0,), (2,)]


@pytest.mark.parametrize("words", [(), CNN], ids=["mlp", "cnn"])
def test_a_clients_loss_does_not_depend_on_its_neighbours(words: tuple[str, ...]) -> None:
    """Neither in its last bit: whoever is done earlier beside it divides no sum."""
    given = ("clients=9", "partition.minimum=1", "batch=3", "epochs=3", "rows=1")
    engine = Engine(small(*words, *given))
    trainer, start = engine.trainer, engine.flat.initial
    order = trainer.ordered(0, range(9))
    assert len({trainer.population.steps(0, client) for client in order}) > 4
    for client in order:
        trainer.train(0, (client,), start)
    alone = [trainer.loss(client) for client in order]
    trainer.begin(0)
    trainer.train(0, order, start)
    assert [trainer.loss(client) for client in order] == alone


@pytest.mark.parametrize("rows", [2, 3, 4, 5, 9])
def test_chunks_are_of_like_clients_and_about_equally_many(rows: int) -> None:
    trainer = Engine(small(f"rows={rows}", "clients=9", "partition.minimum=2")).trainer
    steps = trainer.population.steps
    for clients in ([], [3], [7, 1], list(range(9))):
        chunks = list(trainer.chunks(0, clients))
        assert sorted(client for chunk in chunks for client in chunk) == sorted(clients)
        assert len(chunks) == -(-len(clients) // rows)
        lengths = [len(chunk) for chunk in chunks]
        assert max(lengths, default=0) - min(lengths, default=0) <= 1
        counts = [steps(0, client) for chunk in chunks for client in chunk]
        assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(
    ("free", "each", "wanted"),
    [(10**6, 60_000, 13), (10**6, 900_000, 1), (0, 60_000, 1), (10**6, 0, 51)],
)
def test_free_memory_says_how_many_rows(
    free: int, each: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By made-up figures of a GPU: one row takes 100 and `each`, two take 100 and twice `each`.

    If a second row seems to take nothing, it is taken to need four vectors of 974 float32.
    """
    rows: list[int] = []
    trainer = Engine(small("rows=2", "clients=13")).trainer
    make = trainer.descent_of

    def watch(flat: Flat, count: int) -> Descent:
        rows.append(count)
        return make(flat, count)

    monkeypatch.setattr(trainer, "descent_of", watch)
    for name, value in {
        "memory_allocated": lambda _: 5,
        "reset_peak_memory_stats": lambda _: None,
        "max_memory_allocated": lambda _: 105 + each * rows[-1],
        "empty_cache": lambda: None,
        "mem_get_info": lambda _: (free, 10 * free),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    trainer.row_limit = None
    chunks = list(trainer.chunks(0, range(13)))
    assert rows == [1, 2]
    assert trainer.row_limit == wanted
    assert len(chunks) == -(-13 // wanted)


def test_a_chunk_in_another_order_is_refused() -> None:
    engine = Engine(small("rows=5"))
    first, *_, last = engine.trainer.ordered(0, range(5))
    with pytest.raises(AssertionError, match="most steps first"):
        engine.trainer.train(0, (last, first), engine.flat.initial)


def test_momentum_starts_afresh_each_round() -> None:
    """Two rounds of one client are two runs of torch's optimiser, not one."""
    found = run(small("clients=1", "rounds=2", "epochs=2", "momentum=0.9", "lr=0.1"))
    engine = found.engine
    w = engine.flat.initial
    for t in range(2):
        w, _ = plain.train(engine, t, 0, w)
    np.testing.assert_allclose(found.model, w, rtol=1e-4, atol=2e-5)
    module = plain.network(engine, engine.flat.initial)
    optimiser = plain.optimiser(engine, module, 0)
    for t in range(2):
        for positions in plain.positions(engine, t, 0):
            optimiser.zero_grad()
            x, y = engine.trainer.feed.x[positions], engine.trainer.feed.y[positions]
            cross_entropy(module(x), y).backward()
            optimiser.step()
    assert np.abs(found.model - plain.vector(module).numpy()).max() > 1e-3
