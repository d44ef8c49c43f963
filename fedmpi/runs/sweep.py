"""A sweep: one TOML file that stands for many runs.

    [base]                      # settings of all runs
    rounds = 30

    [[grid]]                    # every value is a list; the grid is the product of the lists
    "method.name" = ["topk", "ssfl"]
    "method.sparsity" = [0.5, 0.9]
    partition = [{ name = "iid" }, { name = "dirichlet", alpha = 0.1 }]

Several grids make one sweep, one behind the other. A run that stands in two of them runs once.
"""

import copy
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmpi import config, loading
from fedmpi.config import ConfigError, Settings, Tree
from fedmpi.results import record
from fedmpi.runs import earlier, launch


@dataclass(frozen=True)
class Member:
    """One run of a sweep: its settings, and those of them by which its grid varies."""

    settings: Settings
    point: dict[str, Any]

    def __str__(self) -> str:
        return "  ".join(f"{path}={_plain(value)}" for path, value in self.point.items())


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
    """

    def __init__(
        self, file: Path, out: Path, only: Sequence[int] = (), words: tuple[str, ...] = ()
    ) -> None:
        if record.is_file(out):
            raise ConfigError(f"--out {out}: wanted a folder, because each run has its own file")
        self.file, self.words, self.out = file, words, out
        self.members = members(file, words)
        beyond = [number for number in only if number >= len(self.members)]
        if beyond:
            raise ConfigError(
                f"--only {beyond[0]}: no such run; {file} has runs 0 to {len(self.members) - 1}"
            )
        self.chosen = list(only) or list(range(len(self.members)))

    def path(self, number: int) -> Path:
        """The result file of a member."""
        return earlier.place(self.out, self.members[number].settings)

    def state(self, number: int) -> str | None:
        """The status of a member's result; None if there is none."""
        return earlier.state(self.path(number), self.members[number].settings)

    def supervise(self, ranks: int) -> int:
        """Runs what is to do in jobs of so many ranks; returns the exit code.

        One job does it all. If a run kills the job, it is marked as failed, and another job does
        the rest.
        """
        left, failed, bad, alone = self._unfinished(self.chosen), False, False, False
        out = ("--out", str(self.out))
        for number in left:
            record.mark_failed(self.path(number))
        while left:
            batch = left[:1] if alone else left
            only = [word for number in batch for word in ("--only", str(number))]
            code = launch.start(ranks, ["sweep", str(self.file), *self.words, *out, *only])
            if code in (0, 2):
                bad |= code == 2
                left = left[len(batch) :]
                continue
            begun = [number for number in batch if self.state(number) == record.RUNNING]
            if not begun and len(batch) > 1:
                # It died before its file was there: which it was shows if each has its own job.
                alone, left = True, self._unfinished(left)
                continue
            dead = (begun or batch)[0]
            record.mark_failed(self.path(dead))
            failed = True
            print(f"run {dead} ({self.members[dead]}) failed: exit code {code}", file=sys.stderr)
            left = [number for number in self._unfinished(left) if number != dead]
        return 1 if failed else 2 if bad else 0

    def _unfinished(self, numbers: Sequence[int]) -> list[int]:
        return [number for number in numbers if self.state(number) not in record.FINISHED]


def members(path: Path, words: tuple[str, ...] = ()) -> list[Member]:
    """All runs of a sweep file, checked; `key=value` words hold for all of them.

    Raises:
        ConfigError: for anything that is wrong with any of them.
    """
    tree = loading.read(path)
    problems = [
        f"{path}: no table [{key}]; there are: base, grid" for key in tree.keys() - {"base", "grid"}
    ]
    grids, base = tree.get("grid", [{}]), tree.get("base", {})
    if not isinstance(grids, list) or not all(isinstance(grid, dict) for grid in grids):
        raise ConfigError(f"{path}: 'grid' must be a list of tables: write [[grid]]")
    if not isinstance(base, dict):
        raise ConfigError(f"{path}: 'base' must be a table: write [base]")
    found: dict[str, Member] = {}
    # What is wrong with many points, such as a setting of [base], is said of the first.
    said: set[str] = set()
    for number, grid in enumerate(grids, 1):
        axes = dict(_axes(grid))
        scalars = {n: v for n, v in axes.items() if not isinstance(v, list) or not v}
        problems += [
            f"{path}: [[grid]] {number}: {name} = {values!r}: wanted a list of at least one value"
            for name, values in scalars.items()
        ]
        if scalars:
            continue
        for point in _points(axes):
            try:
                settings = loading.load(_with(base, point, words))
            except ConfigError as error:
                where = ", ".join(f"{name}={_plain(value)}" for name, value in point.items())
                fresh = [problem for problem in error.problems if problem not in said]
                problems += [f"{path}: [[grid]] {number} ({where}): {p}" for p in fresh]
                said.update(fresh)
                continue
            first = found.setdefault(settings.identity(), Member(settings, point))
            for name, values in _differences(first.settings, settings).items():
                problem = (
                    f"{name} is {' and '.join(map(config.written, values))} in what is one run: "
                    "it belongs to the machine and makes no other run; wanted one value, in [base] "
                    f"or as a word {name}=VALUE"
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


def _axes(grid: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a grid under their dotted paths, however they were nested."""
    for name, value in grid.items():
        if isinstance(value, Mapping):
            yield from _axes(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _points(axes: Mapping[str, list]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _with(base: Tree, point: Mapping[str, Any], words: tuple[str, ...]) -> Tree:
    tree = copy.deepcopy(base)
    for path, value in point.items():
        loading.assign(tree, path, value)
    loading.override(tree, words)
    return tree
