"""The reference that everyone writes: client after client, in eager mode, with data loaders."""

import copy
from collections.abc import Sequence
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset, TensorDataset

from fedmpi.engine import Engine


class Textbook:
    """FedAvg's clients and server as a tutorial has them: modules, state dicts, optimisers.

    It shares with the engine only the initial parameters, the samples and their order.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.settings = engine, engine.settings
        self.model: nn.Module = copy.deepcopy(engine.flat.stages).to(engine.trainer.device)
        self.samples = TensorDataset(engine.trainer.feed.x, engine.trainer.feed.y)
        self.state = copy.deepcopy(self.model.state_dict())

    def train(self, t: int, client: int) -> dict[str, Tensor]:
        """One client's local training; returns a copy of its state."""
        settings = self.settings
        self.model.load_state_dict(self.state)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=settings.lr)
        picks = self.engine.trainer.feed.picks(t, client)
        order = torch.cat([pick.positions for pick in picks]).tolist()
        for x, y in DataLoader(Subset(self.samples, order), batch_size=settings.batch):
            optimizer.zero_grad()
            loss = cross_entropy(self.model(x), y)
            loss.backward()
            optimizer.step()
        return copy.deepcopy(self.model.state_dict())

    def round(self, t: int, clients: Sequence[int]) -> float:
        """A whole round; returns its seconds."""
        start = perf_counter()
        states = [self.train(t, client) for client in clients]
        sizes = [len(self.engine.population.shards[client]) for client in clients]
        for name in self.state:
            weighted = [size * state[name] for size, state in zip(sizes, states, strict=True)]
            self.state[name] = torch.stack(weighted).sum(0) / sum(sizes)
        return perf_counter() - start

    def vector(self) -> Tensor:
        """The global model in the order of the flat vector, [n]."""
        return torch.cat([value.reshape(-1) for value in self.state.values()])
