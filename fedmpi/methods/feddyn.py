"""FedDyn: each client's loss is corrected so that its minimum is where the global loss has it.

D. A. E. Acar, Y. Zhao, R. Matas Navarro, M. Mattina, P. N. Whatmough, V. Saligrama, *Federated
Learning Based on Dynamic Regularization*, ICLR 2021, arXiv 2111.04263, algorithm 1. A client
follows the gradient of F_k(w) - <h_k, w> + alpha_k / 2 * ||w - w_t||^2, where h_k moves by -alpha_k
* (w_k - w_t) after its local steps. The server adds to the mean of the models the vector l, which
moves by the sum of all w_k - w_t over the number of all clients. l is the mean of all -h_k /
alpha_k.

As in the released code, clients are averaged equally and have alpha_k = alpha / (N p_k), where p_k
is the client's share of the samples of all N clients. At a fixed point the gradient of the loss
that is weighted by samples vanishes. With `aggregation.weights = equal` all alpha_k are alpha, as
in the paper.
Running statistics are averaged by samples, and have no part in h_k and l. If an upload is lost, h_k
stays as it was.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Message
from fedmpi.methods import fedavg
from fedmpi.training.train import Trainer


class Config(config.Method):
    pools: ClassVar[bool] = False
    optimizes: ClassVar[bool] = False
    adds: ClassVar[bool] = False
    keeps_state: ClassVar[bool] = True
    feedbacks: ClassVar[tuple[str, ...]] = ("none", "classic")

    alpha: float = Field(0.1, gt=0, le=config.LARGEST)
    """Strength of the regularization towards the global model, of a client with the mean number of
    samples."""

    def problems(self, settings: Settings) -> list[str]:
        """Refuses a second proximal term."""
        found = super().problems(settings)
        if settings.proximal:
            found.append(
                f"proximal = {settings.proximal}: wanted 0 beside method.name = 'feddyn', whose "
                "alpha is the weight of such a term"
            )
        return found


class Server(fedavg.Server):
    """The server's half.

    Attributes:
        moved: l, the mean over all clients of -h_k / alpha_k, [n].
        statistics: sum of the round's updates of running statistics, by samples.
        samples: sum of their weights.
    """

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.moved = torch.zeros_like(self.w)
        self.statistics = torch.zeros_like(self.w[self.stat_positions])
        self.samples = 0.0

    def state(self) -> dict[str, Tensor]:
        """The model, and l."""
        return super().state() | {"moved": self.moved}

    def absorb(self, t: int, message: Message) -> None:
        """Adds one client's update: parameters with weight 1, running statistics by samples."""
        super().absorb(t, replace(message, weight=1.0))

    def add(
        self,
        t: int,
        client: int,
        blocks: Sequence[Block],
        update: Block,
        where: Tensor | None,
        weight: float,
    ) -> None:
        """Adds an update, and its running statistics by samples."""
        super().add(t, client, blocks, update, where, weight)
        samples = self.trainer.population.weight(t, client)
        statistics = sparse.values(update, self.w.device)[self.stat_positions]
        self.statistics.add_(statistics, alpha=samples)
        self.samples += samples

    def step(self, t: int) -> None:
        """Moves the model to the mean of the clients' models, plus l."""
        count = self.settings.clients - len(self.trainer.population.excluded)
        change = self.sum.total / count
        change[self.stat_positions] = 0
        self.moved += change
        mean = self.statistics / self.samples
        self.sum.total[self.stat_positions] = mean * self.sum.weight
        self.statistics.zero_()
        self.samples = 0.0
        super().step(t)
        self.w += self.moved


class Clients(fedavg.Clients):
    """The clients' half.

    Attributes:
        pulls: each client's h_k, [n], if it has trained.
        chunk: alpha_k and h_k of the clients that train, fetched once for all of their steps.
    """

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.pulls = trainer.provisional("pull", self.flat.size)
        self.chunk: dict[int, tuple[float, Tensor]] = {}

    def strength(self, client: int) -> float:
        """Returns the client's alpha_k."""
        population = self.trainer.population
        count = self.settings.clients - len(population.excluded)
        return self.method.alpha / (count * population.share(client))

    def pull(self, client: int) -> Tensor:
        """Returns the client's h_k, [n]."""
        if client in self.pulls:
            return self.pulls[client].to(self.start.device)
        return torch.zeros_like(self.start)

    def adjust(self, clients: Sequence[int], w: Tensor, g: Tensor) -> None:
        """Adds the gradient of -<h_k, w> + alpha_k / 2 * ||w - w_t||^2."""
        if self.trainer.at == 0 or not self.chunk.keys() >= set(clients):
            self.chunk = {client: (self.strength(client), self.pull(client)) for client in clients}
        for row, client in enumerate(clients):
            strength, pull = self.chunk[client]
            g[row].add_(w[row] - self.start, alpha=strength).sub_(pull)

    def upload(self, t: int, client: int, w: Tensor) -> list[Block]:
        """Sends the update; h_k moves by what the server hears of it."""
        blocks = super().upload(t, client, w)
        _, heard, where = self.heard(t, client, blocks)
        update = sparse.vector(heard, self.flat.size, w.device, where)
        update[self.stat_positions] = 0
        before = self.pull(client)
        self.pulls.put(client, before - self.strength(client) * update, before)
        return blocks
