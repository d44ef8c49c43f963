"""STC: sparse ternary compression of both the clients' uploads and the server's updates.

F. Sattler, S. Wiedemann, K.-R. Mueller, W. Samek, *Robust and Communication-Efficient Federated
Learning from Non-IID Data*, IEEE TNNLS 2020, arXiv 1903.02891, algorithms 1 and 2. The largest
values of update + residual are sent as +mu or -mu, where mu is the mean of their absolute values:
positions in Golomb code, and one bit a value. The server compresses the mean update in the same
way, with a residual of its own, so that all sides hold the same, compressed model.

A client that was not sampled for some rounds receives all updates that it missed, or the whole
model if that is shorter. The paper sends the sum of the updates (section V-C), which may be shorter
than one update after the other.
Differs from the paper: updates are averaged by samples; values are chosen over all parameters
together. Running statistics are sent exactly.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.config import Settings
from fedmpi.messages import select, sparse
from fedmpi.messages.codec import Block, Kind, Message, pack, unpack
from fedmpi.messages.counts import keep_round
from fedmpi.methods import fedavg
from fedmpi.networks.flat import Flat
from fedmpi.training.feedback import Feedback
from fedmpi.training.train import Trainer


class Config(config.Method):
    broadcasts = False
    optimizes: ClassVar[bool] = False
    sends: ClassVar[bool] = True
    keeps_state: ClassVar[bool] = True

    sparsity: float = Field(0.9, ge=0, lt=1)
    """Share of an upload's values that are not sent."""
    sparsity_down: float | None = Field(None, ge=0, lt=1)
    """Share of a download's values that are not sent. If absent, it equals sparsity."""


def ternary(update: Tensor, flat: Flat, sparsity: float) -> Block:
    """Encodes the largest values of an update [n] by their signs and one magnitude.

    The update must be zero at running statistics. Zeros are never sent, because they have no sign.
    """
    positions = select.top(update, keep_round(flat.count, 1 - sparsity))
    positions = positions[update[positions] != 0]
    return sparse.signs(Kind.GRADIENT, update[positions], flat.size, positions)


class Server(fedavg.Server):
    """A server that remembers its last updates, as blocks.

    Attributes:
        rest: what the compressed updates have left out so far, [n].
        history: the updates of the last rounds, by round.
        lengths: their bytes.
        forgotten: the first round whose update, and those of all later ones, are in `history`,
            int64 [].
        knows: the round in which each client took part last, int64 [clients]; -1 if it never did.
    """

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.rest = torch.zeros_like(self.w)
        down = self.method.sparsity_down
        self.sparsity = self.method.sparsity if down is None else down
        self.history: dict[int, list[Block]] = {}
        self.lengths: dict[int, int] = {}
        self.forgotten = torch.zeros((), dtype=torch.int64)
        self.knows = torch.full((settings.clients,), -1)

    def state(self) -> dict[str, Tensor]:
        """The model, the residual, the last updates as one buffer, and what each client knows."""
        history = pack([Message(t, blocks) for t, blocks in self.history.items()]).data
        mine = {"rest": self.rest, "knows": self.knows, "forgotten": self.forgotten}
        return super().state() | mine | {"history": torch.from_numpy(history)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes the state of another server."""
        messages, _ = unpack(state["history"].numpy().copy())
        self.history = {message.client: list(message.blocks) for message in messages}
        self.lengths = {t: length(blocks) for t, blocks in self.history.items()}
        super().restore(state)

    def send(self, t: int, client: int) -> list[Block]:
        """Sends the updates that the client missed since it last took part, or the whole model."""
        first, self.knows[client] = int(self.knows[client]), t
        if first < self.forgotten:
            return [sparse.block(Kind.MODEL, self.w)]
        return [
            block for round, blocks in self.history.items() if round >= first for block in blocks
        ]

    def step(self, t: int) -> None:
        """Moves the model by the compressed mean update; the error becomes the next residual."""
        update = self.sum.mean()
        statistics = []
        if len(self.stat_positions):
            statistics = [sparse.block(Kind.GRADIENT, update[self.stat_positions], self.flat.size)]
            update[self.stat_positions] = 0
        update += self.rest
        block = ternary(update, self.flat, self.sparsity)
        self.rest = update - sparse.vector(block, self.flat.size, self.w.device)
        self.history[t] = [block, *statistics]
        self.lengths[t] = length(self.history[t])
        follow(self.w, self.history[t], self.stat_positions)
        self.sum.clear()
        # A client that missed more bytes than a model has is sent the model.
        while sum(self.lengths.values()) >= 4 * self.flat.size:
            oldest = next(iter(self.history))
            del self.history[oldest], self.lengths[oldest]
            self.forgotten.fill_(oldest + 1)


def length(blocks: Sequence[Block]) -> int:
    """Returns the bytes of a round's update, including headers."""
    return len(pack([Message(0, blocks)]).data)


def follow(w: Tensor, blocks: Sequence[Block], stat_positions: Tensor) -> None:
    """Moves a model [n] by compressed updates, in place, in the same way on both sides."""
    for block in blocks:
        sparse.add(w, block, agreed=None if block.indices is not None else stat_positions)


class Clients(fedavg.Clients):
    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.feedback = Feedback(trainer, self.flat.size)
        self.models = trainer.store("model", self.flat.size)

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Does nothing: updates come to each client by `accept`."""

    def accept(self, t: int, client: int, blocks: Sequence[Block]) -> None:
        """Receives the model, or updates that are added to the client's own copy of it."""
        device = self.trainer.device
        if blocks and blocks[0].kind == Kind.MODEL:
            model = sparse.vector(blocks[0], self.flat.size, device)
        else:
            model = self.models[client].to(device, copy=True)
            follow(model, blocks, self.stat_positions)
        self.models[client] = self.start = model

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """Sends the largest values of update + residual as signs with one magnitude."""
        update = w - self.start
        statistics = self.take_statistics(update)
        self.feedback.add(client, update)
        block = ternary(update, self.flat, self.method.sparsity)
        sent = sparse.vector(block, self.flat.size, update.device)
        self.feedback.remember(client, update - sent, update)
        return [block, *statistics]
