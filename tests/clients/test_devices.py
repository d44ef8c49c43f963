"""Simulated devices against closed forms, and uploads that are lost against plain averages."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mpi4py import MPI
from scipy.special import exp1

from fedmpi.clients import burden
from fedmpi.clients.devices import (
    Fleet,
    capacity,
    path_gain,
    ring,
    seconds,
    shared_out,
    watts,
)
from fedmpi.config import ConfigError, Settings
from fedmpi.engine import Engine
from fedmpi.results import tables
from tests import plain
from tests.plain import METHODS, families, member, play
from tests.small import run, small

WORLD = MPI.COMM_WORLD
FIXED = "link={kind='fixed', up=2.0, down=8.0, latency=0.5, power=3.0}"
WIRED = f"devices.tiers=[{{name='a', gflops=0.5, power=7.0, {FIXED}}}]"
RADIO = (
    "devices.tiers=[{name='a', link={kind='wireless', bandwidth=0.5, power=0.2, server_power=2.0, "
    "distance=[10, 200], exponent=3.5, loss=30.0, noise=-170.0, latency=0.25}}]"
)
MIX = (
    "devices.tiers=[{name='slow', share=0.5, gflops=0.01}, {name='fast', share=0.3, gflops=3.0}, "
    "{name='far', share=0.2, link={kind='wireless', distance=[500, 900]}}]"
)


def radio(*words: str) -> Settings:
    """The small run, with many clients, each on a radio."""
    return small(RADIO, "clients=40", "partition.minimum=1", *words)


def test_a_fixed_link_takes_bits_by_rate_and_latency_by_message() -> None:
    fleet = Fleet(small(WIRED))
    moved, messages = np.array([[1_000_000, 3_000_000], [0, 0]]), np.array([[1, 4], [0, 0]])
    found = fleet.cost(0, [3, 1], moved, messages, np.array([2e9, 0.0]))
    # 8 Mbit at 2 Mbit/s, 24 at 8; half a second a message; 2 GFLOP at 0.5 a second.
    assert found["sim_up"].tolist() == [4 + 0.5, 0]
    assert found["sim_down"].tolist() == [3 + 4 * 0.5, 0]
    assert found["sim_compute"].tolist() == [4, 0]
    assert found["sim_seconds"].tolist() == [13.5, 0]
    assert found["sim_compute_joules"].tolist() == [7 * 4, 0]
    assert found["sim_transmit_joules"].tolist() == [3 * 4, 0], "none while a message is on its way"


def test_transfers() -> None:
    assert seconds(10**6, 8e6) == 1
    assert seconds(0, 0.0) == 0
    assert seconds(1, 0.0) == np.inf


def test_shannon() -> None:
    """As much signal as noise is a bit a second and Hz; fifteen times as much are four."""
    for ratio, bits in ((1, 1), (3, 2), (15, 4)):
        assert capacity(1e6, ratio * 1e6 * 2e-20, 1.0, 2e-20) == pytest.approx(bits * 1e6)
    # Little power: the capacity is P h / (N ln 2), however wide the channel is.
    assert capacity(1e9, 1e-3, 1e-12, 4e-21) == pytest.approx(1e-15 / 4e-21 / np.log(2), rel=2e-4)


def test_powers_and_losses() -> None:
    assert [watts(dbm) for dbm in (30, 0, -174)] == pytest.approx([1, 1e-3, 3.9810717e-21])
    assert path_gain(1, 3.5, 40) == pytest.approx(1e-4)
    assert path_gain(100, 2, 40) == pytest.approx(1e-8)
    assert path_gain(10, 3, 0) == pytest.approx(1e-3)


def test_rates_at_zero_fading_are_shannons() -> None:
    settings = small(RADIO.replace("latency", "fading=false, latency"))
    fleet = Fleet(settings)
    for client in range(5):
        gain = 1e-3 * fleet.distances[client] ** -3.5
        noise = 10**-20 * 5e5
        wanted = [5e5 * np.log2(1 + power * gain / noise) for power in (0.2, 2.0)]
        assert fleet.rates(0, client) == pytest.approx(wanted)
        assert fleet.rates(7, client) == fleet.rates(0, client)


def test_the_mean_of_rayleigh() -> None:
    """E log2(1 + r X) of an exponential X is exp(1 / r) E1(1 / r) / ln 2."""
    fleet = Fleet(radio())
    for client in (0, 1):
        gain, noise = 1e-3 * fleet.distances[client] ** -3.5, 10**-20 * 5e5
        found = np.array([fleet.rates(t, client) for t in range(4000)])
        for way, power in enumerate((0.2, 2.0)):
            ratio = power * gain / noise
            wanted = 5e5 * np.exp(1 / ratio) * exp1(1 / ratio) / np.log(2)
            deviation = found[:, way].std() / np.sqrt(len(found))
            assert abs(found[:, way].mean() - wanted) < 4 * deviation
            # Undone, what the channel made of the signal has a mean of 1, and so a deviation.
            power_gains = (2 ** (found[:, way] / 5e5) - 1) / ratio
            assert power_gains.mean() == pytest.approx(1, abs=0.07)
            assert power_gains.std() == pytest.approx(1, abs=0.1)
    assert fleet.rates(0, 0) != fleet.rates(1, 0) != fleet.rates(1, 1)


def test_both_ways_fade_alike() -> None:
    fleet = Fleet(radio().model_copy(update={"seed": 5}))
    ups, downs = np.array([fleet.rates(t, 0) for t in range(50)]).T
    assert (np.argsort(ups) == np.argsort(downs)).all()


def test_distances_are_even_over_the_ring() -> None:
    fleet = Fleet(small(RADIO, "clients=200", "data.samples=900", "partition.name=iid"))
    assert (fleet.distances >= 10).all() and (fleet.distances <= 200).all()
    inside = np.mean(fleet.distances < ring(10, 200, 0.5))
    assert inside == pytest.approx(0.5, abs=0.12)
    assert ring(0, 2, 0.25) == 1
    assert (ring(3, 9, 0), ring(5, 5, 0.7)) == (3, 5)


@pytest.mark.parametrize(
    ("count", "shares", "wanted"),
    [
        (10, (0.5, 0.3, 0.2), [5, 3, 2]),
        (7, (0.5, 0.3, 0.2), [4, 2, 1]),
        (1, (0.4, 0.6), [0, 1]),
        (3, (1 / 3, 1 / 3, 1 / 3), [1, 1, 1]),
        (1000, (0.001, 0.999), [1, 999]),
    ],
)
def test_tiers_meet_their_shares_to_rounding(
    count: int, shares: tuple[float, ...], wanted: list[int]
) -> None:
    assert shared_out(count, shares).tolist() == wanted


def test_which_client_has_which_device() -> None:
    fleet, again = (Fleet(small(MIX, "clients=10", "partition.minimum=1")) for _ in range(2))
    assert np.bincount(fleet.kinds).tolist() == [5, 3, 2]
    assert fleet.kinds.tolist() == again.kinds.tolist() != sorted(fleet.kinds)
    other = Fleet(small(MIX, "clients=10", "partition.minimum=1", "seed=2"))
    assert fleet.kinds.tolist() != other.kinds.tolist()
    is_radio = fleet.kinds == 2
    assert np.isnan(fleet.distances[~is_radio]).all()
    assert (fleet.distances[is_radio] >= 500).all()


def test_stragglers_compute_longer() -> None:
    words = (WIRED, "devices.stragglers=0.3", "devices.slowdown=4.0")
    fleet = Fleet(small(*words))
    nothing, flops = np.zeros((5, 2), np.int64), np.full(5, 1e9)
    slow = []
    for t in range(-1, 200):
        found = fleet.cost(t, range(5), nothing, nothing, flops)
        late = np.array([fleet.is_slow(t, client) for client in range(5)])
        assert found["sim_compute"].tolist() == np.where(late, 8.0, 2.0).tolist()
        assert (found["sim_compute_joules"] == 7 * found["sim_compute"]).all()
        slow.append(late)
    assert np.mean(slow) == pytest.approx(0.3, abs=0.06)


def test_more_dropouts_are_the_same_and_others() -> None:
    lost = {}
    for share in (0.0, 0.2, 0.5, 1.0):
        fleet = Fleet(small(f"devices.dropouts={share}"))
        lost[share] = {(t, c) for t in range(200) for c in range(5) if fleet.is_lost(t, c)}
        assert len(lost[share]) / 1000 == pytest.approx(share, abs=0.05)
        assert not any(fleet.is_lost(-1, client) for client in range(5))
    assert lost[0.0] < lost[0.2] < lost[0.5] < lost[1.0]


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_the_mean_is_over_those_who_report(name: str) -> None:
    """By plain torch: who is lost has trained, but counts neither in the sum nor in the weight."""
    words = (f"method.name={name}", "devices.dropouts=0.4", "rounds=6", "lr=0.3")
    engine = Engine(small(*words))
    mu = engine.settings.proximal
    w, seen = engine.server.w.clone(), []
    for t, outcome in enumerate(play(engine)):
        total, samples = torch.zeros_like(w), 0
        rows = outcome.tables["clients"]
        for row in rows[~rows["lost"]]:
            total += int(row["samples"]) * plain.train(engine, t, int(row["client"]), w, mu)[0]
            samples += int(row["samples"])
        w = total / samples if samples else w
        torch.testing.assert_close(engine.server.w, w, rtol=1e-4, atol=1e-6)
        w = engine.server.w.clone()
        seen.append(int(rows["lost"].sum()))
        assert outcome.tables["rounds"]["lost"] == seen[-1]
        assert (rows["up_gradient"] == 4 * engine.flat.size).all(), "what is lost has travelled"
    assert 0 < sum(seen) < 30


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_lost_front_takes_its_back_with_it(version: str) -> None:
    """Of the whole models that clients and server brought about, but for v2's one back."""
    engine = Engine(
        small("method.name=splitfed", f"method.version={version}", "devices.dropouts=0.4")
    )
    front, some = engine.server.sections.front, False
    w = engine.server.w.clone()
    for outcome in play(engine):
        rows = outcome.tables["clients"]
        there = rows[~rows["lost"]]
        wholes = [engine.server.personal(int(client)) for client in there["client"]]
        assert all(engine.server.personal(int(c)) is None for c in rows["client"][rows["lost"]])
        assert np.isnan(rows["personal"][rows["lost"]]).all()
        some |= 0 < len(there) < len(rows)
        # A front is known by its update: personal adds it to the model that has moved since.
        fronts = torch.stack([engine.server.updates[int(c)] for c in there["client"]])
        weights = torch.tensor(there["samples"] / there["samples"].sum(), dtype=torch.float32)
        moved = engine.server.w[:front] - w[:front]
        torch.testing.assert_close(moved, weights @ fronts, rtol=1e-4, atol=1e-6)
        backs = torch.stack([whole[front:] for whole in wholes])
        torch.testing.assert_close(engine.server.w[front:], weights @ backs, rtol=1e-4, atol=1e-6)
        w = engine.server.w.clone()
    assert some


@pytest.mark.parametrize(
    "case",
    [*((name,) for name in METHODS), ("splitfed", "method.version=v2")],
    ids=" ".join,
)
def test_where_all_are_lost_the_model_stays(case: tuple[str, ...]) -> None:
    engine = Engine(small(f"method.name={case[0]}", *case[1:], "devices.dropouts=1.0"))
    models, start = [], engine.server.w.clone()
    for outcome in play(engine):
        models.append(engine.server.w.clone())
        (row,), rows = outcome.tables["rounds"], outcome.tables["clients"]
        assert row["lost"] == (5 if row["round"] >= 0 else 0)
        assert row["up"] > 0 and np.isfinite(rows["loss"][rows["round"] >= 0]).all()
    if -1 not in engine.population.agreements:  # which prunes it once
        assert torch.equal(models[0], start)
    assert torch.equal(models[0], models[-1])


@pytest.mark.parallel([1, 3])
@families
def test_ranks_do_not_matter(family: str) -> None:
    words = (MIX, "devices.dropouts=0.5", "devices.stragglers=0.3", "devices.server_gflops=1.0")
    settings = small(*member(family, "clients=6", "partition.minimum=1", "rounds=3", *words))
    ours, alone = run(settings, WORLD), run(settings)
    if WORLD.rank == 0:
        assert ours.sha256 == alone.sha256
        assert ours.tables["rounds"]["lost"].sum() > 0
        for table, names in (
            ("clients", [*list(tables.CLIENTS)[list(tables.CLIENTS).index("lost") :], "up_header"]),
            ("rounds", ["lost", "flops", "server_flops", "sim_seconds", "sim_joules"]),
        ):
            for column in names:
                one, other = (found.tables[table][column] for found in (ours, alone))
                np.testing.assert_array_equal(one, other)
                assert (one.dtype.kind != "f") or np.isfinite(one).all()


@pytest.mark.parametrize("name", METHODS)
def test_devices_change_neither_the_model_nor_the_bytes(name: str) -> None:
    words = (f"method.name={name}", "clients=6", "partition.minimum=1")
    without, simulated = run(small(*words)), run(small(*words, MIX))
    assert without.sha256 == simulated.sha256
    for column in tables.BYTES:
        np.testing.assert_array_equal(*(r.tables["clients"][column] for r in (without, simulated)))
    for table in ("clients", "rounds"):
        for column in without.tables[table].dtype.names:
            alone, there = (found.tables[table][column] for found in (without, simulated))
            if column.endswith("flops") and without.engine.method.converses:
                np.testing.assert_array_equal(alone, there)
            elif column.startswith("sim_") or column.endswith("flops"):
                assert np.isnan(alone).all(), column
                assert (there >= 0).all(), column
    assert set(without.tables["clients"]["tier"]) == {b""}
    assert set(simulated.tables["clients"]["tier"]) == {b"slow", b"fast", b"far"}


def test_a_round_takes_as_long_as_its_slowest_and_the_server() -> None:
    words = ("method.name=splitfed", "participation=0.5", MIX, "devices.server_gflops=0.002")
    found = run(small(*words, "clients=6", "partition.minimum=1"))
    for row in found.tables["rounds"]:
        rows = found.tables["clients"][found.tables["clients"]["round"] == row["round"]]
        assert row["server_flops"] > 0
        slowest = rows["sim_seconds"].max()
        assert row["sim_seconds"] == pytest.approx(slowest + row["server_flops"] / 2e6)
        joules = rows["sim_compute_joules"].sum() + rows["sim_transmit_joules"].sum()
        assert row["sim_joules"] == pytest.approx(joules)
        assert row["flops"] == rows["flops"].sum()


def test_turns_one_after_the_other_add_up() -> None:
    found = run(small("method.name=splitlearning", MIX, "clients=6", "partition.minimum=1"))
    for row in found.tables["rounds"]:
        rows = found.tables["clients"][found.tables["clients"]["round"] == row["round"]]
        assert row["sim_seconds"] == pytest.approx(rows["sim_seconds"].sum())
        assert row["sim_seconds"] > 1.5 * rows["sim_seconds"].max()


def test_messages_of_a_conversation_have_a_latency_each() -> None:
    """The front and its update, and activations and gradients of each step."""
    found = run(small("method.name=splitfed", "rounds=1", WIRED, "epochs=2"))
    for row in found.tables["clients"]:
        for way, rate in (("up", 2e6), ("down", 8e6)):
            total = sum(int(row[name]) for name in tables.BYTES if name.startswith(f"{way}_"))
            wanted = total * 8 / rate + 0.5 * (1 + int(row["steps"]))
            assert row[f"sim_{way}"] == pytest.approx(wanted)


def test_devices_that_are_too_small() -> None:
    """Where the whole network does not fit, its front may."""
    words = ("devices.tiers=[{name='big', share=0.6}, {name='tiny', share=0.4, memory=%s}]",)
    whole, front = (
        engine.meter.memory(engine.clients.burden(0, 0)).total
        for engine in (Engine(small("model.hidden=[4,200]")), Engine(small(*SPLIT)))
    )
    assert front < whole / 4
    between = words[0] % ((front + whole) / 2)
    for name in ("fedavg", "topk", "ssfl"):
        with pytest.raises(ConfigError) as caught:
            Engine(small(f"method.name={name}", "model.hidden=[4,200]", between))
        (problem,) = caught.value.problems
        client = int(problem.split("client ")[1].split(" ")[0])
        assert Fleet(small(between)).tier(client).name == "tiny"
        assert "is a 'tiny': wanted at most its memory" in problem
        assert f"found {whole:.3g} MiB (weights " in problem
        assert ") for training with batch = 16; possible: more memory" in problem
        assert "a method that splits the model, training a part of the model (model." in problem
    assert len(list(play(Engine(small(*SPLIT, between))))) == 2
    with pytest.raises(ConfigError, match="an earlier cut, training a part of the model"):
        Engine(small(*SPLIT, words[0] % (front / 2)))


SPLIT = ("method.name=splitfed", "model.hidden=[4,200]")


@pytest.mark.parametrize(
    ("tiers", "wanted"),
    [
        ("[{name='a', keep=1.0}]", {1.0}),
        ("[{name='a', share=0.4, keep=0.3}, {name='b', share=0.6}]", {0.3, 1.0}),
        ("[{name='a'}]", {1.0, 0.5, 0.1}),
    ],
)
def test_a_methods_own_shares_hold_where_no_device_says_one(tiers: str, wanted: set[float]) -> None:
    """To keep everything is to say something, too."""
    settings = small("method.name=hetiot", f"devices.tiers={tiers}")
    assert set(Fleet(settings).shares("keeps")) == wanted


TWO = (
    "devices.tiers=[{name='big', share=0.6}, {name='tiny', share=0.4, memory=1e-3}]",
    "devices.unfit=rest",
)


@pytest.mark.parametrize("name", ["fedavg", "ssfl", "spatl", "clientmask"])
@pytest.mark.parametrize("participation", [1.0, 0.4])
def test_devices_that_are_too_small_may_rest(name: str, participation: float) -> None:
    """They never train, upload or are told anything, agreements included; their shards count."""
    words = (f"method.name={name}", f"participation={participation}", "rounds=5", *TWO)
    engine = Engine(small(*words))
    tiny = {client for client, tier in engine.fleet.owners() if tier.name == "tiny"}
    assert len(tiny) == 2 and engine.population.excluded == tiny
    rows = np.concatenate([outcome.tables["clients"] for outcome in play(engine)])
    assert set(rows["client"].tolist()) == set(range(5)) - tiny
    assert set(rows["round"].tolist()) >= set(range(5))
    counted = {int(owner) for owner in engine.evaluation.owners}
    assert counted & tiny


def test_the_others_are_those_of_a_run_without_the_resting_ones() -> None:
    """A trace that leaves out the same clients makes the same model."""
    engine = Engine(small("rounds=3", *TWO))
    list(play(engine))
    others = sorted(set(range(5)) - engine.population.excluded)
    plainly = Engine(small("rounds=3"))
    plainly.population.exclude(engine.population.excluded)
    list(play(plainly))
    assert [plainly.population.sample(t) for t in range(3)] == [tuple(others)] * 3
    assert engine.model_sha256() == plainly.model_sha256() != run(small("rounds=3"))


@pytest.mark.parametrize(
    "way",
    [
        ("model.train=adapters", "model.lora.rank=2"),
        ("method.name=splitfed", "method.cut=embed"),
        ("method.name=splitfed", "method.cut=block1", "model.train=adapters", "model.lora.rank=1"),
    ],
    ids=["adapters", "split", "both"],
)
def test_devices_too_small_for_a_transformer_train_adapters_or_its_front(
    way: tuple[str, ...],
) -> None:
    vit = ("model.name=vit", "model.width=64", "model.heads=2", "model.depth=4", "optimizer=adam")
    vit = (*vit, "batch=4", "rounds=1", "clients=4")
    whole, less = (
        engine.meter.memory(engine.clients.burden(0, 0))
        for engine in (Engine(small(*vit)), Engine(small(*vit, *way)))
    )
    assert less.total < whole.total / 2
    if "model.lora.rank=2" in way:  # it saves gradients and the optimizer's state, and no weights
        assert less.weights > whole.weights and less.optimizer < whole.optimizer / 10
    limit = (less.total + whole.total) / 2
    tiers = f"devices.tiers=[{{name='big',share=0.5}},{{name='tiny',share=0.5,memory={limit}}}]"
    with pytest.raises(ConfigError, match=r"is a 'tiny': wanted at most .* \(weights .*optimizer"):
        Engine(small(*vit, tiers))
    rows = run(small(*vit, tiers, *way)).tables["clients"]
    assert set(rows["tier"]) == {b"big", b"tiny"}
    assert (rows["memory"] <= limit).all() and (rows["whole_memory"] >= less.total).all()
    alone = run(small(*vit, tiers, "devices.unfit=rest")).tables["clients"]
    assert set(alone["tier"]) == {b"big"}


def test_not_all_devices_may_rest(tmp_path: Path) -> None:
    alone = ("devices.tiers=[{name='tiny', memory=1e-3}]", "devices.unfit=rest")
    with pytest.raises(ConfigError, match="for round 0: 5 of 5 devices are too small"):
        Engine(small(*alone))
    tiny = min(Engine(small(*TWO)).population.excluded)
    trace = tmp_path / "trace.csv"
    trace.write_text(
        f"client,first,last\n{tiny},2,2\n" + "".join(f"{client},0,1\n" for client in range(5))
    )
    with pytest.raises(ConfigError, match="for round 2: 2 of 5 devices are too small"):
        Engine(small(*TWO, "sampling=trace", f"trace={trace}", "rounds=3"))
    Engine(small(*TWO, "sampling=trace", f"trace={trace}", "rounds=2"))
    with pytest.raises(ConfigError, match="wanted the memory of some devices, found none"):
        small("devices.tiers=[{name='a'}]", "devices.unfit=rest")


def test_each_kind_of_device_that_is_too_small_is_named() -> None:
    words = "devices.tiers=[{name='a',share=0.5,memory=1e-3},{name='b',share=0.5,memory=2e-3}]"
    with pytest.raises(ConfigError) as caught:
        Engine(small(words))
    assert sorted(problem.split("'")[1] for problem in caught.value.problems) == ["a", "b"]


def test_without_devices_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("counted")

    monkeypatch.setattr(burden.Meter, "flops", never)
    monkeypatch.setattr(burden.Meter, "memory", never)
    assert len(list(play(Engine(small("devices.dropouts=0.5"))))) == 2
