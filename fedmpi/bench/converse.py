"""Steps of split learning in halves, against the clients' work alone and the server's alone.

The same rounds of SplitFed run on ranks, of which one serves, with `exchange.pipeline` and without;
and on one rank alone, whose clock tells what the clients' steps take and what the server's part in
them takes. The larger of the two, the clients' shared among their ranks, is the bound: no pipeline
is faster, and without one a step takes both together. All have to end at the same model, bit for
bit, before times count. A side's time is the median of its rounds after the first, for a step.
The sides take turns, in processes of their own.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click

from fedmpi import loading
from fedmpi.bench import JSON, REPEATS, Result, apart, chosen, rank, run, weigh
from fedmpi.config import Tree
from fedmpi.engine import Engine
from fedmpi.messages.clock import Phase
from fedmpi.runs import launch
from fedmpi.turns import take_turns

LENET = {"clients": 8, "local_steps": 20, "model": {"name": "lenet"}, "cut": "conv1"}
RESNET = {"name": "resnet", "depth": 20}
WORKLOADS: dict[str, Tree] = {
    "lenet": LENET,
    "lenet-tail": LENET | {"tail": "head"},
    "resnet20": {"clients": 4, "local_steps": 4, "model": RESNET, "cut": "group2_block1"},
}
"""Clients, their steps, and a network cut where both sides have about as much to do."""
BATCH, ROUNDS = 32, 4


def cases(workloads: tuple[str, ...], ranks: int, repeats: int) -> Iterator[Callable[[], Result]]:
    """One case for each workload."""
    for workload in workloads:
        yield partial(measure, workload, ranks, repeats)


def tree_of(workload: str, pipeline: bool) -> Tree:
    """The settings of a workload; accuracies are measured after the last round alone."""
    tree = dict(WORKLOADS[workload])
    parts = {name: tree.pop(name) for name in ("cut", "tail") if name in tree}
    samples = tree["clients"] * tree["local_steps"] * BATCH
    data = {"name": "synthetic", "shape": [3, 32, 32], "samples": samples, "test_samples": 10}
    common: Tree = {"batch": BATCH, "rounds": ROUNDS, "evaluate": {"every": ROUNDS}, "lr": 0.01}
    common |= {"validation": 0.0, "data": data, "method": {"name": "splitfed"} | parts}
    common |= {"server_threads": 1}  # a core for each side, whatever there is
    return common | tree | {"exchange": {"pipeline": pipeline}}


def measure(workload: str, ranks: int, repeats: int) -> Result:
    """One workload on so many ranks, and on one."""
    launcher, alone = launch.find(), "alone"
    with tempfile.TemporaryDirectory() as folder:
        out, found = Path(folder) / "found.json", {}

        def turn(side: str) -> float:
            words = [workload, side, str(out)]
            apart("fedmpi.bench.converse", words, launcher, 1 if side == alone else ranks)
            found[side] = json.loads(out.read_text(encoding="utf-8"))
            if len({each["model"] for each in found.values()}) > 1:
                raise AssertionError(f"{workload}: {', '.join(found)} end at different models")
            return found[side]["step"]

        def bound() -> float:
            turn(alone)
            clients = found[alone]["clients"] / max(1, ranks - 1)
            return max(clients, found[alone]["server"])

        turns: dict[str, Callable[[], float]] = {
            "pipelined": partial(turn, "pipelined"),
            "bound": bound,
            "in turn": partial(turn, "in turn"),
        }
        seconds = take_turns(turns, repeats)
        also = {f"{side}_ms": 1e3 * found[alone][side] for side in ("clients", "server")}
    case: dict[str, Any] = {"workload": workload, "ranks": ranks}
    return weigh("converse", case, seconds, "pipelined", ["bound", "in turn"], also)


def main(workload: str, side: str, out: Path) -> None:
    """One side's turn on these ranks: leaves its seconds for a step, and its model's hash."""
    job = rank()
    engine = Engine(loading.load(tree_of(workload, side == "pipelined")), job.wire.place)
    outcomes = [outcome for outcome in engine.rounds(job.wire, job.clock) if outcome is not None]
    if not job.wire.is_root:
        return
    rounds = [outcome.tables for outcome in outcomes[1:]]
    steps = WORKLOADS[workload]["local_steps"]
    whole = [float(tables["rounds"]["seconds"][0]) for tables in rounds]
    phases = [tables["phases"]["seconds"][: len(Phase)] for tables in rounds]
    found = {
        "step": median(whole) / steps,
        "clients": median(each[Phase.TRAIN] for each in phases) / steps,
        "server": median(each[Phase.SERVE] for each in phases) / steps,
        "model": engine.model_sha256(),
    }
    out.write_text(json.dumps(found), encoding="utf-8")


@click.command()
@click.option("--workload", "workloads", multiple=True, help="Only this workload. Can be repeated.")
@click.option(
    "--ranks",
    type=click.IntRange(min=2),
    default=2,
    show_default=True,
    help="Number of MPI ranks.",
)
@REPEATS
@JSON
def command(workloads: tuple[str, ...], ranks: int, repeats: int, as_json: bool) -> None:
    """Measure the time of a step of split learning in two halves.

    References are the clients' work alone, the server's work alone, and both in turn.
    """
    run(cases(chosen(workloads, WORKLOADS), ranks, repeats), as_json)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
