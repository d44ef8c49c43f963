"""The round: tell, work, collect, step, and an outcome. Read this first.

Rank 0 is the server, and hosts clients too if it is alone or shared; the other ranks host clients.
Every rank runs the same lines, and (settings, round) alone say which collectives come next; what
only one role does stands behind `is_root` or loops over `mine`, which is empty for a mere server.
"""

import hashlib
from collections.abc import Iterator, Sequence
from time import perf_counter

import numpy as np
import torch

from fedmpi import burden, config, models
from fedmpi.aggregation import Aggregation
from fedmpi.clock import Clock, Phase
from fedmpi.codec import EVERYONE, Buffer, Message, pack, unpack
from fedmpi.config import ConfigError, Settings
from fedmpi.devices import Fleet
from fedmpi.flat import Flat
from fedmpi.measure import DOWN, UP, Observer, Outcome
from fedmpi.population import EVERYONE_ROUND, Population, Wave
from fedmpi.train import Trainer
from fedmpi.wire import Wire


class Engine:
    """One run, on one rank. Building it checks all settings; nothing is sent before `rounds`.

    Raises:
        ConfigError: for settings that do not fit together.
        DataError: for missing or broken data.
    """

    def __init__(self, settings: Settings, place_on_node: int = 0) -> None:
        self.settings = settings
        device = pick_device(settings.device, place_on_node)
        torch.set_num_threads(settings.threads)
        use_tf32(settings.precision == "tf32")
        data = config.module("data", settings.data.name).load(settings.data, settings.seed)
        self.about_data, self.population = data.about, Population(settings, data)
        kind = (data.shape, data.classes, settings.seed, data.kind)
        network = settings.method.network(models.build(settings.model, *kind))
        self.flat = Flat(network, settings.statistics == "local")
        if self.flat.is_local and not self.flat.statistics:
            raise ConfigError(
                "statistics = 'local': the model has no running statistics; wanted a model with "
                "some, such as model.norm = 'batch' of a resnet, or 'averaged'"
            )
        self.trainer = Trainer(settings, self.flat, data, self.population, device)
        self.fleet = Fleet(settings)
        self.meter = burden.Meter(settings, data.shape, self.flat)
        self.observer = Observer(
            settings, data, self.population, self.trainer, self.fleet, self.meter
        )
        method = config.module("method", settings.method.name)
        self.server = method.Server(settings, self.trainer)
        self.aggregation = Aggregation(settings, self.server)
        self.clients = method.Clients(settings, self.trainer)
        self.population.is_agreement = self.server.agrees_at
        self.first = EVERYONE_ROUND if self.server.agrees_at(EVERYONE_ROUND) else 0
        self.population.rest(burden.unfit(self.fleet, self.meter, self.clients, self.first))
        self.room = np.empty(0, np.uint8)

    def rounds(self, wire: Wire, clock: Clock) -> Iterator[Outcome | None]:
        """Runs; yields each round's outcome on the root, None elsewhere.

        A round begins with the server's word. No word, and the run is over for everyone.
        """
        self.wire, self.clock, self.goes_on = wire, clock, True
        self.hosts = range(wire.size)
        if self.settings.server == "dedicated" and wire.size > 1:
            self.hosts = range(1, wire.size)
        for t in range(self.first, self.settings.rounds):
            keeps = self.clients.keeps or self.trainer.keeps
            waves = self.population.waves(t, self.flat.size, self.hosts, keeps)
            self.begin()
            if not self.tell(t, waves):
                return
            for wave in waves:
                self.send(t, wave)
                if self.clients.converses:
                    self.converse(t, wave)
                self.collect(t, wave, self.work(t, wave))
            self.step(t)
            outcome = self.observer.outcome(
                t, waves, self.server, self.clients, self.hosts, wire, clock
            )
            self.goes_on = outcome is None or (outcome.finite and not outcome.is_spent)
            yield outcome

    def begin(self) -> None:
        """All ranks together: clocks and accounts at zero."""
        self.is_void = True
        self.wire.settle()
        self.clock.reset()
        self.wire.reset()
        self.trainer.begin()
        self.observer.begin()

    def tell(self, t: int, waves: list[Wave]) -> bool:
        """Server -> every active client; False if nothing comes, and the run is over."""
        messages = []
        with self.clock(Phase.SERVE):
            if self.wire.is_root and self.goes_on:
                messages = [Message(EVERYONE, self.server.broadcast(t))]
        word = self.announce(messages, [client for wave in waves for client in wave.clients])
        mine = [client for wave in waves for client in wave.on(self.wire.rank)]
        with self.clock(Phase.PACK):
            for message in word:
                self.clients.receive(t, mine, message.blocks)
        return bool(word)

    def send(self, t: int, wave: Wave) -> None:
        """Server -> each client, if the method has a part for each."""
        if not self.server.sends:
            return
        messages = []
        with self.clock(Phase.SERVE):
            if self.wire.is_root:
                messages = [Message(c, self.server.send(t, c)) for c in wave.clients]
        told = self.deliver(wave, messages)
        with self.clock(Phase.PACK):
            for message in told:
                self.clients.accept(t, message.client, message.blocks)

    def work(self, t: int, wave: Wave) -> list[Message]:
        """Clients train, and prepare what they upload."""
        mine, messages = wave.on(self.wire.rank), []
        with self.clock(Phase.TRAIN):
            if not (self.population.is_agreement(t) or self.clients.converses):
                self.trainer.feed.draw(t, mine)
            for clients in self.trainer.chunks(mine):
                for client, w in zip(clients, self.clients.work(t, clients), strict=True):
                    began = perf_counter()
                    blocks = self.clients.upload(t, client, w)
                    self.trainer.spend((client,), began)
                    messages.append(Message(client, blocks, self.population.weight(t, client)))
                    if self.observer.is_due(t) and not self.population.is_agreement(t):
                        with self.clock(Phase.EVALUATE):
                            self.observer.keep(client, self.clients.personal(client, w))
        return messages

    def converse(self, t: int, wave: Wave) -> None:
        """Clients and server take each local step together, all busy clients at once."""
        with self.clock(Phase.TRAIN):
            self.clients.open(t, wave.on(self.wire.rank))
        with self.clock(Phase.SERVE):
            if self.wire.is_root:
                self.server.open(t, wave.clients)
        for _ in range(max(self.population.steps(client) for client in wave.clients)):
            with self.clock(Phase.TRAIN):
                asked = self.clients.forward(t)
            heard, answers = self.hear(asked), []
            with self.clock(Phase.SERVE):
                if self.wire.is_root:
                    answers = self.server.exchange(t, heard)
            told = self.deliver(wave, answers)
            with self.clock(Phase.TRAIN):
                self.clients.backward(t, told)

    def collect(self, t: int, wave: Wave, messages: list[Message]) -> None:
        """Clients -> server: uploads, absorbed in client order, but for those that are lost."""
        uploads, agrees = self.hear(messages), self.population.is_agreement(t)
        with self.clock(Phase.SERVE):
            for message in uploads:
                if not self.observer.is_lost(t, message.client):
                    (self.server if agrees else self.aggregation).absorb(t, message)
                    self.is_void = False
        if self.observer.is_due(t):
            self.observer.judge_locals(wave, self.server, self.wire, self.clock)

    def step(self, t: int) -> None:
        """The server moves the model; in a round of agreement it closes that instead.

        A round in which all uploads were lost leaves the model as it was, with all of its parts.
        """
        if not self.population.is_agreement(t):
            with self.clock(Phase.SERVE):
                if self.wire.is_root and not self.is_void:
                    self.aggregation.close(t)
                    self.server.step(t)
            return
        messages = []
        with self.clock(Phase.SERVE):
            if self.wire.is_root:
                messages = [Message(EVERYONE, self.server.agreement())]
        word = self.announce(messages, self.population.sample(t))
        with self.clock(Phase.PACK):
            for message in word:
                self.clients.agree(message.blocks)

    def announce(self, messages: list[Message], clients: Sequence[int]) -> list[Message]:
        """The root's messages to all, on every rank, and charged to each of the clients."""
        word = None
        if self.wire.is_root:
            with self.clock(Phase.PACK):
                word, account = self.pack(messages)
                self.observer.charge(DOWN, clients, account)
        word = self.wire.bcast(word)
        with self.clock(Phase.PACK):
            return unpack(word)[0]

    def hear(self, messages: list[Message]) -> list[Message]:
        """Messages of all ranks' clients on the root, in client order, and charged to them."""
        with self.clock(Phase.PACK):
            word = self.pack(messages).data
        pieces, heard = self.wire.gather(word), []
        with self.clock(Phase.PACK):
            for piece in pieces:
                found, account = unpack(piece)
                heard += found
                self.observer.charge(UP, [message.client for message in found], account)
        return sorted(heard, key=lambda message: message.client)

    def deliver(self, wave: Wave, messages: list[Message]) -> list[Message]:
        """The root's messages to single clients, on the ranks that host them."""
        words = []
        if self.wire.is_root:
            host = dict(zip(wave.clients, wave.hosts, strict=True))
            with self.clock(Phase.PACK):
                for rank in range(self.wire.size):
                    theirs = [message for message in messages if host[message.client] == rank]
                    word, account = pack(theirs)
                    words.append(word)
                    self.observer.charge(DOWN, [message.client for message in theirs], account)
        word = self.wire.scatter(words)
        with self.clock(Phase.PACK):
            return unpack(word)[0]

    def pack(self, messages: list[Message]) -> Buffer:
        """The messages as one buffer, in memory that is this rank's until the next call."""
        packed = pack(messages, self.room)
        if len(packed.data) > len(self.room):
            self.room = packed.data
        return packed

    def model_sha256(self) -> str:
        """Hash of the global model: float32, little-endian, in the order of the stages."""
        return hashlib.sha256(self.server.w.cpu().numpy().astype("<f4").tobytes()).hexdigest()


def pick_device(name: str, place_on_node: int) -> torch.device:
    """The device that a rank trains on; `cuda` spreads the ranks of a node over its devices.

    Raises:
        ConfigError: if there is no such device: a GPU that is asked for is never replaced.
    """
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    number = int(name[5:]) if ":" in name else place_on_node % max(count, 1)
    if number >= count:
        raise ConfigError(
            f"device = '{name}': there are {count} CUDA devices here; cpu is possible"
        )
    # Streams and graphs that are made without a word about a device belong to the current one.
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def use_tf32(is_so: bool) -> None:
    """Whether a GPU may round the inputs of matrix products to TF32, which libraries like to do."""
    kind = "tf32" if is_so else "ieee"
    torch.backends.cuda.matmul.fp32_precision = kind
    torch.backends.cudnn.conv.fp32_precision = kind  # type: ignore[attr-defined]
