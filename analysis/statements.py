"""Claims of papers: tables `[[claim]]` of sweep files, and the settings of the papers' own size.

    [[claim]]
    system = "SSFL"
    claim = "a lower error than the strongest sparse baseline, at sparsity 0.5"
    source = "Ohib et al., TMLR 2026, table of CIFAR-10: 88.29 % against DisPFL's 85.12 %"
    measure = "relative error reduction"
    accuracy = ["global", "personal_mean"]
    runs = { method.name = "ssfl", method.sparsity = 0.5 }
    against = [{ method.name = "dispfl" }, { method.name = "sparsyfed" }]
    published = 0.213
    spread = "none"
    near = 0.05
    samples = 50_000

`docs/claims.md` explains every key. The file is a sweep: its `[base]` and `[[grid]]` are the
settings at the paper's own size, and runs that differ from them are of a reduced size.
"""

import difflib
import math
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis import frames
from analysis.groups import PROBLEM, is_unset, written

Selector = Mapping[str, tuple[Any, ...]]
"""Settings by their dotted paths, each with the values of which one is wanted."""
Tree = Mapping[str, Any]
Differences = dict[str, tuple[Any, Any]]
"""Settings in which a run is not of the paper's own size: what was found, and the paper's."""

ACCURACIES = {
    "global": "accuracy",
    "shard_mean": "shard_mean",
    "personal_mean": "personal_mean",
}
"""Which accuracy, and its column of the table `rounds`."""
WAYS = ("both", "up", "down")
"""Directions of bytes."""
NO_SPREAD = "none"
"""Value of `spread` where none is published."""
SEED, PAPER = "seed", "paper"
"""Settings of a sweep that say nothing on its size: the second stands for others."""
UNSET = "unset"
"""Of a selector: runs that have no such setting."""
NOT_SET = "absent"
"""Value of a sweep's setting that takes it back, and how one that is not set reads."""
ASIDE = (
    *("target", "device", "rows", "server", "server_device"),
    *("evaluate.final", "evaluate.theory"),
)
"""Settings that change neither what is trained nor the accuracies of rounds: a claim whose runs
need one of them states it."""
SAMPLES = "samples"
TRAINING = f"{frames.ABOUT}train_samples"
"""Column of `frames.runs` with the number of the data set's training samples."""


@dataclass(frozen=True)
class Measure:
    """What is measured of a run.

    Attributes:
        better: whether higher or lower is better, by which the strongest of several is found.
        unit: share, count, bytes, seconds or factor.
        form: how a run is compared with another where the claim does not say it.
        own: keys that only some measures have, of which this one needs those in `needs`.
        needs: see `own`.
    """

    better: str
    unit: str
    form: str = "factor"
    own: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


_UNTIL = ("accuracy", "target", "reduced_target")
_COLUMNS = ("column", "rows", "per", "per_rows")
MEASURES = {
    "accuracy": Measure("higher", "share", "difference", ("accuracy", "at"), ("accuracy",)),
    "relative error reduction": Measure(
        "higher", "share", "reduction", ("accuracy", "at"), ("accuracy", "against")
    ),
    "order": Measure("higher", "share", "order", ("accuracy", "at"), ("accuracy",)),
    "rounds to target": Measure("lower", "count", own=_UNTIL, needs=_UNTIL[:2]),
    "bytes to target": Measure("lower", "bytes", own=(*_UNTIL, "bytes"), needs=_UNTIL[:2]),
    "seconds to target": Measure("lower", "seconds", own=_UNTIL, needs=_UNTIL[:2]),
    "bytes": Measure("lower", "bytes", own=("bytes",)),
    "bytes a round": Measure("lower", "bytes", own=("bytes",)),
    "FLOPs": Measure("lower", "count", "saved", _COLUMNS, ("column",)),
    "seconds": Measure("lower", "seconds", own=_COLUMNS, needs=("column",)),
    "transfer ratio": Measure("higher", "share", "ratio", _COLUMNS, ("column", "per")),
    "column": Measure("lower", "count", "ratio", (*_COLUMNS, "better", "unit"), ("column",)),
}
UNITS = ("count", "share", "bytes", "seconds", "joules")
"""Units of the measure `column`."""
NEUTRAL = {"difference": 0.0, "factor": 1.0, "saved": 0.0, "reduction": 0.0, "ratio": 1.0}
"""Forms of a comparison, and the figure of two equal runs."""
ALWAYS = ("system", "claim", "source", "measure", "runs", "published", "spread")
"""Keys that every claim has."""
COMMON = (
    *ALWAYS,
    *("against", "near", "as", "least", "most", "honest", "accounting", "tuned", "equal"),
    *("own", SAMPLES, "needs", "takes", "command", "cases"),
)
"""Keys that claims of every measure may have."""


class ClaimError(ValueError):
    """A claim that is not stated as it should be."""


@dataclass(frozen=True)
class Claim:
    """A claim, read and checked.

    Attributes:
        file: the sweep file in which it stands.
        system: name of the method or system, for people.
        text: the claim, a sentence.
        source: paper and table, or whatever else the figure is known from.
        name: the measure, a key of `MEASURES`.
        form: `value`, `order`, or a key of `NEUTRAL`.
        runs: which runs; for an order several, the first one the best.
        against: runs with which they are compared: with the strongest of these.
        published: a number, one for each of `runs`, or a text.
        spread: that of the published, likewise; none if the paper has none.
        near: what counts as near, likewise, if no spread is published.
        least: figures above it have the claim's direction; or none.
        most: figures below it have the claim's direction; or none.
        honest: what the published figure becomes by the accounting used here; or none.
        accounting: how the paper counts, if it counts otherwise.
        by: the accuracies and directions of bytes; the first as in the paper, the others besides.
        target: accuracy to reach, or none.
        reduced_target: that for runs of a reduced size; if absent, where these runs end.
        at: `last`, `best` on held-out samples, or after how many rounds.
        columns: columns of tables as `TABLE.COLUMN`, which are added up.
        per: likewise; what a run is compared with in itself.
        rows: values that the rows of `columns` have, by their columns.
        per_rows: likewise, of `per`.
        better: higher or lower.
        measured: unit of the measure.
        tuned: settings of which the best value counts, on both sides.
        equal: settings of the method that both sides share.
        own: settings of the paper's size beside those of the sweep.
        samples: training samples of the paper's data set; or none.
        needs: what is missing to measure it; a text, which may be empty.
        takes: what a run of the paper's size takes; likewise.
        command: makes the runs; likewise, and if empty it is that of the sweep.
    """

    file: Path
    system: str
    text: str
    source: str
    name: str
    form: str
    runs: tuple[Selector, ...]
    against: tuple[Selector, ...]
    published: Any
    spread: Any
    near: Any
    least: float | None
    most: float | None
    honest: float | None
    accounting: str
    by: tuple[tuple[str, str], ...]
    target: float | None
    reduced_target: float | None
    at: str | int
    columns: tuple[str, ...]
    per: tuple[str, ...]
    rows: Mapping[str, Any]
    per_rows: Mapping[str, Any]
    better: str
    measured: str
    tuned: tuple[str, ...]
    equal: tuple[str, ...]
    own: Mapping[str, Any]
    samples: int | None
    needs: str
    takes: str
    command: str

    @property
    def unit(self) -> str:
        """Unit of the claim's figure: that of the measure, or a share, factor or difference."""
        unit = self.measured
        if self.form in ("value", "order"):
            return unit
        if self.form == "difference":
            return "points" if unit == "share" else unit
        return "share" if self.form in ("saved", "reduction") else "factor"

    @property
    def selected(self) -> set[str]:
        """Settings in which compared runs may differ: those that a selector names.

        A setting of the problem, such as the partition, is one of them only if what is compared
        with names it, too: else it is the same on both sides.
        """
        first, *others = (*self.runs, *self.against)
        own = {path for path in first if not path.startswith(PROBLEM)}
        return own.union(*others)

    @property
    def named(self) -> list[tuple[str, str]]:
        """Keys and the settings that they name; of `own` those of the method alone."""
        of_method = [path for path in self.own if path.startswith("method.")]
        return [
            *(("runs", path) for one in self.runs for path in one),
            *(("against", path) for one in self.against for path in one),
            *(("tuned", path) for path in self.tuned),
            *(("equal", path) for path in self.equal),
            *(("own", path) for path in of_method),
        ]


@dataclass(frozen=True)
class Study:
    """A sweep file with claims.

    Attributes:
        file: its path.
        claims: its claims.
        sizes: names of its other sizes.
        grids: for each grid the settings of the paper's size: one of several sets of values, for
            the base and for each axis.
        paper: the method whose paper's values the base takes; or none.
        stated: the settings that the base, the grids and the sizes state.
    """

    file: Path
    claims: tuple[Claim, ...]
    sizes: tuple[str, ...]
    grids: tuple[tuple[tuple[Mapping[str, Any], ...], ...], ...]
    paper: str | None = None
    stated: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The file's path, from the working directory if it is below."""
        whole, here = self.file.resolve(), Path.cwd()
        return str(whole.relative_to(here) if whole.is_relative_to(here) else self.file)

    def command(self, size: str = "") -> str:
        """Returns the command that makes the runs, at the paper's own size or another."""
        chosen = f"--size {size} " if size else ""
        return f"fedmpi sweep {self.name} {chosen}--out results/papers/{self.file.stem}"

    def check(self, settings: Collection[str]) -> None:
        """Makes sure that there are the settings that the claims name.

        A name of `own` that there is not makes each run reduced, which the table shows; but one of
        the method would be taken for a setting that the method lacks.

        Args:
            settings: those of the results.

        Raises:
            ClaimError: for a setting that neither the sweep nor the results have.
        """
        known = {*self.stated, *settings}
        for claim in self.claims:
            for key, path in claim.named:
                possible = known if key == "own" else {*known, *claim.own}
                if path not in possible:
                    near = difflib.get_close_matches(path, sorted(possible), 1)
                    hint = f"; do you mean {near[0]}?" if near else ""
                    raise ClaimError(
                        f"{self.file}: {claim.system}: {claim.text!r}: {key}: no setting {path!r} "
                        f"in the sweep's base, grids and sizes, nor in a result{hint}"
                    )

    def reduced(self, claim: Claim, run: Mapping[Any, Any]) -> Differences:
        """Returns in which settings a run is not of the paper's own size.

        Args:
            claim: one of the claims.
            run: a row of `frames.runs`.

        Returns:
            For each setting what was found and what is the paper's; of the grid that is nearest.
        """
        found: list[Differences] = []
        for grid in self.grids or ((),):
            differing = _missed(claim.own, run)
            for alternatives in grid:
                misses: list[Differences] = []
                for one in alternatives:
                    left = {path: v for path, v in one.items() if path not in claim.own}
                    misses.append(_missed(left, run))
                differing |= misses[min(range(len(misses)), key=lambda i: len(misses[i]))]
            stated = {path for alternatives in grid for one in alternatives for path in one}
            found.append(differing | self._beside({*stated, *claim.own}, run))
        nearest = found[min(range(len(found)), key=lambda i: len(found[i]))]
        known = run.get(TRAINING)
        if claim.samples is not None and (is_unset(known) or known != claim.samples):
            nearest["training samples"] = (None if is_unset(known) else known, claim.samples)
        return nearest

    def _beside(self, stated: Collection[str], run: Mapping[Any, Any]) -> Differences:
        """Returns what a run changed of settings that are not stated; nothing if it is not known.

        The settings of the paper's size are then those that its names and its paper stand for.
        """
        found: Differences = {}
        changed = run.get(frames.CHANGED)
        if changed is None or is_unset(changed):
            return found
        taken = run.get(f"{frames.ABOUT}{PAPER}") or None
        if taken != self.paper:
            found[PAPER] = (taken or "none", self.paper or "none")
        for path, value in changed.items():
            within = (f"{path}.", f"{path}[")
            is_stated = path in stated or any(one.startswith(within) for one in stated)
            if _counts(path) and path not in ASIDE and not is_stated:
                there = run.get(path)
                is_list = any(str(one).startswith(f"{path}[") for one in run)
                text = "another" if is_list else NOT_SET
                found[path] = (text if is_unset(there) else there, value)
        return found


def _missed(wanted: Mapping[str, Any], run: Mapping[Any, Any]) -> Differences:
    """Returns what a run has otherwise than a set of settings: found and wanted.

    A method's settings that another method lacks are no difference.
    """
    found: Differences = {}
    absent = run.get(frames.ABSENT)
    without: tuple[str, ...] = () if absent is None or is_unset(absent) else absent
    for path, value in wanted.items():
        there = run.get(path)
        if not is_unset(there):
            if not equal(there, value):
                found[path] = (there, value)
        elif path in without:
            if value != NOT_SET:
                found[path] = (NOT_SET, value)
        elif not path.startswith("method.") or path == "method.name":
            found[path] = (None, value)
    return found


def equal(found: Any, wanted: Any) -> bool:
    """Whether a setting of a run has a value of a file; numbers are equal whatever their types."""
    if isinstance(found, tuple) and isinstance(wanted, tuple):
        pairs = zip(found, wanted, strict=False)
        return len(found) == len(wanted) and all(equal(one, other) for one, other in pairs)
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted or (found == wanted and {type(found), type(wanted)} == {bool})
    return bool(found == wanted)


def read(paths: Sequence[Path]) -> list[Study]:
    """Returns the sweep files with claims among files and folders, at any depth.

    Raises:
        ClaimError: for a file that cannot be read, a claim that is stated wrongly, and files that
            hold no claims at all.
    """
    files: dict[Path, None] = {}
    for path in paths:
        found = sorted(path.rglob("*.toml")) if path.is_dir() else [path]
        files.update(dict.fromkeys(found))
    studies = [study for file in files if (study := _study(file)).claims]
    if not studies:
        raise ClaimError(f"no [[claim]] in {', '.join(map(str, paths))}")
    return studies


def _study(file: Path) -> Study:
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ClaimError(f"{file}: {(error.strerror or str(error)).lower()}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ClaimError(f"{file}: no TOML: {error}") from None
    stated = tree.get("claim", [])
    for name in ("claim", "grid"):
        found = tree.get(name, [])
        if not (isinstance(found, list) and all(isinstance(one, Mapping) for one in found)):
            raise ClaimError(f"{file}: {name}: wanted tables [[{name}]], found {found!r}")
    for name in ("base", "sizes"):
        if not isinstance(tree.get(name, {}), Mapping):
            raise ClaimError(f"{file}: {name}: wanted a table, found {tree[name]!r}")
    claims = tuple(
        claim for number, one in enumerate(stated, 1) for claim in _claims(file, number, one)
    )
    if not claims:
        return Study(file, (), (), ())
    paper = tree.get("base", {}).get(PAPER)
    sizes, grids = tree.get("sizes", {}), tuple(_grids(tree))
    study = Study(file, claims, tuple(sizes), grids, paper, frozenset(_stated(tree)))
    _check_sizes(study, tree)
    return study


def _grids(tree: Tree) -> Iterator[tuple[tuple[Mapping[str, Any], ...], ...]]:
    """Yields the settings of each grid, as in `Study.grids`; seeds and the machine's are left."""
    base = dict(frames.flat(tree.get("base", {})))
    for grid in tree.get("grid", []) or [{}]:
        axes = list(_axes(grid))
        taken = tuple(path for path, _ in axes)
        within = tuple(f"{path}{mark}" for path in taken for mark in ".[")
        left = {p: v for p, v in base.items() if p not in taken and not p.startswith(within)}
        parts: list[tuple[Mapping[str, Any], ...]] = [
            ({path: value},) for path, value in left.items() if _counts(path)
        ]
        for path, values in axes:
            sets = (frames.flat({path: value}) for value in values)
            parts.append(tuple({p: v for p, v in one if _counts(p)} for one in sets))
        yield tuple(parts)


def _stated(tree: Tree) -> Iterator[str]:
    """Yields the settings that a sweep's base, grids and sizes state."""
    sizes = [one for one in tree.get("sizes", {}).values() if isinstance(one, Mapping)]
    for part in (tree.get("base", {}), *sizes):
        yield from (path for path, _ in frames.flat({k: v for k, v in part.items() if k != "grid"}))
    of_sizes = [one["grid"] for one in sizes if isinstance(one.get("grid"), Mapping)]
    for grid in (*tree.get("grid", []), *of_sizes):
        for path, values in _axes(grid):
            yield from (name for value in values for name, _ in frames.flat({path: value}))


def _axes(grid: Tree, prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    for name, value in grid.items():
        if isinstance(value, Mapping):
            yield from _axes(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, list) else [value]


def _counts(path: str) -> bool:
    """Whether a setting of a sweep counts for the size of a run."""
    return path not in (SEED, PAPER, *frames.MACHINE)


def _check_sizes(study: Study, tree: Tree) -> None:
    """Makes sure that runs of another size can be told from those of the paper's own."""
    stated = {path for grid in study.grids for part in grid for one in part for path in one}
    for claim in study.claims:
        name = f"{study.file}: {claim.system}: {claim.text!r}"
        if (PAPER in tree.get("base", {}) or not stated) and not claim.own:
            raise ClaimError(
                f"{name}: own: missing; the settings of the paper's own size are not in the "
                "sweep's base and grids, or only as those of a paper: name those that tell it"
            )
        for size, changes in tree.get("sizes", {}).items():
            if not isinstance(changes, Mapping):
                raise ClaimError(f"{study.file}: sizes.{size}: wanted a table, found {changes!r}")
            changed = [
                path
                for path, _ in frames.flat({k: v for k, v in changes.items() if k != "grid"})
                if _counts(path)
            ]
            if changed and not {*stated, *claim.own}.intersection(changed):
                raise ClaimError(
                    f"{name}: size {size} changes {', '.join(changed)}, whose values at the "
                    "paper's own size are not known: name one of them in own, or in [base]"
                )


def _claims(file: Path, number: int, stated: Tree) -> Iterator[Claim]:
    """Yields the claims of a table: one, or one for each of its `cases`."""
    name = f"{file}: claim {number} ({stated.get('system', '?')})"
    cases = stated.get("cases", [{}])
    if not (isinstance(cases, list) and cases and all(isinstance(one, Mapping) for one in cases)):
        raise ClaimError(f"{name}: cases: wanted tables, found {cases!r}")
    common = {key: value for key, value in stated.items() if key != "cases"}
    for case in cases:
        whole = {**common, **case}
        if "runs" in common and "runs" in case:
            whole["runs"] = [
                _merged(one, other)
                for one, other in zip(
                    *_doubled(_listed(common["runs"]), _listed(case["runs"])), strict=True
                )
            ]
        if "claim" in common and "claim" in case:
            whole["claim"] = f"{common['claim']}: {case['claim']}"
        yield _Reader(name, whole).claim(file)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _doubled(one: list[Any], other: list[Any]) -> tuple[list[Any], list[Any]]:
    """Returns two lists of equal lengths: a list of one is repeated."""
    longest = max(len(one), len(other))
    return (
        one * (longest if len(one) == 1 else 1),
        other * (longest if len(other) == 1 else 1),
    )


def _merged(one: Any, other: Any) -> Any:
    """Returns a tree with the values of a second one in it."""
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return other
    return {**one, **{k: _merged(one[k], v) if k in one else v for k, v in other.items()}}


class _Reader:
    """Reads the keys of one claim, and says what is wrong with them."""

    def __init__(self, name: str, stated: Tree) -> None:
        self.name, self.stated = name, stated

    def claim(self, file: Path) -> Claim:
        measure = self._one_of("measure", MEASURES)
        about = MEASURES[measure]
        self._check_keys(measure, about)
        runs, against = self._selectors("runs"), self._selectors("against")
        is_order = measure == "order"
        if is_order != (len(runs) > 1):
            wanted = "several tables, the best first" if is_order else "one table"
            self._refuse("runs", wanted, self.stated["runs"])
        columns, per = self._columns("column"), self._columns("per")
        form = self._form(about, bool(against), bool(per))
        if against and per:
            raise self._error("against and per: a claim has one of them, found both")
        published = self._published(len(runs), is_order)
        spread, near = self._tolerance(published)
        least, most = self._direction(form, published)
        accuracies, ways = self._several("accuracy", ACCURACIES), self._several("bytes", WAYS)
        return Claim(
            file=file,
            system=self._text("system"),
            text=self._text("claim"),
            source=self._text("source"),
            name=measure,
            form=form,
            runs=runs,
            against=against,
            published=published,
            spread=spread,
            near=near,
            least=least,
            most=most,
            honest=self._number("honest"),
            accounting=self._text("accounting"),
            by=tuple((one, way) for one in accuracies or ("",) for way in ways or ("both",)),
            target=self._share("target"),
            reduced_target=self._share("reduced_target"),
            at=self._at(),
            columns=columns,
            per=per,
            rows=self._table("rows"),
            per_rows=self._table("per_rows"),
            better=self._one_of("better", ("higher", "lower"), about.better),
            measured=self._one_of("unit", UNITS, about.unit),
            tuned=self._texts("tuned"),
            equal=self._texts("equal"),
            own=dict(frames.flat(self._table("own"))),
            samples=self._count(SAMPLES),
            needs=self._text("needs"),
            takes=self._text("takes"),
            command=self._text("command"),
        )

    def _error(self, text: str) -> ClaimError:
        return ClaimError(f"{self.name}: {text}")

    def _refuse(self, key: str, wanted: str, found: Any) -> None:
        raise self._error(f"{key}: wanted {wanted}, found {found!r}")

    def _check_keys(self, measure: str, about: Measure) -> None:
        possible = (*COMMON, *about.own)
        for key in self.stated:
            if key not in possible:
                elsewhere = [name for name, other in MEASURES.items() if key in other.own]
                if elsewhere:
                    raise self._error(
                        f"{key}: not with the measure {measure!r}; with {', '.join(elsewhere)}"
                    )
                near = difflib.get_close_matches(key, possible, 1)
                hint = f"; do you mean {near[0]}?" if near else ""
                raise self._error(f"no key {key!r}{hint} There are: {', '.join(possible)}")
        for key in (*ALWAYS, *about.needs):
            if key not in self.stated:
                raise self._error(f"{key}: missing; a claim by {measure} needs it")

    def _one_of(self, key: str, possible: Any, default: str | None = None) -> str:
        value = self.stated.get(key, default)
        if value not in tuple(possible):
            self._refuse(key, " or ".join(possible), value)
        return str(value)

    def _several(self, key: str, possible: Any) -> tuple[str, ...]:
        found = tuple(_listed(self.stated.get(key, [])))
        for one in found:
            if one not in tuple(possible):
                self._refuse(key, f"one or several of {', '.join(possible)}", self.stated[key])
        return found

    def _text(self, key: str) -> str:
        value = self.stated.get(key, "")
        if not isinstance(value, str) or (key in self.stated and not value.strip()):
            self._refuse(key, "a text", value)
        return " ".join(value.split())

    def _texts(self, key: str) -> tuple[str, ...]:
        value = self.stated.get(key, [])
        if not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
            self._refuse(key, "a list of settings", value)
        return tuple(value)

    def _table(self, key: str) -> Tree:
        value = self.stated.get(key, {})
        if not isinstance(value, Mapping):
            self._refuse(key, "a table", value)
        return value

    def _number(self, key: str) -> float | None:
        value = self.stated.get(key)
        if value is not None and not _is_number(value):
            self._refuse(key, "a number", value)
        return None if value is None else float(value)

    def _share(self, key: str) -> float | None:
        value = self._number(key)
        if value is not None and not 0 < value <= 1:
            self._refuse(key, "an accuracy, more than 0 and at most 1", value)
        return value

    def _count(self, key: str) -> int | None:
        value = self.stated.get(key)
        if value is not None and (not isinstance(value, int) or value < 1 or value is True):
            self._refuse(key, "a number of at least 1", value)
        return value

    def _at(self) -> str | int:
        value = self.stated.get("at", "last")
        if isinstance(value, int) and value is not True and value >= 1:
            return value
        return self._one_of("at", ("last", "best"), "last")

    def _columns(self, key: str) -> tuple[str, ...]:
        found = tuple(_listed(self.stated.get(key, [])))
        for one in found:
            if not (isinstance(one, str) and one.count(".") == 1 and all(one.split("."))):
                self._refuse(key, "TABLE.COLUMN, or a list of them", self.stated[key])
        return found

    def _selectors(self, key: str) -> tuple[Selector, ...]:
        found = []
        for one in _listed(self.stated.get(key, [])):
            if not isinstance(one, Mapping) or not one:
                self._refuse(key, "settings, such as { method.name = 'fedavg' }", one)
            selector = {}
            for path, value in frames.flat(one):
                selector[path] = value if isinstance(value, tuple) else (value,)
                if not selector[path]:
                    self._refuse(f"{key}.{path}", "a value, or a list of values", value)
            found.append(selector)
        return tuple(found)

    def _form(self, about: Measure, is_compared: bool, has_per: bool) -> str:
        if about.form == "order":
            if is_compared or "as" in self.stated:
                raise self._error("against and as: an order has neither")
            return "order"
        if not (is_compared or has_per):
            if "as" in self.stated:
                raise self._error("as: a claim without against or per compares nothing")
            return "value"
        if about.form == "reduction" and "as" in self.stated:
            raise self._error("as: a relative error reduction is what it is")
        possible = [form for form in NEUTRAL if form != "reduction"]
        return about.form if "as" not in self.stated else self._one_of("as", possible)

    def _published(self, runs: int, is_order: bool) -> Any:
        value = self.stated["published"]
        if isinstance(value, str) and value.strip():
            return " ".join(value.split())
        if is_order:
            if not isinstance(value, list) or len(value) != runs or not all(map(_is_number, value)):
                self._refuse("published", f"a text, or {runs} numbers as in runs", value)
            return tuple(map(float, value))
        if not _is_number(value):
            self._refuse("published", "a number or a text", value)
        return float(value)

    def _tolerance(self, published: Any) -> tuple[Any, Any]:
        """Returns the spread and what counts as near; one of them is none, if not both."""
        spread, near = self.stated["spread"], self.stated.get("near")
        if spread != NO_SPREAD:
            if near is not None:
                raise self._error("near: wanted where spread is 'none' only")
            if isinstance(published, str):
                self._refuse("spread", "'none', since no number is published", spread)
            return self._as_many("spread", spread, published), None
        if isinstance(published, str):
            if near is not None:
                raise self._error("near: no number is published that a figure could be near")
            return None, None
        if near is None:
            raise self._error("near: missing; say what counts as near, since spread is 'none'")
        if isinstance(near, str) and near.endswith("%") and _is_number(text := _parsed(near[:-1])):
            parts = published if isinstance(published, tuple) else (published,)
            shares = tuple(abs(text / 100 * one) for one in parts)
            return None, shares if isinstance(published, tuple) else shares[0]
        return None, self._as_many("near", near, published)

    def _as_many(self, key: str, value: Any, published: Any) -> Any:
        """Returns a tolerance for each published number."""
        values = _listed(value)
        if not values or not all(_is_number(one) and one >= 0 for one in values):
            more = "'none', " if key == "spread" else "a share such as '10 %', "
            self._refuse(key, f"{more}or a number of at least 0", value)
        if not isinstance(published, tuple):
            if isinstance(value, list):
                self._refuse(key, "one number, as published", value)
            return float(value)
        if len(values) not in (1, len(published)):
            self._refuse(key, f"one number, or {len(published)} as published", value)
        return tuple(map(float, values * (len(published) if len(values) == 1 else 1)))

    def _direction(self, form: str, published: Any) -> tuple[float | None, float | None]:
        """Returns the figures above, or below, which a figure has the claim's direction."""
        least, most = self._number("least"), self._number("most")
        if least is not None and most is not None:
            raise self._error("least and most: a claim has one direction, found both")
        if form == "order":
            if least is not None or most is not None:
                raise self._error("least and most: the direction of an order is the order")
            return None, None
        if least is not None or most is not None:
            return least, most
        if isinstance(published, str):
            raise self._error(
                "least or most: missing; say which figures bear the claim out, since no number is "
                "published"
            )
        if form == "value":
            return None, None
        neutral = NEUTRAL[form]
        return (neutral, None) if published > neutral else (None, neutral)


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and value is not True
        and value is not False
        and math.isfinite(value)
    )


def _parsed(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def label(selector: Selector) -> str:
    """Returns a selector as text for people; names stand alone."""
    words = []
    for path, values in selector.items():
        text = " or ".join(written(value) for value in values)
        is_name = path in ("method.name", "partition.name")
        words.append(
            text if is_name else f"{path.removeprefix('method.').removesuffix('.name')}={text}"
        )
    return " ".join(words)


def labels(selectors: Sequence[Selector]) -> list[str]:
    """Returns selectors as texts that tell them apart: without what all of them have in common."""
    first, *others = selectors
    common = {
        path for path in first if others and all(one.get(path) == first[path] for one in others)
    }
    return [label({path: one[path] for path in one if path not in common}) for one in selectors]
