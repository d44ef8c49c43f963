"""Benchmarks: `fedmpi bench NAME`. Each module measures one thing against references of its own.

What is compared is computed first and has to be equal; then the candidates take turns, and medians
of the same turns are set against each other, because machines are noisy and drift.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import click

from fedmpi.config import ConfigError


@dataclass(frozen=True)
class Result:
    """What a benchmark found for one case.

    Attributes:
        bench: its name.
        case: what distinguishes the case from the others.
        seconds: median time.
        spread: least and largest time.
        against: for each reference our median over its median.
    """

    bench: str
    case: dict[str, Any]
    seconds: float
    spread: tuple[float, float]
    against: dict[str, float]

    def say(self, as_json: bool) -> None:
        """Prints the result: for people, or one object on a line."""
        if as_json:
            click.echo(json.dumps(asdict(self)))
            return
        case = "  ".join(f"{name}={value}" for name, value in self.case.items())
        ratios = "  ".join(f"{ratio:.3f} x {name}" for name, ratio in self.against.items())
        low, high = self.spread
        spread = f"({1e3 * low:.3f} to {1e3 * high:.3f})"
        click.echo(f"{self.bench}  {case}  {1e3 * self.seconds:.3f} ms {spread}  {ratios}")


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
        repeats: turns of each that count; one more comes first and does not.
        unit: how many units of work a turn does; times are for one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for turn in range(repeats + 1):
        for name, work in turns.items():
            taken = work() / unit
            if turn:
                seconds[name].append(taken)
    ours, *references = seconds
    middle = {name: median(values) for name, values in seconds.items()}
    against = {name: middle[ours] / middle[name] for name in references}
    spread = (min(seconds[ours]), max(seconds[ours]))
    return Result(bench, dict(case), middle[ours], spread, against)


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
