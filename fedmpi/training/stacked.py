"""Rows all at once: `vmap` over the networks, and on a GPU a step captured in a CUDA graph.

Batches of unequal length are padded. A padded sample is in no loss, and therefore in no gradient.
Layers that depend on the whole batch are told which samples are real (see `layers`).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from fedmpi.config import Settings
from fedmpi.networks.flat import Flat
from fedmpi.networks.layers import BatchNorm, Dropout
from fedmpi.training.feed import Feed, Pick
from fedmpi.training.rows import Rows

WARM_UP = 3
"""Runs before a capture, in which libraries choose their kernels."""
GRAPHS = 8
"""Maximum number of graphs: for an eighth of the rows, two eighths, and so on."""


class Some(NamedTuple):
    """Tensors of the first rows: views of their parameters, statistics and gradients."""

    parameters: dict[str, Tensor]
    statistics: dict[str, Tensor]
    gradients: list[Tensor]


class Padded(NamedTuple):
    """Padded batches of the first rows in one step, on the device.

    Attributes:
        positions: positions of samples, int64 [k, B].
        present: 1 for real samples, 0 for padding: float32 [k, B].
        shifts: crops and flips, int64 [k, B, 3].
        keys: random keys, int64 [k].
    """

    positions: Tensor
    present: Tensor
    shifts: Tensor
    keys: Tensor

    def head(self, count: int) -> "Padded":
        """Returns the batches of the first `count` rows."""
        return Padded(*(tensor[:count] for tensor in self))


class Stacked(Rows[Pick]):
    """All rows in one network whose tensors have a leading dimension."""

    def __init__(self, flat: Flat, count: int, device: torch.device, settings: Settings) -> None:
        super().__init__(flat, count, device, settings)
        self.network = flat.copied(device)
        self.modules = list(self.network.modules())
        named = list(self.network.named_modules())
        self.norms = [f"{name}.present" for name, m in named if isinstance(m, BatchNorm)]
        self.dropouts = [f"{name}.key" for name, m in named if isinstance(m, Dropout)]
        self.leaves: dict[int, Some] = {}
        self.static: Padded | None = None
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.inputs, self.outputs = torch.empty(0), torch.empty(0)
        self.lengths: list[int] = []

    def _some(self, count: int) -> Some:
        """Returns leaf tensors of autograd for `count` rows; a slice of others would be no leaf."""
        if count not in self.leaves:
            place = self.local_stats if self.flat.is_local else self.w
            # By `data`, or autograd would take updated statistics for a change of the weights.
            self.leaves[count] = Some(
                {p.name: p.of(self.w[:count]).requires_grad_() for p in self.flat.parameters},
                {p.name: p.of(place[:count]).data for p in self.flat.statistics},
                [p.of(self.g[:count]) for p in self.flat.parameters],
            )
        return self.leaves[count]

    def _run(self, x: Tensor, present: Tensor | None, keys: Tensor | None) -> Tensor:
        """Runs the first rows' networks: x [k, B, ...] -> outputs [k, B, ...]."""
        some = self._some(len(x))
        tensors = some.parameters | some.statistics
        if present is not None:
            tensors |= dict.fromkeys(self.norms, present)
        if keys is not None:
            tensors |= dict.fromkeys(self.dropouts, keys)
        with self.autocast():
            found = vmap(lambda t, row: functional_call(self.network, t, (row,)))(tensors, x)
        return found.float()

    def _gradient(
        self, count: int, output: Tensor, cotangent: Tensor | None, also: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        some = self._some(count)
        if not (some.parameters or also):  # nothing here trains
            return ()
        found = torch.autograd.grad(output, [*some.parameters.values(), *also], cotangent)
        if some.gradients:
            torch._foreach_copy_(some.gradients, found[: len(some.gradients)])
        return found[len(some.gradients) :]

    def forward(self, xs: Sequence[Tensor], keys: Sequence[int] = ()) -> list[Tensor]:
        """Runs all rows' networks at once on padded batches; returns outputs without padding."""
        self.inputs, present, key = self._padded(xs, keys)
        self.outputs, self.lengths = self._run(self.inputs, present, key), [len(x) for x in xs]
        return [output[:n] for output, n in zip(self.outputs, self.lengths, strict=True)]

    def backward(self, cotangents: Sequence[Tensor]) -> list[Tensor]:
        """Backpropagates all rows at once from the outputs of the last `forward`."""
        shape = self.outputs.shape[2:]
        given = padded([cotangent.view(-1, *shape) for cotangent in cotangents])
        also = [self.inputs] if self.inputs.requires_grad else []
        found = self._gradient(len(given), self.outputs, given, also)
        return [row[:n] for g in found for row, n in zip(g, self.lengths, strict=True)]

    def losses(
        self, xs: Sequence[Tensor], ys: Sequence[Tensor], keys: Sequence[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """Computes all rows' losses and gradients at once, on padded batches."""
        x, present, key = self._padded(xs, keys)
        also = [x] if x.requires_grad else []
        losses = _means(self._run(x, present, key), padded(ys), present)
        found = self._gradient(len(x), losses.sum(), None, also)
        lengths = [len(given) for given in xs]
        return losses.detach(), [row[:n] for g in found for row, n in zip(g, lengths, strict=True)]

    def _padded(
        self, xs: Sequence[Tensor], keys: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns batches as one tensor, which of its samples are real, and keys as a tensor."""
        present = padded([torch.ones(len(x), device=self.device) for x in xs])
        found = torch.tensor(keys, dtype=torch.int64, device=self.device) if keys else None
        x = padded([x.detach() for x in xs])
        return x.requires_grad_(any(given.requires_grad for given in xs)), present, found

    def lessons(self, feed: Feed, t: int, client: int, passes: int | None = None) -> Iterator[Pick]:
        """Yields the positions of the client's batches."""
        return feed.picks(t, client, passes)

    def backprop(self, feed: Feed, lessons: Sequence[Pick]) -> Tensor:
        """Sets the first rows' gradients for one batch each, on a GPU by replaying a graph."""
        count = len(lessons)
        if not self.w.is_cuda:
            return self._step(feed, loaded(lessons, count, max(len(p.positions) for p in lessons)))
        host = loaded(lessons, len(self), feed.longest)
        if self.static is None:
            self.static = Padded(*(tensor.to(self.device) for tensor in host))
        size = graph_size(count, len(self))
        if size not in self.graphs:
            self._capture(feed, self.static.head(size))
        for there, here in zip(self.static, host, strict=True):
            there.copy_(here)
        graph, losses = self.graphs[size]
        graph.replay()
        return losses[:count].clone()

    def _step(self, feed: Feed, batch: Padded) -> Tensor:
        """Computes losses [k] and gradients of the first rows."""
        x, y = feed.take(batch.positions, batch.shifts if feed.settings.augment else None)
        losses = _means(self._run(x, batch.present, batch.keys), y, batch.present)
        self._gradient(len(x), losses.sum(), None, ())
        return losses.detach()

    def _capture(self, feed: Feed, batch: Padded) -> None:
        """Captures a step of the first rows; warm-up runs have no samples, and move nothing."""
        batch.present.zero_()
        local_stats = torch.cuda.Stream()
        local_stats.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(local_stats):
            for _ in range(WARM_UP):
                self._step(feed, batch)
        torch.cuda.current_stream().wait_stream(local_stats)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self.graphs.values()))[0].pool() if self.graphs else None
        with torch.cuda.graph(graph, pool=pool):
            losses = self._step(feed, batch)
        self.graphs[len(batch.keys)] = graph, losses


def loaded(picks: Sequence[Pick], rows: int, length: int) -> Padded:
    """Returns the picks as padded batches on the host; rows without a pick have no samples."""
    # By numpy, which writes a few numbers in a tenth of the time that torch takes.
    positions, shifts = (np.zeros((rows, length, *shape), np.int64) for shape in ((), (3,)))
    present, keys = np.zeros((rows, length), np.float32), np.zeros(rows, np.int64)
    for row, pick in enumerate(picks):
        count = len(pick.positions)
        positions[row, :count] = pick.positions.numpy()
        present[row, :count] = 1
        if pick.shifts is not None:
            shifts[row, :count] = pick.shifts.numpy()
        keys[row] = pick.key
    return Padded(*map(torch.from_numpy, (positions, present, shifts, keys)))


def padded(tensors: Sequence[Tensor]) -> Tensor:
    """Pads tensors [B_i, ...] with zeros, and stacks them: [k, B, ...]."""
    return pad_sequence(list(tensors), batch_first=True)


def graph_size(count: int, rows: int) -> int:
    """Returns the number of rows of the graph that serves `count` of `rows` rows.

    The sizes are multiples of an eighth of the rows: few graphs, and little waste.
    """
    part = -(-rows // GRAPHS)
    return min(rows, -(-count // part) * part)


def _means(outputs: Tensor, y: Tensor, present: Tensor) -> Tensor:
    """Returns mean cross-entropies [k] of outputs [k, B, classes] over the real samples."""
    each = cross_entropy(outputs.flatten(0, 1), y.flatten(), reduction="none").view_as(present)
    return (each * present).sum(1) / present.sum(1).clamp(min=1)
