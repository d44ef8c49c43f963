"""PowerSGD: clients send the updates of weight matrices as low-rank factors.

T. Vogels, S. P. Karimireddy, M. Jaggi, *PowerSGD: Practical Low-Rank Gradient Compression for
Distributed Optimization*, NeurIPS 2019, arXiv 1905.13727, algorithms 1 and 2: one step of subspace
iteration, started from the last round's factor (warm start), with error feedback. The weight of a
layer is a matrix with a row for each output. Biases and norms are sent exactly.

Reconstruction: clients are many and only some take part in a round, so that each has factors of its
own (the paper's workers share Q, by two reductions a step), and the server adds the products. A
client's first Q is drawn at random. The update of a whole round of local training is compressed.
Running statistics are sent exactly. Momentum comes after decompression: it is the server's
(`aggregation.server` = momentum), which moves the model by m = 0.9 m + update; the paper moves it
by update + m. A momentum of the local steps is another one, and may be used beside it.
Values of the paper: the settings of the released code (epfml/powersgd) for CIFAR-10, for a gradient
of one step a round.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedmpi import config
from fedmpi.config import Settings
from fedmpi.messages import sparse
from fedmpi.messages.codec import Block, Kind
from fedmpi.methods import fedavg
from fedmpi.networks.flat import Flat, Piece
from fedmpi.streams import Purpose, stream
from fedmpi.training import feedback
from fedmpi.training.train import Trainer


class Config(feedback.Config):
    keeps_state: ClassVar[bool] = True
    uploads: ClassVar[config.Uploads] = "codes"
    paper: ClassVar[Mapping[str, Any]] = {
        "feedback": "classic",
        "aggregation.server": "momentum",
        "aggregation.beta1": 0.9,
        "local_steps": 1,
        "batch": 128,
        "lr": 0.1,
    }

    rank: int = Field(2, ge=1, le=config.MOST)
    """Rank of the factors. A matrix that would not become smaller is sent unchanged."""


class Shapes:
    """The parameters that are sent as factors, and their layout.

    Attributes:
        matrices: piece, rows and columns of each parameter that is sent as factors.
        others: positions of all other parameters, int64.
        columns: total length of all second factors.
    """

    def __init__(self, flat: Flat, rank: int) -> None:
        self.matrices: list[tuple[Piece, int, int]] = []
        others = []
        for piece in flat.parameters:
            rows = piece.shape[0] if len(piece.shape) > 1 else 1
            columns = (piece.stop - piece.start) // rows
            if rank * (rows + columns) < rows * columns:
                self.matrices.append((piece, rows, columns))
            else:
                others.append(torch.arange(piece.start, piece.stop))
        self.rank = rank
        self.others = torch.cat([torch.empty(0, dtype=torch.int64), *others])
        self.columns = rank * sum(columns for _, _, columns in self.matrices)

    def factors(self, values: Tensor) -> Iterator[tuple[Piece, Tensor, Tensor]]:
        """Yields each matrix with its factors, P [rows, rank] and Q [columns, rank], as views."""
        start = 0
        for piece, rows, columns in self.matrices:
            middle, stop = start + self.rank * rows, start + self.rank * (rows + columns)
            yield (
                piece,
                values[start:middle].view(rows, self.rank),
                values[middle:stop].view(columns, self.rank),
            )
            start = stop

    @property
    def length(self) -> int:
        """Number of values that are sent."""
        return self.columns + self.rank * sum(r for _, r, _ in self.matrices) + len(self.others)

    def product(self, values: Tensor, size: int) -> Tensor:
        """Restores the update [size] from values [length]; it is zero for running statistics."""
        update = torch.zeros(size, device=values.device)
        for piece, p, q in self.factors(values):
            update[piece.start : piece.stop] = (p @ q.T).reshape(-1)
        update[self.others.to(values.device)] = values[self.length - len(self.others) :]
        return update


class Factors(fedavg.Half):
    """Both sides know the shapes.

    Attributes:
        shapes: of the parameters that are sent as factors.
    """

    method: Config

    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.shapes = Shapes(self.flat, self.method.rank)

    def decode_update(self, t: int, client: int, blocks: Sequence[Block]) -> Block:
        """Returns the update that the factors and the other values make up."""
        values = sparse.vector(blocks[0], self.shapes.length, self.trainer.device)
        return sparse.block(Kind.GRADIENT, self.shapes.product(values, self.flat.size))


class Server(Factors, fedavg.Server):
    pass


class Clients(Factors, fedavg.Clients):
    def __init__(self, settings: Settings, trainer: Trainer) -> None:
        super().__init__(settings, trainer)
        self.bases = trainer.stores.add("factors", self.shapes.columns)

    def base(self, client: int) -> Tensor:
        """Returns the client's second factors of its last round, or random ones: [columns]."""
        if client in self.bases:
            return self.bases[client].to(self.start.device)
        random = stream(self.settings.seed, Purpose.SKETCH, client)
        drawn = random.standard_normal(self.shapes.columns, dtype="f4")
        return torch.from_numpy(drawn).to(self.start.device)

    def encode_update(self, t: int, client: int, update: Tensor) -> list[Block]:
        """Sends the factors and all other parameters."""
        values = torch.zeros(self.shapes.length, device=update.device)
        bases = self.base(client).split(
            [self.method.rank * columns for _, _, columns in self.shapes.matrices]
        )
        for (piece, p, q), base in zip(self.shapes.factors(values), bases, strict=True):
            matrix = update[piece.start : piece.stop].view(len(p), len(q))
            p.copy_(torch.linalg.qr(matrix @ base.view(q.shape)).Q)
            torch.matmul(matrix.T, p, out=q)
        values[self.shapes.length - len(self.shapes.others) :] = update[self.shapes.others]
        factors = self.shapes.factors(values)
        self.bases[client] = torch.cat([values[:0], *(q.reshape(-1) for _, _, q in factors)])
        return [sparse.block(Kind.GRADIENT, values)]
