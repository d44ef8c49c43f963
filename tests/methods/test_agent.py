"""The selection agent: what it sees, what its actions may do, and that PPO finds what pays."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi import loading, models
from fedmpi.errors import BadInput
from fedmpi.messages.counts import keep_round
from fedmpi.methods.spatl import agent
from fedmpi.methods.spatl.agent import Game, Learner, Scene
from fedmpi.methods.spatl.pretrain import Lab
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


def game(judge: Callable[[Tensor], float] = lambda _: 0.0, target: float = 0.5) -> Game:
    flat, channels = chain()
    scene = Scene(flat, channels, (20,))
    return Game(scene, channels.norms(flat.initial), target, judge)


def shares(scene: Scene, chosen: Tensor) -> list[float]:
    """What is kept of each layer."""
    layers = scene.channels.layers
    return [float(((chosen - n.first) // n.count == 0).sum()) / n.count for n in layers]


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
    agent.save(agent.born(2), file)
    np.save(tmp_path / "other.npy", np.zeros(agent.SIZE + 1, np.float32))
    before = (tmp_path / "other.npy").read_bytes()
    with pytest.raises(BadInput, match=r"other\.npy: holds something else than --out writes"):
        agent.save(one, tmp_path / "other.npy")
    assert (tmp_path / "other.npy").read_bytes() == before


def test_birth_depends_on_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    one = agent.born(3).vector()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(agent.born(3).vector(), one)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "no such file"),
        (b"x", "wanted an agent (.npy) that fedmpi agent wrote, found a text of 1 bytes"),
        (np.zeros(3, np.float32), "[3]"),
        (np.array([None]), "a .npy file that is damaged or holds other things than numbers"),
    ],
    ids=["absent", "junk", "short", "objects"],
)
def test_files_that_are_no_agents(tmp_path: Path, content: object, found: str) -> None:
    file = tmp_path / "agent.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        np.save(file, content)
    with pytest.raises(BadInput) as error:
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
    seen = Game(scene, channels.norms(flat.initial), 0.2, lambda _: 0.0).seen
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
    "vit": (
        {"name": "vit", "width": 32, "depth": 2, "heads": 8, "ratio": 2, "patch": 8},
        *((1, 16, 16), None),
    ),
}


def made(name: str) -> tuple[Flat, Channels, Scene]:
    flat, channels = chain()
    shape: tuple[int, ...] = (20,)
    if (given := NETS[name]) is not None:
        words, shape, cut = given
        flat = Flat(models.build(loading.load({"model": words}).model, shape, 10, 1))
        front = flat.split(cut or flat.cuts()[-1])[0]
        channels = Channels(Topology(front, shape), CPU)
    return flat, channels, Scene(flat, channels, shape)


@pytest.mark.parametrize("name", NETS)
def test_saved_flops_are_those_of_the_sliced_network(name: str) -> None:
    """Also where branches meet: there an input stays if any branch has it.

    The first layer may keep all channels; then a shortcut has zeros behind them, which go, too.
    """
    flat, channels, scene = made(name)
    random, shape = np.random.default_rng(1), (20,) if NETS[name] is None else NETS[name][1]
    whole = forward(flat, shape).all
    for keep, first in ((0.9, None), (0.5, None), (None, None), (0.5, 1.0)):
        w = flat.initial + 0.1 * torch.from_numpy(random.normal(size=flat.size)).float()
        each = [keep or random.uniform(0.1, 1) for _ in channels.layers]
        each[0] = first or each[0]
        counts = [keep_round(n.count, one) for n, one in zip(channels.layers, each, strict=True)]
        chosen = channels.largest(channels.norms(w), counts)
        small = sliced(flat, w, channels, chosen, shape)
        ours = forward(Flat(nn.Sequential(small)), shape).all
        assert scene.saved(chosen) == pytest.approx(1 - ours / whole, abs=1e-6)
    assert scene.saved(torch.arange(channels.count)) == pytest.approx(0, abs=1e-6)


# ---- What it does


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("target", [0.2, 0.4, 0.6, 0.8])
def test_every_action_saves_the_same(name: str, target: float) -> None:
    """As much as it should, and one channel more of any layer that has more would be too many."""
    flat, channels, scene = made(name)
    scores, random = channels.norms(flat.initial), np.random.default_rng(2)
    play = Game(scene, scores, target, lambda _: 0.0)
    best = [n.first + scores[n.first : n.first + n.count].argsort() for n in channels.layers]
    for deviation in (0.0, 0.3, 2.0):
        action = torch.from_numpy(deviation * random.standard_normal(len(best))).float()
        chosen = play.choose(action)
        assert torch.equal(chosen, chosen.unique()), "ascending, each once"
        assert scene.saved(chosen) >= target
        for rising in best:
            kept = torch.isin(rising, chosen)
            assert kept.sum() >= max(1, round(0.1 * len(rising)))
            assert bool(kept[len(kept) - int(kept.sum()) :].all()), "those of the largest norms"
            if not kept.all():
                more = torch.cat([chosen, rising[~kept][-1:]])
                assert scene.saved(more) < target


def test_shares_are_in_proportion_to_the_actions_exponentials() -> None:
    play = game(target=0.6)
    found = shares(play.scene, play.choose(torch.tensor([0.5, 0.0, -0.5])))
    assert found[0] / found[1] == pytest.approx(np.exp(0.5), rel=0.15)
    assert found[1] / found[2] == pytest.approx(np.exp(0.5), rel=0.15)
    equal = shares(play.scene, play.equal())
    assert max(equal) - min(equal) <= 0.05 + 1e-6
    bounded = shares(play.scene, play.choose(torch.tensor([9.0, 0.0, -9.0])))
    assert bounded[0] == 1
    assert bounded[2] == pytest.approx(agent.LEAST, abs=0.06)


def test_what_cannot_be_saved_leaves_the_least() -> None:
    play = game(target=0.9999)
    assert shares(play.scene, play.equal()) == pytest.approx([agent.LEAST] * 3)


def test_the_largest_of_all_layers() -> None:
    """`overall` lets layers compete; each keeps its least."""
    play = game(target=0.5)
    count = play.scene.channels.count
    scores = torch.arange(count).float()
    found = shares(play.scene, agent.Budget(play.scene, scores, 0.5).overall(scores))
    assert found[2] == 1
    assert agent.LEAST <= found[0] < 0.5 < found[1]


def test_the_mean_is_centred_and_small_at_birth() -> None:
    seen, links = game().seen, game().scene.links
    with torch.no_grad():
        mean = agent.born(1)(seen, links)
    assert mean.shape == (3,)
    assert float(mean.sum()) == pytest.approx(0, abs=1e-5)
    assert 0 < float(mean.abs().max()) < 0.2


def test_descriptors_are_standardized_over_the_layers() -> None:
    """Neither their units nor their origins matter."""
    play, mind = game(), agent.born(1)
    scale, shift = 10 * torch.rand(agent.FEATURES) + 1, torch.rand(agent.FEATURES)
    links = play.scene.links
    seen = play.seen + torch.randn(play.seen.shape)
    with torch.no_grad():
        torch.testing.assert_close(
            mind(seen * scale + shift, links), mind(seen, links), atol=1e-3, rtol=0.02
        )


def test_densities_are_the_normal_distributions() -> None:
    mean, action = torch.randn(5, 3), torch.randn(5, 3)
    normal = torch.distributions.Normal(mean, 0.3)
    found = agent.density(action, mean, 0.3)
    wanted = normal.log_prob(action).sum(1)
    torch.testing.assert_close(found - found[0], wanted - wanted[0])


def test_the_reward_is_what_is_gained_over_equal_shares() -> None:
    asked: list[Tensor] = []

    def judge(chosen: Tensor) -> float:
        asked.append(chosen)
        return float((chosen < 20).sum())

    play, action = game(judge), torch.tensor([1.0, 0.0, -1.0])
    equal, other = play.equal(), play.choose(action)
    assert play.gain(action) == float((equal < 20).sum()) - float((other < 20).sum()) < 0
    play.gain(action)
    assert sum(torch.equal(chosen, equal) for chosen in asked) == 1, "judged once"


# ---- What it learns


def pays(layer: int) -> Callable[[Tensor], float]:
    """A loss that falls with each channel of one layer that is kept, and with nothing else."""
    return lambda chosen: -float(((chosen >= 20 * layer) & (chosen < 20 * layer + 20)).sum())


@pytest.mark.parametrize("matters", [0, 1, 2])
def test_it_learns_what_pays(matters: int) -> None:
    """One layer's channels are all that counts: the agent keeps them, and spares the others'."""
    play, mind = game(pays(matters)), agent.born(1)
    before = shares(play.scene, agent.choose(mind, play))
    agent.train(mind, [play], 40, np.random.default_rng(0))
    chosen = agent.choose(mind, play)
    after = shares(play.scene, chosen)
    assert after[matters] > max(0.9, before[matters] + 0.2)
    assert not torch.equal(chosen, play.equal()), "it does not fall back on equal shares"
    assert play.scene.saved(chosen) >= play.target


def test_it_learns_on_a_network_that_was_trained() -> None:
    """Its selection loses less on the test set than equal shares at equal FLOPs."""
    words = {"name": "mlp", "hidden": [48, 48, 48]}
    tree = {"model": words, "rounds": 8, "batch": 32, "validation": 0.4}
    gains = []
    for seed in (1, 2, 3):
        lab = Lab({**tree, "seed": seed})
        play, mind = lab.game(0.6), agent.born(seed)
        agent.train(mind, [play], 20, np.random.default_rng(seed))
        chosen = agent.choose(mind, play)
        assert play.loss_of(chosen) < play.base
        gains.append(lab.found(play.equal(), lab.test)[0] - lab.found(chosen, lab.test)[0])
    assert np.mean(gains) > 0


@pytest.mark.parametrize(("deviation", "stops"), [(0.6, False), (0.02, True)])
def test_an_update_is_ppos(deviation: float, stops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against plain torch: clipped ratios, advantages centred and scaled, Adam, an early stop."""
    if stops:
        monkeypatch.setattr(agent, "RATE", 0.1)
    play, ours, theirs = game(pays(0)), agent.born(1), agent.born(1)
    Learner(ours).update(play, np.random.default_rng(3), deviation)
    links = play.scene.links
    adam = torch.optim.Adam(theirs.parameters(), agent.RATE * deviation / agent.FIRST)
    noise = torch.from_numpy(np.random.default_rng(3).standard_normal((agent.TRIALS, 3))).float()
    old = theirs(play.seen, links).detach()
    actions = old + deviation * (noise - noise.mean(1, keepdim=True))
    gains = torch.tensor([play.base - play.loss_of(play.choose(action)) for action in actions])
    advantages = (gains - gains.mean()) / (gains.std() + 1e-6)

    def policy(mean: Tensor) -> torch.distributions.Normal:
        return torch.distributions.Normal(mean, deviation)

    steps = 0
    for _ in range(agent.PASSES):
        now = policy(theirs(play.seen, links))
        if torch.distributions.kl_divergence(policy(old), now).sum() > agent.FURTHEST:
            break
        ratio = torch.exp(now.log_prob(actions).sum(1) - policy(old).log_prob(actions).sum(1))
        limited = torch.clamp(ratio, 1 - agent.CLIP, 1 + agent.CLIP)
        loss = -torch.min(ratio * advantages, limited * advantages).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        steps += 1
    assert (steps < agent.PASSES) == stops
    with torch.no_grad():
        means = ours(play.seen, links), theirs(play.seen, links)
    torch.testing.assert_close(*means, rtol=0.01, atol=2e-3)
    assert float((means[0] - old).abs().max()) > deviation / 10


def test_the_best_that_was_tried_is_kept() -> None:
    """Or the mean action, if it gains more; and that alone where nothing was tried."""
    mind, judged = agent.born(1), dict[bytes, float]()

    def judge(chosen: Tensor) -> float:
        return judged.setdefault(chosen.numpy().tobytes(), float(len(judged)))

    play, links = game(judge), game().scene.links
    mean = play.choose(mind(play.seen, links).detach())
    assert torch.equal(agent.choose(mind, play), mean)
    assert not judged
    with torch.no_grad():
        mind.actor[2].weight.mul_(30)  # another mean than equal shares
    mean = play.choose(mind(play.seen, links).detach())
    judged[mean.numpy().tobytes()] = 9.0
    tried = [torch.tensor([n, 0.0, -n]) for n in (1.0, 0.5, 2.0)]
    for action, loss in zip(tried, (3.0, 1.0, 2.0), strict=True):
        judged[play.choose(action).numpy().tobytes()] = loss
        play.gain(action)
    assert torch.equal(agent.choose(mind, play), play.choose(tried[1]))
    assert not torch.equal(agent.choose(mind, play), mean)
    judged[mean.numpy().tobytes()] = 0.5
    assert torch.equal(agent.choose(mind, play), mean)


def test_tuning_moves_the_heads_alone() -> None:
    play, mind = game(pays(0)), agent.born(1)
    before = [parameter.clone() for parameter in mind.body.parameters()]
    heads = [parameter.clone() for parameter in mind.heads()]
    Learner(mind, heads_only=True).update(play, np.random.default_rng(0), 0.4)
    assert all(map(torch.equal, before, mind.body.parameters()))
    assert not any(map(torch.equal, heads, mind.heads()))
    Learner(mind).update(play, np.random.default_rng(0), 0.4)
    assert not any(map(torch.equal, before, mind.body.parameters()))
    assert sum(one.numel() for one in mind.heads()) == agent.HEADS


def test_learning_goes_on_where_it_stopped() -> None:
    """Parameters and Adam's moments are all that has to be kept."""
    play = game(pays(2))
    whole, parts = agent.born(1), agent.born(1)
    learner, random = Learner(whole, heads_only=True), np.random.default_rng(3)
    for _ in range(3):
        learner.update(play, random, 0.3)
    random, moments = np.random.default_rng(3), None
    for _ in range(3):
        fresh = agent.born(9)
        fresh.load(parts.vector())
        again = Learner(fresh, heads_only=True)
        if moments is not None:
            again.resume(moments)
        again.update(play, random, 0.3)
        parts, moments = fresh, again.moments()
    assert moments is not None
    assert len(moments) == 1 + 2 * agent.HEADS
    assert torch.equal(parts.vector(), whole.vector())


def test_deviations_fall() -> None:
    assert agent.deviation(0, 5) == agent.FIRST
    assert agent.deviation(4, 5) == pytest.approx(agent.LAST)
    assert agent.deviation(0, 1) == agent.FIRST


def test_the_agent_that_comes_with_the_project() -> None:
    """It is a trained one, and decides for other networks than its own, too."""
    mind = agent.shipped()
    for name in NETS:
        flat, channels, scene = made(name)
        play = Game(scene, channels.norms(flat.initial), 0.5, lambda _: 0.0)
        chosen = agent.choose(mind, play)
        assert scene.saved(chosen) >= 0.5
        assert not torch.equal(chosen, play.equal())
