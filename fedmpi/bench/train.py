"""Local training: milliseconds a client and step, against the textbook loop and the bare step.

The bare step is forward and `autograd.grad` on one resident batch, nothing else: a floor that no
training by autograd can be under. The textbook loop (see `textbook`) is what most codes do. Where
clients train in another way, the same clients one by one, by autograd, are the reference `eager`.
All run in one process, whose memory is kept as in a run.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter

import click
import torch
from torch.nn.functional import cross_entropy

from fedmpi import loading
from fedmpi.bench import JSON, REPEATS, Result, chosen, compare, run
from fedmpi.bench.textbook import Textbook
from fedmpi.config import Tree
from fedmpi.engine import Engine
from fedmpi.runs import memory
from fedmpi.training.descent import descent
from fedmpi.training.rows import OneByOne
from fedmpi.training.train import Trainer

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
    models: tuple[str, ...],
    batches: tuple[int, ...],
    rows: tuple[int, ...],
    device: str,
    repeats: int,
) -> Iterator[Callable[[], Result]]:
    """One case for each model, batch size and number of rows."""
    for model in models:
        for batch in batches:
            for count in rows:
                yield partial(measure, model, batch, count, device, repeats)


def is_there(device: str) -> bool:
    """Whether this machine has such a device."""
    return device == "cpu" or torch.cuda.is_available()


def engine_for(model: str, batch: int, rows: int, device: str) -> Engine:
    """An engine on synthetic samples, of equal numbers for all clients: a chunk, or two clients."""
    table, shape = MODELS[model]
    clients = max(2, rows)
    data = {"name": "synthetic", "shape": list(shape), "test_samples": 10}
    data["samples"] = clients * SAMPLES[model]
    tree: Tree = {"clients": clients, "batch": batch, "epochs": 1, "validation": 0.0, "lr": 0.05}
    tree |= {"rows": rows, "device": device, "data": data, "model": table}
    return Engine(loading.load(tree))


def measure(model: str, batch: int, rows: int, device: str, repeats: int) -> Result:
    """One case: some clients' local training, ours and the references in turns."""
    memory.keep_freed_memory()
    engine = engine_for(model, batch, rows, device)
    trainer, textbook, feed = engine.trainer, Textbook(engine), engine.trainer.feed
    start = engine.flat.initial.to(trainer.device)
    everyone = range(engine.settings.clients)
    chunks = list(trainer.chunks(0, everyone))
    for chunk in chunks:
        for client, ours in zip(chunk, trainer.train(0, chunk, start), strict=True):
            state = textbook.train(0, client)
            theirs = torch.cat([value.reshape(-1) for value in state.values()])
            if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5):
                raise AssertionError(f"{model}: our weights are not those of the textbook's loop")

    steps = sum(engine.population.steps(0, client) for chunk in chunks for client in chunk)
    rounds = max(1, STEPS // steps)
    x, y = feed.x[:batch], feed.y[:batch]
    network = engine.flat.network(start.clone())
    parameters = list(network.parameters())

    def ours_once() -> None:
        feed.draw(0, everyone)
        for chunk in chunks:
            trainer.train(0, chunk, start)

    def textbook_once() -> None:
        for client in everyone:
            textbook.train(0, client)

    def bare_once() -> None:
        for _ in range(steps):
            torch.autograd.grad(cross_entropy(network(x), y), parameters)

    turns: dict[str, Callable[[], object]] = {
        "ours": ours_once,
        "textbook": textbook_once,
        "bare": bare_once,
    }
    if type(trainer.rows) is not OneByOne:
        single = one_by_one(engine)
        turns["eager"] = lambda: [
            single.train(0, (client,), start) for chunk in chunks for client in chunk
        ]
    case = {"model": model, "parameters": engine.flat.count, "batch": batch, "rows": rows}
    timed = {name: partial(timing, once, rounds, trainer.device) for name, once in turns.items()}
    return compare("train", case | {"device": device}, timed, repeats, unit=rounds * steps)


def one_by_one(engine: Engine) -> Trainer:
    """A trainer like the engine's whose clients train one after the other, in eager mode."""
    found, settings = copy.copy(engine.trainer), engine.settings
    found.descent = descent(settings, OneByOne(engine.flat, 1, found.device, settings))
    found.begin(0)
    return found


def timing(once: Callable[[], object], rounds: int, device: torch.device) -> float:
    """Seconds that it takes `rounds` times, until the device is done."""
    began = perf_counter()
    for _ in range(rounds):
        once()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - began


@click.command()
@click.option("--model", "models", multiple=True, help="Only this model. Can be repeated.")
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    default=(10, 32),
    show_default=True,
    help="Batch size. Can be repeated.",
)
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1,),
    show_default=True,
    help="Number of clients that train together. Can be repeated.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Device for training.",
)
@REPEATS
@JSON
def command(
    models: tuple[str, ...],
    batches: tuple[int, ...],
    rows: tuple[int, ...],
    device: str,
    repeats: int,
    as_json: bool,
) -> None:
    """Measure the time of a local step.

    References are the textbook's training loop and the bare forward and backward pass. With
    --device cuda on a machine without a GPU it prints "no device" and succeeds.
    """
    chosen_models = chosen(models, MODELS)
    if not is_there(device):
        click.echo("no device: torch sees no GPU here")
        return
    run(cases(chosen_models, batches, rows, device, repeats), as_json)
