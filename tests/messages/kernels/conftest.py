"""What tests of kernels share."""

from collections.abc import Iterator

import pytest

from fedmpi.messages import kernels


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Threads that share even short vectors."""
    monkeypatch.setattr(kernels, "LEAST", 64)
    kernels.use_threads(request.param)
    yield request.param
    kernels.use_threads(1)
