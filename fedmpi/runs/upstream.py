"""Trains a model centrally, and writes it into a file for `model.initial`.

It is a run of a single client, which has all samples: FedAvg with one client is training in one
place. Its result, with all rounds, lies beside the file; so a run that was cut off goes on from its
checkpoint, and one that is finished is not trained again.
"""

from pathlib import Path

from fedmpi import config, loading
from fedmpi.config import ConfigError, Settings, Tree
from fedmpi.draft import try_out
from fedmpi.errors import BadInput
from fedmpi.results import kept, record
from fedmpi.runs import earlier
from fedmpi.runs.job import Job

TRAINING = (
    *("seed", "rounds", "target", "batch", "epochs", "local_steps", "lr", "schedule", "lr_decay"),
    *("lr_steps", "lr_min", "optimizer", "momentum", "beta1", "beta2", "epsilon", "weight_decay"),
    *("clip", "augment", "validation", "device", "precision", "threads", "keep", "data", "model"),
    "checkpoint",
)
"""Settings and tables of a run that say how one client trains; the others are of many."""
SUFFIX = ".safetensors"


def settings_of(tree: Tree) -> Settings:
    """Returns the settings of central training.

    Args:
        tree: those of a run, of which the ones in `TRAINING` count, and when accuracies are
            measured.

    Raises:
        ConfigError: if they are wrong, or the model has adapters, which no file of initial weights
            has.
    """
    run = loading.load(tree).tree()
    settings = loading.load(
        {
            **{name: run[name] for name in TRAINING},
            **{"clients": 1, "keep_limit": config.MOST, "method": {"name": "fedavg"}},
            "evaluate": {"every": run["evaluate"]["every"]},
        }
    )
    model = settings.model
    if model.lora.rank or model.bottleneck.width:
        raise ConfigError(
            "model.lora, model.bottleneck: wanted a model without adapters, found one with some; "
            "possible is to add them in the run that begins with the file"
        )
    if settings.keep == "none":
        raise ConfigError("keep = 'none': wanted 'last' or 'best', which is the model of the file")
    return settings


def train(tree: Tree, to: Path, again: bool = False) -> str:
    """Trains a model on all samples of a run's data set, and writes it.

    Args:
        tree: settings of a run (see `settings_of`).
        to: the file of weights; the result beside it has the same name and ends in .h5.
        again: whether training begins anew, whatever is there.

    Returns:
        `record.STOPPED` if a signal has stopped it; else a line for people.

    Raises:
        BadInput: if settings are wrong, a file cannot be written, or training diverged.
    """
    if to.suffix.lower() != SUFFIX:
        raise BadInput(f"--to {to}: wanted a name that ends in {SUFFIX}")
    try_out(to, "--to", kept.FORMATS[SUFFIX])
    settings, path = settings_of(tree), to.with_suffix(".h5")
    if Job().run(settings, path, again=again) == record.STOPPED:
        return record.STOPPED
    if earlier.state(path, settings) == record.DIVERGED:
        raise BadInput(f"{path}: training diverged, and {to} is not written; a lower lr may help")
    count = kept.export(path, to)
    return f"{to}: {count} tensors of the model after round {kept.read(path).round + 1}"
