"""Models: one module for each family, with a `Config` and `stages(config, shape, classes)`.

A model is a sequence of named stages. Each name but the last is a split point, `method.cut`. A
model of symbols also has `READS = "symbols"`, and its `stages` takes their number, too.
A module whose weights are published under other names has `PUBLISHED`: layouts of names (see
`networks.initial.Layout`).
A module's docstring is its description in `fedmpi list models`.

What of a model trains, its adapters and its initial weights are settings of every model
(`config.Model`); `build` sees to them.
"""

import torch
from torch import nn

from fedmpi import config
from fedmpi.config import ConfigError
from fedmpi.networks import adapters, initial, layers, parts
from fedmpi.streams import Purpose, torch_seed


def build(
    settings: config.Model,
    shape: tuple[int, ...],
    classes: int,
    seed: int,
    samples: str = "numbers",
    symbols: int | None = None,
) -> nn.Sequential:
    """Builds a network with its initial parameters, the same on every rank.

    Initial weights of a file take the place of drawn ones, then come the adapters, and then what
    does not train is frozen.

    Args:
        settings: the table `[model]`.
        shape: shape of one sample, channels first.
        classes: number of labels.
        seed: seed of the run.
        samples: kind of the samples' values, numbers or symbols (see `Dataset.kind`).
        symbols: number of symbols; None if they are the labels.

    Raises:
        ConfigError: if the network does not fit the samples, a layer is impossible, the file of
            initial weights does not fit, or what trains is no part of the network.
    """
    module = config.module("model", settings.name)
    if _reads(settings.name) != samples:
        possible = (name for name in config.names("model") if _reads(name) == samples)
        raise ConfigError(
            f"model.name = '{settings.name}': wanted samples of {_reads(settings.name)}, found "
            f"samples of {samples}; models for those are: {', '.join(possible)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, Purpose.MODEL))
        more = (symbols or classes,) if samples == "symbols" else ()
        stages = module.stages(settings, shape, classes, *more)
    network = nn.Sequential(stages)
    if settings.initial is not None:
        published = getattr(module, "PUBLISHED", ())
        initial.load(network, settings.initial, settings.fresh, published)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, Purpose.ADAPTER))
        adapters.fitted(network, settings)
    fixed = adapters.drawn(network) if settings.lora.fixed else ()
    parts.freeze(network, settings.train, tuple(fixed))
    layers.check(network)
    return network


def _reads(name: str) -> str:
    """Returns the kind of samples that a family of networks needs: numbers or symbols."""
    return getattr(config.module("model", name), "READS", "numbers")
