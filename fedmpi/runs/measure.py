"""A kept model is measured again: on the test set, and on the clients' shards."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedmpi.config import ConfigError
from fedmpi.engine import Engine
from fedmpi.errors import fitting
from fedmpi.messages.clock import Clock
from fedmpi.messages.wire import Wire
from fedmpi.networks.flat import Piece
from fedmpi.results import kept, record
from fedmpi.results.kept import Kept
from fedmpi.training.evaluate import mean

COLUMNS = ("accuracy", "validation", "shard_mean", "shard_std", "shard_min", "personal_mean")
"""Accuracies of the table `rounds`."""


@dataclass(frozen=True)
class Measured:
    """Accuracies of a kept model, by the columns of the table `rounds`; NaN where there are none.

    Attributes:
        round: it is the model after this one.
        recorded: what the run found after that round.
        now: what is found now.
    """

    round: int
    recorded: dict[str, float]
    now: dict[str, float]


@fitting()
def measure(path: Path, words: tuple[str, ...] = ()) -> Measured:
    """Measures the model of a result as its run did, in this process alone.

    Args:
        path: the result.
        words: `key=value` settings that replace those of the run, such as another skew.

    Raises:
        BadInput: if the result keeps no model, the settings are not possible, data are missing, or
            the model is not that of the settings.
    """
    found, settings = kept.read(path), kept.settings_of(path, words)
    engine = Engine(settings)
    flat, population, t = engine.flat, engine.population, found.round
    tensors = [*flat.parameters, *([] if flat.is_local else flat.statistics)]
    w = torch.empty(flat.size)
    _fill(path, w, tensors, _thawed(path, engine, found.model))
    w = w.to(engine.trainer.device)
    server, evaluation = engine.server, engine.evaluation
    assert server is not None
    server.w.copy_(w)
    owned = _owned(path, engine, found)
    evaluation.begin(t)
    now, verdict = dict.fromkeys(COLUMNS, np.nan), None
    if settings.method.is_global:
        verdict = evaluation.evaluate(w, server.variants(t))
    elif owned is not None and engine.clients.deployed is not None:
        wire = Wire(clock := Clock())
        verdict = evaluation.evaluate_deployed(w, owned, engine.placement, wire, clock)
    if verdict is not None:
        now |= verdict.figures(population.newcomers)
    if owned is not None and settings.method.owns:
        models = [(client, owned(client, w)) for client in sorted(population.sample(t))]
        values = np.array(list(evaluation.on_shards(models).values()))
        now["personal_mean"] = mean(values[np.isfinite(values)])
    return Measured(t, _recorded(path, t), now)


def _thawed(path: Path, engine: Engine, tensors: kept.Tensors) -> kept.Tensors:
    """Gives the network what is frozen of a model; returns the other tensors.

    Raises:
        ConfigError: if it has no such tensors.
    """
    frozen = engine.flat.frozen
    for name, own in frozen.items():
        if np.shape(tensors.get(name, ())) != tuple(own.shape) or name not in tensors:
            raise ConfigError(
                f"{path}: its model is not the one of these settings: wanted {name} of shape "
                f"{tuple(own.shape)}, which is frozen; possible are settings by which the network "
                "stays as it is"
            )
        own.data.copy_(torch.from_numpy(np.array(tensors[name])))
    return {name: values for name, values in tensors.items() if name not in frozen}


def _fill(path: Path, vector: Tensor, pieces: list[Piece], tensors: kept.Tensors) -> None:
    """Fills a vector with tensors.

    Raises:
        ConfigError: if they are others than the pieces of a network.
    """
    wanted = {piece.name: tuple(piece.shape) for piece in pieces}
    found = {name: np.shape(values) for name, values in tensors.items()}
    if wanted != found:
        other = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
        raise ConfigError(
            f"{path}: its model is not the one of these settings: {other[0]} is "
            f"{found.get(other[0], 'not there')}, wanted {wanted.get(other[0], 'none')}; possible "
            "are settings by which the network stays as it is"
        )
    for piece in pieces:
        piece.of(vector).copy_(torch.from_numpy(np.array(tensors[piece.name])))


def _owned(path: Path, engine: Engine, found: Kept) -> Callable[[int, Tensor], Tensor] | None:
    """Makes a client's model of the server's w [n]; None if clients have nothing of their own.

    Their local statistics are handed to the trainer.
    """
    flat, clients = engine.flat, engine.settings.clients
    if not found.own:
        private, trainer = engine.clients.private, engine.trainer
        is_shared = private is not None and not private.any() and not trainer.keeps_statistics
        return (lambda client, w: w) if is_shared else None
    count = len(next(iter(found.own.values())))
    if count != clients:
        raise ConfigError(
            f"{path}: it keeps what {count} clients have of their own; wanted clients = {count}, "
            f"found {clients}"
        )
    if flat.is_local and all(piece.name in found.own for piece in flat.statistics):
        for client in range(clients):
            own = {piece.name: found.own[piece.name][client] for piece in flat.statistics}
            if not any(np.isnan(values).all() for values in own.values()):
                vector = torch.empty(len(flat.local_stats))
                _fill(path, vector, flat.statistics, own)
                engine.trainer.statistics[client] = vector
    aside = {piece.name for piece in flat.statistics} if flat.is_local else set()
    pieces = [piece for piece in (*flat.parameters, *flat.statistics) if piece.name not in aside]
    pieces = [piece for piece in pieces if piece.name in found.own]

    def owned(client: int, w: Tensor) -> Tensor:
        model = w.clone()
        for piece in pieces:
            own = torch.from_numpy(np.array(found.own[piece.name][client]))
            piece.of(model).copy_(own)
        return model

    return owned


def _recorded(path: Path, t: int) -> dict[str, float]:
    """The accuracies that a result has of round t."""
    rounds = record.read(path, lambda file: record.rows(file, "rounds"))
    rows = rounds[rounds["round"] == t]
    return {name: float(rows[name][0]) if len(rows) else np.nan for name in COLUMNS}
