"""Error feedback at a cut: what was not sent of a sample's gradient is added to its next one.

Reconstruction: a gradient at a cut belongs to a sample, so that the residual does, too. It waits
until the sample is in a batch again, by then of an older model. The alternative, one residual for
all samples, would add to a sample's gradient what belongs to others, whose activations differ.
"""

from collections.abc import Sequence

from torch import Tensor

from fedmpi.training.store import Store


class Residuals:
    """The residuals of the samples whose gradients one side sends, float32 [D] each.

    They are in units of a sample's own loss, whatever the size of a batch, whose mean loss has the
    gradient.

    Args:
        store: keeps them by sample.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def add(self, samples: Sequence[int], g: Tensor) -> None:
        """Adds the samples' residuals to the gradients g [B, D] of their mean loss, in place."""
        for row, sample in zip(g, samples, strict=True):
            if sample in self.store:
                row.add_(self.store[sample].to(g.device), alpha=1 / len(g))

    def remember(self, samples: Sequence[int], rest: Tensor) -> None:
        """Takes what was not sent of such gradients, [B, D]."""
        for row, sample in zip(len(rest) * rest, samples, strict=True):
            self.store[sample] = row
