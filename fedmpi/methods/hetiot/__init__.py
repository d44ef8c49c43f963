"""HetIoT: each class of device trains a compressed global model, and updates are mapped back.

H. Zhang, J. Kim, *Towards a Federated Learning Framework for Heterogeneous Devices of Internet of
Things*, arXiv 2105.14675: "local models are compressed from the global model", and the gradients of
the compressed models update it. The server's model is dense.

Reconstruction: only the abstract is known; compressors, classes of devices and the mean are ours.
In each round the server compresses its model for each class, by one of
 * `prune`: the weights of largest magnitude, globally or in each layer; positions are sent only to
   the client;
 * `width`: the first channels of each hidden layer, as a network of its own (`networks.narrow`);
 * `quant`: weights in few bits, and updates in as many bits, rounded without bias. Devices train in
   float32 (straight-through: weights leave the grid after the first local step), so that bits save
   bytes, but neither FLOPs nor memory;
 * `lowrank`: factors of the weights, as a network of its own, trained by scaled gradients; the
   change of their product is added to the global weights.

Updates of local training take the place of gradients; with one local step they are the same up to
the rate. `mean` counts a value that a device does not have as unchanged; `coverage` leaves the
device out of this value's mean. With a share of 1 for all clients it is FedAvg.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.clients import devices
from fedmpi.clients.burden import Burden
from fedmpi.config import Settings
from fedmpi.messages.codec import Block
from fedmpi.messages.sums import Held
from fedmpi.methods import fedavg
from fedmpi.methods.hetiot.compress import Compressor, Local, LowRank, Prune, Quant, Width
from fedmpi.streams import Purpose, stream
from fedmpi.training.probe import Variant
from fedmpi.training.train import Trainer

Share = Annotated[float, Field(gt=0, le=1)]


class Config(config.Method):
    broadcasts = False
    sends: ClassVar[bool] = True
    pools: ClassVar[bool] = False
    optimizes: ClassVar[bool] = False

    compressor: Literal["prune", "width", "quant", "lowrank"] = "prune"
    """How the server compresses the model for devices. prune: largest weights. width: first
    channels of each layer. quant: fewer bits for all that is sent. lowrank: low-rank factors."""
    keeps: tuple[Share, ...] = Field((1.0, 0.5, 0.1), min_length=1, strict=False)
    """Shares of the model that clients hold: of weights, of channels (width) or of 32 bits (quant).
    Clients are spread evenly over them. Used if no device has a keep."""
    scope: Literal["global", "layer"] = "global"
    """Weights among which prune selects. global: all layers together. layer: the same share of each
    layer."""
    aggregation: Literal["mean", "coverage"] = "mean"
    """mean: a value that a device does not hold counts as unchanged. coverage: each value is
    averaged over the devices that hold it."""

    def idle(self, settings: Settings) -> dict[str, str]:
        """Names the settings that have no effect, and what would give them one."""
        found = super().idle(settings) | devices.instead(settings, "keeps")
        if self.compressor != "prune":
            found["scope"] = f"method.compressor = 'prune', found '{self.compressor}'"
        return found

    def built(self, trainer: Trainer) -> Compressor:
        """The compressor."""
        flat, device = trainer.flat, trainer.device
        if self.compressor == "prune":
            return Prune(flat, device, self.scope == "layer")
        if self.compressor == "width":
            return Width(flat, device, trainer.feed.x.shape[1:])
        return (Quant if self.compressor == "quant" else LowRank)(flat, device)


class Server(fedavg.Server):
    """FedAvg's server, which compresses its model for each device class.

    Attributes:
        made: this round's blocks by share, with the compressed model that they encode.
    """

    method: Config
    blocks_per_upload = 3

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.compressor = self.method.built(trainer)
        self.shares = devices.shares(settings, "keeps")
        self.made: dict[float, tuple[list[Block], Local]] = {}
        self.sum: Held = Held(len(self.w), trainer.device)

    def send(self, t: int, client: int) -> list[Block]:
        """Sends the model, compressed for the client's device."""
        keep = self.shares[client]
        if keep not in self.made:
            blocks = self.compressor.blocks(self.w, keep)
            self.made[keep] = blocks, self.compressor.local(blocks, keep)
        return self.made[keep][0]

    def add(self, t: int, client: int, blocks: Sequence[Block], weight: float) -> None:
        """Adds the update of the compressed model, mapped to the whole model."""
        local = self.made[self.shares[client]][1]
        sent = local.sent(blocks, self.w.device)
        self.sum.total.add_(local.lifted(sent, self.flat.size), alpha=weight)
        self.sum.cover(weight, local.places)

    def step(self, t: int) -> None:
        """Moves the model by the mean over all uploads, or over those that have a value."""
        if self.method.aggregation == "mean":
            super().step(t)
        else:
            self.w.add_(self.sum.mean())
            self.sum.clear()
        self.made = {}

    def variants(self, t: int) -> list[Variant]:
        """Returns the model compressed for each share, with the network that a device then has."""
        found, batch = [], self.settings.batch
        for keep, owners in devices.holders(self.shares, self.trainer.population.excluded):
            blocks = self.compressor.blocks(self.w, keep)
            local = self.compressor.local(blocks, keep)
            flat = self.flat if local.part is None else local.part.flat
            burden = Burden(flat, 1, batch, kept=local.mask)
            found.append(Variant(keep, len(owners), local.start, local.part, blocks, burden))
        return found


class Clients(fedavg.Clients):
    """Clients that train compressed models.

    Attributes:
        locals: the active clients' compressed models.
    """

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.compressor = self.method.built(trainer)
        self.shares = devices.shares(settings, "keeps")
        self.locals: dict[int, Local] = {}

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Forgets the last round's models; new ones come to each client by `accept`."""
        self.locals = {}

    def accept(self, t: int, client: int, blocks: Sequence[Block]) -> None:
        """Receives the compressed model."""
        self.locals[client] = self.compressor.local(blocks, self.shares[client])

    # Compressed models have different lengths, so that they cannot be rows of one tensor.
    def work(self, t: int, clients: Sequence[int]) -> list[Tensor]:  # type: ignore[override]
        """Trains a chunk of clients, those with networks of one shape together."""
        some = [self.locals[client] for client in clients]
        starts, parts = [one.start for one in some], [one.part for one in some]
        return self.trainer.train_apart(t, clients, starts, parts, self.hooks)

    def adjust(self, clients: Sequence[int], w: Tensor, g: Tensor) -> None:
        """Masks gradients, or scales those of factors."""
        for row, client in enumerate(clients):
            self.locals[client].adjust(w[row], g[row])

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """Sends the update of the compressed model."""
        local = self.locals[client]
        random = stream(self.settings.seed, Purpose.QUANTIZE, t, client)
        return local.upload(w - local.start, random)

    def burden(self, t: int, client: int) -> Burden:
        """Returns the cost of the smaller network, or the whole one without pruned weights."""
        local = self.locals.get(client)
        if local is None:  # before the first round, when nothing has come yet
            keep, w = self.shares[client], self.flat.initial.to(self.trainer.device)
            local = self.compressor.local(self.compressor.blocks(w, keep), keep)
        flat = self.flat if local.part is None else local.part.flat
        return replace(super().burden(t, client), flat=flat, kept=local.mask)

    def owned(self, t: int, client: int, w: Tensor) -> Tensor:
        """Returns w as it is compressed for the client's device, as a whole model."""
        keep = self.shares[client]
        local = self.compressor.local(self.compressor.blocks(w, keep), keep)
        return local.whole(local.start, self.flat.size)

    def personal(self, client: int, w: Tensor) -> Tensor | None:
        """Returns the compressed model as a whole model."""
        return self.locals[client].whole(w, self.flat.size)
