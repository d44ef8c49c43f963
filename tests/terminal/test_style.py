"""How numbers look, and that nothing is coloured but on a terminal."""

from typing import Any

import numpy as np
import pytest

from fedmpi.terminal.catalogue import show_list
from fedmpi.terminal.style import number
from fedmpi.units import amount, duration

pytestmark = pytest.mark.usefixtures("here")


def test_colours_on_a_terminal(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[" in said(show_list, "methods", "topk")


def test_numbers() -> None:
    assert [number(0.12345), number(np.nan), number(-np.inf)] == ["0.123", "-", "-"]
    sizes = (0, 999, 1000, 12_345, 999_999, 2.5e9, 7e15)
    assert [amount(size) for size in sizes] == [
        *("0 B", "999 B", "1 kB", "12.3 kB", "1 MB", "2.5 GB", "7,000 TB"),
    ]
    assert [duration(s) for s in (0.00012, 0.5, 0.9999, 61)] == ["0.12 ms", "500 ms", "1 s", "61 s"]
