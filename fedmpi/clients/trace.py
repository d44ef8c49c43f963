"""Availability trace: which clients can take part in which rounds, from a file.

The file is a CSV in UTF-8 whose first line is `client,first,last`. Every other line, unless it is
empty, says that a client is available from round `first` to round `last`, both included, counted
from 0. A client may have several lines, or none. The trace has as many rounds as its largest `last`
plus one; a longer run starts it again from its beginning.
"""

import hashlib
from pathlib import Path

import numpy as np

from fedmpi import inputs
from fedmpi.config import MOST, ConfigError
from fedmpi.words import decoded, said

COLUMNS = "client,first,last"


def _cells(line: str) -> list[str]:
    """The cells of a line, without quotes and blanks around them."""
    return [cell.strip().strip('"').strip() for cell in line.split(",")]


class Trace:
    """The rounds in which each client is available.

    Attributes:
        sha256: hash of the file's content, in hex.
        rounds: length of the trace, after which it starts again.

    Raises:
        BadInput: if the file cannot be read, or a `ConfigError` that names file and line, if a line
            is malformed, or no client is available in some round.
    """

    def __init__(self, path: Path, clients: int) -> None:
        self.path = path
        content = inputs.content("trace", path, f"a CSV file with the columns {COLUMNS}")
        self.sha256 = hashlib.sha256(content).hexdigest()
        try:
            lines = decoded(content).splitlines() or [""]
        except UnicodeError as error:
            raise ConfigError(f"trace = {path}: {error}; wanted a CSV file") from None
        head, *cells = map(_cells, lines)
        if head != COLUMNS.split(","):
            raise ConfigError(f"{path}, line 1: wanted '{COLUMNS}', found {said(lines[0])}")
        spans = [self._span(n, texts, clients) for n, texts in enumerate(cells, 2) if any(texts)]
        self.spans = np.array(spans, np.int64).reshape(-1, 3)
        self.rounds = int(self.spans[:, 2].max(initial=-1)) + 1
        self._check()

    def _span(self, number: int, texts: list[str], clients: int) -> tuple[int, ...]:
        """Parses the cells of a line; returns its client, and its first and last round."""
        where = f"{self.path}, line {number}"
        # At most ten digits, because Python raises an error of its own for thousands of digits.
        if len(texts) != 3 or not all(text.isdecimal() and len(text) <= 10 for text in texts):
            found = said(",".join(texts))
            raise ConfigError(f"{where}: wanted whole numbers {COLUMNS}, found {found}")
        client, first, last = (int(text) for text in texts)
        if client >= clients:
            raise ConfigError(f"{where}: no client {client}; there are 0 to {clients - 1}")
        if not first <= last <= MOST:
            raise ConfigError(
                f"{where}: wanted rounds with first <= last <= {MOST}, found {first} to {last}"
            )
        return client, first, last

    def _check(self) -> None:
        """Checks that every round has an available client."""
        reached = 0
        for first, last in sorted(map(tuple, self.spans[:, 1:].tolist())):
            if first > reached:
                break
            reached = max(reached, last + 1)
        if reached < max(self.rounds, 1):
            raise ConfigError(
                f"trace = {self.path}: wanted a client for every round, found none for round "
                f"{reached}"
            )

    def available(self, t: int) -> np.ndarray:
        """Returns the clients that are available in round `t`, at least 0: int64, ascending."""
        clients, first, last = self.spans.T
        t %= self.rounds
        return np.unique(clients[(first <= t) & (t <= last)])
