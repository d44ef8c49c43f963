"""SGCFL: SplitFed with sparse, quantized gradients, and weights by Euclidean distance.

M. Li, X. He, J. Chen, *Federated Collaborative Learning with Sparse Gradients for Heterogeneous
Data on Resource-Constrained Devices*, Entropy 2024, 26(12), 1099, doi 10.3390/e26121099: gradients
are sent sparse, with a position mask, and are dequantized to dense ones; clients' weights are
assigned by Euclidean distance.

Reconstruction: only the abstract is known; all details are ours. The base is SplitFed V1. SGQ
(sparse gradient quantization) and DQ (dequantization) are `quantized.strongest` and `restored`. A
gradient at a cut is one tensor for a batch, an update of front and tail has one tensor for each
parameter, and activations are dense. Codes of sign and magnitude (`codes`) and error feedback of
updates and of samples' gradients at the cut (`residual`) are settings that are off by default.
Reconstruction: a client's distance is the norm of its update of front and tail, as received, and of
the change of its back, together. The weights that follow from the distances (`distance`) are
applied to all three. The abstract does not say whether far clients count more or less.
Reconstruction: running statistics are no gradients. They are sent exactly, weighted by samples
alone, and not part of a distance.
The server keeps a whole model for each client of a round until it knows all distances. It evaluates
clients' own models with updates as received.
"""

from collections.abc import Sequence
from math import prod
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.config import Settings
from fedmpi.messages import quantized, sparse
from fedmpi.messages.codec import Block, Kind, Message
from fedmpi.messages.select import Span
from fedmpi.methods import fedavg, splitfed
from fedmpi.methods.sgcfl import distance
from fedmpi.methods.sgcfl.distance import Waiting
from fedmpi.methods.sgcfl.residual import Residuals
from fedmpi.split.cuts import Crossing, Cut
from fedmpi.split.samples import Samples
from fedmpi.split.sides import Side
from fedmpi.streams import Purpose, key
from fedmpi.training.train import Trainer


class Config(Cut, distance.Config):
    pools: ClassVar[bool] = False
    uploads: ClassVar[config.Uploads] = "codes"
    feedbacks: ClassVar[tuple[str, ...]] = ("none", "classic")

    sparsity: float = Field(0.9, ge=0, lt=1)
    """Share of a gradient tensor's values that are not sent."""
    bits: config.Bits = 8
    """Bits per sent value. 32 sends floats."""
    cut_gradient: bool = True
    """Sparsify and quantize gradients at the cut. Otherwise they are sent unchanged."""
    model_gradient: bool = True
    """Sparsify and quantize model updates. Otherwise they are sent unchanged."""
    stochastic: bool = False
    """Round stochastically, so that sent values are unbiased. Otherwise round to nearest."""
    codes: Literal["range", "magnitude"] = "range"
    """Codes of sent values. range: uniform between the least and the greatest value. magnitude: a
    bit for the sign, the others uniform between the least and the greatest magnitude. Then no code
    lies in the gap around zero, whose values are not sent."""
    cut_feedback: bool = False
    """Add what was not sent of a sample's gradient at a cut to its next one there. Who sends the
    gradients keeps one for each training sample. The paper's abstract does not mention it."""

    def idle(self, settings: Settings) -> dict[str, str]:
        """Names the settings that have no effect, and what would give them one."""
        idle = super().idle(settings)
        if self.bits == config.EXACT:
            idle |= dict.fromkeys(("stochastic", "codes"), "method.bits below 32")
            if not self.sparsity:
                idle["cut_feedback"] = "method.sparsity above 0 or method.bits below 32"
        if not self.cut_gradient:
            idle["cut_feedback"] = "method.cut_gradient"
        if not (self.model_gradient or self.cut_gradient):
            gradient = "method.cut_gradient or method.model_gradient"
            idle |= dict.fromkeys(("sparsity", "bits", "stochastic", "codes"), gradient)
        return idle

    def problems(self, settings: Settings) -> list[str]:
        """Adds residuals of samples that look different each time."""
        found = super().problems(settings)
        if self.cut_feedback and settings.augment:
            found.append(
                "method.cut_feedback = true: wanted no augment, found "
                f"{list(settings.augment)}: a sample's residual belongs to places in its image"
            )
        return found

    @property
    def is_one(self) -> bool:
        """Whether all clients share one back: no."""
        return False

    @property
    def keeps_state(self) -> bool:
        """Whether clients keep residuals of gradients at a cut."""
        return self.cut_feedback and self.tail is not None

    @property
    def apart(self) -> bool:  # type: ignore[override]
        """Whether running statistics travel by themselves: beside sparse, quantized updates."""
        return self.model_gradient

    @property
    def loses(self) -> bool:
        """Whether something is left out of an update."""
        return self.model_gradient and (self.sparsity > 0 or self.bits != config.EXACT)


class Coding(Side):
    """Sparse gradient quantization (SGQ) and dequantization (DQ), the same on both sides."""

    settings: Settings
    method: Config
    residuals: Residuals | None = None
    samples: Samples

    def strongest(self, x: Tensor, spans: Sequence[Span], why: Purpose, *ids: int) -> list[Block]:
        """Encodes a tensor by SGQ, each span of its values separately."""
        method, seed = self.method, self.settings.seed
        secret = key(seed, why, *ids) if method.stochastic else None
        given = (x.reshape(1, -1), spans, method.sparsity, method.bits, secret)
        return quantized.strongest(Kind.GRADIENT, *given, by_sign=self.by_sign)

    def restored(self, blocks: Sequence[Block], spans: Sequence[Span]) -> Tensor:
        """Decodes blocks of SGQ to a dense vector (DQ)."""
        about = (1, blocks[0].size), spans, self.method.sparsity, self.trainer.device
        return quantized.restored(blocks, *about, by_sign=self.by_sign)[0]

    @property
    def by_sign(self) -> bool:
        """Whether codes are a sign and a magnitude."""
        return self.method.codes == "magnitude"

    def encode(self, crossing: Crossing, values: Tensor) -> list[Block]:
        """Encodes a gradient by SGQ; activations are sent as they are."""
        if crossing.kind != Kind.GRADIENT or not self.method.cut_gradient:
            return super().encode(crossing, values)
        spans = [range(values.numel())]
        if self.residuals is None:
            return self.strongest(values, spans, Purpose.ROUND_CUT, *crossing.ids)
        g, samples = values.detach().flatten(1).clone(), self.samples.of(crossing)
        self.residuals.add(samples, g)
        blocks = self.strongest(g, spans, Purpose.ROUND_CUT, *crossing.ids)
        self.residuals.remember(samples, g - self.restored(blocks, spans).view_as(g))
        return blocks

    def decode(self, crossing: Crossing, blocks: Sequence[Block]) -> Tensor:
        """Decodes a gradient by DQ; activations are received as they are."""
        if crossing.kind != Kind.GRADIENT or not self.method.cut_gradient:
            return super().decode(crossing, blocks)
        return self.restored(blocks, [range(blocks[0].size)])


class Updates(Coding, fedavg.Half):
    """Updates of front and tail are sent by SGQ, too, if the settings say so."""

    method: Config

    def decode_update(self, t: int, client: int, blocks: Sequence[Block]) -> Block:
        """Restores an update of front and tail."""
        if not self.method.model_gradient:
            return super().decode_update(t, client, blocks)
        return sparse.block(Kind.GRADIENT, self.restored(blocks, self.theirs.parameters))

    def sent_positions(self, t: int, client: int, blocks: Sequence[Block]) -> None:
        """Returns None: an update that was restored is dense."""


class Server(Updates, splitfed.Server):
    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.waiting = Waiting(self.method)
        if self.method.cut_feedback:
            store = self.stores.add("residual at the cut", prod(self.shape), by_sample=True)
            self.residuals, self.samples = Residuals(store), Samples(trainer.feed)

    def dense(self, t: int, client: int, blocks: Sequence[Block]) -> Tensor:
        """Returns the dense update of front and tail from its blocks."""
        own = blocks[:-1] if self.has_statistics else blocks
        _, heard, where = self.heard(t, client, own)
        update = sparse.vector(heard, self.theirs.size, self.trainer.device, where)
        if self.has_statistics:
            update[self.theirs.stat_positions] = sparse.values(blocks[-1], update.device)
        return update

    def absorb(self, t: int, message: Message) -> None:
        """Stores the update of client and back for `step`; adds running statistics at once."""
        client, weight = message.client, message.weight
        update = self.updates[client] = self.dense(t, client, message.blocks)
        back = self.backs.of(client) - self.sections.split(self.w)[1]
        whole = self.sections.join(update, back)
        self.sum.total.index_add_(0, self.stat_positions, whole[self.stat_positions], alpha=weight)
        whole[self.stat_positions] = 0
        self.waiting.add(client, weight, self.trainer.population.steps(t, client), whole)
        self.sum.weight += weight

    def step(self, t: int) -> None:
        """Moves front, back and tail by the mean of the stored updates, weighted by distance."""
        self.noted = self.waiting.close(self.sections.split(self.sum.total))
        super().step(t)


class Clients(Updates, splitfed.Clients):
    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.stat_positions = self.theirs.stat_positions.to(trainer.device)
        if self.method.cut_feedback and self.method.tail is not None:
            store = trainer.stores.add("residual at the cut", prod(self.shape), by_sample=True)
            self.residuals, self.samples = Residuals(store), Samples(trainer.feed)

    def encode_update(self, t: int, client: int, update: Tensor) -> list[Block]:
        """Sends the update of front and tail by SGQ."""
        if not self.method.model_gradient:
            return super().encode_update(t, client, update)
        return self.strongest(update, self.theirs.parameters, Purpose.ROUND, t, client)
