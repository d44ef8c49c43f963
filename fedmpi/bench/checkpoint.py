"""A round before which a checkpoint is written, against the same round without one.

A round's time is that of a clock on the wall, from one outcome to the next: what the checkpoint
takes before the round, and what its writing takes from the training beside it. A side's time is the
median of its rounds after the first. The sides take turns, in processes of their own.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter

import click

from fedmpi import loading
from fedmpi.bench import JSON, REPEATS, Result, apart, chosen, compare, rank, run
from fedmpi.bench.round import WORKLOADS, tree_of
from fedmpi.config import Tree
from fedmpi.runs import launch

SIDES = {"with": 1, "without": 0}
"""For each side `checkpoint.every`."""


def measure(
    workload: str, words: tuple[str, ...], ranks: int, folder: Path | None, repeats: int
) -> Result:
    """One workload: its rounds with checkpoints, and without.

    Args:
        workload: one of `round.WORKLOADS`.
        words: `key=value`, settings that replace the workload's.
        ranks: their number.
        folder: where checkpoints are written; None for the system's temporary folder.
        repeats: turns of each side that count.
    """
    launcher, size = launch.find(), 0.0
    with tempfile.TemporaryDirectory(dir=folder) as place:

        def turn(side: str) -> float:
            nonlocal size
            out = Path(place) / f"{side}.json"
            apart("fedmpi.bench.checkpoint", [workload, side, str(out), *words], launcher, ranks)
            found = json.loads(out.read_text(encoding="utf-8"))
            size = max(size, found["bytes"])
            return found["seconds"]

        case = {"workload": workload, "ranks": ranks}
        case |= dict(word.split("=", 1) for word in words if "=" in word)
        turns: dict[str, Callable[[], float]] = {side: partial(turn, side) for side in SIDES}
        found = compare("checkpoint", case, turns, repeats)
    found.also["mib"] = size / 2**20
    return found


def changed(workload: str, words: tuple[str, ...]) -> Tree:
    """The settings of a workload, with `key=value` words on top."""
    tree = tree_of(workload)
    loading.override(tree, words)
    return tree


def main(workload: str, side: str, out: Path, words: tuple[str, ...]) -> None:
    """One side's turn, on these ranks: leaves the seconds of a round and a checkpoint's bytes."""
    from fedmpi.engine import Engine
    from fedmpi.results import checkpoint
    from fedmpi.results.checkpoint import Manifest
    from fedmpi.results.keeper import Keeper

    tree = changed(workload, (*words, f"checkpoint.every={SIDES[side]}"))
    settings, job = loading.load(tree), rank()
    engine = Engine(settings, job.wire.place)
    path = out.with_suffix(".h5")
    keeper, ends = Keeper(settings, path, Manifest(0, "", {}, "")), []
    for _ in engine.rounds(job.wire, job.clock, None, keeper):
        ends.append(perf_counter())
    if job.wire.is_root:
        seconds = [end - start for start, end in pairwise(ends)]
        size = keeper.bytes / max(1, keeper.count)
        out.write_text(json.dumps({"seconds": median(seconds), "bytes": size}), encoding="utf-8")
        checkpoint.remove(path)


@click.command()
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--workload",
    "workloads",
    multiple=True,
    default=("comm",),
    show_default=True,
    help="Only this workload of fedmpi bench round. Can be repeated.",
)
@click.option(
    "--ranks",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Number of MPI ranks.",
)
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where checkpoints are written; if absent, in the system's temporary folder.",
)
@REPEATS
@JSON
def command(
    words: tuple[str, ...],
    workloads: tuple[str, ...],
    ranks: int,
    folder: Path | None,
    repeats: int,
    as_json: bool,
) -> None:
    """Measure what a checkpoint before each round adds to the round.

    Settings, KEY=VALUE, replace those of the workload: checkpoint.memory=0 has checkpoints written
    before the round, and not beside it.
    """
    for workload in chosen(workloads, WORKLOADS):
        loading.load(changed(workload, words))
    found = (partial(measure, name, words, ranks, folder, repeats) for name in workloads)
    run(found, as_json)


if __name__ == "__main__":
    workload, side, out, *words = sys.argv[1:]
    main(workload, side, Path(out), tuple(words))
