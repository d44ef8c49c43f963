"""A round before which a checkpoint is written, against the same round without one.

A round's time is that of a clock on the wall, from one outcome to the next. A checkpoint takes time
before its round, and beside it what writing takes from the training; it is made whole beside the
next round. So one run has a checkpoint before every fourth round: a cycle's first two rounds are
those with it, and its last two are as if there were none. Two runs can differ by more than what a
checkpoint costs.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import click

from fedmpi import loading
from fedmpi.bench import JSON, Result, apart, chosen, rank, run, weigh
from fedmpi.bench.round import WORKLOADS, tree_of
from fedmpi.config import Tree
from fedmpi.runs import launch

EVERY = 4
"""Rounds of a cycle."""


def measure(
    workload: str, words: tuple[str, ...], ranks: int, folder: Path | None, repeats: int
) -> Result:
    """One workload: its rounds with checkpoints, and without.

    Args:
        workload: one of `round.WORKLOADS`.
        words: `key=value`, settings that replace the workload's.
        ranks: their number.
        folder: where checkpoints are written; None for the system's temporary folder.
        repeats: cycles that count; one before them does not.
    """
    with tempfile.TemporaryDirectory(dir=folder) as place:
        out = Path(place) / "found.json"
        given = [workload, str(repeats), str(out), *words]
        apart("fedmpi.bench.checkpoint", given, launch.find(), ranks)
        found = json.loads(out.read_text(encoding="utf-8"))
    case = {"workload": workload, "ranks": ranks}
    case |= dict(word.split("=", 1) for word in words if "=" in word)
    also = {"mib": found["bytes"] / 2**20}
    return weigh("checkpoint", case, sides(found["seconds"]), "with", ["without"], also)


def sides(seconds: Sequence[float]) -> dict[str, list[float]]:
    """Seconds of a round with a checkpoint, and without, for each cycle.

    Args:
        seconds: of rounds, from a cycle's first one on, whole cycles.

    Returns:
        `without`: the mean of a cycle's last two rounds. `with`: that, and what its first two
        rounds take longer than its last two.
    """
    found: dict[str, list[float]] = {"with": [], "without": []}
    for at in range(0, len(seconds), EVERY):
        first, second, *plain = seconds[at : at + EVERY]
        without = sum(plain) / len(plain)
        found["without"].append(without)
        found["with"].append(first + second - without)
    return found


def changed(workload: str, words: tuple[str, ...], repeats: int) -> Tree:
    """The settings of a workload, with `key=value` words on top, and rounds for so many cycles.

    There is one cycle more, before those that count. Accuracies are measured after the last round.
    """
    tree, rounds = tree_of(workload), EVERY * (repeats + 1)
    loading.override(tree, words)
    ours = (f"rounds={rounds}", f"evaluate.every={rounds}", f"checkpoint.every={EVERY}")
    loading.override(tree, ours)
    return tree


def main(workload: str, repeats: int, out: Path, words: tuple[str, ...]) -> None:
    """The run, on these ranks: leaves the seconds of its rounds and a checkpoint's bytes."""
    from fedmpi.engine import Engine
    from fedmpi.results import checkpoint
    from fedmpi.results.checkpoint import Manifest
    from fedmpi.results.keeper import Keeper

    settings, job = loading.load(changed(workload, words, repeats)), rank()
    engine = Engine(settings, job.wire.place)
    path = out.with_suffix(".h5")
    keeper, ends = Keeper(settings, path, Manifest(0, "", {}, "")), []
    for _ in engine.rounds(job.wire, job.clock, None, keeper):
        ends.append(perf_counter())
    if job.wire.is_root:
        # Between the ends of rounds t - 1 and t lies the checkpoint before round t.
        seconds = [end - start for start, end in pairwise(ends)][EVERY - 1 :]
        size = keeper.bytes / keeper.count
        out.write_text(json.dumps({"seconds": seconds, "bytes": size}), encoding="utf-8")
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
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Number of checkpoints that count; four rounds for each.",
)
@JSON
def command(
    words: tuple[str, ...],
    workloads: tuple[str, ...],
    ranks: int,
    folder: Path | None,
    repeats: int,
    as_json: bool,
) -> None:
    """Measure what a checkpoint before a round adds to it.

    Settings, KEY=VALUE, replace those of the workload: checkpoint.memory=0 has checkpoints written
    before the round, and not beside it.
    """
    for workload in chosen(workloads, WORKLOADS):
        loading.load(changed(workload, words, repeats))
    found = (partial(measure, name, words, ranks, folder, repeats) for name in workloads)
    run(found, as_json)


if __name__ == "__main__":
    workload, cycles, out, *words = sys.argv[1:]
    main(workload, int(cycles), Path(out), tuple(words))
