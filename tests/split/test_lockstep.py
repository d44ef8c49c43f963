"""Parts of networks by party: who has which row, where a wave begins, and what one back means."""

import pytest
import torch

from fedmpi.engine import Engine
from fedmpi.split.lockstep import WaveParts
from tests.small import small

UNEVEN = ("clients=6", "partition.minimum=1", "batch=4", "seed=3")


@pytest.fixture
def engine() -> Engine:
    return Engine(small(*UNEVEN, "momentum=0.9"))


def test_each_client_has_a_row_of_its_party(engine: Engine) -> None:
    parts = WaveParts(engine.trainer, engine.flat)
    found = parts.open(0, [(5, 1, 3), (0, 2)], engine.flat.initial)
    assert [party.clients for party in found] == [(5, 1, 3), (0, 2)]
    assert [len(party.rows) for party in found] == [3, 2]
    for party in found:
        assert party.order == engine.trainer.ordered(0, party.clients)
        for row, client in enumerate(party.order):
            party.rows.w[row] = client
    assert all((parts.of(client) == client).all() for client in (5, 1, 3, 0, 2))


def test_rows_wait_for_the_next_wave_if_they_are_enough(engine: Engine) -> None:
    parts = WaveParts(engine.trainer, engine.flat)
    first = parts.open(0, [(0, 1, 2), (3, 4)], engine.flat.initial)
    second = parts.open(0, [(5,), (0, 1, 2)], engine.flat.initial)
    assert second[0].rows is first[0].rows
    assert second[1].rows is not first[1].rows
    assert len(second[1].rows) == 3
    assert [party.order for party in parts.parties] == [[5], engine.trainer.ordered(0, (0, 1, 2))]


def test_a_wave_begins_at_rest(engine: Engine) -> None:
    parts = WaveParts(engine.trainer, engine.flat)
    (party,) = parts.open(0, [(0, 1)], engine.flat.initial)
    party.rows.g.fill_(1)
    party.step([*party.order])
    assert not torch.equal(parts.of(0), engine.flat.initial)
    parts.open(1, [(0, 1)], engine.flat.initial + 3)
    assert torch.equal(parts.of(1), engine.flat.initial + 3)
    assert not parts.descents[0].velocity.any()


def test_one_part_is_everybodys_and_may_go_on(engine: Engine) -> None:
    """Each party counts its own steps, all the same."""
    parts = WaveParts(engine.trainer, engine.flat, is_one=True)
    first, second = parts.open(0, [(0, 1, 2), (3, 4)], engine.flat.initial)
    assert first.rows is second.rows
    assert len(first.rows) == 1
    first.rows.g.fill_(1)
    first.step([1])
    first.done += 1
    assert (first.done, second.done) == (1, 0)
    before = parts.first_row.clone()
    assert torch.equal(parts.of(4), before)
    parts.open(0, [(5,)], None)
    assert torch.equal(parts.first_row, before)
    assert parts.descents[0].velocity.any()


def test_the_busy_are_the_first_rows(engine: Engine) -> None:
    steps = engine.population.steps
    (party,) = WaveParts(engine.trainer, engine.flat).open(0, [range(6)], engine.flat.initial)
    seen = []
    while busy := party.busy():
        assert busy == party.order[: len(busy)]
        assert set(busy) == {client for client in range(6) if steps(0, client) > party.done}
        seen.append(len(busy))
        party.done += 1
    assert len(seen) == max(steps(0, client) for client in range(6))
    assert len(set(seen)) > 2
