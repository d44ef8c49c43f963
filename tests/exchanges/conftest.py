"""What tests of exchanges share."""

import pytest

from fedmpi.messages import wire
from tests.exchanges.added import WORLD


@pytest.fixture(params=[1, 2, 3])
def nodes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """So many nodes, or as many as there are ranks."""
    found = min(request.param, WORLD.size)
    monkeypatch.setenv(wire.NODES, str(found))
    return found
