"""Runs that are killed at random, and go on until they are done: python -m tests.soak --kills N.

A run writes a checkpoint after every round. It is killed by SIGKILL at a random call of a function
in `results`, `runs` or the engine, or of what these call, such as a write, an fsync or a rename:
every other time at one that concerns checkpoints, also in the thread that writes them. It is
started again, on another number of ranks, of which one is killed, or all at their own moments, and
so on. Whatever happens, it ends with the model and the tables of a run that nobody killed, and
leaves nothing else behind.
"""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import count
from pathlib import Path
from time import monotonic
from types import FrameType

import click
import numpy as np

from fedmpi import engine, results, runs
from fedmpi.results import checkpoint, keeper, record
from fedmpi.runs import launch
from fedmpi.runs.job import Job
from tests.plain import allowed
from tests.small import small

CASES = {
    "fedavg": ("aggregation.server=momentum",),
    "scaffold": ("method.name=scaffold",),
    "topk": ("method.name=topk",),
    "spatl": ("method.name=spatl",),
    "feddst": ("method.name=feddst", "method.every=1"),
    "splitfed": ("method.name=splitfed", "method.version=v2"),
}
"""What a server, its clients, and both together keep from round to round."""
FEW = ("rounds=4", "participation=0.6", "checkpoint.every=1", "devices.dropouts=0.2")
WATCHED = tuple(
    str(module.__file__).removesuffix("__init__.py") for module in (engine, results, runs)
)
"""Files, and folders of files, in whose functions runs are killed,"""
SAVING = (checkpoint.__file__, keeper.__file__)
"""and those of them that write checkpoints."""
PATIENCE = 900
"""Seconds that a job may take."""


def same(one: Path, other: Path, ranks: bool = True) -> None:
    """Asserts that two results are of the same run, in all but measured seconds.

    Args:
        one: a result.
        other: another one.
        ranks: whether they were on the same ranks.
    """
    (ours, mine), (theirs, yours) = record.content(one), record.content(other)
    for name in ("model_sha256", "status", "ended", "best_round", "identity", "code_sha256"):
        assert ours.get(name) == theirs.get(name), name
    for table, rows in mine.items():
        for column in rows.dtype.names or ():
            is_of_ranks = not ranks and (table in ("ranks", "phases") or column == "rank")
            if not is_of_ranks and ("seconds" not in column or column.startswith("sim_")):
                pair = rows[column], yours[table][column]
                np.testing.assert_array_equal(*pair, err_msg=f"{table}.{column}")


class Fate:
    """Kills this process at a call in any of its threads; counts them all.

    Args:
        moment: the number of the call, from 1 on; negative for one of those that write checkpoints;
            0 for none.
    """

    def __init__(self, moment: int) -> None:
        self.moment, self.count, self.saving = moment, 0, 0

    def __call__(self, frame: FrameType, event: str, what: object) -> None:
        """See `sys.setprofile`."""
        file = frame.f_code.co_filename
        if event in ("call", "c_call") and file.startswith(WATCHED):
            self.count += 1
            self.saving += file in SAVING
            if self.moment == self.count or (file in SAVING and self.moment == -self.saving):
                os.kill(os.getpid(), signal.SIGKILL)


def live(words: Sequence[str], path: Path, moment: int) -> Fate:
    """Runs settings in this process, which is killed at a moment (see `Fate`)."""
    job, fate = Job(), Fate(moment)
    threading.setprofile(fate)
    sys.setprofile(fate)
    try:
        job.run(small(*words), path)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return fate


def forked(words: Sequence[str], path: Path, moment: int) -> tuple[int, int]:
    """Lets a copy of this process run settings on one rank.

    Returns:
        How many calls there were, and how many of them write checkpoints; zeros if it was killed.
    """
    child, told = os.fork(), path.with_suffix(".calls")
    if not child:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            fate = live(words, path, moment)
            told.write_text(json.dumps([fate.count, fate.saving]))
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), f"{words}, killed at {moment}: exit code {code}"
    every, saving = [0, 0] if code else json.loads(told.read_text())
    return every, saving


def launched(words: Sequence[str], path: Path, moments: Mapping[int, int], ranks: int) -> bool:
    """Lets so many ranks run settings, some of which are killed; returns whether one was.

    Args:
        words: the settings.
        path: the result.
        moments: of each rank that is to be killed.
        ranks: their number.
    """
    launcher = launch.find()
    program = [sys.executable, "-m", "tests.soak", "--moments", json.dumps(moments)]
    done = subprocess.run(
        launcher.command(ranks, [*program, str(path), *words]),
        env=launcher.environment() | {launch.RANKS: str(ranks)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0 or re.search(r"[Ss]ignal:? ?(9|Killed)|signal 9", done.stderr), (
        f"{words}, of {ranks} ranks killed at {moments}:\\n{done.stderr}"
    )
    return done.returncode != 0


@dataclass
class Tally:
    """What became of runs.

    Attributes:
        kills: how often one was killed.
        saving: how many of these were in the writing of a checkpoint.
        several: how many of these were of one of several ranks, or more.
        every: how many of these were of all of several ranks.
        ended: runs that ended, and were compared.
    """

    kills: int = 0
    saving: int = 0
    several: int = 0
    every: int = 0
    ended: int = 0

    def __str__(self) -> str:
        runs = f"{self.ended} run{'s' * (self.ended != 1)} ended"
        return (
            f"{self.kills} kills ({self.saving} in checkpoints, {self.several} on several ranks, "
            f"{self.every} of all of them), {runs}: all models and tables equal"
        )

    def __add__(self, other: "Tally") -> "Tally":
        both = zip(astuple(self), astuple(other), strict=True)
        return Tally(*(one + more for one, more in both))


class Case:
    """One of `CASES`, with the result of its run that nobody kills.

    Args:
        name: its name.
        folder: for results.

    Attributes:
        words: its settings.
        wanted: the result.
        calls: moments of that run.
        saving: moments of it that write checkpoints.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.words = name, allowed(*CASES[name], *FEW)
        self.wanted = folder / f"{name}.h5"
        self.calls, self.saving = forked(self.words, self.wanted, 0)
        self.wanted.with_suffix(".calls").unlink()

    def live(self, kills: int, ranks: Sequence[int], seed: int) -> Tally:
        """Kills one run, and lets it go on, until it ends; then compares it.

        Args:
            kills: how often at most.
            ranks: the numbers of ranks among which each job's is drawn.
            seed: of all that is drawn.
        """
        random = np.random.default_rng([seed, list(CASES).index(self.name)])
        folder = self.wanted.with_suffix("")
        path, tally, is_over, is_saving = folder / "killed.h5", Tally(), False, False
        folder.mkdir()
        while not is_over:
            size, is_saving = int(random.choice(ranks)), not is_saving
            places = [int(random.integers(size))] if random.random() < 0.75 else range(size)
            last, sign = (self.saving, -1) if is_saving else (self.calls, 1)
            moments = {place: sign * int(random.integers(1, last)) for place in places}
            if tally.kills == kills:
                moments = {}
            if size == 1:
                is_over = forked(self.words, path, moments.get(0, 0)) > (0, 0)
            else:
                is_over = not launched(self.words, path, moments, size)
            if not is_over:
                tally += Tally(1, is_saving, size > 1, size > 1 and len(places) > 1)
        same(path, self.wanted, ranks=set(ranks) == {1})
        left = sorted(file.name for file in folder.iterdir())
        assert left == ["killed.calls"] * (size == 1) + ["killed.h5"], left
        shutil.rmtree(folder)
        return tally + Tally(ended=1)


@click.command()
@click.argument("given", nargs=-1)
@click.option("--kills", type=int, default=60, show_default=True, help="All runs together.")
@click.option(
    "--ranks",
    type=int,
    multiple=True,
    default=(1, 2, 3, 4),
    show_default=True,
    help="A job has one of these numbers of ranks. Can be repeated.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the first run.")
@click.option("--case", "cases", multiple=True, type=click.Choice(list(CASES)), help="Only this.")
@click.option("--moments", help="Run what is GIVEN, and kill ranks at these calls (JSON).")
def main(
    given: tuple[str, ...],
    kills: int,
    ranks: tuple[int, ...],
    seed: int,
    cases: tuple[str, ...],
    moments: str | None,
) -> None:
    """Kill runs, let them go on, and compare how they end.

    Each run has a seed of its own, one after the other; a later soak goes on with the next one.
    """
    if moments is not None:
        path, *words = given
        here = os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK", "0"))
        live(words, Path(path), json.loads(moments).get(here, 0))
        return
    began, total, known = monotonic(), Tally(), dict[str, Case]()
    cases = cases or tuple(CASES)
    importlib.import_module("numba")  # here once, and not in every process that is killed
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        for number in count(seed):
            if total.kills >= kills:
                break
            name = cases[number % len(cases)]
            case = known.get(name) or known.setdefault(name, Case(name, Path(place)))
            tally = case.live(kills - total.kills, ranks, number)
            print(f"seed {number}, {name}: {tally}", flush=True)
            total += tally
    seeds = f"seeds {seed} to {number - 1}, {', '.join(map(str, ranks))} ranks"
    print(f"all: {total} ({seeds}, {monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
