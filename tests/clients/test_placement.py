"""Who hosts whom, and in which waves: it balances the ranks and never changes a result."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from fedmpi.clients.placement import Placement, Wave, place
from tests.clients.test_population import UNEVEN, population

few = effort(max_examples=80, deadline=None)
loads = st.lists(st.integers(1, 50), min_size=1, max_size=7)


def burdens(sizes: list[int], hosts: list[int], ranks: range) -> list[int]:
    """What each rank carries."""
    return [sum(s for s, h in zip(sizes, hosts, strict=True) if h == rank) for rank in ranks]


def test_the_largest_is_placed_first() -> None:
    assert place(np.array([1, 2, 3, 4, 5]), [1, 2]) == [1, 1, 2, 2, 1]
    assert place(np.array([5, 5, 5]), [0, 1, 2]) == [0, 1, 2], "ties go to the first"
    assert place(np.array([1, 9, 1, 1]), [3, 7]) == [7, 3, 7, 7]
    assert place(np.array([4, 4]), [1, 2, 3]) == [1, 2]
    assert place(np.array([], np.int64), [0]) == []


@few
@given(loads, st.integers(1, 3))
def test_placing_is_within_grahams_bound(sizes: list[int], count: int) -> None:
    """The largest load first is at most 4/3 - 1/(3 m) of the best that there is."""
    ranks = range(5, 5 + count)
    hosts = place(np.array(sizes), ranks)
    assert hosts == place(np.array(sizes), ranks)
    assert set(hosts) <= set(ranks)
    every = itertools.product(ranks, repeat=len(sizes))
    best = min(max(burdens(sizes, list(some), ranks)) for some in every)
    assert max(burdens(sizes, hosts, ranks)) <= (4 / 3 - 1 / (3 * count)) * best + 1e-9


@few
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=200), st.integers(1, 16))
def test_no_rank_is_ahead_by_more_than_its_last_client(sizes: list[int], count: int) -> None:
    hosts = place(np.array(sizes), range(count))
    carried = burdens(sizes, hosts, range(count))
    for rank, burden in enumerate(carried):
        own = [size for size, host in zip(sizes, hosts, strict=True) if host == rank]
        assert not own or burden - min(own) <= min(carried)


@pytest.mark.parametrize("width", [1, 2, 3, 5, 9])
def test_waves_are_ascending_and_do_not_depend_on_ranks(width: int) -> None:
    drawn = population("clients=9", "participation=0.9", "partition.name=iid")
    for t, settled, in_step in itertools.product(range(3), (False, True), (False, True)):
        several = [
            Placement(drawn, ranks, width, settled, in_step).waves(t)
            for ranks in ([0], [1, 2], [0, 1, 2, 3])
        ]
        for waves in several:
            clients = [client for wave in waves for client in wave.clients]
            assert tuple(clients) == drawn.sample(t)
            sizes = [len(wave.clients) for wave in waves]
            assert sizes[:-1] == [width] * (len(sizes) - 1)
            assert 0 < sizes[-1] <= width
        parts = [[wave.clients for wave in waves] for waves in several]
        assert parts[0] == parts[1] == parts[2]
        hosts = {host for wave in several[2] for host in wave.hosts}
        assert hosts <= {0, 1, 2, 3}
        assert len(hosts) > 1 or (width == 1 and not (settled or in_step))


def test_each_wave_is_spread_by_load_unless_clients_are_settled() -> None:
    drawn = population("clients=8", "participation=0.5", "partition.alpha=0.3")
    homes = place(drawn.sizes, [1, 2, 3])
    moved = False
    for t in range(12):
        (free,), (settled,) = (
            Placement(drawn, [1, 2, 3], 9, keeps).waves(t) for keeps in (False, True)
        )
        assert list(free.hosts) == place(drawn.sizes[list(free.clients)], [1, 2, 3])
        assert list(settled.hosts) == [homes[client] for client in settled.clients]
        moved = moved or free.hosts != settled.hosts
    assert moved


def test_clients_that_a_rank_hosts_are_those_that_settle_there() -> None:
    drawn = population("clients=8", "partition.alpha=0.3")
    placement = Placement(drawn, [1, 2, 3], 10, is_settled=True)
    (wave,) = placement.waves(0)
    assert [placement.hosted(rank) for rank in range(4)] == [wave.on(r) for r in range(4)]
    assert placement.hosted(0) == ()
    assert Placement(drawn, range(1), 10).hosted(0) == tuple(range(8))


def test_clients_settle_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Placing takes all clients, however few are sampled."""
    drawn, placed = population("clients=8", "participation=0.5", "partition.name=iid"), []
    monkeypatch.setattr(
        "fedmpi.clients.placement.place",
        lambda loads, ranks: placed.append(ranks) or place(loads, ranks),
    )
    for ranks in ([0], [1, 2], [1, 2, 3]):
        placement, homes = Placement(drawn, ranks, 9, is_settled=True), place(drawn.sizes, ranks)
        for t in range(5):
            (wave,) = placement.waves(t)
            assert list(wave.hosts) == [homes[client] for client in wave.clients]
    assert placed == [[0], [1, 2], [1, 2, 3]]


def test_a_wave_knows_who_is_on_a_rank() -> None:
    wave = Wave((2, 5, 7, 9), (1, 0, 1, 3))
    assert [wave.on(rank) for rank in range(4)] == [(5,), (2, 7), (), (9,)]
    assert wave.only((9, 2, 5)) == Wave((9, 2, 5), (3, 1, 0))


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_halves_are_even_at_every_step(count: int) -> None:
    drawn = population(*UNEVEN)
    placement = Placement(drawn, [0], 9)
    assert len({drawn.steps(0, client) for client in range(9)}) > 4
    for t in range(6):
        clients = range(1, 1 + count)
        halves = placement.halves(t, clients)
        assert len(halves) == min(2, count)
        assert sorted(client for half in halves for client in half) == list(clients)
        for step in range(max(drawn.steps(0, client) for client in clients)):
            busy = [sum(drawn.steps(0, client) > step for client in half) for half in halves]
            assert max(busy) - min(busy) <= 1 or count == 1
        assert halves == placement.halves(t, tuple(reversed(clients))), "the same for all who ask"


def test_halves_are_drawn_each_round() -> None:
    """Who is in the first, and in which order; the seed repeats it."""
    drawn, again, other = (
        Placement(population(*UNEVEN, *words), [0], 9) for words in ((), (), ("seed=2",))
    )
    found = [drawn.halves(t, range(9)) for t in range(30)]
    assert found == [again.halves(t, range(9)) for t in range(30)]
    assert found != [other.halves(t, range(9)) for t in range(30)]
    first = {client for halves in found for client in halves[0]}
    second = {client for halves in found for client in halves[1]}
    assert first == second == set(range(9))
    pairs = [(halves[0].index(2), halves[0].index(5)) for halves in found if {2, 5} <= {*halves[0]}]
    assert {one < other for one, other in pairs} == {False, True}


@pytest.mark.parametrize("ranks", [[0], [1, 2], [1, 2, 3]])
def test_in_step_each_rank_has_as_many_busy_clients(ranks: list[int]) -> None:
    """Of each half, at each step; by samples one rank would have many small ones."""
    drawn = population(*UNEVEN)
    placement = Placement(drawn, ranks, 9, in_step=True)
    (by_samples,) = Placement(drawn, ranks, 9).waves(0)
    worst = 0
    for t in range(6):
        (wave,) = placement.waves(t)
        for half in placement.halves(t, wave.clients):
            for step in range(max(drawn.steps(0, client) for client in half)):
                busy = [c for c in half if drawn.steps(0, c) > step]
                counts = [len(set(busy) & set(wave.on(rank))) for rank in ranks]
                assert max(counts) - min(counts) <= 1
                counts = [len(set(busy) & set(by_samples.on(rank))) for rank in ranks]
                worst = max(worst, max(counts) - min(counts))
    assert worst > 1 or len(ranks) == 1
