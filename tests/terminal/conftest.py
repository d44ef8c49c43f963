"""Fixtures of what is printed: on narrow and wide terminals and in pipes."""

from pathlib import Path
from typing import Any

import pytest

from fedmpi.data import files


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without data sets, and a pipe of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "USUAL", ("data",))
    monkeypatch.delenv("FEDMPI_DATA", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    """What a call prints, on lines without blanks at their ends."""

    def show(call: Any, *arguments: Any) -> str:
        capsys.readouterr()
        call(*arguments)
        lines = capsys.readouterr().out.splitlines()
        return "\n".join(line.rstrip() for line in lines)

    return show
