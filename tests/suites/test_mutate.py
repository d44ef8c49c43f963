"""A share of the mutated buffers of `tests.mutate`, the same each time."""

import tracemalloc

import numpy as np
import pytest

from fedmpi.messages import codec
from tests import mutate

SHARE = 1500


def test_mutated_buffers_are_refused_or_sound(capsys: pytest.CaptureFixture) -> None:
    assert mutate.run(SHARE) == 0, capsys.readouterr().out


def test_faults_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of another type, too much memory, and bytes that stand for something else."""
    block = codec.Block(codec.Kind.LABEL, 2, codec.Coding.U1, np.ones(2, np.uint8))
    data = codec.pack([codec.Message(0, [block])]).data
    other = codec.pack([codec.Message(1, [block])]).data

    def fail(_: np.ndarray) -> tuple:
        raise IndexError("far")

    def waste(_: np.ndarray) -> tuple:
        np.ones(1 << 20)
        return codec.unpack(data)

    def err(_: np.ndarray) -> tuple:
        return codec.unpack(other)

    tracemalloc.start()
    try:
        assert not mutate.fault(data)
        for read, said in (
            (fail, "IndexError: far"),
            (waste, "bytes of memory for"),
            (err, "in another way"),
        ):
            monkeypatch.setattr(mutate, "unpack", read)
            assert said in mutate.fault(data)
    finally:
        tracemalloc.stop()
