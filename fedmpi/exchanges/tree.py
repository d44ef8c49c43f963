"""Tree: uploads go to the first rank of their node, which adds them up; the sums go to the root.

On a node the ranks write packed messages into memory that they share, and its first rank reads them
there. So the bytes between nodes grow with the nodes, not with ranks or clients. A node's sum is
sent as the values that are not zero, with the union of all uploads' positions, or as a dense vector
if that is shorter. The downlink is that of `star`.

On a single node the results are those of `star`, bit for bit. On several ones they depend on which
node hosts which client, and equal those of `star` to the rounding that `reduce` states.
A client's bytes are those of its upload, as with `star`. What went between ranks is in the table
`ranks`: of each rank what it wrote into shared memory, of a node's first rank also what it sent to
the root.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from fedmpi import config
from fedmpi.costs import HEAD, WORD, Load, Step, added, choose, merged, move, read, written
from fedmpi.exchanges import reduce
from fedmpi.messages import partial
from fedmpi.messages.clock import Phase
from fedmpi.messages.codec import Message, pack, unpack


class Config(config.Exchange):
    """No settings beyond those of all exchanges."""

    adds: ClassVar[bool] = True


def steps(load: Load) -> list[Step]:
    """The parts of a round's uplink that follow each other, to predict its seconds."""
    here = min(load.clients, load.near * load.mine)
    sent = HEAD + load.mine * load.upload
    heard = [read(load, here), *added(load, "root", here)]
    found = [*choose(load), move("near", load.near, 1, sent), *heard]
    if load.nodes > 1:
        union = load.union(here)
        found += written(load, "root", union)
        found.append(move("gather", 1, load.nodes, HEAD + load.part(union)))
        found += merged(load, "root", union, load.nodes - 1)
        found.append(move("reduce", 1, load.nodes, WORD))
    return found


class Exchange(reduce.Exchange):
    """Gathers uploads on the first rank of each node, and their sums on the root."""

    def gather(self, messages: list[Message]) -> list[Message]:
        """Returns the messages of a node's clients on its first rank, in client order."""

        def packed(room: np.ndarray) -> np.ndarray:
            with self.clock(Phase.PACK):
                return pack(messages, room).data

        heard: list[Message] = []
        for piece in self.wire.gather_near(packed):
            with self.clock(Phase.PACK):
                found, account = unpack(piece)
            heard += found
            self.note(found, account)
        return sorted(heard, key=lambda message: message.client)

    def merge(self, sums: Sequence[np.ndarray]) -> None:
        """Adds the sums of all nodes to the root's, and charges the clients with their uploads."""
        leaders = self.wire.leaders
        if leaders is not None:
            *vectors, numbers = sums
            leaders.reset()
            with self.clock(Phase.PACK):
                blocks = [] if leaders.is_root else [partial.block(vector) for vector in vectors]
                word = pack([Message(0, blocks)]).data
            for piece in leaders.gather(word):
                with self.clock(Phase.SERVE):
                    for message in unpack(piece)[0]:
                        for vector, block in zip(vectors, message.blocks, strict=False):
                            partial.add(vector, block)
            self.close(leaders, [numbers])
            self.wire.include(leaders)
