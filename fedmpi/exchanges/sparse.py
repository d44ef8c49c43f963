"""Sparse: ranks' sums climb a tree, and each merge has the union of both sides' positions.

C. Renggli, S. Ashkboos, M. Aghagolzadeh, D. Alistarh, T. Hoefler, *SparCML: High-Performance Sparse
Communication for Machine Learning*, SC 2019, arXiv 1802.08021, sections 5.1 and 5.3. Each rank adds
up its clients' uploads. Then half of the ranks send their sums to the other half, which add them to
their own, and so on until the root has all. A sum is sent as the values that are not zero with
their positions, or as a dense vector once that is shorter (`messages.partial`). The ranks of a node
merge first, so that one sum of each node goes to others. The downlink is that of `star`.

The paper has every rank know the sum, and halves vectors recursively before they are gathered. Here
the root alone needs it, and a tree takes fewer bytes. With P ranks and k values in each sum,
halving and gathering moves P k log2(P) / 2 + (P - 1) k values if no two ranks share a position, the
tree P k log2(P) / 2; if all are at the same positions, (P - 1) k (1 + 1 / P) against (P - 1) k. The
root receives at least (P - 1) k values in the first case either way. In the second it receives
k log2(P) by the tree, and less than 2 k of slices: for that there is `sharded`.

With `reselect` each merge keeps the k largest values of its sum, where k is what a client sends:
S. Shi, Q. Wang, K. Zhao, Z. Tang, Y. Wang, X. Huang, X. Chu, *A Distributed Synchronous SGD
Algorithm with Global Top-k Sparsification for Low Bandwidth Networks*, ICDCS 2019, arXiv
1901.04359 (gTop-k), algorithm 2. So no message has more than k values. Adding up a rank's own
clients is a merge, too. What a merge leaves out goes back to all whose uploads are in its sum: each
client adds its own values there to its residual. For that the positions that were kept go down the
tree, and each rank learns where what it sent has come through all merges. Nothing is lost: the
root's sum and what is returned add up to what was sent.
Differs from the paper: its workers take back what is outside of the final positions. A value that
one merge left out and whose position another sum brings back would be lost.
Running statistics are no gradients: they all stay in a sum, beside the k values.

Results equal those of `star` to the rounding that `reduce` states. With `reselect` they depend on
who hosts whom, and so on the number of ranks and nodes. A client's bytes are those of its upload,
as with `reduce`. What went between ranks is in the table `ranks`: up, the sum that each rank sent;
down, with `reselect`, also the positions that it heard of.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fedmpi import config
from fedmpi.costs import FORMS, HEAD, WORD, Load, Step, added, choose, merged, move, written
from fedmpi.exchanges import reduce
from fedmpi.messages import partial
from fedmpi.messages.clock import Phase
from fedmpi.messages.codec import Block, Coding, Kind, Message, unpack
from fedmpi.messages.kernels import places, ranking

if TYPE_CHECKING:
    from fedmpi.messages.wire import Wire


class Config(config.Exchange):
    """The settings of all exchanges, and one of its own."""

    adds: ClassVar[bool] = True

    reselect: bool = False
    """Keep only the k largest values of each sum on the way, where k is the number of values that a
    client sends (gTop-k). Each client adds its own values that were left out to its residual. Only
    for topk, dgc and stc with classic feedback. The result depends on the number of ranks."""

    @property
    def reselects(self) -> bool:
        """Whether sums on the way are cut down to their largest values."""
        return self.reselect


def steps(load: Load) -> list[Step]:
    """The parts of a round's uplink that follow each other, to predict its seconds.

    Without `reselect`. In each step of a level sums of twice as many ranks are sent, and in its
    last one a single rank sends.
    """
    found, below = [*choose(load), *added(load, "each", load.mine)], 1
    for near, nodes in ((load.near, 1), (1, load.nodes)):
        size, steps = near * nodes, FORMS["log"](near * nodes)
        for step in range(steps):
            ranks = below * min(2**step, size - 2**step)
            union = load.union(min(load.clients, ranks * load.mine))
            where = "each" if near > 1 and step < steps - 1 else "root"
            found += written(load, where, union)
            found.append(move("pair", near, nodes, HEAD + load.part(union)))
            found += merged(load, where, union)
        below *= near
    found.append(move("reduce", load.near, load.nodes, WORD))
    return found


class Exchange(reduce.Exchange):
    """Merges sums of pairs of ranks, within nodes and then between them, until the root has all."""

    def merge(self, sums: Sequence[np.ndarray]) -> None:
        """Adds all ranks' sums to the root's, and charges the clients with their uploads."""
        *vectors, numbers = sums
        below, above = self.kin()
        for wire, rank in below:
            self.add(wire.recv(rank), vectors)
        self.send_sum(above, vectors)
        self.finish(numbers)

    def reselect(self, sums: Sequence[np.ndarray], count: int, exempt: np.ndarray) -> np.ndarray:
        """Does the same, and keeps the largest values of each sum on the way.

        Args:
            sums: one vector, float32 [n], and numbers; on the root they become the result.
            count: number of values to keep.
            exempt: positions that are kept beside these, ascending.

        Returns:
            Where this rank's uploads are in the result: ascending positions, uint32, in which all
                of `exempt` are. What uploads have elsewhere is not in it.
        """
        vector, numbers = sums
        below, above = self.kin()
        kept = [self.cut(vector, count, exempt)]
        for wire, rank in below:
            self.add(wire.recv(rank), [vector])
            kept.append(self.cut(vector, count, exempt))
        self.send_sum(above, [vector])
        alive = kept.pop()
        if above is not None:
            wire, rank = above
            (message,), _ = unpack(wire.recv(rank))
            alive = both(alive, message.blocks[0].indices)
        for (wire, rank), before in zip(reversed(below), reversed(kept), strict=True):
            block = Block(Kind.MASK, len(vector), Coding.NONE, None, alive)
            wire.send(self._pack("kept", [Message(0, [block])]).data, rank)
            alive = both(alive, before)
        self.finish(numbers)
        return alive

    def kin(self) -> tuple[list[tuple["Wire", int]], tuple["Wire", int] | None]:
        """Returns whose sums this rank merges, in order, and who gets the result; the root: nobody.

        Ranks of a node come first, then the first ranks of nodes.
        """
        below: list[tuple[Wire, int]] = []
        near, leaders = self.wire.near, self.wire.leaders
        for wire in [near] if leaders is None else [near, leaders]:
            wire.reset()
            ranks, above = relatives(wire.rank, wire.size)
            below += [(wire, rank) for rank in ranks]
            if above is not None:
                return below, (wire, above)
        return below, None

    def add(self, data: np.ndarray, vectors: Sequence[np.ndarray]) -> None:
        """Adds the sums that a rank sent to this rank's."""
        with self.clock(Phase.SERVE):
            (message,), _ = unpack(data)
            for vector, block in zip(vectors, message.blocks, strict=True):
                partial.add(vector, block)

    def send_sum(self, above: tuple["Wire", int] | None, vectors: Sequence[np.ndarray]) -> None:
        """Sends this rank's sums to the one above, if there is one."""
        if above is not None:
            wire, rank = above
            with self.clock(Phase.PACK):
                blocks = [partial.block(vector) for vector in vectors]
            wire.send(self._pack("sum", [Message(0, blocks)]).data, rank)

    def cut(self, vector: np.ndarray, count: int, exempt: np.ndarray) -> np.ndarray:
        """Sets all but the largest values of a sum to zero; returns the positions that remain.

        Args:
            vector: float32 [n].
            count: number of values to keep.
            exempt: positions that are kept beside these.

        Returns:
            Ascending positions, uint32, in which all of `exempt` are.
        """
        with self.clock(Phase.SERVE):
            spared = vector[exempt]
            vector[exempt] = 0
            positions, values = places.nonzero(vector)
            chosen, values = ranking.largest(values, min(count, len(values)))
            vector[positions] = 0
            vector[positions[chosen]] = values
            vector[exempt] = spared
            return np.sort(np.concatenate([positions[chosen], exempt.astype(np.uint32)]))

    def finish(self, numbers: np.ndarray) -> None:
        """Adds up the ranks' numbers, and charges the clients, and this rank with what it sent."""
        self.close(self.wire, [numbers])
        for wire in (self.wire.near, self.wire.leaders):
            if wire is not None:
                self.wire.include(wire)


def relatives(rank: int, size: int) -> tuple[list[int], int | None]:
    """Returns the ranks below one in a binomial tree, the nearest first, and the one above it.

    In step j those whose number has 2^j as its lowest bit send to the rank 2^j below them. So there
    are ceil(log2(size)) steps, for any number of ranks.
    """
    below: list[int] = []
    step = 1
    while step < size:
        if rank & step:
            return below, rank - step
        if rank + step < size:
            below.append(rank + step)
        step *= 2
    return below, None


def both(some: np.ndarray, others: np.ndarray | None) -> np.ndarray:
    """Returns the positions that are in both, uint32, ascending."""
    assert others is not None
    return np.intersect1d(some, others, assume_unique=True)
