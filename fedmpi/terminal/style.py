"""The console, tables and colours that all output for people shares."""

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

COLOURS = {"done": "green", "running": "yellow", "stopped": "yellow"}
"""Colours of a run's status; that of others is red."""


def console() -> Console:
    """Where to print: coloured and as wide as the terminal, or plain if it is none."""
    return Console(highlight=False, markup=False, emoji=False)


def grid(*headers: str, left: Sequence[int] = (0,)) -> Table:
    """A table without lines; the columns in `left` are left-aligned, the others right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for number, header in enumerate(headers):
        table.add_column(header, justify="left" if number in left else "right", no_wrap=True)
    return table


def prose(text: str, style: str = "") -> Text:
    """Text whose `code` and *titles* stand out on a terminal."""
    found = Text(text, style)
    found.highlight_regex(r"`[^`]+`", "cyan")
    found.highlight_regex(r"(?<!\S)\*[^*\n]+\*", "italic")
    return found


def number(value: float) -> str:
    """Three decimals; a dash for what was not measured, or is not finite."""
    return f"{value:.3f}" if np.isfinite(value) else "-"
