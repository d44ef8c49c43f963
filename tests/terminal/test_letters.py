"""Outputs that lack letters: nothing ends for want of one."""

import os
import subprocess
import sys

import pytest

from tests import PATIENCE

PROGRAM = """
import sys
from fedmpi.terminal.letters import be_lenient

be_lenient()
for stream in (sys.stdout, sys.stderr):
    stream.write("Herv\\u00e9 1\\u00b12 90\\u00b0 \\u65e5" "\\udcff\\ud800")
"""


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "Hervé 1±2 90° 日".encode() + b"\xff?"),
        ("ascii", b"Herve 1+-2 90 deg ?\xff?"),
        ("latin-1", "Hervé 1±2 90° ?".encode("latin-1") + b"\xff?"),
        ("cp1252", "Hervé 1±2 90° ?".encode("cp1252") + b"\xff?"),
    ],
)
def test_what_an_encoding_lacks_is_replaced(encoding: str, text: bytes) -> None:
    """Bytes of paths that are no text are written as they are."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"PYTHONIOENCODING": f"{encoding}:strict"},
        capture_output=True,
        timeout=PATIENCE,
    )
    assert (done.stdout, done.stderr) == (text, text)
