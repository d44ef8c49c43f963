"""Which parameters of a network train, and which are frozen.

Design
    A network says by itself what of it is frozen: parameters that require no gradient, as anywhere
    in torch, and norms whose `is_frozen` is set. `freeze` sets both from the settings, when the
    model is built. `Flat` reads it there: the vector w of a run, its gradients and its pieces are
    what trains alone. What is frozen is in no vector; `Flat` keeps it beside them, and every copy
    of the network shares it (rows, probes, the parts in front of a cut and behind it).
    So methods see nothing of it. Densities, masks, norms, optimizers, messages and clients' state
    are over w. Autograd computes no gradient of a frozen weight, and does not run back beyond the
    first layer that trains. FLOPs and memory are counted so (`flops`, `clients.burden`).
    A norm is frozen with the last of its own parameters. It then uses its running statistics in
    training, too, and these neither move nor travel. A norm without parameters that could train
    stays as it is.
    What is frozen is drawn from the run's seed, which every client knows, or read from a file
    (`model.initial`). In the first case nothing is sent. In the second a client has to be sent the
    frozen part of its network once; `base` in a result counts these bytes (`results.tables`).
    Tensors of a safetensors file are mapped into memory, so that the ranks of a node share one
    copy. What is drawn, or read from a result, lies in the memory of each rank.
    Methods that change the shape of a network (`config.Method.reshapes`) need all of its weights in
    w, and are refused beside frozen ones.
"""

from collections.abc import Iterator, Sequence

from torch import nn

from fedmpi.config import ConfigError
from fedmpi.networks import adapters
from fedmpi.networks.layers import BatchNorm

ALL, HEAD, BIAS, ADAPTERS = "all", "head", "bias", "adapters"
"""Words for parameters that train; other texts are names."""


def freeze(network: nn.Sequential, wanted: Sequence[str], fixed: Sequence[str] = ()) -> None:
    """Freezes all parameters of a network but the wanted ones, in place.

    Args:
        network: of named stages.
        wanted: words, or names of stages, modules and tensors (see `config.Model.train`).
        fixed: parameters that are frozen although they are wanted.

    Raises:
        ConfigError: for a name that the network does not have, or if nothing is left that trains.
    """
    if ALL in wanted:
        return
    known = [name for name, _ in network.named_parameters()]
    stages, found, problems = [name for name, _ in network.named_children()], set[str](), []
    for one in wanted:
        some = set(_named(network, one, known))
        if not some:
            problems.append(
                f"model.train: the model has no parameters of the name '{one}'; possible are "
                f"{ALL}, {HEAD}, {BIAS}, {ADAPTERS}, a module or tensor, or a stage: "
                f"{', '.join(stages)}"
            )
        found |= some
    found -= set(fixed)
    if not found and not problems:
        problems.append("model.train: nothing of the model trains; wanted at least one parameter")
    if problems:
        raise ConfigError(*problems)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in found)
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.is_frozen = not any(own.requires_grad for own in module.parameters())


def _named(network: nn.Sequential, one: str, known: Sequence[str]) -> Iterator[str]:
    """The names of the parameters that a word or a name stands for."""
    head = f"{[name for name, _ in network.named_children()][-1]}."
    if one in (HEAD, BIAS, ADAPTERS):
        yield from (name for name in known if name.startswith(head))
        if one == BIAS:
            yield from (name for name in known if name.endswith("bias"))
        if one == ADAPTERS:
            yield from adapters.parameters(network)
        return
    yield from (name for name in known if name == one or name.startswith(f"{one}."))
