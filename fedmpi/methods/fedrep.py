"""FedRep: each round a client trains its personal head first, and then the shared body below it.

L. Collins, H. Hassani, A. Mokhtari, S. Shakkottai, *Exploiting Shared Representations for
Personalized Federated Learning*, ICML 2021, arXiv 2102.07078, algorithm 1.

Differs from the paper: clients are averaged by samples; the steps of head and body are shares of
the local steps that the settings name. The part that is not trained rests: it follows no gradient,
decay or momentum, and the optimizer begins anew with the body.
Values of the paper: ten epochs of the head, and then one of the body.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedmpi.methods import fedper
from fedmpi.methods.fedper import Server

__all__ = ["Clients", "Config", "Server"]


class Config(fedper.Config):
    controls: ClassVar[bool] = False
    paper: ClassVar[Mapping[str, Any]] = {"epochs": 11, "method.head": 10 / 11}

    head: float = Field(0.5, ge=0, le=1)
    """Share of a client's local steps that train the head. The other steps train the body."""


class Clients(fedper.Clients):
    method: Config

    def rests(self, clients: Sequence[int], step: int) -> Tensor:
        """Returns the part that is not trained in this step: bool [k, n]."""
        steps, share = self.trainer.planned, self.method.head
        heads = [step < round(share * steps[client]) for client in clients]
        return torch.stack([~self.private if head else self.private for head in heads])
