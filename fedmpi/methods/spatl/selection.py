"""Which channels of its encoder a client of SPATL sends."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.config import ConfigError, Settings
from fedmpi.methods.spatl import agent
from fedmpi.networks.channels import Channels
from fedmpi.streams import Purpose, stream
from fedmpi.training.store import Store
from fedmpi.training.train import Trainer

Select = Callable[[int, int, Tensor], Tensor]
"""Channels, ascending, for a round, a client and its model [n]: int64 on the model's device."""

BATCH = 256
"""Samples that a masked model is judged on at a time."""
RESERVE = 0.2
"""Share of a client's samples that its agent is rewarded by, as the authors' code has in mind."""


class Config(config.Method):
    selection: Literal["uniform", "l2", "random", "agent"] = "uniform"
    """How channels are selected. uniform: largest norms, the same share of each layer. l2: largest
    norms of all layers together. random: at random, the same share of each layer. agent: largest
    norms, as many per layer as an agent decides (the paper)."""
    sparsity: float = Field(0.5, ge=0, lt=1)
    """Share of the encoder's channels that are not sent. Not used with selection = agent."""
    agent: str | None = None
    """File of the agent that every client starts with, made by fedmpi agent. Only with selection =
    agent."""
    saved: float = Field(0.2, gt=0, lt=1)
    """Minimum share of the FLOPs that the agent's selection must save. Only with selection =
    agent."""
    episodes: int = Field(30, ge=1)
    """Episodes per round in which a client's agent learns. Only with selection = agent."""
    tuned: int = Field(10, ge=0)
    """Number of first rounds in which agents learn, heads only. Later they only decide. Only with
    selection = agent."""

    def reserve(self) -> float:
        """What agents are rewarded by is not trained on."""
        return RESERVE if self.selection == "agent" else 0.0

    def idle(self, settings: Settings) -> dict[str, str]:
        """See `config.Method.idle`."""
        found = super().idle(settings)
        if self.selection == "agent":
            return found | {"sparsity": "another method.selection than 'agent'"}
        agents = ("agent", "saved", "episodes", "tuned")
        return found | dict.fromkeys(agents, "method.selection = 'agent'")

    def problems(self, settings: Settings) -> list[str]:
        """See `config.Method.problems`."""
        found = super().problems(settings)
        if self.selection == "agent" and self.agent is None:
            found.append("method.agent: wanted a file, because method.selection = 'agent'")
        return found

    def begin(self) -> Tensor:
        """The agent that clients begin with, [agent.SIZE]; without agents [0].

        Raises:
            ConfigError: if its file holds none.
        """
        return torch.empty(0) if self.agent is None else agent.read(Path(self.agent))


def by_rule(method: Config, channels: Channels, seed: int) -> Select:
    """Channels of the largest norms, in each layer or of all of them; or random ones."""
    sparsity = method.sparsity

    def select(t: int, client: int, w: Tensor) -> Tensor:
        if method.selection == "l2":
            return channels.overall(channels.norms(w), sparsity)
        if method.selection == "uniform":
            return channels.evenly(channels.norms(w), sparsity)
        random = stream(seed, Purpose.SALIENT, t, client).random(channels.count)
        return channels.evenly(torch.from_numpy(random).to(w.device), sparsity)

    return select


class Judge:
    """A network of its own: those of the trainer hold what clients are about to send."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.flat = trainer, trainer.flat
        self.w = torch.zeros(self.flat.size, device=trainer.device)
        self.local_stats = self.flat.local_stats.to(trainer.device, copy=True)
        self.network = self.flat.network(self.w, self.local_stats).train(False)

    @torch.no_grad()
    def accuracy(self, w: Tensor, positions: np.ndarray, client: int) -> float:
        """How many training samples the client's model w [n] classifies rightly, in percent."""
        if not len(positions):
            return 0.0
        self.w.copy_(w)
        if self.trainer.keeps:
            self.local_stats.copy_(self.trainer.statistics.get(client, self.flat.local_stats))
        right = 0
        for some in torch.from_numpy(positions).split(BATCH):
            x, y = self.trainer.feed.take(some)
            right += int((self.network(x).argmax(1) == y).sum())
        return 100 * right / len(positions)


class ByAgent:
    """Channels as each client's agent says: how many of each layer; of those, the largest norms.

    Args:
        method: settings.
        trainer: knows the network, and each client's reserved samples.
        channels: of the encoder.

    Attributes:
        agents: each client's, from when it is told its first one.

    Raises:
        ConfigError: if there is nothing to choose from.
    """

    def __init__(self, method: Config, trainer: Trainer, channels: Channels) -> None:
        if not channels.count:
            raise ConfigError(
                "method.selection = 'agent': wanted an encoder with convolutions or linear layers, "
                "found none"
            )
        self.method, self.trainer, self.channels = method, trainer, channels
        self.agents = Store(trainer.settings.state, agent.SIZE)
        self.scene = agent.Scene(trainer.flat, channels, tuple(trainer.feed.x.shape[1:]))
        self.judge = Judge(trainer)

    def __call__(self, t: int, client: int, w: Tensor) -> Tensor:
        """See `Select`; the client's agent is in `agents`, and learns."""
        game = self.game(w, self.trainer.population.reserved[client], client)
        mind = agent.born(0)
        mind.load(self.agents[client])
        if t < self.method.tuned:
            random = stream(self.trainer.settings.seed, Purpose.AGENT, t, client)
            keep = agent.train(mind, game, self.method.episodes, random, heads_only=True)
            self.agents[client] = mind.vector()
        else:
            keep = agent.choose(mind, game)
        return self.chosen(self.channels.norms(w), keep)

    def chosen(self, norms: Tensor, keep: agent.Keep) -> Tensor:
        """Channels of the largest norms, as many of each layer."""
        return self.channels.largest(norms, self.scene.counts(keep))

    def game(self, w: Tensor, positions: np.ndarray, client: int) -> agent.Game:
        """What an agent plays: to spare FLOPs of w [n], judged by training samples."""
        norms = self.channels.norms(w)

        def accuracy_of(keep: agent.Keep) -> float:
            masked = self.channels.masked(w, self.chosen(norms, keep))
            return self.judge.accuracy(masked, positions, client)

        return agent.Game(self.scene, self.scene.norms(w), accuracy_of, self.method.saved)
