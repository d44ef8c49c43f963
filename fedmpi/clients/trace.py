"""Availability trace: which clients can take part in which rounds, from a file.

The file is a CSV whose first line is `client,first,last`. Every other line says that a client is
available from round `first` to round `last`, both included, counted from 0. A client may have
several lines, or none. The trace has as many rounds as its largest `last` plus one; a longer run
starts it again from its beginning.
"""

import hashlib
from pathlib import Path

import numpy as np

from fedmpi.config import MOST, ConfigError

COLUMNS = "client,first,last"


class Trace:
    """The rounds in which each client is available.

    Attributes:
        sha256: hash of the file's content, in hex.
        rounds: length of the trace, after which it starts again.

    Raises:
        ConfigError: naming file and line, if the file cannot be read, a line is malformed, or no
            client is available in some round.
    """

    def __init__(self, path: Path, clients: int) -> None:
        self.path = path
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"trace = {path}: {error.strerror or error}") from None
        self.sha256 = hashlib.sha256(content).hexdigest()
        # Spreadsheets write a byte-order mark at the beginning of a file.
        head, *lines = content.decode("utf-8-sig", "replace").splitlines() or [""]
        if head != COLUMNS:
            raise ConfigError(f"{path}, line 1: wanted '{COLUMNS}', found '{head}'")
        spans = [self._span(number, line, clients) for number, line in enumerate(lines, 2)]
        self.spans = np.array(spans, np.int64).reshape(-1, 3)
        self.rounds = int(self.spans[:, 2].max(initial=-1)) + 1
        self._check()

    def _span(self, number: int, line: str, clients: int) -> tuple[int, ...]:
        """Parses a line; returns its client, and its first and last round."""
        where, texts = f"{self.path}, line {number}", line.split(",")
        # At most ten digits, because Python raises an error of its own for thousands of digits.
        if len(texts) != 3 or not all(text.isdecimal() and len(text) <= 10 for text in texts):
            raise ConfigError(f"{where}: wanted whole numbers {COLUMNS}, found '{line}'")
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
