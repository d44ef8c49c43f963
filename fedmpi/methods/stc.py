"""STC: sparse ternary compression of both the clients' uploads and the server's updates.

F. Sattler, S. Wiedemann, K.-R. Mueller, W. Samek, *Robust and Communication-Efficient Federated
Learning from Non-IID Data*, IEEE TNNLS 2020, arXiv 1903.02891, algorithms 1 and 2. The largest
values of update + residual are sent as +mu or -mu, where mu is the mean of their absolute values:
positions in Golomb code, and one bit a value. The server compresses the mean update in the same
way, with a residual of its own, so that all sides hold the same, compressed model.

A client that was not sampled for some rounds receives all updates that it missed, or the whole
model if that is shorter. The paper sends the sum of the updates (section V-C), which may be shorter
than one update after the other.
Differs from the paper: updates are averaged by samples. Running statistics are sent exactly. The
released code compresses each tensor by itself, which is `spans` = tensor.
Values of the paper: its sparsity of 1 / 400 in both directions; a local step a round, as in the
released code (felisat/federated-learning).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.config import Settings
from fedmpi.messages import quantized, sparse
from fedmpi.messages.codec import Block, Kind, Message, pack, unpack
from fedmpi.methods import fedavg
from fedmpi.networks.flat import Flat
from fedmpi.training import feedback, spans
from fedmpi.training.train import Trainer


class Config(feedback.Config, spans.Config):
    broadcasts = False
    controls: ClassVar[bool] = False
    optimizes: ClassVar[bool] = False
    sends: ClassVar[bool] = True
    keeps_state: ClassVar[bool] = True
    uploads: ClassVar[config.Uploads] = "codes"
    paper: ClassVar[Mapping[str, Any]] = {
        "method.sparsity": 0.9975,
        "method.sparsity_down": 0.9975,
        "local_steps": 1,
    }

    sparsity: float = Field(0.9975, ge=0, lt=1)
    """Share of an upload's values that are not sent."""
    sparsity_down: float | None = Field(None, ge=0, lt=1)
    """Share of a download's values that are not sent. If absent, it equals sparsity."""

    def ternary(self, update: Tensor, flat: Flat, sparsity: float) -> list[Block]:
        """Encodes the largest values of an update [n] by their signs and a magnitude a span.

        The update must be zero at running statistics. Zeros are never sent: they have no sign.
        """
        positions = self.largest(update, flat, sparsity)
        positions = positions[update[positions] != 0]
        lengths = self.lengths(flat, positions)
        return quantized.signs(Kind.GRADIENT, update[positions], lengths, flat.size, positions)

    def values(self, blocks: Sequence[Block], flat: Flat) -> Block:
        """Decodes such an update: its values, and their positions."""
        return quantized.signed(blocks, self.lengths(flat, sparse.indices(blocks[0])))

    def parts(self, flat: Flat) -> int:
        """Number of blocks that encode an update."""
        return min(2, len(self.lengths(flat, flat.movable)))


class Ternary(fedavg.Half):
    """Both sides read ternary updates."""

    method: Config

    def decode_update(self, t: int, client: int, blocks: Sequence[Block]) -> Block:
        """Restores a ternary update."""
        return self.method.values(blocks, self.flat)


class Server(Ternary, fedavg.Server):
    """A server that remembers its last updates, as blocks.

    Attributes:
        rest: what the compressed updates have left out so far, [n].
        history: the updates of the last rounds, by round.
        lengths: their bytes.
        forgotten: the first round whose update, and those of all later ones, are in `history`,
            int64 [].
        knows: the round in which each client took part last, int64 [clients]; -1 if it never did.
    """

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
        blocks = self.method.ternary(update, self.flat, self.sparsity)
        sent = self.method.values(blocks, self.flat)
        self.rest = update - sparse.vector(sent, self.flat.size, self.w.device)
        self.history[t] = [*blocks, *statistics]
        self.lengths[t] = length(self.history[t])
        follow(self.w, self.history[t], self.method, self.flat)
        self.sum.clear()
        # A client that missed more bytes than a model has is sent the model.
        while sum(self.lengths.values()) >= 4 * self.flat.size:
            oldest = next(iter(self.history))
            del self.history[oldest], self.lengths[oldest]
            self.forgotten.fill_(oldest + 1)


def length(blocks: Sequence[Block]) -> int:
    """Returns the bytes of a round's update, including headers."""
    return len(pack([Message(0, blocks)]).data)


def follow(w: Tensor, blocks: Sequence[Block], method: Config, flat: Flat) -> None:
    """Moves a model [n] by compressed updates, in place, in the same way on both sides."""
    parts = method.parts(flat)
    each = parts + bool(len(flat.stat_positions))
    for first in range(0, len(blocks), each):
        update = blocks[first : first + each]
        sparse.add(w, method.values(update[:parts], flat))
        for block in update[parts:]:
            sparse.add(w, block, agreed=flat.stat_positions.to(w.device))


class Clients(Ternary, fedavg.Clients):
    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
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
            follow(model, blocks, self.method, self.flat)
        self.models[client] = self.start = model

    def encode_update(self, t: int, client: int, update: Tensor) -> list[Block]:
        """Sends the largest values as signs with one magnitude."""
        return self.method.ternary(update, self.flat, self.method.sparsity)
