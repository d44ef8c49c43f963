"""Times of candidates that take turns, because machines are noisy and drift."""

from collections.abc import Callable, Mapping


def take_turns(
    turns: Mapping[str, Callable[[], float]], repeats: int, unit: float = 1.0
) -> dict[str, list[float]]:
    """Lets the candidates take turns; returns the seconds of each.

    Args:
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
    return seconds
