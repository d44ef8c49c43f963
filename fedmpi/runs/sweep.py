"""A sweep: one TOML file that stands for many runs.

    [base]                      # settings of all runs
    rounds = 30

    [[grid]]                    # every value is a list; the grid is the product of the lists
    "method.name" = ["topk", "ssfl"]
    "method.sparsity" = [0.5, 0.9]
    partition = [{ name = "iid" }, { name = "dirichlet", alpha = 0.1 }]

    [sizes.small]               # settings that win over base and grids, with --size small
    rounds = 3
    grid.seed = [1]             # other values of an axis, where a grid has it

Several grids make one sweep, one behind the other. A run that stands in two of them runs once.
So do runs that become equal by a size: an axis that it sets is gone. A file may have tables
`[[claim]]`, too, which `analysis` reads.
"""

import copy
import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fedmpi import config, loading
from fedmpi.config import ConfigError, Settings, Tree
from fedmpi.results import lease, record
from fedmpi.results.record import Damaged, RecordError
from fedmpi.runs import earlier, launch

REFUSED = {"damaged", "refused"}
"""States of members whose file is not replaced."""
ELSEWHERE = "being written by another job"
"""What became of a member that was left to a sweep or run that began before."""
SHOWN = 20
"""Most numbers of runs that are listed in a line."""


@dataclass(frozen=True)
class Member:
    """One run of a sweep: its settings, and what it has of those by which its grid varies."""

    settings: Settings
    point: dict[str, Any]

    def __str__(self) -> str:
        return "  ".join(f"{path}={_plain(value)}" for path, value in self.point.items())


def _now(found: Any, stated: Any) -> Any:
    """What a tree has where a grid stated a value; of a table, the keys that the grid has."""
    if isinstance(found, Mapping) and isinstance(stated, Mapping):
        return {key: _now(found.get(key, value), value) for key, value in stated.items()}
    return found


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        rest = ",".join(f"{k}={v}" for k, v in value.items() if k != "name")
        return f"{value.get('name', '')}({rest})" if rest else str(value.get("name", ""))
    return str(value)


class Sweep:
    """The runs of a sweep file, and which of them to do.

    Attributes:
        members: all runs, in the order of the file.
        chosen: numbers of those to do.
        only: the numbers that were asked for; none if it is all.
    """

    def __init__(
        self,
        file: Path,
        out: Path,
        only: Sequence[int] = (),
        words: tuple[str, ...] = (),
        size: str | None = None,
    ) -> None:
        if record.is_named(out):
            raise ConfigError(f"--out {out}: wanted a folder, because each run has its own file")
        self.file, self.words, self.out = file, words, out
        self.size = () if size is None else ("--size", size)
        self.members = members(file, words, size)
        beyond = [number for number in only if number >= len(self.members)]
        if beyond:
            raise ConfigError(
                f"--only {beyond[0]}: no such run; {file} has runs 0 to {len(self.members) - 1}"
            )
        self.only, self.chosen = only, list(only) or list(range(len(self.members)))

    def path(self, number: int) -> Path:
        """The result file of a member."""
        return earlier.place(self.out, self.members[number].settings)

    def state(self, number: int) -> str | None:
        """Returns the status of a member's result; None if there is none.

        Raises:
            RecordError: if there is a file that is not its result, or a damaged one.
        """
        return earlier.state(self.path(number), self.members[number].settings)

    def states(self) -> dict[int, str]:
        """Returns for each chosen member its status, "to do", "damaged" or "refused".

        Why the last two are so is said on standard error.
        """
        found = {}
        for number in self.chosen:
            try:
                found[number] = self.state(number) or "to do"
            except RecordError as error:
                self._say(number, f"refused: {error}")
                found[number] = "damaged" if isinstance(error, Damaged) else "refused"
        return found

    def note(self, number: int, state: str) -> str:
        """What is said behind a member in that state: by which other code it is done, if it is."""
        if state not in record.FINISHED:
            return ""
        word, more = earlier.verdict(self.path(number), state)
        return f"  {word}{more}" if more else ""

    def supervise(self, ranks: int, again: bool = False) -> int:
        """Runs what is to do in jobs of so many ranks; returns the exit code.

        One job does it all. If a run kills the job, it is marked as failed, and another job does
        the rest. A member whose file cannot be its result is left out. What became of all is said
        at the end.

        Args:
            ranks: how many.
            again: whether all members begin anew, finished ones, too; each then has its own job.

        Returns:
            `launch.STOPPED` after a signal; else 1 if some failed, else 2 if some were bad input or
            are not finished, because another job is writing them, else 0.
        """
        states, dead, ended = self.states(), list[int](), list[int]()
        if again:
            states = {n: "to do" if s in record.FINISHED else s for n, s in states.items()}
        alone = again
        left = [n for n, state in states.items() if state not in (*record.FINISHED, *REFUSED)]
        out = ("--out", str(self.out))
        for number in left:
            record.mark_failed(self.path(number))
        while left:
            batch = left[:1] if alone else left
            before = {number: self._version(number) for number in batch}
            only = [word for number in batch for word in ("--only", str(number))]
            given = [str(self.file), *self.words, *self.size]
            more = ["--again"] if again else []
            code = launch.start(ranks, ["sweep", *given, *out, *only, *more])
            if code == launch.STOPPED:
                became = self._outcomes(states, dead, ended)
                for number in left:
                    if became[number] == "refused":
                        became[number] = "not begun"
                print(account(became), file=sys.stderr, flush=True)
                return code
            if code in (0, 2):
                ended += batch if code == 0 else []
                left = left[len(batch) :]
                continue
            begun = [n for n in batch if self._is_cut(n) and self._version(n) != before[n]]
            if not begun and len(batch) > 1:
                # It died before its file was there: which it was shows if each has its own job.
                alone, left = True, [n for n in left if not self._is_over(n)]
                continue
            dead.append((begun or batch)[0])
            record.mark_failed(self.path(dead[-1]))
            self._say(dead[-1], f"failed: exit code {code}")
            is_over = (lambda n: False) if again else self._is_over
            left = [n for n in left if n not in dead and not is_over(n)]
        became = self._outcomes(states, dead, ended)
        print(account(became), file=sys.stderr, flush=True)
        # What another job was writing may be finished by now.
        words = set(became.values())
        return 1 if "failed" in words else 2 if words & {"refused", ELSEWHERE} else 0

    def _outcomes(
        self, before: Mapping[int, str], dead: Sequence[int], ended: Sequence[int]
    ) -> dict[int, str]:
        """What became of members.

        Args:
            before: their states.
            dead: those that killed their job.
            ended: those whose job ended with exit code 0, and which then must be finished.
        """
        found = {}
        for number, state in before.items():
            if state in record.FINISHED:
                earlier.tidy(self.path(number))
                found[number], more = earlier.verdict(self.path(number), state)
                if more:
                    self._say(number, f"{found[number]}{more}")
            elif number in dead:
                found[number] = "failed"
            else:
                is_held = lease.holder(self.path(number)) is not None
                found[number] = ELSEWHERE if is_held else "refused"
                with suppress(RecordError):
                    now = self.state(number)
                    if now in (*record.FINISHED, record.STOPPED):
                        found[number] = now
                    elif number in ended:
                        self._say(number, "failed: the launcher ended with exit code 0 without it")
                        found[number] = "failed"
        return found

    def _is_over(self, number: int) -> bool:
        """Whether there is nothing more to do for a member: done, or refused."""
        try:
            return self.state(number) in record.FINISHED
        except RecordError as error:
            self._say(number, f"refused: {error}")
            return True

    def _is_cut(self, number: int) -> bool:
        """Whether a member's run was begun, and not finished."""
        try:
            return self.state(number) in (record.RUNNING, record.FAILED)
        except RecordError:
            return True

    def _version(self, number: int) -> tuple[int, ...]:
        """Returns what differs if a member's file was written."""
        try:
            about = self.path(number).stat()
        except OSError:
            return ()
        return about.st_ino, about.st_size, about.st_mtime_ns

    def _say(self, number: int, text: str) -> None:
        print(f"run {number} ({self.members[number]}) {text}", file=sys.stderr, flush=True)


def account(became: Mapping[int, str]) -> str:
    """What became of a sweep's runs, in one line; with numbers where one may want to look.

    Args:
        became: for each run a word: done, diverged, refused, failed, `ELSEWHERE`, or what
            `earlier.verdict` says.
    """
    numbers: dict[str, list[int]] = {}
    for number, word in became.items():
        numbers.setdefault(word, []).append(number)
    parts = []
    for word, some in numbers.items():
        shown = ", ".join(map(str, some[:SHOWN])) + (", ..." if len(some) > SHOWN else "")
        runs = "run" if len(some) == 1 else "runs"
        named = "" if word in (record.DONE, f"{record.DONE} already") else f" ({runs} {shown})"
        parts.append(f"{len(some)} {word}{named}")
    return f"{len(became)} runs: {', '.join(parts)}"


MOST_RUNS = 100_000
"""Runs of a sweep: each of them is checked before the first one begins."""
TABLES = ("base", "grid", "sizes", "claim")
"""What a sweep file may have."""


@dataclass(frozen=True)
class Size:
    """What one of a file's sizes changes.

    Attributes:
        settings: that win over base and grids; a table with a name replaces the whole table.
        axes: other values of axes, by their paths.
    """

    settings: Tree = field(default_factory=dict)
    axes: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def paths(self) -> list[str]:
        """The paths of its settings, and of the tables that it replaces."""
        return [path for path, _ in _leaves(self.settings)]

    def grid(self, axes: Mapping[str, Any]) -> dict[str, Any]:
        """A grid's axes in this size: without those that it sets, and with its own values."""
        return {
            path: self.axes.get(path, values)
            for path, values in axes.items()
            if not any(path == one or path.startswith(f"{one}.") for one in self.paths)
        }

    def apply(self, tree: Tree) -> None:
        """Sets its settings in a tree."""
        for path, value in _leaves(self.settings):
            loading.assign(tree, path, copy.deepcopy(value))


def _leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings in a tree by their paths; of a table with a name only the table."""
    for name, value in tree.items():
        is_named = not prefix and name in config.AXES
        if isinstance(value, dict) and not (is_named and "name" in value):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@dataclass(frozen=True)
class File:
    """What a sweep file says, in one of its sizes; not checked beyond its tables.

    Attributes:
        base: settings of all runs.
        grids: the axes of each grid, by their paths.
        size: what the size changes.
    """

    base: Tree
    grids: list[dict[str, Any]]
    size: Size


def read(path: Path, size: str | None = None) -> File:
    """Reads a sweep file; without a size, it is as its base and grids say.

    Raises:
        ConfigError: if there is no such file or size, or something is no table that must be one.
    """
    tree = loading.read(path)
    problems = [
        f"{path}: no table [{key}]; there are: {', '.join(TABLES)}" for key in tree.keys() - TABLES
    ]
    for key in ("grid", "claim"):
        rows = tree.get(key, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            problems.append(f"{path}: '{key}' must be a list of tables: write [[{key}]]")
    base, sizes = tree.get("base", {}), tree.get("sizes", {})
    if not isinstance(base, dict):
        problems.append(f"{path}: 'base' must be a table: write [base]")
    named = sizes.values() if isinstance(sizes, dict) else [sizes]
    if not all(isinstance(one, dict) and isinstance(one.get("grid", {}), dict) for one in named):
        problems.append(
            f"{path}: 'sizes' must have a table for each size: write [sizes.NAME], and "
            "[sizes.NAME.grid] for axes"
        )
    if problems:
        raise ConfigError(*problems)
    grids = [dict(loading.leaves(grid)) for grid in tree.get("grid", [{}])]
    if size is None:
        return File(base, grids, Size())
    if size not in sizes:
        possible = f"there are: {', '.join(sizes)}" if sizes else "it has none; leave --size out"
        raise ConfigError(f"--size {size}: no such size in {path}; {possible}")
    settings = {name: value for name, value in sizes[size].items() if name != "grid"}
    chosen = Size(settings, dict(loading.leaves(sizes[size].get("grid", {}))))
    grids = [chosen.grid(grid) for grid in grids]
    there = dict.fromkeys(axis for grid in grids for axis in grid)
    if idle := [axis for axis in chosen.axes if axis not in there]:
        raise ConfigError(
            f"{path}: [sizes.{size}.grid] {', '.join(idle)}: no [[grid]] has it; there are: "
            f"{', '.join(there) or 'none'}"
        )
    return File(base, grids, chosen)


def members(path: Path, words: tuple[str, ...] = (), size: str | None = None) -> list[Member]:
    """All runs of a sweep file in a size, checked; `key=value` words hold for all of them.

    Raises:
        ConfigError: for anything that is wrong with any of them.
    """
    file = read(path, size)
    found, count, problems = dict[str, Member](), 0, list[str]()
    # What is wrong with many points, such as a setting of [base], is said of the first.
    said: set[str] = set()
    for number, axes in enumerate(file.grids, 1):
        scalars = {n: v for n, v in axes.items() if not isinstance(v, list) or not v}
        problems += [
            f"{path}: [[grid]] {number}: {name} = {values!r}: wanted a list of at least one value"
            for name, values in scalars.items()
        ]
        if scalars:
            continue
        count += math.prod(map(len, axes.values()))
        if count > MOST_RUNS:
            raise ConfigError(f"{path}: {count:,} runs; wanted at most {MOST_RUNS:,} in a sweep")
        for point in _points(axes):
            try:
                tree = _with(file, point, words)
                settings = loading.load(tree)
            except ConfigError as error:
                where = ", ".join(f"{name}={_plain(value)}" for name, value in point.items())
                if size is not None:
                    where += f"{', ' * bool(where)}size {size}"
                fresh = [problem for problem in error.problems if problem not in said]
                problems += [f"{path}: [[grid]] {number} ({where}): {p}" for p in fresh]
                said.update(fresh)
                continue
            # What a word or the size says holds, whatever the grid has.
            shown = {
                name: _now(loading.at(tree, name, value), value) for name, value in point.items()
            }
            first = found.setdefault(settings.identity(), Member(settings, shown))
            for name, values in _differences(first.settings, settings).items():
                problem = (
                    f"{name} is {' and '.join(map(config.written, values))} for the same run: "
                    "it belongs to the machine and is no part of a run's identity; wanted one "
                    f"value, in [base] or as a word {name}=VALUE"
                )
                if problem not in said:
                    problems.append(f"{path}: [[grid]] {number}: {problem}")
                    said.add(problem)
    if problems:
        raise ConfigError(*problems)
    return list(found.values())


def _differences(one: Settings, other: Settings) -> dict[str, tuple[Any, Any]]:
    """The values of settings of the machine in which two settings of one run differ."""
    trees, found = (one.tree(), other.tree()), {}
    for path in config.marked(type(one), config.MACHINE):
        values = tuple(loading.at(tree, path, None) for tree in trees)
        if values[0] != values[1]:
            found[path] = values
    return found


def _points(axes: Mapping[str, list]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _with(file: File, point: Mapping[str, Any], words: tuple[str, ...]) -> Tree:
    tree = copy.deepcopy(file.base)
    for path, value in point.items():
        loading.assign(tree, path, copy.deepcopy(value))
    file.size.apply(tree)
    loading.override(tree, words)
    return tree
