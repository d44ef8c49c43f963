"""FedAvg: federated averaging, and the base of every method.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, *Communication-Efficient Learning
of Deep Networks from Decentralized Data*, AISTATS 2017, arXiv 1602.05629, algorithm 1.

Differs from the paper: clients upload their update w_k - w instead of w_k. The average is the same.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fedmpi import config
from fedmpi.clients.burden import Burden
from fedmpi.config import Settings
from fedmpi.messages import sparse, sums
from fedmpi.messages.codec import Block, Kind, Message
from fedmpi.split.lockstep import Talk
from fedmpi.training.probe import Variant
from fedmpi.training.store import Stores
from fedmpi.training.train import Adjust, Trainer


class Config(config.Method):
    """FedAvg has no settings of its own."""


class Server:
    """The server's half of a method; it exists on the root rank alone.

    Attributes:
        blocks_per_upload: number of blocks in an encoded update, not counting a separate block of
            running statistics.
        noted: numbers that the server found out about clients in a round, as `{column: {client:
            value}}`; columns are those of `tables.CLIENTS`.
        method: the settings in `[method]`; a method narrows their type to its own.
        w: the global model, [n].
        sum: weighted sum of the round's uploads.
        stat_positions: positions of running statistics in the model, int64; may be empty.
        stores: per-client state of the server between rounds, by name.
    """

    blocks_per_upload = 1
    method: config.Method

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        self.settings, self.method = settings, settings.method
        self.trainer, self.flat = trainer, trainer.flat
        self.w = self.flat.initial.to(trainer.device, copy=True)
        self.stat_positions = self.flat.stat_positions.to(trainer.device)
        self.sum = sums.chosen(settings, len(self.w), trainer.device)
        self.noted: dict[str, dict[int, float]] = {}
        self.stores = Stores(settings.state)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next round depends on beside `stores`, by name; asked between rounds.

        The tensors are the server's own, unless they were made for this.
        """
        return {"w": self.w}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes the state of another server that has the same settings."""
        for name, own in self.state().items():
            own.copy_(state[name])

    def broadcast(self, t: int) -> list[Block]:
        """Returns the blocks for all of round t's clients; called if the method `broadcasts`."""
        return [sparse.block(Kind.MODEL, self.w)]

    def send(self, t: int, client: int) -> list[Block]:
        """Returns additional blocks for one client; called only if the method `sends`."""
        raise NotImplementedError

    def open(self, t: int, parties: Sequence[Sequence[int]]) -> list[Talk]:
        """Opens a conversation with each party of clients; called only if the method converses."""
        raise NotImplementedError

    def absorb(self, t: int, message: Message) -> None:
        """Adds one client's upload to the round's sum.

        The engine passes uploads in client order and does not keep them.
        """
        blocks = list(message.blocks)
        if len(blocks) > self.blocks_per_upload:  # see `take_statistics`
            self.sum.add(blocks.pop(), message.weight, self.stat_positions)
        self.add(t, message.client, blocks, message.weight)
        self.sum.weight += message.weight

    def add(self, t: int, client: int, blocks: Sequence[Block], weight: float) -> None:
        """Decodes a client's update from its blocks and adds weight * update to `sum`."""
        self.sum.add(blocks[0], weight)

    def step(self, t: int) -> None:
        """Moves the model by the weighted mean of the round's uploads, and clears the sum."""
        self.sum.move(self.w)

    def agreement(self) -> list[Block]:
        """Returns the result of an agreement for every client; called instead of `step`."""
        raise NotImplementedError

    def variants(self, t: int) -> Sequence[Variant]:
        """Returns what devices hold of the model after round t, one for each share, largest first.

        It is asked in rounds that are evaluated. It has nothing if every device holds the whole
        model.
        """
        return ()

    def personal(self, client: int) -> Tensor | None:
        """Returns a client's local model [n] if only the server has all its parts, else None."""
        return None


class Clients:
    """The clients' half of a method: all logical clients of one rank.

    Attributes:
        method: the settings in `[method]`; a method narrows their type to its own.
        start: the model at which local training starts, [n].
        stat_positions: positions of running statistics in the model, int64; may be empty.
        held: the network that a client trains, which may be a part of the whole one.
        adjust: optional hook `adjust(clients, w, g)` that changes gradients; it is called before
            each local step and changes g [k, n], of the models w [k, n], in place.
        deployed: optional hook for methods without a global model; `deployed(client, w)` returns
            the model [n] that the client has after it knows the server's w [n] and before it
            trains. Its accuracy is measured. The hook may be called for any client of the rank,
            even for one that never took part.
    """

    adjust: Adjust | None = None
    deployed: Callable[[int, Tensor], Tensor] | None = None
    method: config.Method

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        self.settings, self.method = settings, settings.method
        self.trainer, self.flat = trainer, trainer.flat
        self.start = torch.zeros(self.flat.size, device=trainer.device)
        self.stat_positions = self.flat.stat_positions.to(trainer.device)
        self.held = self.flat

    def state(self) -> dict[str, Tensor]:
        """Returns what the rank keeps for all of its clients together between rounds, by name.

        What it keeps for each of them is in `trainer.stores`.
        """
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes the state of other clients of the same settings."""
        for name, own in self.state().items():
            own.copy_(state[name])

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Receives the server's broadcast on behalf of this rank's active clients.

        It is called at the start of each round; without a broadcast the list of blocks is empty.
        """
        self.start = sparse.vector(blocks[0], self.flat.size, self.trainer.device)

    def accept(self, t: int, client: int, blocks: Sequence[Block]) -> None:
        """Receives the additional blocks for one client; called only if the method `sends`."""
        raise NotImplementedError

    def open(self, t: int, parties: Sequence[Sequence[int]]) -> list[Talk]:
        """Opens each party's conversation with the server for its clients on this rank.

        The server's counterpart is `Server.open`.
        """
        raise NotImplementedError

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Trains a chunk of clients locally and returns their models, [C, n]."""
        return self.trainer.train(t, clients, self.start, self.adjust)

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """Returns the blocks that a client with the local model w [n] sends to the server."""
        return [sparse.block(Kind.GRADIENT, w - self.start)]

    def take_statistics(self, update: Tensor) -> list[Block]:
        """Moves the running statistics of an update [n] into a block that is sent after the update.

        A method that compresses updates must still send running statistics exactly. They are no
        gradients, and a small error could make a variance negative. Both sides know their
        positions. The update is zero there afterwards.
        """
        if not len(self.stat_positions):
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
        samples = batch if population.is_agreement(t) else population.seen(client)
        return Burden(self.held, samples, batch)

    def personal(self, client: int, w: Tensor) -> Tensor | None:
        """Returns the client's whole local model [n], to be evaluated, or None if it has none."""
        return w
