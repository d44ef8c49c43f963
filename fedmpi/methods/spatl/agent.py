"""A reinforcement-learning agent that decides how many channels of each layer are kept.

It is the selection agent of SPATL (S. Yu et al., SC 2022, arXiv 2111.14345): a policy over the
graph of the network's layers, trained by proximal policy optimization (J. Schulman, F. Wolski, P.
Dhariwal, A. Radford, O. Klimov, arXiv 1707.06347).

An action has a number for each layer, and layers keep channels in proportion to its exponentials.
The common factor is the largest with which the sliced network saves the wanted share of the FLOPs,
so that every action saves the same. The reward is the loss of the equal action, which keeps the
same share of every layer, minus the loss of this one, both on samples that are not trained on.
Actions come in batches of 25 around the policy's mean; a batch's rewards are centred and scaled,
and are the advantages of PPO's clipped objective. The learning rate falls with the deviation of the
actions, and an update ends when the policy has moved too far: the clipped objective alone does not
stop Adam, whose momentum goes on where gradients vanish. Where an agent has learned, it keeps the
best of what it tried, as the authors' code does, or its mean action if that is better; elsewhere
it keeps its mean action.

Reconstruction: the authors' code takes up to ten actions until enough FLOPs are saved, rewards
accuracy alone, and makes an optimizer anew for each client and round. There the noise of the
actions does the pruning, because it can only shrink layers: without noise nothing is pruned. One
level of graph convolutions (T. N. Kipf, M. Welling, ICLR 2017, arXiv 1609.02907) is over layers
with deterministic descriptors, where the code has graphs of operations with random ones.
Descriptors are standardized over the layers, and reach the actor past the convolutions too, because
these smooth differences between layers away. The actor has one head for all layers, so that an
agent trained on one network can be used for another.
"""

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from math import log2
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils import parameters_to_vector

from fedmpi import inputs
from fedmpi.config import ConfigError
from fedmpi.draft import draft
from fedmpi.messages.counts import keep_round
from fedmpi.networks.attention import Heads
from fedmpi.networks.flat import PRUNABLE, Flat
from fedmpi.networks.flops import forward
from fedmpi.networks.slicing import Channels
from fedmpi.networks.topology import Topology, is_last

SHIPPED = Path(__file__).parent / "agent.npy"
"""The agent that comes with the project; docs/methods.md says how it was made."""
WANTED = "an agent (.npy) that fedmpi agent wrote"
FEATURES, WIDTH, HIDDEN = 10, 50, 32
"""Length of a layer's descriptor, of its embedding, and of the actor's hidden layer."""
FIXED = FEATURES - 2
"""Length of that part of a descriptor which does not depend on the model."""
LEAST = 0.1
"""Share of a layer's channels that is always kept."""
TRIALS = 25
"""Actions that an update learns from."""
FIRST, LAST = 0.6, 0.1
"""Standard deviation of the actions around their mean, in the first update and in the last."""
RATE, CLIP, PASSES = 5e-3, 0.2, 12
"""Adam's learning rate at the deviation `FIRST`, PPO's clip, and most passes of an update."""
FURTHEST = 0.3
"""An update ends when the policy's Kullback-Leibler divergence from that before it is larger."""
GENTLE = 0.1
"""Factor of the actor's last weights at birth: a new agent hardly differs from equal shares."""


class Agent(nn.Module):
    """The policy.

    Attributes:
        body: layers of the graph convolutions.
        actor: maps a layer's descriptor and the embeddings of layer and graph to the mean of the
            layer's action.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, WIDTH)])
        last = nn.Linear(HIDDEN, 1, bias=False)
        self.actor = nn.Sequential(nn.Linear(FEATURES + 2 * WIDTH, HIDDEN), nn.ReLU(), last)
        with torch.no_grad():
            last.weight.mul_(GENTLE)

    def forward(self, seen: Tensor, links: Tensor) -> Tensor:
        """Computes the mean of the actions.

        Args:
            seen: descriptors, [layers, FEATURES].
            links: normalized adjacency of the layers, [layers, layers].

        Returns:
            The mean, [layers]; its sum is 0.
        """
        x = (seen - seen.mean(0)) / (seen.std(0, correction=0) + 1e-3)
        embedded = x
        for convolution in self.body:
            embedded = torch.tanh(links @ convolution(embedded))
        graph = embedded.mean(0).expand_as(embedded)
        mean = self.actor(torch.cat([x, embedded, graph], 1)).squeeze(1)
        return mean - mean.mean()

    def heads(self) -> list[nn.Parameter]:
        """Returns the parameters that are tuned for a new network or client."""
        return list(self.actor.parameters())

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
"""Number of an agent's parameters: 27 kB."""
HEADS = sum(parameter.numel() for parameter in Agent().heads())
"""Number of those that are tuned for a new network or client."""
BEGINS = re.compile(rb"\x93NUMPY.{4}[^}]*'shape': \(%d,\)" % SIZE, re.DOTALL)
"""How an agent's file begins."""


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
    with draft(path, "--out", BEGINS) as file:
        np.save(file, agent.vector().numpy())


def read(path: Path) -> Tensor:
    """Reads an agent's parameters from a file, float32 [SIZE].

    Raises:
        BadInput: if the file cannot be read, or is not an agent's.
    """
    found = inputs.arrays("method.agent", path, WANTED)
    one = isinstance(found, np.ndarray)
    if not one or found.dtype != np.float32 or found.shape != (SIZE,):
        raise ConfigError(
            f"method.agent = {path}: wanted {WANTED}, float32 [{SIZE}], found "
            + (f"{found.dtype} {list(found.shape)}" if one else f"{len(found)} arrays by name")
        )
    return torch.from_numpy(found)


def shipped() -> Agent:
    """Returns the agent that comes with the project."""
    mind = Agent()
    mind.load(read(SHIPPED))
    return mind


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
        share: what a layer's first to last channels make of it, rising to 1, float32 [channels].
        always: whether that is within the channels that are always kept, bool [channels].
    """

    def __init__(self, flat: Flat, channels: Channels, shape: tuple[int, ...]) -> None:
        self.channels = channels
        topology, whole = Topology(flat, shape), forward(flat, shape)
        spent: dict[str, float] = {}
        for piece, flops in whole.layers:
            layer = piece.name.removesuffix(".weight")
            # An attention or a recurrent layer has linear layers inside.
            owner = next((m for m in topology.makers if layer.startswith(f"{m}.")), layer)
            spent[owner] = spent.get(owner, 0.0) + flops
        names = [layer.name for layer in channels.layers]
        names += [name for name in spent if name not in names]
        place = {name: number for number, name in enumerate(names)}
        self.flops, self.products = (
            torch.tensor([float(each.get(name, 0)) for name in names]) / whole.all
            for each in (spent, whole.products)
        )
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
        counts = [layer.count for layer in channels.layers]
        places = [empty, *map(torch.arange, counts)]
        least = [empty, *(torch.full((n,), keep_round(n, LEAST)) for n in counts)]
        self.share = (torch.cat(places) + 1) / torch.tensor(counts)[self.owner]
        self.always = torch.cat(places) < torch.cat(least)
        degree = linked.sum(1).rsqrt()
        self.links = degree[:, None] * linked * degree
        modules, shapes = topology.modules, topology.traced.shapes
        fixed = [self._describe(n, modules[m], shapes[m]) for n, m in enumerate(names[:count])]
        self.fixed = torch.tensor(fixed).view(count, FIXED)

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
        assert isinstance(layer, (*PRUNABLE, Heads))
        weight = layer.query.weight if isinstance(layer, Heads) else layer.weight
        own, stride = self.channels.layers[number], getattr(layer, "stride", (1,))
        pixels = shape[1:-1] if is_last(layer) else shape[2:]
        return [
            number / len(self.channels.layers),
            log2(weight.shape[1]) / 10,
            log2(own.count) / 10,
            (weight.shape[2] if weight.dim() > 2 else 1) / 5,
            stride[0] / 2,
            log2(torch.Size(pixels).numel()) / 10,
            log2(sum(piece.shape.numel() for piece in own.weights)) / 20,
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
        return float((self.flops * (1 - own * given) + self.products * (1 - own)).sum())

    def norms(self, scores: Tensor) -> Tensor:
        """Returns mean and deviation of each layer's filter norms, over the mean of all norms.

        Args:
            scores: each channel's norm, [channels].
        """
        norms = scores.cpu()
        layers = [norms[one.first : one.first + one.count] for one in self.channels.layers]
        pairs = [torch.stack([own.mean(), own.std(correction=0)]) for own in layers]
        return torch.stack(pairs) / norms.mean().clamp(min=1e-12)


def _shares(stays: Tensor, layer: Tensor, layers: int) -> Tensor:
    """Returns the share that stays of what belongs to each layer; 1 of nothing."""
    all_of, ours = torch.bincount(layer, minlength=layers), torch.bincount(layer[stays])
    ours = pad(ours, (0, layers - len(ours)))
    return torch.where(all_of > 0, ours / all_of.clamp(min=1), 1.0)


def fitted(scene: Scene, order: Tensor, least: int, target: float) -> Tensor:
    """Returns as many channels as possible, in an order, that save the FLOPs, ascending: int64.

    When the next channel would cost too much, its layer gets no more, and the others go on.

    Args:
        scene: the network.
        order: channels, int64.
        least: how many of them are kept in any case.
        target: share of the FLOPs to save.
    """
    low, high = least, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        if scene.saved(order[:middle]) >= target:
            low = middle
        else:
            high = middle - 1
    chosen, full = order[:low], set[int]()
    for channel in order[low:]:
        layer = int(scene.owner[channel])
        if layer in full:
            continue
        more = torch.cat([chosen, channel.view(1)])
        if scene.saved(more) >= target:
            chosen = more
        else:
            full.add(layer)
        if len(full) == len(scene.channels.layers):
            break
    return chosen.sort().values


class Budget:
    """A model's channels by their scores, and the share of FLOPs to save.

    Args:
        scene: the network.
        scores: of each channel, float32 [channels].
        target: share of the FLOPs to save.
    """

    def __init__(self, scene: Scene, scores: Tensor, target: float) -> None:
        self.scene, self.target = scene, target
        # Each layer's channels by falling score; of equal ones the first comes first.
        self.falling = torch.cat(
            [
                layer.first + falling(scores.cpu()[layer.first : layer.first + layer.count])
                for layer in scene.channels.layers
            ]
        )

    def choose(self, action: Tensor) -> Tensor:
        """Returns the channels that an action [layers] keeps, ascending: int64.

        A layer keeps a share of its channels, those of the largest scores, in proportion to the
        exponential of its action, at least `LEAST` and at most all. The common factor is the
        largest with which the FLOPs are saved; if that cannot be, each layer keeps `LEAST`.
        """
        scene = self.scene
        # As the factor grows, channels join one by one, in this order.
        joins = torch.where(scene.always, 0, scene.share / action.exp()[scene.owner])
        order = self.falling[joins.argsort(stable=True)]
        return fitted(scene, order, int(scene.always.sum()), self.target)

    def equal(self) -> Tensor:
        """Returns the channels if the same share of every layer is kept."""
        return self.choose(torch.zeros(len(self.scene.channels.layers)))

    def overall(self, scores: Tensor) -> Tensor:
        """Returns the channels of the largest scores [channels] of all, `LEAST` of each layer."""
        first = self.falling[self.scene.always]
        others = torch.ones(len(scores), dtype=torch.bool)
        others[first] = False
        rest = others.nonzero().squeeze(1)
        order = torch.cat([first, rest[falling(scores.cpu()[rest])]])
        return fitted(self.scene, order, len(first), self.target)


def falling(scores: Tensor) -> Tensor:
    """Returns the places of scores [k], the largest first, of equal ones the first: int64 [k]."""
    return scores.argsort(descending=True, stable=True)


class Game(Budget):
    """What an agent acts on.

    Args:
        scene: the network.
        scores: the norm of each of the model's channels, float32 [channels].
        target: share of the FLOPs to save.
        loss_of: returns the loss of the model with the chosen channels [k] alone, ascending, on
            samples that are not trained on. It is asked in training only.

    Attributes:
        seen: descriptors of all layers, float32 [layers, FEATURES].
        best: the largest gain so far, and its action [layers]; None before the first.
    """

    def __init__(
        self, scene: Scene, scores: Tensor, target: float, loss_of: Callable[[Tensor], float]
    ) -> None:
        super().__init__(scene, scores, target)
        self.loss_of = loss_of
        self.best: tuple[float, Tensor] | None = None
        self.seen = torch.cat([scene.fixed, scene.norms(scores)], 1)

    def gain(self, action: Tensor) -> float:
        """Returns by how much the loss is smaller than with equal shares."""
        found = self.base - self.loss_of(self.choose(action))
        if self.best is None or found > self.best[0]:
            self.best = found, action
        return found

    @cached_property
    def base(self) -> float:
        """The loss with equal shares."""
        return self.loss_of(self.equal())


def density(action: Tensor, mean: Tensor, deviation: float) -> Tensor:
    """Returns the log density of actions, summed over the layers, up to a constant: [...]."""
    return -((action - mean) / deviation).square().sum(-1) / 2


class Learner:
    """Trains an agent, update by update.

    Args:
        agent: trained in place.
        heads_only: keep the graph convolutions unchanged.
    """

    def __init__(self, agent: Agent, heads_only: bool = False) -> None:
        self.agent = agent
        self.trained = agent.heads() if heads_only else list(agent.parameters())
        self.adam = torch.optim.Adam(self.trained, RATE)

    def moments(self) -> Tensor:
        """Returns Adam's state: number of steps, then both moments, float32 [1 + 2 trained]."""
        known = [self.adam.state[one] for one in self.trained]
        first = torch.cat([one["exp_avg"].flatten() for one in known])
        second = torch.cat([one["exp_avg_sq"].flatten() for one in known])
        return torch.cat([known[0]["step"].view(1), first, second])

    def resume(self, moments: Tensor) -> None:
        """Sets Adam's state, as `moments` returned it."""
        sizes = [one.numel() for one in self.trained]
        firsts, seconds = (half.split(sizes) for half in moments[1:].chunk(2))
        for one, first, second in zip(self.trained, firsts, seconds, strict=True):
            self.adam.state[one] = {
                "step": moments[0].clone(),
                "exp_avg": first.view_as(one).clone(),
                "exp_avg_sq": second.view_as(one).clone(),
            }

    def update(self, game: Game, random: np.random.Generator, deviation: float) -> float:
        """Tries a batch of actions, and moves the agent towards those that gained most.

        Args:
            game: what it acts on.
            random: source of the actions' noise.
            deviation: standard deviation of the noise.

        Returns:
            The batch's mean gain.
        """
        links = game.scene.links
        with torch.no_grad():
            mean = self.agent(game.seen, links)
        noise = torch.from_numpy(random.standard_normal((TRIALS, len(mean)))).float()
        actions = mean + deviation * (noise - noise.mean(1, keepdim=True))
        gains = torch.tensor([game.gain(action) for action in actions])
        advantages = (gains - gains.mean()) / (gains.std() + 1e-6)
        before = density(actions, mean, deviation)
        self.adam.param_groups[0]["lr"] = RATE * deviation / FIRST
        for _ in range(PASSES):
            moved = self.agent(game.seen, links)
            if float(-density(moved.detach(), mean, deviation)) > FURTHEST:
                break
            ratio = (density(actions, moved, deviation) - before).exp()
            clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
            better = torch.minimum(ratio * advantages, clipped * advantages)
            self.adam.zero_grad()
            (-better.mean()).backward()
            self.adam.step()
        return float(gains.mean())


def deviation(number: int, count: int) -> float:
    """Returns the standard deviation of the actions in an update, of so many."""
    return FIRST + (LAST - FIRST) * number / max(1, count - 1)


def train(agent: Agent, games: Sequence[Game], updates: int, random: np.random.Generator) -> None:
    """Trains an agent on games in turns, in place."""
    learner = Learner(agent)
    for number in range(updates):
        learner.update(games[number % len(games)], random, deviation(number, updates))


@torch.no_grad()
def choose(agent: Agent, game: Game) -> Tensor:
    """Returns the channels that the agent keeps, ascending: int64.

    They are those of its mean action or, if it has tried some out in this game, of the best of all.
    """
    mean = agent(game.seen, game.scene.links)
    if game.best is None:
        return game.choose(mean)
    game.gain(mean)
    return game.choose(game.best[1])
