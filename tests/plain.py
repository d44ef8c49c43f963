"""Plain torch as a second opinion: networks as modules, local training by `torch.optim.SGD`."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from mpi4py import MPI
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters

from fedmpi import config, models
from fedmpi.engine import Engine
from fedmpi.messages.clock import Clock
from fedmpi.messages.wire import Place, Wire
from fedmpi.results.outcome import Outcome
from tests.coded import wants_zstd
from tests.small import small

METHODS = config.names("method")
"""Every method: a new one is tested the moment that it exists."""
FILES = [Path(inspect.getfile(config.module("method", name))) for name in METHODS]
"""Their files, or the first one of a folder."""


def named(path: Path) -> str:
    """The name of a method's module."""
    return (path.parent if path.stem == "__init__" else path).stem


def values(annotation: Any) -> Iterator[str]:
    """The words that a setting of that type may be, if they can be listed: of flags and choices."""
    if annotation is bool:
        yield from ("true", "false")
    for part in get_args(annotation):
        yield from [part] if isinstance(part, str) else values(part)


CHOICES = [
    (f"method.name={name}", f"method.{key}={value}")
    for name in METHODS
    for key, field in config.module("method", name).Config.model_fields.items()
    for value in values(field.annotation)
    if key != "name" and value != str(field.default).lower()
]
"""Every method with each choice that its settings offer beside the default."""

FAMILIES = {
    "fedavg": ("method.name=fedavg",),
    "scaffold": ("method.name=scaffold",),
    "topk": ("method.name=topk",),
    "ssfl": ("method.name=ssfl",),
    "feddst": ("method.name=feddst",),
    "heterofl": ("method.name=heterofl",),
    "spatl": ("method.name=spatl",),
    "splitfed": ("method.name=splitfed",),
    "splitfed-v2": ("method.name=splitfed", "method.version=v2"),
    "fedsl-channels": ("method.name=fedsl", "method.structured=channels"),
    "changes": ("codec.down.values=f4", "codec.down.sparsity=0.9"),
}
"""What methods ask of the machinery, each by one of those that do.

In this order: nothing; vectors of the server's and of each client's that go with the model; sparse
updates, with what waits at the client; a mask that all agree on before the first round; a mask that
changes on the way, by gradients that are sent for it; a model of another width for each client; an
agent of each client's that chooses channels, and a head that stays there; activations and gradients
at a cut, with a back for each client, or one for all; a cut where channels are pruned; and the
server's model by its changes, to each client those that it missed.
"""
families = pytest.mark.parametrize("family", FAMILIES)

CODECS = {
    "zstd": ("codec.values=zstd", "codec.down.values=zstd"),
    "f2": ("codec.values=f2",),
    "bf16": ("codec.values=bf16", "feedback=classic"),
    "uniform": ("codec.values=uniform", "codec.bits=5", "codec.scales=tensor"),
    "nearest": (
        *("codec.values=uniform", "codec.rounding=nearest", "codec.scales=bucket"),
        *("codec.bucket=50", "feedback=ef21"),
    ),
    "ternary": ("codec.values=ternary", "codec.scales=bucket", "codec.bucket=64"),
    "sign": ("codec.values=sign", "codec.scales=tensor", "feedback=classic"),
    "control": ("codec.values=uniform", "control=mean"),
    "median": ("codec.values=uniform", "aggregation.rule=median", "feedback=ef21"),
    "golomb": ("method.name=topk", "codec.values=uniform", "codec.positions=golomb"),
    "varints": ("method.name=topk", "codec.positions=delta"),
    "zeros": ("method.name=topk", "codec.values=uniform", "codec.positions=dense"),
    "estimates": ("method.name=topk", "feedback=ef21"),
    "held": ("method.name=heterofl", "codec.values=uniform"),
    "halves": ("method.name=splitfed", "codec.values=uniform", "feedback=ef21"),
}
"""Each codec and each kind of feedback, in a method that can have it."""
codecs = pytest.mark.parametrize(
    "codec", [pytest.param(name, marks=wants_zstd if name == "zstd" else ()) for name in CODECS]
)

Change = Callable[[Tensor], Tensor]

CNN = ("model.name=cnn", "model.channels=[3,4]", "model.kernel=3", "model.hidden=10")
"""Convolutions, for images of 8x8 pixels."""
RNN = ("model.name=rnn", "model.hidden=9", "lr=0.5")
"""Recurrent layers, for sequences of symbols (see `small.text`)."""
SIZE = ("model.width=12", "model.heads=3", "model.depth=1", "model.ratio=2", "lr=0.05")
VIT = ("model.name=vit", *SIZE)
"""A transformer, for images of 8x8 pixels."""
BERT = ("model.name=bert", *SIZE, "model.pad=0")
"""A transformer of texts with padding, for sequences of symbols."""
EVERYTHING = ("momentum=0.9", "weight_decay=0.01", "clip=1.0", "lr_decay=0.9", "epochs=2")
"""All that local training can do."""


def allowed(*words: str) -> tuple[str, ...]:
    """Words without what their method refuses: DGC's momentum takes the place of a local one."""
    if "method.name=dgc" not in words:
        return words
    return tuple(word for word in words if not word.startswith("momentum="))


def place(comm: MPI.Intracomm) -> Place:
    """Where this rank is among those of a communicator; all of them ask together."""
    return Wire(Clock(), comm).place


def member(family: str, *words: str) -> tuple[str, ...]:
    """Words for a run of a family's member; where channels are pruned, some lie before the cut."""
    if family == "fedsl-channels":
        cuts = Engine(small("method.name=fedsl", *words)).flat.cuts()
        return (*FAMILIES[family], f"method.cut={cuts[-1]}", *words)
    return (*FAMILIES[family], *words)


def play(engine: Engine, comm: MPI.Intracomm = MPI.COMM_SELF) -> Iterator[Outcome | None]:
    """The engine's rounds on the ranks of a communicator, one by one."""
    clock = Clock()
    yield from engine.rounds(Wire(clock, comm), clock)


def network(engine: Engine, w: Tensor) -> nn.Sequential:
    """The engine's model with the parameters w [n], built anew."""
    settings, shape = engine.settings, tuple(engine.trainer.feed.x.shape[1:])
    stages = models.build(settings.model, shape, engine.trainer.feed.classes, settings.seed)
    vector_to_parameters(w.clone(), stages.parameters())
    return stages


def vector(module: nn.Module) -> Tensor:
    """A module's parameters in their order, [n]."""
    return parameters_to_vector(module.parameters()).detach()


def optimiser(engine: Engine, module: nn.Module, t: int) -> torch.optim.Optimizer:
    """Torch's own optimiser with the settings of round t."""
    settings = engine.settings
    common = {"lr": settings.lr * settings.lr_decay**t, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adam":
        betas = (settings.beta1, settings.beta2)
        return torch.optim.Adam(module.parameters(), betas=betas, eps=settings.epsilon, **common)
    return torch.optim.SGD(module.parameters(), momentum=settings.momentum, **common)


def positions(engine: Engine, t: int, client: int) -> Iterator[Tensor]:
    """Positions of the samples of each of the client's steps in round t."""
    return (pick.positions for pick in engine.trainer.feed.picks(t, client))


def train(
    engine: Engine, t: int, client: int, w: Tensor, mu: float = 0.0, change: Change | None = None
) -> tuple[Tensor, float]:
    """A client's model after its local training in round t, and its mean loss.

    Args:
        engine: gives settings and samples.
        t: the round.
        client: whose samples.
        w: the model at which training starts, [n].
        mu: the loss that is minimised has the term mu / 2 * ||v - w||^2 besides.
        change: makes of a gradient [n] the one that is followed.
    """
    module, losses = network(engine, w), []
    steps, parameters = optimiser(engine, module, t), list(module.parameters())
    for some in positions(engine, t, client):
        steps.zero_grad()
        loss = cross_entropy(module(engine.trainer.feed.x[some]), engine.trainer.feed.y[some])
        losses.append(float(loss.detach()))
        if mu:
            loss = loss + mu / 2 * (parameters_to_vector(parameters) - w).square().sum()
        loss.backward()
        if change is not None:
            gradient = change(parameters_to_vector([p.grad for p in parameters]))
            pieces = gradient.split([parameter.numel() for parameter in parameters])
            for parameter, piece in zip(parameters, pieces, strict=True):
                parameter.grad.copy_(piece.view_as(parameter))
        if engine.settings.clip:
            clip_grad_norm_(parameters, engine.settings.clip)
        steps.step()
    return vector(module), sum(losses) / len(losses)


def average(
    engine: Engine, t: int, w: Tensor, mu: float = 0.0, change: Change | None = None
) -> Tensor:
    """The mean of the models of round t's clients, weighted by samples."""
    total, samples = torch.zeros_like(w), 0
    for client in engine.population.sample(t):
        size = len(engine.population.shards[client])
        total += size * train(engine, t, client, w, mu, change)[0]
        samples += size
    return total / samples


def accuracy(module: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of the samples that the module classifies rightly; NaN of nothing."""
    with torch.no_grad():
        return float((module(x).argmax(1) == y).float().mean())
