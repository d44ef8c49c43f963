"""FedPer: the last layers of the network stay with the client, the others are averaged.

M. G. Arivazhagan, V. Aggarwal, A. K. Singh, S. Choudhary, *Federated Learning with Personalization
Layers*, arXiv 1912.00818, section 3. Both parts are trained together.

There is no global model. `accuracy` is that of the new shared part with a client's personal part,
after the round. `personal` is that of the local model after local training.
Differs from the paper: clients are sampled, and averaged by samples.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fedmpi import config
from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.methods import fedavg
from fedmpi.networks.flat import Flat
from fedmpi.training.train import Trainer


class Config(config.Method):
    is_global = False
    can_send_changes: ClassVar[bool] = False
    keeps_state: ClassVar[bool] = True
    controls: ClassVar[bool] = True

    cut: str | None = None
    """Last stage of the shared part of the network. If absent, only the last stage is personal."""

    def private(self, flat: Flat) -> Tensor:
        """Returns which positions of the model never leave a client: bool [size].

        Raises:
            ConfigError: if the model has no split point of that name, or no split point at all.
        """
        found = torch.ones(flat.size, dtype=torch.bool)
        front, _ = flat.split(self.cut or (flat.cuts() or [""])[-1])
        found[: front.size] = False
        return found


class Half(fedavg.Half):
    """What both sides know.

    Attributes:
        private: positions of the personal part, bool [n].
        shared: positions of the shared part, int64.
    """

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        method = settings.method
        assert isinstance(method, Config)
        self.private = method.private(trainer.flat).to(trainer.device)
        self.shared = (~self.private).nonzero().squeeze(1)
        super().__init__(settings, trainer)

    def sent_positions(self, t: int, client: int, blocks: Sequence[Block]) -> Tensor:
        """Returns the positions of the shared part."""
        return self.shared

    def agreed(self, t: int) -> Tensor | None:
        """Returns the positions of the shared part."""
        return self.shared


class Server(Half, fedavg.Server):
    def broadcast(self, t: int) -> list[Block]:
        """Sends the shared part of the model."""
        return [sparse.block(Kind.MODEL, self.w.index_select(0, self.shared), self.flat.size)]

    def control_block(self, control: Tensor) -> Block:
        """Encodes the shared part of the control variate."""
        return sparse.block(Kind.GRADIENT, control.index_select(0, self.shared), self.flat.size)


class Clients(Half, fedavg.Clients):
    """Clients that keep a personal part of the model.

    Attributes:
        own: each client's personal part.
    """

    private: Tensor

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.initial = self.flat.initial.to(trainer.device)[self.private]
        self.own = trainer.stores.add("own", len(self.initial))

    def free(self) -> Tensor:
        """Returns the positions of the personal part and of running statistics."""
        free = self.private.clone()
        free[self.stat_positions] = True
        return free.nonzero().squeeze(1)

    def control_of(self, block: Block) -> Tensor:
        """Restores the control variate, which is zero in the personal part."""
        return sparse.vector(block, self.flat.size, self.trainer.device, self.shared)

    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Receives the shared part."""
        sparse.fill(self.start, blocks[0], self.shared)

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Trains both parts; a client's personal part starts where its last round ended."""
        starts = self.start.new_empty(len(clients), self.flat.size)
        for row, client in enumerate(clients):
            starts[row] = self.deployed(client, self.start)
        found = self.trainer.train(t, clients, starts, self.hooks)
        for row, client in enumerate(clients):
            self.own[client] = found[row, self.private]
        return found

    def deployed(self, client: int, w: Tensor) -> Tensor:
        """Returns the shared part of w with the client's personal part, or the initial one."""
        found = w.clone()
        found[self.private] = self.own.get(client, self.initial).to(w.device)
        return found

    def update(self, client: int, w: Tensor) -> Tensor:
        """Returns the update of the shared part, which is zero in the personal part: [n]."""
        found = super().update(client, w)
        found[self.private] = 0
        return found

    def encode_update(self, t: int, client: int, update: Tensor) -> list[Block]:
        """Sends the update of the shared part."""
        return [sparse.block(Kind.GRADIENT, update.index_select(0, self.shared), self.flat.size)]
