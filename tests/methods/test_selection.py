"""SPATL with agents: where they come from, what they are rewarded by, and what they cost."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedmpi import models
from fedmpi.config import ConfigError
from fedmpi.datasets import synthetic
from fedmpi.engine import Engine
from fedmpi.errors import BadInput
from fedmpi.methods.spatl import agent
from fedmpi.methods.spatl.pretrain import pretrain
from fedmpi.networks.flat import Flat
from fedmpi.networks.flops import forward
from fedmpi.networks.slicing import sliced
from tests.plain import RNN, accuracy, network, play
from tests.small import SMALL, run, small, smooth, text

NET = ("model.name=cnn", "model.channels=[8,12]", "model.kernel=3", "model.hidden=16")
FEW = ("method.tuned=1", "method.saved=0.5", "rounds=3")


@pytest.fixture
def words(tmp_path: Path) -> tuple[str, ...]:
    """Settings with an agent that has learned nothing."""
    file = tmp_path / "agent.npy"
    agent.save(agent.born(5), file)
    return ("method.name=spatl", "method.selection=agent", f"method.agent={file}", *NET, *FEW)


def test_agents_are_told_once_and_tuned_in_the_first_rounds(words: tuple[str, ...]) -> None:
    more = ("participation=0.6", "rounds=5", "method.tuned=2", "method.down=dense")
    engine = Engine(small(*words, *more))
    told: set[int] = set()
    minds: dict[int, Tensor] = {}
    body = sum(parameter.numel() for parameter in agent.born(5).body.parameters())
    start = agent.born(5).vector()
    for t, outcome in enumerate(play(engine)):
        for row in outcome.tables["clients"]:
            client = int(row["client"])
            encoder = 4 * len(engine.clients.shared)
            assert row["down_model"] == encoder + (0 if client in told else 4 * agent.SIZE)
            told.add(client)
            mind = engine.clients.select.agents[client].clone()
            before = minds.get(client, start)
            # In the second round no other selection is tried out: deviations have become small.
            assert torch.equal(mind, before) if t >= 2 else t == 1 or not torch.equal(mind, before)
            assert torch.equal(mind[:body], start[:body])
            minds[client] = mind
    assert len(told) > 3


def test_enough_is_saved(words: tuple[str, ...]) -> None:
    """Whatever agents say: the channels that are sent would make a network of half the FLOPs."""
    engine = Engine(small(*words))
    select, scene = engine.clients.select, engine.clients.select.scene
    for t in (0, 2):
        engine.clients.select.agents[1] = agent.born(5).vector()
        chosen = select(t, 1, engine.flat.initial, engine.flat.initial)
        assert (chosen[1:] > chosen[:-1]).all()
        assert scene.saved(chosen) >= 0.5


def test_models_that_agents_try_out_cost_flops_and_time(words: tuple[str, ...]) -> None:
    """Each by what is left of the network; later, when agents only decide, there are none."""
    tiers = "devices.tiers=[{gflops=0.001}]"
    engine = Engine(small(*words, tiers))
    judge, tried = engine.clients.select.judge, dict.fromkeys(range(5), 0.0)
    loss_of, channels = judge.loss, engine.clients.channels
    shape = tuple(engine.trainer.feed.x.shape[1:])

    def watch(w: Tensor, positions: np.ndarray, client: int) -> float:
        kept = (channels.norms(w) > 0).nonzero().flatten()
        small_one = nn.Sequential(sliced(engine.flat, w, channels, kept, shape))
        tried[client] += len(positions) * forward(Flat(small_one), shape).all
        return loss_of(w, positions, client)

    judge.loss = watch
    each = 3 * 2 * forward(engine.flat, shape).all
    for t, outcome in enumerate(play(engine)):
        rows = outcome.tables["clients"]
        found = dict(zip(rows["client"].tolist(), rows["flops"].tolist(), strict=True))
        for row in rows:
            wanted = each * row["samples"] + tried[int(row["client"])]
            assert found[int(row["client"])] == pytest.approx(wanted)
            assert row["sim_compute"] == pytest.approx(wanted / 1e6)
        assert (sum(tried.values()) > 0) == (t < 1)
        tried = dict.fromkeys(range(5), 0.0)


def test_rewards_are_by_samples_that_nobody_trains_on(words: tuple[str, ...]) -> None:
    engine, plain = Engine(small(*words)), Engine(small(*NET))
    population = engine.population
    for client in range(5):
        ours, reserved = population.shards[client], population.reserved[client]
        before = plain.population.shards[client]
        assert len(reserved) == round(0.2 * len(before))
        np.testing.assert_array_equal(np.sort(np.concatenate([ours, reserved])), before)
        assert population.sizes[client] == len(ours)
        for t in range(3):
            seen = {int(i) for p in engine.trainer.feed.picks(t, client) for i in p.positions}
            assert not seen & set(reserved.tolist())
            assert not len(plain.population.reserved[client])


def test_a_judge_is_plain_torch(words: tuple[str, ...]) -> None:
    engine = Engine(small(*words))
    select, w = engine.clients.select, engine.flat.initial
    positions = engine.population.reserved[2]
    feed = engine.trainer.feed
    x, y = feed.x[positions], feed.y[positions]
    wanted = accuracy(network(engine, w), x, y)
    assert select.judge.found(w, x, y)[1] == pytest.approx(wanted)
    assert select.judge.found(w, x[:0], y[:0]) == (0, 0)
    game = select.game(w, positions, 2)
    chosen = game.choose(torch.tensor([0.5, 0.0, -0.5]))
    masked = network(engine, engine.clients.channels.masked(w, chosen))
    wanted = float(cross_entropy(masked(x), y).detach())
    assert game.loss_of(chosen) == pytest.approx(wanted, rel=1e-5)


def test_skews_hold_for_reserved_samples_too(words: tuple[str, ...]) -> None:
    skewed, plain = (Engine(small(*words, *more)) for more in (("skew.noise=0.5",), ()))
    for client in range(5):
        some = plain.population.reserved[client]
        assert (skewed.trainer.feed.x[some] != plain.trainer.feed.x[some]).any()


@pytest.mark.parametrize("statistics", ["averaged", "local"])
def test_asking_changes_nothing(
    words: tuple[str, ...], statistics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judging runs on a network of its own: models, statistics and losses stay what they are."""
    monkeypatch.setattr(models, "build", smooth)
    engine = Engine(small(*words, f"statistics={statistics}", "rounds=1"))
    engine.trainer.begin(0)
    clients = engine.clients
    clients.hear(0, [1], engine.server.tell(0))
    clients.accept(0, 1, engine.server.send(0, 1))
    w = clients.work(0, [1])[0]
    before, local_stats = w.clone(), engine.trainer.rows.local_stats.clone()
    clients.upload(0, 1, w)
    assert torch.equal(w, before)
    assert torch.equal(engine.trainer.rows.local_stats, local_stats)


@pytest.mark.parallel([1, 2, 3])
def test_ranks_do_not_change_the_result(tmp_path: Path) -> None:
    file = Path(MPI.COMM_WORLD.bcast(str(tmp_path / "agent.npy")))
    if MPI.COMM_WORLD.rank == 0:
        agent.save(agent.born(5), file)
    MPI.COMM_WORLD.Barrier()
    given = ("method.name=spatl", "method.selection=agent", f"method.agent={file}", *NET, *FEW)
    settings = small(*given, "participation=0.6", "server=shared")
    found = run(settings, MPI.COMM_WORLD)
    if MPI.COMM_WORLD.rank == 0:
        alone = run(settings)
        assert found.sha256 == alone.sha256
        for column in ("up_gradient", "down_model", "personal", "loss"):
            np.testing.assert_array_equal(*(r.tables["clients"][column] for r in (found, alone)))


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (("method.agent=x",), "method.agent = 'x': wanted method.selection = 'agent'"),
        (("method.saved=0.3", "method.sparsity=0.3"), "wanted no method.saved, found 0.3"),
        (("method.saved=0.999",), "method.saved = 0.999: wanted at most 0."),
        (("method.selection=agent", "method.sparsity=0"), "or method.saved"),
        (("method.selection=agent", "method.reserved=0"), "method.reserved = 0: wanted above 0"),
        (
            ("method.selection=agent", "method.episodes=30"),
            "whole number of at least 25 and in steps of 25",
        ),
        (("method.selection=agent", "method.salience=weight"), "wanted another method.selection"),
        (("method.selection=agent", "method.agent=/nowhere"), "no such file"),
    ],
    ids=" ".join,
)
def test_settings_without_a_meaning(more: tuple[str, ...], problem: str) -> None:
    with pytest.raises(BadInput) as error:
        Engine(small("method.name=spatl", *more))
    assert problem in str(error.value)


def test_there_has_to_be_something_to_choose_from(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "load", text)
    with pytest.raises(ConfigError, match="wanted an encoder with convolutions or linear layers"):
        Engine(small(*words[:3], *RNN))


SELECTIONS = ("uniform", "l2", "random", "agent")


def test_all_selections_save_the_same_and_train_on_the_same() -> None:
    """With `saved` and `reserved` given they differ in nothing but the choice."""
    shards, saved = [], []
    for name in SELECTIONS:
        words = (f"method.selection={name}", "method.saved=0.5", "method.reserved=0.2")
        engine = Engine(small("method.name=spatl", *words, *NET, "rounds=1"))
        shards.append(np.concatenate(engine.population.shards))
        if name == "agent":
            engine.clients.select.agents[0] = agent.born(5).vector()
        w = engine.flat.initial
        chosen = engine.clients.select(0, 0, w, torch.randn(w.shape))
        shape = tuple(engine.trainer.feed.x.shape[1:])
        saved.append(agent.Scene(engine.flat, engine.clients.channels, shape).saved(chosen))
    for other in shards[1:]:
        np.testing.assert_array_equal(other, shards[0])
    assert min(saved) >= 0.5
    assert max(saved) < 0.65, "as far as whole channels can"


def test_without_a_share_of_flops_an_agent_saves_what_sparsity_saves() -> None:
    engine = Engine(small("method.name=spatl", "method.selection=agent", *NET))
    select = engine.clients.select
    equal = engine.clients.channels.evenly(torch.zeros(engine.clients.channels.count), 0.5)
    assert select.target == pytest.approx(select.scene.saved(equal))


def test_the_agent_that_comes_with_the_project_is_part_of_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("method.name=spatl", "method.selection=agent")
    shipped = small(*words)
    wanted = hashlib.sha256(agent.SHIPPED.read_bytes()).hexdigest()
    assert shipped.contents() == {"method.agent": wanted}
    copy = tmp_path / "copy.npy"
    copy.write_bytes(agent.SHIPPED.read_bytes())
    assert small(*words, f"method.agent={copy}").identity() == shipped.identity()
    other = tmp_path / "other.npy"
    agent.save(agent.born(1), other)
    assert small(*words, f"method.agent={other}").identity() != shipped.identity()
    assert small("method.name=spatl").contents() == {}


# ---- Pre-training


def test_an_agent_is_made_and_used(tmp_path: Path) -> None:
    file = tmp_path / "made.npy"
    tree = {**SMALL, "method": {"name": "spatl", "saved": 0.4}}
    said = pretrain([tree], 50, file)
    assert f"{4 * agent.SIZE} bytes" in said
    assert 40 <= float(re.findall(r"saves ([\d.]+)% of its FLOPs", said)[0]) < 60
    first = agent.read(file)
    pretrain([tree], 50, file)
    assert torch.equal(agent.read(file), first)
    words = ("method.name=spatl", "method.selection=agent", f"method.agent={file}")
    assert np.isfinite(run(small(*words, *NET, *FEW)).model).all(), "on another network, too"


def test_without_held_out_samples_there_is_no_reward(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"validation = 0\.0: wanted samples that are held out"):
        pretrain([{**SMALL, "validation": 0.0}], 25, tmp_path / "a.npy")


def test_a_file_that_cannot_be_written_is_refused_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedmpi.methods.spatl.pretrain.Trainer", lambda *_: pytest.fail("trained"))
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", Path("/proc")):
        with pytest.raises(BadInput, match=r"a\.npy: .*name another file with --out"):
            pretrain([dict(SMALL)], 25, folder / "a.npy")
