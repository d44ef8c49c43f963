"""Synthetic: any number of samples of any shape, normally distributed around one centre a class.

Needs no files and no licence. Sample i has class i modulo `classes`, so that class sizes differ by
one at most. It is its class's centre plus a standard normal number for every value. Centres lie in
random directions at distance `separation` from the origin. Unless samples are very small, two
centres are about 1.4 times as far from each other, and the best possible classifier takes a sample
for one of a given other class with probability Phi(-0.7 * separation).
"""

import numpy as np
from pydantic import Field

from fedmpi import config
from fedmpi.config import Width
from fedmpi.data import Dataset
from fedmpi.streams import Purpose, stream


class Config(config.Data):
    """Number, shape and difficulty of the samples; `root` has no effect."""

    samples: int = Field(6000, ge=1, le=config.MOST)
    """Number of training samples."""
    test_samples: int = Field(1000, ge=1, le=config.MOST)
    """Number of test samples."""
    classes: int = Field(10, ge=2, le=config.MOST)
    """Number of classes."""
    # Not strict, because TOML has lists only; the lengths are.
    shape: tuple[Width, ...] = Field((1, 28, 28), min_length=1, strict=False)
    """Shape of a sample, channels first."""
    separation: float = Field(4.0, ge=0, allow_inf_nan=False)
    """Distance of the class centres from the origin, in standard deviations of the noise. 0 makes
    classes indistinguishable."""


def where(config: Config) -> None:
    """Returns None, because the set needs no files."""


def load(config: Config, seed: int) -> Dataset:
    """Draws the set from `stream(seed, Purpose.DATA)`, in float32 throughout."""
    rng = stream(seed, Purpose.DATA)
    centres = rng.standard_normal((config.classes, *config.shape), np.float32)
    each = tuple(range(1, centres.ndim))
    centres *= config.separation / np.sqrt(np.sum(centres**2, axis=each, keepdims=True))
    train_x, train_y = _around(centres, config.samples, rng)
    test_x, test_y = _around(centres, config.test_samples, rng)
    return Dataset(train_x, train_y, test_x, test_y, config.classes)


def _around(
    centres: np.ndarray, samples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws samples float32 [samples, *shape] around the centres [classes, *shape], with labels."""
    x = rng.standard_normal((samples, *centres.shape[1:]), np.float32)
    for label, centre in enumerate(centres):
        x[label :: len(centres)] += centre
    return x, np.arange(samples, dtype=np.int64) % len(centres)
