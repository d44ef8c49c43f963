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

from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block
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
        """See `config.Method.idle`."""
        found = super().idle(settings)
        if self.sparsity == 0:
            found["alpha"] = "method.sparsity above 0, found 0, beside which all values go"
        return found


class Link(links.Link[tuple[int, Tensor | None]]):
    """Both sides; they remember a batch's values, and positions of those that went, if not all."""

    method: Config

    def sent(self, crossing: Crossing, x: Tensor) -> tuple[list[Block], tuple[int, Tensor | None]]:
        """Values and positions."""
        count, where = sparse.kept(x.shape[1], self.method.sparsity), None
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


class Clients(Link, splitfed.Clients):
    """The clients' half."""

    method: Config
