"""SplitFT: split learning in which every client has a cut of its own.

Y. Shan, Z. Zhang, S. Di, Y. Liu, X. Lu, B. Liu, *SplitFT: An Adaptive Federated Split Learning
System For LLMs Fine-Tuning*, 2026, arXiv 2604.26388.

A strong device trains more stages than a weak one, and the server trains the others for it, in a
back of the client's own. After a round each client's front, back and tail are a whole model, and
the models' mean is the next one, as in `splitfed`'s v1. A client is sent, and uploads, its own
front and tail alone. Clients of equal cuts take their steps together.
Differs from the paper: devices' memory decides, before the first round, and not how well models
do; a LoRA's rank is the same at the cut as elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from fedmpi.clients.burden import Burden
from fedmpi.clients.devices import spread
from fedmpi.config import ConfigError, Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind, Message
from fedmpi.methods import fedavg, splitfed
from fedmpi.networks.flat import Flat
from fedmpi.split.cuts import Cut, Fit
from fedmpi.split.lockstep import Lockstep, Talk
from fedmpi.training.train import Trainer


class Config(splitfed.Config):
    each: ClassVar[bool] = True
    broadcasts: ClassVar[bool] = False
    sends: ClassVar[bool] = True
    feedbacks: ClassVar[tuple[str, ...]] = ("none",)
    paper: ClassVar[Mapping[str, Any]] = {}

    version: Literal["v1"] = "v1"
    """Each client has a back of its own."""
    cut: Literal["fit"] | None = None
    """fit: each client has the last split point whose front, and tail, its device can train in its
    memory; a device without a limit has the last of all, and one too small for any the first. If
    absent, clients are spread over split points."""
    cuts: tuple[str, ...] = Field((), strict=False)
    """Split points over which clients are spread evenly, at random, if `cut` is absent. One that is
    named twice has twice as many. If empty, all that the model has."""

    def idle(self, settings: Settings) -> dict[str, str]:
        """Names split points where memory decides."""
        found = super().idle(settings)
        return found | ({"cuts": "method.cut absent, found 'fit'"} if self.cut else {})

    def at(self, cut: str) -> "Config":
        """These settings with one cut for all clients."""
        return self.model_copy(update={"cut": cut})

    def theirs(self, trainer: Any) -> Flat:
        """The whole network, at whose positions a client's front and tail are."""
        return trainer.flat


def own_cuts(settings: Settings, trainer: Trainer) -> list[str]:
    """Returns the split point of each client.

    Raises:
        ConfigError: if the model lacks one that the settings name.
    """
    method, flat = settings.method, trainer.flat
    assert isinstance(method, Config)
    possible = method.possible(flat)
    method.at(possible[0] if possible else "").parts(flat)
    for cut in method.cuts:
        if cut not in possible:
            before = "" if method.tail is None else f" with a stage between it and '{method.tail}'"
            raise ConfigError(
                f"method.cuts: the model has no split point '{cut}'{before}; there are: "
                f"{', '.join(possible)}"
            )
    if method.cut is None:
        return spread(settings, method.cuts or possible)
    fit = Fit(settings, flat, trainer.feed.x.shape[1:], trainer.feed.classes)
    sizes = trainer.population.sizes.tolist()
    limits = [(tier.memory, sizes[client]) for client, tier in trainer.population.fleet.owners()]
    return [fit.last([limit]) or possible[0] for limit in limits]


class Half(fedavg.Half):
    """Both sides know all cuts.

    Attributes:
        cuts: each client's split point.
        positions: where its front and tail lie in the model, by split point: int64, ascending.
    """

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.cuts, self.positions = own_cuts(settings, trainer), dict[str, Tensor]()
        every = torch.arange(self.flat.size, device=trainer.device)
        for cut in dict.fromkeys(self.cuts):
            sections = self.method.at(cut).sections(self.flat)
            # Without a tail they share their memory.
            self.positions[cut] = sections.held(every) if sections.tail else every[: sections.front]

    def decided(self) -> Mapping[str, str]:
        """Returns the clients' split points, a line each."""
        return {"cuts": "\n".join(self.cuts)}

    def sent_positions(self, t: int, client: int, blocks: Sequence[Block]) -> Tensor:
        """Returns where the client's front and tail lie."""
        return self.positions[self.cuts[client]]

    def of_cut(
        self, cut: str, parties: Sequence[Sequence[int]]
    ) -> tuple[list[int], list[list[int]]]:
        """Returns the numbers of the parties that have clients of a cut, and these clients."""
        clients = [[client for client in party if self.cuts[client] == cut] for party in parties]
        numbers = [number for number, some in enumerate(clients) if some]
        return numbers, [clients[number] for number in numbers]


class Back(splitfed.Back):
    """The server's side of all clients of one cut."""

    def __init__(self, trainer: Trainer, method: Cut) -> None:
        self.trainer, self.method = trainer, method
        self.divide()


class Front(splitfed.Front):
    """The side of all clients of one cut on a rank."""

    adjust = None

    def __init__(self, trainer: Trainer, method: Cut) -> None:
        self.trainer, self.method = trainer, method
        self.divide()


class Lane(NamedTuple):
    """Those clients of a party that have the same cut.

    Attributes:
        part: their fronts, or their backs.
        talk: their conversation with the server.
    """

    part: Lockstep
    talk: Talk


def asking(lanes: Sequence[Lane]) -> Talk:
    """A party's conversation, of which each lane has its part: the clients' side."""
    messages = [message for lane in lanes for message in next(lane.talk)]
    while True:
        heard = yield messages
        messages = [some for lane in lanes for some in lane.talk.send(of(heard, lane))]


def answering(lanes: Sequence[Lane]) -> Talk:
    """The server's side of it. Nothing is said to lanes whose clients have no step left."""
    messages: list[Message] = []
    while True:
        heard = yield messages
        busy = [lane for lane in lanes if lane.part.busy()]
        messages = [some for lane in busy for some in lane.talk.send(of(heard, lane))]


def of(messages: Sequence[Message], lane: Lane) -> list[Message]:
    """The messages of a lane's clients."""
    return [message for message in messages if message.client in lane.part.order]


class Server(Half, fedavg.Server):
    """The server's half.

    Attributes:
        backs: its side, by split point.
        updates: updates of front and tail by client, of the current wave's uploads that arrived.
    """

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.backs = {cut: Back(trainer, self.method.at(cut)) for cut in self.positions}
        self.updates: dict[int, Tensor] = {}

    def send(self, t: int, client: int) -> list[Block]:
        """Sends the client's front and tail."""
        held = self.backs[self.cuts[client]].sections.held(self.w)
        return [sparse.block(Kind.MODEL, held)]

    def open(self, t: int, parties: Sequence[Sequence[int]]) -> list[Talk]:
        """Opens a wave's conversation: each party's clients of a cut have one of their own."""
        self.updates, lanes = {}, list[list[Lane]]([] for _ in parties)
        for cut, back in self.backs.items():
            numbers, some = self.of_cut(cut, parties)
            talks = back.begin(t, some, back.sections.split(self.w)[1])
            for number, part, talk in zip(numbers, back.backs.parties, talks, strict=True):
                lanes[number].append(Lane(part, talk))
        found = [answering(some) for some in lanes]
        for talk in found:
            next(talk)
        return found

    def add(
        self,
        t: int,
        client: int,
        blocks: Sequence[Block],
        update: Block,
        where: Tensor | None,
        weight: float,
    ) -> None:
        """Adds a client's update of front and tail, and the update of its back."""
        back, total = self.backs[self.cuts[client]], self.sum.total
        self.updates[client] = sparse.values(update, self.trainer.device)
        back.add_held(total, self.updates[client], weight)
        back.add_change(total, self.w, client, weight)

    def personal(self, client: int) -> Tensor | None:
        """Returns the client's front, back and tail as one model; None if its upload was lost."""
        if client not in self.updates:
            return None
        return self.backs[self.cuts[client]].joined(self.w, client, self.updates[client])


class Clients(Half, fedavg.Clients):
    """The clients' half.

    Attributes:
        fronts: their side, by split point.
        starts: the front and the tail that each client was sent.
    """

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.fronts = {cut: Front(trainer, self.method.at(cut)) for cut in self.positions}
        self.starts: dict[int, Tensor] = {}

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Forgets the last round's values; new ones come to each client by `accept`."""
        self.starts = {}

    def accept(self, t: int, client: int, blocks: Sequence[Block]) -> None:
        """Receives the client's front and tail."""
        self.starts[client] = sparse.values(blocks[0], self.trainer.device)

    def open(self, t: int, parties: Sequence[Sequence[int]]) -> list[Talk]:
        """Opens a wave's conversation at the fronts and tails that were received."""
        lanes = list[list[Lane]]([] for _ in parties)
        for cut, front in self.fronts.items():
            numbers, some = self.of_cut(cut, parties)
            if some:  # the server sends all of them the same values
                start = front.sections.split_held(self.starts[some[0][0]])
                talks = front.begin(t, some, *start)
                for number, part, talk in zip(numbers, front.fronts.parties, talks, strict=True):
                    lanes[number].append(Lane(part, talk))
        return [asking(some) for some in lanes]

    def work(self, t: int, clients: Sequence[int]) -> list[Tensor]:  # type: ignore[override]
        """Returns each client's front and tail as the conversation trained them."""
        return [self.fronts[self.cuts[client]].learnt(client) for client in clients]

    def update(self, client: int, w: Tensor) -> Tensor:
        """Returns the update of the client's front and tail."""
        return w - self.starts[client]

    def encode_update(self, t: int, client: int, update: Tensor) -> list[Block]:
        """Sends the update."""
        return [sparse.block(Kind.GRADIENT, update, self.flat.size)]

    def burden(self, t: int, client: int) -> Burden:
        """Returns the cost of training the client's front and tail."""
        front = self.fronts[self.cuts[client]]
        return replace(super().burden(t, client), flat=front.held, end=front.end)

    def personal(self, client: int, w: Tensor) -> Tensor | None:
        """Returns None: a client lacks the back, so that the server assembles its whole model."""
        return None
