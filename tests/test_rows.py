"""Clients are rows: several in one chunk are the same clients one by one, bit for bit."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmpi.engine import Engine
from fedmpi.flat import Rows
from fedmpi.train import Descent, Trainer
from tests.plain import CNN, EVERYTHING, METHODS
from tests.small import run, small

CPU = torch.device("cpu")
networks = pytest.mark.parametrize("words", [(), CNN], ids=["mlp", "cnn"])


def widen(trainer: Trainer, count: int) -> None:
    """Gives the trainer so many rows."""
    trainer.descent = trainer.descent_of(trainer.flat, count)
    trainer.rows = trainer.descent.rows


def chunked(monkeypatch: pytest.MonkeyPatch, width: int) -> list[int]:
    """From now on clients train in chunks of `width`, and a rest; returns the widths to come."""
    widths: list[int] = []

    def chunks(self: Trainer, clients: Sequence[int]) -> Iterator[tuple[int, ...]]:
        for first in range(0, len(clients), width):
            chunk = tuple(clients[first : first + width])
            if len(self.rows) != len(chunk):
                widen(self, len(chunk))
            widths.append(len(chunk))
            yield chunk

    monkeypatch.setattr(Trainer, "chunks", chunks)
    return widths


@pytest.mark.parametrize("width", [2, 5])
@pytest.mark.parametrize("name", METHODS)
def test_a_run_in_chunks_is_the_same_run(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small(f"method.name={name}", *EVERYTHING)
    single = run(settings)
    assert len(set(single.engine.population.sizes.tolist())) > 1, "unequal shards"
    widths = chunked(monkeypatch, width)
    found = run(settings)
    assert set(widths) == ({5} if width == 5 else {2, 1})
    assert found.sha256 == single.sha256
    for column in ("loss", "personal", "accuracy", "up_gradient", "down_model"):
        np.testing.assert_array_equal(*(r.tables["clients"][column] for r in (found, single)))


@networks
def test_a_chunk_is_its_clients_one_by_one(words: tuple[str, ...]) -> None:
    engine = Engine(small(*words, *EVERYTHING))
    trainer, clients = engine.trainer, engine.clients
    clients.start = engine.flat.initial
    alone = [clients.work(1, (client,))[0].clone() for client in range(5)]
    losses = [trainer.loss(client) for client in range(5)]
    trainer.begin()
    widen(trainer, 5)
    together = clients.work(1, tuple(range(5)))
    assert together.shape == (5, engine.flat.size)
    for row, wanted in zip(together, alone, strict=True):
        assert torch.equal(row, wanted)
    assert [trainer.loss(client) for client in range(5)] == losses
    assert len({tuple(row[:9].tolist()) for row in alone}) == 5, "no two clients are alike"


@networks
def test_a_result_does_not_depend_on_the_row(words: tuple[str, ...]) -> None:
    engine = Engine(small(*words, *EVERYTHING))
    assert engine.flat.size % 16, "rows that follow each other closely would not be aligned"
    widen(engine.trainer, 4)
    for rows in (engine.trainer.rows.w, engine.trainer.rows.g):
        assert {row.data_ptr() % 64 for row in rows} == {0}
    found: dict[int, Tensor] = {}
    engine.clients.start = engine.flat.initial
    for clients in ((0, 1, 2, 3), (3, 0, 4, 1), (4, 4, 4, 4), (2, 3, 1, 0)):
        for client, row in zip(clients, engine.clients.work(0, clients), strict=True):
            assert torch.equal(row, found.setdefault(client, row.clone()))


def test_one_step_of_all_rows_is_a_step_of_each() -> None:
    """Clip, decay and momentum too: a stacked executor will take all rows at once."""
    engine = Engine(small(*EVERYTHING))
    n, random = engine.flat.size, torch.Generator().manual_seed(3)
    stacked, single = (Rows(engine.flat, 4, CPU) for _ in range(2))
    both = [Descent(engine.settings, rows) for rows in (stacked, single)]
    start = torch.randn(4, n, generator=random)
    for descent in both:
        descent.reset(start)
    for step in range(4):
        g = torch.randn(4, n, generator=random) * torch.tensor([[0.01], [0.03], [1.0], [9.0]])
        for rows in (stacked, single):
            rows.g.copy_(g)
        both[0].step(step)
        for row in (2, 0, 3, 1):
            both[1].step(step, slice(row, row + 1))
        np.testing.assert_allclose(stacked.w, single.w, rtol=1e-6, atol=1e-7)


def test_a_step_of_some_rows_leaves_the_others() -> None:
    engine = Engine(small(*EVERYTHING))
    rows = Rows(engine.flat, 3, CPU)
    descent = Descent(engine.settings, rows)
    descent.reset(engine.flat.initial)
    rows.g.fill_(1)
    descent.step(0, slice(1, 2))
    assert torch.equal(rows.w[0], engine.flat.initial)
    assert torch.equal(rows.w[2], engine.flat.initial)
    assert (rows.w[1] != engine.flat.initial).all()
    assert (rows.g[[0, 2]] == 1).all()
    assert not descent.velocity[[0, 2]].any()


@networks
def test_a_rows_gradient_lands_in_its_row_alone(words: tuple[str, ...]) -> None:
    engine = Engine(small(*words))
    rows = Rows(engine.flat, 3, CPU)
    rows.w.copy_(engine.flat.initial)
    rows.g.fill_(7)
    x, y = engine.trainer.x[:8], engine.trainer.y[:8]
    rows.loss(1, x, y)
    assert (rows.g[[0, 2]] == 7).all()
    wanted = rows.g[1].clone()
    for row in (0, 2):
        rows.loss(row, x, y)
        assert torch.equal(rows.g[row], wanted)


@pytest.mark.parametrize("name", METHODS)
def test_adjusting_rows_together_is_adjusting_each(name: str) -> None:
    """A method's hook gets [C, n]: it must be elementwise or row-wise."""
    engine = Engine(small(f"method.name={name}"))
    clients, n = engine.clients, engine.flat.size
    size = len(clients.start) if not clients.converses else clients.front.size
    random = torch.Generator().manual_seed(9)
    clients.start = torch.randn(size, generator=random)
    w, g = (torch.randn(3, size, generator=random) for _ in range(2))
    assert size <= n
    together = g.clone()
    clients.adjust((4, 0, 2), w.clone(), together)
    for row, client in enumerate((4, 0, 2)):
        part = g[row : row + 1].clone()
        clients.adjust((client,), w[row : row + 1].clone(), part)
        assert torch.equal(part[0], together[row])
