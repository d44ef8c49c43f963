"""What a SPATL client is told of the encoder and of c: all of it, or what changed.

The server notes the round in which each channel moved last, and when it last told each client. A
client that takes part is told the channels that moved since then: a list of them, and the values of
the encoder and of c at these channels. Values that belong to no channel come every time. Who takes
part for the first time is told all channels. So a client holds the same model, bit for bit, as one
that is told all of it, and only the bytes differ.

A channel moves in a round in which some upload lists it. With `aggregation = zero-average` all
values move in every round.
"""

import torch
from torch import Tensor

from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.training.train import Trainer

NEVER = -1
"""Stands for the round of a channel that has not moved, and of a client that was not told."""


class Teller:
    """The server's notes.

    Args:
        clients: number of clients.
        channels: number of the encoder's channels.

    Attributes:
        moved: the round in which each channel moved last, int64 [channels].
        told: the round in which each client was told last, int64 [clients].
        listed: the channels that uploads of this round list, bool [channels].
        control: c as it was when the round began, [n]; None without control variates.
    """

    def __init__(self, clients: int, channels: int) -> None:
        self.moved = torch.full((channels,), NEVER)
        self.told = torch.full((clients,), NEVER)
        self.listed = torch.zeros(channels, dtype=torch.bool)
        self.control: Tensor | None = None

    def begin(self, control: Tensor | None) -> None:
        """A round begins with that c; it moves as uploads come in, while later ones are told."""
        self.control = None if control is None else control.clone()

    def news(self, t: int, client: int) -> Tensor:
        """Returns the channels that moved since the client was told last, int64, and notes t."""
        since, self.told[client] = int(self.told[client]), t
        return (self.moved >= since).nonzero().squeeze(1)

    def note(self, t: int, is_everything: bool) -> None:
        """Round t ends: what was listed has moved, or all channels have."""
        self.moved[self.listed | is_everything] = t
        self.listed.zero_()


def blocks(
    news: Tensor, channels: int, positions: Tensor, w: Tensor, control: Tensor | None
) -> list[Block]:
    """Returns the list of channels, and the values of the encoder and of c there.

    Args:
        news: the channels, int64, ascending.
        channels: number of the encoder's channels.
        positions: of their values, and of those that belong to no channel, int64.
        w: the server's model, [n].
        control: c, [n]; None without control variates.
    """
    found = [
        sparse.places(news, channels),
        sparse.block(Kind.MODEL, w.index_select(0, positions), len(w)),
    ]
    if control is not None:
        found.append(sparse.block(Kind.GRADIENT, control.index_select(0, positions), len(control)))
    return found


class Copies:
    """What each client of a rank holds of the server's vectors since it was told last.

    Args:
        trainer: keeps them.
        shared: the positions that the server sends, int64.
        names: of the vectors.
    """

    def __init__(self, trainer: Trainer, shared: Tensor, *names: str) -> None:
        self.shared, self.size, self.device = shared, trainer.flat.size, trainer.device
        self.stores = {name: trainer.stores.add(f"heard {name}", len(shared)) for name in names}

    def update(self, name: str, client: int, block: Block, positions: Tensor) -> Tensor:
        """Puts the values of a block at their positions; returns the vector [n], zero elsewhere."""
        found, store = torch.zeros(self.size, device=self.device), self.stores[name]
        if client in store:
            found.index_copy_(0, self.shared, store[client].to(self.device))
        found.index_copy_(0, positions, sparse.values(block, self.device))
        store[client] = found.index_select(0, self.shared)
        return found
