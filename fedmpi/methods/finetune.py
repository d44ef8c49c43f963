"""Fine-tuning: FedAvg whose global model each client personalizes by further local training.

G. Cheng, K. Chadha, J. Duchi, *Fine-tuning is Fine in Federated Learning*, 2021, arXiv 2108.07313;
called FedAvg-FT in the tables of R. Dai, L. Shen, F. He, X. Tian, D. Tao, *DisPFL: Towards
Communication-Efficient Personalized Federated Learning via Decentralized Sparse Training*, ICML
2022, arXiv 2206.00187.

`personal` is the accuracy of the global model that a client received, after `epochs` passes over
the client's samples. FedAvg's `personal` is that of its local model after the local steps. With the
same number of passes both are the same model, because a client visits its samples in the same
order. Everything else is FedAvg's, bit for bit: fine-tuned models are made in rounds that are
evaluated, off the clock, and deleted after evaluation. None of their bytes, seconds, FLOPs or
losses are counted; a client would fine-tune once, for the model that it keeps.

Differs from the code: DisPFL's code fine-tunes the last average, at every client, at the rate of
the first round. Here the clients of a round fine-tune the model that they have just received, at
the rate of that round, so that no additional model is sent. The last average is not fine-tuned.
"""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.config import Settings
from fedmpi.methods import fedavg
from fedmpi.methods.fedavg import Server
from fedmpi.training.train import Trainer

__all__ = ["Clients", "Config", "Server"]


class Config(config.Method):
    controls: ClassVar[bool] = True

    epochs: int = Field(5, ge=1, le=config.MOST)
    """Epochs of a client's fine-tuning. The default is that of the authors' code."""


class Clients(fedavg.Clients):
    """FedAvg's clients, which also fine-tune the model that they received.

    Attributes:
        tuned: fine-tuned models by client, of the chunk at work; empty until one is evaluated.
    """

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.round, self.chunk = 0, tuple[int, ...]()
        self.tuned: dict[int, Tensor] = {}

    def work(self, t: int, clients: Sequence[int]) -> Tensor:
        """Trains a chunk of clients locally, as FedAvg does, and notes the chunk for `personal`."""
        self.round, self.chunk, self.tuned = t, tuple(clients), {}
        found = super().work(t, clients)
        # Tuning for the first client overwrites the rows before the others have uploaded.
        return found if len(clients) == 1 else found.clone()

    def personal(self, client: int, w: Tensor) -> Tensor | None:
        """Returns the client's fine-tuned model; those of a chunk are made together."""
        if not self.tuned:
            models = self.trainer.tune(self.round, self.chunk, self.start, self.method.epochs)
            self.tuned = dict(zip(self.chunk, models, strict=True))
        return self.tuned[client]
