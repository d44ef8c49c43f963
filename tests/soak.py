"""Runs that are killed at random, and go on until they are done: python -m tests.soak --kills N.

A run writes a checkpoint after every round. It is killed by SIGKILL at a random call of a function
in `results`, `runs` or the engine, or of what these call, such as a write, an fsync or a rename.
It is started again, on 1 to 4 ranks, of which one is killed, and so on. Whatever happens, it ends
with the model and the tables of a run that nobody killed.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import click
import numpy as np

from fedmpi import engine, results, runs
from fedmpi.results import checkpoint, record
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
"""Files, and folders of files, in whose functions runs are killed."""
PATIENCE = 120
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
    """Kills this process at a call; counts them all.

    Args:
        moment: the number of the call; 0 for none.
    """

    def __init__(self, moment: int) -> None:
        self.moment, self.count = moment, 0

    def __call__(self, frame: FrameType, event: str, what: object) -> None:
        """See `sys.setprofile`."""
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(WATCHED):
            self.count += 1
            if self.count == self.moment:
                os.kill(os.getpid(), signal.SIGKILL)


def live(words: Sequence[str], path: Path, moment: int) -> int:
    """Runs settings in this process, which is killed at a moment; returns the number of calls."""
    job, fate = Job(), Fate(moment)
    sys.setprofile(fate)
    try:
        job.run(small(*words), path)
    finally:
        sys.setprofile(None)
    return fate.count


def forked(words: Sequence[str], path: Path, moment: int) -> int:
    """Lets a copy of this process run settings on one rank.

    Returns:
        0 if it was killed, else how many calls there were.
    """
    child, told = os.fork(), path.with_suffix(".calls")
    if not child:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            told.write_text(str(live(words, path, moment)))
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), f"{words}, killed at {moment}: exit code {code}"
    return 0 if code else int(told.read_text())


def launched(words: Sequence[str], path: Path, moment: int, ranks: int, rank: int) -> bool:
    """Lets so many ranks run settings, of which one is killed; returns whether it was."""
    launcher = launch.find()
    program = [sys.executable, "-m", "tests.soak", "--rank", f"{rank}", "--moment", f"{moment}"]
    done = subprocess.run(
        launcher.command(ranks, [*program, str(path), *words]),
        env=launcher.environment() | {launch.RANKS: str(ranks)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0 or re.search(r"[Ss]ignal:? ?(9|Killed)|signal 9", done.stderr), (
        f"{words}, rank {rank} of {ranks} killed at {moment}:\\n{done.stderr}"
    )
    return done.returncode != 0


def soak(name: str, kills: int, folder: Path, most: int, seed: int) -> int:
    """Kills a case's runs so many times, and compares each that ends; returns how many ended.

    Args:
        name: of the case.
        kills: how many.
        folder: for the results.
        most: ranks at most; with 1 no launcher is needed.
        seed: of the moments.
    """
    random, words = np.random.default_rng(seed), allowed(*CASES[name], *FEW)
    wanted, path, ended, done = folder / f"{name}.h5", folder / f"{name}-killed.h5", 0, 0
    calls = forked(words, wanted, 0)
    while done < kills:
        ranks = int(random.integers(1, most, endpoint=True))
        rank, moment = int(random.integers(ranks)), int(random.integers(1, calls))
        if ranks == 1:
            is_killed = not forked(words, path, moment)
        else:
            is_killed = launched(words, path, moment, ranks, rank)
        if is_killed:
            done += 1
            continue
        same(path, wanted, ranks=most == 1)
        path.unlink()
        ended += 1
    assert forked(words, path, 0)
    same(path, wanted, ranks=most == 1)
    assert not checkpoint.folder_of(path).exists()
    path.unlink()
    return ended + 1


@click.command()
@click.argument("given", nargs=-1)
@click.option("--kills", type=int, default=60, show_default=True, help="All cases together.")
@click.option("--ranks", type=int, default=4, show_default=True, help="At most.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of ranks and moments.")
@click.option("--rank", type=int, help="Run what is GIVEN, and kill this rank.")
@click.option("--moment", type=int, default=0, help="At this call.")
def main(
    given: tuple[str, ...], kills: int, ranks: int, seed: int, rank: int | None, moment: int
) -> None:
    """Kill runs, let them go on, and compare how they end."""
    if rank is not None:
        path, *words = given
        here = int(os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK", "0")))
        live(words, Path(path), moment if here == rank else 0)
        return
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    each = -(-kills // len(CASES))
    for name in CASES:
        ended = soak(name, each, folder, ranks, seed)
        print(f"{name}: {each} kills, {ended} runs that ended: all models and tables equal")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
