"""Texts are UTF-8 in every locale, and outputs that lack letters end no command."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import PATIENCE

ROOM = Path(__file__).parents[2]
FILES = [
    path for folder in ("fedmpi", "analysis", "jobs") for path in (ROOM / folder).rglob("*.py")
]

STARTS = ("run", "Popen", "call", "check_call", "check_output")
"""Functions that start programs."""


def unspecified(path: Path) -> Iterator[str]:
    """The calls in a file that read or write text in the locale's encoding."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        given = {keyword.arg for keyword in node.keywords}
        modes = [one.value for one in node.args if isinstance(one, ast.Constant)]
        is_text = name in ("read_text", "write_text") or (name in STARTS and "text" in given)
        is_text |= name == "open" and isinstance(node.func, ast.Name) and "rb" not in modes
        is_text |= name in ("open", "fdopen") and any(
            mode in ("r", "w", "a", "x") for mode in modes
        )
        if is_text and "encoding" not in given:
            yield f"{path}:{node.lineno}"


def test_every_text_file_has_an_encoding() -> None:
    assert [line for path in FILES for line in unspecified(path)] == []


PROGRAM = """
import os
from pathlib import Path
from analysis.compare import main as compare
from fedmpi.__main__ import main

def call(command, *words):
    try:
        command(words)
    except SystemExit as end:
        assert not end.code, (words, end.code)

# A folder whose name is no text, and one whose name is in no 8-bit encoding.
odd, wide = (Path(os.fsdecode(name)) for name in (b"r\\xffs", "\\u65e5".encode()))
quick = ["data.name=synthetic", "data.samples=100", "data.test_samples=20", "data.shape=[4]"]
quick += ["model.hidden=[4]", "clients=3"]
Path("a.toml").write_bytes("# r\\u00e9sum\\u00e9 \\u65e5\\nrounds = 1".encode())
for seed, folder in enumerate((odd, wide), 1):
    call(main, "run", "a.toml", *quick, f"seed={seed}", "--out", str(folder))
    call(main, "show", str(folder))
    call(main, "show", str(next(folder.iterdir())))
    call(main, "run", str(next(folder.iterdir())), "--out", str(folder))
    call(compare, str(folder))
call(compare, ".", "--csv", "all.csv")
call(main, "list", "methods")
call(main, "list", "methods", "fedavg")
call(main, "partition", *quick, "data.shape=[1,4,4]", "skew.rotations=[0,90]")
"""
"""Commands that print names, accents and signs."""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_commands_where_letters_are_lacking(encoding: str, tmp_path: Path) -> None:
    variables = {"PYTHONIOENCODING": f"{encoding}:strict", "PYTHONUTF8": "0", "LC_ALL": "C"}
    variables |= {"PYTHONPATH": str(ROOM), "PYTHONWARNDEFAULTENCODING": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=os.environ | variables,
        capture_output=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert b"Traceback" not in done.stderr
    signs = {"utf-8": "±", "ascii": "+-", "cp1252": "±"}
    assert signs[encoding].encode(encoding) in done.stdout
    assert b"splitfed" in done.stdout
    assert (tmp_path / "all.csv").stat().st_size > 100
