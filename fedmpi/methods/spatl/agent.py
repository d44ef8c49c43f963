"""A reinforcement-learning agent that decides how many channels of each layer are kept.

It is the selection agent of SPATL (S. Yu et al., SC 2022, arXiv 2111.14345): an actor and a critic
over the graph of the network's layers, trained by proximal policy optimization (J. Schulman, F.
Wolski, P. Dhariwal, A. Radford, O. Klimov, arXiv 1707.06347). An action a in [-1, 1] for a layer
changes its share of kept channels to keep * (1 - a), limited to 0.1 and 1. An episode ends when
enough FLOPs are saved, or after ten actions. The reward at the end is (accuracy - 100) / 100 of the
masked model, or -1 if the FLOPs are not saved; before the end it is 0. Learning rate, clip,
discount, updates, deviation and the limits of an episode are those of the authors' code, whose
rewards are a hundred times as large.

Reconstruction: one level of graph convolutions (T. N. Kipf, M. Welling, ICLR 2017, arXiv
1609.02907) over layers with deterministic descriptors, where the code has graphs of operations with
random ones. Actor and critic share it. The actor has one head for all layers, so that an agent
trained on one network can be used for another. The standard deviation is fixed, so that the entropy
is constant and no term of the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import log2
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils import parameters_to_vector

from fedmpi.config import ConfigError
from fedmpi.draft import draft
from fedmpi.messages.counts import keep_round
from fedmpi.networks.flat import PRUNABLE, Flat
from fedmpi.networks.flops import forward
from fedmpi.networks.slicing import Channels
from fedmpi.networks.topology import Topology

FEATURES, WIDTH, HIDDEN = 11, 50, 32
"""Length of a layer's descriptor, of its embedding, and of the actor's hidden layer."""
DEVIATION = 0.5
"""Standard deviation of the actor's normal distribution."""
STEPS = 10
"""Actions in an episode at most, and steps that an update learns from at least."""
LEAST = 0.1
"""Share of a layer's channels that is always kept."""
RATE, CLIP, DISCOUNT, PASSES, CRITIC = 3e-4, 0.2, 0.99, 10, 0.5
"""Adam's learning rate, PPO's clip, discount, passes of an update, weight of the critic's loss."""

Keep = Tensor
"""Share of each layer's channels that is kept, float32 [layers]."""


class Agent(nn.Module):
    """Actor and critic.

    Attributes:
        body: layers of the graph convolutions.
        actor: maps the embeddings of a layer and of the graph to the mean of the layer's action.
        critic: maps the embedding of the graph to the expected reward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, WIDTH)])
        self.actor = nn.Sequential(
            nn.Linear(2 * WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1), nn.Tanh()
        )
        self.critic = nn.Sequential(nn.Linear(WIDTH, 1), nn.Tanh())

    def forward(self, x: Tensor, links: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the means of actions and the expected rewards.

        Args:
            x: descriptors, [T, layers, features].
            links: normalized adjacency of the layers, [layers, layers].

        Returns:
            Means [T, layers] and expected rewards [T].
        """
        for convolution in self.body:
            x = torch.tanh(links @ convolution(x))
        graph = x.mean(1)
        both = torch.cat([x, graph.unsqueeze(1).expand_as(x)], 2)
        return self.actor(both).squeeze(2), self.critic(graph).squeeze(1)

    def heads(self) -> list[nn.Parameter]:
        """Returns the parameters that are tuned for a new network or client."""
        return [*self.actor.parameters(), *self.critic.parameters()]

    def vector(self) -> Tensor:
        """Returns the agent's parameters as a vector, float32 [SIZE]."""
        return parameters_to_vector(self.parameters()).detach()

    def load(self, vector: Tensor) -> None:
        """Sets the agent's parameters from a vector [SIZE]."""
        parameters = list(self.parameters())
        pieces = vector.split([parameter.numel() for parameter in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.data.copy_(piece.view_as(parameter))


SIZE = sum(parameter.numel() for parameter in Agent().parameters())
"""Number of an agent's parameters: 26 kB."""


def born(seed: int) -> Agent:
    """Returns an untrained agent with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Agent()


def save(agent: Agent, path: Path) -> None:
    """Writes an agent's parameters to a file (.npy).

    Raises:
        BadInput: if it cannot be written.
    """
    with draft(path, "--out") as file:
        np.save(file, agent.vector().numpy())


def read(path: Path) -> Tensor:
    """Reads an agent's parameters from a file, float32 [SIZE].

    Raises:
        ConfigError: if the file cannot be read, or is not an agent's.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except OSError as error:
        raise ConfigError(f"method.agent = {path}: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise ConfigError(f"method.agent = {path}: wanted an agent, found: {error}") from None
    if getattr(found, "dtype", None) != np.float32 or found.shape != (SIZE,):
        raise ConfigError(
            f"method.agent = {path}: wanted an agent, float32 [{SIZE}], found "
            f"{getattr(found, 'dtype', type(found).__name__)} {list(getattr(found, 'shape', ()))}"
        )
    return torch.from_numpy(found)


class Scene:
    """A network as the agent sees it: a graph of layers with descriptors and FLOPs.

    Args:
        flat: the whole network.
        channels: channels of the layers that may lose some; all other layers keep theirs.
        shape: shape of a sample.

    Attributes:
        links: symmetrically normalized adjacency of the channels' layers with self-loops, for graph
            convolutions: [layers, layers].
        sources: which channels reach each input of all layers, int64 [most that do, inputs]; see
            `_sources`.
        owner: the layer of each channel, int64 [channels].
        reader: the layer of each input, int64 [inputs].
    """

    def __init__(self, flat: Flat, channels: Channels, shape: tuple[int, ...]) -> None:
        self.channels = channels
        topology, whole = Topology(flat, shape), forward(flat, shape)
        spent = {piece.name.removesuffix(".weight"): flops for piece, flops in whole.layers}
        names = [layer.name for layer in channels.layers]
        names += [name for name in spent if name not in names]
        place = {name: number for number, name in enumerate(names)}
        self.flops = torch.tensor([float(spent.get(name, 0)) for name in names]) / whole.all
        count = len(channels.layers)
        linked = torch.eye(len(names))
        for name, others in topology.feeders(names).items():
            for other in others:
                linked[place[name], place[other]] = linked[place[other], place[name]] = 1
        linked = linked[:count, :count]
        sources = [self._sources(topology, name) for name in names]
        owners = [torch.full((layer.count,), n) for n, layer in enumerate(channels.layers)]
        readers = [torch.full((one.shape[1],), number) for number, one in enumerate(sources)]
        nowhere, rows = channels.count + 1, max(map(len, sources), default=0)
        filled = [pad(one, (0, 0, 0, rows - len(one)), value=nowhere) for one in sources]
        empty = torch.empty(0, dtype=torch.int64)
        self.sources = torch.cat([empty.expand(rows, 0), *filled], 1)
        self.owner, self.reader = torch.cat([empty, *owners]), torch.cat([empty, *readers])
        degree = linked.sum(1).rsqrt()
        self.links = degree[:, None] * linked * degree
        modules, shapes = topology.modules, topology.traced.shapes
        fixed = [self._describe(n, modules[m], shapes[m]) for n, m in enumerate(names[:count])]
        self.fixed = torch.tensor(fixed).view(count, FEATURES - 3)

    def _sources(self, topology: Topology, name: str) -> Tensor:
        """Returns which channels reach each input of a layer, int64 [layers that do, inputs].

        A channel that always stays has the number `channels.count`, also that of the network's own
        input, and one that is not there the number behind it.
        """
        present, channel, _ = topology.traced.inputs[name]
        always, nowhere = self.channels.count, self.channels.count + 1
        first = {layer.name: layer.first for layer in self.channels.layers}
        rows = [torch.where(present.any(0), nowhere, always)]
        for maker in present.any(1).nonzero().flatten().tolist():
            own = topology.makers[maker]
            numbers = first[own] + channel[maker] if own in first else always
            rows.append(torch.where(present[maker], numbers, nowhere))
        return torch.stack(rows)

    def _describe(self, number: int, layer: nn.Module, shape: tuple[int, ...]) -> list[float]:
        """Returns the fixed part of a layer's descriptor.

        It consists of position, channels in and out, window, stride, pixels, weights and FLOPs,
        each scaled to the order of one.
        """
        assert isinstance(layer, PRUNABLE)
        weight, stride = layer.weight, getattr(layer, "stride", (1,))
        return [
            number / len(self.channels.layers),
            log2(weight.shape[1]) / 10,
            log2(weight.shape[0]) / 10,
            (weight.shape[2] if weight.dim() > 2 else 1) / 5,
            stride[0] / 2,
            log2(torch.Size(shape[2:]).numel()) / 10,
            log2(weight.numel()) / 20,
            float(self.flops[number]),
        ]

    def saved(self, chosen: Tensor) -> float:
        """Returns the share of the network's FLOPs that the chosen channels [k] alone save.

        A layer's FLOPs fall with its own channels and with its inputs. Where branches meet, an
        input stays if any of them has a chosen channel there; so `slicing.sliced` cuts.
        """
        stays = torch.zeros(self.channels.count + 2, dtype=torch.bool)
        stays[chosen], stays[self.channels.count] = True, True
        own = _shares(stays[: self.channels.count], self.owner, len(self.flops))
        given = _shares(stays[self.sources].any(0), self.reader, len(self.flops))
        return float((self.flops * (1 - own * given)).sum())

    def norms(self, scores: Tensor) -> Tensor:
        """Returns mean and deviation of each layer's filter norms, over the mean of all norms.

        Args:
            scores: each channel's norm, [channels].
        """
        norms = scores.cpu()
        layers = [norms[one.first : one.first + one.count] for one in self.channels.layers]
        pairs = [torch.stack([own.mean(), own.std(correction=0)]) for own in layers]
        return torch.stack(pairs) / norms.mean().clamp(min=1e-12)

    def counts(self, keep: Keep) -> list[int]:
        """Returns the number of channels that each layer keeps, at least one."""
        layers = zip(self.channels.layers, keep.tolist(), strict=True)
        return [keep_round(layer.count, share) for layer, share in layers]


def _shares(stays: Tensor, layer: Tensor, layers: int) -> Tensor:
    """Returns the share that stays of what belongs to each layer; 1 of nothing."""
    all_of, ours = torch.bincount(layer, minlength=layers), torch.bincount(layer[stays])
    ours = pad(ours, (0, layers - len(ours)))
    return torch.where(all_of > 0, ours / all_of.clamp(min=1), 1.0)


@dataclass
class Game:
    """The environment of an agent: one model, and the share of FLOPs to save.

    Attributes:
        scene: the network.
        scores: the norm of each of the model's channels, float32 [channels].
        accuracy_of: returns the model's accuracy in percent if these shares of channels are kept.
        target: share of the FLOPs to save.
    """

    scene: Scene
    scores: Tensor
    accuracy_of: Callable[[Keep], float]
    target: float

    def __post_init__(self) -> None:
        self.scores = self.scores.cpu()
        self.norms = self.scene.norms(self.scores)

    def chosen(self, keep: Keep) -> Tensor:
        """Returns the channels of the largest norms, as many of each layer as `keep` says."""
        return self.scene.channels.largest(self.scores, self.scene.counts(keep))

    def saved(self, keep: Keep) -> float:
        """Returns the share of the FLOPs that these channels alone save."""
        return self.scene.saved(self.chosen(keep))

    def begin(self) -> Keep:
        """Returns the initial state: all channels are kept."""
        return torch.ones(len(self.norms))

    def look(self, keep: Keep) -> Tensor:
        """Returns the descriptors of all layers, [layers, features]."""
        return torch.cat([self.scene.fixed, keep[:, None], self.norms], 1)

    def act(self, keep: Keep, action: Tensor) -> Keep:
        """Returns the shares that are kept after an action [layers]."""
        return (keep * (1 - action.clamp(-1, 1))).clamp(LEAST, 1)

    def is_met(self, keep: Keep) -> bool:
        """Whether enough FLOPs are saved."""
        return self.saved(keep) >= self.target

    def reward(self, keep: Keep) -> float:
        """Returns the reward at the end of an episode."""
        return (self.accuracy_of(keep) - 100) / 100 if self.is_met(keep) else -1.0


@dataclass
class Memory:
    """Steps of whole episodes for an update: descriptors, actions, log densities, returns."""

    seen: list[Tensor] = field(default_factory=list)
    actions: list[Tensor] = field(default_factory=list)
    densities: list[Tensor] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)


def density(action: Tensor, mean: Tensor) -> Tensor:
    """Returns the log density of actions, summed over the layers, up to a constant: [...]."""
    return -((action - mean) / DEVIATION).square().sum(-1) / 2


@torch.no_grad()
def episode(
    agent: Agent, game: Game, random: np.random.Generator, memory: Memory
) -> tuple[Keep, float]:
    """Plays one episode with random actions, and stores its steps in `memory`.

    Returns:
        The shares that are kept at the end, and the reward.
    """
    keep, length = game.begin(), 0
    while length < STEPS and not game.is_met(keep):
        seen = game.look(keep)
        mean = agent(seen.unsqueeze(0), game.scene.links)[0][0]
        noise = torch.from_numpy(random.standard_normal(len(mean))).float()
        action = mean + DEVIATION * noise
        memory.seen.append(seen)
        memory.actions.append(action)
        memory.densities.append(density(action, mean))
        keep, length = game.act(keep, action), length + 1
    reward = game.reward(keep)
    memory.returns += [reward * DISCOUNT**later for later in range(length - 1, -1, -1)]
    return keep, reward


def learn(agent: Agent, memory: Memory, steps: torch.optim.Optimizer, links: Tensor) -> None:
    """Updates the agent from stored steps: PPO's clipped objective, the critic's squared error."""
    seen, actions = torch.stack(memory.seen), torch.stack(memory.actions)
    before, returns = torch.stack(memory.densities), torch.tensor(memory.returns)
    for _ in range(PASSES):
        mean, value = agent(seen, links)
        # Not normalized: a batch may be one failed episode, half of which would then be rewarded.
        gain = returns - value.detach()
        ratio = (density(actions, mean) - before).exp()
        better = torch.minimum(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain)
        steps.zero_grad()
        (-better.mean() + CRITIC * (value - returns).square().mean()).backward()
        steps.step()


def train(
    agent: Agent,
    game: Game,
    episodes: int,
    random: np.random.Generator,
    heads_only: bool = False,
) -> Keep:
    """Trains an agent, and returns the best shares that it found.

    Args:
        agent: trained in place.
        game: the environment.
        episodes: number of episodes.
        random: source of the actions' noise.
        heads_only: keep the graph convolutions unchanged.
    """
    parameters = agent.heads() if heads_only else list(agent.parameters())
    steps = torch.optim.Adam(parameters, RATE)
    best, keep, memory = -np.inf, game.begin(), Memory()
    for number in range(episodes):
        found, reward = episode(agent, game, random, memory)
        if reward > best and game.is_met(found):
            best, keep = reward, found
        if len(memory.returns) >= STEPS or (number == episodes - 1 and memory.returns):
            learn(agent, memory, steps, game.scene.links)
            memory = Memory()
    return keep if best > -np.inf else choose(agent, game)


@torch.no_grad()
def choose(agent: Agent, game: Game) -> Keep:
    """Returns the agent's choice without noise; scaled down if that does not save enough FLOPs."""
    keep = game.begin()
    for _ in range(STEPS):
        if game.is_met(keep):
            return keep
        keep = game.act(keep, agent(game.look(keep).unsqueeze(0), game.scene.links)[0][0])
    while not game.is_met(keep) and bool((keep > LEAST).any()):
        keep = (0.95 * keep).clamp(min=LEAST)
    return keep
