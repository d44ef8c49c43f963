"""Benchmarks: `fedmpi bench NAME`. Each module measures one thing against references of its own.

A module that has a `command`, which is click's, is a benchmark; nothing else has to know of it. The
first paragraph of its docstring is what a list of benchmarks says of it.

What is compared is computed first and has to be equal; then the candidates take turns, and medians
of the same turns are set against each other, because machines are noisy and drift.
"""

import ast
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from fedmpi import config
from fedmpi.config import ConfigError
from fedmpi.errors import BadInput
from fedmpi.runs import launch
from fedmpi.runs.launch import Launcher
from fedmpi.turns import take_turns

if TYPE_CHECKING:
    from fedmpi.runs.job import Job

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
REPEATS = click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Number of measurements of each candidate; a warm-up comes first.",
)

SIZES = {"S": 100_000, "M": 1_000_000, "L": 11_000_000, "XL": 100_000_000}
"""Lengths of vectors."""
USUAL = ("S", "M", "L")
"""Those that are measured unless others are asked for; XL takes some GB of memory."""
SIZE = click.option(
    "--size",
    "sizes",
    multiple=True,
    help="Only this size: S, M, L (100 k, 1 M, 11 M values) or XL (100 M). Can be repeated.",
)
SPARSITY = click.option(
    "--sparsity",
    "sparsities",
    type=click.FloatRange(0, 1, max_open=True),
    multiple=True,
    default=(0.5, 0.9, 0.95, 0.99, 0.999),
    show_default=True,
    help="Share of values that are left out. Can be repeated.",
)


@dataclass(frozen=True)
class Result:
    """The result of a benchmark for one case.

    Attributes:
        bench: its name.
        case: what distinguishes the case from the others.
        seconds: median time.
        spread: least and largest time.
        against: for each reference our median over its median.
        also: what else was found; names end in units.
    """

    bench: str
    case: dict[str, Any]
    seconds: float
    spread: tuple[float, float]
    against: dict[str, float]
    also: dict[str, float] = field(default_factory=dict)

    def say(self, as_json: bool) -> None:
        """Prints the result: for people, or one object on a line."""
        if as_json:
            click.echo(json.dumps(asdict(self)))
            return
        unit, scale = ("us", 1e6) if self.seconds < 1e-3 else ("ms", 1e3)
        middle, low, high = (scale * seconds for seconds in (self.seconds, *self.spread))
        words = [self.bench, *(f"{name}={value}" for name, value in self.case.items())]
        words.append(f"{middle:.3f} {unit} ({low:.3f} to {high:.3f})")
        words += [f"{ratio:.3f} x {name}" for name, ratio in self.against.items()]
        words += [f"{name}={value:.6g}" for name, value in self.also.items()]
        click.echo("  ".join(words))


def apart(module: str, words: Sequence[str], launcher: Launcher | None, ranks: int = 1) -> None:
    """Takes a turn in processes of its own: `python -m MODULE WORDS`.

    Args:
        module: a benchmark's module, which is run as a program.
        words: its arguments.
        launcher: starts so many ranks; None for one process without MPI.
        ranks: their number.

    Raises:
        SystemExit: if it failed, or was stopped.
    """
    program = [sys.executable, "-m", module, *words]
    if launcher is None:
        code = launch.attend(program, launch.plain(os.environ))
    else:
        code = launcher.run(ranks, program)
    if code:
        raise SystemExit(2 if code == 2 else 1)


def rank() -> "Job":
    """This process as one rank of a turn that `apart` started.

    Raises:
        SystemExit: if MPI does not join the ranks.
    """
    from fedmpi.runs.job import Job

    try:
        return Job()
    except BadInput as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def weigh(
    bench: str,
    case: Mapping[str, Any],
    seconds: Mapping[str, Sequence[float]],
    ours: str,
    references: Iterable[str],
    also: Mapping[str, float] | None = None,
) -> Result:
    """Sets the median of one candidate's turns against those of the references' turns."""
    middle, taken = median(seconds[ours]), seconds[ours]
    against = {name: middle / median(seconds[name]) for name in references}
    return Result(bench, dict(case), middle, (min(taken), max(taken)), against, dict(also or {}))


def compare(
    bench: str,
    case: Mapping[str, Any],
    turns: Mapping[str, Callable[[], float]],
    repeats: int,
    unit: float = 1.0,
) -> Result:
    """Lets the candidates take turns; the first is ours, the others are references.

    Args:
        bench: the benchmark's name.
        case: what distinguishes the case.
        turns: each does the work once, and returns the seconds that it took.
        repeats: turns of each that count; see `take_turns`.
        unit: how many units of work a turn does; times are for one.
    """
    ours, *references = turns
    return weigh(bench, case, take_turns(turns, repeats, unit), ours, references)


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """A turn that does the work once, and returns its seconds."""

    def turn() -> float:
        start = perf_counter()
        work()
        return perf_counter() - start

    return turn


def lengths(sizes: Sequence[str]) -> Iterable[tuple[str, int]]:
    """Names and lengths of the vectors that were asked for; the usual ones, if none was.

    Raises:
        ConfigError: if there is no such size.
    """
    return [(name, SIZES[name]) for name in chosen(sizes or USUAL, SIZES)]


def of_vectors(
    steps: Sequence[Callable[[str, int, float], Result]],
    sizes: Sequence[str],
    sparsities: Sequence[float],
) -> Iterable[Callable[[], Result]]:
    """Yields one case for each length of a vector, sparsity and step.

    Args:
        steps: each measures a vector, given the name of its size, its length, and its sparsity.
        sizes: names of `SIZES`; empty for the usual ones.
        sparsities: shares of values that are left out.

    Raises:
        ConfigError: if there is no such size.
    """
    for (name, size), sparsity, step in product(lengths(sizes), sparsities, steps):
        yield partial(step, name, size, sparsity)


def chosen(names: Sequence[str], there: Iterable[str]) -> tuple[str, ...]:
    """The names that were asked for; all that there are, if none was.

    Raises:
        ConfigError: if there is no such case.
    """
    there = tuple(there)
    for name in names:
        if name not in there:
            raise ConfigError(f"'{name}': no such case; there are: {', '.join(there)}")
    return tuple(names) or there


def run(cases: Iterable[Callable[[], Result]], as_json: bool) -> None:
    """Measures case after case and prints each result as it comes."""
    for case in cases:
        case().say(as_json)


def summaries() -> dict[str, str]:
    """The benchmarks' names, and what they measure, read without importing any of them."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "command" for node in tree.body):
            about = (ast.get_docstring(tree) or "").split("\n\n")[0]
            found[path.stem.replace("_", "-")] = " ".join(about.split())
    return found


def command_of(name: str) -> click.Command:
    """The command of a benchmark, which is imported."""
    found: click.Command = config.imported("bench", name).command
    return found


def is_on_ranks(name: str) -> bool:
    """Whether a benchmark is for the ranks that a launcher starts: its module has `ON_RANKS`."""
    return bool(vars(config.imported("bench", name)).get("ON_RANKS", False))
