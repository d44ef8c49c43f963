"""One job: the ranks check settings together, run them, and the root records what comes out."""

import gc
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedmpi import loading, provenance
from fedmpi.clients import heterogeneity
from fedmpi.config import Settings
from fedmpi.engine import Engine
from fedmpi.errors import BadInput, Failure
from fedmpi.messages import wire
from fedmpi.messages.clock import Clock
from fedmpi.messages.wire import Wire
from fedmpi.results import record, tables
from fedmpi.results.lease import Held, Lease
from fedmpi.results.record import Record
from fedmpi.runs import earlier, launch, memory
from fedmpi.runs.sweep import ELSEWHERE, Sweep, account
from fedmpi.runs.trained import Trained
from fedmpi.training import hardware
from fedmpi.units import amount, duration

Found = TypeVar("Found")


class Job:
    """This process as one rank of the job.

    Args:
        ranks: how many there must be; None if any number will do.

    Raises:
        BadInput: if there are more or fewer, or if MPI does not join what a launcher started.
    """

    def __init__(self, ranks: int | None = None) -> None:
        launch.follow_launcher()
        wire.abort_on_exception()
        memory.keep_freed_memory()
        self.clock = Clock()
        self.wire = Wire(self.clock)
        self.check(lambda: launch.check_size(ranks, self.wire.size))

    def check(self, make: Callable[[], Found]) -> Found:
        """Returns what `make` makes, if every rank can make it; no collective comes before.

        Raises:
            BadInput: on every rank, if some rank could not; it says why on the lowest such rank.
        """
        found, problem = None, None
        try:
            found = make()
        except BadInput as error:
            problem = error
        first = self.wire.lowest(problem is not None)
        if first is None:
            return found  # type: ignore[return-value]
        if self.wire.rank != first:
            raise BadInput
        if problem is not None and first == wire.ROOT:
            raise problem
        raise BadInput(f"rank {first} on {wire.host()}: {problem}")

    def agree(self, ours: str, what: str) -> None:
        """Makes sure that all ranks have the same; nothing is sent but a hash.

        Raises:
            BadInput: on every rank, if some rank has something else than rank 0.
        """
        digest = hashlib.sha256(ours.encode()).digest()
        found = self.wire.report(np.frombuffer(digest, "u8"))

        def compare() -> None:
            for rank, theirs in enumerate(found):
                if not np.array_equal(theirs, found[0]):
                    raise BadInput(f"rank {rank} has other {what} than rank 0; wanted the same")

        self.check(compare)

    def _agree_on(self, task: str, settings: Sequence[Settings]) -> None:
        """Makes sure that all ranks are about to do the same.

        The words of a launcher that starts several programs may differ, and so may files on the
        nodes' own disks.

        Args:
            task: its name.
            settings: of the runs to do, in their order.
        """
        # Also the window, which says in how many waves clients upload.
        runs = [f"{one.identity()} {one.exchange.window}" for one in settings]
        self.agree("\n".join([task, *runs]), "words or files of settings")

    def sweep(self, plan: Sweep) -> int:
        """Runs the chosen members that are not done, one after the other.

        Returns:
            1 if some failed, else 2 if some were bad input, else 0.

        Raises:
            BadInput: if ranks are about to do different things.
        """
        self._agree_on("sweep", [plan.members[number].settings for number in plan.chosen])
        code, became = 0, {}
        for place, number in enumerate(plan.chosen, 1):
            member = plan.members[number]
            try:
                became[number] = self._run(
                    member.settings, plan.out, f"[{place}/{len(plan.chosen)}] {member}  "
                )
            except (BadInput, Failure) as error:
                if str(error):
                    say(f"run {number} ({member}): {error}")
                word = ELSEWHERE if isinstance(error, Held) else "refused"
                became[number] = "failed" if isinstance(error, Failure) else word
                code = code if code == 1 else 1 if isinstance(error, Failure) else 2
            # The parts of a run know each other in circles, and would pile up, run upon run.
            gc.collect()
        if not plan.only:
            self._say(account(became))
        return code

    def run(self, settings: Settings, out: Path, title: str = "") -> str:
        """Runs settings, unless the result is there already.

        Args:
            settings: what to run.
            out: the result's file, or a folder for it.
            title: said before it starts.

        Returns:
            On the root what became of it: its status, with the word already if it was there.

        Raises:
            BadInput: if the settings do not fit together, the file is another run's, or nothing
                can be written there.
            Failure: if the system does not let a round be written. With other ranks, which then
                wait in a collective, the job ends.
        """
        self._agree_on("run", [settings])
        return self._run(settings, out, title)

    def _run(self, settings: Settings, out: Path, title: str) -> str:
        """Does what `run` does, once all ranks know that they do the same."""
        path = self.check(lambda: earlier.place(out, settings) if self.wire.is_root else out)
        with ExitStack() as stack:
            held, state = self.check(lambda: self._begin(path, settings, stack))
            if self.wire.lowest(state in record.FINISHED) is not None:
                self._say(f"{title}{path}: {state} already")
                return f"{state} already"
            place = self.wire.place
            # Every rank has the root's number, whatever its own environment says.
            threads = int(self.wire.publish(np.array([hardware.threads(settings)]))[0])
            alike = settings.model_copy(update={"threads": threads})
            engine = self.check(lambda: Engine(alike, place))
            self.agree(str(engine.about_data.get("data_sha256")), "data")
            self._say(f"{title}{path}")
            with self._together(held):
                status = self._record(settings, engine, held)
        if status == record.DIVERGED:
            self._say(
                f"{path}: diverged: the model or the loss is not finite after round "
                f"{engine.last + 1} of {settings.rounds}, where the run ends; a lower lr or a clip "
                "may help"
            )
        return status

    def _begin(
        self, path: Path, settings: Settings, stack: ExitStack
    ) -> tuple[Lease | None, str | None]:
        """Takes the lease of the result, on the root, unless the run is finished; and its state."""
        if not self.wire.is_root:
            return None, None
        state = earlier.state(path, settings)
        if state in record.FINISHED:
            return None, state
        held = stack.enter_context(record.begin(path, self._say))
        return held, earlier.state(path, settings)  # another job may just have finished it

    def _record(self, settings: Settings, engine: Engine, held: Lease | None) -> str:
        """Runs the rounds and records them, on the root; returns the status, known on the root."""
        hosts = self.wire.report(np.frombuffer(wire.host().encode().ljust(256, b"\0"), "S256"))
        status, ended = record.DONE, ""
        file = None
        if held is not None:
            about = provenance.about() | {
                "mpi_library": wire.library(),
                "ranks": self.wire.size,
                "hosts": [host[0].decode() for host in hosts],
                "threads_per_rank": hardware.threads(engine.settings),
                **({"server_threads": engine.threads} if settings.method.converses else {}),
                "device": str(engine.trainer.device),
                "parameters": engine.flat.count,
                **engine.about_data,
                "partition_sha256": engine.population.fingerprint,
                **heterogeneity.measures(engine.population.counts),
            }
            changed = loading.changes(settings.tree(), settings.paper)
            about |= {"paper": settings.paper or "", "changed": json.dumps(changed)}
            if contents := settings.contents():
                about["files_sha256"] = json.dumps(contents)
            file = Record(held, settings.tree(), settings.identity(), about, tables.TABLES)
        models = Trained(engine)
        try:
            with progress(settings.rounds, self.wire.is_root) as show:
                for outcome in engine.rounds(self.wire, self.clock):
                    if outcome is None or file is None:
                        continue
                    models.after(engine.last, file.append(outcome.tables))
                    show(outcome.tables["rounds"][0])
                    ended = outcome.ends or "rounds"
                    if not outcome.finite:
                        status = record.DIVERGED
                kept = models.gather()
                final = engine.final()
                if file is not None and final:
                    file.append(final)
        except BaseException:
            if file is not None:
                file.fail()
            raise
        if file is not None:
            about, groups = {"model_sha256": engine.model_sha256()}, None
            if status == record.DONE:
                about["ended"] = ended
                if models.left:
                    say(f"{file.path}: {models.left}")
                if kept is not None:
                    about["kept_round"], groups = kept.round, kept.groups
            file.close(status, about, groups)
        return status

    @contextmanager
    def _together(self, held: Lease | None) -> Iterator[None]:
        """What a rank finds in here ends the job: the others are in a collective."""
        try:
            yield
        except (BadInput, Failure) as error:
            if self.wire.size > 1:
                if held is not None:
                    held.release()
                wire.abort(str(error))
            raise

    def _say(self, text: str) -> None:
        if self.wire.is_root:
            say(text)


def say(text: str) -> None:
    """Prints a line on standard error; a log on a full disk loses it, and not the run."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(rounds: int, is_root: bool) -> Iterator[Callable[[np.void], None]]:
    """Shows each round's row: a bar on a terminal, else one plain line a round; on the root."""
    if not is_root:
        yield lambda row: None
    elif os.environ.get(launch.PROGRESS, str(int(sys.stderr.isatty()))) == "1":
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        columns = (MofNCompleteColumn(), BarColumn(16), *times, TextColumn("{task.description}"))
        # Forced, because the launcher stands between this process and the terminal.
        with Progress(*columns, console=Console(stderr=True, force_terminal=True)) as bars:
            task = bars.add_task("", total=rounds)
            yield lambda row: bars.update(task, completed=row["round"] + 1, description=line(row))
    else:
        yield lambda row: say(f"round {row['round'] + 1}/{rounds}  {line(row)}")


def line(row: np.void) -> str:
    """A row of the table `rounds`, for people."""
    lost = "agreement" if row["round"] < 0 else f"loss {row['loss']:.3f}"
    seen = "" if np.isnan(row["accuracy"]) else f"accuracy {row['accuracy']:.3f}  "
    moved = f"up {amount(row['up'])}  down {amount(row['down'])}"
    return f"{lost}  {seen}{moved}  {duration(row['seconds'])}"
