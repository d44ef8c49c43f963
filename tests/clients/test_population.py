"""Who holds what, who takes part, who hosts whom: all of it from the settings alone."""

import hashlib
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from mpi4py import MPI

from fedmpi import config
from fedmpi.clients.population import EVERYONE_ROUND, Population, Wave, place
from fedmpi.config import ConfigError
from fedmpi.data import Dataset
from tests.small import run, small

few = effort(max_examples=80, deadline=None)
loads = st.lists(st.integers(1, 50), min_size=1, max_size=7)
UNEVEN = ("clients=9", "partition.alpha=0.3", "partition.minimum=1", "batch=4")
"""Clients whose numbers of steps differ."""


def population(*words: str) -> Population:
    """The clients of the small run with these words; nine people made its samples."""
    settings = small(*words)
    data: Dataset = config.module("data", settings.data.name).load(settings.data, settings.seed)
    people = [np.arange(len(labels)) % 9 for labels in (data.train_y, data.test_y)]
    return Population(settings, replace(data, train_owners=people[0], test_owners=people[1]))


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


@pytest.mark.parametrize(
    ("share", "clients", "count"),
    [(1.0, 5, 5), (0.4, 5, 2), (0.1, 5, 1), (0.01, 20, 1), (0.5, 20, 10), (0.33, 9, 3)],
)
def test_a_sample_is_ascending_of_the_right_size_and_new_each_round(
    share: float, clients: int, count: int
) -> None:
    words = (f"participation={share}", f"clients={clients}", "partition.name=iid")
    one, other = population(*words), population(*words)
    samples = [one.sample(t) for t in range(20)]
    for t, sample in enumerate(samples):
        assert len(sample) == count
        assert list(sample) == sorted(set(sample))
        assert set(sample) <= set(range(clients))
        assert other.sample(t) == sample, "whoever asks, and whatever was asked before"
    assert (len(set(samples)) > 1) == (count < clients)
    assert one.sample(EVERYONE_ROUND) == tuple(range(clients))
    if 1 < count < clients:
        seeded = population(*words, "seed=2")
        assert samples != [seeded.sample(t) for t in range(20)]


def test_samples_are_uniform() -> None:
    """600 rounds of 3 of 10 clients: 180 times each, give or take five standard deviations."""
    drawn = population("participation=0.3", "clients=10", "partition.name=iid")
    counts = np.bincount([client for t in range(600) for client in drawn.sample(t)], minlength=10)
    assert np.abs(counts - 180).max() < 5 * np.sqrt(600 * 0.3 * 0.7)


@pytest.mark.parametrize("width", [1, 2, 3, 5, 9])
def test_waves_are_ascending_and_do_not_depend_on_ranks(width: int) -> None:
    drawn = population("clients=9", "participation=0.9", "partition.name=iid")
    for t, settled, in_step in itertools.product(range(3), (False, True), (False, True)):
        several = [
            drawn.waves(t, width, ranks, settled, in_step) for ranks in ([0], [1, 2], [0, 1, 2, 3])
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
        (free,), (settled,) = (drawn.waves(t, 9, [1, 2, 3], keeps) for keeps in (False, True))
        assert list(free.hosts) == place(drawn.sizes[list(free.clients)], [1, 2, 3])
        assert list(settled.hosts) == [homes[client] for client in settled.clients]
        moved = moved or free.hosts != settled.hosts
    assert moved


def test_clients_that_a_rank_hosts_are_those_that_settle_there() -> None:
    drawn = population("clients=8", "partition.alpha=0.3")
    (wave,) = drawn.waves(0, 10, [1, 2, 3], settled=True)
    assert [drawn.hosted([1, 2, 3], rank) for rank in range(4)] == [wave.on(r) for r in range(4)]
    assert drawn.hosted([1, 2, 3], 0) == ()
    assert drawn.hosted(range(1), 0) == tuple(range(8))


def test_clients_settle_once_for_each_set_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Placing takes all clients, however few are sampled."""
    drawn, placed = population("clients=8", "participation=0.5", "partition.name=iid"), []
    monkeypatch.setattr(
        "fedmpi.clients.population.place",
        lambda loads, ranks: placed.append(ranks) or place(loads, ranks),
    )
    for t, ranks in itertools.product(range(5), ([0], [1, 2], [1, 2, 3])):
        (wave,) = drawn.waves(t, 9, ranks, settled=True)
        homes = place(drawn.sizes, ranks)
        assert list(wave.hosts) == [homes[client] for client in wave.clients]
    assert placed == [(0,), (1, 2), (1, 2, 3)]


def test_a_wave_knows_who_is_on_a_rank() -> None:
    wave = Wave((2, 5, 7, 9), (1, 0, 1, 3))
    assert [wave.on(rank) for rank in range(4)] == [(5,), (2, 7), (), (9,)]
    assert wave.only((9, 2, 5)) == Wave((9, 2, 5), (3, 1, 0))


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_halves_are_even_at_every_step(count: int) -> None:
    drawn = population(*UNEVEN)
    assert len({drawn.steps(client) for client in range(9)}) > 4
    for t in range(6):
        clients = range(1, 1 + count)
        halves = drawn.halves(t, clients)
        assert len(halves) == min(2, count)
        assert sorted(client for half in halves for client in half) == list(clients)
        for step in range(max(drawn.steps(client) for client in clients)):
            busy = [sum(drawn.steps(client) > step for client in half) for half in halves]
            assert max(busy) - min(busy) <= 1 or count == 1
        assert halves == drawn.halves(t, tuple(reversed(clients))), "the same for all who ask"


def test_halves_are_drawn_each_round() -> None:
    """Who is in the first, and in which order; the seed repeats it."""
    drawn, again = population(*UNEVEN), population(*UNEVEN)
    found = [drawn.halves(t, range(9)) for t in range(30)]
    assert found == [again.halves(t, range(9)) for t in range(30)]
    assert found != [population(*UNEVEN, "seed=2").halves(t, range(9)) for t in range(30)]
    first = {client for halves in found for client in halves[0]}
    second = {client for halves in found for client in halves[1]}
    assert first == second == set(range(9))
    pairs = [(halves[0].index(2), halves[0].index(5)) for halves in found if {2, 5} <= {*halves[0]}]
    assert {one < other for one, other in pairs} == {False, True}


@pytest.mark.parametrize("ranks", [[0], [1, 2], [1, 2, 3]])
def test_in_step_each_rank_has_as_many_busy_clients(ranks: list[int]) -> None:
    """Of each half, at each step; by samples one rank would have many small ones."""
    drawn = population(*UNEVEN)
    (by_samples,) = drawn.waves(0, 9, ranks, False)
    worst = 0
    for t in range(6):
        (wave,) = drawn.waves(t, 9, ranks, False, in_step=True)
        for half in drawn.halves(t, wave.clients):
            for step in range(max(drawn.steps(client) for client in half)):
                busy = [c for c in half if drawn.steps(c) > step]
                counts = [len(set(busy) & set(wave.on(rank))) for rank in ranks]
                assert max(counts) - min(counts) <= 1
                counts = [len(set(busy) & set(by_samples.on(rank))) for rank in ranks]
                worst = max(worst, max(counts) - min(counts))
    assert worst > 1 or len(ranks) == 1


@pytest.mark.parametrize("weights", ["samples", "equal"])
def test_clients_count_by_samples_or_alike(weights: str) -> None:
    drawn = population(f"aggregation.weights={weights}")
    wanted = drawn.sizes.tolist() if weights == "samples" else [1] * 5
    assert [drawn.weight(0, client) for client in range(5)] == wanted


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("name", ["iid", "dirichlet"])
def test_held_out_samples_are_in_no_shard(share: float, name: str) -> None:
    drawn = population(f"validation={share}", f"partition.name={name}")
    assert len(drawn.held_out) == round(share * 300)
    everything = np.concatenate([drawn.held_out, *drawn.shards])
    assert np.sort(everything).tolist() == list(range(300))
    assert np.sort(np.concatenate(drawn.test_shards)).tolist() == list(range(60))
    assert drawn.sizes.tolist() == [len(shard) for shard in drawn.shards]


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        ([[0, 1], [1, 2]], r"name = 'iid'.* found 1 in several, .* 1, in: client 0, client 1"),
        ([[0, 1, 2, 3], [3, 2]], r"found 2 in several, the first of them, 2, in: client 0, client"),
        ([[0, 1, 1], [2]], r"found 1 in several, the first of them, 1, in: client 0$"),
    ],
)
def test_a_sample_in_two_places_is_refused(
    broken: list[list[int]], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def divide(*_: object) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return [np.array(shard) for shard in broken], [np.arange(60), np.arange(0)]

    monkeypatch.setattr("fedmpi.partitions.iid.divide", divide)
    with pytest.raises(ConfigError, match=match):
        population("clients=2", "partition.name=iid", "validation=0")


@pytest.mark.parametrize(
    ("tested", "match"),
    [
        ([[0, 1], [1, 2]], "each test sample in one place, found 1 .* 1, in: client 0, client 1"),
        ([[0, 0], [2]], "each test sample in one place, found 1 .* 0, in: client 0$"),
    ],
)
def test_a_test_sample_twice_is_refused(
    tested: list[list[int]], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def divide(*_: object) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return [np.arange(150), np.arange(150, 300)], [np.array(shard) for shard in tested]

    monkeypatch.setattr("fedmpi.partitions.iid.divide", divide)
    with pytest.raises(ConfigError, match=match):
        population("clients=2", "partition.name=iid", "validation=0")


EVERY = {
    "iid": (),
    "natural": (),
    "dirichlet": ("partition.alpha=0.5", "partition.minimum=5"),
    "dirichlet-balanced": ("partition.alpha=0.3",),
    "quantity": ("partition.alpha=0.3",),
    "shards": (),
}
"""Partitions that need no file."""


def test_every_partition_is_among_them() -> None:
    assert {*EVERY, "frozen"} == set(config.names("partition"))


@pytest.mark.parallel([1, 2, 3])
@pytest.mark.parametrize("name", EVERY)
def test_a_population_is_the_same_on_every_rank(name: str) -> None:
    drawn = population(f"partition.name={name}", *EVERY[name])
    owned = np.concatenate([drawn.held_out, *drawn.shards])
    assert np.sort(owned).tolist() == list(range(300))
    assert len(set(MPI.COMM_WORLD.allgather(drawn.fingerprint))) == 1


def test_more_clients_than_samples_are_left_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"clients = 200.*150.*validation = 0\.5"):
        population("clients=200", "validation=0.5", "partition.name=iid")


def test_the_fingerprint_changes_with_whatever_moves_a_sample() -> None:
    base = population().fingerprint
    assert population().fingerprint == base
    assert population("lr=0.5", "rounds=9", "participation=0.4").fingerprint == base
    others = ["seed=2", "clients=4", "partition.alpha=0.6", "validation=0.2", "data.samples=301"]
    others += ["data.test_samples=61", "partition.name=iid"]
    found = {base, *(population(word).fingerprint for word in others)}
    assert len(found) == 1 + len(others)


def test_the_fingerprint_tells_whose_a_sample_is() -> None:
    """The same samples in the same order, but another client's; and a held-out one that is lost."""
    found = set()
    for held, shards, test in (
        ([0], [[1], [2, 3]], [[0], []]),
        ([0], [[1, 2], [3]], [[0], []]),
        ([0], [[1], [2, 3]], [[], [0]]),
        ([9], [[1], [2, 3]], [[0], []]),
    ):
        drawn = population()
        drawn.held_out = np.array(held)
        drawn.shards = [np.array(shard, np.int64) for shard in shards]
        drawn.test_shards = [np.array(shard, np.int64) for shard in test]
        found.add(drawn.fingerprint)
    assert len(found) == 4


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("epochs=1", "batch=16"), lambda n: -(-n // 16)),
        (("epochs=3", "batch=16"), lambda n: 3 * -(-n // 16)),
        (("epochs=3", "batch=1000"), lambda n: 3),
        (("epochs=3", "local_steps=7"), lambda n: 7),
    ],
)
def test_steps(words: tuple[str, ...], wanted: object) -> None:
    drawn = population(*words)
    for client, size in enumerate(drawn.sizes.tolist()):
        assert drawn.steps(client) == wanted(size)
        assert drawn.steps(client, 4) == 4 * -(-size // drawn.settings.batch)


UNEQUAL = ("clients=5", "partition.name=quantity", "partition.alpha=0.7", "seed=3")
"""The largest client has twelve times the samples of the smallest."""


def successive(p: np.ndarray, count: int) -> np.ndarray:
    """How likely each is among `count` that are drawn one by one, each in proportion to p."""
    found = np.zeros(len(p))
    for order in itertools.permutations(range(len(p)), count):
        chance, left = 1.0, 1.0
        for one in order:
            chance, left = chance * p[one] / left, left - p[one]
        found[list(order)] += chance
    return found


@pytest.mark.parametrize("count", [1, 2, 4])
def test_samples_decide_who_is_drawn(count: int) -> None:
    """As often as they should to within five standard deviations, and neither else."""
    rounds = 1500
    drawn = population(*UNEQUAL, "sampling=samples", f"participation={count / 5}")
    p = drawn.sizes / drawn.sizes.sum()
    assert drawn.sizes.max() > 8 * drawn.sizes.min()
    samples = [drawn.sample(t) for t in range(rounds)]
    assert all(list(sample) == sorted(set(sample)) and len(sample) == count for sample in samples)
    found = np.bincount(np.concatenate(samples), minlength=5)
    wanted = successive(p, count)
    bound = 5 * np.sqrt(rounds * wanted * (1 - wanted))
    assert (np.abs(found - rounds * wanted) < bound).all()
    for wrong in (np.full(5, count / 5), *([] if count == 1 else [count * p])):
        assert (np.abs(found - rounds * wrong) > bound).any()
    assert [population(*UNEQUAL, "participation=0.2").sample(t) for t in range(9)] != samples[:9]


@pytest.mark.parametrize("sampling", ["uniform", "samples"])
@pytest.mark.parametrize("share", [0.4, 0.95, 1.0])
def test_what_a_word_counts(sampling: str, share: float) -> None:
    """Who was drawn by its samples counts as much as any other; otherwise its samples count."""
    drawn = population(*UNEQUAL, f"sampling={sampling}", f"participation={share}")
    alike = sampling == "samples" and share == 0.4
    for client, size in enumerate(drawn.sizes.tolist()):
        assert drawn.weight(0, client) == (1 if alike else size)
        assert drawn.weight(EVERYONE_ROUND, client) == size, "nobody was drawn"


def test_where_everyone_takes_part_nobody_is_drawn() -> None:
    """0.95 of five clients are five."""
    one, other = (run(small(*UNEQUAL, f"sampling={s}")) for s in ("uniform", "samples"))
    assert one.sha256 == other.sha256
    words = (*UNEQUAL, "participation=0.6")
    one, other = (run(small(*words, f"sampling={s}")) for s in ("uniform", "samples"))
    assert one.sha256 != other.sha256


def test_draws_of_old_runs_are_the_same() -> None:
    """Numbers that the first version drew."""
    drawn = population("participation=0.4", "clients=10", "partition.name=iid")
    assert [drawn.sample(t) for t in range(3)] == [(0, 1, 3, 9), (5, 7, 8, 9), (0, 2, 6, 7)]


def test_who_is_available_is_drawn_alike(tmp_path: Path) -> None:
    """Rounds of 4 of 10 clients, among seven, four, two, and again."""
    file = tmp_path / "a.csv"
    lines = ["client,first,last", *(f"{client},0,0" for client in range(3, 10))]
    lines += ["1,1,2", "8,1,2", "4,1,1", "6,1,1"]
    file.write_text("\n".join(lines))
    words = ("clients=10", "partition.name=iid", "participation=0.4")
    drawn = population(*words, "sampling=trace", f"trace={file}")
    samples = [drawn.sample(t) for t in range(1500)]
    assert set(samples[1::3]) == {(1, 4, 6, 8)}
    assert set(samples[2::3]) == {(1, 8)}, "fewer than would be drawn"
    assert len(set(samples[::3])) == 35, "any four of seven"
    found = np.bincount(np.concatenate(samples[::3]), minlength=10)
    assert found[:3].tolist() == [0, 0, 0]
    assert np.abs(found[3:] - 500 * 4 / 7).max() < 5 * np.sqrt(500 * 4 / 7 * 3 / 7)
    assert drawn.sample(EVERYONE_ROUND) == tuple(range(10))
    assert {drawn.weight(0, client) for client in range(10)} == set(drawn.sizes.tolist())


def test_a_trace_of_everyone_is_as_none(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("client,first,last\n" + "".join(f"{client},0,0\n" for client in range(5)))
    words = ("participation=0.4", "rounds=3")
    with_trace = run(small(*words, "sampling=trace", f"trace={file}"))
    assert with_trace.sha256 == run(small(*words)).sha256


def test_a_trace_may_be_named_by_its_hash(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("client,first,last\n0,0,0\n")
    words, sha256 = ("sampling=trace", f"trace={file}"), hashlib.sha256(file.read_bytes())
    found = population(*words, f"trace_sha256={sha256.hexdigest()}").trace
    assert found is not None and found.sha256 == sha256.hexdigest()
    with pytest.raises(ConfigError, match=rf"trace_sha256 = {'0' * 64}: .*{sha256.hexdigest()}"):
        population(*words, f"trace_sha256={'0' * 64}")
    file.write_text("client,first,last\n5,0,0\n")
    with pytest.raises(ConfigError, match=r"a\.csv, line 2: no client 5; there are 0 to 4"):
        population(*words)
