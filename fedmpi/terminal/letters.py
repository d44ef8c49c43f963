"""Letters and signs that an output lacks: others in their place, and never an error."""

import codecs
import sys
import unicodedata
from io import TextIOWrapper

NAME = "fedmpi"
"""Of the way in which an output treats what its encoding lacks."""
INSTEAD = {"±": "+-", "°": " deg", "µ": "u", "–": "-", "—": "-", "…": "...", "→": "->"}
"""In ASCII, what has no letter in it."""


def be_lenient() -> None:
    """Lets standard output and error write any text, whatever their encodings."""
    codecs.register_error(NAME, _instead)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=NAME)


def _instead(error: UnicodeError) -> tuple[str | bytes, int]:
    """What is written for the first letter that cannot be: as Python calls it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    if 0xDC80 <= ord(letter) <= 0xDCFF:  # a byte of a path that is no text
        return bytes([ord(letter) - 0xDC00]), error.start + 1
    plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return INSTEAD.get(letter) or plain or "?", error.start + 1
