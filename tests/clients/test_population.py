"""Who holds what and who takes part: all of it from the settings alone."""

import hashlib
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings as effort
from mpi4py import MPI

from fedmpi import config
from fedmpi.clients.population import EVERYONE_ROUND, Population
from fedmpi.config import ConfigError
from fedmpi.data import Dataset
from tests.small import run, small

few = effort(max_examples=80, deadline=None)
UNEVEN = ("clients=9", "partition.alpha=0.3", "partition.minimum=1", "batch=4")
"""Clients whose numbers of steps differ."""


def population(*words: str) -> Population:
    """The clients of the small run with these words; nine people made its samples."""
    settings = small(*words)
    data: Dataset = config.module("data", settings.data.name).load(settings.data, settings.seed)
    people = [np.arange(len(labels)) % 9 for labels in (data.train_y, data.test_y)]
    return Population(settings, replace(data, train_owners=people[0], test_owners=people[1]))


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
    "classes": (),
    "shards": (),
}
"""Partitions that need no file, and no more of the data than labels and owners."""


def test_every_partition_is_among_them() -> None:
    assert {*EVERY, "frozen", "pachinko"} == set(config.names("partition"))


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
        assert drawn.steps(0, client) == wanted(size)
        assert drawn.steps(0, client, 4) == 4 * -(-size // drawn.settings.batch)


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
