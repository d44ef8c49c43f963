"""The model that a finished run leaves in its result: read, as a network, and in other formats.

Tensors have the names and shapes of the network's. Each is a dataset of a group:

* `model/NAME` [*shape]: the server's model, float32, with what is frozen of it.
* `mask/NAME` [*shape]: which of its values the method keeps, bool, if there is one mask for all.
* `own/NAME` [clients, *shape]: what clients have in its place, float32: parts that stay with them,
  or whole models. Running statistics, if they are local, are NaN for clients that never trained.
* `own_mask/NAME` [clients, *shape]: which of these values the mask of each client keeps, bool, if
  clients have masks of their own.

The attribute `kept_round` is the round after which it is the model.
"""

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedmpi import config, loading, models, weights
from fedmpi.config import Settings
from fedmpi.draft import draft
from fedmpi.networks import adapters, initial
from fedmpi.results import record
from fedmpi.results.record import RecordError
from fedmpi.weights import Tensors

MODEL, MASK, OWN, OWN_MASK = weights.MODEL, "mask", "own", "own_mask"
"""Groups of a result."""
ORIGIN = (
    *("identity", "settings", "data_sha256", "files_sha256", "code_sha256", "commit", "fedmpi"),
    "torch",
)
"""Attributes of a result that a file of safetensors has, too: how the model came about."""
FORMATS = {
    ".safetensors": re.compile(rb"[\s\S]{8}\{"),
    ".pt": re.compile(rb"PK"),
}
"""How files of exported models begin, by the ends of their names."""


@dataclass(frozen=True)
class Kept:
    """A kept model.

    Attributes:
        round: it is the model after this one.
        model: its tensors, by name.
        mask: which of their values the method keeps.
        own: tensors of clients, [clients, *shape].
        own_mask: which of their values clients' masks keep, [clients, *shape].
        about: the result's attributes, if it was read.
    """

    round: int
    model: Tensors
    mask: Tensors = field(default_factory=dict)
    own: Tensors = field(default_factory=dict)
    own_mask: Tensors = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def groups(self) -> record.Groups:
        """What is written into a result; empty groups are not."""
        every = {MODEL: self.model, MASK: self.mask, OWN: self.own, OWN_MASK: self.own_mask}
        return {name: tensors for name, tensors in every.items() if tensors}

    def of(self, client: int | None) -> dict[str, np.ndarray]:
        """The tensors of the model, in place of which a client's own are taken, if one is named.

        Local statistics of a client that never trained are left out.

        Raises:
            RecordError: if there is no such client, or clients have nothing of their own.
        """
        if client is None:
            return dict(self.model)
        if not self.own:
            raise RecordError(
                "the result keeps nothing that clients have of their own; wanted no client"
            )
        count = len(next(iter(self.own.values())))
        if not 0 <= client < count:
            raise RecordError(f"client {client}: no such client; there are 0 to {count - 1}")
        own = {name: values[client] for name, values in self.own.items()}
        known = {name: value for name, value in own.items() if not _is_unknown(value)}
        return {**self.model, **known}


def _is_unknown(values: np.ndarray) -> bool:
    return bool(np.isnan(values).all()) and values.size > 0


def read(path: Path) -> Kept:
    """Reads the model of a result.

    Raises:
        RecordError: if the file is missing, damaged or no result, or keeps no model.
    """

    def found(file: Any) -> Kept | str:
        if MODEL not in file:
            return str(file.attrs.get("status", ""))
        model, mask, own, own_mask = (
            {name: data[()] for name, data in file[group].items()} if group in file else {}
            for group in (MODEL, MASK, OWN, OWN_MASK)
        )
        t, about = int(file.attrs["kept_round"]), dict(file.attrs)
        return Kept(t, model, mask, own, own_mask, about)

    kept = record.read(path, found)
    if kept == record.DIVERGED:
        raise RecordError(f"{path}: the run diverged, and keeps no model")
    if isinstance(kept, str):
        raise RecordError(
            f"{path}: it keeps no model; wanted a finished run with keep = 'last' or 'best', and a "
            "model within keep_limit"
        )
    return kept


def settings_of(path: Path, words: tuple[str, ...] = ()) -> Settings:
    """Returns a recorded run's settings for this machine, with `key=value` words on top.

    Raises:
        ConfigError: if they are not possible here, such as a method of another version.
    """
    tree = config.portable(record.settings_of(path))
    loading.override(tree, words)
    return drawn(loading.load(tree))


def drawn(settings: Settings) -> Settings:
    """The settings without a file of initial weights, which a kept model has no need of."""
    model = settings.model.model_copy(update={"initial": None, "fresh": ()})
    return settings.model_copy(update={"model": model})


def module(path: Path, client: int | None = None) -> nn.Sequential:
    """Returns the network of a result with its weights, on the CPU, in evaluation mode.

    Args:
        path: the result.
        client: whose model; None for the server's.

    Raises:
        RecordError: if the file is missing, damaged or no result, or keeps no such model.
    """
    kept, settings = read(path), settings_of(path)
    try:
        shape = tuple(json.loads(kept.about["sample_shape"]))
        kind = int(kept.about["classes"]), settings.seed, str(kept.about["sample_kind"])
        symbols = kept.about.get("symbols")  # absent where they are the labels
        more = None if symbols is None else int(symbols)
        network = settings.method.network(models.build(settings.model, shape, *kind, more))
        state, tensors = network.state_dict(), kept.of(client)
        state |= {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
        network.load_state_dict(state)
    except record.DAMAGE as error:
        if isinstance(error, RecordError):
            raise RecordError(f"{path}: {error}") from None
        raise record.damaged(path, error) from None
    return network.train(False)


def export(path: Path, to: Path, client: int | None = None, merged: bool = False) -> int:
    """Writes a result's model into a file of its own.

    Args:
        path: the result.
        to: .safetensors, or .pt for `torch.load`.
        client: whose model; None for the server's.
        merged: whether low-rank products are put into the weights (see `networks.adapters`).

    Returns:
        The number of tensors.

    Raises:
        BadInput: if there is no such model, it cannot be merged, or the file cannot be written.
    """
    end = to.suffix.lower()
    if end not in FORMATS:
        raise RecordError(f"--to {to}: wanted a name that ends in {' or '.join(FORMATS)}")
    kept = read(path)
    try:
        tensors = kept.of(client)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None
    if merged:
        network = adapters.merged(module(path, client))
        tensors = {name: one.detach().numpy() for name, one in initial.tensors(network)}
    about = {"source": "fedmpi", "round": str(kept.round)}
    about |= {name: str(kept.about[name]) for name in ORIGIN if name in kept.about}
    content = weights.written(tensors, about) if end == ".safetensors" else _torch(tensors)
    with draft(to, "--to", FORMATS[end]) as file:
        file.write(content)
    return len(tensors)


def _torch(tensors: Tensors) -> bytes:
    """Returns tensors as `torch.save` writes a state dict."""
    file = io.BytesIO()
    torch.save({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}, file)
    return file.getvalue()
