"""FedAvg: federated averaging, and the base of every method.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, *Communication-Efficient Learning
of Deep Networks from Decentralized Data*, AISTATS 2017, arXiv 1602.05629, algorithm 1.

Differs from the paper: clients upload their update w_k - w instead of w_k. The average is the same.
"""

from collections.abc import Callable, Mapping, Sequence
from math import nan
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedmpi import config
from fedmpi.clients.burden import Burden
from fedmpi.config import Down, Settings
from fedmpi.messages import sparse, sums
from fedmpi.messages.codec import Block, Kind, Message
from fedmpi.messages.coding import Coder
from fedmpi.messages.sums import Addends, Sum
from fedmpi.networks.flat import Flat
from fedmpi.networks.slicing import Channels
from fedmpi.split.lockstep import Talk
from fedmpi.streams import Purpose, key
from fedmpi.training import probe
from fedmpi.training.downlink import Changes, Copies, Words
from fedmpi.training.feedback import Estimates, Feedback
from fedmpi.training.probe import Overlap, Variant
from fedmpi.training.server_optimizer import ServerOptimizer
from fedmpi.training.store import Stores
from fedmpi.training.train import PLAIN, Adjust, Hooks, Rests, Trainer
from fedmpi.training.variates import Variates

NIID_BENCH: Mapping[str, Any] = {
    "clients": 10,
    "participation": 1.0,
    "rounds": 50,
    "epochs": 10,
    "batch": 64,
    "lr": 0.01,
    "momentum": 0.9,
    "weight_decay": 1e-5,
}
"""Settings, by path, by which Q. Li, Y. Diao, Q. Chen, B. He, *Federated Learning on Non-IID Data
Silos*, ICDE 2022, arXiv 2102.02079, compare methods, with all clients in every round."""


class Config(config.Method):
    """FedAvg has no settings of its own."""

    controls: ClassVar[bool] = True


class Half:
    """What both halves of a method know.

    If the method `adds`, both can add up uploads: the server all of them or, with an exchange that
    adds on the way, each rank those of its clients. Then `absorb`, `add` and what they call are the
    same in both halves, and use nothing that only one of them knows.

    Attributes:
        method: the settings in `[method]`; a method narrows their type to its own.
        stat_positions: positions of running statistics in the model, int64; may be empty.
        theirs: the network whose values clients upload.
        coder: writes and reads updates as `[codec]` says.
        changes: encodes changes of the model; None if the server sends the model itself.
        sum: weighted sum of the round's uploads; on the server of all of them in the end.
        shift: what control variates' changes are added to, [n]: on the server c itself, elsewhere
            zeros at the beginning of a round; None without control variates.
        estimates: on the server those of clients' updates, with `feedback = ef21`; else None.
    """

    method: config.Method
    sum: Sum
    shift: Tensor | None
    estimates: Estimates | None = None

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        self.settings, self.method = settings, settings.method
        self.trainer, self.flat = trainer, trainer.flat
        self.stat_positions = self.flat.stat_positions.to(trainer.device)
        self.theirs: Flat = self.method.theirs(trainer)
        about = self.theirs.parameters, self.theirs.stat_positions, self.theirs.size
        self.coder = Coder(settings.codec, *about, self.method.apart)
        self.changes: Changes | None = None
        if settings.sends_changes:
            self.changes = Changes(self.down(), self.flat, trainer.device)

    def down(self) -> Down:
        """Returns how changes of the model are written, if the server sends changes."""
        return self.settings.codec.down

    @property
    def has_statistics(self) -> bool:
        """Whether an upload has a block of running statistics, behind those of the update."""
        return self.method.apart and len(self.theirs.stat_positions) > 0

    @property
    def blocks_per_change(self) -> int:
        """Number of blocks that encode the change of a control variate."""
        return self.coder.blocks

    def decided(self) -> Mapping[str, str]:
        """Returns what the data or the devices decided of this run, as attributes of its result."""
        return {}

    def sent_positions(self, t: int, client: int, blocks: Sequence[Block]) -> Tensor | None:
        """Returns the positions of the values that a client's update has.

        The change of the client's control variate is sent at the same positions.

        Args:
            t: the round.
            client: the client.
            blocks: those of its upload, the first ones as the method or as the codec wrote them.

        Returns:
            int64, ascending; None for all of what clients upload.
        """
        where = blocks[0].indices
        return None if where is None else sparse.indices(blocks[0], self.trainer.device)

    def decode_update(self, t: int, client: int, blocks: Sequence[Block]) -> Block:
        """Returns a client's update as one block, of its values at `sent_positions`.

        `sparse.values` and `sparse.add` know what they are in float32.

        Args:
            t: the round.
            client: the client.
            blocks: as `Clients.encode_update` made them.
        """
        return blocks[0]

    def heard(
        self, t: int, client: int, blocks: Sequence[Block]
    ) -> tuple[list[Block], Block, Tensor | None]:
        """Reads an upload, on both sides alike.

        Args:
            t: the round.
            client: the client.
            blocks: of its update, without running statistics or the change of a control variate.

        Returns:
            The blocks as the method wrote them, the update as one block, and the positions of its
            values (see `sent_positions`).
        """
        if not self.coder.is_plain:
            blocks = self.coder.decode(blocks, self.sent_positions(t, client, blocks))
        where = self.sent_positions(t, client, blocks)
        return list(blocks), self.decode_update(t, client, blocks), where

    def prepare_sums(self) -> None:
        """Makes what uploads are added to, all zero; called before the first upload."""
        size, device = self.flat.size, self.trainer.device
        self.sum = sums.chosen(self.settings, size, device, self.stat_positions)
        has_control = self.settings.control != "none"
        self.shift = torch.zeros(size, device=device) if has_control else None

    def absorb(self, t: int, message: Message) -> None:
        """Adds one client's upload to the round's sum.

        The engine passes uploads in client order and does not keep them.
        """
        blocks, client = list(message.blocks), message.client
        changes: list[Block] = []
        if self.shift is not None:
            at = len(blocks) - self.blocks_per_change
            blocks, changes = blocks[:at], blocks[at:]
        if self.has_statistics:
            self.sum.add(blocks.pop(), message.weight, self.stat_positions)
        blocks, update, where = self.heard(t, client, blocks)
        if self.shift is not None:
            self.take_change(client, where, changes)
        if self.estimates is not None:
            like = torch.zeros(self.theirs.size, device=self.trainer.device)
            estimate = self.estimates.learn(client, like, update, where)
            update, where = sparse.block(Kind.GRADIENT, estimate), None
        self.add(t, client, blocks, update, where, message.weight)
        self.sum.weight += message.weight

    def add(
        self,
        t: int,
        client: int,
        blocks: Sequence[Block],
        update: Block,
        where: Tensor | None,
        weight: float,
    ) -> None:
        """Adds weight * update to `sum`.

        Args:
            t: the round.
            client: the client.
            blocks: its upload, as `Clients.encode_update` made it.
            update: what it decodes to (see `decode_update`).
            where: positions of the update's values, int64; None for all.
            weight: the client's weight in the mean.
        """
        self.sum.add(update, weight, where)

    def take_change(self, client: int, where: Tensor | None, changes: Sequence[Block]) -> None:
        """Adds the client's share of the change of its c_k to `shift`.

        So c stays the mean of all c_k, with the weights of the objective.

        Args:
            client: the client.
            where: positions of the change's values, int64; None for all.
            changes: the blocks of the change.
        """
        assert self.shift is not None
        values = self.decode_change(changes, where)
        values = values.to(self.shift.device) * self.share(client)
        if where is None:
            self.shift += values
        else:
            self.shift.index_add_(0, where, values)

    def share(self, client: int) -> float:
        """Returns the client's weight in the mean of all c_k."""
        return self.trainer.population.share(client)

    def agreed(self, t: int) -> Tensor | None:
        """Returns the positions outside of which the sums of round t are zero on every rank.

        All ranks know them without a message, such as those of a mask.

        Returns:
            int64, ascending; None if there are no such positions.
        """
        return None

    def sent_count(self, t: int) -> int:
        """Returns how many values a client's update has in round t, if all send equally many.

        It is asked before the first round, to predict what messages take.
        """
        where = self.agreed(t)
        return self.theirs.size if where is None else len(where)

    def addends(self, t: int) -> Addends:
        """Returns all that uploads of round t are added to, so that ranks can add it up."""
        more = [] if self.shift is None else [self.shift]
        return Addends([self.sum], more, self.agreed(t))

    def rounding(self, t: int, *who: int) -> np.ndarray:
        """Returns the key by which values are rounded in round t.

        Args:
            t: the round.
            who: the client whose upload they are, with 1 behind it for the change of its control
                variate; nobody for the change of the server's model.
        """
        return key(self.settings.seed, Purpose.ROUND, t, *who)

    def encode_change(
        self, t: int, client: int, values: Tensor, where: Tensor | None
    ) -> list[Block]:
        """Encodes the change of a client's control variate, as updates are.

        Args:
            t: the round.
            client: the client.
            values: those that are sent of it, [k].
            where: their positions, int64 [k]; None for all.

        Returns:
            Blocks, `blocks_per_change` of them.
        """
        block = sparse.block(Kind.GRADIENT, values)
        if self.coder.is_plain:
            return [block]
        return self.coder.encode([block], where, self.rounding(t, client, 1))

    def decode_change(self, blocks: Sequence[Block], where: Tensor | None) -> Tensor:
        """Restores those values from their blocks, [k]."""
        (block,) = self.coder.decode(blocks, where)
        return sparse.values(block, self.trainer.device)


class Server(Half):
    """The server's half of a method; it exists on the root rank alone.

    Attributes:
        noted: numbers that the server found out about clients in a round, as `{column: {client:
            value}}`; columns are those of `tables.CLIENTS`.
        w: the global model, [n].
        optimizer: moves the model by the mean of the sum.
        control: the control variate c, [n]; None without control variates.
        unheard: which clients' last upload was lost, and do not know it yet, bool [clients].
        stores: per-client state of the server between rounds, by name.
        words: the changes of the last rounds; None if the server sends the model itself.
    """

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.prepare_sums()
        self.w = self.flat.initial.to(trainer.device, copy=True)
        about = len(self.w), trainer.device, self.stat_positions
        self.optimizer, self.control = ServerOptimizer(settings, *about), self.shift
        self.unheard = torch.zeros(settings.clients, dtype=torch.bool)
        self.noted: dict[str, dict[int, float]] = {}
        self.stores = Stores(settings.state)
        self.words: Words | None = None
        if self.changes is not None:
            self.words = Words(self.changes, settings.clients)
        if settings.feeds_back and settings.feedback == "ef21":
            store = self.stores.add("estimate", self.theirs.size)
            self.estimates = Estimates(store, self.theirs.stat_positions.to(trainer.device))

    def state(self) -> dict[str, Tensor]:
        """Everything that the next round depends on beside `stores`, by name; asked between rounds.

        The tensors are the server's own, unless they were made for this.
        """
        found = {"w": self.w, "unheard": self.unheard} | self.optimizer.state()
        found |= {} if self.control is None else {"control": self.control}
        return found | ({} if self.words is None else self.words.state())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes the state of another server that has the same settings."""
        if self.words is not None:
            self.words.restore(state)
        for name, own in self.state().items():
            own.copy_(state[name])

    def tell(self, t: int) -> list[Block]:
        """Returns all blocks for round t's clients: the broadcast, and the control variate."""
        blocks = self.broadcast(t) if self.settings.broadcasts else []
        if self.control is None or not self.method.broadcasts:
            return blocks
        return [*blocks, self.control_block(self.control)]

    def broadcast(self, t: int) -> list[Block]:
        """Returns the blocks for all of round t's clients; called if the settings `broadcasts`."""
        return [sparse.block(Kind.MODEL, self.w)]

    def control_block(self, control: Tensor) -> Block:
        """Encodes the control variate c [n] for all clients."""
        return sparse.block(Kind.GRADIENT, control)

    def send(self, t: int, client: int) -> list[Block]:
        """Returns additional blocks for one client; called only if the settings `sends`.

        By default they are the changes of the model that the client missed.
        """
        assert self.words is not None
        return self.words.missed(t, client, self.w)

    def open(self, t: int, parties: Sequence[Sequence[int]]) -> list[Talk]:
        """Opens a conversation with each party of clients; called only if the method converses."""
        raise NotImplementedError

    def advance(self, t: int) -> None:
        """Takes the step of round t. If the server sends changes, the model moves by what is sent.

        The step then starts from zero, so that no digit of a small change is lost beside the model.
        """
        if self.words is None:
            self.step(t)
        elif self.words.changes.are_lossless:
            self.step(t)
            self.words.forget(t)
        else:
            w, self.w = self.w, torch.zeros_like(self.w)
            self.step(t)
            change, self.w = self.w, w
            self.words.say(t, change, self.w, self.rounding(t))

    def step(self, t: int) -> None:
        """Moves the model by the weighted mean of the round's uploads, and clears the sum."""
        self.optimizer.step(self.w, self.sum)

    def agreement(self) -> list[Block]:
        """Returns the result of an agreement for every client; called instead of `step`."""
        raise NotImplementedError

    def figures(self) -> Mapping[str, float]:
        """Returns numbers about the model after a round, by column of `tables.ROUNDS`."""
        return {}

    def variants(self, t: int) -> Sequence[Variant]:
        """Returns what devices hold of the model after round t, one for each share, largest first.

        It is asked in rounds that are evaluated. It has nothing if every device holds the whole
        model.
        """
        return ()

    def overlaps(self, t: int) -> Sequence[Overlap]:
        """Returns how far the mask of round t's agreement overlaps with others.

        It is asked off the clock after each agreement.
        """
        return ()

    def personal(self, client: int) -> Tensor | None:
        """Returns a client's local model [n] if only the server has all its parts, else None."""
        return None


class Clients(Half):
    """The clients' half of a method: all logical clients of one rank.

    Attributes:
        start: the model at which local training starts, [n].
        held: the network that a client trains, which may be a part of the whole one.
        known: each client's copy of the server's model, if the server sends changes of it; else
            None.
        variates: control variates; None without.
        adjust: optional hook `adjust(clients, w, g)` that changes gradients; it is called before
            each local step and changes g [k, n], of the models w [k, n], in place.
        rests: optional hook that says which parts of their models rest in a step (see
            `train.Hooks`).
        deployed: optional hook for methods without a global model; `deployed(client, w)` returns
            the model [n] that the client has after it knows the server's w [n] and before it
            trains. Its accuracy is measured. The hook may be called for any client of the rank,
            even for one that never took part.
        feedback: adds to updates what earlier ones left out, or what replaces it.
        private: positions of the part of the model that stays with each client, bool [n]; None if
            the clients have all of the server's model, or whole ones of their own.
    """

    adjust: Adjust | None = None
    rests: Rests | None = None
    deployed: Callable[[int, Tensor], Tensor] | None = None
    private: Tensor | None = None

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.start = torch.zeros(self.flat.size, device=trainer.device)
        self.held = self.flat
        self.known = None if self.changes is None else Copies(self.changes, trainer)
        self.feedback: Feedback | Estimates
        size, exact = self.theirs.size, self.theirs.stat_positions.to(trainer.device)
        if settings.feeds_back and settings.feedback == "ef21":
            self.feedback = Estimates(trainer.provisional("estimate", size), exact)
        else:
            self.feedback = Feedback(trainer, size, exact, settings.feeds_back)
        self.variates: Variates | None = None
        if settings.control != "none":
            self.variates = Variates(trainer, self.free())

    def free(self) -> Tensor:
        """Returns the positions of the model that have no control variate: int64."""
        return self.stat_positions

    def state(self) -> dict[str, Tensor]:
        """Returns what the rank keeps for all of its clients together between rounds, by name.

        It is the same on all ranks; or else `since`, int64 [], is the round in which the rank
        learned of it, and what the last one to learn knows is right for all of them. What a rank
        keeps for each client is in `trainer.stores`.
        """
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes the state of other clients of the same settings."""
        for name, own in self.state().items():
            own.copy_(state[name])

    @property
    def hooks(self) -> Hooks:
        """What the method and the settings change in the local steps of the global model."""
        follow = None
        if self.variates is not None and not self.variates.is_mean:
            follow = self.variates.follow
        adjust = self.adjust if self.variates is None else self._corrected
        return Hooks(adjust, follow, self.rests, self.settings.proximal)

    def _corrected(self, clients: Sequence[int], w: Tensor, g: Tensor) -> None:
        """Corrects gradients by control variates, and then as the method does."""
        if self.variates is not None and self.variates.is_mean:
            self.variates.correct(clients, g)
        if self.adjust is not None:
            self.adjust(clients, w, g)

    def hear(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Receives all that the server tells everyone: the control variate, and its broadcast."""
        if self.variates is not None and self.method.broadcasts:
            *blocks, control = blocks
            self.variates.begin(t, self.control_of(control))
        self.receive(t, clients, blocks)

    def control_of(self, block: Block) -> Tensor:
        """Restores the control variate c [n] from its block."""
        return sparse.vector(block, self.flat.size, self.trainer.device)

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Receives the server's broadcast on behalf of this rank's active clients.

        It is called at the start of each round; without a broadcast the list of blocks is empty.
        """
        if blocks:
            sparse.fill(self.start, blocks[0])

    def accept(self, t: int, client: int, blocks: Sequence[Block]) -> None:
        """Receives the additional blocks for one client; called only if the settings `sends`.

        By default they are the changes of the model that the client missed.
        """
        assert self.known is not None
        self.start = self.known.follow(client, blocks)

    def open(self, t: int, parties: Sequence[Sequence[int]]) -> list[Talk]:
        """Opens each party's conversation with the server for its clients on this rank.

        The server's counterpart is `Server.open`.
        """
        raise NotImplementedError

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Trains a chunk of clients locally and returns their models, [C, n]."""
        return self.trainer.train(t, clients, self.start, self.hooks)

    def report(self, t: int, client: int, w: Tensor) -> list[Block]:
        """Returns all blocks of a client's upload: the update, and the control variate's change.

        c_k moves by what is sent of its change, so that the server's c stays the mean of all c_k.
        """
        if self.variates is None:
            return self.upload(t, client, w)
        change = self.variates.change(client, w, self.start)
        blocks = self.upload(t, client, w)
        own = blocks[:-1] if self.has_statistics else blocks
        _, _, where = self.heard(t, client, own)
        given = change if where is None else change.index_select(0, where)
        changes = self.encode_change(t, client, given, where)
        moved = self.decode_change(changes, where)
        if where is not None:
            moved = torch.zeros_like(change).index_add_(0, where, moved)
        self.variates.move(client, moved)
        return [*blocks, *changes]

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """Returns the blocks that a client with the local model w [n] sends to the server.

        The update is compressed by the method, and then by the codec. What both together leave out
        goes to the feedback.
        """
        update = self.update(client, w)
        statistics = self.take_statistics(update)
        blocks = self.encode_update(t, client, update)
        if not self.coder.is_plain:
            where = self.sent_positions(t, client, blocks)
            blocks = self.coder.encode(blocks, where, self.rounding(t, client))
        if self.feedback.is_on:
            _, sent, where = self.heard(t, client, blocks)
            self.feedback.learn(client, update, sent, where)
        return [*blocks, *statistics]

    def update(self, client: int, w: Tensor) -> Tensor:
        """Returns what a client with the local model w [n] is to send, before compression: [n].

        It is the update, w minus the client's start, with what the feedback adds, and it may be
        changed. Running statistics have no feedback. Methods whose clients have starts of their own
        override it.
        """
        return self.feedback.add(client, w, self.start)

    def count(self, t: int) -> int:
        """Returns how many values of its update a client sends; if the method `chooses`."""
        raise NotImplementedError

    def sent_count(self, t: int) -> int:
        """Returns how many values a client's update has in round t, if all send equally many."""
        return self.count(t) if self.method.chooses else super().sent_count(t)

    def take_back(self, t: int, client: int, blocks: Sequence[Block], kept: Tensor) -> None:
        """Adds to a client's residual what it sent and what was then left out of a sum.

        It is called if the settings of the exchange `reselects`, unless the upload was lost.

        Args:
            t: the round.
            client: the client.
            blocks: its upload.
            kept: the positions where the upload is in the sum, int64.
        """
        own = blocks[:-1] if self.has_statistics else blocks
        _, sent, where = self.heard(t, client, own)
        if where is None:
            where = torch.arange(self.theirs.size, device=kept.device)
        out = ~torch.isin(where, kept)
        assert isinstance(self.feedback, Feedback)
        self.feedback.take_back(client, where[out], sparse.values(sent, kept.device)[out])

    def encode_update(self, t: int, client: int, update: Tensor) -> list[Block]:
        """Encodes an update [n]; values of the first block are float32 if a codec may take them.

        If the method `loses` something, the blocks share no memory with the update: what is left
        out is found there in place.
        """
        return [sparse.block(Kind.GRADIENT, update)]

    def take_statistics(self, update: Tensor) -> list[Block]:
        """Moves the running statistics of an update [n] into a block that is sent after the update.

        There is none if the method does not have them `apart`. A method that compresses updates
        must still send running statistics exactly. They are no gradients, and a small error could
        make a variance negative. Both sides know their positions. The update is zero there
        afterwards.
        """
        if not self.has_statistics:
            return []
        block = sparse.block(Kind.GRADIENT, update[self.stat_positions], len(update))
        update[self.stat_positions] = 0
        return [block]

    def agree(self, blocks: Sequence[Block]) -> None:
        """Receives the result of an agreement."""
        raise NotImplementedError

    def burden(self, t: int, client: int) -> Burden:
        """Returns what the client trains in round t, to estimate the cost on its device.

        In an agreement this is one batch.
        """
        population, batch = self.trainer.population, self.settings.batch
        batch = min(batch, int(population.sizes[client]))
        samples = batch if population.is_agreement(t) else population.seen(t, client)
        return Burden(self.held, samples, batch)

    def owned(self, t: int, client: int, w: Tensor) -> Tensor:
        """Returns the model [n] that a client has after the last round t; w is the server's.

        It may be called for any client of the rank, even for one that never took part.
        """
        return w if self.deployed is None else self.deployed(client, w)

    def owned_mask(self, client: int) -> Tensor:
        """Returns which values of that model the client's own mask keeps: bool [n]."""
        raise NotImplementedError

    def tune(
        self, t: int, clients: Sequence[int], models: Tensor, gone: Tensor | None = None
    ) -> Tensor:
        """Trains the models that clients have after the last round further, off the books.

        Pruned weights, that is weights of exactly zero, stay zero. Newcomers train only what would
        stay with them, if a part of the model would; `trainer.passed` has their models after each
        epoch.

        Args:
            t: the last round, whose learning rate is used.
            clients: a chunk of them.
            models: theirs, [C, n].
            gone: other positions that stay as they are, bool [C, n].

        Returns:
            [C, n], until the next call.
        """
        rests = (models == 0) & self.flat.prunable().to(models.device)
        if gone is not None:
            rests |= gone
        private, newcomers = self.private, self.trainer.population.newcomers
        if private is not None and private.any():
            rests[[client in newcomers for client in clients]] |= ~private
        hooks = Hooks(rests=lambda busy, step: rests[: len(busy)]) if rests.any() else PLAIN
        passes = self.settings.evaluate.final_epochs
        return self.trainer.tune(t, clients, models, passes, hooks, newcomers)

    def keep(self, t: int, client: int, w: Tensor) -> tuple[Channels, Tensor]:
        """Returns which channels stay if a client's model w [n] is sliced after the last round t.

        It is called only if the method `slices`.

        Returns:
            The channels of the network or of a front of it, and those that stay, ascending, int64.
        """
        raise NotImplementedError

    def chain(self) -> probe.Chain:
        """Returns the network in parts, with what happens between them when it is judged.

        It is called only if the method `has_link`.
        """
        raise NotImplementedError

    def pruned(self, client: int) -> float:
        """Returns ||w - m * w||^2 of the values w at which the client began its round.

        m is the mask of what it kept of them. It is called after the client's local steps, in
        rounds with `evaluate.theory`; NaN if the method has no such mask.
        """
        return nan

    def rounded(self, client: int, g: Tensor) -> float:
        """Returns E||Q(g) - g||^2 of a gradient g [n], with the quantizer Q of the local steps.

        It is called in rounds with `evaluate.theory`; NaN if the method has no such quantizer.
        """
        return nan

    def personal(self, client: int, w: Tensor) -> Tensor | None:
        """Returns the client's whole local model [n], to be evaluated, or None if it has none."""
        return w
