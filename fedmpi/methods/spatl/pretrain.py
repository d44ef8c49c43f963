"""Trains SPATL's selection agent on a network and its data, before any federated run.

S. Yu et al., *SPATL* (SC 2022, arXiv 2111.14345) train their agent on pruning ResNet-56, and reuse
it on the clients' networks. Here each network is trained centrally on all samples for the number
of rounds in its settings, and an agent may learn on several networks in turns. The agent's reward
uses the samples that are held out from all clients (`validation`), never the test set.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedmpi import config, datasets, loading, models, words
from fedmpi.clients.population import Population
from fedmpi.config import ConfigError, Settings, Tree
from fedmpi.draft import try_out
from fedmpi.errors import fitting
from fedmpi.methods.spatl import agent, selection
from fedmpi.networks.flat import Flat
from fedmpi.networks.slicing import Channels
from fedmpi.networks.topology import Topology
from fedmpi.streams import Purpose, stream, torch_seed
from fedmpi.training import hardware
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
        tree = words.meant(config.Settings, tree)
        if not isinstance(tree.get("method", {}), dict):
            loading.load(tree)  # it says what is wrong
        given = {k: v for k, v in tree.get("method", {}).items() if k in USED}
        method = {**given, "name": "spatl", "selection": "agent", "reserved": 0.0, "tuned": 0}
        alone = {"clients": 1, "participation": 1.0, "partition": {"name": "iid"}, "method": method}
        settings: Any = loading.load({**tree, **alone})
        self.settings: Settings = settings
        hardware.use_threads(hardware.threads(settings))
        data = datasets.load(settings)
        population = Population(settings, data)
        if not len(population.held_out):
            raise ConfigError(
                f"validation = {settings.validation}: wanted samples that are held out, found "
                "none; an agent is rewarded by them"
            )
        kind = (data.shape, data.classes, settings.seed, data.kind, data.symbols)
        flat = Flat(models.build(settings.model, *kind), settings.statistics == "local")
        trainer = Trainer(settings, flat, data, population, torch.device("cpu"))
        front, _ = flat.split(settings.method.cut or (flat.cuts() or [""])[-1])
        self.channels = Channels(Topology(front, data.shape), trainer.device)
        chooser = selection.ByAgent(settings.method, trainer, self.channels)
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


@fitting()
def pretrain(trees: Sequence[Tree], episodes: int, out: Path) -> str:
    """Trains the networks of settings, trains an agent on them in turns, and writes it to a file.

    Args:
        trees: settings of each network (see `Lab`). The first one's seed is the agent's.
        episodes: number of selections that the agent tries out, in batches of `agent.TRIALS`.
        out: the file.

    Returns:
        A line for each network with the result.

    Raises:
        BadInput: if no samples are held out, if a network has no channels, or if the file cannot
            be written.
    """
    try_out(out, "--out", agent.BEGINS)
    labs = [Lab(tree) for tree in trees]
    seed, games = labs[0].settings.seed, [lab.game() for lab in labs]
    mind = agent.born(torch_seed(seed, Purpose.BIRTH))
    random = stream(seed, Purpose.AGENT, -1, 0)
    agent.train(mind, games, episodes // agent.TRIALS, random)
    agent.save(mind, out)
    lines = [_result(lab, lab.game(), mind) for lab in labs]
    return "\n".join([f"{out}: {4 * agent.SIZE} bytes", *lines])


def _result(lab: Lab, game: agent.Game, mind: agent.Agent) -> str:
    chosen, every = agent.choose(mind, game), torch.arange(lab.channels.count)
    shares = ", ".join(
        f"{int(((chosen >= one.first) & (chosen < one.first + one.count)).sum()) / one.count:.2f}"
        for one in lab.channels.layers
    )
    kept, equal, whole = (
        f"loss {loss:.3f}, accuracy {accuracy:.1%}"
        for loss, accuracy in (lab.found(c, lab.held) for c in (chosen, game.equal(), every))
    )
    return (
        f"{lab.settings.model.name} keeps {shares} of its layers' channels and saves "
        f"{lab.scene.saved(chosen):.1%} of its FLOPs; held-out samples: {kept}; with equal shares "
        f"{equal}; with all channels {whole}"
    )
