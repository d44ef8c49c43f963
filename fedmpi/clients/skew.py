"""Feature and label skew of clients, beside the partition; drawn before the first round.

It holds from the round `skew.since` on, in training and in tests; before it all samples are clean.

Every training sample belongs to one client, so that a skew is a map over the data set. Images are
rotated, their channels rescaled, and noise is added, in this order; labels are replaced. Test
samples in clients' shards get the same rotation, rescaling and noise level as their owner's
training samples. Test labels, held-out samples, and the test set as a whole do not change.
`accuracy` and `validation` are therefore measured on clean samples, and accuracies on shards with
the clients' skew. Measures of heterogeneity use the true labels.

Noise is the noise-based feature skew of NIID-Bench: Li, Diao, Chen, He, "Federated Learning on
Non-IID Data Silos: An Experimental Study", ICDE 2022, arXiv 2102.02079. Client k of K, counted from
1, has Gaussian noise of the variance noise * k / K.
Differs from the code: there noise * (k - 1) / (K - 1) is the standard deviation; noise is drawn
anew each time that a sample is used, after crops and flips; pixels are between 0 and 1. Here a
sample has fixed noise, which crops and flips move, and which is added to the network's inputs: if
pixels are divided by std, a variance of v / std^2 corresponds to v of pixels.

Rotation by the angles 0, 90, 180, 270 makes the rotated images of IFCA: Ghosh, Chung, Yin,
Ramchandran, "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020, arXiv
2006.04088.
Differs from the code: there each group of clients holds all images, rotated by its angle.
"""

import numpy as np
from numpy import ndarray

from fedmpi.clients.population import Population
from fedmpi.config import ConfigError, Settings
from fedmpi.data import Dataset
from fedmpi.streams import Purpose, stream

TRAIN, TEST = 0, 1
"""Ids of training and test set in the streams of noise."""


class Traits:
    """The skew of each client's samples.

    Attributes:
        angles: rotation of images, counter-clockwise, int64 [clients], in degrees.
        contrasts: factors of the channels, float32 [clients, channels]; empty without colour skew.
        brightnesses: offsets of the channels, float32 [clients, channels]; empty without colour
            skew.
        variances: variance of the noise, float64 [clients].
        shares: share of training labels that are replaced, float64 [clients].
        moves_samples: whether some client's samples differ from those of the data set.

    Raises:
        ConfigError: if the settings do not fit the samples.
    """

    def __init__(self, settings: Settings, data: Dataset) -> None:
        self.seed, self.skew = settings.seed, settings.skew
        self.clients, self.classes = settings.clients, data.classes
        self._check(data)
        self.angles = self._angles()
        self.contrasts, self.brightnesses = self._colours(data.shape[0])
        self.variances = self.skew.noise * np.arange(1, self.clients + 1) / self.clients
        self.shares = self._shares()
        self.moves_samples = bool(self.angles.any() or self.skew.colour or self.skew.noise)

    def _check(self, data: Dataset) -> None:
        skew, (shape, kind) = self.skew, (data.shape, data.train_x.dtype)
        for name in ("rotations", "colour", "noise"):
            value = getattr(skew, name)
            where = f"skew.{name} = {list(value) if isinstance(value, tuple) else value}"
            if value and kind.kind != "f":
                raise ConfigError(f"{where}: wanted samples of real numbers, found {kind}")
            if value and name != "noise" and len(shape) != 3:
                raise ConfigError(f"{where}: wanted images, found samples of shape {shape}")
            if name == "rotations" and {90, 270} & set(value) and shape[1] != shape[2]:
                raise ConfigError(
                    f"{where}: wanted square images, found samples of shape {shape}; possible are "
                    "0 and 180"
                )
        if max(skew.labels, skew.labels_to or 0) and data.classes < 2:
            raise ConfigError(f"skew.labels = {skew.labels}: wanted two classes, found one")

    def _angles(self) -> ndarray:
        if not self.skew.rotations:
            return np.zeros(self.clients, np.int64)
        given = np.resize(np.array(self.skew.rotations), self.clients)
        return stream(self.seed, Purpose.ROTATION).permutation(given)

    def _colours(self, channels: int) -> ndarray:
        """Draws contrasts and brightnesses, float32 [2, clients, channels]."""
        if not self.skew.colour:
            return np.empty((2, self.clients, 0), np.float32)
        drawn = [
            stream(self.seed, Purpose.COLOUR, client).uniform(-1, 1, (2, channels))
            for client in range(self.clients)
        ]
        moved = self.skew.colour * np.stack(drawn, axis=1)
        return (moved + np.reshape([1, 0], (2, 1, 1))).astype(np.float32)

    def _shares(self) -> ndarray:
        least, most = self.skew.labels, self.skew.labels_to
        if most is None:
            return np.full(self.clients, least)
        streams = (stream(self.seed, Purpose.SHARE, client) for client in range(self.clients))
        return np.array([random.uniform(least, most) for random in streams])

    def replaced(self, client: int, samples: int) -> int:
        """Returns the number of a client's labels that are replaced, of so many samples."""
        return round(float(self.shares[client]) * samples)

    def train(self, data: Dataset, population: Population) -> tuple[ndarray, ndarray]:
        """Returns the training set with the clients' skew: samples [N, *shape] and labels [N].

        Held-out samples are unchanged. An array without any change is the data set's own, not a
        copy.
        """
        x, y = data.train_x, data.train_y
        if self.moves_samples:
            x = x.copy()
            for client, shard in enumerate(population.owned):
                x[shard] = self._seen(client, x[shard], TRAIN)
        if self.shares.any():
            y = y.copy()
            for client, shard in enumerate(population.owned):
                y[shard] = self._labelled(client, y[shard])
        return x, y

    def test(self, data: Dataset, population: Population) -> ndarray | None:
        """Returns all test shards with the clients' skew, concatenated: [samples, *shape].

        None if no sample changes.
        """
        if not self.moves_samples:
            return None
        found = np.empty((sum(map(len, population.test_shards)), *data.shape), data.test_x.dtype)
        first = 0
        for client, shard in enumerate(population.test_shards):
            found[first : first + len(shard)] = self._seen(client, data.test_x[shard], TEST)
            first += len(shard)
        return found

    def _seen(self, client: int, x: ndarray, part: int) -> ndarray:
        """Returns samples [n, *shape] with the client's feature skew."""
        if self.angles[client]:
            x = np.rot90(x, self.angles[client] // 90, axes=(2, 3))
        if self.skew.colour:
            contrast, brightness = self.contrasts[client], self.brightnesses[client]
            x = x * contrast.reshape(-1, 1, 1) + brightness.reshape(-1, 1, 1)
        if self.skew.noise:
            random = stream(self.seed, Purpose.NOISE, part, client)
            noise = random.standard_normal(x.shape, np.float32)
            noise *= np.float32(np.sqrt(self.variances[client]))
            x = x + noise
        return x

    def _labelled(self, client: int, y: ndarray) -> ndarray:
        """Replaces the client's share of labels [n] by other classes, drawn uniformly."""
        random, count = stream(self.seed, Purpose.MISLABEL, client), self.replaced(client, len(y))
        some = random.permutation(len(y))[:count]
        y[some] = (y[some] + random.integers(1, self.classes, count)) % self.classes
        return y
