"""Error feedback at a cut: what was not sent of a sample's gradient is added to its next one.

Reconstruction: a gradient at a cut belongs to a sample, so that the residual does, too. It waits
until the sample is in a batch again, by then of an older model. The alternative, one residual for
all samples, would add to a sample's gradient what belongs to others, whose activations differ.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from fedmpi.split.cuts import Crossing
from fedmpi.training.feed import Feed, Pick
from fedmpi.training.store import Store


class Residuals:
    """The residuals of the samples whose gradients one side sends, float32 [D] each.

    They are in units of a sample's own loss, whatever the size of a batch, whose mean loss has the
    gradient. Which samples a batch has follows from the seed, on both sides.

    Args:
        store: keeps them by sample.
        feed: knows the batches.
    """

    def __init__(self, store: Store, feed: Feed) -> None:
        self.store, self.feed = store, feed
        self.picks: dict[int, Iterator[Pick]] = {}

    def samples(self, crossing: Crossing) -> list[int]:
        """Returns the samples of the batch, in its order; asked once in a client's step."""
        if not crossing.step:
            self.picks[crossing.client] = self.feed.picks(crossing.t, crossing.client)
        return next(self.picks[crossing.client]).positions.tolist()

    def add(self, samples: Sequence[int], g: Tensor) -> None:
        """Adds the samples' residuals to the gradients g [B, D] of their mean loss, in place."""
        for row, sample in zip(g, samples, strict=True):
            if sample in self.store:
                row.add_(self.store[sample].to(g.device), alpha=1 / len(g))

    def remember(self, samples: Sequence[int], rest: Tensor) -> None:
        """Takes what was not sent of such gradients, [B, D]."""
        for row, sample in zip(len(rest) * rest, samples, strict=True):
            self.store[sample] = row
