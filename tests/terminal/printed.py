"""How tests read what is printed."""

import re


def words(text: str) -> str:
    """Text without regard to where its lines are broken."""
    return " ".join(text.split())


def squeezed(text: str) -> str:
    """Text without blanks, because even a word may be broken, such as an address."""
    return "".join(text.split())


def table(text: str, title: str) -> list[list[str]]:
    """The cells of the table below a title, headers included."""
    lines = text.split(f"\n{title}")[1].split("\n\n")[0].splitlines()[1:]
    return [re.split(r" {2,}", line.strip()) for line in lines]
