"""A band that a round's radios share, and transmissions that fail, against closed forms."""

import numpy as np
import pytest
from mpi4py import MPI
from numpy import ndarray

from fedmpi.clients.devices import Fleet, earliest
from tests.plain import families, member
from tests.small import alike, refusal, run, small

WORLD = MPI.COMM_WORLD
RADIO = (
    "devices.tiers=[{name='a', gflops=2.0, link={kind='wireless', power=0.2, server_power=2.0, "
    "distance=[10, 200], exponent=3.5, loss=30.0, noise=-170.0, latency=0.25}}]"
)
STILL = RADIO.replace("latency", "fading=false, latency")
MIXED = (
    "devices.tiers=[{name='wired', share=0.4}, {name='radio', share=0.6, gflops=0.01, "
    "link={kind='wireless', distance=[50, 300]}}]"
)
BAND = "devices.spectrum.bandwidth=4.0"
MANY = ("clients=8", "partition.minimum=1")


def costs(fleet: Fleet, count: int, t: int = 0, flops: float = 0.0) -> dict[str, ndarray]:
    """The costs of the first clients, each of which sends 1 MB up and twice as much down."""
    moved, messages = np.tile([10**6, 2 * 10**6], (count, 1)), np.tile([1, 2], (count, 1))
    return fleet.cost(t, range(count), moved, messages, np.full(count, flops))


def test_twice_as_many_clients_halve_each_rate() -> None:
    """And energy stays: half of the power for twice as long."""
    fleet = Fleet(small(RADIO, BAND, *MANY))
    two, four = (costs(fleet, count) for count in (2, 4))
    alone = costs(fleet, 1)
    for way, waits in (("sim_up", 0.25), ("sim_down", 0.5)):
        rates = [1 / (found[way] - waits) for found in (alone, two, four)]
        np.testing.assert_allclose(rates[2][:2], rates[1] / 2, rtol=1e-12)
        np.testing.assert_allclose(rates[1][:1], rates[0] / 2, rtol=1e-12)
    assert two["sim_transmit_joules"].tolist() == four["sim_transmit_joules"][:2].tolist()
    assert two["sim_share"].tolist() == [0.5, 0.5] and set(four["sim_share"]) == {0.25}


def test_the_rate_is_the_share_of_shannons() -> None:
    """By r = W log2(1 + P h / (N0 W)), of the whole band W."""
    fleet = Fleet(small(STILL, BAND, *MANY))
    found = costs(fleet, 3)
    for client in range(3):
        gain, noise = 1e-3 * fleet.distances[client] ** -3.5, 10**-20 * 4e6
        for way, power, count, size in (("sim_up", 0.2, 1, 8e6), ("sim_down", 2.0, 2, 16e6)):
            rate = 4e6 * np.log2(1 + power * gain / noise)
            wanted = 3 * size / rate + 0.25 * count
            assert found[way][client] == pytest.approx(wanted, rel=1e-12)
        airtime = 8e6 / (4e6 * np.log2(1 + 0.2 * gain / noise))
        assert found["sim_transmit_joules"][client] == pytest.approx(0.2 * airtime, rel=1e-12)


def test_a_band_shared_by_bytes() -> None:
    fleet = Fleet(small(RADIO, BAND, "devices.spectrum.sharing=bytes", *MANY))
    moved = np.array([[1000, 0], [1000, 2000], [4000, 0], [0, 0]])
    messages = (moved > 0).astype(int)
    found = fleet.cost(0, range(4), moved, messages, np.zeros(4))
    np.testing.assert_allclose(found["sim_share"], np.array([1, 3, 4, 0]) / 8, rtol=1e-12)
    assert found["sim_seconds"][3] == 0
    nothing = fleet.cost(0, range(4), 0 * moved, messages, np.zeros(4))
    assert nothing["sim_share"].tolist() == [0.25] * 4
    assert np.isfinite(nothing["sim_seconds"]).all()


def test_the_earliest_end_of_two_is_the_root_of_a_square() -> None:
    """By a / (T - c) + b / (T - d) = 1, solved for T."""
    for (a, b), (c, d) in (((1.0, 2.0), (0.0, 0.0)), ((3.0, 0.5), (1.0, 4.0))):
        found = earliest(np.array([c, d]), np.array([a, b]))
        linear, constant = -(c + d + a + b), c * d + a * d + b * c
        end = (-linear + np.sqrt(linear**2 - 4 * constant)) / 2
        np.testing.assert_allclose(found, [a / (end - c), b / (end - d)], rtol=1e-9)
        assert found.sum() == pytest.approx(1, rel=1e-9)


def test_no_other_shares_end_earlier() -> None:
    random = np.random.default_rng(1)
    others, sends = random.exponential(2.0, 5), random.exponential(1.0, 5)
    found = earliest(others, sends)
    ends = others + sends / found
    np.testing.assert_allclose(ends, ends[0], rtol=1e-9)
    tried = random.dirichlet(np.ones(5), 4000)
    assert (others + sends / tried).max(1).min() > ends[0]
    assert earliest(others, np.where(np.arange(5) == 2, 0, sends))[2] == 0
    assert np.isnan(earliest(others, np.zeros(5))).all()
    assert np.isnan(earliest(others, np.where(np.arange(5) == 2, np.inf, sends))).all()


def test_in_a_run_all_radios_end_together_and_sooner() -> None:
    words = ("method.name=topk", *MANY, RADIO, BAND, "devices.stragglers=0.4")
    sharings = {
        sharing: run(small(*words, f"devices.spectrum.sharing={sharing}"))
        for sharing in ("equal", "bytes", "minmax")
    }
    ends = sharings["minmax"].tables["clients"]["sim_seconds"].reshape(2, 8)
    np.testing.assert_allclose(ends, ends[:, :1].repeat(8, 1), rtol=1e-9)
    for sharing, found in sharings.items():
        assert found.sha256 == sharings["equal"].sha256
        shares = found.tables["clients"]["sim_share"].reshape(2, 8)
        np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-9)
        slowest = found.tables["rounds"]["sim_seconds"]
        assert sharing == "minmax" or (slowest > ends[:, 0]).all()


def test_wires_have_no_part_of_the_band() -> None:
    found = run(small("clients=10", "partition.minimum=1", MIXED, BAND))
    rows = found.tables["clients"]
    is_radio = rows["tier"] == b"radio"
    assert (rows["sim_share"][~is_radio] == 1).all()
    np.testing.assert_allclose(rows["sim_share"][is_radio], 1 / 6)


def test_in_turns_each_has_the_whole_band() -> None:
    found = run(small("method.name=splitlearning", RADIO, BAND))
    assert (found.tables["clients"]["sim_share"] == 1).all()


def test_what_fails_is_sent_again() -> None:
    """Times and energy grow with the transmissions; on average there are 1 / (1 - p) of each."""
    words = (STILL, *MANY)
    fleet, sure = Fleet(small(*words, "devices.spectrum.outage=0.3")), Fleet(small(*words))
    moved, messages = np.array([[10**6, 0]] * 8), np.array([[5, 0]] * 8)
    about = range(8), moved, messages, np.zeros(8)
    often = []
    for t in range(200):
        found, plain = fleet.cost(t, *about), sure.cost(t, *about)
        factor = 1 + found["sim_repeats"] / 5
        np.testing.assert_allclose(found["sim_up"], factor * plain["sim_up"], rtol=1e-12)
        joules = factor * plain["sim_transmit_joules"]
        np.testing.assert_allclose(found["sim_transmit_joules"], joules, rtol=1e-12)
        assert (found["sim_down"] == 0).all() and (plain["sim_repeats"] == 0).all()
        often.append(factor)
    # The variance of a number of failures before 5 successes is 5 p / (1 - p)^2.
    error = np.sqrt(5 * 0.3 / 0.7**2) / 5 / np.sqrt(np.size(often))
    assert abs(np.mean(often) - 1 / 0.7) < 4 * error
    down = fleet.cost(0, range(8), moved[:, ::-1], messages[:, ::-1], np.zeros(8))
    assert down["sim_repeats"].sum() > 0 and (down["sim_transmit_joules"] == 0).all()


def test_wires_never_fail_and_outages_change_nothing_else() -> None:
    words = ("method.name=splitfed", "clients=10", "partition.minimum=1", MIXED)
    plain, found = run(small(*words)), run(small(*words, "devices.spectrum.outage=0.5"))
    rows = found.tables["clients"]
    is_radio = rows["tier"] == b"radio"
    assert (rows["sim_repeats"][~is_radio] == 0).all() and (rows["sim_repeats"][is_radio] > 0).any()
    for table in ("clients", "rounds"):
        for column in found.tables[table].dtype.names:
            if column.startswith("sim_"):
                found.tables[table][column] = plain.tables[table][column] = 0
    alike(found, plain)


def test_uploads_that_fail_may_be_dropped() -> None:
    """Of radios alone, beside other losses, which stay the same."""
    tiers, outage = ("clients=10", "partition.minimum=1", MIXED), "devices.spectrum.outage=0.3"
    words = (*tiers, outage, "devices.spectrum.failed=drop", "devices.dropouts=0.2")
    fleet, plain = Fleet(small(*words)), Fleet(small(*tiers, "devices.dropouts=0.2"))
    radios = [client for client in range(10) if fleet.is_radio(client)]
    lost, others = (
        np.array([[one.is_lost(t, client) for client in range(10)] for t in range(300)])
        for one in (fleet, plain)
    )
    assert (lost >= others).all()
    wires = np.setdiff1d(np.arange(10), radios)
    np.testing.assert_array_equal(lost[:, wires], others[:, wires])
    assert lost[:, radios].mean() == pytest.approx(1 - 0.8 * 0.7, abs=0.05)
    found = run(small("method.name=topk", *words[:-1], "rounds=4"))
    rows = found.tables["clients"]
    assert rows["lost"].any() and set(rows["tier"][rows["lost"]]) == {b"radio"}
    assert (rows["sim_repeats"] == 0).all()
    assert not any(fleet.is_lost(-1, client) for client in range(10))


@pytest.mark.parallel([1, 3])
@families
def test_ranks_do_not_matter(family: str) -> None:
    words = (MIXED, BAND, "devices.spectrum.sharing=minmax", "devices.spectrum.outage=0.2")
    settings = small(*member(family, "clients=6", "partition.minimum=1", *words))
    ours, alone = run(settings, WORLD), run(settings)
    if WORLD.rank == 0:
        assert ours.sha256 == alone.sha256
        for column in ("sim_up", "sim_down", "sim_share", "sim_repeats", "sim_transmit_joules"):
            one, other = (found.tables["clients"][column] for found in (ours, alone))
            np.testing.assert_array_equal(one, other)
            assert np.isfinite(one).all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((BAND,), "devices.spectrum.bandwidth = 4.0: wanted devices.tiers with a link of kind"),
        (("devices.spectrum.outage=0.1",), "devices.spectrum.outage = 0.1: wanted devices.tiers"),
        (
            (RADIO, "devices.spectrum.sharing=bytes"),
            "wanted devices.spectrum.bandwidth, found none",
        ),
        ((RADIO, "devices.spectrum.failed=drop"), "wanted an outage above 0"),
        (
            (RADIO.replace("power=0.2", "bandwidth=2.0"), BAND),
            "devices.tiers.0.link.bandwidth = 2.0: wanted the default beside",
        ),
        ((RADIO, BAND, "devices.deadline=5.0"), "wanted links whose rates are known before"),
        (
            (RADIO, "devices.spectrum.outage=0.1", "devices.deadline=5.0"),
            "wanted links whose rates are known before",
        ),
        ((RADIO, "devices.spectrum.outage=1.0"), "devices.spectrum.outage = 1.0: wanted"),
    ],
)
def test_what_is_refused(words: tuple[str, ...], said: str) -> None:
    assert said in refusal(*words)


def test_a_deadline_may_stand_beside_dropped_uploads() -> None:
    words = (RADIO, "devices.spectrum.outage=0.5", "devices.spectrum.failed=drop")
    found = run(small(*words, "devices.deadline=900.0"))
    assert found.tables["rounds"]["lost"].sum() > 0
