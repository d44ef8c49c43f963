"""Models: one module for each family, with a `Config` and `stages(config, shape, classes)`.

A model is a sequence of named stages. Each name but the last is a split point, `method.cut`. A
model of symbols also has `READS = "symbols"`; it has as many symbols as there are classes.
A module's docstring is its description in `fedmpi list models`.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from fedmpi import config
from fedmpi.config import ConfigError
from fedmpi.networks import layers
from fedmpi.streams import Purpose, torch_seed


def build(
    settings: config.Model,
    shape: tuple[int, ...],
    classes: int,
    seed: int,
    samples: str = "numbers",
) -> nn.Sequential:
    """Builds a network with its initial parameters, the same on every rank.

    Args:
        settings: the table `[model]`.
        shape: shape of one sample, channels first.
        classes: number of labels.
        seed: seed of the run.
        samples: kind of the samples' values, numbers or symbols (see `Dataset.kind`).

    Raises:
        ConfigError: if the network does not fit the samples, or a layer is impossible.
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
        stages = module.stages(settings, shape, classes)
    network = nn.Sequential(stages)
    layers.check(network)
    return network


def _reads(name: str) -> str:
    """Returns the kind of samples that a family of networks needs: numbers or symbols."""
    return getattr(config.module("model", name), "READS", "numbers")


@dataclass(frozen=True)
class Front:
    """A network up to a split point, or as a whole.

    Attributes:
        name: name of its last stage.
        parameters: number of parameters.
        flops: FLOPs of the forward pass of one sample.
        floats: number of outputs for one sample, which are sent if the network is cut there.
    """

    name: str
    parameters: int
    flops: int
    floats: int


def fronts(network: nn.Sequential, shape: tuple[int, ...]) -> list[Front]:
    """Returns the network up to each split point, and then as a whole.

    Torch counts the FLOPs of the forward pass of a sample [*shape] in evaluation mode: convolutions
    and matrix products, with two FLOPs for a multiplication and an addition. Biases, norms,
    activations and pooling are not counted. This is the convention of SSFL and DisPFL (2 * weights
    * height * width for a convolution), in which a training step takes three times as many for each
    sample.
    """
    # Imported here, because a CUDA build of torch loads its compiler for it.
    from torch.utils.flop_counter import FlopCounterMode

    judged, found, parameters = copy.deepcopy(network).train(False), [], 0
    x = torch.zeros(1, *shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for name, stage in judged.named_children():
            x = stage(x)
            parameters += sum(parameter.numel() for parameter in stage.parameters())
            found.append(Front(name, parameters, counter.get_total_flops(), x.numel()))
    return found
