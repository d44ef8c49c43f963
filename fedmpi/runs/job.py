"""One job: the ranks check settings together, run them, and the root records what comes out."""

import gc
import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import Any, TypeVar

import numpy as np

from fedmpi import loading, provenance
from fedmpi.clients import heterogeneity
from fedmpi.config import Settings
from fedmpi.engine import Engine
from fedmpi.errors import BadInput, Failure
from fedmpi.exchanges import auto
from fedmpi.messages import wire
from fedmpi.messages.clock import Clock
from fedmpi.messages.wire import Wire
from fedmpi.results import checkpoint, record, tables
from fedmpi.results.checkpoint import Broken, Manifest
from fedmpi.results.keeper import Keeper
from fedmpi.results.lease import Held, Lease
from fedmpi.results.record import Record
from fedmpi.runs import earlier, launch, memory
from fedmpi.runs.progress import Rounds, say
from fedmpi.runs.sweep import ELSEWHERE, Sweep, account
from fedmpi.runs.trained import Trained
from fedmpi.training import hardware

Found = TypeVar("Found")
Show = Callable[[int | None], AbstractContextManager[Callable[[np.void], None]]]
"""Begins to show a run's rounds, from the one with which it goes on; takes rows of `rounds`."""


NEVER = -2
"""In place of the round of a checkpoint: there is none."""
KEPT = ("checkpoints", "checkpoint_bytes", "checkpoint_seconds")
"""Attributes of a result: how many checkpoints its last job wrote, and what they took."""


@dataclass(frozen=True)
class Earlier:
    """A checkpoint from which a run goes on.

    Attributes:
        round: the round that comes next.
        about: attributes of the result as it is; on the root.
        rows: its tables, without later rounds; on the root.
        folder: the checkpoint's.
        manifest: the checkpoint's.
    """

    round: int
    about: Mapping[str, Any]
    rows: Mapping[str, np.ndarray]
    folder: Path
    manifest: Manifest


def _resumed(old: Earlier, now: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of a result that goes on: those of its first job, with a line for each later one.

    Args:
        old: the checkpoint.
        now: what the first job would have recorded.
    """
    names = ("ranks", "hosts", "threads_per_rank", "device", "cpu", "commit", "command")
    line = {name: now[name] for name in names}
    if old.about.get("code_sha256") != now["code_sha256"]:
        line["code_sha256"] = json.loads(now["code_sha256"])
    line |= {"round": old.round, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    lines = [*record.resumes(old.about), line]
    gone = ("status", "finished", "best_round", *KEPT)
    kept = {name: value for name, value in old.about.items() if name not in gone}
    return kept | {"resumed": json.dumps(lines), "status": record.RUNNING}


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
        self.clock, self.is_signalled = Clock(), False
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
        # Also what says in how many waves clients upload, and by which collectives they are told.
        exchanges = [(one.exchange.window, one.exchange.down) for one in settings]
        runs = [f"{one.identity()} {how}" for one, how in zip(settings, exchanges, strict=True)]
        self.agree("\n".join([task, *runs]), "words or files of settings")

    def sweep(self, plan: Sweep, again: bool = False) -> int:
        """Runs the chosen members that are not done, one after the other.

        Args:
            plan: the sweep.
            again: see `run`.

        Returns:
            `launch.STOPPED` if a signal has stopped one; else 1 if some failed, else 2 if some were
            bad input, else 0.

        Raises:
            BadInput: if ranks are about to do different things.
        """
        self._agree_on("sweep", [plan.members[number].settings for number in plan.chosen])
        with self._listening():
            return self._sweep(plan, again)

    def _sweep(self, plan: Sweep, again: bool) -> int:
        """Does what `sweep` does, once all ranks know that they do the same."""
        code, became = 0, {}
        rounds = [plan.members[number].settings.rounds for number in plan.chosen]
        show = Rounds(rounds, self.wire.is_root)
        for place, number in enumerate(plan.chosen):
            member, title = plan.members[number], f"{show.title(place)}{plan.members[number]}  "
            begin = partial(show.run, place)
            try:
                became[number] = self._run(member.settings, plan.out, begin, title, again)
            except (BadInput, Failure) as error:
                if str(error):
                    say(f"run {number} ({member}): {error}")
                word = ELSEWHERE if isinstance(error, Held) else "refused"
                became[number] = "failed" if isinstance(error, Failure) else word
                code = code if code == 1 else 1 if isinstance(error, Failure) else 2
            if became[number] == record.STOPPED:
                became |= dict.fromkeys(plan.chosen[place + 1 :], "not begun")
                code = launch.STOPPED
                break
            # The parts of a run know each other in circles, and would pile up, run upon run.
            gc.collect()
        if not plan.only:
            self._say(account(became))
        return code

    def run(self, settings: Settings, out: Path, again: bool = False) -> str:
        """Runs settings, unless the result is there already; goes on from a checkpoint.

        Args:
            settings: what to run.
            out: the result's file, or a folder for it.
            again: whether it begins anew, whatever is there.

        Returns:
            On the root what became of it: its status, or if it was there `earlier.verdict`. On all
            ranks `record.STOPPED` if a signal has stopped it.

        Raises:
            BadInput: if the settings do not fit together, the file is another run's, or nothing
                can be written there.
            Failure: if the system does not let a round be written. With other ranks, which then
                wait in a collective, the job ends.
        """
        self._agree_on("run", [settings])
        with self._listening():
            show = Rounds([settings.rounds], self.wire.is_root)
            return self._run(settings, out, partial(show.run, 0), "", again)

    def _run(self, settings: Settings, out: Path, begin: Show, title: str, again: bool) -> str:
        """Does what `run` does, once all ranks know that they do the same; title is said first."""
        if self.wire.lowest(self.is_signalled) is not None:
            return record.STOPPED
        path = self.check(lambda: earlier.place(out, settings) if self.wire.is_root else out)
        with ExitStack() as stack:
            held, state = self.check(lambda: self._begin(path, settings, stack, again))
            if self.wire.lowest(state in record.FINISHED) is not None:
                if state is None:
                    return ""
                word, more = earlier.verdict(path, state)
                self._say(f"{title}{path}: {word}{more}")
                return word
            place = self.wire.place
            # Every rank has the root's number, whatever its own environment says.
            threads = int(self.wire.publish(np.array([hardware.threads(settings)]))[0])
            alike = settings.model_copy(update={"threads": threads})
            engine = self.check(lambda: Engine(alike, place))
            self.agree(str(engine.about_data.get("data_sha256")), "data")
            self._say(f"{title}{path}")
            old = self._newest(settings, engine, path, state)
            choice = self._choose(settings, engine, old)
            with self._together(held):
                status = self._record(settings, engine, path, held, old, choice, begin)
        if status == record.STOPPED:
            self._say(
                f"{path}: stopped by a signal after round {engine.last + 1} of {settings.rounds}; "
                f"the same command{', but without --again,' if again else ''} goes on from there"
            )
        if status == record.DIVERGED:
            self._say(
                f"{path}: diverged: the model or the loss is not finite after round "
                f"{engine.last + 1} of {settings.rounds}, where the run ends; a lower lr or a clip "
                "may help"
            )
        return status

    def _choose(self, settings: Settings, engine: Engine, old: Earlier | None) -> Mapping[str, Any]:
        """Has rank 0 choose the exchange if the settings leave it open, and all ranks take it.

        A run that goes on takes the one that it had.

        Returns:
            Attributes of the result on the root, if there was a choice to make; else nothing.

        Raises:
            BadInput: if nothing is known of what this machine takes.
        """
        if not settings.exchange.defers:
            return {}

        def choice() -> tuple[str, dict[str, float]]:
            if not self.wire.is_root:
                return "", {}
            if old is not None:
                return str(old.about.get(record.CHOSEN)), {}
            return auto.chosen(engine.settings, engine.load(self.wire.nodes))

        name, seconds = self.check(choice)
        name = self._told(name)
        engine.take(self.check(lambda: auto.named(settings, name)))
        self._say(f"exchange.name = '{settings.exchange.name}' takes '{name}'")
        return {record.CHOSEN: name, record.PREDICTED: json.dumps(seconds)}

    def _begin(
        self, path: Path, settings: Settings, stack: ExitStack, again: bool
    ) -> tuple[Lease | None, str | None]:
        """Takes the lease of the result, on the root, unless the run is finished; and its state.

        The state is None if the run begins anew.
        """
        if not self.wire.is_root:
            return None, None
        state = earlier.state(path, settings)
        if state in record.FINISHED and not again:
            earlier.tidy(path)
            return None, state
        held = stack.enter_context(record.begin(path, self._say))
        # Another job may just have finished it.
        return held, None if again else earlier.state(path, settings)

    def _newest(
        self, settings: Settings, engine: Engine, path: Path, state: str | None
    ) -> "Earlier | None":
        """The newest checkpoint that can be used, found by all ranks together; None without one.

        Those that cannot be used are left out, and why is said.

        Raises:
            BadInput: if it is of other code.
        """
        is_there = self.wire.is_root and state is not None
        left = iter(checkpoint.there(path) if is_there else [])
        path = Path(self._told(os.path.abspath(path)))
        while True:
            found = self.check(lambda: self._usable(settings, engine, left))
            t = int(self.wire.publish(np.array([NEVER if found is None else found.round]))[0])
            if t == NEVER:
                return None
            folder, problem = checkpoint.place(path, t), None
            manifest = None
            try:
                manifest = checkpoint.manifest_of(folder)
                for rank in range(self.wire.rank, len(manifest.sizes), self.wire.size):
                    checkpoint.verify(folder, manifest, rank)
            except Broken as error:
                problem = str(error)
            self.wire.settle()
            if problem is not None:
                say(f"{folder}: not used: {problem}")
            if self.wire.lowest(problem is not None) is None:
                assert manifest is not None
                about, rows = ({}, {}) if found is None else (found.about, found.rows)
                return Earlier(t, about, rows, folder, manifest)
            if self.wire.is_root:
                checkpoint.forget(folder)

    def _usable(self, settings: Settings, engine: Engine, left: Iterator[Path]) -> "Earlier | None":
        """On the root, the next checkpoint that is this run's, and whose rounds are recorded.

        Raises:
            BadInput: if it is of other code.
        """
        for folder in left:
            result = folder.parent.with_name(folder.parent.name.removesuffix(checkpoint.SUFFIX))
            try:
                manifest = checkpoint.manifest_of(folder)
                data = str(engine.about_data.get("data_sha256"))
                if (manifest.identity, manifest.data) != (settings.identity(), data):
                    raise Broken("it is of another run, or of other data")
                about, found = record.content(result)
                rows = record.before(found, engine.population.first_round, manifest.round)
                if rows is None:
                    raise Broken("the result lacks rounds before it, or is another version's")
            except Broken as error:
                say(f"{folder}: not used: {error}")
                continue
            now = earlier.code(settings)
            if manifest.code != now and settings.checkpoint.code == "same":
                raise BadInput(
                    f"{folder}: it is of other code ({earlier.differences(manifest.code, now)}); "
                    "--again begins anew, and checkpoint.code=any goes on from it"
                )
            return Earlier(manifest.round, about, rows, folder, manifest)
        return None

    def _told(self, text: str) -> str:
        """The root's text, on every rank."""
        content = np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)
        length = int(self.wire.publish(np.array([len(content)]))[0])
        found = content.copy() if self.wire.is_root else np.zeros(length, np.uint8)
        return self.wire.publish(found).tobytes().decode("utf-8", "surrogateescape")

    def _record(
        self,
        settings: Settings,
        engine: Engine,
        path: Path,
        held: Lease | None,
        old: "Earlier | None",
        more: Mapping[str, Any],
        begin: Show,
    ) -> str:
        """Runs the rounds and records them, on the root; returns the status, known on the root."""
        path = Path(self._told(os.path.abspath(path)))
        identity, code = settings.identity(), earlier.code(settings)
        data = str(engine.about_data.get("data_sha256"))
        if old is not None:
            ranks = len(old.manifest.sizes)
            engine.restore(checkpoint.read(old.folder, ranks, engine.wants))
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
                **({"cut": engine.method.cut} if engine.method != settings.method else {}),  # type: ignore[attr-defined]
                **engine.half.decided(),
                "device": str(engine.trainer.device),
                "parameters": engine.flat.count,
                **engine.about_data,
                "partition_sha256": engine.population.fingerprint,
                **heterogeneity.measures(engine.population.counts),
                **more,
            }
            changed = loading.changes(settings.tree(), settings.paper)
            about |= {"paper": settings.paper or "", "changed": json.dumps(changed)}
            if contents := settings.contents():
                about["files_sha256"] = json.dumps(contents)
            about["code_sha256"] = json.dumps(code)
            rows: Mapping[str, np.ndarray] = {}
            if old is not None:
                about, rows = _resumed(old, about), old.rows
                self._say(f"{path}: goes on after round {old.round} of {settings.rounds}")
            file = Record(held, settings.tree(), identity, about, tables.TABLES, rows)
            if old is None:
                checkpoint.remove(path)
        whose = Manifest(0, identity, code, data)
        keeper = Keeper(settings, path, whose, lambda: self.is_signalled)
        if file is not None:
            keeper.sync = file.syncing
        first = None if old is None else old.round
        models = Trained(engine)
        try:
            with begin(first) as show:
                for outcome in engine.rounds(self.wire, self.clock, first, keeper):
                    if outcome is None or file is None:
                        continue
                    models.after(engine.last, file.append(outcome.tables))
                    show(outcome.tables["rounds"][0])
                    ended = outcome.ends or "rounds"
                    if not outcome.finite:
                        status = record.DIVERGED
                kept, final = None, {}
                if not engine.is_stopped:
                    kept, final = models.gather(), engine.final()
                if file is not None and final:
                    file.append(final)
        except BaseException:
            keeper.close()
            if file is not None:
                file.fail()
            raise
        if engine.is_stopped:
            status = record.STOPPED
        if file is not None:
            told = keeper.count, keeper.bytes, keeper.seconds
            why: dict[str, Any] = dict(zip(KEPT, told, strict=True))
            groups = None
            if status in record.FINISHED:
                why["model_sha256"] = engine.model_sha256()
            if status == record.DONE:
                why["ended"] = ended
                if models.left:
                    say(f"{path}: {models.left}")
                if kept is not None:
                    why["kept_round"], groups = kept.round, kept.groups
            try:
                file.close(status, why, groups)
            finally:
                if file.status in record.FINISHED:
                    checkpoint.remove(path)
        return status

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Takes note of SIGTERM and SIGUSR1 in here; a second one ends this process at once."""
        before = {}

        def note(number: int, frame: FrameType | None) -> None:
            self.is_signalled = True
            signal.signal(number, signal.SIG_DFL)

        if current_thread() is main_thread():
            for number in launch.GENTLE:
                if signal.getsignal(number) != signal.SIG_IGN:
                    before[number] = signal.signal(number, note)
                    signal.siginterrupt(number, False)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

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
