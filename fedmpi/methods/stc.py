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

from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.config import Down, Settings
from fedmpi.messages.codec import Block
from fedmpi.methods import fedavg
from fedmpi.training import feedback, spans
from fedmpi.training.downlink import Changes
from fedmpi.training.train import Trainer


class Config(feedback.Config, spans.Config):
    controls: ClassVar[bool] = False
    optimizes: ClassVar[bool] = False
    sends_changes: ClassVar[bool] = True
    can_send_changes: ClassVar[bool] = False
    own_changes: ClassVar[str] = "method.sparsity_down"
    chooses: ClassVar[bool] = True
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

    def ternary(self, sparsity: float) -> Down:
        """Returns the coding of either direction: signs with one magnitude a span."""
        signs: dict[str, Any] = {"values": "sign", "positions": "golomb", "scales": self.spans}
        return Down(sparsity=sparsity, spans=self.spans, **signs)


class Half(fedavg.Half):
    """Both directions are ternary.

    Attributes:
        updates: encodes uploads.
    """

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        coding = self.method.ternary(self.method.sparsity)
        self.updates = Changes(coding, self.flat, trainer.device)

    def down(self) -> Down:
        """Returns the coding of downloads."""
        down = self.method.sparsity_down
        return self.method.ternary(self.method.sparsity if down is None else down)

    def decode_update(self, t: int, client: int, blocks: Sequence[Block]) -> Block:
        """Restores a ternary update."""
        return self.updates.decode(blocks)


class Server(Half, fedavg.Server):
    def step(self, t: int) -> None:
        """Moves the model by the mean update."""
        self.w += self.sum.mean()
        self.sum.clear()


class Clients(Half, fedavg.Clients):
    def count(self, t: int) -> int:
        """Returns how many of an update's values are sent."""
        return self.method.count(self.flat, self.method.sparsity)

    def encode_update(self, t: int, client: int, update: Tensor) -> list[Block]:
        """Sends the largest values as signs with one magnitude."""
        return self.updates.encode(update, self.rounding(t, client))
