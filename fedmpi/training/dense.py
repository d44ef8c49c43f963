"""Rows of dense networks: linear layers, ReLU and dropout, several clients in one step.

Each row's matrix products are calls of their own, with the shapes, layouts and alignments that
autograd would use. Everything between them is elementwise or within one sample, and is done for all
rows at once. So losses and gradients are those of `OneByOne`, bit for bit, for any number of rows,
and a step takes a fraction of the time where the network is small.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import nll_loss

from fedmpi.config import Settings
from fedmpi.networks.flat import Flat
from fedmpi.networks.layers import Dropout
from fedmpi.training.feed import Feed, Pick
from fedmpi.training.rows import ALIGNMENT, Networks
from fedmpi.training.stacked import loaded

VALUES = 1 << 18
"""Values that the rows of a chunk have together: 1 MiB, so that models and gradients of a chunk
stay in a core's cache."""
MOST = 32
"""Rows of a chunk; more of them save nothing further."""


class Layer(NamedTuple):
    """A linear layer and what follows it before the next one.

    Attributes:
        weights: of each row, a view of its model, [outputs, inputs].
        biases: likewise, [outputs].
        transposed: the weights, [inputs, outputs].
        weight_gradients: views of the rows' gradients, likewise.
        bias_gradients: likewise.
        is_aligned: whether the weights' gradients begin at multiples of 64 bytes, as autograd's do:
            on some processors the last bits of a product depend on it.
        has_relu: whether a ReLU follows.
        dropout: the dropout that follows; None if none does.
    """

    weights: list[Tensor]
    biases: list[Tensor]
    transposed: list[Tensor]
    weight_gradients: list[Tensor]
    bias_gradients: list[Tensor]
    is_aligned: bool
    has_relu: bool
    dropout: Dropout | None


def modules_of(network: nn.Module) -> Iterable[nn.Module]:
    """Yields the modules of a network without its sequences, in order."""
    if type(network) is nn.Sequential:
        for module in network:
            yield from modules_of(module)
    else:
        yield network


def plan(network: nn.Sequential) -> list[tuple[nn.Linear, bool, Dropout | None]] | None:
    """Returns the linear layers, each with the ReLU and the dropout behind it.

    Returns:
        None if the network is another one than `Flatten` and `Linear` with at most a ReLU and then
            a dropout behind each, and none behind the last. A hidden layer of one unit is not
            possible either: for a batch of one sample autograd takes another product there.
    """
    found: list[tuple[nn.Linear, bool, Dropout | None]] = []
    for module in modules_of(network):
        if type(module) is nn.Linear and module.bias is not None:
            if found and module.in_features == 1:
                return None
            found.append((module, False, None))
        elif type(module) is nn.ReLU and found and found[-1][1:] == (False, None):
            found[-1] = found[-1][0], True, None
        elif type(module) is Dropout and found and found[-1][2] is None:
            found[-1] = *found[-1][:2], module
        elif type(module) is not nn.Flatten or (module.start_dim, module.end_dim) != (1, -1):
            return None
    return found if found and found[-1][1:] == (False, None) else None


def fits(settings: Settings, flat: Flat) -> bool:
    """Whether `Dense` can train such a network on a CPU."""
    is_plain = settings.precision == "float32" and not flat.frozen
    return is_plain and plan(flat.stages) is not None


def limit(flat: Flat) -> int:
    """Returns the number of clients that train together by default, for a network that `fits`."""
    return max(1, min(MOST, VALUES // flat.size))


class Room(NamedTuple):
    """Memory for one step of rows whose batches have equal length B.

    The first dimension of each tensor is the row. Each row has room for a few samples beyond B, so
    that it begins at a multiple of 64 bytes, wherever it is: results must not depend on that.

    Attributes:
        inputs: samples, [rows, B', inputs].
        outputs: of each layer, [rows, B', outputs], and each row's part of it, [B, outputs].
        gradients: of the losses at these outputs, likewise.
        transposed: each row's part of the gradients, [outputs, B].
    """

    inputs: Tensor
    outputs: list[tuple[Tensor, list[Tensor]]]
    gradients: list[tuple[Tensor, list[Tensor]]]
    transposed: list[list[Tensor]]


class Dense(Networks[Pick]):
    """Rows of a network that `fits`, whose local steps are computed without autograd."""

    def __init__(self, flat: Flat, count: int, device: torch.device, settings: Settings) -> None:
        super().__init__(flat, count, device, settings)
        layers = plan(flat.stages)
        assert layers is not None, "wanted a dense network"
        self.plan: list[Layer] = []
        self.rooms: dict[int, Room] = {}
        for number, (_, has_relu, dropout) in enumerate(layers):
            (weights, biases), (by_weights, by_biases) = (
                [[row[2 * number + place] for row in rows] for place in (0, 1)]
                for rows in (self.models, self.gradients)
            )
            transposed = [weight.t() for weight in weights]
            own = weights, biases, transposed, by_weights, by_biases
            is_aligned = not any(one.data_ptr() % (4 * ALIGNMENT) for one in by_weights)
            self.plan.append(Layer(*own, is_aligned, has_relu, dropout))

    def lessons(self, feed: Feed, t: int, client: int, passes: int | None = None) -> Iterator[Pick]:
        """Yields the positions of the client's batches; samples are gathered for all rows."""
        return feed.picks(t, client, passes)

    def backprop(self, feed: Feed, lessons: Sequence[Pick]) -> Tensor:
        """Sets the first rows' gradients for one batch each; returns their losses [k]."""
        self.fresh.clear()
        lengths = [len(pick.positions) for pick in lessons]
        if len(set(lengths)) == 1:
            return self._step(range(len(lessons)), feed, lessons)
        losses = torch.empty(len(lessons))
        for length in set(lengths):
            rows = [row for row, other in enumerate(lengths) if other == length]
            losses[rows] = self._step(rows, feed, [lessons[row] for row in rows])
        return losses

    @torch.no_grad()
    def _step(self, rows: Sequence[int], feed: Feed, lessons: Sequence[Pick]) -> Tensor:
        """Sets the gradients of some rows for batches of equal length; returns their losses [k]."""
        count, length = len(rows), len(lessons[0].positions)
        room, kept = self._room(length), list[tuple[Tensor, Tensor | None]]()
        x, y = self._taken(feed, lessons)
        inputs = [x.unbind(), *(parts for _, parts in room.outputs)]
        for layer, xs, (outputs, parts) in zip(self.plan, inputs, room.outputs, strict=False):
            for row, x, part in zip(rows, xs, parts, strict=False):
                torch.addmm(layer.biases[row], x, layer.transposed[row], out=part)
            some = outputs[:count]
            if layer.has_relu:
                some.relu_()
            kept.append(self._drop(layer.dropout, some, [pick.key for pick in lessons]))
        logs = torch.log_softmax(some, 2)
        losses = [nll_loss(*both) for both in zip(logs[:, :length], y, strict=True)]
        cotangents = torch.zeros_like(logs)
        cotangents[:, :length].scatter_(2, y.unsqueeze(2), -1 / length)
        found = room.gradients[-1][0][:count]
        torch._log_softmax_backward_data(cotangents, logs, 2, torch.float32, out=found)
        for number in reversed(range(len(self.plan))):
            layer, (_, parts) = self.plan[number], room.gradients[number]
            given = zip(rows, inputs[number], parts, room.transposed[number], strict=False)
            for row, x, part, transposed in given:
                if layer.is_aligned:
                    torch.mm(transposed, x, out=layer.weight_gradients[row])
                else:
                    layer.weight_gradients[row].copy_(torch.mm(transposed, x))
                torch.sum(part, 0, out=layer.bias_gradients[row])
            if number:
                gradients, below = room.gradients[number - 1]
                for row, part, other in zip(rows, parts, below, strict=False):
                    torch.mm(part, layer.weights[row], out=other)
                self._back(self.plan[number - 1], gradients[:count], *kept[number - 1])
        return torch.stack(losses)

    def _taken(self, feed: Feed, lessons: Sequence[Pick]) -> tuple[Tensor, Tensor]:
        """Returns batches of equal length: samples [k, B, inputs], and their labels [k, B].

        All are gathered at once, in a `_space` as the values behind the layers.
        """
        length, inputs = len(lessons[0].positions), self.plan[0].weights[0].shape[1]
        batch, room = loaded(lessons, len(lessons), _aligned(length, inputs)), self._room(length)
        shifts = None if lessons[0].shifts is None else batch.shifts
        x, y = feed.take(batch.positions, shifts, room.inputs[: len(lessons)])
        return x.flatten(2)[:, :length], y[:, :length]

    def _drop(
        self, dropout: Dropout | None, outputs: Tensor, keys: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        """Drops values of outputs [k, B', n] in place; returns what they were, and which stay."""
        if dropout is None or not self.mode[0]:
            return outputs, None
        before, kept = outputs.clone(), dropout.kept(outputs[0], torch.tensor(keys).view(-1, 1, 1))
        outputs.mul_(kept).div_(1 - dropout.share)
        return before, kept

    def _back(self, layer: Layer, gradients: Tensor, before: Tensor, kept: Tensor | None) -> None:
        """Takes gradients [k, B', n] back through a layer's dropout and its ReLU, in place."""
        if layer.dropout is not None and kept is not None:
            gradients.div_(1 - layer.dropout.share).mul_(kept)
        if layer.has_relu:
            gradients.masked_fill_(before <= 0, 0)

    def _room(self, length: int) -> Room:
        """Returns the memory for batches of a length; it is kept."""
        if length not in self.rooms:
            outputs, gradients = (
                [self._space(length, len(layer.biases[0])) for layer in self.plan] for _ in range(2)
            )
            transposed = [[part.t() for part in parts] for _, parts in gradients]
            inputs, _ = self._space(length, self.plan[0].weights[0].shape[1])
            self.rooms[length] = Room(inputs, outputs, gradients, transposed)
        return self.rooms[length]

    def _space(self, length: int, width: int) -> tuple[Tensor, list[Tensor]]:
        """Returns memory for `width` values a sample: [rows, B', width], and each row's part."""
        found = torch.zeros(len(self), _aligned(length, width), width)
        return found, list(found[:, :length])


def _aligned(length: int, width: int) -> int:
    """Returns the least B' >= length for which B' samples of `width` values fill whole 64 bytes."""
    step = ALIGNMENT // gcd(ALIGNMENT, width)
    return -(-length // step) * step
