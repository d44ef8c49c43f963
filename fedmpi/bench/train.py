"""Local training: milliseconds a client and step, against the textbook loop and the bare step.

The bare step is forward and `autograd.grad` on one resident batch, nothing else: a floor that no
training can be under. The textbook loop (see `textbook`) is what most codes do. All three run in
one process, whose memory is kept as in a run.
"""

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter

import torch
from torch.nn.functional import cross_entropy

from fedmpi import config, memory
from fedmpi.bench import Result, compare
from fedmpi.bench.textbook import Textbook
from fedmpi.engine import Engine

MODELS = {
    "logistic": ({"name": "mlp", "hidden": []}, (1, 28, 28)),
    "mlp": ({"name": "mlp"}, (1, 28, 28)),
    "cnn": ({"name": "cnn"}, (1, 28, 28)),
    "resnet20": ({"name": "resnet", "depth": 20}, (3, 32, 32)),
    "resnet18": ({"name": "resnet", "depth": 18, "groups": 32}, (3, 32, 32)),
}
"""Names of the benchmark's models: the settings of each, and the shape of a sample."""
STEPS = 40
"""Least steps in a turn, so that a turn takes long enough to be timed."""
SAMPLES = {"logistic": 32, "mlp": 32, "cnn": 128, "resnet20": 64, "resnet18": 32}
"""Samples of a client: few where a step is short, as in cross-device studies."""


def cases(
    models: tuple[str, ...], batches: tuple[int, ...], repeats: int
) -> Iterator[Callable[[], Result]]:
    """One case for each model and batch size."""
    for model in models:
        for batch in batches:
            yield partial(measure, model, batch, repeats)


def engine_for(model: str, batch: int, clients: int) -> Engine:
    """An engine on synthetic samples, of equal numbers for all clients."""
    table, shape = MODELS[model]
    data = {"name": "synthetic", "shape": list(shape), "test_samples": 10}
    data["samples"] = clients * SAMPLES[model]
    tree = {"clients": clients, "batch": batch, "epochs": 1, "validation": 0.0, "lr": 0.05}
    return Engine(config.load(tree | {"data": data, "model": table}))


def measure(model: str, batch: int, repeats: int) -> Result:
    """One case: some clients' local training, ours and the references in turns."""
    memory.keep()
    engine = engine_for(model, batch, clients=2)
    textbook, trainer = Textbook(engine), engine.trainer
    start, adjust = engine.flat.initial, engine.clients.adjust
    steps = [engine.population.steps(client) for client in range(2)]
    for client in range(2):
        ours = trainer.train(0, (client,), start, adjust)[0].clone()
        state = textbook.train(0, client)
        theirs = torch.cat([value.reshape(-1) for value in state.values()])
        if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5):
            raise AssertionError(f"{model}: our weights are not those of the textbook's loop")

    rounds = max(1, STEPS // sum(steps))

    def ours_turn() -> float:
        began = perf_counter()
        for _ in range(rounds):
            for client in range(2):
                trainer.train(0, (client,), start, adjust)
        return perf_counter() - began

    def textbook_turn() -> float:
        began = perf_counter()
        for _ in range(rounds):
            for client in range(2):
                textbook.train(0, client)
        return perf_counter() - began

    x, y = trainer.feed.x[:batch], trainer.feed.y[:batch]
    network = engine.flat.network(start.clone())
    parameters = list(network.parameters())

    def bare_turn() -> float:
        began = perf_counter()
        for _ in range(rounds * sum(steps)):
            torch.autograd.grad(cross_entropy(network(x), y), parameters)
        return perf_counter() - began

    turns = {"ours": ours_turn, "textbook": textbook_turn, "bare": bare_turn}
    case = {"model": model, "parameters": engine.flat.count, "batch": batch, "rows": 1}
    return compare("train", case, turns, repeats, unit=rounds * sum(steps))
