"""Rules by which a SPATL client selects the channels of its encoder that it sends."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedmpi import config
from fedmpi.config import ConfigError, Settings
from fedmpi.methods.spatl import agent
from fedmpi.methods.spatl.agent import SHIPPED, TRIALS
from fedmpi.networks.slicing import Channels
from fedmpi.streams import Purpose, stream
from fedmpi.training.train import Trainer

Select = Callable[[int, int, Tensor, Tensor], Tensor]
"""Maps a round, a client, its model and its update [n] to channels, ascending: int64."""

BATCH = 256
"""Batch size in the evaluation of a masked model."""
RESERVE = 0.2
"""Share of a client's samples that is reserved for its agent's reward, as in the authors' code."""


class Config(config.Method):
    selection: Literal["uniform", "l2", "random", "agent"] = "uniform"
    """How channels are selected. uniform: largest norms, the same share of each layer. l2: largest
    norms of all layers together. random: at random, the same share of each layer. agent: largest
    norms, as many per layer as an agent decides (the paper)."""
    salience: Literal["update", "weight"] = "update"
    """Whose norms rank channels with selection = uniform or l2. update: those of the client's
    update. weight: those of its weights (the paper). An agent always ranks by weights."""
    sparsity: float = Field(0.5, ge=0, lt=1)
    """Share of the encoder's channels that are not sent. An agent saves as many FLOPs as the same
    share of every layer would."""
    saved: float | None = Field(None, gt=0, lt=1)
    """Share of the network's FLOPs that the selected channels save when the network is sliced. If
    given, as many channels are selected as save it, and sparsity is not used."""
    reserved: float | None = Field(None, ge=0, lt=1)
    """Share of each client's training samples that it does not train on. Agents are rewarded by
    them. If absent, it is 0.2 with selection = agent and 0 otherwise. Selections are compared on
    the same training data if it is the same for all."""
    agent: Annotated[config.Place | None, config.READ] = None
    """File of the agent that every client starts with, made by fedmpi agent. If absent, it is the
    one that comes with the project. Only with selection = agent."""
    episodes: int = Field(25, ge=TRIALS, le=config.MOST, multiple_of=TRIALS)
    """Selections per round that a client's agent tries out and learns from, in batches of 25. Only
    with selection = agent."""
    tuned: int = Field(10, ge=0, le=config.MOST)
    """Number of first rounds in which agents learn, heads only. Later they only decide. Only with
    selection = agent."""

    def reserve(self) -> float:
        """Returns the share of a client's samples that is reserved for its agent's reward."""
        if self.reserved is None:
            return RESERVE if self.selection == "agent" else 0.0
        return self.reserved

    def reads(self) -> dict[str, Path]:
        """Returns the agent that comes with the project, if clients start with it."""
        is_shipped = self.selection == "agent" and self.agent is None
        return {"agent": SHIPPED} if is_shipped else {}

    def idle(self, settings: Settings) -> dict[str, str]:
        """Names the settings that have no effect, and what would give them one."""
        found = super().idle(settings)
        if self.saved is not None:
            found["sparsity"] = f"no method.saved, found {self.saved}"
        if self.selection == "agent":
            return found | {"salience": "another method.selection than 'agent'"}
        if self.selection == "random":
            found["salience"] = "method.selection = 'uniform' or 'l2', found 'random'"
        agents = ("agent", "episodes", "tuned")
        return found | dict.fromkeys(agents, "method.selection = 'agent'")

    def problems(self, settings: Settings) -> list[str]:
        """Names what cannot be run."""
        found = super().problems(settings)
        if self.selection == "agent" and self.saved is None and not self.sparsity:
            found.append(
                "method.sparsity = 0: wanted above 0, or method.saved, because method.selection = "
                "'agent' has nothing to decide"
            )
        if self.selection == "agent" and self.tuned and not self.reserve():
            found.append(
                "method.reserved = 0: wanted above 0, because agents are rewarded by reserved "
                "samples; possible is 0 with method.tuned = 0"
            )
        return found

    def begin(self) -> Tensor:
        """Returns the initial agent of all clients, [agent.SIZE]; without agents [0].

        Raises:
            ConfigError: if its file holds none.
        """
        if self.selection != "agent":
            return torch.empty(0)
        return agent.read(SHIPPED if self.agent is None else Path(self.agent))


def target(method: Config, scene: agent.Scene) -> float:
    """Returns the share of FLOPs that a selection is to save.

    Raises:
        ConfigError: if that cannot be saved.
    """
    channels = scene.channels
    if method.saved is None:
        return scene.saved(channels.evenly(torch.zeros(channels.count), method.sparsity))
    most = scene.saved(scene.always.nonzero().squeeze(1))
    if method.saved > most:
        raise ConfigError(
            f"method.saved = {method.saved}: wanted at most {most:.3f}, which the network saves if "
            f"each layer of the encoder keeps {agent.LEAST:.0%} of its channels"
        )
    return method.saved


def by_rule(method: Config, trainer: Trainer, channels: Channels) -> Select:
    """Returns the selection by the largest norms, in each layer or overall, or at random.

    Raises:
        ConfigError: if as many FLOPs as wanted cannot be saved.
    """
    scene = None
    if method.saved is not None:
        scene = agent.Scene(trainer.flat, channels, tuple(trainer.feed.x.shape[1:]))
        target(method, scene)

    def select(t: int, client: int, w: Tensor, update: Tensor) -> Tensor:
        scores = channels.norms(update if method.salience == "update" else w)
        if method.selection == "random":
            seed = trainer.settings.seed
            drawn = stream(seed, Purpose.SALIENT, t, client).random(channels.count)
            scores = torch.from_numpy(drawn).to(w.device)
        if scene is not None and method.saved is not None:
            budget = agent.Budget(scene, scores, method.saved)
            chosen = budget.overall(scores) if method.selection == "l2" else budget.equal()
            return chosen.to(w.device)
        if method.selection == "l2":
            return channels.overall(scores, method.sparsity)
        return channels.evenly(scores, method.sparsity)

    return select


class Judge:
    """Evaluates masked models on a network of its own.

    The trainer's networks cannot be used, because they hold what clients are about to send.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.flat = trainer, trainer.flat
        self.w = torch.zeros(self.flat.size, device=trainer.device)
        self.local_stats = self.flat.local_stats.to(trainer.device, copy=True)
        self.network = self.flat.network(self.w, self.local_stats).train(False)

    def loss(self, w: Tensor, positions: np.ndarray, client: int) -> float:
        """Returns the mean loss of the client's model w [n] on some training samples."""
        if self.trainer.keeps_statistics:
            self.local_stats.copy_(self.trainer.statistics.get(client, self.flat.local_stats))
        return self.found(w, *self.trainer.feed.take(torch.from_numpy(positions)))[0]

    @torch.no_grad()
    def found(self, w: Tensor, x: Tensor, y: Tensor) -> tuple[float, float]:
        """Returns mean loss and accuracy of a model w [n] on samples; zeros if there are none."""
        self.w.copy_(w)
        loss = right = 0.0
        for some, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
            outputs = self.network(some)
            loss += float(cross_entropy(outputs, labels, reduction="sum"))
            right += int((outputs.argmax(1) == labels).sum())
        return loss / max(1, y.numel()), right / max(1, y.numel())


class ByAgent:
    """Selects channels by each client's agent.

    The agent says how many channels of each layer are sent; those of the largest norms are.

    Args:
        method: settings.
        trainer: gives the network, and each client's reserved samples.
        channels: channels of the encoder.

    Attributes:
        target: share of the FLOPs that a selection saves.
        agents: parameters of each client's agent, from the time when it receives one.
        moments: state of the optimizer of each agent that has learned.
        judged: each client's last round in which it selected, and how many samples went through
            the network as its agent tried models out, those of which channels are masked in part.

    Raises:
        ConfigError: if the encoder has no channels.
    """

    def __init__(self, method: Config, trainer: Trainer, channels: Channels) -> None:
        if not channels.count:
            raise ConfigError(
                "method.selection = 'agent': wanted an encoder with convolutions or linear layers, "
                "found none"
            )
        self.method, self.trainer, self.channels = method, trainer, channels
        self.agents = trainer.stores.add("agent", agent.SIZE)
        self.moments = trainer.stores.add("agent's moments", 1 + 2 * agent.HEADS)
        self.scene = agent.Scene(trainer.flat, channels, tuple(trainer.feed.x.shape[1:]))
        self.target = target(method, self.scene)
        self.judge = Judge(trainer)
        self.judged: dict[int, tuple[int, float]] = {}
        self.spent = 0.0

    def __call__(self, t: int, client: int, w: Tensor, update: Tensor) -> Tensor:
        """Selects a client's channels in round t; in the first rounds its agent learns before."""
        self.spent = 0.0
        game = self.game(w, self.trainer.population.reserved[client], client)
        mind = agent.born(0)
        mind.load(self.agents[client])
        if t < self.method.tuned:
            random = stream(self.trainer.settings.seed, Purpose.AGENT, t, client)
            learner = agent.Learner(mind, heads_only=True)
            if client in self.moments:
                learner.resume(self.moments[client])
            for _ in range(self.method.episodes // TRIALS):
                learner.update(game, random, agent.deviation(t, self.method.tuned))
            self.agents[client], self.moments[client] = mind.vector(), learner.moments()
        chosen = agent.choose(mind, game)
        self.judged[client] = t, self.spent
        return chosen.to(w.device)

    def decide(self, client: int, w: Tensor) -> Tensor:
        """Selects channels of a model w [n] by the client's agent, or the initial one, as it is."""
        mind = agent.born(0)
        mind.load(self.agents[client] if client in self.agents else self.method.begin())
        game = agent.Game(self.scene, self.channels.norms(w), self.target, lambda chosen: 0.0)
        return agent.choose(mind, game).to(w.device)

    def forwards(self, t: int, client: int) -> float:
        """Returns the samples that the client's agent had go through the network in round t."""
        last, spent = self.judged.get(client, (t, 0.0))
        return spent if last == t else 0.0

    def game(self, w: Tensor, positions: np.ndarray, client: int) -> agent.Game:
        """Returns what an agent acts on: a model w [n], judged on some training samples."""

        def loss_of(chosen: Tensor) -> float:
            self.spent += len(positions) * (1 - self.scene.saved(chosen))
            return self.judge.loss(self.channels.masked(w, chosen), positions, client)

        return agent.Game(self.scene, self.channels.norms(w), self.target, loss_of)
