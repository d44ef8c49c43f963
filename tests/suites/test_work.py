"""Unequal local work: epochs that are drawn, or the device's own, and a deadline of rounds."""

from math import floor

import numpy as np
import pytest
import torch
from mpi4py import MPI

from fedmpi import config
from fedmpi.engine import Engine
from tests.plain import METHODS, families, member
from tests.small import Run, refusal, run, small

WORLD = MPI.COMM_WORLD
DRAWN = ("epochs_to=4", "epochs=1", "rounds=3", "participation=0.6")
TIERS = (
    "devices.tiers=[{name='fast', share=0.4, gflops=1.0, link={kind='fixed', up=8.0, down=16.0, "
    "latency=0.01}}, {name='slow', share=0.6, gflops=0.0001, link={kind='fixed', up=4.0, down=8.0, "
    "latency=0.02}}]"
)
"""A step of the small model takes the slow ones 0.91 s, and the fast ones no time to speak of."""
CONVERSING = [name for name in METHODS if config.module("method", name).Config.converses]
ALONE = [name for name in METHODS if name not in CONVERSING]


def batches(found: Run, client: int) -> int:
    """Batches in the client's samples."""
    return -(-int(found.engine.population.sizes[client]) // found.engine.settings.batch)


def epochs(found: Run) -> list[tuple[int, int, float]]:
    """Round, client and epochs, by the steps that a result tells."""
    rows = found.tables["clients"]
    rows = rows[rows["steps"] > 0]
    places = zip(rows["round"].tolist(), rows["client"].tolist(), rows["steps"], strict=True)
    return [(t, client, steps / batches(found, client)) for t, client, steps in places]


def test_epochs_are_drawn_uniformly_for_each_client_and_round() -> None:
    population = Engine(small("epochs=2", "epochs_to=5")).population
    drawn = np.array([[population.epochs(t, client) for client in range(5)] for t in range(400)])
    shares = np.array([(drawn == count).mean() for count in (2, 3, 4, 5)])
    np.testing.assert_allclose(shares, 0.25, atol=0.05)
    assert shares.sum() == 1
    correlations = np.corrcoef(drawn.T) - np.eye(5)
    assert np.abs(correlations).max() < 0.2
    again = Engine(small("epochs=2", "epochs_to=5", "lr=0.3")).population
    backwards = [[again.epochs(t, client) for client in range(5)] for t in reversed(range(400))]
    np.testing.assert_array_equal(drawn, backwards[::-1])
    other = Engine(small("epochs=2", "epochs_to=5", "seed=2")).population
    assert any(other.epochs(t, 0) != drawn[t, 0] for t in range(400))


def test_the_same_number_for_all_is_no_draw() -> None:
    wanted = run(small("epochs=2")).sha256
    assert run(small("epochs=2", "epochs_to=2")).sha256 == wanted
    tiers = "devices.tiers=[{name='a', epochs=2}]"
    assert run(small("epochs=7", tiers)).sha256 == wanted


def test_devices_have_epochs_of_their_own() -> None:
    tiers = "devices.tiers=[{name='a', share=0.4, epochs=3}, {name='b', share=0.6}]"
    for more, others in (((), {2}), (("epochs_to=4",), {2, 3, 4})):
        found = run(small(tiers, "epochs=2", "rounds=6", *more))
        fleet, seen = found.engine.fleet, {"a": set(), "b": set()}
        for _, client, count in epochs(found):
            seen[fleet.tier(client).name].add(count)
        assert seen == {"a": {3}, "b": others}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_unequal_epochs(method: str) -> None:
    found = run(small(f"method.name={method}", *DRAWN))
    assert np.isfinite(found.model).all()
    trained = epochs(found)
    assert {count for *_, count in trained} <= {1, 2, 3, 4}
    assert len({count for *_, count in trained}) > 1
    samples = {client: int(size) for client, size in enumerate(found.engine.population.sizes)}
    for t, client, count in trained:
        assert found.engine.population.seen(t, client) == count * samples[client]


@pytest.mark.parallel([1, 3])
@families
def test_ranks_do_not_matter(family: str) -> None:
    words = member(family, *DRAWN)
    found = run(small(*words), WORLD)
    if WORLD.rank == 0:
        assert found.sha256 == run(small(*words)).sha256


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedrep", "fednova", "finetune"])
def test_stacked_rows_take_as_many_steps_as_one_by_one(method: str) -> None:
    words = (f"method.name={method}", *DRAWN, "schedule=restarts", "momentum=0.5")
    one, stacked = run(small(*words)), run(small(*words, "rows=5"))
    np.testing.assert_allclose(stacked.model, one.model, rtol=1e-4, atol=2e-5)
    for found in (one, stacked):
        assert len({count for *_, count in epochs(found)}) > 1


def by_hand(found: Run, deadline: float) -> dict[int, int]:
    """How many steps of each client fit, by the numbers of `TIERS` and of the small model."""
    size, flops = 974, 3 * 2 * (64 * 12 + 12 * 8 + 8 * 10) * 16
    rates = {"fast": (8e6, 16e6, 0.01, 1e9), "slow": (4e6, 8e6, 0.02, 1e5)}
    fits = {}
    for client in range(5):
        up, down, latency, speed = rates[found.engine.fleet.tier(client).name]
        left = deadline - 2 * latency - 4 * size * 8 * (1 / up + 1 / down)
        fits[client] = floor(left / (flops / speed))
    return fits


def test_a_client_takes_the_steps_that_fit_before_the_deadline() -> None:
    found = run(small(TIERS, "devices.deadline=2.0", "epochs=3"))
    fits = by_hand(found, 2.0)
    assert sorted(fits.values())[:3] == [2, 2, 2] and sorted(fits.values())[3] > 1000
    rows = found.tables["clients"]
    for row in rows:
        planned = 3 * batches(found, int(row["client"]))
        assert row["steps"] == min(planned, fits[int(row["client"])])
    assert not rows["lost"].any()
    assert rows["sim_seconds"].max() <= 2.0
    assert (found.tables["rounds"]["sim_seconds"] <= 2.0).all()
    assert rows["sim_seconds"].max() > 1.5, "one more step would not have fitted"


def test_who_has_no_time_for_a_step_is_too_late() -> None:
    found = run(small(TIERS, "devices.deadline=0.5", "rounds=2"))
    rows = found.tables["clients"]
    slow = rows["tier"] == b"slow" if rows["tier"].dtype.kind == "S" else rows["tier"] == "slow"
    np.testing.assert_array_equal(rows["lost"], slow)
    assert slow.sum() == 6
    assert (rows["steps"][slow] == 1).all()
    assert (rows["sim_seconds"][slow] > 0.5).all()
    np.testing.assert_allclose(found.tables["rounds"]["sim_seconds"], 0.5)
    np.testing.assert_array_equal(found.tables["rounds"]["lost"], [3, 3])


def test_stragglers_take_fewer_steps() -> None:
    words = (TIERS, "devices.deadline=6.0", "devices.stragglers=0.5", "devices.slowdown=3.0")
    found = run(small(*words, "epochs=20", "rounds=4"))
    fleet, rows = found.engine.fleet, found.tables["clients"]
    left = {False: set(), True: set()}
    for row in rows:
        t, client = int(row["round"]), int(row["client"])
        if fleet.tier(client).name == "slow":
            left[fleet.is_slow(t, client)].add(int(row["steps"]))
    assert left == {False: {6}, True: {2}}


@pytest.mark.parametrize("method", ["scaffold", "spatl"])
def test_c_is_the_mean_of_all_c_k_if_some_are_too_late(method: str) -> None:
    """As after an upload that is lost on its way."""
    words = (f"method.name={method}", TIERS, "devices.stragglers=0.5", "devices.slowdown=5.0")
    found = run(small(*words, "devices.deadline=1.2", "rounds=6", "participation=0.8"))
    rows, engine = found.tables["clients"], found.engine
    assert 0 < rows["lost"].sum() < len(rows)
    for client in np.flatnonzero(engine.server.unheard.numpy()).tolist():
        engine.trainer.lose(client)
    own = torch.stack([engine.clients.variates.of(client) for client in range(5)])
    shares = torch.tensor([engine.population.share(client) for client in range(5)])
    np.testing.assert_allclose(engine.server.control, shares @ own, rtol=0, atol=1e-6)
    assert own.abs().max() > 1e-3


def test_control_variates_take_time_too() -> None:
    """The slow ones' messages take 12 ms both ways, and with control variates 23."""
    for method, steps in (("fedavg", {1}), ("scaffold", {0})):
        words = (f"method.name={method}", TIERS, "devices.deadline=0.965")
        engine = Engine(small(*words))
        slow = [client for client in range(5) if engine.fleet.tier(client).name == "slow"]
        assert {engine.population.fitting(0, client) for client in slow} == steps


@pytest.mark.parametrize("method", ALONE)
def test_every_method_that_trains_alone_has_deadlines(method: str) -> None:
    words = (f"method.name={method}", TIERS, "devices.deadline=1.2", "epochs=3", "rounds=3")
    found = run(small(*words))
    assert np.isfinite(found.model).all()
    rows = found.tables["clients"]
    trained = rows[rows["steps"] > 0]
    planned = [3 * batches(found, int(client)) for client in trained["client"]]
    assert (trained["steps"] < planned).any()


@pytest.mark.parametrize("method", CONVERSING)
def test_those_who_talk_in_every_step_have_none(method: str) -> None:
    why = refusal(f"method.name={method}", TIERS, "devices.deadline=2.5")
    assert "devices.deadline = 2.5: wanted a method whose clients train alone" in why


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("epochs=3", "epochs_to=2"), "epochs_to = 2: wanted at least epochs = 3"),
        (("epochs_to=3", "local_steps=4"), "epochs_to = 3: wanted no local_steps, found 4"),
        (
            ("devices.tiers=[{epochs=3}]", "local_steps=4"),
            "devices.tiers.0.epochs = 3: wanted no local_steps, found 4",
        ),
        (
            ("devices.tiers=[{epochs=3}]", "epochs_to=4"),
            "epochs_to = 4: wanted a kind of devices without epochs of its own",
        ),
        (("devices.deadline=2.0",), "devices.deadline = 2.0: wanted devices.tiers, found none"),
        (
            (
                *("method.name=heterofl", "method.assignment=dynamic"),
                *(TIERS, "devices.deadline=2.0"),
            ),
            "devices.deadline = 2.0: wanted method.assignment = 'fix', found 'dynamic'",
        ),
    ],
)
def test_what_cannot_be(words: tuple[str, ...], wanted: str) -> None:
    assert wanted in refusal(*words)
