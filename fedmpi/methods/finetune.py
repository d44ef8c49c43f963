"""Fine-tuning: FedAvg, of whose model each client makes one of its own by training on.

G. Cheng, K. Chadha, J. Duchi, *Fine-tuning is Fine in Federated Learning*, 2021, arXiv 2108.07313;
it is FedAvg-FT in the tables of R. Dai, L. Shen, F. He, X. Tian, D. Tao, *DisPFL: Towards
Communication-Efficient Personalized Federated Learning via Decentralized Sparse Training*, ICML
2022, arXiv 2206.00187.

`personal` is the accuracy of the global model that a client was sent, after `epochs` passes over
the client's samples. FedAvg's own `personal` is that of its local model, which is the same after
the steps that serve the average; with as many passes the two are one model, for a client's orders
in a round are the same. All else is FedAvg's, bit for bit: fine-tuned models are made where
accuracies are due, off the clock, and are gone once they are judged. No byte, second, FLOP or loss
of theirs is counted; a client would pay once, for the model that it keeps.

Differs from the code: that of DisPFL fine-tunes the last average, at every client, at the rate of
the first round. Here those who take part fine-tune what they have just been sent, at the rate of
the round, so that nothing travels besides; the last average is not fine-tuned.
"""

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.config import Settings
from fedmpi.methods import fedavg
from fedmpi.methods.fedavg import Server
from fedmpi.training.train import Trainer

__all__ = ["Clients", "Config", "Server"]


class Config(config.Method):
    epochs: int = Field(5, ge=1, le=config.MOST)
    """Epochs of a client's fine-tuning. The default is that of the authors' code."""


class Clients(fedavg.Clients):
    """Attributes: `tuned`, the fine-tuned models of the chunk at work; none before it is judged."""

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.round, self.chunk = 0, tuple[int, ...]()
        self.tuned: dict[int, Tensor] = {}

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Local training."""
        self.round, self.chunk, self.tuned = t, tuple(clients), {}
        found = super().work(t, clients)
        # The first of a chunk is judged before the others upload, and tuning takes the same rows.
        return found if len(clients) == 1 else found.clone()

    def personal(self, client: int, w: Tensor) -> Tensor | None:
        """The fine-tuned model; those of a chunk are made together."""
        if not self.tuned:
            models = self.trainer.tune(self.round, self.chunk, self.start, self.method.epochs)
            self.tuned = dict(zip(self.chunk, models, strict=True))
        return self.tuned[client]
