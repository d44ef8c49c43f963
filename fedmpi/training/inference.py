"""Inference of clients' models with some channels cut out, against their whole models.

FLOPs are those that torch counts for one sample (`networks.flops`). Seconds are measured on the
rank's CPU, with as many threads as the rank trains with: medians of passes in which the whole and
the sliced network take turns. Accuracies are those of the sliced network itself.
"""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from fedmpi.networks.flat import Flat
from fedmpi.networks.flops import forward
from fedmpi.networks.slicing import Channels, sliced
from fedmpi.turns import take_turns

BATCH = 256
"""Samples that a sliced network classifies at once."""
REPEATS = 5
"""Turns of each network that count."""
SINGLE = 5
"""Passes in a turn with a single sample, which takes little time."""


def passes(network: nn.Module, x: Tensor, count: int) -> Callable[[], float]:
    """Returns what runs a batch x [B, *shape] through a network so often, and says the seconds."""

    @torch.no_grad()
    def turn() -> float:
        began = perf_counter()
        for _ in range(count):
            network(x)
        return perf_counter() - began

    return turn


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Returns the share of samples that a network classifies correctly; NaN of none.

    Args:
        network: on the CPU.
        x: the samples, [N, *shape], there.
        y: their labels, int64 [N].
    """
    if not len(y):
        return float("nan")
    pairs = zip(x.split(BATCH), y.split(BATCH), strict=True)
    return sum(int((network(some).argmax(1) == labels).sum()) for some, labels in pairs) / len(y)


class Slice:
    """A model's network, whole and with some channels alone.

    Args:
        flat: the network.
        w: the model, [n].
        channels: its channels, or those of a front of it.
        chosen: the channels that stay, ascending, [k].
        shape: of a sample.
    """

    def __init__(
        self, flat: Flat, w: Tensor, channels: Channels, chosen: Tensor, shape: tuple[int, ...]
    ) -> None:
        self.shape = shape
        self.whole = flat.network(w.cpu()).train(False)
        self.small = sliced(flat, w, channels, chosen, shape)

    def flops(self) -> tuple[int, int]:
        """Returns FLOPs for a sample, of the whole and of the sliced network."""
        whole, small = (
            forward(Flat(nn.Sequential(each)), self.shape).all for each in (self.whole, self.small)
        )
        return whole, small

    def seconds(self, x: Tensor) -> tuple[float, float]:
        """Returns the median seconds of a batch x [B, *shape], whole and sliced."""
        count = SINGLE if len(x) == 1 else 1
        both = {"whole": self.whole, "small": self.small}
        turns = {name: passes(network, x, count) for name, network in both.items()}
        taken = take_turns(turns, REPEATS, count)
        return median(taken["whole"]), median(taken["small"])
