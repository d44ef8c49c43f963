"""FedProx's synthetic(alpha, beta): 60 numbers a sample, 10 classes; natural clients: devices.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks",
MLSys 2020, arXiv 1812.06127, section 5.1; https://github.com/litian96/FedProx. Needs no files and
no licence. Device k has a labelling model of its own, y = argmax(W_k x + b_k), with W_k, b_k ~
N(u_k, 1), u_k ~ N(0, alpha). It has inputs of its own, x ~ N(v_k, S), S = diag(j ** -1.2), with v_k
~ N(B_k, 1), B_k ~ N(0, beta). With `iid` there is one W, b ~ N(0, 1), and all v_k are 0.

u_k is one number for all classes and changes all scores of a sample equally. Therefore alpha
changes no label, neither here nor in the authors' code. Models differ by what is drawn around u_k.

As in the authors' code alpha and beta are standard deviations. A device has 50 samples plus a
lognormal(4, 2) number, rounded down. Nine tenths of them, rounded down, are training samples, and
the others test samples.
Differs from the code: a device has its own stream of random numbers, so that the first devices do
not change if there are more.
"""

import numpy as np
from pydantic import Field

from fedmpi import config
from fedmpi.config import ConfigError
from fedmpi.data import Dataset
from fedmpi.streams import Purpose, stream

CLASSES, SHAPE = 10, (60,)
"""Number of labels, and shape of a sample."""
LEAST, LOG_MEAN, LOG_STD = 50, 4, 2
"""Least number of a device's samples; mean and deviation of the logarithm of the rest."""
TRAIN = 0.9
"""Share of a device's samples for training."""


class Config(config.Data):
    """Number and heterogeneity of the devices; `root` has no effect."""

    devices: int = Field(30, ge=1, le=config.MOST)
    """Number of natural clients in the data set."""
    alpha: float = Field(1.0, ge=0, le=config.LARGEST)
    """Standard deviation of u_k, the offset of a device's model. Labels do not depend on it."""
    beta: float = Field(1.0, ge=0, le=config.LARGEST)
    """Standard deviation of B_k: how much the input means differ between devices."""
    iid: bool = False
    """Use the same model and input distribution for all devices. Then alpha and beta have no
    effect."""


def where(config: Config) -> None:
    """Returns None, because the set needs no files."""


def load(config: Config, seed: int) -> Dataset:
    """Draws the set, samples of shape (60,), from `stream(seed, Purpose.DATA, device)`.

    The stream of device -1 is for values that all devices share.

    Raises:
        ConfigError: if the settings ask for both iid and heterogeneous devices.
    """
    for name in ("alpha", "beta"):
        value, usual = getattr(config, name), Config.model_fields[name].default
        if config.iid and value != usual:
            raise ConfigError(f"data.{name} = {value}: wanted data.iid = false, found true")
    train, test = [], []
    for device in range(config.devices):
        x, y = _device(config, seed, device)
        end = int(TRAIN * len(y))
        train.append((x[:end], y[:end], np.full(end, device)))
        test.append((x[end:], y[end:], np.full(len(y) - end, device)))
    train_x, train_y, train_owners = (np.concatenate(part) for part in zip(*train, strict=True))
    test_x, test_y, test_owners = (np.concatenate(part) for part in zip(*test, strict=True))
    return Dataset(train_x, train_y, test_x, test_y, CLASSES, train_owners, test_owners)


def _device(config: Config, seed: int, device: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a device's samples, float32 [N, 60], and their labels, int64 [N]."""
    rng = stream(seed, Purpose.DATA, device)
    samples = LEAST + int(rng.lognormal(LOG_MEAN, LOG_STD))
    centre, u, models = np.zeros(SHAPE), 0.0, rng
    if config.iid:
        models = stream(seed, Purpose.DATA, -1)
    else:
        u = config.alpha * rng.standard_normal()
        centre = config.beta * rng.standard_normal() + rng.standard_normal(SHAPE)
    w = u + models.standard_normal((*SHAPE, CLASSES))
    b = u + models.standard_normal(CLASSES)
    deviations = np.arange(1, SHAPE[0] + 1) ** -0.6
    x = (centre + deviations * rng.standard_normal((samples, *SHAPE))).astype(np.float32)
    # Labels of the rounded samples, so that a float32 model can reach an error of zero.
    return x, np.argmax(x @ w + b, axis=1)
