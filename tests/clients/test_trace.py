"""Who is available when, as a file says it; and what is wrong with a file, line by line."""

import hashlib
from pathlib import Path

import pytest

from fedmpi.clients.trace import Trace
from fedmpi.config import ConfigError
from fedmpi.errors import BadInput

HEAD = "client,first,last\n"


def trace(folder: Path, text: str, clients: int = 5) -> Trace:
    file = folder / "a.csv"
    file.write_bytes(text.encode())
    return Trace(file, clients)


def test_by_hand(tmp_path: Path) -> None:
    """Two lines of one client that overlap, in no order; one of the last round."""
    text = f"{HEAD}4,1,2\n0,0,1\n4,2,3\n2,5,5\n0,3,4\n"
    found = trace(tmp_path, text)
    days = [[0], [0, 4], [4], [0, 4], [0], [2]]
    assert found.rounds == 6
    assert [found.available(t).tolist() for t in range(20)] == (days * 4)[:20]
    assert found.sha256 == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "text",
    [
        *(f"{HEAD}0,0,3", f"\ufeff{HEAD}0,0,3\n", "client,first,last\r\n0,0,3\r\n"),
        *(f"{HEAD}0,0,3\n\n", f"{HEAD}\n0,0,3\n \n,,\n", f"{HEAD}0,0,3\r\n\r\n"),
        *("client, first, last\n0, 0, 3\n", '"client","first", "last"\n"0",0 ,"3"\n'),
    ],
)
def test_ways_of_spreadsheets_and_editors(text: str, tmp_path: Path) -> None:
    found = trace(tmp_path, text)
    assert (found.rounds, found.available(7).tolist()) == (4, [0])


def test_a_trace_may_be_long(tmp_path: Path) -> None:
    """What it takes depends on its lines, not on its rounds."""
    found = trace(tmp_path, f"{HEAD}0,0,{2**31 - 1}\n1,9,9\n")
    assert found.available(9).tolist() == [0, 1]
    assert found.available(2**31 + 9).tolist() == [0, 1]


WRONG = {
    "nothing": ("", "line 1: wanted 'client,first,last', found ''"),
    "no head": ("0,0,3\n", "line 1: wanted 'client,first,last', found '0,0,3'"),
    "another head": ("client,last,first\n", "line 1: wanted 'client,first,last', found 'client,"),
    "two numbers": (f"{HEAD}0,0,3\n1,2\n", "line 3: wanted whole numbers client,first,last, found"),
    "four numbers": (f"{HEAD}0,0,3,4\n", "line 2: wanted whole numbers"),
    "a word": (f"{HEAD}0,0,x\n", "line 2: wanted whole numbers client,first,last, found '0,0,x'"),
    "a fraction": (f"{HEAD}0,0,1.5\n", "line 2: wanted whole numbers"),
    "a negative": (f"{HEAD}0,-1,1\n", "line 2: wanted whole numbers"),
    "behind an empty line": (f"{HEAD}0,0,1\n\n1,0,x\n", "line 4: wanted whole numbers"),
    "many digits": (f"{HEAD}0,0,{'9' * 5000}\n", "line 2: wanted whole numbers"),
    "a stranger": (f"{HEAD}0,0,1\n5,0,1\n", "line 3: no client 5; there are 0 to 4"),
    "backwards": (f"{HEAD}0,3,1\n", "line 2: wanted rounds with first <= last <= 2147483647, fo"),
    "too far": (f"{HEAD}0,0,{2**31}\n", "line 2: wanted rounds with first <= last"),
    "nobody at all": (HEAD, "wanted a client for every round, found none for round 0"),
    "nobody first": (f"{HEAD}0,1,3\n", "wanted a client for every round, found none for round 0"),
    "nobody between": (
        f"{HEAD}0,0,1\n1,0,4\n2,6,6\n",
        "wanted a client for every round, found none for round 5",
    ),
    "not text": ("\udcff", "not UTF-8; wanted a CSV file"),
    "UTF-16": ("\udcff\udcfec\0l\0", "UTF-16; wanted UTF-8; wanted a CSV file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_with_its_place(case: str, tmp_path: Path) -> None:
    text, said = WRONG[case]
    file = tmp_path / "a.csv"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError) as found:
        Trace(file, 5)
    assert said in str(found.value)
    assert str(file) in str(found.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"trace = .*b\.csv: no such file.*; wanted a CSV file with"):
        Trace(tmp_path / "b.csv", 5)
