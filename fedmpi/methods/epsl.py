"""EPSL: one back learns from all clients' batches at once, from gradients partly aggregated.

Z. Lin, G. Zhu, Y. Deng, X. Chen, Y. Gao, K. Huang, Y. Fang, *Efficient Parallel Split Learning over
Resource-constrained Wireless Edge Networks*, IEEE TMC 2024, arXiv 2303.15991. In each step clients
run their fronts in parallel, and the server takes one step of its only back on the loss sum_k
lambda_k L_k, where L_k is the mean loss of client k's batch and lambda_k its share in the clients'
samples (equal with `aggregation.weights = equal`). With `aggregated` 0 this is parallel split
learning (PSL): gradients at the cut are those of each client's own L_k.

With a share phi above 0, gradients at the network's output are aggregated over the clients before
they are propagated back: those of the first samples of each batch, phi of the smallest batch,
rounded up. The j-th of them becomes sum_k lambda_k z_kj, and one sample is propagated back instead
of one a client. All clients get the same gradients at the cut for these samples.

Differs from the paper: fronts are averaged after each round, as in SplitFed, so that there is a
global model. Aggregated gradients are not broadcast; each client is sent a copy, so that bytes are
those of PSL. `server_flops` are those of PSL, too.
Reconstruction: an aggregated gradient is propagated back through the back at the mean, by lambda,
of the activations that belong to it. They pass forward beside the clients' batches. Normalization
layers of the back see all of them as one batch.
"""

from collections.abc import Iterator
from math import ceil
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Kind, Message
from fedmpi.methods import splitfed
from fedmpi.methods.splitfed import Clients
from fedmpi.split.cuts import Cut
from fedmpi.split.lockstep import Lockstep
from fedmpi.split.sides import Said

__all__ = ["Clients", "Config", "Server"]


class Config(Cut):
    in_halves: ClassVar[bool] = False
    pools: ClassVar[bool] = False
    optimizes: ClassVar[bool] = False

    aggregated: float = Field(0.5, ge=0, le=1)
    """Phi: share of a batch whose gradients are aggregated over the clients at the network's
    output. 0 is parallel split learning."""

    def width(self, capacity: int, clients: int) -> int:
        """Returns all clients: the server learns from their batches at once."""
        return clients

    def idle(self, settings: Settings) -> dict[str, str]:
        """Names the settings that have no effect, and what would give them one."""
        return super().idle(settings) | {"tail": "another method: here the server has the labels"}


class Server(splitfed.Server):
    """SplitFed's server with one back, which takes one step for all clients."""

    method: Config

    def groups(self, backs: Lockstep, there: set[int]) -> Iterator[list[int]]:
        """Yields all clients with a step left as one group."""
        yield backs.busy()

    def step_last(self, backs: Lockstep, told: Said) -> list[Message]:
        """Takes a step on all clients' batches: activations and labels in, gradients out."""
        clients, population = list(told), self.trainer.population
        ys = [sparse.values(blocks[-1], self.trainer.device) for blocks in told.values()]
        xs = self.inputs(0, backs, {client: blocks[:-1] for client, blocks in told.items()})
        weights = torch.tensor([population.weight(backs.t, client) for client in clients])
        shares = (weights / weights.sum()).to(self.trainer.device)
        sizes = [len(x) for x in xs]
        count = ceil(self.method.aggregated * min(sizes))
        mean = sum(share * x.detach()[:count] for share, x in zip(shares, xs, strict=True))
        x = torch.cat([*(x.detach() for x in xs), mean]).requires_grad_(self.learning[0])
        (output,) = backs.rows.forward([x], self.draw(told)[:1])
        losses, cotangent = self.aggregate(output, ys, shares, count)
        found = backs.rows.backward([cotangent])
        backs.step(clients[:1])
        self.trainer.note(clients, losses, 1)
        if not found:
            return []
        (g,) = found
        *own, common = g.split([*sizes, count])
        own = [part[count:] / share for part, share in zip(own, shares, strict=True)]
        gradients = [torch.cat([common, part]) for part in own]
        return self.say(Kind.GRADIENT, 0, backs, clients, gradients)

    def aggregate(
        self, output: Tensor, ys: list[Tensor], shares: Tensor, count: int
    ) -> tuple[Tensor, Tensor]:
        """Returns clients' losses [k], and the gradient at the outputs [N + count, classes].

        Args:
            output: of all clients' samples, and of `count` mean samples behind them.
            ys: labels of each client's batch.
            shares: lambda of each client, [k].
            count: number of samples of each client whose gradients are aggregated.
        """
        given, sizes = output.detach().requires_grad_(), [len(y) for y in ys]
        each = zip(given.split([*sizes, count]), ys, strict=False)
        losses = torch.stack([cross_entropy(part, y) for part, y in each])
        (z,) = torch.autograd.grad((losses * shares).sum(), given)
        *own, common = z.split([*sizes, count])
        for part in own:
            common += part[:count]
            part[:count] = 0
        return losses.detach(), z
