"""Seconds a sampled client and round, and memory, with ten to ten thousand logical clients.

Logistic regression on two ranks: rank 0 serves, rank 1 hosts all clients, of whom a tenth takes
part in each round. What a client costs should not depend on how many there are.

A client's work is one of the field's usual settings (FedProx's: 20 passes in batches of 10, here
over 32 samples), which makes 80 steps, some ten milliseconds. It must not be much less: a round has
a fixed cost of under a millisecond, whoever takes part, and of ten clients a single one bears it.

The crowds take turns, in processes of their own. A turn's time is the median of its rounds after
the first; the numbers of its steps and of those who took part are checked.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import click
import numpy as np

from fedmpi import loading
from fedmpi.bench import JSON, REPEATS, Result, apart, rank, weigh
from fedmpi.config import Tree
from fedmpi.runs import launch, memory
from fedmpi.turns import take_turns

RANKS = 2
SHARE = 0.1
"""Of the clients, sampled each round."""
SAMPLES, BATCH, EPOCHS = 32, 10, 20
CLIENT_ROUNDS, ROUNDS = 200, 2
"""Least number of sampled clients, summed over the rounds that count, and of such rounds."""
MIB = 2**20


def tree_of(clients: int, words: Sequence[str] = ()) -> Tree:
    """Returns the settings for so many clients, with `key=value` words on top.

    Accuracies are measured after the last round alone.
    """
    rounds = 1 + max(ROUNDS, -(-CLIENT_ROUNDS // sampled(clients)))
    data = {"name": "synthetic", "shape": [1, 28, 28], "test_samples": 10}
    tree: Tree = {
        "clients": clients,
        "participation": SHARE,
        "batch": BATCH,
        "epochs": EPOCHS,
        "lr": 0.01,
        "validation": 0.0,
        "rounds": rounds,
        "evaluate": {"every": rounds},
        "model": {"hidden": []},
        "data": data | {"samples": SAMPLES * clients},
    }
    loading.override(tree, tuple(words))
    return tree


def sampled(clients: int) -> int:
    """How many of the clients take part in a round."""
    return max(1, round(SHARE * clients))


def measure(
    crowds: tuple[int, ...], repeats: int, settings: Sequence[str] = ()
) -> Iterator[Result]:
    """Yields a result per crowd: seconds per sampled client and round, against other crowds."""
    launcher = launch.find()
    found: dict[int, list[dict[str, Any]]] = {clients: [] for clients in crowds}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"

        def turn(clients: int) -> float:
            words = [str(clients), str(out), *settings]
            apart("fedmpi.bench.scale", words, launcher, RANKS)
            found[clients].append(json.loads(out.read_text(encoding="utf-8")))
            return found[clients][-1]["seconds"]

        turns: dict[str, Callable[[], float]] = {
            str(clients): partial(turn, clients) for clients in crowds
        }
        seconds = take_turns(turns, repeats)
    for clients in crowds:
        others = [str(other) for other in crowds if other != clients]
        case: dict[str, Any] = {"clients": clients, "sampled": sampled(clients), "ranks": RANKS}
        case |= {"settings": " ".join(settings)} if settings else {}
        yield weigh("scale", case, seconds, str(clients), others, about(found[clients]))


def about(turns: list[dict[str, Any]]) -> dict[str, float]:
    """Setting up, and memory: of the process with its samples (float32), and of them alone."""
    server, host = (max(turn["peaks"][rank] for turn in turns) for rank in range(RANKS))
    return {
        "setup_s": median(turn["setup"] for turn in turns),
        "server_MiB": server / MIB,
        "host_MiB": host / MIB,
        "samples_MiB": turns[0]["samples"] / MIB,
        "model_MiB": turns[0]["model"] / MIB,
    }


def main(clients: int, out: Path, words: Sequence[str] = ()) -> None:
    """One crowd's turn, on these ranks: the root leaves what was found."""
    from fedmpi.engine import Engine

    job = rank()
    wire = job.wire
    began = perf_counter()
    settings = loading.load(tree_of(clients, words))
    engine = Engine(settings, wire.place)
    setup = perf_counter() - began
    # An agreement before the first round is nobody's training.
    outcomes = [outcome for outcome in engine.rounds(wire, job.clock) if outcome is not None]
    outcomes = [outcome for outcome in outcomes if outcome.tables["rounds"]["round"][0] >= 0]
    peaks = [int(peak[0]) for peak in wire.report(np.array([memory.peak()]))]
    if not wire.is_root:
        return
    wanted = settings.epochs * -(-SAMPLES // settings.batch)
    for outcome in outcomes:
        steps = outcome.tables["clients"]["steps"].tolist()
        if steps != [wanted] * sampled(clients) or not outcome.finite:
            raise AssertionError(f"{clients} clients: {len(steps)} took part, in steps {steps[:9]}")
    seconds = [float(outcome.tables["rounds"]["seconds"][0]) for outcome in outcomes]
    found = {
        "seconds": median(seconds[1:]) / sampled(clients),
        "setup": setup,
        "peaks": peaks,
        "samples": 4 * 28 * 28 * SAMPLES * clients,
        "model": 4 * engine.flat.size,
    }
    out.write_text(json.dumps(found), encoding="utf-8")


@click.command()
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--clients",
    "crowds",
    type=click.IntRange(min=1),
    multiple=True,
    default=(10, 100, 1_000, 10_000),
    show_default=True,
    help="Number of logical clients. Can be repeated.",
)
@REPEATS
@JSON
def command(words: tuple[str, ...], crowds: tuple[int, ...], repeats: int, as_json: bool) -> None:
    """Measure time per sampled client and memory, with few and with many logical clients.

    Settings (KEY=VALUE) replace those of the benchmark, such as method.name=ssfl and
    model.hidden=[2048,2048], to see the memory of a method.
    """
    loading.load(tree_of(crowds[0], words))
    for result in measure(crowds, repeats, words):
        result.say(as_json)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
