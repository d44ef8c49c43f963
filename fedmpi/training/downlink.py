"""The server's word as changes of its model: compressed, with what was left out added later.

F. Sattler, S. Wiedemann, K.-R. Mueller, W. Samek, *Robust and Communication-Efficient Federated
Learning from Non-IID Data*, IEEE TNNLS 2020, arXiv 1903.02891, algorithm 2 and section V-C: after
each round the server compresses the change of its model plus what earlier changes left out, its
residual. The model of all sides moves by what is sent, so that it is the same everywhere, bit for
bit.

A client that takes part for the first time receives the whole model. One that did not take part in
some rounds receives all changes that it missed, one after the other, or the whole model if that is
shorter. Running statistics are no gradients: their changes are sent exactly.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedmpi.config import Down
from fedmpi.messages import select, sparse
from fedmpi.messages.codec import Block, Kind, Message, pack, unpack
from fedmpi.messages.coding import Coder
from fedmpi.networks.flat import Flat
from fedmpi.training import spans
from fedmpi.training.train import Trainer


class Changes:
    """Encodes and decodes changes of a model [n], alike on both sides.

    Args:
        chosen: how they are written.
        flat: the network.
        device: of the models.

    Attributes:
        are_lossless: whether a change would lose nothing, and be as long as the model.
        stat_positions: positions of running statistics, int64; may be empty.
        coder: writes the values.
    """

    def __init__(self, chosen: Down, flat: Flat, device: torch.device) -> None:
        self.chosen, self.flat, self.device = chosen, flat, device
        self.are_lossless = chosen.is_lossless
        self.stat_positions = flat.stat_positions.to(device)
        self.coder = Coder(chosen, flat.parameters, flat.stat_positions, flat.size, apart=True)

    def encode(self, change: Tensor, key: np.ndarray) -> list[Block]:
        """Encodes the largest values of a change, or all of them.

        Args:
            change: [n], zero at running statistics.
            key: rounds values, if they are rounded at random (`streams.key`).

        Returns:
            Blocks, `coder.blocks` of them.
        """
        down = self.chosen
        if not down.sparsity and down.positions == "auto":
            return self.coder.encode([sparse.block(Kind.GRADIENT, change)], None, key)
        chosen = spans.largest(down.spans, change, self.flat, down.sparsity)
        if down.values == "sign":  # zeros have no sign
            chosen = select.at(change, chosen.positions[chosen.values != 0])
        block = sparse.block(Kind.GRADIENT, chosen.values, self.flat.size, chosen.places)
        return self.coder.encode([block], chosen.positions, key)

    def decode(self, blocks: Sequence[Block]) -> Block:
        """Restores a change as one block.

        Raises:
            WireError: if the blocks do not fit the network.
        """
        (block,) = self.coder.decode(blocks, None)
        return block

    def move(self, w: Tensor, blocks: Sequence[Block]) -> None:
        """Moves a model [n] by changes, one after the other, in place.

        Raises:
            WireError: if the blocks do not fit the network.
        """
        count = self.coder.blocks
        each = count + bool(len(self.stat_positions))
        for first in range(0, len(blocks), each):
            change = blocks[first : first + each]
            sparse.add(w, self.decode(change[:count]))
            for block in change[count:]:
                sparse.add(w, block, agreed=self.stat_positions)


class Words:
    """The server's side: the changes of the last rounds, and what clients know of them.

    Args:
        changes: encodes them.
        clients: number of clients.

    Attributes:
        rest: what the changes have left out so far, [n].
        history: the changes of the last rounds, by round; together they are shorter than the model.
        lengths: their bytes.
        forgotten: changes of rounds before this one are in `history` no more, int64 [].
        knows: the round in which each client took part last, int64 [clients]; -1 if it never did.
    """

    def __init__(self, changes: Changes, clients: int) -> None:
        self.changes, self.size = changes, changes.flat.size
        self.rest = torch.zeros(self.size, device=changes.device)
        self.history: dict[int, list[Block]] = {}
        self.lengths: dict[int, int] = {}
        self.forgotten = torch.zeros((), dtype=torch.int64)
        self.knows = torch.full((clients,), -1)

    def state(self) -> dict[str, Tensor]:
        """Everything that later words depend on, by name; the changes are one buffer."""
        history = pack([Message(t, blocks) for t, blocks in self.history.items()]).data
        mine = {"rest": self.rest, "knows": self.knows, "forgotten": self.forgotten}
        return mine | {"history": torch.from_numpy(history)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes the state of another server's words."""
        messages, _ = unpack(state["history"].numpy().copy())
        self.history = {message.client: list(message.blocks) for message in messages}
        self.lengths = {t: length(blocks) for t, blocks in self.history.items()}
        for name in ("rest", "knows", "forgotten"):
            getattr(self, name).copy_(state[name])

    def missed(self, t: int, client: int, w: Tensor) -> list[Block]:
        """Returns what brings a client that takes part in round t to the model w [n].

        These are the changes that it missed; or the model, if `history` lacks one of them, or if
        the client takes part for the first time.
        """
        first, self.knows[client] = int(self.knows[client]), t
        if first < self.forgotten:
            return [sparse.block(Kind.MODEL, w)]
        return [block for said, blocks in self.history.items() if said >= first for block in blocks]

    def say(self, t: int, change: Tensor, w: Tensor, key: np.ndarray) -> None:
        """Compresses the change [n] of round t, and moves the model w [n] by what is sent of it.

        The change is changed in place; `key` rounds its values (`streams.key`).
        """
        statistics, where = [], self.changes.stat_positions
        if len(where):
            statistics = [sparse.block(Kind.GRADIENT, change.index_select(0, where), self.size)]
            change[where] = 0
        change += self.rest
        blocks = self.changes.encode(change, key)
        sparse.add(change, self.changes.decode(blocks), -1.0)
        self.rest = change
        self.history[t] = [*blocks, *statistics]
        self.lengths[t] = length(self.history[t])
        self.changes.move(w, self.history[t])
        # A client that missed more bytes than a model has is sent the model.
        while sum(self.lengths.values()) >= 4 * self.size:
            self.forget(next(iter(self.history)))

    def forget(self, t: int) -> None:
        """Forgets the change of round t, the oldest one; who missed it is sent the model."""
        self.history.pop(t, None)
        self.lengths.pop(t, None)
        self.forgotten.fill_(t + 1)


def length(blocks: Sequence[Block]) -> int:
    """Returns the bytes of a round's change, including headers."""
    return len(pack([Message(0, blocks)]).data)


class Copies:
    """The clients' side: each client's copy of the server's model, as of when it last took part.

    Args:
        changes: decodes what comes.
        trainer: keeps the copies.
    """

    def __init__(self, changes: Changes, trainer: Trainer) -> None:
        self.changes, self.models = changes, trainer.stores.add("heard", changes.flat.size)

    def follow(self, client: int, blocks: Sequence[Block]) -> Tensor:
        """Takes the model, or the changes that the client missed, and returns its copy, [n].

        Raises:
            WireError: if the blocks do not fit the network.
        """
        size, device = self.changes.flat.size, self.changes.device
        if blocks and blocks[0].kind == Kind.MODEL:
            model = sparse.vector(blocks[0], size, device)
        else:
            model = self.models[client].to(device, copy=True)
            self.changes.move(model, blocks)
        self.models[client] = model
        return model
