"""HetIoT: each class of device trains a compressed global model, and updates are mapped back.

H. Zhang, J. Kim, *Towards a Federated Learning Framework for Heterogeneous Devices of Internet of
Things*, arXiv 2105.14675: "local models are compressed from the global model", and the gradients of
the compressed models update it. The server's model is dense.

Reconstruction: only the abstract is known; compressors, classes of devices and the mean are ours.
In each round the server compresses its model for each class of devices, by one of
 * `prune`: the weights of largest magnitude, globally or in each layer; positions are sent only to
   the client;
 * `width`: the first channels of each hidden layer, as a network of its own (`networks.narrow`);
 * `quant`: weights in few bits, and updates in as many bits, rounded without bias. Devices train in
   float32 (straight-through: weights leave the grid after the first local step), so that bits save
   bytes, but neither FLOPs nor memory;
 * `lowrank`: factors of the weights, as a network of its own, trained by scaled gradients; the
   change of their product is added to the global weights.

Devices of one run may have different compressors, and their share may be the largest that fits
their memory and the deadline (`devices.tiers`). Updates can be sent in few bits (`bits`).

Updates of local training take the place of gradients; with one local step they are the same up to
the rate. `mean` counts a value that a device does not have as unchanged; `coverage` leaves the
device out of this value's mean. With a share of 1 for all clients it is FedAvg.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.clients import devices
from fedmpi.clients.burden import Burden
from fedmpi.config import Settings, Tier
from fedmpi.messages.codec import Block
from fedmpi.messages.sums import Held
from fedmpi.methods import fedavg
from fedmpi.methods.hetiot.compress import Compressor, Local, LowRank, Prune, Quant, Width
from fedmpi.networks.flat import Flat
from fedmpi.streams import Purpose, key
from fedmpi.training.probe import Variant
from fedmpi.training.train import Trainer

Share = Annotated[float, Field(gt=0, le=1)]


class Config(config.Method):
    broadcasts = False
    sends: ClassVar[bool] = True
    can_send_changes: ClassVar[bool] = False
    pools: ClassVar[bool] = False
    optimizes: ClassVar[bool] = False
    adds: ClassVar[bool] = False
    fits: ClassVar[bool] = True
    reshapes: ClassVar[bool] = True
    uploads: ClassVar[config.Uploads] = "codes"
    feedbacks: ClassVar[tuple[str, ...]] = ("none",)

    compressor: config.Compressor = "prune"
    """How the server compresses the model for devices that have no compressor of their own. prune:
    largest weights. width: first channels of each layer. quant: fewer bits for all that is sent.
    lowrank: low-rank factors."""
    keeps: tuple[Share, ...] = Field((1.0, 0.5, 0.1), min_length=1, strict=False)
    """Shares of the model that clients hold: of weights, of channels (width) or of 32 bits (quant).
    Clients are spread evenly over them. Used if no device has a keep."""
    scope: Literal["global", "layer"] = "global"
    """Weights among which prune selects. global: all layers together. layer: the same share of each
    layer."""
    aggregation: Literal["mean", "coverage"] = "mean"
    """mean: a value that a device does not hold counts as unchanged. coverage: each value is
    averaged over the devices that hold it."""

    bits: config.Bits = 32
    """Bits per value of updates, rounded without bias; 32 sends floats. quant has its own for a
    share below 1, if these are fewer."""

    def idle(self, settings: Settings) -> dict[str, str]:
        """Names the settings that have no effect, and what would give them one."""
        found, kinds = super().idle(settings) | devices.instead(settings, "keeps"), self.kinds
        if "prune" not in kinds(settings):
            found["scope"] = f"method.compressor = 'prune', found '{self.compressor}'"
        if settings.devices.tiers and self.compressor not in kinds(settings):
            found["compressor"] = "the default beside devices.tiers that all have a compressor"
        return found

    def problems(self, settings: Settings) -> list[str]:
        """Names devices whose share cannot be fitted."""
        found = super().problems(settings)
        for place, tier in enumerate(settings.devices.tiers):
            if tier.fit and (tier.compressor or self.compressor) == "quant":
                found.append(
                    f"devices.tiers.{place}.fit = true: wanted the compressor 'prune', 'width' or "
                    "'lowrank', whose share changes memory and FLOPs; found 'quant'"
                )
        return found

    def kinds(self, settings: Settings) -> list[str]:
        """The compressors of all clients' devices, each once."""
        tiers = settings.devices.tiers
        found = [tier.compressor or self.compressor for tier in tiers] or [self.compressor]
        return list(dict.fromkeys(found))

    def held(self, trainer: Trainer) -> Callable[[Tier, float], tuple[Flat, Tensor | None]]:
        """Returns what a kind of device trains that holds some share of the model."""
        compressors, w = Compressors(trainer), trainer.flat.initial.to(trainer.device)

        def found(tier: Tier, keep: float) -> tuple[Flat, Tensor | None]:
            plan = Plan(keep, tier.compressor or self.compressor)
            local = compressors.local(compressors.blocks(w, plan), plan)
            return local.shape, local.mask

        return found


class Plan(NamedTuple):
    """How the model is compressed for a device: the share that it holds, and the compressor."""

    keep: float
    kind: str


class Compressors:
    """The compressors of all clients, each made once.

    Attributes:
        plans: each client's.
    """

    def __init__(self, trainer: Trainer) -> None:
        settings, fleet = trainer.settings, trainer.population.fleet
        assert isinstance(settings.method, Config)
        own, shares = settings.method.compressor, fleet.shares("keeps")
        kinds = [own] * settings.clients
        for client, tier in fleet.owners():
            kinds[client] = tier.compressor or own
        self.plans = [Plan(*both) for both in zip(shares, kinds, strict=True)]
        flat, bits, at = trainer.flat, settings.method.bits, trainer.device
        by_layer, shape = settings.method.scope == "layer", trainer.feed.x.shape[1:]
        makers: dict[str, Callable[[], Compressor]] = {
            "prune": lambda: Prune(flat, at, bits, by_layer),
            "width": lambda: Width(flat, at, shape, bits),
            "quant": lambda: Quant(flat, at, bits),
            "lowrank": lambda: LowRank(flat, at, bits),
        }
        self.made = {kind: makers[kind]() for kind in settings.method.kinds(settings)}

    def blocks(self, w: Tensor, plan: Plan) -> list[Block]:
        """Encodes a model [n] for a device."""
        return self.made[plan.kind].blocks(w, plan.keep)

    def local(self, blocks: Sequence[Block], plan: Plan) -> Local:
        """Builds the compressed model that these blocks encode."""
        return self.made[plan.kind].local(blocks, plan.keep)


class Server(fedavg.Server):
    """FedAvg's server, which compresses its model for each device class.

    Attributes:
        made: this round's blocks by plan, with the compressed model that they encode.
    """

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.compressors = Compressors(trainer)
        self.made: dict[Plan, tuple[list[Block], Local]] = {}
        self.sum: Held = Held(len(self.w), trainer.device)

    def send(self, t: int, client: int) -> list[Block]:
        """Sends the model, compressed for the client's device."""
        plan = self.compressors.plans[client]
        if plan not in self.made:
            blocks = self.compressors.blocks(self.w, plan)
            self.made[plan] = blocks, self.compressors.local(blocks, plan)
        return self.made[plan][0]

    def add(
        self,
        t: int,
        client: int,
        blocks: Sequence[Block],
        update: Block,
        where: Tensor | None,
        weight: float,
    ) -> None:
        """Adds the update of the compressed model, mapped to the whole model."""
        local = self.made[self.compressors.plans[client]][1]
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
        excluded = self.trainer.population.excluded
        for plan, owners in devices.holders(self.compressors.plans, excluded):
            blocks = self.compressors.blocks(self.w, plan)
            local = self.compressors.local(blocks, plan)
            burden = Burden(local.shape, 1, batch, kept=local.mask)
            about = local.start, local.part, blocks, burden, plan.kind
            found.append(Variant(plan.keep, len(owners), *about))
        return found


class Clients(fedavg.Clients):
    """Clients that train compressed models.

    Attributes:
        locals: the active clients' compressed models.
    """

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.compressors = Compressors(trainer)
        self.locals: dict[int, Local] = {}

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Forgets the last round's models; new ones come to each client by `accept`."""
        self.locals = {}

    def accept(self, t: int, client: int, blocks: Sequence[Block]) -> None:
        """Receives the compressed model."""
        self.locals[client] = self.compressors.local(blocks, self.compressors.plans[client])

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
        secret = key(self.settings.seed, Purpose.ROUND, t, client)
        return local.upload(w - local.start, secret)

    def burden(self, t: int, client: int) -> Burden:
        """Returns the cost of the smaller network, or the whole one without pruned weights."""
        local = self.locals.get(client)
        if local is None:  # before the first round, when nothing has come yet
            local = self._compressed(client, self.flat.initial.to(self.trainer.device))
        return replace(super().burden(t, client), flat=local.shape, kept=local.mask)

    def _compressed(self, client: int, w: Tensor) -> Local:
        """The whole model w [n] as it is compressed for the client's device."""
        plan = self.compressors.plans[client]
        return self.compressors.local(self.compressors.blocks(w, plan), plan)

    def owned(self, t: int, client: int, w: Tensor) -> Tensor:
        """Returns w as it is compressed for the client's device, as a whole model."""
        local = self._compressed(client, w)
        return local.whole(local.start, self.flat.size)

    def personal(self, client: int, w: Tensor) -> Tensor | None:
        """Returns the compressed model as a whole model."""
        return self.locals[client].whole(w, self.flat.size)
