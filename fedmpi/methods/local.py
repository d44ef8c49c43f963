"""Local: every client trains a model of its own, and nothing is communicated.

The baseline that personalized methods have to beat, as in T. Li, S. Hu, A. Beirami, V. Smith,
*Ditto: Fair and Robust Federated Learning Through Personalization*, ICML 2021, arXiv 2012.04221.

There is no global model. `personal` is the accuracy of the models of clients that trained in a
round, `accuracy` that of all clients' models after it. All clients start from the same initial
model, which follows from the seed. The bytes reported are those of message headers. Also the base
of methods whose clients have a whole model of their own.
"""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from fedmpi import config
from fedmpi.config import Settings
from fedmpi.messages.codec import Block, Message
from fedmpi.methods import fedavg
from fedmpi.training.train import PLAIN, Hooks, Trainer


class Config(config.Method):
    """Local training has no settings of its own."""

    broadcasts = is_global = False
    owns: ClassVar[bool] = True
    can_send_changes: ClassVar[bool] = False
    optimizes: ClassVar[bool] = False
    adds: ClassVar[bool] = False
    pools: ClassVar[bool] = False
    keeps_state: ClassVar[bool] = True
    uploads: ClassVar[config.Uploads] = "nothing"
    feedbacks: ClassVar[tuple[str, ...]] = ("none",)


class Server(fedavg.Server):
    def absorb(self, t: int, message: Message) -> None:
        """Counts the client, which uploads nothing."""
        self.sum.weight += message.weight


class Owners(fedavg.Clients):
    """Clients with models of their own, which all start from the initial model."""

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.initial = self.flat.initial.to(trainer.device)
        self.models = trainer.stores.add("model", self.flat.size)

    def go_on(self, t: int, clients: Sequence[int], hooks: Hooks = PLAIN) -> Tensor:
        """Trains the clients' own models from where their last round ended: [C, n]."""
        starts = self.initial.repeat(len(clients), 1)
        for row, client in enumerate(clients):
            starts[row] = self.models.get(client, self.initial)
        found = self.trainer.train(t, clients, starts, hooks)
        for row, client in enumerate(clients):
            self.models[client] = found[row]
        return found


class Clients(Owners):
    def receive(self, t: int, clients: Sequence[int], blocks: Sequence[Block]) -> None:
        """Does nothing: the server sends nothing."""

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Trains the clients' own models."""
        return self.go_on(t, clients)

    def deployed(self, client: int, w: Tensor) -> Tensor:
        """Returns the client's own model, or the initial one if it never trained."""
        return self.models.get(client, self.initial).to(w.device)

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """Sends nothing."""
        return []
