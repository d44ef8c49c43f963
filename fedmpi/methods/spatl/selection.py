"""Rules by which a SPATL client selects the channels of its encoder that it sends."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.config import ConfigError, Settings
from fedmpi.methods.spatl import agent
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
    """Share of the encoder's channels that are not sent. Not used with selection = agent."""
    agent: Annotated[config.Place | None, config.READ] = None
    """File of the agent that every client starts with, made by fedmpi agent. Only with selection =
    agent."""
    saved: float = Field(0.2, gt=0, lt=1)
    """Minimum share of the FLOPs that the agent's selection must save. Only with selection =
    agent."""
    episodes: int = Field(30, ge=1, le=config.MOST)
    """Episodes per round in which a client's agent learns. Only with selection = agent."""
    tuned: int = Field(10, ge=0, le=config.MOST)
    """Number of first rounds in which agents learn, heads only. Later they only decide. Only with
    selection = agent."""

    def reserve(self) -> float:
        """Returns the share of a client's samples that is reserved for its agent's reward."""
        return RESERVE if self.selection == "agent" else 0.0

    def idle(self, settings: Settings) -> dict[str, str]:
        """Names the settings that have no effect, and what would give them one."""
        found = super().idle(settings)
        if self.selection == "agent":
            other = "another method.selection than 'agent'"
            return found | {"sparsity": other, "salience": other}
        if self.selection == "random":
            found["salience"] = "method.selection = 'uniform' or 'l2', found 'random'"
        agents = ("agent", "saved", "episodes", "tuned")
        return found | dict.fromkeys(agents, "method.selection = 'agent'")

    def problems(self, settings: Settings) -> list[str]:
        """Names what cannot be run."""
        found = super().problems(settings)
        if self.selection == "agent" and self.agent is None:
            found.append("method.agent: wanted a file, because method.selection = 'agent'")
        return found

    def begin(self) -> Tensor:
        """Returns the initial agent of all clients, [agent.SIZE]; without agents [0].

        Raises:
            ConfigError: if its file holds none.
        """
        return torch.empty(0) if self.agent is None else agent.read(Path(self.agent))


def by_rule(method: Config, channels: Channels, seed: int) -> Select:
    """Returns the selection by the largest norms, in each layer or overall, or at random."""
    sparsity = method.sparsity

    def select(t: int, client: int, w: Tensor, update: Tensor) -> Tensor:
        norms = channels.norms(update if method.salience == "update" else w)
        if method.selection == "l2":
            return channels.overall(norms, sparsity)
        if method.selection == "uniform":
            return channels.evenly(norms, sparsity)
        random = stream(seed, Purpose.SALIENT, t, client).random(channels.count)
        return channels.evenly(torch.from_numpy(random).to(w.device), sparsity)

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

    @torch.no_grad()
    def accuracy(self, w: Tensor, positions: np.ndarray, client: int) -> float:
        """Returns the accuracy of the client's model w [n] on some training samples, in percent."""
        if not len(positions):
            return 0.0
        self.w.copy_(w)
        if self.trainer.keeps_statistics:
            self.local_stats.copy_(self.trainer.statistics.get(client, self.flat.local_stats))
        right = 0
        for some in torch.from_numpy(positions).split(BATCH):
            x, y = self.trainer.feed.take(some)
            right += int((self.network(x).argmax(1) == y).sum())
        return 100 * right / len(positions)


class ByAgent:
    """Selects channels by each client's agent.

    The agent says how many channels of each layer are sent; those of the largest norms are.

    Args:
        method: settings.
        trainer: gives the network, and each client's reserved samples.
        channels: channels of the encoder.

    Attributes:
        agents: parameters of each client's agent, from the time when it receives one.
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
        self.agents = trainer.store("agent", agent.SIZE)
        self.scene = agent.Scene(trainer.flat, channels, tuple(trainer.feed.x.shape[1:]))
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
            keep = agent.train(mind, game, self.method.episodes, random, heads_only=True)
            self.agents[client] = mind.vector()
        else:
            keep = agent.choose(mind, game)
        self.judged[client] = t, self.spent
        return game.chosen(keep).to(w.device)

    def forwards(self, t: int, client: int) -> float:
        """Returns the samples that the client's agent had go through the network in round t."""
        last, spent = self.judged.get(client, (t, 0.0))
        return spent if last == t else 0.0

    def game(self, w: Tensor, positions: np.ndarray, client: int) -> agent.Game:
        """Returns the agent's environment for a model w [n], evaluated on training samples."""

        def accuracy_of(keep: agent.Keep) -> float:
            chosen = game.chosen(keep)
            masked = self.channels.masked(w, chosen)
            self.spent += len(positions) * (1 - self.scene.saved(chosen))
            return self.judge.accuracy(masked, positions, client)

        scores = self.channels.norms(w)
        game = agent.Game(self.scene, scores, accuracy_of, self.method.saved)
        return game
