"""The selection agent: what it sees, what its actions may do, and that PPO finds what pays."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi import loading, models
from fedmpi.config import ConfigError
from fedmpi.methods.spatl import agent
from fedmpi.methods.spatl.agent import Agent, Game, Keep, Memory, Scene
from fedmpi.networks.flat import Flat
from fedmpi.networks.flops import forward
from fedmpi.networks.slicing import Channels, sliced
from fedmpi.networks.topology import Topology

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """As in a run: networks this small are slower on several."""
    torch.set_num_threads(1)


def chain() -> tuple[Flat, Channels]:
    """Three linear layers of 20 channels, and a head."""
    torch.manual_seed(0)
    stages = OrderedDict(
        a=nn.Sequential(nn.Linear(20, 20), nn.ReLU()),
        b=nn.Sequential(nn.Linear(20, 20), nn.ReLU()),
        c=nn.Sequential(nn.Linear(20, 20), nn.ReLU()),
        head=nn.Linear(20, 3),
    )
    flat = Flat(nn.Sequential(stages))
    return flat, Channels(Topology(flat.split("c")[0], (20,)), CPU)


def game(judge: object, target: float = 0.5) -> Game:
    flat, channels = chain()
    scene = Scene(flat, channels, (20,))
    return Game(scene, channels.norms(flat.initial), judge, target)  # type: ignore[arg-type]


def resnet() -> tuple[Flat, Channels]:
    settings = loading.load({"model": {"name": "resnet"}}).model
    flat = Flat(models.build(settings, (3, 16, 16), 10, 1))
    return flat, Channels(Topology(flat.split(flat.cuts()[-1])[0], (3, 16, 16)), CPU)


# ---- The state


def test_its_state_is_a_few_tens_of_kilobytes(tmp_path: Path) -> None:
    assert 10_000 < 4 * agent.SIZE < 50_000
    one, file = agent.born(1), tmp_path / "agent.npy"
    agent.save(one, file)
    assert file.stat().st_size == 4 * agent.SIZE + 128
    other = agent.born(2)
    assert not torch.equal(other.vector(), one.vector())
    other.load(agent.read(file))
    assert torch.equal(other.vector(), one.vector())


def test_birth_depends_on_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    one = agent.born(3).vector()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(agent.born(3).vector(), one)


@pytest.mark.parametrize(
    ("content", "found"),
    [(None, "No such file"), (b"x", "wanted an agent"), (np.zeros(3, np.float32), "[3]")],
    ids=["absent", "junk", "short"],
)
def test_files_that_are_no_agents(tmp_path: Path, content: object, found: str) -> None:
    file = tmp_path / "agent.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        np.save(file, content)
    with pytest.raises(ConfigError) as error:
        agent.read(file)
    assert found in str(error.value)
    assert "method.agent = " in str(error.value)


# ---- What it sees


def test_links_are_those_of_a_graph_convolution() -> None:
    """D^-1/2 (A + I) D^-1/2, of a chain."""
    flat, channels = chain()
    a = torch.tensor([[1.0, 1, 0], [1, 1, 1], [0, 1, 1]])
    root = torch.diag(a.sum(1).rsqrt())
    torch.testing.assert_close(Scene(flat, channels, (20,)).links, root @ a @ root)


def test_descriptors_tell_layers_apart_and_are_of_the_order_of_one() -> None:
    flat, channels = resnet()
    scene = Scene(flat, channels, (3, 16, 16))
    one = Game(scene, channels.norms(flat.initial), lambda _: 0.0, 0.2)
    seen = one.look(one.begin())
    assert seen.shape == (19, agent.FEATURES)
    assert len(seen.unique(dim=0)) == 19
    assert torch.isfinite(seen).all()
    assert float(seen.abs().max()) < 3


NETS = {
    "chain": None,
    "resnet": ({"name": "resnet"}, (3, 16, 16), None),
    "resnet, groups": ({"name": "resnet", "norm": "group", "groups": 4}, (3, 16, 16), None),
    "vgg": ({"name": "vgg", "depth": 11}, (3, 32, 32), "conv8"),
    "cnn": ({"name": "cnn", "channels": [8, 16], "hidden": 24}, (1, 16, 16), None),
}


@pytest.mark.parametrize("name", NETS)
def test_saved_flops_are_those_of_the_sliced_network(name: str) -> None:
    """Also where branches meet: there an input stays if any branch has it."""
    flat, channels = chain()
    shape: tuple[int, ...] = (20,)
    if (given := NETS[name]) is not None:
        words, shape, cut = given
        flat = Flat(models.build(loading.load({"model": words}).model, shape, 10, 1))
        front = flat.split(cut or flat.cuts()[-1])[0]
        channels = Channels(Topology(front, shape), CPU)
    scene, random = Scene(flat, channels, shape), np.random.default_rng(1)
    whole = forward(flat, shape).all
    for keep in (0.9, 0.5, None):
        w = flat.initial + 0.1 * torch.from_numpy(random.normal(size=flat.size)).float()
        shares = torch.full((len(channels.layers),), keep or 0.0)
        if keep is None:
            shares = torch.from_numpy(random.uniform(0.1, 1, len(shares))).float()
        one = Game(scene, channels.norms(w), lambda _: 0.0, 0.2)
        small = sliced(flat, w, channels, one.chosen(shares), shape)
        ours = forward(Flat(nn.Sequential(small)), shape).all
        assert one.saved(shares) == pytest.approx(1 - ours / whole, abs=1e-6)
    assert one.saved(one.begin()) == pytest.approx(0, abs=1e-6)


# ---- What it does


def test_shares_stay_within_bounds() -> None:
    play = game(lambda _: 0.0)
    keep = torch.tensor([1.0, 0.5, 0.1])
    torch.testing.assert_close(
        play.act(keep, torch.tensor([0.25, -0.5, 0.5])), torch.tensor([0.75, 0.75, 0.1])
    )
    for action in (torch.full((3,), 9.0), torch.full((3,), -9.0)):
        found = play.act(keep, action)
        assert float(found.min()) >= agent.LEAST
        assert float(found.max()) <= 1
    assert play.scene.counts(torch.tensor([0.1, 0.5, 1.0])) == [2, 10, 20]


def test_means_are_within_one_and_the_critic_too() -> None:
    mind = agent.born(1)
    with torch.no_grad():
        mean, value = mind(100 * torch.randn(7, 3, agent.FEATURES), torch.eye(3))
    assert mean.shape == (7, 3)
    assert value.shape == (7,)
    assert float(mean.abs().max()) <= 1
    assert float(value.abs().max()) <= 1


def test_a_batch_of_states_is_each_state_alone() -> None:
    """In the authors' code all states of a batch have the first one's embedding."""
    mind, play = agent.born(1), game(lambda _: 0.0)
    seen = torch.randn(4, 3, agent.FEATURES)
    mean, value = mind(seen, play.scene.links)
    for row in range(4):
        alone = mind(seen[row : row + 1], play.scene.links)
        torch.testing.assert_close(mean[row], alone[0][0])
        torch.testing.assert_close(value[row], alone[1][0])
    assert len(value.unique()) == 4


def test_an_episode_ends_when_enough_is_saved_or_after_ten_steps() -> None:
    asked: list[Keep] = []

    def judge(keep: Keep) -> float:
        asked.append(keep)
        return 40.0

    memory = Memory()
    keep, reward = agent.episode(agent.born(1), game(judge), np.random.default_rng(1), memory)
    assert reward == pytest.approx(-0.6)
    assert len(asked) == 1, "only the end is judged"
    length = len(memory.returns)
    assert 1 <= length <= 10
    wanted = [-0.6 * 0.99**later for later in reversed(range(length))]
    assert memory.returns == pytest.approx(wanted)
    assert game(judge).is_met(keep)
    memory = Memory()
    _, reward = agent.episode(agent.born(1), game(judge, 0.999), np.random.default_rng(1), memory)
    assert reward == -1
    assert len(memory.returns) == len(memory.actions) == 10


def test_densities_are_the_normal_distributions() -> None:
    mean, action = torch.randn(5, 3), torch.randn(5, 3)
    normal = torch.distributions.Normal(mean, agent.DEVIATION)
    found = agent.density(action, mean)
    wanted = normal.log_prob(action).sum(1)
    torch.testing.assert_close(found - found[0], wanted - wanted[0])


@pytest.mark.parametrize("target", [0.3, 0.6, 0.9])
def test_what_is_chosen_saves_what_it_should(target: float) -> None:
    play = game(lambda _: 0.0, target)
    keep = agent.choose(agent.born(1), play)
    assert play.saved(keep) >= target
    assert torch.equal(keep, agent.choose(agent.born(1), play)), "no chance in it"


def test_what_cannot_be_saved_leaves_the_least() -> None:
    keep = agent.choose(agent.born(1), game(lambda _: 0.0, 0.9999))
    torch.testing.assert_close(keep, torch.full((3,), agent.LEAST))


# ---- What it learns


@pytest.mark.parametrize("matters", [0, 2])
def test_it_learns_what_pays(matters: int) -> None:
    """One layer's channels are all that counts: the agent keeps them, and spares the others'."""
    play = game(lambda keep: 100 * float(keep[matters]))

    def worth(mind: Agent) -> float:
        rewards = [
            agent.episode(mind, play, np.random.default_rng(i), Memory())[1] for i in range(40)
        ]
        return float(np.mean(rewards))

    mind = agent.born(1)
    before = worth(mind)
    best = agent.train(mind, play, 700, np.random.default_rng(0))
    assert worth(mind) > 0.5 * before, "rewards are negative"
    keep = agent.choose(mind, play)
    others = [float(share) for layer, share in enumerate(keep) if layer != matters]
    assert float(keep[matters]) > max(0.8, np.mean(others) + 0.2)
    assert play.reward(best) > -0.1


def test_tuning_moves_the_heads_alone() -> None:
    play, mind = game(lambda keep: 100 * float(keep[0])), agent.born(1)
    before = [parameter.clone() for parameter in mind.body.parameters()]
    heads = [parameter.clone() for parameter in mind.heads()]
    agent.train(mind, play, 10, np.random.default_rng(0), heads_only=True)
    assert all(map(torch.equal, before, mind.body.parameters()))
    assert not any(map(torch.equal, heads, mind.heads()))
    agent.train(mind, play, 10, np.random.default_rng(0))
    assert not any(map(torch.equal, before, mind.body.parameters()))
    assert len(before) + len(heads) == len(list(mind.parameters()))


def test_the_clip_takes_the_gradient_of_what_has_moved_far() -> None:
    """With ratios beyond the clip and gains of their sign, only the critic is moved."""
    mind, play = agent.born(1), game(lambda _: 0.0)
    seen = play.look(play.begin())
    with torch.no_grad():
        mean = mind(seen.unsqueeze(0), play.scene.links)[0][0]
    action = mean + 0.1
    far = agent.density(action, mean) - 1  # the ratio is e
    memory = Memory([seen], [action], [far], [1.0])
    actor = [parameter.clone() for parameter in mind.actor.parameters()]
    critic = [parameter.clone() for parameter in mind.critic.parameters()]
    steps = torch.optim.SGD(mind.heads(), 0.1)
    agent.learn(mind, memory, steps, play.scene.links)
    assert all(map(torch.equal, actor, mind.actor.parameters()))
    assert not all(map(torch.equal, critic, mind.critic.parameters()))


def test_training_repeats_itself() -> None:
    def one() -> Tensor:
        mind = agent.born(1)
        agent.train(mind, game(lambda keep: 100 * float(keep[0])), 20, np.random.default_rng(3))
        return mind.vector()

    assert torch.equal(one(), one())
