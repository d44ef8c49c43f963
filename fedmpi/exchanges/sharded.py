"""Sharded: every rank owns a slice of the vector, where the pieces of all ranks' sums are added.

S. Li, T. Hoefler, *Near-Optimal Sparse Allreduce for Distributed Deep Learning*, PPoPP 2022, arXiv
2201.07598 (Ok-Topk), section 3.1.1, "split and reduce". Each rank adds up its clients' uploads,
cuts its sum at the slices' bounds and sends each owner its piece, all by one `MPI_Alltoallv`. The
owners add up the pieces in rank order, and their slices are gathered on the root. A piece or a
slice is sent as the values that are not zero with their positions, or densely if that is shorter.
The downlink is that of `star`.

The bounds divide the positions of the last round's sum into equal parts, so that owners have equal
work; the first round's slices have equal lengths. Here the root has the whole sum, and tells the
others; the paper's ranks average the bounds that each would choose.

So additions are shared by all ranks, and with P ranks the root receives 1/P of each other sum and
the slices of all, instead of P - 1 sums. Owners do not see single uploads: these would take as many
bytes as with `star`, while clients of one rank share positions and a sum has each once. Hence
results depend on who hosts whom, and equal those of `star` to the rounding that `reduce` states.
They do not depend on the bounds. A client's bytes are those of its upload, as with `reduce`. What
went between ranks is in the table `ranks`: of each rank the pieces that it sent to owners, and its
slice.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fedmpi import config
from fedmpi.costs import HEAD, WORD, WORDS, Load, Step, added, choose, merged, move, work, written
from fedmpi.exchanges import reduce
from fedmpi.messages import partial
from fedmpi.messages.clock import Clock, Phase
from fedmpi.messages.codec import Block, Message, unpack
from fedmpi.messages.ledger import Ledger

if TYPE_CHECKING:
    from fedmpi.messages.wire import Wire


class Config(config.Exchange):
    """No settings beyond those of all exchanges."""

    adds: ClassVar[bool] = True


def steps(load: Load) -> list[Step]:
    """The parts of a round's uplink that follow each other, to predict its seconds.

    Slices and their positions are shared equally, as they are if positions are spread evenly.
    """
    found = [*choose(load), *added(load, "each", load.mine)]
    ranks, levels = load.ranks, (load.near, load.nodes)
    if ranks > 1:
        mine, all_of_it, others = load.union(load.mine), load.union(load.clients), ranks - 1
        pieces = ranks * HEAD + others * (WORDS + (load.part(mine) - WORDS) / ranks)
        found.append(move("bcast", *levels, WORD * (ranks + 1)))
        found += written(load, "each", mine)
        found.append(move("alltoall", *levels, pieces))
        # A rank sets its own slice aside, clears it, and adds it in its turn.
        own, more = (n / ranks for n in (load.summed, load.kept))
        found.append(work("clear", "each", load, 1, more, own))
        found.append(work("add dense", "each", load, 2, more, own))
        found += merged(load, "each", mine, others, 1 / ranks)
        found += written(load, "each", all_of_it, 1 / ranks)
        slice_of_it = HEAD + WORDS + (load.part(all_of_it) - WORDS) / ranks
        found.append(move("gather", *levels, slice_of_it))
        if load.is_sparse(all_of_it):
            found.append(work("clear", "root", load, 1, others * more, others * own))
        found += merged(load, "root", all_of_it, others, 1 / ranks)
        found.append(move("reduce", *levels, WORD))
    return found


class Exchange(reduce.Exchange):
    """Adds up the ranks' sums slice by slice.

    Attributes:
        bounds: on the root, where the next slices begin and the last one ends, int64 [vectors,
            ranks + 1].
    """

    def __init__(
        self, wire: "Wire", clock: Clock, ledger: Ledger, down: config.Way = "bcast"
    ) -> None:
        super().__init__(wire, clock, ledger, down)
        self.bounds = np.zeros((0, wire.size + 1), np.int64)

    def merge(self, sums: Sequence[np.ndarray]) -> None:
        """Adds all ranks' sums to the root's, and charges the clients with their uploads."""
        *vectors, numbers = sums
        if self.wire.size > 1:
            bounds = self.agree([len(vector) for vector in vectors])
            cuts = [np.split(v, ends[1:-1]) for v, ends in zip(vectors, bounds, strict=True)]
            slices = [list(each) for each in zip(*cuts, strict=True)]
            self.add(slices)
            self.collect(slices, bounds)
        self.close(self.wire, [numbers])

    def agree(self, lengths: Sequence[int]) -> np.ndarray:
        """Returns the bounds of this round's slices, int64 [vectors, ranks + 1], on all ranks.

        They are the root's, if vectors are still as long, else those of slices of equal lengths.
        """
        word = None
        if self.wire.is_root:
            if self.bounds[:, -1].tolist() != list(lengths):
                shares = np.arange(self.wire.size + 1)
                self.bounds = np.outer(lengths, shares) // self.wire.size
            word = self.bounds.view(np.uint8).reshape(-1)
        return self.wire.bcast(word).view(np.int64).reshape(len(lengths), -1).copy()

    def add(self, slices: Sequence[Sequence[np.ndarray]]) -> None:
        """Sends each owner the pieces of its slices, and adds up those of this rank, in place.

        Args:
            slices: for each rank its slice of each of this rank's vectors.
        """
        here = self.wire.rank
        with self.clock(Phase.PACK):
            theirs = [[Message(0, list(map(partial.block, some)))] for some in slices]
            theirs[here] = []
        pieces = self.wire.exchange(*self._bundle("pieces", theirs)[:2])
        with self.clock(Phase.SERVE):
            own = [part.copy() for part in slices[here]]
            for part in slices[here]:
                part[:] = 0
            for rank, piece in enumerate(pieces):
                if rank == here:
                    for part, mine in zip(slices[here], own, strict=True):
                        part += mine
                for message in unpack(piece)[0]:
                    for part, block in zip(slices[here], message.blocks, strict=True):
                        partial.add(part, block)

    def collect(self, slices: Sequence[Sequence[np.ndarray]], bounds: np.ndarray) -> None:
        """Gathers the slices on the root, and chooses the bounds of the next ones there."""
        with self.clock(Phase.PACK):
            blocks = [partial.block(part) for part in slices[self.wire.rank]]
        sent = [] if self.wire.is_root else blocks
        found = [blocks]
        for piece in self.wire.gather(self._pack("slice", [Message(0, sent)]).data)[1:]:
            with self.clock(Phase.SERVE):
                ((message,), _) = unpack(piece)
                found.append(list(message.blocks))
                for part, block in zip(slices[len(found) - 1], message.blocks, strict=True):
                    partial.put(part, block)
        if self.wire.is_root:
            with self.clock(Phase.SERVE):
                both = zip(bounds, zip(*found, strict=True), strict=True)
                self.bounds = np.array([balanced(ends, some) for ends, some in both])


def balanced(ends: np.ndarray, blocks: Sequence[Block]) -> np.ndarray:
    """Returns bounds that divide the positions of a vector into parts of equal size.

    Args:
        ends: where the slices begin that the blocks are of, and the last one ends, int64 [ranks +
            1].
        blocks: of each slice the values that are not zero.

    Returns:
        int64 [ranks + 1], ascending, from the first to the last of `ends`.
    """
    before = np.cumsum([0, *(block.count for block in blocks)])
    found = ends.copy()
    for part in range(1, len(blocks)):
        wanted = int(before[-1]) * part // len(blocks)
        at = int(np.searchsorted(before, wanted, "right")) - 1
        if at == len(blocks):  # there are no positions
            return ends
        place, block = wanted - before[at], blocks[at]
        found[part] = ends[at] + (place if block.indices is None else block.indices[place])
    return found
