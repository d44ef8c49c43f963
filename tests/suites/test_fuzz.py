"""A share of the random command lines and files of `tests.fuzz`, the same each time."""

import click
import pytest

from tests import fuzz

SHARE, PARTS = 200, 8


@pytest.mark.parametrize("part", range(PARTS))
def test_what_users_write_is_done_or_refused_in_words(part: int) -> None:
    faults = {}
    for number in range(part, SHARE, PARTS):
        given = fuzz.case(0, number)
        if said := fuzz.fault(given):
            faults[number] = f"{given.program} {given.words}: {said}"
    assert not faults


def test_faults_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback, another exit code, a refusal without a word, and what is left elsewhere."""
    for command, said in (
        ("raise KeyError('x')", "KeyError: 'x'"),
        ("raise SystemExit(1)", "exit code 1"),
        ("raise SystemExit(2)", "refused without a word"),
        ("open('../x', 'w', encoding='utf-8').close()", "something beside the folder: ['inside', "),
        ("pass", ""),
    ):
        monkeypatch.setitem(fuzz.PROGRAMS, "made", made(command))
        found = fuzz.fault(fuzz.Case("made", []))
        assert said in found
        assert bool(found) == bool(said)


def made(program: str) -> click.Command:
    """A command that does what a line says."""
    return click.Command("made", callback=lambda: exec(program))
