"""RandTopk: of each sample's activations a few cross the cut, nearly the largest.

F. Zheng, C. Chen, L. Lyu, B. Yao, *Reducing Communication for Split Learning by Randomized Top-k
Sparsification*, IJCAI 2023, arXiv 2305.18469. The rest counts as zero; gradients come back where
activations went, so that their positions are known. With `alpha` 0 it is top-k alone; with
`sparsity` 0 SplitFed. For the choice see `sparse.random_tops`.

Differs from the paper: there are many clients, as in SplitFed; positions travel as a list or a
bitmap, whichever is shorter.
Differs from the code: what is judged is the network itself, through whose cut all values go, as
for all methods here; in the code the k largest alone do, without chance.
"""

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from fedmpi.config import ConfigError, Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block
from fedmpi.messages.counts import keep_round
from fedmpi.methods import splitfed
from fedmpi.split import links
from fedmpi.split.cuts import Crossing
from fedmpi.streams import Purpose
from fedmpi.training.train import Trainer


class Config(splitfed.Config):
    sparsity: float = Field(0.9, ge=0, lt=1)
    """Share of a sample's values that do not cross the cut; at least one does."""
    alpha: float = Field(0.1, ge=0, lt=1)
    """Weight of all values but the k largest together, when each of k is drawn."""


class Link(links.Link[tuple[int, Tensor | None]]):
    """Both sides; they remember a batch's values, and positions of those that went, if not all."""

    method: Config

    def sent(self, crossing: Crossing, x: Tensor) -> tuple[list[Block], tuple[int, Tensor | None]]:
        """Values and positions."""
        count, where = keep_round(x.shape[1], 1 - self.method.sparsity), None
        if count < x.shape[1]:
            random = self.random(Purpose.CHOICE, crossing)
            where = sparse.random_tops(x, count, self.method.alpha, random)
        values = x.reshape(-1) if where is None else x.reshape(-1)[where]
        return [sparse.block(crossing.kind, values, x.numel(), where)], (x.numel(), where)

    def arrived(
        self, crossing: Crossing, blocks: Sequence[Block]
    ) -> tuple[Tensor, tuple[int, Tensor | None]]:
        """Values, and zeros where none came."""
        (block,), device = blocks, self.trainer.device
        where = None if block.indices is None else sparse.indices(block, device)
        return sparse.vector(block, block.size, device), (block.size, where)

    def answered(
        self, crossing: Crossing, g: Tensor, memory: tuple[int, Tensor | None]
    ) -> list[Block]:
        """Gradients by what came."""
        _, where = memory
        values = g.reshape(-1) if where is None else g.reshape(-1)[where]
        return [sparse.block(crossing.kind, values, g.numel())]

    def returned(
        self, crossing: Crossing, blocks: Sequence[Block], memory: tuple[int, Tensor | None]
    ) -> Tensor:
        """Gradients, and zeros by what did not go."""
        size, where = memory
        return sparse.vector(blocks[0], size, self.trainer.device, where)


class Server(Link, splitfed.Server):
    """The server's half."""

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        if self.method.sparsity == 0 and self.method.alpha != Config.model_fields["alpha"].default:
            raise ConfigError(
                f"method.alpha = {self.method.alpha}: wanted method.sparsity above 0, found 0, "
                "beside which all values go"
            )


class Clients(Link, splitfed.Clients):
    """The clients' half."""

    method: Config
