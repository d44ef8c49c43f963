"""FlexLoRA: the server averages the clients' low-rank products, not their factors.

J. Bai, D. Chen, B. Qian, L. Yao, Y. Li, *Federated Fine-tuning of Large Language Models under
Heterogeneous Tasks and Client Resources*, NeurIPS 2024, arXiv 2402.11505, section 3.

With LoRA (`model.lora`) client k has the factors A_k and B_k of each layer. The mean of the
products, M = sum of p_k B_k A_k, is not the product of the means. The server makes M, and its
singular value decomposition U S V^T gives the next factors: B = U S and A = V^T, of which the
largest values are kept, as many as the rank. Everything else is averaged. Messages are FedAvg's.
`lora_bias` of a result is how far the product of the means would have been from M, and `lora_lost`
how far the kept part is from M, both over the length of M.

Differs from the paper: all clients have the same rank.
Without products whose factors both train it is FedAvg.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fedmpi import config
from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block
from fedmpi.methods import fedavg
from fedmpi.methods.fedavg import Clients
from fedmpi.networks import adapters
from fedmpi.networks.flat import Piece
from fedmpi.training.train import Trainer

__all__ = ["Clients", "Config", "Server"]


class Config(config.Method):
    """FlexLoRA has no settings of its own; those of the products are in `model.lora`."""

    pools: ClassVar[bool] = False
    optimizes: ClassVar[bool] = False
    adds: ClassVar[bool] = False
    feedbacks: ClassVar[tuple[str, ...]] = ("none",)


class Server(fedavg.Server):
    """The server's half.

    Attributes:
        pairs: where the factors of each product lie: A [rank, inputs] and B [outputs, rank].
        products: weighted sums of the clients' products in a round, [outputs, inputs] each.
        begun: the model at the beginning of the round, [n].
        found: `lora_bias` and `lora_lost` of the round.
    """

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        pieces = {piece.name: piece for piece in self.flat.parameters}
        self.pairs: list[tuple[Piece, Piece]] = [
            (pieces[f"{name}.down.weight"], pieces[f"{name}.up.weight"])
            for name, module in self.flat.stages.named_modules()
            if isinstance(module, adapters.Lora) and f"{name}.down.weight" in pieces
        ]
        self.products = [
            torch.zeros(up.shape[0], down.shape[1], device=trainer.device)
            for down, up in self.pairs
        ]
        self.begun, self.found = self.w, dict[str, float]()

    def tell(self, t: int) -> list[Block]:
        """Keeps the model, from which the clients begin, and returns what is sent to all."""
        self.begun, self.found = self.w.clone() if self.pairs else self.w, {}
        return super().tell(t)

    def add(
        self,
        t: int,
        client: int,
        blocks: Sequence[Block],
        update: Block,
        where: Tensor | None,
        weight: float,
    ) -> None:
        """Adds a client's update, and the products of its factors."""
        super().add(t, client, blocks, update, where, weight)
        theirs = self.begun + sparse.vector(update, self.flat.size, self.w.device, where)
        for (down, up), total in zip(self.pairs, self.products, strict=True):
            total.addmm_(up.of(theirs), down.of(theirs), alpha=weight)

    def step(self, t: int) -> None:
        """Moves the model by the mean update, and the factors to those of the mean products."""
        weight, before = self.sum.weight, self.w.clone()
        super().step(t)
        after = self.begun + (self.w - before)  # the model is zero where its change is sent
        length = bias = lost = 0.0
        for (down, up), total in zip(self.pairs, self.products, strict=True):
            mean, apart = total / weight, up.of(after) @ down.of(after)
            length += float(mean.square().sum(dtype=torch.float64))
            bias += float((mean - apart).square().sum(dtype=torch.float64))
            lost += split(mean, down.of(after), up.of(after))
            for piece in (down, up):
                piece.of(self.w).copy_(piece.of(before) + piece.of(after) - piece.of(self.begun))
            total.zero_()
        if length:
            self.found = {"lora_bias": (bias / length) ** 0.5, "lora_lost": (lost / length) ** 0.5}

    def figures(self) -> Mapping[str, float]:
        """What averaging the factors would have cost, and what the rank cuts off."""
        return self.found


def split(product: Tensor, down: Tensor, up: Tensor) -> float:
    """Writes the factors of a product [outputs, inputs] into A [r, inputs] and B [outputs, r].

    A product of zeros leaves A as it is, so that both factors are never zero.

    Returns:
        The squared length of what the rank r cuts off.
    """
    if not product.any():
        up.zero_()
        return 0.0
    left, values, right = torch.linalg.svd(product, full_matrices=False)
    kept = min(len(values), len(down))
    up.zero_()
    up[:, :kept] = left[:, :kept] * values[:kept]
    down[:kept] = right[:kept]
    return float(values[kept:].square().sum(dtype=torch.float64))
