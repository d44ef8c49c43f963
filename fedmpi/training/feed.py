"""Batches of each local step: samples in the random order of a client's round, augmented.

All samples lie on the device, and a batch is gathered by their positions.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedmpi.clients.population import EVERYONE_ROUND, Population
from fedmpi.clients.skew import Traits
from fedmpi.config import ConfigError, Settings
from fedmpi.data import Dataset
from fedmpi.streams import Purpose, stream

SLAB = 1 << 18
"""Bytes of samples that are gathered at once: they should stay in a cache until they are used."""
PADDING = 4
"""Black pixels added on each side of an image before it is cropped to its size."""


class Pick(NamedTuple):
    """Positions of a client's batch in one step.

    Attributes:
        positions: positions of the samples, int64 [B] on the host.
        shifts: crop's first row and column, and whether to flip, int64 [B, 3] on the host; None
            without augmentation.
        key: the network's random key.
    """

    positions: Tensor
    shifts: Tensor | None
    key: int


class Batch(NamedTuple):
    """A client's batch in one step, with its samples.

    Attributes:
        x: samples, float32 [B, *shape] or symbols, on the device.
        y: labels, int64 [B], on the device.
        key: the network's random key.
    """

    x: Tensor
    y: Tensor
    key: int


class Feed:
    """All clients' training samples on a device, with their skew.

    Attributes:
        traits: skew of each client's samples.
        x: samples in this round, float32 [N, *shape] or symbols (see `Dataset`).
        y: their labels, int64 [N].
        classes: number of labels.
        is_random: whether the network needs random keys.
        longest: samples in the largest batch of any client.
        slab: steps whose samples are gathered at once.
    """

    def __init__(
        self,
        settings: Settings,
        data: Dataset,
        population: Population,
        device: torch.device,
        is_random: bool,
    ) -> None:
        if settings.augment and len(data.shape) != 3:
            raise ConfigError(
                f"augment = {list(settings.augment)}: wanted images, found samples of shape "
                f"{data.shape}"
            )
        self.settings, self.population, self.is_random = settings, population, is_random
        self.traits = Traits(settings, data)
        pairs = [self.traits.train(data, population)]
        if settings.skew.since:
            pairs.insert(0, (data.train_x, data.train_y))
        self.eras = [tuple(torch.from_numpy(part).to(device) for part in pair) for pair in pairs]
        self.begin(EVERYONE_ROUND)
        self.classes = data.classes
        self.slab = max(1, SLAB // (settings.batch * self.x[0].nbytes))
        self.longest = min(settings.batch, int(population.sizes.max()))
        self.drawn: dict[tuple[int, int], tuple[np.random.Generator, np.ndarray]] = {}
        # Black is each channel's least value in the clean data set, whatever its normalization.
        clean = torch.from_numpy(data.train_x)
        self.black = clean.amin((0, 2, 3)).to(device) if settings.augment else torch.empty(0)

    def begin(self, t: int) -> None:
        """Round t begins: samples have skew from `skew.since` on."""
        self.x, self.y = self.eras[-1 if self.settings.skew.holds(t) else 0]

    def picks(self, t: int, client: int, passes: int | None = None) -> Iterator[Pick]:
        """Yields the positions of the client's batches in round t, step by step.

        Args:
            t: the round.
            client: the client.
            passes: passes over the samples; None for those of the round's local training.
        """
        keys, left = self.keys(t, client), self.population.steps(t, client, passes)
        batch = self.settings.batch
        for order, shifts in self._passes(t, client):
            for first in range(0, len(order), batch)[:left]:
                part = slice(first, first + batch)
                yield Pick(order[part], None if shifts is None else shifts[part], next(keys))
                left -= 1
            if not left:
                return

    def batches(self, t: int, client: int, passes: int | None = None) -> Iterator[Batch]:
        """Yields the client's batches in round t; gathers several steps at once, which is faster.

        Arguments are those of `picks`.
        """
        keys, left = self.keys(t, client), self.population.steps(t, client, passes)
        batch = self.settings.batch
        for order, shifts in self._passes(t, client):
            for first in range(0, len(order), self.slab * batch):
                part = slice(first, first + min(self.slab, left) * batch)
                x, y = self.take(order[part], None if shifts is None else shifts[part])
                # Many clients take a single step, and splitting takes as long as gathering.
                is_one = x.shape[0] <= batch
                some, labels = ([x], [y]) if is_one else (x.split(batch), y.split(batch))
                yield from map(Batch, some, labels, keys)
                left -= len(some)
                if not left:
                    return

    def _passes(self, t: int, client: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yields the client's samples in the order of each pass, and their shifts, without end."""
        drawn = self.drawn.pop((t, client), None)
        random, order = drawn or self._order(t, client)
        shard, shifts = self.population.shards[client], self._shifts(t, client)
        while True:
            yield torch.from_numpy(order), shifts(len(shard))
            order = shard[random.permutation(len(shard))]

    def _order(self, t: int, client: int) -> tuple[np.random.Generator, np.ndarray]:
        """Returns the client's generator of orders in round t, and its first order."""
        random = stream(self.settings.seed, Purpose.BATCH, t, client)
        shard = self.population.shards[client]
        return random, shard[random.permutation(len(shard))]

    def draw(self, t: int, clients: Sequence[int]) -> None:
        """Draws the orders of a round's first passes for all clients at once; no order twice.

        Between two clients' trainings each draw would take four times as long, because the caches
        are full of other data.
        """
        wanted = [(t, client) for client in clients]
        self.drawn = {one: self.drawn.get(one) or self._order(*one) for one in wanted}

    def keys(self, t: int, client: int) -> Iterator[int]:
        """Yields the random key of each of the client's steps in round t; zeros if not needed."""
        if not self.is_random:
            return repeat(0)
        random = stream(self.settings.seed, Purpose.DROPOUT, t, client)
        return (int(random.integers(1 << 63)) for _ in repeat(None))

    def _shifts(self, t: int, client: int) -> Callable[[int], Tensor | None]:
        augment = self.settings.augment
        if not augment:
            return lambda _: None
        random = stream(self.settings.seed, Purpose.AUGMENT, t, client)

        def draw(count: int) -> Tensor:
            found = np.full((count, 3), (PADDING, PADDING, 0))
            if "crop" in augment:
                found[:, :2] = random.integers(2 * PADDING + 1, size=(count, 2))
            if "flip" in augment:
                found[:, 2] = random.integers(2, size=count)
            return torch.from_numpy(found)

        return draw

    def take(
        self, positions: Tensor, shifts: Tensor | None = None, room: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns samples [..., *shape] and labels [...] at the positions, cropped and flipped.

        Args:
            positions: int64, any shape.
            shifts: int64 [..., 3] (see `Pick`).
            room: memory for the samples before they are cropped and flipped, because new memory is
                slow: of their type and number, contiguous.
        """
        flat, shape = positions.reshape(-1).to(self.x.device), positions.shape
        if room is not None:
            room = room.view(len(flat), *self.x.shape[1:])
        # Three times as fast as indexing, where a batch is small.
        x, y = torch.index_select(self.x, 0, flat, out=room), self.y.index_select(0, flat)
        if len(shape) > 1:
            x, y = x.view(*shape, *self.x.shape[1:]), y.view(shape)
        return (x if shifts is None else self._augmented(x, shifts)), y

    def _augmented(self, x: Tensor, shifts: Tensor) -> Tensor:
        """Shifts images by up to `PADDING` pixels, black beyond their edges, and mirrors them."""
        (channels, height, width), shape = x.shape[-3:], x.shape
        x, shifts = x.reshape(-1, channels, height, width), shifts.reshape(-1, 3)
        down, right, flips = shifts.split(1, dim=1)
        rows = torch.arange(height, device=x.device) + down - PADDING
        columns = torch.arange(width, device=x.device) + right - PADDING
        columns = torch.where(flips > 0, columns.flip(1), columns)
        near_rows, near_columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
        inside = (rows == near_rows)[:, :, None] & (columns == near_columns)[:, None]
        near_rows = near_rows[:, None, :, None].expand(-1, channels, -1, width)
        near_columns = near_columns[:, None, None].expand(-1, channels, height, -1)
        moved = x.gather(2, near_rows).gather(3, near_columns)
        return torch.where(inside[:, None], moved, self.black.view(-1, 1, 1)).view(shape)
