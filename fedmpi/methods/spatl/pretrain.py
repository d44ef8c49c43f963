"""Trains SPATL's selection agent on a network and its data, before any federated run.

S. Yu et al., *SPATL* (SC 2022, arXiv 2111.14345) train their agent on pruning ResNet-56, and reuse
it on the clients' networks. Here the network is the one of the settings, trained centrally on all
samples for the number of rounds in the settings. The agent's reward uses the samples that are held
out from all clients (`validation`), never the test set.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedmpi import config, loading, models
from fedmpi.clients.population import Population
from fedmpi.config import ConfigError, Settings, Tree
from fedmpi.methods.spatl import agent, selection
from fedmpi.networks.flat import Flat
from fedmpi.networks.slicing import Channels
from fedmpi.networks.topology import Topology
from fedmpi.streams import Purpose, stream, torch_seed
from fedmpi.training.train import Trainer

USED = ("cut", "saved", "sparsity")
"""Settings of the method that matter here."""


class Lab:
    """A network that was trained centrally, and samples to judge its channels by.

    Args:
        tree: settings of a run; those of clients are ignored, and of `method` all but `USED`.

    Attributes:
        w: the trained model, [n].
        scene: the network as agents see it.
        target: share of the FLOPs to save.

    Raises:
        ConfigError: if the settings are wrong, if no samples are held out, or if the network has no
            channels.
    """

    def __init__(self, tree: Tree) -> None:
        given = {k: v for k, v in dict(tree.get("method", {})).items() if k in USED}
        method = {**given, "name": "spatl", "selection": "agent", "reserved": 0.0, "tuned": 0}
        alone = {"clients": 1, "participation": 1.0, "partition": {"name": "iid"}, "method": method}
        self.settings: Any = loading.load({**tree, **alone})
        settings: Settings = self.settings
        torch.set_num_threads(settings.threads)
        data = config.module("data", settings.data.name).load(settings.data, settings.seed)
        population = Population(settings, data)
        if not len(population.held_out):
            raise ConfigError(
                f"validation = {settings.validation}: wanted samples that are held out, found "
                "none; an agent is rewarded by them"
            )
        kind = (data.shape, data.classes, settings.seed, data.kind)
        flat = Flat(models.build(settings.model, *kind), settings.statistics == "local")
        trainer = Trainer(settings, flat, data, population, torch.device("cpu"))
        front, _ = flat.split(self.settings.method.cut or (flat.cuts() or [""])[-1])
        self.channels = Channels(Topology(front, data.shape), trainer.device)
        chooser = selection.ByAgent(self.settings.method, trainer, self.channels)
        self.judge, self.scene, self.target = chooser.judge, chooser.scene, chooser.target
        self.held = trainer.feed.take(torch.from_numpy(population.held_out))
        self.test = torch.from_numpy(data.test_x), torch.from_numpy(data.test_y)
        self.w = flat.initial.clone()
        for t in range(settings.rounds):
            self.w = trainer.train(t, (0,), self.w)[0].clone()

    def game(self, target: float | None = None) -> agent.Game:
        """Returns what an agent acts on, by default with the settings' share of FLOPs to save."""

        def loss_of(chosen: Tensor) -> float:
            return self.found(chosen, self.held)[0]

        scores = self.channels.norms(self.w)
        return agent.Game(self.scene, scores, self.target if target is None else target, loss_of)

    def found(self, chosen: Tensor, samples: tuple[Tensor, Tensor]) -> tuple[float, float]:
        """Returns mean loss and accuracy of the chosen channels [k] alone on `held` or `test`."""
        masked = self.channels.masked(self.w, chosen)
        return self.judge.found(masked, *samples)


def pretrain(tree: Tree, episodes: int, out: Path) -> str:
    """Trains the network of the settings, trains an agent on it, and writes the agent to a file.

    Args:
        tree: settings (see `Lab`).
        episodes: number of selections that the agent tries out, in batches of `agent.TRIALS`.
        out: the file.

    Returns:
        A sentence with the result.

    Raises:
        ConfigError: if no samples are held out, if the network has no channels, or if the file's
            folder does not exist.
    """
    if not out.parent.is_dir():
        raise ConfigError(f"{out}: wanted a file in a folder that is there")
    lab = Lab(tree)
    mind = agent.born(torch_seed(lab.settings.seed, Purpose.BIRTH))
    game = lab.game()
    random = stream(lab.settings.seed, Purpose.AGENT, -1, 0)
    agent.train(mind, game, episodes // agent.TRIALS, random)
    agent.save(mind, out)
    chosen = agent.choose(mind, game)
    shares = ", ".join(
        f"{int(((chosen >= one.first) & (chosen < one.first + one.count)).sum()) / one.count:.2f}"
        for one in lab.channels.layers
    )
    every = torch.arange(lab.channels.count)
    kept, equal, whole = (
        f"loss {loss:.3f}, {accuracy:.1%} right"
        for loss, accuracy in (lab.found(c, lab.held) for c in (chosen, game.equal(), every))
    )
    return (
        f"{out}: {4 * agent.SIZE} bytes; keeps {shares} of the layers' channels, which saves "
        f"{lab.scene.saved(chosen):.1%} of the FLOPs. Held out samples: {kept}; with equal shares "
        f"{equal}; with all channels {whole}"
    )
