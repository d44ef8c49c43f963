"""Sparse-gradient collaborative learning: SplitFed with sparse gradients, weighted by distance.

M. Li, X. He, J. Chen, *Federated Collaborative Learning with Sparse Gradients for Heterogeneous
Data on Resource-Constrained Devices*, Entropy 2024, 26(12), 1099, doi 10.3390/e26121099: gradients
travel sparse, with a position mask, and are dequantized to dense ones; clients' weights are
assigned by Euclidean distance.

Reconstruction: the abstract alone is known, so that the rest is ours. The base is SplitFed V1.
SGQ and DQ are `quantized.strongest` and `restored`: a gradient at a cut is one tensor for a batch,
an update of front and tail has one for each of its parameters, and activations are dense.
Reconstruction: a client's distance is the norm of its update of front and tail, as it came, and of
the change of its back, together; weights by it (see `distance`) are those of all three. Which way
it counts the abstract does not say.
Reconstruction: running statistics are no gradients. They travel as they are, count by samples
alone, and are in no distance.
The server holds a whole model for each client of a round until it knows all distances. It judges
clients' own models by updates as they came.
"""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from fedmpi.config import Settings
from fedmpi.messages import quantized, sparse
from fedmpi.messages.codec import Block, Kind, Message
from fedmpi.messages.quantized import Bits
from fedmpi.messages.sparse import Span
from fedmpi.methods import splitfed
from fedmpi.methods.sgcfl import distance
from fedmpi.methods.sgcfl.distance import Waiting
from fedmpi.networks.flat import Flat
from fedmpi.split.cuts import Crossing, Cut
from fedmpi.split.sides import Side
from fedmpi.streams import Purpose, stream
from fedmpi.training.feedback import Feedback
from fedmpi.training.train import Trainer


class Config(Cut, distance.Config):
    pools: ClassVar[bool] = False

    sparsity: float = Field(0.9, ge=0, lt=1)
    """Share of a tensor's values that are not sent."""
    bits: Bits = 8
    """Bits of a value that is; 32 sends it as it is."""
    cut_gradient: bool = True
    """Send gradients at the cut so; else as they are."""
    model_gradient: bool = True
    """Send updates so; else as they are."""
    stochastic: bool = False
    """Round at random, right on average where a value is sent; else to the nearest."""
    error_feedback: bool = False
    """Add what was not sent of an update to the client's next one; the abstract has no such."""

    def parts(self, flat: Flat) -> tuple[Flat, Flat, Flat]:
        """See `Cut.parts`; before anything else, settings that mean nothing are refused."""
        idle = self.idle()
        if self.bits == sparse.EXACT:
            idle["stochastic"] = "method.bits below 32"
            if not self.sparsity:
                idle["error_feedback"] = "method.sparsity above 0 or method.bits below 32"
        if not self.model_gradient:
            idle["error_feedback"] = "method.model_gradient"
            if not self.cut_gradient:
                gradient = "method.cut_gradient or method.model_gradient"
                idle |= dict.fromkeys(("sparsity", "bits", "stochastic"), gradient)
        self.refuse(idle)
        return super().parts(flat)

    @property
    def is_one(self) -> bool:
        """Each client has a back."""
        return False

    @property
    def keeps_state(self) -> bool:
        """Residuals."""
        return self.error_feedback


class Coding(Side):
    """What is the same on both sides: SGQ and DQ."""

    settings: Settings
    method: Config

    def strongest(self, x: Tensor, spans: Sequence[Span], why: Purpose, *ids: int) -> list[Block]:
        """SGQ of parts of a tensor."""
        method, seed = self.method, self.settings.seed
        random = stream(seed, why, *ids) if method.stochastic else None
        given = (x.reshape(1, -1), spans, method.sparsity, method.bits, random)
        return quantized.strongest(Kind.GRADIENT, *given)

    def restored(self, blocks: Sequence[Block], spans: Sequence[Span]) -> Tensor:
        """DQ, as a vector."""
        shape, device = (1, blocks[0].size), self.trainer.device
        return quantized.restored(blocks, shape, spans, self.method.sparsity, device)[0]

    def encode(self, crossing: Crossing, values: Tensor) -> list[Block]:
        """SGQ of a gradient."""
        if crossing.kind != Kind.GRADIENT or not self.method.cut_gradient:
            return super().encode(crossing, values)
        ids = crossing.t, crossing.client, crossing.step, crossing.cut
        return self.strongest(values, [range(values.numel())], Purpose.CUT, *ids)

    def decode(self, crossing: Crossing, blocks: Sequence[Block]) -> Tensor:
        """DQ of a gradient."""
        if crossing.kind != Kind.GRADIENT or not self.method.cut_gradient:
            return super().decode(crossing, blocks)
        return self.restored(blocks, [range(blocks[0].size)])


class Server(Coding, splitfed.Server):
    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.theirs, self.waiting = self.method.held(self.flat), Waiting(self.method)
        self.blocks_per_upload = (
            2 if self.method.model_gradient and self.method.bits != sparse.EXACT else 1
        )

    def dense(self, blocks: Sequence[Block]) -> Tensor:
        """The update of front and tail that blocks stand for."""
        if not self.method.model_gradient:
            return sparse.vector(blocks[0], self.theirs.size, self.trainer.device)
        update = self.restored(blocks[: self.blocks_per_upload], self.theirs.parameters)
        for statistics in blocks[self.blocks_per_upload :]:
            update[self.theirs.stat_positions] = sparse.values(statistics, update.device)
        return update

    def absorb(self, t: int, message: Message) -> None:
        """Has what the client and its back have become wait, but for statistics."""
        client, weight = message.client, message.weight
        update = self.updates[client] = self.dense(message.blocks)
        back = self.backs.of(client) - self.sections.split(self.w)[1]
        whole = self.sections.join(update, back)
        self.sum.total.index_add_(0, self.stat_positions, whole[self.stat_positions], alpha=weight)
        whole[self.stat_positions] = 0
        self.waiting.add(client, weight, whole)
        self.sum.weight += weight

    def step(self, t: int) -> None:
        """Moves front, back and tail by the mean of what waited, weighted by distance."""
        self.noted = self.waiting.close(self.sections.split(self.sum.total))
        super().step(t)


class Clients(Coding, splitfed.Clients):
    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.theirs = self.method.held(self.flat)
        self.stat_positions = self.theirs.stat_positions.to(trainer.device)
        self.feedback = Feedback(settings.state, self.theirs.size, self.method.error_feedback)

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """SGQ of the update of front and tail, and statistics."""
        if not self.method.model_gradient:
            return super().upload(t, client, w)
        update, spans = w - self.start, self.theirs.parameters
        statistics = self.take_statistics(update)
        self.feedback.add(client, update)
        blocks = self.strongest(update, spans, Purpose.QUANTIZE, t, client)
        if self.method.error_feedback:
            self.feedback.remember(client, update - self.restored(blocks, spans))
        return [*blocks, *statistics]
