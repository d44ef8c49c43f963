"""RandTopk: of each sample's activations only a random choice of mostly large ones crosses the cut.

F. Zheng, C. Chen, L. Lyu, B. Yao, *Reducing Communication for Split Learning by Randomized Top-k
Sparsification*, IJCAI 2023, arXiv 2305.18469. Activations that are not sent count as zero.
Gradients are sent back for the activations that were sent, so that their positions are known. With
`alpha` 0 this is plain top-k, with `sparsity` 0 SplitFed. `select.random_tops` draws the positions.

Differs from the paper: there are many clients, as in SplitFed; positions are sent as a list or a
bitmap, whichever is shorter.

With `evaluate.link = link` accuracy is measured with the k largest activations of a sample, as in
the authors' code; by default it is measured on the whole network, as for all methods here.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from fedmpi.config import Settings
from fedmpi.messages import select, sparse
from fedmpi.messages.codec import Block
from fedmpi.messages.counts import keep_round
from fedmpi.methods import splitfed
from fedmpi.split import links
from fedmpi.split.cuts import Crossing
from fedmpi.streams import Purpose


class Config(splitfed.Config):
    sparsity: float = Field(0.9, ge=0, lt=1)
    """Share of a sample's activations that do not cross the cut. At least one value does. 0 is
    SplitFed."""
    alpha: float = Field(0.1, ge=0, lt=1)
    """Probability of all values outside the k largest together, in each random draw. 0 is plain
    top-k."""

    def idle(self, settings: Settings) -> dict[str, str]:
        """Names the settings that have no effect, and what would give them one."""
        found = super().idle(settings)
        if self.sparsity == 0:
            found["alpha"] = "method.sparsity above 0, found 0, beside which all values go"
        return found

    @property
    def has_link(self) -> bool:
        """Whether activations are left out."""
        return self.sparsity > 0


class Link(links.Link[tuple[int, Tensor | None]]):
    """The link on both sides; its memory is the batch's number of values and the positions sent.

    The positions are None if all values are sent.
    """

    method: Config

    def sent(self, crossing: Crossing, x: Tensor) -> tuple[list[Block], tuple[int, Tensor | None]]:
        """Sends the chosen activations and their positions."""
        count, where = keep_round(x.shape[1], 1 - self.method.sparsity), None
        if count < x.shape[1]:
            random = self.random(Purpose.CHOICE, crossing)
            where = select.random_tops(x, count, self.method.alpha, random)
        values = x.reshape(-1) if where is None else x.reshape(-1)[where]
        return [sparse.block(crossing.kind, values, x.numel(), where)], (x.numel(), where)

    def judged(self, cut: int, x: Tensor) -> Tensor:
        """Returns the k largest activations of each sample, with zeros for the others."""
        count = keep_round(x.shape[1], 1 - self.method.sparsity)
        return torch.where(select.largest(x.abs(), count), x, 0)

    def arrived(
        self, crossing: Crossing, blocks: Sequence[Block]
    ) -> tuple[Tensor, tuple[int, Tensor | None]]:
        """Restores the activations, with zeros where none was sent."""
        (block,), device = blocks, self.trainer.device
        where = None if block.indices is None else sparse.indices(block, device)
        return sparse.vector(block, block.size, device), (block.size, where)

    def answered(
        self, crossing: Crossing, g: Tensor, memory: tuple[int, Tensor | None]
    ) -> list[Block]:
        """Sends the gradients of the activations that were received."""
        _, where = memory
        values = g.reshape(-1) if where is None else g.reshape(-1)[where]
        return [sparse.block(crossing.kind, values, g.numel())]

    def returned(
        self, crossing: Crossing, blocks: Sequence[Block], memory: tuple[int, Tensor | None]
    ) -> Tensor:
        """Restores the gradients, with zeros for activations that were not sent."""
        size, where = memory
        return sparse.vector(blocks[0], size, self.trainer.device, where)


class Server(Link, splitfed.Server):
    """The server's half."""

    method: Config


class Clients(Link, splitfed.Clients):
    """The clients' half."""

    method: Config
