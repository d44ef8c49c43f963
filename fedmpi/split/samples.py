"""Which samples a batch at a cut has: both sides draw it from the seed, so that nobody sends it."""

from collections.abc import Iterator

from fedmpi.split.cuts import Crossing
from fedmpi.training.feed import Feed, Pick


class Samples:
    """The samples of the batches that cross a cut, on one side of it.

    Args:
        feed: knows the batches.
    """

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.picks: dict[tuple[int, int], Iterator[Pick]] = {}

    def of(self, crossing: Crossing) -> list[int]:
        """Returns the samples of a batch, in its order: their positions in the training set.

        It is asked once in each of a client's steps and at each cut, in the order of the steps.
        """
        batch = crossing.cut, crossing.client
        if not crossing.step:
            self.picks[batch] = self.feed.picks(crossing.t, crossing.client)
        return next(self.picks[batch]).positions.tolist()
