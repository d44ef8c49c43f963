"""The round: tell, work, collect, step, and an outcome. Read this first.

Rank 0 is the server. It also hosts clients if it is the only rank or if `server = shared`; the
other ranks host clients. Every rank runs the same lines, and (settings, round) alone determine
which collectives come next. Code for one role only is guarded by `is_root`, or loops over `mine`,
which is empty on a dedicated server.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from fedmpi import config, datasets, models
from fedmpi.clients import burden
from fedmpi.clients.placement import Placement, Wave
from fedmpi.clients.population import EVERYONE_ROUND, Population
from fedmpi.config import ConfigError, Settings
from fedmpi.costs import Load
from fedmpi.errors import fitting
from fedmpi.messages import sparse
from fedmpi.messages.clock import Clock, Phase
from fedmpi.messages.codec import EVERYONE, Message
from fedmpi.messages.ledger import Ledger
from fedmpi.messages.wire import ALONE, Line, Place, Wire
from fedmpi.methods.fedavg import Clients, Half, Server
from fedmpi.networks.flat import Flat
from fedmpi.results.checkpoint import State
from fedmpi.results.keeper import Keeper, Word
from fedmpi.results.outcome import Observer, Outcome
from fedmpi.split import cuts
from fedmpi.split.lockstep import Talk
from fedmpi.training import hardware
from fedmpi.training.evaluate import Evaluation
from fedmpi.training.probe import Overlap
from fedmpi.training.theory import Theory
from fedmpi.training.train import Trainer


@dataclass
class Party:
    """Clients that take their steps together, and talk to the server on one line.

    Attributes:
        wave: the clients and their hosts.
        line: connection to the server.
        turns: number of turns, each of which is a message to the server and its answer.
        clients: the conversation of this rank's clients.
    """

    wave: Wave
    line: Line
    turns: int
    clients: Talk


class Engine:
    """One run, on one rank. Building it checks all settings; nothing is sent before `rounds`.

    Attributes:
        server: the method's server half, on the root; None elsewhere.
        clients: the method's client half, for the clients that this rank hosts.
        half: the one that adds up uploads: the server's, or elsewhere the clients'.
        width: number of clients in a wave, at most.
        placement: who hosts whom.
        is_stopped: whether a signal has ended the rounds before the last one.
        best: on the root, what is kept of the best round so far (see `runs.trained`), by name.

    Raises:
        ConfigError: for settings that do not fit together.
        DataError: for missing or broken data.
        BadInput: if there is not enough memory.
    """

    @fitting()
    def __init__(self, settings: Settings, place: Place = ALONE) -> None:
        self.settings, self.place = settings, place
        device = hardware.pick_device(settings, place)
        hardware.use_threads(hardware.threads(settings))
        hardware.use_tf32(settings.precision == "tf32")
        data = datasets.load(settings)
        self.about_data, self.population = data.about, Population(settings, data)
        kind = (data.shape, data.classes, settings.seed, data.kind, data.symbols)
        network = settings.method.network(models.build(settings.model, *kind))
        self.flat = Flat(network, settings.statistics == "local")
        if self.flat.is_local and not self.flat.statistics:
            raise ConfigError(
                "statistics = 'local': the model has no running statistics; wanted a model with "
                "some, such as model.norm = 'batch' of a resnet, or 'averaged'"
            )
        given = self.flat, self.population, data.shape, data.classes
        settings = self.settings = cuts.fitted(settings, *given)
        self.threads, pool = hardware.pool(settings, place)
        self.trainer = Trainer(settings, self.flat, data, self.population, device, pool)
        self.fleet = self.population.fleet
        self.meter = burden.Meter(settings, data.shape, self.flat)
        self.evaluation = Evaluation(settings, data, self.population, self.trainer)
        self.theory = Theory(settings, self.population, self.trainer)
        self.ledger = Ledger(settings.clients)
        about = self.population, self.trainer, self.fleet, self.meter
        self.observer = Observer(settings, *about, self.evaluation, self.ledger)
        refuse(settings)
        self.method, module = settings.method, config.module("method", settings.method.name)
        capacity = max(1, settings.exchange.window * 2**20 // (4 * self.flat.size))
        self.width = self.method.width(capacity, settings.clients)
        if any(tier.fit for tier in self.fleet.tiers) and self.method.fits:
            held = self.method.held(self.trainer)
            self.fleet.fitted = burden.fitted(self.population, self.meter, held)
        self.server: Server | None = None
        if place.is_root:
            self.server = module.Server(settings, self.trainer)
        self.clients: Clients = module.Clients(settings, self.trainer)
        self.half: Half = self.clients if self.server is None else self.server
        self.take(settings.exchange)
        if (settings.target or "").startswith("shard_mean:") and not self.has_accuracies:
            raise ConfigError(
                f"target = '{settings.target}': wanted a method whose clients have a model after a "
                f"round, found method.name = '{self.method.name}'; possible is personal_mean"
            )
        if settings.evaluate.link == "link":
            self.evaluation.chain = self.clients.chain()
        first = self.population.first_round
        self.population.exclude(burden.unfit(self.fleet, self.meter, self.clients.burden, first))
        if settings.devices.deadline is not None:
            about_work = self.population, self.meter, self.clients.burden
            self.population.fitting = burden.deadline(settings, *about_work)
        self.best: dict[str, np.ndarray] = {}
        is_apart = settings.server == "dedicated" and place.ranks > 1
        hosts = range(1 if is_apart else 0, place.ranks)
        about_hosts = self.width, settings.keeps_state, self.method.converses
        self.placement = Placement(self.population, hosts, *about_hosts)

    def take(self, exchange: config.Exchange) -> None:
        """Takes an exchange, on all ranks the same one; before the first round."""
        self.settings = self.settings.model_copy(update={"exchange": exchange})
        if exchange.adds and self.server is None:
            self.clients.prepare_sums()

    def load(self, nodes: Sequence[int]) -> Load:
        """A round's uplink, to predict its seconds; the last round's, after all warm-ups.

        Args:
            nodes: number of each rank's node.
        """
        t, settings = self.settings.rounds - 1, self.settings
        size, kept = self.flat.size, self.clients.sent_count(t)
        # The change of a control variate has as many values, at the same positions.
        vectors = 1 if settings.control == "none" else 2
        return Load(
            clients=len(self.population.sample(t)),
            ranks=len(nodes),
            per_node=max(nodes.count(node) for node in nodes),
            parameters=vectors * size,
            sparsity=1 - kept / size,
            agreed=self.clients.agreed(t) is not None,
            ready=True,
            shared=settings.server == "shared",
            travels=self.method.travels,
        )

    @property
    def has_accuracies(self) -> bool:
        """Whether the models that clients have after a round can be evaluated."""
        return self.method.is_global or self.clients.deployed is not None

    def rounds(
        self, wire: Wire, clock: Clock, first: int | None = None, keeper: Keeper | None = None
    ) -> Iterator[Outcome | None]:
        """Runs all rounds; yields each round's outcome on the root, None elsewhere.

        A round begins with the server's broadcast. If that has no message, the server says what
        comes instead: a checkpoint, or the end.

        Args:
            wire: to the other ranks.
            clock: of this rank.
            first: the round to begin with, if the engine has the state before it.
            keeper: writes checkpoints, and stops the run after a signal; without one neither.

        Raises:
            ValueError: if the wire is that of another rank than the engine was built for.
        """
        if (wire.rank, wire.size) != (self.place.rank, self.place.ranks):
            raise ValueError(
                f"wanted the wire of rank {self.place.rank} of {self.place.ranks}, for which the "
                f"engine was built, found that of rank {wire.rank} of {wire.size}"
            )
        self.wire, self.clock, self.goes_on = wire, clock, True
        self.sent: list[Message] = []
        self.word, self.is_stopped = Word.ROUND, False
        chosen = self.settings.exchange
        exchange = config.module("exchange", chosen.name).Exchange
        self.exchange = exchange(wire, clock, self.ledger, chosen.down)
        method = self.method
        self.keeper = Keeper(self.settings) if keeper is None else keeper
        first = self.population.first_round if first is None else first
        self.last = max(EVERYONE_ROUND, first - 1)
        self.keeper.begin(first)
        following = self.waves(first)
        for t in range(first, self.settings.rounds):
            waves, following = following, self.waves(t + 1)
            self.begin(t)
            while not self.tell(t, waves):
                if not self.pause(t):
                    return
            self.last = t
            for wave in waves:
                self.send(t, wave)
                if method.converses:
                    self.converse(t, wave)
                self.collect(t, wave, self.work(t, wave))
            self.merge(t)
            if self.server is None:  # while the server works
                with self.clock(Phase.TRAIN):
                    for wave in following[:1]:
                        self.draw(t + 1, wave)
            self.step(t)
            outcome = self.outcome(t, waves)
            if outcome is not None:
                self.goes_on = outcome.finite and not outcome.ends
            yield outcome
        self.keeper.finish(self.wire)

    def pause(self, t: int) -> bool:
        """Does what comes instead of round t, on all ranks; returns whether the round comes then.

        The seconds that it takes are the round's, off the clock.
        """
        word = Word(int(self.wire.publish(np.array([self.word]))[0]))
        self.is_stopped = word == Word.STOP
        if word == Word.END:
            self.keeper.finish(self.wire)
            return False
        self.keeper.keep(t, self.state, self.wire, self.is_stopped)
        spent = float(self.clock.seconds[Phase.SAVE])
        self.begin(t)
        self.clock.credit(Phase.SAVE, spent)
        return not self.is_stopped

    def state(self) -> State:
        """Everything of this rank that the next round depends on; asked between rounds."""
        named = {"clients": self.clients.state()}
        stores = {"clients": self.trainer.stores}
        arrays: dict[str, np.ndarray] = {}
        if self.server is not None:
            named["server"], stores["server"] = self.server.state(), self.server.stores
            arrays |= {f"observer.{name}": one for name, one in self.observer.state().items()}
            arrays |= {f"best.{name}": one for name, one in self.best.items()}
        for half, tensors in named.items():
            arrays |= {f"{half}.{name}": one.cpu().numpy() for name, one in tensors.items()}
        return State(
            arrays,
            {
                f"{half}.{name}": store.arrays()
                for half, some in stores.items()
                for name, store in some.items()
            },
        )

    def restore(self, state: State) -> None:
        """Takes the state of another engine with the same settings, on whatever ranks that was.

        Args:
            state: arrays of the root, and the vectors that this rank `wants`.

        Raises:
            KeyError: if something is missing.
        """
        halves: dict[str, dict[str, Tensor]] = {"clients": {}, "server": {}}
        seen: dict[str, np.ndarray] = {}
        for name, array in state.arrays.items():
            half, _, rest = name.partition(".")
            if half == "observer":
                seen[rest] = array
            elif half == "best":
                self.best[rest] = array.copy()
            else:
                halves[half][rest] = torch.from_numpy(array.copy())
        self.clients.restore(halves["clients"])
        stores = {"clients": self.trainer.stores}
        if self.server is not None:
            self.server.restore(halves["server"])
            self.observer.restore(seen)
            stores["server"] = self.server.stores
        for half, some in stores.items():
            for name, store in some.items():
                for client, vector in state.vectors[f"{half}.{name}"].items():
                    store[client] = torch.from_numpy(vector.copy())

    def wants(self, name: str, client: int) -> bool:
        """Whether a client's vector of that name in a `State`, or a sample's, belongs here."""
        half, _, rest = name.partition(".")
        if half == "server":
            return self.place.is_root
        if self.trainer.stores[rest].by_sample:
            client = self.population.owners[client]
        return self.placement.homes[client] == self.place.rank

    def begin(self, t: int) -> None:
        """Resets clocks and byte counts before round t, on all ranks together."""
        self.is_void = True
        self.wire.settle()
        self.clock.reset()
        self.wire.reset()
        self.trainer.begin(t)
        self.evaluation.begin(t)
        self.theory.begin()
        self.ledger.begin()

    def tell(self, t: int, waves: list[Wave]) -> bool:
        """Server -> all active clients; False if there is no message: something else comes."""
        messages, active = [], [client for wave in waves for client in wave.clients]
        with self.clock(Phase.SERVE):
            if self.server is not None:
                self.word = self.keeper.word(t) if self.goes_on else Word.END
            if self.server is not None and self.word == Word.ROUND:
                messages = [Message(EVERYONE, self.server.tell(t)), *self.losses(active)]
        word = self.exchange.broadcast(messages, active)
        mine = [client for wave in waves for client in wave.on(self.wire.rank)]
        with self.clock(Phase.PACK):
            for message in word[1:]:
                for client in set(mine).intersection(sparse.indices(message.blocks[0]).tolist()):
                    self.trainer.lose(client)
            for message in word[:1]:
                self.clients.hear(t, mine, message.blocks)
        return bool(word)

    def losses(self, active: list[int]) -> list[Message]:
        """Tells clients that their last upload was lost, if their state depends on it."""
        assert self.server is not None
        told = [client for client in active if self.server.unheard[client]]
        self.server.unheard[told] = False
        if not (told and self.trainer.pending):
            return []
        return [Message(EVERYONE, [sparse.places(torch.tensor(told), self.settings.clients)])]

    def send(self, t: int, wave: Wave) -> None:
        """Server -> each client, if the method sends something to single clients."""
        if not self.settings.sends:
            return
        messages = []
        with self.clock(Phase.SERVE):
            if self.server is not None:
                messages = [Message(c, self.server.send(t, c)) for c in wave.clients]
        told = self.exchange.scatter(wave, messages)
        with self.clock(Phase.PACK):
            for message in told:
                self.clients.accept(t, message.client, message.blocks)

    def work(self, t: int, wave: Wave) -> list[Message]:
        """Trains this rank's clients of the wave, and returns their uploads."""
        mine, messages, agrees = wave.on(self.wire.rank), [], self.population.is_agreement(t)
        is_evaluated = self.evaluation.is_due(t) and not agrees
        with self.clock(Phase.TRAIN):
            self.draw(t, wave)
            for clients in self.trainer.chunks(t, mine):
                for client, w in zip(clients, self.clients.work(t, clients), strict=True):
                    began = perf_counter()
                    blocks = self.clients.report(t, client, w)
                    self.trainer.spend((client,), began)
                    messages.append(Message(client, blocks, self.population.weight(t, client)))
                    if is_evaluated:
                        with self.clock(Phase.EVALUATE):
                            self.evaluation.set_aside(client, self.clients.personal(client, w))
                            if self.has_theory(t):
                                self.theory.pruned[client] = self.clients.pruned(client)
        return messages

    def draw(self, t: int, wave: Wave) -> None:
        """Draws the orders of samples of this rank's clients, if they train alone in round t."""
        if not (self.method.converses or self.population.is_agreement(t)):
            self.trainer.feed.draw(t, wave.on(self.wire.rank))

    def waves(self, t: int) -> list[Wave]:
        """The clients of round t in waves; none if there is no such round."""
        return self.placement.waves(t) if t < self.settings.rounds else []

    def converse(self, t: int, wave: Wave) -> None:
        """Runs the local steps of a split method; one party computes while another is served."""
        parties = self.parties(t, wave)
        with self.clock(Phase.SERVE):
            servers: list[Talk] = []
            if self.server is not None:
                servers = self.server.open(t, [party.wave.clients for party in parties])
        for turn in range(1 + max(party.turns for party in parties)):
            for party in parties:
                if turn <= party.turns:
                    told = self.exchange.recv_down(party.line) if turn else []
                    with self.clock(Phase.TRAIN):
                        asked = party.clients.send(told) if turn else next(party.clients)
                if turn < party.turns:
                    self.exchange.send_up(party.line, asked)
            for party, server in zip(parties, servers, strict=False):
                if turn < party.turns:
                    heard = self.exchange.recv_up(party.line)
                    with self.clock(Phase.SERVE):
                        answers = server.send(heard)
                    self.exchange.send_down(party.line, party.wave, answers)
        for party in parties:
            party.line.wait()

    def parties(self, t: int, wave: Wave) -> list[Party]:
        """Splits a wave into two halves that talk to the server in turns, if that is possible.

        Otherwise all clients are one party.
        """
        halves = self.placement.halves(t, wave.clients)
        pipelined = self.settings.exchange.pipeline and self.method.in_halves
        if self.wire.size == 1 or not pipelined:
            halves = [sum(halves, ())]
        waves = [wave.only(half) for half in halves]
        with self.clock(Phase.TRAIN):
            talks = self.clients.open(t, [half.on(self.wire.rank) for half in waves])
        steps = [max(self.population.steps(t, client) for client in half) for half in halves]
        turns = [self.method.turns(count) for count in steps]
        lines = self.wire.lines(len(waves))
        return [Party(*each) for each in zip(waves, lines, turns, talks, strict=True)]

    def collect(self, t: int, wave: Wave, messages: list[Message]) -> None:
        """Clients -> server: absorbs the uploads in client order, without those that are lost.

        It happens where the exchange has them added up: on the root, or on each rank.
        """
        uploads, agrees = self.exchange.gather(messages), self.population.is_agreement(t)
        lost = {client for client in wave.clients if self.population.is_lost(t, client)}
        self.is_void = self.is_void and len(lost) == len(wave.clients)
        with self.clock(Phase.SERVE):
            for message in uploads:
                if message.client not in lost:
                    taking = nullcontext(message) if agrees else self.half.sum.taking(message)
                    with taking as taken:
                        self.half.absorb(t, taken)
                    if self.settings.exchange.reselects:
                        self.sent.append(message)
            if self.server is not None:
                self.server.unheard[list(lost)] = True
        if self.evaluation.is_due(t):
            personal = None if self.server is None else self.server.personal
            models = self.evaluation.evaluate_locals(wave, personal, self.wire, self.clock)
            if self.has_theory(t):
                with self.clock(Phase.EVALUATE):
                    self.theory.keep(models)

    def merge(self, t: int) -> None:
        """Adds all ranks' sums to the server's, if the exchange adds up uploads on their way."""
        if not self.settings.exchange.adds:
            return
        with self.clock(Phase.PACK):
            addends = self.half.addends(t)
            sums = addends.buffers()
        if self.settings.exchange.reselects:
            self.reselect(t, sums)
        else:
            self.exchange.merge(sums)
        with self.clock(Phase.PACK):
            if self.server is None:
                addends.clear()
            else:
                addends.fill(sums)

    def reselect(self, t: int, sums: Sequence[np.ndarray]) -> None:
        """Adds up and keeps the largest values; clients take back what is left of their uploads."""
        exempt = self.clients.stat_positions.cpu()
        kept = self.exchange.reselect(sums, self.clients.count(t), exempt.numpy())
        with self.clock(Phase.PACK):
            found = torch.from_numpy(kept.astype(np.int64)).to(self.trainer.device)
            for message in self.sent:
                self.clients.take_back(t, message.client, message.blocks, found)
        self.sent.clear()

    def step(self, t: int) -> None:
        """Moves the model; in an agreement the server sends its result to all clients instead.

        If all uploads of a round are lost, the whole model stays as it was.
        """
        if not self.population.is_agreement(t):
            with self.clock(Phase.SERVE):
                if self.server is not None and not self.is_void:
                    self.server.sum.close(t)
                    self.server.advance(t)
            return
        messages = []
        with self.clock(Phase.SERVE):
            if self.server is not None:
                messages = [Message(EVERYONE, self.server.agreement())]
        word = self.exchange.broadcast(messages, self.population.sample(t))
        with self.clock(Phase.PACK):
            for message in word:
                self.clients.agree(message.blocks)

    def outcome(self, t: int, waves: list[Wave]) -> Outcome | None:
        """Evaluates the models and gathers all measurements, off the clock.

        All ranks call it; the outcome is on the root, and None elsewhere.
        """
        seconds, both = self.clock.elapsed(), (self.wire, self.clock)
        w, noted, variants = None, dict[str, dict[int, float]](), None
        figures: Mapping[str, float] = {}
        overlaps: Sequence[Overlap] = ()
        if self.server is not None:
            w, noted, figures = self.server.w, self.server.noted, self.server.figures()
            variants = self.server.variants
            with self.clock(Phase.EVALUATE):
                overlaps = self.server.overlaps(t) if self.population.is_agreement(t) else ()
        verdict = self.evaluation.after(
            t, w, variants, self.clients.deployed, self.placement, *both
        )
        terms = None
        if self.has_theory(t):
            model, rounded = self.evaluation.published(w, self.wire), self.clients.rounded
            terms = self.theory.after(t, model, rounded, self.placement, *both)
        found = verdict, terms, w, noted, figures, overlaps
        return self.observer.outcome(
            t, waves, self.clients.burden, *found, seconds, self.keeper, *both
        )

    def has_theory(self, t: int) -> bool:
        """Whether the terms of a bound on convergence are measured after round t."""
        is_wanted = self.settings.evaluate.theory and self.settings.is_average(t)
        return is_wanted and self.evaluation.is_due(t)

    def final(self) -> dict[str, np.ndarray]:
        """Measures every client once after all rounds, if the settings say so; off the books.

        All ranks call it.

        Returns:
            Rows by table (`tables.OF_END`), on the root; nothing elsewhere, or if nothing is
                measured.
        """
        if self.settings.evaluate.final == "none":
            return {}
        self.begin(self.last)
        w = None if self.server is None else self.server.w
        about = self.clients, self.placement, self.wire
        with self.clock(Phase.EVALUATE):
            reports = self.evaluation.final(self.last, w, *about)
        return self.observer.final(reports) if reports else {}

    def model_sha256(self) -> str:
        """Returns the hash of the global model, on the root.

        The model is hashed as float32, little-endian, in the order of its stages.
        """
        assert self.server is not None
        return hashlib.sha256(self.server.w.cpu().numpy().astype("<f4").tobytes()).hexdigest()


def refuse(settings: Settings) -> None:
    """Refuses settings that the method does not use.

    Raises:
        ConfigError: naming the setting and the kind of method that it needs.
    """
    method, aggregation = settings.method, settings.aggregation
    if not (aggregation.is_mean or method.pools):
        raise ConfigError(
            f"aggregation.rule = '{aggregation.rule}', clip = {aggregation.clip}: wanted a method "
            f"in which all clients upload whole updates, found method.name = '{method.name}'; "
            "possible is the mean without a clip"
        )
    said = {
        "exchange.pipeline": None if settings.exchange.pipeline else "false",
        "server_threads": settings.server_threads,
        "server_device": settings.server_device,
    }
    for name, value in said.items():
        if not (value is None or method.converses):
            raise ConfigError(
                f"{name} = {value}: wanted a method that splits the model, found "
                f"method.name = '{method.name}', whose clients train alone"
            )
