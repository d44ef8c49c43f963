"""Rounds of FedAvg by pfl-research, a reference of `bench round` if the package pfl is installed.

F. Granqvist, C. Song, A. Cahill, R. van Dalen, M. Pelikan, Y. S. Chan, X. Feng, N. Krishnaswami,
V. Jina, M. Chitnis, *pfl-research: Simulation Framework for Accelerating Research in Private
Federated Learning*, arXiv 2404.06430. Its workers each train some of the clients, add up their
updates, and all-reduce the sums by gloo; each worker then takes the server's step.
"""

import copy
import os
import socket
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import cycle
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedmpi.config import ConfigError
from fedmpi.engine import Engine
from fedmpi.messages.wire import Wire


def check() -> None:
    """Makes sure that there is such a package.

    Raises:
        ConfigError: if there is none.
    """
    if find_spec("pfl") is None:
        raise ConfigError(
            "--peer: wanted the package pfl, found none; pip install pfl, which leaves torch as it "
            "is"
        )


class Network(nn.Module):
    """A network with a loss, as pfl wants it."""

    def __init__(self, stages: nn.Module) -> None:
        super().__init__()
        self.stages = stages

    def forward(self, x: Tensor) -> Tensor:
        """The network's outputs."""
        found: Tensor = self.stages(x)
        return found

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross entropy of a batch."""
        return cross_entropy(self(x), y)

    def metrics(self, x: Tensor, y: Tensor, eval: bool = False) -> dict[str, Any]:
        """None: nothing is evaluated."""
        return {}


def join(wire: Wire) -> None:
    """Has workers of pfl, one a rank, meet at a port of rank 0; before pfl is first imported."""
    os.environ["PFL_PYTORCH_DEVICE"] = "cpu"
    if wire.size == 1:
        return
    port = np.zeros(1, np.int64)
    if wire.is_root:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port[0] = free.getsockname()[1]
    place = f"127.0.0.1:{wire.publish(port)[0]}"
    os.environ["PFL_WORKER_ADDRESSES"] = ",".join([place] * wire.size)
    os.environ["PFL_WORKER_RANK"] = str(wire.rank)


def simulate(engine: Engine, wire: Wire) -> tuple[list[float], Tensor]:
    """Runs all rounds of an engine's settings, on the ranks of a node.

    It shares with the engine only the initial parameters, the samples and their order.

    Returns:
        The seconds of each round, and the model in the order of the flat vector, [n].
    """
    join(wire)
    warnings.filterwarnings("ignore", category=FutureWarning, module="pfl")
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel

    settings, feed, ends = engine.settings, engine.trainer.feed, [perf_counter()]

    class Times(TrainingProcessCallback):  # type: ignore[misc]
        """Notes when each round has ended."""

        def after_central_iteration(
            self, aggregate_metrics: Any, model: Any, *, central_iteration: int
        ) -> tuple[bool, Any]:
            """Never ends the training."""
            ends.append(perf_counter())
            return False, type(aggregate_metrics)()

    def shard(client: int) -> Any:
        picks = feed.picks(len(ends) - 1, client)
        order = torch.cat([pick.positions for pick in picks])
        return Dataset([feed.x[order], feed.y[order]], user_id=str(client))

    network = Network(copy.deepcopy(engine.flat.stages))
    model = PyTorchModel(
        network,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
    )
    data = FederatedDataset(shard, cycle(range(settings.clients)).__next__)
    FederatedAveraging().run(
        NNAlgorithmParams(settings.rounds, settings.rounds + 1, settings.clients, None),
        SimulatedBackend(data, data, [WeightByDatapoints()]),
        model,
        NNTrainHyperParams(
            local_batch_size=settings.batch,
            local_num_epochs=settings.epochs,
            local_learning_rate=settings.lr,
        ),
        None,
        [Times()],
        send_metrics_to_platform=False,
    )
    values: Sequence[Tensor] = list(network.stages.state_dict().values())
    return np.diff(ends).tolist(), torch.cat([value.reshape(-1) for value in values])
