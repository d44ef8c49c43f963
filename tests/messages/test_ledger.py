"""Clients' accounts of bytes and messages."""

import numpy as np

from fedmpi.messages.codec import Kind
from fedmpi.messages.ledger import DOWN, UP, Ledger


def test_charges_add_up_by_client_direction_and_kind() -> None:
    ledger = Ledger(5)
    rows = np.zeros((2, len(Kind)), np.int64)
    rows[0, Kind.LABEL], rows[1, Kind.MASK] = 3, 5
    ledger.charge(UP, [4, 1], rows)
    ledger.charge(UP, [4, 1], rows)
    ledger.charge(DOWN, range(5), rows[:1])
    assert ledger.bytes[4, UP, Kind.LABEL] == 6
    assert ledger.bytes[1, UP, Kind.MASK] == 10
    assert ledger.bytes[:, DOWN, Kind.LABEL].tolist() == [3] * 5
    assert ledger.bytes.sum() == 6 + 10 + 15
    ledger.charge(UP, [], np.zeros((0, len(Kind)), np.int64))
    ledger.charge(DOWN, [0, 1], np.zeros((0, len(Kind)), np.int64))
    assert ledger.bytes.sum() == 31
    ledger.begin()
    assert ledger.bytes.sum() == 0
