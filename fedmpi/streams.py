"""The only source of randomness: one private stream for each (seed, purpose, ids).

No stream is ever shared or carried over, so what a client draws in a round does not depend on which
rank hosts it, on what was drawn before, or on how many ranks there are.
"""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream is for. Values are part of a run's meaning: never renumber them."""

    MODEL = 1
    """Initial parameters."""
    VALIDATION = 2
    """Which training samples are held out."""
    PARTITION = 3
    """Which client holds which samples."""
    SAMPLE = 4
    """Which clients take part; ids: round."""
    BATCH = 5
    """In which order a client sees its samples; ids: round, client."""
    SALIENCY = 6
    """Which samples a client scores parameters with; ids: client, and round but for -1."""
    ORDER = 7
    """In which order a server takes the clients; ids: round."""
    QUANTIZE = 8
    """Stochastic rounding; ids: round, client."""
    DATA = 9
    """Synthetic samples."""
    AUGMENT = 10
    """How samples are cropped and flipped; ids: round, client."""
    DROPOUT = 11
    """Random keys of the steps (see `layers.Dropout`); ids: round, client."""
    DEVICE = 12
    """Which client has which device, and how far away."""
    CHANNEL = 13
    """How a client's channel fades; ids: round, client."""
    FATE = 14
    """Whether a client's upload is lost, and whether it is slow; ids: round, client."""
    ROTATION = 15
    """Which clients' images are rotated by which angle."""
    COLOUR = 16
    """How a client's images are coloured; ids: client."""
    NOISE = 17
    """The noise of a client's samples; ids: 0 in training or 1 in tests, client."""
    SHARE = 18
    """How many of a client's labels are wrong; ids: client."""
    MISLABEL = 19
    """Which of them, and what stands there instead; ids: client."""
    POSITIONS = 20
    """Which values travel, where both sides draw them; ids: round, client."""
    SKETCH = 21
    """Where a search for low ranks begins; ids: client."""
    MASK = 22
    """Which weights are kept, at random; ids: none, client, or round and client."""
    NEIGHBOUR = 23
    """Whom a client hears without a server; ids: round, client."""
    BLUR = 24
    """Noise on an aggregate; ids: round."""
    KEEP = 25
    """Which client takes which share of a model."""
    WIDTH = 26
    """Which share it is in a round, where it changes; ids: round, client."""
    CHANNELS = 27
    """Which channels of a model a client takes; ids: round, client."""
    SALIENT = 28
    """Which channels a client sends, where chance decides; ids: round, client."""
    RESERVE = 29
    """Which of its training samples a client does not train on; ids: client."""
    BIRTH = 30
    """What an agent knows before it has learned anything."""
    AGENT = 31
    """What an agent tries; ids: round, client."""
    CUT = 32
    """Stochastic rounding of what crosses a cut; ids: round, client, step, cut."""
    SURVIVOR = 34
    """Which values at a cut travel; ids: round, client, step, cut."""
    ROUNDING = 35
    """Stochastic rounding in a step; ids: round, client, step."""
    LINK = 37
    """How a batch is rounded, or clustered, for its way over a cut; ids: round, client, step, and
    0 for activations, 1 for gradients, 2 and 3 at a second cut."""
    CHOICE = 38
    """Which of a batch's values go over a cut; ids: likewise."""


def stream(seed: int, purpose: Purpose, *ids: int) -> np.random.Generator:
    """A fresh generator; `ids` may be -1, the round before the first, but not less."""
    # Their number is part of the key, because a seed's trailing zeros count for nothing.
    key = (seed, int(purpose), len(ids), *(number + 1 for number in ids))
    # Numpy makes such words of the numbers by itself, but that takes as long as all the rest.
    fits = min(key) >= 0 and max(key) < 1 << 32
    return np.random.default_rng(np.array(key, np.uint32) if fits else key)


def torch_seed(seed: int, purpose: Purpose, *ids: int) -> int:
    """The same stream as a 63-bit seed, for generators that are not numpy's."""
    return int(stream(seed, purpose, *ids).integers(1 << 63))
