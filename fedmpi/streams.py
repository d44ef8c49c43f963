"""The only source of randomness: one private stream for each (seed, purpose, ids).

No stream is shared or carried over. A client's random numbers in a round therefore do not depend on
the rank that hosts it, on earlier draws, or on the number of ranks.
"""

from enum import IntEnum
from typing import Any

import numpy as np


class Purpose(IntEnum):
    """Purpose of a stream. Values are part of a run's meaning: never renumber them."""

    MODEL = 1
    """Initial parameters."""
    VALIDATION = 2
    """Choice of the held-out training samples."""
    PARTITION = 3
    """Partition of the samples among clients."""
    SAMPLE = 4
    """Sampling of the active clients; ids: round."""
    BATCH = 5
    """Order of a client's samples; ids: round, client."""
    SALIENCY = 6
    """Choice of samples by which a client scores parameters; ids: client, and round but for -1; of
    others that are compared with them: client, round, 1."""
    ORDER = 7
    """Order in which a server processes the clients; ids: round."""
    DATA = 9
    """Synthetic samples."""
    AUGMENT = 10
    """Crops and flips of samples; ids: round, client."""
    DROPOUT = 11
    """Random keys of the steps (see `layers.Dropout`); ids: round, client."""
    DEVICE = 12
    """Assignment of devices to clients, and their distances."""
    CHANNEL = 13
    """Fading of a client's radio channel; ids: round, client."""
    FATE = 14
    """Loss of a client's upload, and stragglers; ids: round, client."""
    ROTATION = 15
    """Assignment of rotation angles to clients."""
    COLOUR = 16
    """Contrast and brightness of a client's images; ids: client."""
    NOISE = 17
    """Noise of a client's samples; ids: 0 in training or 1 in tests, client."""
    SHARE = 18
    """Share of a client's labels that are wrong; ids: client."""
    MISLABEL = 19
    """Choice of a client's wrong labels, and their values; ids: client."""
    POSITIONS = 20
    """Positions of values that are sent, if both sides draw them; ids: round, client."""
    SKETCH = 21
    """Initial factors of a low-rank approximation; ids: client."""
    MASK = 22
    """Random masks of weights; ids: none, client, or round and client."""
    NEIGHBOUR = 23
    """Neighbours of a client in decentralized methods; ids: round, client."""
    BLUR = 24
    """Noise on an aggregate; ids: round."""
    KEEP = 25
    """Assignment of shares of the model to clients."""
    WIDTH = 26
    """A client's share of the model in a round, if it changes; ids: round, client."""
    CHANNELS = 27
    """Channels of a client's sub-model; ids: round, client."""
    SALIENT = 28
    """Random choice of the channels that a client sends; ids: round, client."""
    RESERVE = 29
    """Choice of training samples that a client does not train on; ids: client."""
    BIRTH = 30
    """Initial parameters of an agent."""
    AGENT = 31
    """Random actions of an agent; ids: round, client."""
    SURVIVOR = 34
    """Dropout at a cut: the values that are sent; ids: round, client, step, cut."""
    LINK = 37
    """Clustering of a batch at a cut; ids: round, client, step, and 0 for activations, 1 for
    gradients, 2 and 3 at a second cut."""
    CHOICE = 38
    """Choice of a batch's values that are sent over a cut; ids as for `LINK`."""
    EPOCHS = 40
    """A client's number of local epochs in a round; ids: round, client."""

    HEAD = 41
    """Initial parameters of an auxiliary head."""
    OUTAGE = 42
    """Transmissions of a client's radio that fail and are repeated; ids: round, client."""
    ROUND = 43
    """Key of stochastic rounding of what a client sends; ids: round, client, and 1 for its control
    variate. Of the change of the server's model; ids: round."""
    ROUND_CUT = 44
    """Key of stochastic rounding of a batch at a cut; ids as for `LINK`."""
    ROUND_STEP = 45
    """Key of stochastic rounding of a step's gradients; ids: round, client, step."""
    ADAPTER = 46
    """Initial parameters of adapters."""
    PART = 47
    """Order of a data set's training samples, of which a share is used; always of seed 0."""


def stream(seed: int, purpose: Purpose, *ids: int) -> np.random.Generator:
    """Returns a new generator; `ids` may be -1, the round before the first, but not less."""
    return np.random.default_rng(_entropy(seed, purpose, ids))


def torch_seed(seed: int, purpose: Purpose, *ids: int) -> int:
    """Returns a 63-bit seed from the same stream, for generators that are not numpy's."""
    return int(stream(seed, purpose, *ids).integers(1 << 63))


def key(seed: int, purpose: Purpose, *ids: int) -> np.ndarray:
    """Returns the key of draws that are a function of their position (`philox`): uint64 [2]."""
    return np.random.SeedSequence(_entropy(seed, purpose, ids)).generate_state(2, np.uint64)


def _entropy(seed: int, purpose: Purpose, ids: tuple[int, ...]) -> Any:
    # The number of ids is part of the key, because numpy ignores a seed's trailing zeros.
    key = (seed, int(purpose), len(ids), *(number + 1 for number in ids))
    # Numpy converts a tuple to the same words, but that doubles the time.
    return np.array(key, np.uint32) if min(key) >= 0 and max(key) < 1 << 32 else key
