"""Claims of papers beside what was measured here, in the terminal, as CSV or as Markdown.

Sweep files state the claims of the papers whose runs they make (see `statements`). Each claim is a
row: the published figure, the one of the results, their seeds, whether the runs have the paper's
own size, and a verdict:

* `reproduced`: of the paper's own size, and within the published spread;
* `direction only`: the claim holds, but at a reduced size, or outside of the published spread, or
  no spread is published;
* `not reached`: it was measured, and does not hold;
* `not run`: no runs; what makes them, or what it would take.

Runs that differ only in their seed are averaged. What compares two runs is computed for each seed,
and averaged then.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from analysis import dots, frames, panels, statements, targets, terminal
from analysis.dots import OWN
from analysis.groups import COMPOSED, DONE, is_unset, label, written
from analysis.output import File, draft
from analysis.statements import ACCURACIES, MEASURES, Claim, Differences, Selector, Study

REPRODUCED, DIRECTION, NOT_REACHED, NOT_RUN = VERDICTS = (
    "reproduced",
    "direction only",
    "not reached",
    "not run",
)
DIVERGED = "diverged"
METHOD = "method.name"
ENDS, ENDED = "target", f"{frames.ABOUT}ended"
"""Setting of an accuracy at which a run ends, and column that says whether it did."""
ROUNDS = "rounds"
"""Setting that makes no difference for a run that has reached a target before."""
NO_OTHER = "no run to compare with, equal in all other settings"
"""Beginning of what a finding lacks then."""
LAST = "last"
"""Of `rows`: the largest value of a column."""
CLAIMS = Path(__file__).parent.parent / "jobs" / "sweeps"
"""Where the claims of this repository are."""
SMALL, OR = "small", " # or: "
"""The size of a sweep for a small machine, and what is between two commands."""
TINY = 1e-9
"""Difference of figures that is rounding."""
SHOWN = 3
"""Most settings of a reduced size that a table names."""
COLUMNS = (
    *("system", "claim", "source", "measure", "by", "runs", "against", "published", "spread"),
    *("honest", "accounting", "ours_mean", "ours_std", "ours", "n", "seeds", "size", "verdict"),
    *("why", "command", "file", "unit"),
)
"""Columns of `judged` and of its CSV file; `judged` also has `dots`, for the picture."""
COLOURS = dict(zip(VERDICTS, ("#009E73", "#0072B2", "#D55E00"), strict=False))
"""Colours of verdicts in the picture."""


class Lacking(Exception):
    """What a run lacks to be measured."""


@dataclass(frozen=True)
class Reading:
    """What was measured of one run.

    Attributes:
        value: the measure; NaN if the run never reached the target, or diverged.
        bound: what it has cost until its end without reaching the target; else NaN.
    """

    value: float
    bound: float = np.nan


@dataclass
class Results:
    """Results of a command line, read when they are needed."""

    paths: Sequence[Path]
    _tables: dict[str, dict[str, pd.DataFrame]] = field(default_factory=dict)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """As from `frames.runs`: finished and diverged ones, of equal ones the latest."""
        found = frames.runs(self.paths)
        ended = found[found["status"].isin([DONE, DIVERGED])].sort_values("finished", kind="stable")
        return ended.drop_duplicates("identity", keep="last").sort_index()

    @cached_property
    def names(self) -> list[str]:
        """Settings in which they differ, besides the seed."""
        varying = frames.varying(self.runs) if len(self.runs) else []
        return [name for name in varying if name != statements.SEED]

    def rows(self, table: str, run: Mapping[Any, Any]) -> pd.DataFrame:
        """Returns the rows of a table of one run."""
        if table not in self._tables:
            whole = frames.table(self.paths, table)
            known = {str(path): some for path, some in whole.groupby("path")} if len(whole) else {}
            self._tables[table] = known
        return self._tables[table].get(run["path"], pd.DataFrame())


def judged(studies: Iterable[Study], results: Results) -> pd.DataFrame:
    """Returns the rows of the table: at least one for each claim.

    A claim has a row for each accuracy or direction of bytes by which it is measured, and for each
    setting besides the seed in which its runs differ. Where there are runs of the paper's own size,
    those of other sizes have none.

    Raises:
        ClaimError: for a claim that names a setting that there is not.
    """
    rows, settings = [], frames.settings(results.runs)
    for study in studies:
        study.check(settings)
        for claim in study.claims:
            for by in claim.by:
                findings = _findings(study, claim, by, results)
                found = [_row(study, claim, by, one) for one in findings]
                rows += [row for row in found if row["size"] == OWN] or found
    return pd.DataFrame(rows, columns=[*COLUMNS, "dots"])


@dataclass
class Variant:
    """Runs that differ in the seed alone, and what was measured of each."""

    runs: list[Mapping[Any, Any]]
    readings: dict[Any, Reading]


@dataclass
class Finding:
    """What was found on a claim.

    Attributes:
        figures: the figure of each seed, or of each seed those of an order; NaN if not reached.
        bounded: seeds whose figure is a bound: what they are compared with reached no target.
        alone: seeds without figure, since what is to be compared was not run with them.
        missing: methods with which it is to be compared, but of which there are no runs.
        runs: the runs of it, those that they are compared with included.
        reached: the paths of those that reached the target.
        where: settings that tell it from other findings of the claim.
        against: what it is compared with: the strongest.
        target: the accuracy that was to be reached, or none.
        lacks: why there are no figures.
    """

    figures: dict[Any, Any] = field(default_factory=dict)
    bounded: set[Any] = field(default_factory=set)
    alone: set[Any] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    runs: list[Mapping[Any, Any]] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)
    where: str = ""
    against: str = ""
    target: float | None = None
    lacks: str = ""

    def add(self, variant: Variant) -> None:
        """Adds the runs of a variant."""
        self.runs += variant.runs
        readings = (variant.readings[run["seed"]] for run in variant.runs)
        pairs = zip(variant.runs, readings, strict=True)
        self.reached |= {run["path"] for run, one in pairs if not np.isnan(one.value)}


def _findings(study: Study, claim: Claim, by: tuple[str, str], results: Results) -> list[Finding]:
    """Returns what the results say on a claim; at least that they say nothing."""
    if claim.needs:
        return [Finding(lacks=claim.needs)]
    ours = matching(results.runs, claim.runs[0])
    if ours.empty:
        return [Finding(lacks=f"no finished run of {statements.label(claim.runs[0])}")]
    told = [name for name in results.names if name not in claim.tuned]
    groups = _grouped(ours, told)
    found = [_finding(study, claim, by, results, some) for some in groups]
    heads = [some.iloc[0].to_dict() for some in groups]
    differing = [
        name for name in told if name != METHOD and len({_key(head, [name]) for head in heads}) > 1
    ]
    for one, some in zip(found, groups, strict=True):
        best = one.runs[0] if one.runs else some.iloc[0].to_dict()
        tuned = [path for path in claim.tuned if path in best]
        one.where = label(best, [path for path in (*differing, *tuned) if _says(path, best)])
    # A sweep need not have something to compare with at each of its settings.
    return [one for one in found if not one.lacks.startswith(NO_OTHER)] or found


def _says(path: str, run: Mapping[Any, Any]) -> bool:
    """Whether a setting is worth a word: not devices that are not there."""
    is_none = frames.SHARE.fullmatch(path) is not None and run[path] == 0
    return not (is_unset(run[path]) or is_none)


def matching(runs: pd.DataFrame, selector: Selector) -> pd.DataFrame:
    """Returns the runs that a selector selects."""
    is_there = [
        all(_is_one_of(run.get(path), values) for path, values in selector.items())
        for run in runs.to_dict("records")
    ]
    return runs[np.array(is_there, bool)]


def _is_one_of(found: Any, values: Iterable[Any]) -> bool:
    if is_unset(found):
        return statements.UNSET in values
    return any(statements.equal(found, value) for value in values)


def _key(run: Mapping[Any, Any], names: Iterable[str]) -> tuple[str, ...]:
    """Returns settings of a run, to be compared."""
    return tuple("" if is_unset(run[name]) else repr(run[name]) for name in names)


def _grouped(runs: pd.DataFrame, names: Sequence[str]) -> list[pd.DataFrame]:
    """Returns the runs that are equal in settings, in the order in which they first appear."""
    found: dict[tuple[str, ...], list[int]] = {}
    for place, run in enumerate(runs.to_dict("records")):
        found.setdefault(_key(run, names), []).append(place)
    return [runs.iloc[places] for places in found.values()]


def _finding(
    study: Study, claim: Claim, by: tuple[str, str], results: Results, ours: pd.DataFrame
) -> Finding:
    """Returns what runs that differ in their seeds and in tuned settings say on a claim."""
    target = _target(study, claim, by, ours.to_dict("records"))
    found = Finding(target=target)
    # What is compared is equal in all other settings.
    others = [
        name
        for name in results.names
        if name in claim.equal
        or not (
            name in claim.selected
            or name in claim.tuned
            or name.startswith("method.")
            or name in COMPOSED
        )
    ]
    here = _key(ours.iloc[0].to_dict(), others)
    is_alike = [_key(run, others) == here for run in results.runs.to_dict("records")]
    alike = results.runs[np.array(is_alike, bool)]
    measured = _Measured(claim, by, target, results)
    try:
        best = measured.strongest([ours], claim.tuned)
        if claim.form == "order":
            _add_order(found, claim, measured, best, alike)
        elif claim.against:
            _add_comparison(found, claim, measured, best, alike)
        else:
            found.add(best)
            found.figures = {seed: one.value for seed, one in best.readings.items()}
    except Lacking as lacking:
        found.lacks = str(lacking)
    return found


def _target(
    study: Study, claim: Claim, by: tuple[str, str], ours: Sequence[Mapping[Any, Any]]
) -> float | None:
    """Returns the accuracy to reach: the paper's; for a reduced size its own, or the runs' end."""
    differing = {path for run in ours for path in study.reduced(claim, run)}
    if claim.target is None or not differing - {ROUNDS}:
        return claim.target
    if claim.reduced_target is not None:
        return claim.reduced_target
    for run in ours:
        ends = run.get(ENDS)
        name, _, least = ("" if is_unset(ends) else str(ends)).partition(":")
        if name == ACCURACIES[by[0]]:
            return float(least)
    return claim.target


@dataclass(frozen=True)
class _Measured:
    """Measures runs."""

    claim: Claim
    by: tuple[str, str]
    target: float | None
    results: Results

    def strongest(
        self, groups: Iterable[pd.DataFrame], tuned: Sequence[str], seeds: Iterable[Any] = ()
    ) -> Variant:
        """Returns the variant with the best mean among the given seeds, or all of its own.

        Reaching a target with more of its seeds is better than reaching it sooner. Of variants of
        the claim's own runs, with no given seeds, those with more seeds come first: a lucky seed
        is no best value. What they are compared with may lack seeds and be the strongest.

        Raises:
            Lacking: if none can be measured.
        """
        variants, lacking = [], "no runs"
        for group in groups:
            for some in _grouped(group, tuned):
                records = {
                    run["seed"]: run
                    for run in some.to_dict("records")
                    if not seeds or run["seed"] in seeds
                }
                try:
                    readings = {seed: self.reading(run) for seed, run in records.items()}
                except Lacking as error:
                    lacking = str(error)
                    continue
                if readings:
                    variants.append(Variant(list(records.values()), readings))
        if not variants:
            raise Lacking(lacking)
        return max(variants, key=lambda one: self._strength(one, bool(seeds)))

    def _strength(self, variant: Variant, is_other: bool) -> tuple[float, float]:
        values = [one.value for one in variant.readings.values() if not np.isnan(one.value)]
        sign = 1 if self.claim.better == "higher" else -1
        known = len(values) / (len(variant.readings) if is_other else 1)
        return known, sign * float(np.mean(values)) if values else -np.inf

    def reading(self, run: Mapping[Any, Any]) -> Reading:
        """Returns what is measured of a run.

        Raises:
            Lacking: if its result does not have it.
        """
        claim, (accuracy, way) = self.claim, self.by
        if run["status"] == DIVERGED:
            return Reading(np.nan)
        if claim.columns:
            return Reading(self._column(run))
        if claim.target is not None:
            return self._until(run, ACCURACIES[accuracy], way)
        if claim.name == "bytes":
            _until_its_end(run)
            return Reading(float(run["bytes_total" if way == "both" else f"{way}_total"]))
        if claim.name == "bytes a round":
            rounds = self._regular(run)
            ways = ("up", "down") if way == "both" else (way,)
            return Reading(float(sum(rounds[one].sum() for one in ways) / rounds["sampled"].sum()))
        return Reading(self._accuracy(run, ACCURACIES[accuracy]))

    def _regular(self, run: Mapping[Any, Any]) -> pd.DataFrame:
        rounds = self.results.rows("rounds", run)
        return rounds[rounds["round"] > frames.AGREEMENT]

    def _accuracy(self, run: Mapping[Any, Any], column: str) -> float:
        if isinstance(self.claim.at, int):
            rounds = self._regular(run)
            known = rounds.loc[rounds["round"] == self.claim.at - 1, column].dropna()
            if known.empty:
                raise Lacking(f"{_named(run)} has no {column} after round {self.claim.at}")
            return float(known.iloc[0])
        _until_its_end(run)
        value = run[f"{column}_{self.claim.at}"]
        if is_unset(value):
            raise Lacking(f"{_named(run)} has no accuracy {column}")
        return float(value)

    def _until(self, run: Mapping[Any, Any], column: str, way: str) -> Reading:
        assert self.target is not None
        rounds = self.results.rows("rounds", run)
        if rounds[column].isna().all():
            raise Lacking(f"{_named(run)} has no accuracy {column}")
        cost = targets.cost(rounds, self.target, column)
        name = {"rounds to target": "rounds", "seconds to target": "sim_seconds"}.get(
            self.claim.name, "bytes" if way == "both" else f"bytes_{way}"
        )
        if name == "sim_seconds" and ("sim_seconds" not in rounds or rounds[name].isna().any()):
            raise Lacking(f"{_named(run)} has no simulated devices")
        if name in cost:
            return Reading(float(cost[name]))
        if run.get(ENDED) == ENDS:
            raise Lacking(f"{_named(run)} ended at its own target {run[ENDS]}, below {self.target}")
        return Reading(np.nan, _whole(rounds, name))

    def _column(self, run: Mapping[Any, Any]) -> float:
        claim = self.claim
        value = self._mean(run, claim.columns, claim.rows)
        if not claim.per:
            return value
        return _compared(claim.form, value, self._mean(run, claim.per, claim.per_rows))

    def _mean(
        self, run: Mapping[Any, Any], columns: Sequence[str], wanted: Mapping[str, Any]
    ) -> float:
        """Returns the sum of columns' means over the rows that have the wanted values."""
        total = 0.0
        for one in columns:
            name, column = one.split(".")
            rows = self.results.rows(name, run)
            if "round" in rows:
                rows = rows[rows["round"] > frames.AGREEMENT]
            for path, value in wanted.items():
                if path not in rows or rows.empty:
                    rows = rows[:0]
                    break
                rows = rows[rows[path] == (rows[path].max() if value == LAST else value)]
            values = rows[column].dropna() if column in rows else pd.Series(dtype=float)
            if values.empty:
                raise Lacking(f"{_named(run)} has no {one}")
            total += float(values.mean())
        return total


def _whole(rounds: pd.DataFrame, name: str) -> float:
    """Returns a cost of `targets.cost` of a whole run."""
    if name == "rounds":
        return float((rounds["round"] > frames.AGREEMENT).sum())
    columns = ("up", "down") if name == "bytes" else (name.removeprefix("bytes_"),)
    return float(sum(rounds[column].sum() for column in columns))


def _until_its_end(run: Mapping[Any, Any]) -> None:
    """Raises `Lacking` for a run that did not go through all of its rounds."""
    if run.get(ENDED) == ENDS:
        raise Lacking(f"{_named(run)} ended at its target, not after all rounds")


def _named(run: Mapping[Any, Any]) -> str:
    return f"the result of {run['method.name']}"


def _compared(form: str, ours: float, theirs: float) -> float:
    """Returns the figure of a comparison; a reduction is that of the error of accuracies.

    Raises:
        Lacking: if it would be divided by zero.
    """
    if form == "difference":
        return ours - theirs
    if form != "reduction" and not (ours if form == "factor" else theirs):
        raise Lacking(f"a {form} of {theirs:g} and {ours:g} is no number")
    if form == "factor":
        return theirs / ours
    if form == "saved":
        return 1 - ours / theirs
    if form == "reduction":
        return (ours - theirs) / (1 - theirs) if theirs < 1 else np.nan
    return ours / theirs


def _add_comparison(
    found: Finding, claim: Claim, measured: _Measured, ours: Variant, alike: pd.DataFrame
) -> None:
    """Compares runs with the strongest of others, seed by seed."""
    some = [matching(alike, selector) for selector in claim.against]
    groups = [group for one in some for group in _grouped(one, measured.results.names)]
    found.missing = _missing(claim.against, some)
    wanted = "; ".join(statements.label(one) for one in claim.against)
    found.add(ours)
    if not groups:
        raise Lacking(f"{NO_OTHER}: {wanted}")
    theirs = measured.strongest(groups, (), list(ours.readings))
    found.add(theirs)
    paths = dict.fromkeys((METHOD, *claim.selected))
    found.against = label(theirs.runs[0], [path for path in paths if path in theirs.runs[0]])
    for seed, one in ours.readings.items():
        if np.isnan(one.value):
            found.figures[seed] = np.nan
            continue
        other = theirs.readings.get(seed, Reading(np.nan))
        if not np.isnan(other.value):
            found.figures[seed] = _compared(claim.form, one.value, other.value)
        elif not np.isnan(other.bound) and claim.form in ("factor", "saved"):
            found.figures[seed] = _compared(claim.form, one.value, other.bound)
            found.bounded.add(seed)
    found.alone = set(ours.readings) - set(found.figures)
    if not found.figures:
        raise Lacking(f"no common seed with {found.against}")


def _missing(selectors: Iterable[Selector], found: Iterable[pd.DataFrame]) -> list[str]:
    """Returns the methods that selectors name, and of which they selected no run."""
    wanted = dict.fromkeys(name for one in selectors for name in one.get(METHOD, ()))
    present = {name for runs in found for name in runs.get(METHOD, ())}
    return [name for name in wanted if name not in present]


def _add_order(
    found: Finding, claim: Claim, measured: _Measured, first: Variant, alike: pd.DataFrame
) -> None:
    """Measures the runs of an order."""
    variants = [first]
    for selector in claim.runs[1:]:
        some = matching(alike, selector)
        if some.empty:
            raise Lacking(f"no finished run of {statements.label(selector)}")
        variants.append(measured.strongest([some], measured.results.names))
    seeds = set.intersection(*(set(one.readings) for one in variants))
    if not seeds:
        raise Lacking("no seed that all have in common")
    for one in variants:
        found.add(one)
    found.alone = set.union(*(set(one.readings) for one in variants)) - seeds
    for seed in sorted(seeds):
        found.figures[seed] = tuple(one.readings[seed].value for one in variants)


def _row(study: Study, claim: Claim, by: tuple[str, str], found: Finding) -> dict[str, Any]:
    """Returns a row of the table."""
    differing: Differences = {}
    for run in found.runs:
        apart = study.reduced(claim, run)
        if claim.target is not None and run["path"] in found.reached:
            apart.pop(ROUNDS, None)
        differing |= apart
    is_own = not differing and bool(found.runs)
    verdict, why = judge(claim, found, is_own, by == claim.by[0])
    values = [found.figures[seed] for seed in sorted(found.figures)]
    mean, std = _statistics(values)
    is_single = claim.form != "order" and bool(values)
    # It is of the same direction of bytes as the published figure.
    honest = claim.honest if by == claim.by[0] else None
    sized = ("", SMALL) if SMALL in study.sizes else ("",)
    commands = [claim.command] if claim.command else [study.command(size) for size in sized]
    return {
        "system": claim.system,
        "claim": " ".join(filter(None, (claim.text, f"({found.where})" if found.where else ""))),
        "source": claim.source,
        "measure": claim.name,
        "by": _by(claim, by, found.target),
        "runs": " > ".join(statements.labels(claim.runs)),
        "against": found.against or "; ".join(map(statements.label, claim.against)),
        "published": _published(claim),
        "spread": "" if claim.spread is None else _tolerance(claim, claim.spread),
        "honest": "" if honest is None else _figure(honest, 0.0, claim.unit),
        "accounting": claim.accounting,
        "ours_mean": float(mean[0]) if is_single else np.nan,
        "ours_std": float(std[0]) if is_single else np.nan,
        "ours": _ours(claim, found, values),
        "n": len(values),
        "seeds": " ".join(map(str, sorted(found.figures))),
        "size": _size(differing, is_own),
        "verdict": verdict,
        "why": why,
        "command": OR.join(commands),
        "file": study.name,
        "unit": claim.unit,
        "dots": [] if verdict == NOT_RUN else _dots(claim, mean, std),
    }


def _dots(claim: Claim, mean: np.ndarray, std: np.ndarray) -> list[dots.Dot]:
    """Returns the measured figures of a claim for the picture, those of an order one by one."""
    if np.isnan(mean).any():
        return []
    names = statements.labels(claim.runs) if claim.form == "order" else [""]
    value = claim.published
    published = [np.nan] * len(names) if isinstance(value, str) else np.atleast_1d(value)
    return [dots.Dot(*each) for each in zip(names, published, mean, std, strict=True)]


def judge(claim: Claim, found: Finding, is_own: bool, is_first: bool) -> tuple[str, str]:
    """Returns the verdict on a finding, and why it is so.

    Args:
        claim: the claim.
        found: what was found on it.
        is_own: whether the runs are of the paper's own size.
        is_first: whether it is measured as in the paper: by the first of the claim's accuracies
            and directions of bytes.
    """
    if found.lacks:
        return NOT_RUN, "; ".join(filter(None, (found.lacks, _takes(claim))))
    values = [found.figures[seed] for seed in sorted(found.figures)]
    failed = sum(bool(np.isnan(value).any()) for value in values)
    if failed:
        what = "diverged" if found.target is None else f"did not reach {100 * found.target:g} %"
        return NOT_REACHED, f"{failed} of {len(values)} {what}"
    mean, _ = _statistics(values)
    holding = sum(_holds(claim, np.atleast_1d(np.array(value))) for value in values)
    is_direction = _holds(claim, mean)
    reasons = []
    if claim.form == "value" and claim.least is None and claim.most is None and not is_own:
        return NOT_RUN, "; ".join(
            filter(None, ("at a reduced size only, where the figure says nothing", _takes(claim)))
        )
    if not is_first:
        reasons.append("not measured as in the paper")
    if found.missing:
        reasons.append(f"no runs of {', '.join(found.missing)} to compare with")
    if found.alone:
        count = len(values) + len(found.alone)
        reasons.append(f"{len(found.alone)} of {count} seeds have nothing to compare with")
    is_whole = not (found.bounded or found.missing)
    if found.bounded:
        reasons.append(f"at least: {len(found.bounded)} of {len(values)} to compare with never did")
    if not is_own:
        reasons.append("reduced size")
    if isinstance(claim.published, str):
        reasons.append("no figure is published")
    elif is_own and is_first and is_whole:
        gaps = np.abs(mean - np.atleast_1d(np.array(claim.published)))
        is_ordered = claim.form != "order" or is_direction
        if claim.spread is not None:
            if (gaps <= np.atleast_1d(np.array(claim.spread)) + TINY).all() and is_ordered:
                return REPRODUCED, "; ".join(["within the published spread", *reasons])
            reasons.append("outside the published spread")
        else:
            is_near = bool((gaps <= np.atleast_1d(np.array(claim.near)) + TINY).all())
            near = f"{'near' if is_near else 'not near'}, within {_tolerance(claim, claim.near)}"
            reasons.append(f"{near}; no spread is published")
            is_direction |= is_near and claim.form == "value"
            holding = len(values) if is_near and claim.form == "value" else holding
    if 0 < holding < len(values):
        reasons.append(f"with {holding} of {len(values)} seeds")
    return (DIRECTION if is_direction else NOT_REACHED), "; ".join(reasons)


def _takes(claim: Claim) -> str:
    return f"it takes {claim.takes}" if claim.takes else ""


def _holds(claim: Claim, figure: np.ndarray) -> bool:
    """Whether a figure, or the figures of an order, have the claim's direction."""
    if claim.form == "order":
        return bool((np.diff(figure) < 0).all())
    value = float(figure[0])
    if claim.least is not None:
        return value > claim.least
    if claim.most is not None:
        return value < claim.most
    # An absolute figure: at least as good as the published one.
    is_higher = claim.better == "higher"
    return value >= claim.published if is_higher else value <= claim.published


def _statistics(values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Returns means and sample standard deviations over seeds, [figures], without those of NaN."""
    rows = np.array([np.atleast_1d(value) for value in values], float)
    rows = rows[~np.isnan(rows).any(1)] if len(rows) else rows
    if not len(rows):
        return np.array([np.nan]), np.array([np.nan])
    return rows.mean(0), rows.std(0, ddof=1) if len(rows) > 1 else np.full(rows.shape[1], np.nan)


def _figure(mean: float, std: float, unit: str) -> str:
    """Returns a figure as text for people."""
    deviation = 0.0 if np.isnan(std) else std
    if unit == "points":
        more = f"{100 * deviation:.1f}"
        return f"{100 * mean:+.1f}" + (f"±{more}" if float(more) else "") + " points"
    text = terminal.FORMS[unit](mean, deviation)
    return f"{text} %" if unit == "share" else text


def _published(claim: Claim) -> str:
    value = claim.published
    if isinstance(value, str):
        return value
    if claim.form == "order":
        both = zip(statements.labels(claim.runs), value, strict=True)
        return " > ".join(f"{name} {_plain(one, claim.unit)}" for name, one in both)
    return _plain(value, claim.unit)


def _plain(value: float, unit: str) -> str:
    """Returns a published figure with all of its digits."""
    if unit in ("share", "points"):
        sign = "+" if unit == "points" else ""
        return f"{100 * value:{sign}.6g} {'points' if unit == 'points' else '%'}"
    return f"{value:g} x" if unit == "factor" else terminal.FORMS[unit](value, 0.0)


def _tolerance(claim: Claim, value: Any) -> str:
    parts = dict.fromkeys(value if isinstance(value, tuple) else (value,))
    return ", ".join(f"±{_plain(one, claim.unit).lstrip('+')}" for one in parts)


def _ours(claim: Claim, found: Finding, values: Sequence[Any]) -> str:
    mean, std = _statistics(values)
    if np.isnan(mean).any():
        return ""
    if claim.form == "order":
        names = statements.labels(claim.runs)
        ranked = sorted(range(len(names)), key=lambda one: -mean[one])
        return " > ".join(f"{names[i]} {_figure(mean[i], std[i], claim.unit)}" for i in ranked)
    text = _figure(float(mean[0]), float(std[0]), claim.unit)
    return f"at least {text}" if found.bounded else text


def _by(claim: Claim, by: tuple[str, str], target: float | None) -> str:
    accuracy, way = by
    words = [accuracy] if accuracy else []
    if target is not None:
        words.append(f"to {100 * target:g} %")
    if "bytes" in MEASURES[claim.name].own:
        words.append({"both": "both ways"}.get(way, way))
    return ", ".join(words)


def _size(differing: Differences, is_own: bool) -> str:
    if is_own:
        return OWN
    if not differing:
        return ""
    words = [
        f"{name} {'unknown' if found is None else written(found)} "
        f"({statements.NOT_SET if wanted is None else written(wanted)})"
        for name, (found, wanted) in differing.items()
    ]
    more = [f"{len(words) - SHOWN} more"] if len(words) > SHOWN else []
    return f"reduced: {', '.join([*words[:SHOWN], *more])}"


HEADS = ("claim", "published", "ours", "seeds", "size", "verdict")
"""Headers of the printed tables."""


def cells(row: Mapping[Any, Any]) -> tuple[str, ...]:
    """Returns a row of the printed tables, as in `HEADS`."""
    claim = f"{row['claim']}. {row['measure']}"
    claim += f" ({row['by']})" if row["by"] else ""
    claim += f", against {row['against']}" if row["against"] else ""
    published = row["published"] + (f" {row['spread']}" if row["spread"] else "")
    published += f"; {row['honest']} by bytes on the wire" if row["honest"] else ""
    verdict = row["verdict"] + (f": {row['why']}" if row["why"] else "")
    return claim, published, row["ours"], str(row["n"] or ""), row["size"], verdict


def tables(rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame, list[str]]]:
    """Yields for each system and command: title, command, rows, and notes on the accounting."""
    for (system, command), some in rows.groupby(["system", "command"], sort=False):
        notes = [f"Source: {text}" for text in dict.fromkeys(some["source"])]
        notes += [f"Accounting: {text}" for text in dict.fromkeys(some["accounting"]) if text]
        yield str(system), str(command), some, notes


def _show(console: Console, rows: pd.DataFrame) -> None:
    for system, command, some, notes in tables(rows):
        table = Table(
            title=system, title_justify="left", title_style="bold", box=None, pad_edge=False,
            padding=(0, 2, 0, 0), header_style="dim", width=console.width,
        )  # fmt: skip
        for head, ratio in zip(HEADS, (10, 5, 5, 2, 6, 8), strict=True):
            table.add_column(head, ratio=ratio, overflow="fold")
        for row in some.to_dict("records"):
            table.add_row(*cells(row))
        console.print(table)
        commands = (f"Runs: {one}" for one in command.split(OR))
        for line in (*commands, *notes):
            console.print(line, style="dim", soft_wrap=True)
        console.print()


def markdown(rows: pd.DataFrame) -> str:
    """Returns the tables as Markdown."""
    lines = []
    for system, command, some, notes in tables(rows):
        commands = " or ".join(f"`{one}`" for one in command.split(OR))
        lines += [f"### {system}", "", f"Runs: {commands}.", ""]
        lines += [_line(HEADS), _line("---" for _ in HEADS)]
        lines += [_line(cells(row)) for row in some.to_dict("records")]
        lines += ["", *(f"* {note}" for note in notes), ""]
    return "\n".join(lines)


def _line(texts: Iterable[str]) -> str:
    return f"| {' | '.join(text.replace('|', '/') for text in texts)} |"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path(True, path_type=Path))
@click.option(
    "--claims", "files", multiple=True, metavar="FILE", type=click.Path(True, path_type=Path),
    help="A sweep file with claims, or a folder of them.  [default: jobs/sweeps]",
)  # fmt: skip
@click.option("--csv", type=File(), help="Write all numbers into this file (.csv).")
@click.option("--markdown", "is_markdown", is_flag=True, help="Print the tables as Markdown.")
@click.option(
    "--out", type=File(), help="Draw published figures and ours into this file: .png, .pdf, .svg."
)
def main(
    paths: tuple[Path, ...],
    files: tuple[Path, ...],
    csv: Path | None,
    is_markdown: bool,
    out: Path | None,
) -> None:
    """Hold the claims of papers against the results in PATH... (files, or folders at any depth).

    Without results each claim says which command makes its runs.
    """
    terminal.be_lenient()
    try:
        rows = judged(statements.read(files or (CLAIMS,)), Results(paths))
    except statements.ClaimError as error:
        raise click.UsageError(str(error)) from None
    if out is not None:
        if not rows["dots"].map(len).any():
            raise click.UsageError(f"--out {out}: wanted results of which a claim is measured")
        panels.save(lambda: dots.picture(rows, COLOURS), out)
    if csv is not None:
        with draft(csv, "--csv", ".csv") as to:
            rows[list(COLUMNS)].to_csv(to, index=False, encoding="utf-8", errors="surrogateescape")
    if is_markdown:
        print(markdown(rows))
        return
    console = terminal.console()
    _show(console, rows)
    counts = rows["verdict"].value_counts()
    console.print(", ".join(f"{counts.get(one, 0)} {one}" for one in VERDICTS))


if __name__ == "__main__":
    main(prog_name="python -m analysis.claims")
