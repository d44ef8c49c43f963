"""Models: one module a family, with a `Config` and `stages(config, shape, classes)`.

A model is a sequence of named stages; each name but the last is a split point, `method.cut`.
A module's docstring is its description in `fedmpi list models`.
"""

import torch
from torch import nn

from fedmpi import config, layers
from fedmpi.streams import Purpose, torch_seed


def build(settings: config.Model, shape: tuple[int, ...], classes: int, seed: int) -> nn.Sequential:
    """A network with its initial parameters, the same on every rank.

    Args:
        settings: the table `[model]`.
        shape: of one sample, channels first.
        classes: number of labels.
        seed: of the run.

    Raises:
        ConfigError: if the network does not fit the samples, or has a layer that cannot be.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, Purpose.MODEL))
        stages = config.module("model", settings.name).stages(settings, shape, classes)
    network = nn.Sequential(stages)
    layers.check(network)
    return network
