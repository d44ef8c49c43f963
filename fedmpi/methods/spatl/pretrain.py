"""Trains SPATL's selection agent on a network and its data, before any federated run.

S. Yu et al., *SPATL* (SC 2022, arXiv 2111.14345) train their agent on pruning ResNet-56, and reuse
it on the clients' networks. Here the network is the one of the settings, trained centrally on all
samples for the number of rounds in the settings. The agent's reward uses the samples that are held
out from all clients (`validation`), never the test set.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedmpi import config, loading, models, words
from fedmpi.clients.population import Population
from fedmpi.config import ConfigError
from fedmpi.draft import try_out
from fedmpi.errors import fitting
from fedmpi.methods.spatl import agent
from fedmpi.methods.spatl.selection import ByAgent
from fedmpi.networks.flat import Flat
from fedmpi.networks.slicing import Channels
from fedmpi.networks.topology import Topology
from fedmpi.streams import Purpose, stream, torch_seed
from fedmpi.training import hardware
from fedmpi.training.train import Trainer


@fitting()
def pretrain(tree: dict[str, Any], episodes: int, out: Path) -> str:
    """Trains the network of the settings, trains an agent on it, and writes the agent to a file.

    Args:
        tree: settings; of `method` only `cut` and `saved` are used, and settings of clients are
            ignored.
        episodes: number of episodes that the agent learns from.
        out: the file.

    Returns:
        A sentence with the result.

    Raises:
        BadInput: if no samples are held out, if the network has no channels, or if the file cannot
            be written.
    """
    tree = words.meant(config.Settings, tree)
    if not isinstance(tree.get("method", {}), dict):
        loading.load(tree)  # it says what is wrong
    given = {k: v for k, v in tree.get("method", {}).items() if k in ("cut", "saved")}
    # A client of a run that begins with the agent which the file is going to hold.
    method = {**given, "name": "spatl", "selection": "agent", "agent": str(out)}
    alone = {"clients": 1, "participation": 1.0, "partition": {"name": "iid"}, "method": method}
    settings: Any = loading.load({**tree, **alone})
    try_out(out, "--out")
    torch.set_num_threads(hardware.threads(settings))
    data = config.module("data", settings.data.name).load(settings.data, settings.seed)
    population = Population(settings, data)
    if not len(population.held_out):
        raise ConfigError(
            f"validation = {settings.validation}: wanted samples that are held out, found none; "
            "an agent is rewarded by them"
        )
    kind = (data.shape, data.classes, settings.seed, data.kind)
    flat = Flat(models.build(settings.model, *kind), settings.statistics == "local")
    trainer = Trainer(settings, flat, data, population, torch.device("cpu"))
    front, _ = flat.split(settings.method.cut or (flat.cuts() or [""])[-1])
    channels = Channels(Topology(front, data.shape), trainer.device)
    chooser = ByAgent(settings.method, trainer, channels)
    w = flat.initial.clone()
    for t in range(settings.rounds):
        w = trainer.train(t, (0,), w)[0].clone()
    mind = agent.born(torch_seed(settings.seed, Purpose.BIRTH))
    game = chooser.game(w, population.held_out, 0)
    before = chooser.judge.accuracy(w, population.held_out, 0)
    agent.train(mind, game, episodes, stream(settings.seed, Purpose.AGENT, -1, 0))
    agent.save(mind, out)
    keep = agent.choose(mind, game)
    shares = ", ".join(f"{share:.2f}" for share in np.round(keep.numpy(), 2))
    return (
        f"{out}: {4 * agent.SIZE} bytes; keeps {shares} of the layers' channels, which saves "
        f"{game.saved(keep):.1%} of the FLOPs; {game.accuracy_of(keep):.1f} % of the held "
        f"out samples are right, {before:.1f} % with all channels"
    )
