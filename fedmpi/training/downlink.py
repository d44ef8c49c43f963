"""The server's word as changes of its model: compressed, with what was left out added later.

F. Sattler, S. Wiedemann, K.-R. Mueller, W. Samek, *Robust and Communication-Efficient Federated
Learning from Non-IID Data*, IEEE TNNLS 2020, arXiv 1903.02891, algorithm 2 and section V-C: after
each round the server compresses the change of its model plus what earlier changes left out, its
residual. The model of all sides moves by what is sent, so that it is the same everywhere, bit for
bit.

A client that did not take part in some rounds receives all changes that it missed, one after the
other, or the whole model if that is shorter. So does a client that takes part for the first time.
Running statistics are no gradients: their changes are sent exactly.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedmpi.config import Down
from fedmpi.messages import quantized, sparse
from fedmpi.messages.codec import Block, Coding, Kind, Message, pack, unpack
from fedmpi.networks.flat import Flat
from fedmpi.training import spans
from fedmpi.training.train import Trainer

CODINGS = {"f4": Coding.F4, "f2": Coding.F2, "bf16": Coding.BF16, "uniform": Coding.CODES}
"""Codings of single values."""


class Changes:
    """Encodes and decodes changes of a model [n], alike on both sides.

    Args:
        chosen: the coding.
        flat: the network.
        device: of the models.

    Attributes:
        are_lossless: whether a change would be as long as the model, and lose nothing.
        agreed: positions of a change whose values are all sent, int64; None for all of the model.
        stat_positions: positions of running statistics, int64; may be empty.
        count: blocks of an encoded change, without those of running statistics.
    """

    def __init__(self, chosen: Down, flat: Flat, device: torch.device) -> None:
        self.chosen, self.flat, self.device = chosen, flat, device
        self.are_lossless = chosen.is_lossless
        self.agreed = None if flat.moving is None else flat.movable.to(device)
        self.stat_positions = flat.stat_positions.to(device)
        is_coded = chosen.values in ("uniform", "ternary", "sign")
        self.count = 2 if is_coded and len(self._lengths(None)) > 1 else 1

    def encode(self, change: Tensor) -> list[Block]:
        """Encodes the largest values of a change, or all of them.

        Args:
            change: [n], zero at running statistics.

        Returns:
            Blocks, `count` of them.
        """
        chosen, size = self.chosen, self.flat.size
        positions = None
        if chosen.sparsity or chosen.values == "ternary":
            positions = spans.largest(chosen.spans, change, self.flat, chosen.sparsity)
        if positions is not None and chosen.values == "ternary":  # zeros have no sign
            positions = positions[change[positions] != 0]
        where = self.agreed if positions is None else positions
        values = change if where is None else change[where]
        if chosen.values in ("ternary", "sign"):
            lengths = self._lengths(positions)
            return quantized.signs(Kind.GRADIENT, values, lengths, size, positions)
        if self.count > 1:
            about = self._lengths(positions), chosen.bits
            return quantized.ranges(Kind.GRADIENT, values, *about, size=size, indices=positions)
        bits = chosen.bits if chosen.values == "uniform" else 0
        coding = CODINGS[chosen.values]
        return [sparse.block(Kind.GRADIENT, values, size, positions, coding, bits)]

    def decode(self, blocks: Sequence[Block]) -> Block:
        """Restores a change as one block of float32 values.

        Raises:
            WireError: if the blocks do not fit the network.
        """
        first = blocks[0]
        positions = None if first.indices is None else sparse.indices(first)
        if self.chosen.values in ("ternary", "sign"):
            return quantized.signed(blocks, self._lengths(positions))
        found = sparse.values(first)
        if self.count > 1:
            found = quantized.ranged(blocks, self._lengths(positions))
        return Block(first.kind, first.size, Coding.F4, found.numpy(), first.indices)

    def vector(self, blocks: Sequence[Block]) -> Tensor:
        """Restores a change as a vector [n], zero where nothing was sent."""
        return sparse.vector(self.decode(blocks), self.flat.size, self.device, self.agreed)

    def move(self, w: Tensor, blocks: Sequence[Block]) -> None:
        """Moves a model [n] by changes, one after the other, in place."""
        each = self.count + bool(len(self.stat_positions))
        for first in range(0, len(blocks), each):
            change = blocks[first : first + each]
            sparse.add(w, self.decode(change[: self.count]), agreed=self.agreed)
            for block in change[self.count :]:
                sparse.add(w, block, agreed=self.stat_positions)

    def _lengths(self, positions: Tensor | None) -> Sequence[int]:
        """Returns how many of the values at some positions, or of all, share each scale."""
        where = self.flat.movable if positions is None else positions
        return spans.lengths(self.chosen.spans, self.flat, where)


class Words:
    """The server's side: the changes of the last rounds, and what clients know of them.

    Args:
        changes: encodes them.
        clients: number of clients.

    Attributes:
        rest: what the changes have left out so far, [n].
        history: the changes of the last rounds, by round; together they are shorter than the model.
        lengths: their bytes.
        forgotten: the first round whose change, and those of all later ones, are in `history`,
            int64 [].
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

        These are the changes that it missed, or the model.
        """
        first, self.knows[client] = int(self.knows[client]), t
        if first < self.forgotten:
            return [sparse.block(Kind.MODEL, w)]
        return [block for said, blocks in self.history.items() if said >= first for block in blocks]

    def say(self, t: int, change: Tensor, w: Tensor) -> None:
        """Compresses the change [n] of round t, and moves the model w [n] by what is sent of it."""
        statistics, where = [], self.changes.stat_positions
        if len(where):
            statistics = [sparse.block(Kind.GRADIENT, change[where], self.size)]
            change[where] = 0
        change += self.rest
        blocks = self.changes.encode(change)
        sparse.add(change, self.changes.decode(blocks), -1.0, self.changes.agreed)
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
        self.changes, self.models = changes, trainer.store("heard", changes.flat.size)

    def follow(self, client: int, blocks: Sequence[Block]) -> Tensor:
        """Takes the model, or the changes that the client missed, and returns its copy, [n]."""
        size, device = self.changes.flat.size, self.changes.device
        if blocks and blocks[0].kind == Kind.MODEL:
            model = sparse.vector(blocks[0], size, device)
        else:
            model = self.models[client].to(device, copy=True)
            self.changes.move(model, blocks)
        self.models[client] = model
        return model
