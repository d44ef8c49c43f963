"""Seconds of collectives and of work, fitted to measurements; and from them those of exchanges.

A collective of P ranks with m bytes a rank takes a L(P) + b V(P) m seconds: a latency for each of
L messages that follow each other, and a time for each byte of V messages (R. Hockney, *The
communication challenge for MPP*, Parallel Computing 20(3), 1994). L and V are 1, ceil(log2 P) or
P - 1. Where several numbers of ranks were measured, the forms that fit best are taken, else those
of `USUAL`. MPI libraries change their way with the length of a message, so that a and b are fitted
in up to four ranges of it (`SEGMENTS`).

Ranks on several nodes: what goes to or from a node's first rank, and what goes between the first
ones of the nodes, follow each other, each with its own a and b (`near` and `far`). A link between
nodes carries the messages of all ranks of a node in a gather, and in an `alltoall`.

A step of work on n values of which k are kept takes c + d n + e k seconds. A cache that a vector no
longer fits changes all three, so that they, too, are fitted in up to four ranges of n. Positions of
more than n / 32 kept values are a bitmap, and of fewer ones numbers, which takes other loops. So
steps that depend on kept values have two rates, for few and for many of them (`BY_SHARE`).

What an exchange takes beyond its steps, whatever their sizes, is what the exchange of the smallest
vectors that were measured takes beyond them; it grows as ceil(log2 P).

All fits minimize the sum of squared relative errors, and no parameter is negative. What several
files have measured counts with the median of its times.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import combinations, pairwise, product
from math import ceil, inf, log2
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedmpi.errors import BadInput
from fedmpi.messages import partial as sums
from fedmpi.messages.counts import keep_round

FORMS: dict[str, Callable[[int], int]] = {
    "once": lambda ranks: 1,
    "log": lambda ranks: ceil(log2(ranks)),  # none for one rank
    "each": lambda ranks: ranks - 1,
}
"""How many messages follow each other, for two ranks or more."""
USUAL = {
    "meet": ("log", "once"),
    "bcast": ("log", "log"),
    "gather": ("log", "each"),
    "near": ("log", "once"),
    "reduce": ("log", "log"),
    "pair": ("once", "once"),
    "alltoall": ("each", "once"),
}
"""Forms of latency and volume where one number of ranks was measured. The bytes are those that a
rank sends, in an `alltoall` to all ranks together."""
MEETS = {"meet": 0, "near": 2, "pair": 0}
"""Barriers of a collective. One for those that are not here; `near` has another one, before its
leader reads."""
SEGMENTS, LEAST = 4, 3
"""Ranges of lengths at most, and lengths of a collective in each at least."""
MANY = " many"
"""Behind the name of a step of work, if more than one value in 32 is kept."""
BY_SHARE = ("select", "pack", "read", "add", "scan")
"""Steps with a rate for few kept values, and one for many."""
GOOD = 0.2
"""A relative error up to which a prediction counts as good."""
LEVELS = ("near", "far")
WORD = 8
"""Bytes of a count."""
HEAD, WORDS = 24, 48
"""Bytes of a packed buffer, and of a message with one block, beside values and positions."""


@dataclass(frozen=True)
class Law:
    """Seconds of a collective on a level.

    Attributes:
        latency: form of the latency, a key of `FORMS`.
        volume: form of the volume.
        upto: the last length of each range, bytes of a rank; the last one is infinite.
        a: seconds a message, for each range.
        b: seconds a byte, for each range.
    """

    latency: str
    volume: str
    upto: tuple[float, ...]
    a: tuple[float, ...]
    b: tuple[float, ...]

    def seconds(self, ranks: int, size: float) -> float:
        """Those of so many ranks, with so many bytes each; none for one rank."""
        if ranks < 2:
            return 0.0
        at = next(place for place, last in enumerate(self.upto) if size <= last)
        forms = FORMS[self.latency](ranks), FORMS[self.volume](ranks)
        return self.a[at] * forms[0] + self.b[at] * forms[1] * size


@dataclass(frozen=True)
class Rate:
    """Seconds of a step of work: c + d n + e k for n values of which k are kept.

    Attributes:
        upto: the last n of each range; the last one is infinite.
        c: seconds, for each range.
        d: seconds a value, for each range.
        e: seconds a kept value, for each range.
    """

    upto: tuple[float, ...]
    c: tuple[float, ...]
    d: tuple[float, ...]
    e: tuple[float, ...]

    def seconds(self, size: float, kept: float) -> float:
        """Those of one vector."""
        at = next(place for place, last in enumerate(self.upto) if size <= last)
        return self.c[at] + self.d[at] * size + self.e[at] * kept


@dataclass(frozen=True)
class Fit:
    """How well something is known.

    Attributes:
        points: measurements.
        residual: median of the relative errors of what was fitted, as absolute values.
        worst: the largest.
        held: median of the errors at sizes that were left out of a fit to all others, every third
            in turns; NaN where there are too few sizes.
        good: share of these errors that are at most `GOOD`.
    """

    points: int
    residual: float
    worst: float
    held: float
    good: float


@dataclass(frozen=True)
class Load:
    """A round's exchange.

    Attributes:
        clients: that upload.
        ranks: of the job.
        per_node: ranks of a node.
        parameters: values of an update.
        sparsity: share of them that are not sent.
        agreed: whether all ranks know the positions.
        ready: whether the values are chosen already.
        shared: whether rank 0 hosts clients, too; it does in any case if it is alone.
        travels: whether positions are sent with an upload's values, if they are its own.
    """

    clients: int
    ranks: int
    per_node: int
    parameters: int
    sparsity: float
    agreed: bool = False
    ready: bool = False
    shared: bool = False
    travels: bool = True

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return -(-self.ranks // self.per_node)

    @property
    def near(self) -> int:
        """Ranks of the fullest node."""
        return min(self.ranks, self.per_node)

    @property
    def mine(self) -> int:
        """Clients of the rank that has most of them."""
        hosts = self.ranks if self.shared else max(1, self.ranks - 1)
        return -(-self.clients // hosts)

    @property
    def kept(self) -> int:
        """Values of an upload."""
        return keep_round(self.parameters, 1 - self.sparsity)

    @property
    def summed(self) -> int:
        """Values of a sum of uploads that is dense where it may be."""
        return self.kept if self.agreed else self.parameters

    def message(self, kept: float) -> float:
        """Bytes of a packed message with so many values; all of them have no positions."""
        is_whole = self.agreed or kept == self.parameters
        positions = 0.0 if is_whole else min(4 * kept, self.parameters / 8)
        return WORDS + 4 * kept + positions

    @property
    def is_bare(self) -> bool:
        """Whether uploads have no positions."""
        return self.agreed or self.kept == self.parameters or not self.travels

    @property
    def chooses(self) -> bool:
        """Whether clients have to choose which values they send."""
        return not (self.ready or self.agreed or self.kept == self.parameters)

    @property
    def upload(self) -> float:
        """Bytes of a packed upload."""
        return self.message(self.kept) if self.travels else WORDS + 4.0 * self.kept

    def union(self, clients: int) -> float:
        """Values of a sum of so many uploads whose positions have nothing in common but chance."""
        if self.agreed:
            return self.kept
        return self.parameters * (1 - (1 - self.kept / self.parameters) ** clients)

    def is_sparse(self, kept: float) -> bool:
        """Whether a sum with so many values is sent with positions (see `messages.partial`)."""
        return sums.is_sparse(kept, self.summed)

    def part(self, kept: float) -> float:
        """Bytes of a packed sum with so many values."""
        return self.message(kept) if self.is_sparse(kept) else WORDS + 4 * self.summed


@dataclass(frozen=True)
class Step:
    """A part of an exchange, on the rank that takes longest.

    Attributes:
        part: move, or a step of work: a key of `PART_OF`.
        law: the collective, if it moves something; else where the work is done: on each rank at
            once, or on the root alone.
        times: how often it is done.
        ranks: ranks that move something within a node, and between nodes.
        size: bytes of each of them; values of a vector, if it is work.
        kept: of these the ones that are kept.
    """

    part: str
    law: str
    times: float = 1.0
    ranks: tuple[int, int] = (1, 1)
    size: float = 0.0
    kept: float = 0.0


def are_many(size: float, kept: float) -> bool:
    """Whether positions of so many kept values of a vector are a bitmap."""
    return 32 * kept > size


def move(law: str, near: int, far: int, size: float) -> Step:
    """A collective of so many ranks of a node, and so many nodes, with so many bytes a rank."""
    return Step("move", law, ranks=(near, far), size=size)


def choose(load: Load) -> list[Step]:
    """Choosing and writing the uploads of a rank's clients."""
    found = [work("select", "each", load, load.mine)] if load.chooses else []
    if load.is_bare:
        return [*found, work("pack dense", "each", load, load.mine, size=load.kept)]
    return [*found, work("pack", "each", load, load.mine)]


def read(load: Load, times: float) -> Step:
    """Reading uploads on the root, or on the first rank of a node."""
    if load.is_bare:
        return work("read dense", "root", load, times, size=load.kept)
    return work("read", "root", load, times)


def work(
    part: str,
    where: str,
    load: Load,
    times: float = 1,
    kept: float | None = None,
    size: float | None = None,
) -> Step:
    """A step of work on vectors of so many values, of which `kept` are sent; else on uploads."""
    length = load.parameters if size is None else size
    return Step(part, where, times, (1, 1), length, load.kept if kept is None else kept)


def added(load: Load, where: str, times: float) -> list[Step]:
    """Adding up uploads. Values at positions that all ranks know lie one behind the other."""
    if load.agreed:
        return [work("add dense", where, load, times, size=load.kept)]
    step = "add dense" if load.kept == load.parameters else "add"
    return [work("clear", where, load), work(step, where, load, times)]


def written(load: Load, where: str, kept: float, share: float = 1) -> list[Step]:
    """Writing a sum with so many values, or a share of it."""
    about: dict[str, float] = {"size": load.summed * share, "kept": kept * share}
    pack = "pack" if load.is_sparse(kept) else "pack dense"
    return [work("scan", where, load, **about), work(pack, where, load, **about)]


def merged(load: Load, where: str, kept: float, times: float = 1, share: float = 1) -> list[Step]:
    """Reading and adding sums with so many values, or a share of each."""
    parts = ("read", "add") if load.is_sparse(kept) else ("read dense", "add dense")
    about: dict[str, float] = {"size": load.summed * share, "kept": kept * share}
    return [work(part, where, load, times, **about) for part in parts]


@dataclass
class Model:
    """What is known of a machine.

    Attributes:
        laws: by collective and level.
        rates: by step of work and place: each or root.
        fits: how well each of them is known.
        about: where and with what it was measured.
        measured: seconds of exchanges that were measured; nothing was fitted to them.
    starts: by exchange, what it takes beyond its steps: seconds for each of ceil(log2 P).
    """

    laws: dict[str, Law] = field(default_factory=dict)
    rates: dict[str, Rate] = field(default_factory=dict)
    fits: dict[str, Fit] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    measured: list[dict[str, Any]] = field(default_factory=list)
    starts: dict[str, float] = field(default_factory=dict)

    def collective(self, name: str, near: int, far: int, size: float) -> float:
        """Seconds of a collective and its barrier on the ranks of each node, and the nodes.

        Raises:
            BadInput: if its level was not measured.
        """
        meets = MEETS.get(name, 1)
        total = meets * self.collective("meet", near, far, WORD) if meets else 0.0
        between = size * near if name in ("gather", "alltoall") else size
        for level, ranks, each in (("near", near, size), ("far", far, between)):
            if ranks > 1:
                if f"{name} {level}" not in self.laws:
                    raise BadInput(
                        f"{name}: wanted measurements {MEANING[level]}, found none; {ADVICE[level]}"
                    )
                total += self.laws[f"{name} {level}"].seconds(ranks, each)
        return total

    def seconds(self, step: Step) -> float:
        """Those of a part of an exchange.

        Raises:
            BadInput: if what it takes was not measured.
        """
        if step.part == "move":
            return self.collective(step.law, *step.ranks, step.size)
        keys = [f"{step.part} {step.law}", f"{step.part}{MANY} {step.law}"]
        known = [key for key in keys if key in self.rates]
        if not known:
            wanted = "wanted measurements of work, found none"
            raise BadInput(f"{keys[0]}: {wanted}; run bench mpi --work")
        key = known[-1 if are_many(step.size, step.kept) else 0]
        return step.times * self.rates[key].seconds(step.size, step.kept)

    def parts(self, exchange: str, steps: Iterable[Step], ranks: int) -> dict[str, float]:
        """Seconds of an exchange on so many ranks by part: `PARTS`."""
        found = dict.fromkeys(PARTS, 0.0)
        for step in steps:
            found[PART_OF[step.part]] += self.seconds(step)
        found["start"] = self.starts.get(exchange, 0.0) * FORMS["log"](ranks)
        return found

    def text(self) -> str:
        """As JSON, to be kept."""
        return json.dumps(asdict(self), indent=1)


PART_OF = {
    "select": "choose",
    "pack": "pack",
    "pack dense": "pack",
    "read": "pack",
    "read dense": "pack",
    "scan": "pack",
    "clear": "add",
    "add": "add",
    "add dense": "add",
    "move": "move",
}
PARTS = ("choose", "pack", "move", "add", "start")
"""Choosing values; writing and reading messages and sums; moving them; adding; and what is left
over."""
MEANING = {"near": "within a node", "far": "between nodes"}
ADVICE = {
    "near": "run fedmpi bench mpi on several ranks of a node",
    "far": "run fedmpi bench mpi on several nodes, or name their link with --link",
}


def place() -> Path:
    """The file of this machine's model, in the user's data folder."""
    from platformdirs import user_data_path

    return user_data_path("fedmpi") / "costs.json"


def parsed(text: str) -> Model:
    """Reads what `Model.text` wrote.

    Raises:
        BadInput: if it is something else.
    """
    try:
        tree = json.loads(text)
        laws = {
            name: Law(
                law["latency"], law["volume"], *(tuple(law[key]) for key in ("upto", "a", "b"))
            )
            for name, law in tree["laws"].items()
        }
        rates = {
            name: Rate(*(tuple(rate[key]) for key in ("upto", "c", "d", "e")))
            for name, rate in tree["rates"].items()
        }
        fits = {name: Fit(**fit) for name, fit in tree["fits"].items()}
        return Model(laws, rates, fits, tree["about"], tree["measured"], tree["starts"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise BadInput(
            "wanted a model of costs as fedmpi bench predict --model writes it"
        ) from None


Steps = Callable[[str], Callable[[Load], list[Step]] | None]
"""Returns of what steps the exchange of that name consists; None if it does not say so."""


def fitted(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], steps_of: Steps) -> Model:
    """Fits a model to rows of `bench mpi`, of one file or several.

    The time of a row is that of the slowest rank.

    Args:
        rows: with its columns.
        about: what is to be known of them.
        steps_of: the exchanges' steps.
    """
    model = Model(about=dict(about))
    ours = [row for row in _medians(rows) if row["side"] == "ours"]
    for name, level in product(USUAL, LEVELS):
        some = _points(ours, name, level)
        if some:
            model.laws[f"{name} {level}"] = law(some, name)
            model.fits[f"{name} {level}"] = assess(some, partial(law, name=name))
    work: dict[str, list[Point]] = {}
    for row in ours:
        if row["kind"] == "work":
            size, name = int(row["bytes"]) // 4, row["name"]
            kept = keep_round(size, 1 - float(row["sparsity"]))
            name += MANY if name in BY_SHARE and are_many(size, kept) else ""
            point = (size, kept, 1e-6 * float(row["max_us"]))
            work.setdefault(f"{name} {row['level']}", []).append(point)
    for key, points in work.items():
        model.rates[key] = rate(points)
        model.fits[key] = assess(points, rate, size=0)
    for row in ours:
        if row["kind"] == "exchange":
            load = {"ranks": int(row["ranks"]), "per_node": int(row["per_node"])}
            load["clients"] = int(row["clients"]) * max(1, load["ranks"] - 1)
            load["parameters"] = int(row["bytes"]) // 4
            more = {"sparsity": float(row["sparsity"]), "agreed": row["positions"] == "agreed"}
            seconds = {"exchange": row["name"], "seconds": 1e-6 * float(row["max_us"])}
            model.measured.append({**seconds, **load, **more})
    _begin(model, steps_of)
    return model


def _medians(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each case, with the median of its times."""
    cases: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        case = (item for item in row.items() if item[0] not in ("moved", "iterations"))
        cases.setdefault(tuple(kv for kv in case if not kv[0].endswith("_us")), []).append(row)
    return [
        {**some[0], "max_us": float(np.median([float(row["max_us"]) for row in some]))}
        for some in cases.values()
    ]


def held(model: Model, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Relative errors of the laws, as absolute values, at rows that they were not fitted to."""
    found, some = {}, _medians(rows)
    for key, known in model.laws.items():
        points = _points(some, *key.split())
        if points:
            found[key] = _errors(known, points)
    return found


def _points(rows: Sequence[Mapping[str, Any]], name: str, level: str) -> list["Point"]:
    """Ranks, bytes and seconds of our collective of that name on a level."""
    wanted = ("collective", name, level, "ours")
    return [
        (int(row["ranks"]), float(row["bytes"]), 1e-6 * float(row["max_us"]))
        for row in rows
        if (row["kind"], row["name"], row["level"], row["side"]) == wanted and row["ranks"] > 1
    ]


def _begin(model: Model, steps_of: Steps) -> None:
    """Fits `starts` to the smallest vectors, which then are no longer `measured`."""
    least = min((row["parameters"] for row in model.measured), default=0)
    small = [row for row in model.measured if row["parameters"] == least]
    model.measured = [row for row in model.measured if row["parameters"] > least]
    beyond: dict[str, list[float]] = {}
    for row in small:
        steps = steps_of(row["exchange"])
        if steps is not None and row["ranks"] > 1:
            load = Load(**{k: v for k, v in row.items() if k not in ("exchange", "seconds")})
            known = model.parts("", steps(replace(load, ready=True)), load.ranks)
            rest = row["seconds"] - sum(known.values())
            beyond.setdefault(row["exchange"], []).append(rest / FORMS["log"](load.ranks))
    model.starts = {name: max(0.0, float(np.median(some))) for name, some in beyond.items()}


Point = tuple[float, float, float]


def law(points: Sequence[Point], name: str) -> Law:
    """Fits a collective to (ranks, bytes, seconds); see the module's docstring."""
    several = len({ranks for ranks, _, _ in points}) > 1
    forms = list(product(FORMS, FORMS)) if several else [USUAL[name]]

    def ranged(form: tuple[str, str]) -> _Ranges:
        terms = [[FORMS[form[0]](int(p)), FORMS[form[1]](int(p)) * m] for p, m, _ in points]
        return _ranged([(m, t) for _, m, t in points], np.array(terms), LEAST)

    form, found = min(((form, ranged(form)) for form in forms), key=lambda each: each[1].score)
    a, b = found.weights
    return Law(*form, found.upto, a, b)


def rate(points: Sequence[Point]) -> Rate:
    """Fits a step of work to (values, kept values, seconds)."""
    # In a range of a single size the first two are alike, and the first one is taken.
    terms = np.array([[size, 1.0, kept] for size, kept, _ in points])
    found = _ranged([(size, seconds) for size, _, seconds in points], terms, 1)
    d, c, e = found.weights
    return Rate(found.upto, c, d, e)


class _Ranges(NamedTuple):
    """A fit in ranges of sizes.

    Attributes:
        score: the Bayesian information criterion, in which each range counts as three parameters.
        upto: the last size of each range; the last one is infinite.
        weights: of each term, for each range.
    """

    score: float
    upto: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]


def _ranged(points: Sequence[tuple[float, float]], terms: np.ndarray, least: int) -> _Ranges:
    """Fits weights of terms to (size, seconds), in the ranges that are worth it.

    Args:
        points: what is fitted to.
        terms: [points, terms].
        least: sizes in each range.
    """
    sizes, seconds = np.array(points).T
    found, count = [], len(points)
    for cuts in _cuts(sorted(set(sizes.tolist())), least):
        error, parts = 0.0, []
        for low, high in pairwise((0.0, *cuts, inf)):
            some = (low < sizes) & (sizes <= high)
            weights, rest = _least(terms[some], seconds[some])
            parts.append(weights.tolist())
            error += rest
        score = count * np.log(error / count + 1e-12) + 3 * len(parts) * np.log(count)
        found.append(_Ranges(float(score), (*cuts, inf), tuple(zip(*parts, strict=True))))
    return min(found, key=lambda each: each.score)


def assess(
    points: Sequence[Point], fit: Callable[[Sequence[Point]], Law | Rate], size: int = 1
) -> Fit:
    """Holds a fit to its own points, and fits without every third size to those sizes.

    Args:
        points: what it is fitted to; the last number of each is the time.
        fit: makes it.
        size: which number of a point is its size.
    """
    own = _errors(fit(points), points)
    sizes = sorted({point[size] for point in points})
    held: list[float] = []
    for fold in range(3) if len(sizes) >= 2 * LEAST else ():
        out = set(sizes[fold::3])
        known = fit([point for point in points if point[size] not in out])
        held += _errors(known, [point for point in points if point[size] in out])
    middle = float(np.median(held)) if held else np.nan
    good = float(np.mean(np.array(held) <= GOOD)) if held else np.nan
    return Fit(len(points), float(np.median(own)), max(own), middle, good)


def _errors(known: Law | Rate, points: Sequence[Point]) -> list[float]:
    """Relative errors, as absolute values."""
    found = []
    for first, second, seconds in points:
        ranks = int(first) if isinstance(known, Law) else first
        found.append(abs(known.seconds(ranks, second) / seconds - 1))  # type: ignore[arg-type]
    return found


def _cuts(sizes: Sequence[float], least: int) -> Iterator[tuple[float, ...]]:
    """Ways to divide sizes into ranges.

    Args:
        sizes: ascending.
        least: sizes in each range.

    Yields:
        The last size of each range but the last one.
    """
    for count in range(SEGMENTS):
        for chosen in combinations(range(len(sizes) - 1), count):
            ends = [-1, *chosen, len(sizes) - 1]
            if count == 0 or min(b - a for a, b in pairwise(ends)) >= least:
                yield tuple(sizes[place] for place in chosen)


def _least(terms: np.ndarray, seconds: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights, none negative, with the least sum of squared relative errors; and that sum.

    Args:
        terms: [points, weights].
        seconds: [points].
    """
    scaled, wanted = terms / seconds[:, None], np.ones(len(seconds))
    best, error = np.zeros(terms.shape[1]), float(len(seconds))
    for count in range(1, terms.shape[1] + 1):
        for chosen in map(list, combinations(range(terms.shape[1]), count)):
            some = scaled[:, chosen]
            norm = np.sqrt((some**2).sum(0))
            weights = np.linalg.lstsq(some / norm, wanted, rcond=None)[0] / norm
            rest = float(((some @ weights - wanted) ** 2).sum())
            if weights.min() >= 0 and rest < error - 1e-12:
                best, error = np.zeros(terms.shape[1]), rest
                best[chosen] = weights
    return best, error
