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
from fedmpi.training.store import Stores
from fedmpi.training.train import Adjust, Trainer


class Config(config.Method):
    """Nothing to set."""


class Server:
    """The server's half; it lives on the root alone.

    Attributes:
        blocks_per_upload: blocks of an encoded update, without one of statistics sent apart.
        noted: what the server found out of clients in a round, if it does: a number for each, by
            columns of `tables.CLIENTS`.
        method: the settings in `[method]`; a method narrows their type to its own.
        w: the global model, [n].
        sum: of the uploads of a round.
        stat_positions: positions in it of running statistics, int64; there may be none.
        stores: by name, what the server keeps for each client from round to round.
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
        """What every active client is told in round t; only asked if the method `broadcasts`."""
        return [sparse.block(Kind.MODEL, self.w)]

    def send(self, t: int, client: int) -> list[Block]:
        """What one client is told besides; only asked if the method `sends`."""
        raise NotImplementedError

    def open(self, t: int, parties: Sequence[Sequence[int]]) -> list[Talk]:
        """Begins a conversation with each party of clients; only asked if the method converses."""
        raise NotImplementedError

    def absorb(self, t: int, message: Message) -> None:
        """Takes in one client's upload; uploads come in client order, and are gone afterwards."""
        blocks = list(message.blocks)
        if len(blocks) > self.blocks_per_upload:  # see `take_statistics`
            self.sum.add(blocks.pop(), message.weight, self.stat_positions)
        self.add(t, message.client, blocks, message.weight)
        self.sum.weight += message.weight

    def add(self, t: int, client: int, blocks: Sequence[Block], weight: float) -> None:
        """Adds weight * update, of which the client sent these blocks, to `sum`."""
        self.sum.add(blocks[0], weight)

    def step(self, t: int) -> None:
        """All uploads of the round are in: moves the model by their weighted mean."""
        self.sum.move(self.w)

    def agreement(self) -> list[Block]:
        """Closes an agreement: what every client learns, instead of a step."""
        raise NotImplementedError

    def personal(self, client: int) -> Tensor | None:
        """The client's local model [n], where no rank but the server's has it whole."""
        return None


class Clients:
    """The clients' half: the logical clients of one rank.

    Attributes:
        method: the settings in `[method]`; a method narrows their type to its own.
        start: the model at which local training starts, [n].
        stat_positions: positions in it of running statistics, int64; there may be none.
        held: the network that a client has, or its part of it.
        adjust: a method that changes gradients has this hook, `adjust(clients, w, g)`; it is called
            before each step and changes g [k, n], of models w [k, n], in place.
        deployed: where no model is global, `deployed(client, w)` is the one that the client has
            once it knows the server's w [n], and before it trains: [n], to measure its accuracy.
            It may be asked of any client of the rank, even of one that never took part.
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
        """What this rank knows for all of its clients alike from round to round, by name.

        What it keeps for each of them is in `trainer.stores`.
        """
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes the state of other clients of the same settings."""
        for name, own in self.state().items():
            own.copy_(state[name])

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Takes what all of this rank's active clients were told.

        If the method does not broadcast, a round begins, and there are no blocks.
        """
        self.start = sparse.vector(blocks[0], self.flat.size, self.trainer.device)

    def accept(self, t: int, client: int, blocks: Sequence[Block]) -> None:
        """Takes what one client was told besides; only called if the method `sends`."""
        raise NotImplementedError

    def open(self, t: int, parties: Sequence[Sequence[int]]) -> list[Talk]:
        """Begins each party's conversation, with its clients of this rank; see `Server.open`."""
        raise NotImplementedError

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Local training of a chunk of clients; returns their models, [C, n]."""
        return self.trainer.train(t, clients, self.start, self.adjust)

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """What a client with the local model w [n] says to the server."""
        return [sparse.block(Kind.GRADIENT, w - self.start)]

    def take_statistics(self, update: Tensor) -> list[Block]:
        """Takes running statistics out of an update [n], as a block to send behind it.

        A method that sends an update otherwise than as it is sends statistics as they are: they are
        no gradients, and of a variance that is a little off the root may not exist. Both sides know
        where they belong.
        """
        if not len(self.stat_positions):
            return []
        block = sparse.block(Kind.GRADIENT, update[self.stat_positions], len(update))
        update[self.stat_positions] = 0
        return [block]

    def agree(self, blocks: Sequence[Block]) -> None:
        """Takes what the server closed an agreement with."""
        raise NotImplementedError

    def burden(self, t: int, client: int) -> Burden:
        """What the client trains in round t, to estimate what a device spends.

        In an agreement it is one batch.
        """
        population, batch = self.trainer.population, self.settings.batch
        batch = min(batch, int(population.sizes[client]))
        samples = batch if population.is_agreement(t) else population.seen(client)
        return Burden(self.held, samples, batch)

    def personal(self, client: int, w: Tensor) -> Tensor | None:
        """The client's whole local model [n], to measure its accuracy; None if it has no such."""
        return w
