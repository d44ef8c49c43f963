"""Sums that are added up node by node are those of `star`; nodes are faked on one machine."""

import numpy as np
import pytest

from fedmpi import models
from fedmpi.errors import BadInput
from fedmpi.messages import wire
from fedmpi.messages.clock import Clock
from fedmpi.messages.wire import Wire
from tests.exchanges.added import ADDING, CASES, LOST, WORLD, Seen, both, bytes_of, close
from tests.small import alike, refusal, run, small, smooth

TREE = "exchange.name=tree"

on_ranks = pytest.mark.parallel([1, 2, 3, 4])


@pytest.mark.parallel([2, 3, 4])
@pytest.mark.parametrize("name", ADDING)
def test_every_method_on_two_nodes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(wire.NODES, "2")
    found, wanted, ours, theirs = both(TREE, f"method.name={name}", "rounds=1", "epochs=1")
    if WORLD.rank == 0:
        close(ours, theirs, 5)
        for column, values in bytes_of(wanted).items():
            np.testing.assert_array_equal(bytes_of(found)[column], values, err_msg=column)


@on_ranks
@pytest.mark.parametrize("case", CASES)
def test_settings_of_all_kinds(case: str, nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one node the same bits as with `star`."""
    if case == "statistics":
        monkeypatch.setattr(models, "build", smooth)
    words = (*CASES[case], "rounds=3", "epochs=1", "server=shared")
    found, wanted, ours, theirs = both(TREE, *words)
    if WORLD.rank > 0:
        return
    if nodes == 1 and case != "stacked":
        alike(found, wanted, ("ranks", "clients"))
    if case != "stacked":
        first = [Seen(*(list(each)[:1] for each in vars(seen).values())) for seen in (ours, theirs)]
        close(*first, 1 if case == "one client" else 5)
    np.testing.assert_allclose(found.model, wanted.model, rtol=1e-2, atol=1e-4)


@on_ranks
def test_lost_uploads_are_added_nowhere(nodes: int) -> None:
    words = (*LOST, "method.name=topk", "rounds=4", "epochs=1")
    found, wanted, ours, theirs = both(TREE, *words)
    if WORLD.rank == 0:
        assert found.tables["clients"]["lost"].any()
        assert ours.numbers == theirs.numbers
        np.testing.assert_allclose(found.model, wanted.model, rtol=1e-2, atol=1e-4)


@on_ranks
def test_bytes_of_each_hop(nodes: int) -> None:
    """Sparse sums are sent as the union of their positions, dense ones whole."""
    for sparsity in ("0.98", "0"):
        words = ("method.name=topk", f"method.sparsity={sparsity}", "rounds=1", "server=shared")
        found, _, ours, _ = both(TREE, *words)
        if WORLD.rank > 0:
            continue
        clients, up = found.tables["clients"], found.tables["ranks"]["up"].tolist()
        size, leads = found.engine.flat.size, [0]
        for rank in range(1, WORLD.size):
            if rank * nodes // WORLD.size != (rank - 1) * nodes // WORLD.size:
                leads.append(rank)
        each = [name for name in clients.dtype.names if name.startswith("up_")]
        for rank in range(WORLD.size):
            mine = clients[clients["rank"] == rank]
            written = 24 + sum(int(mine[name].sum()) for name in each)
            sent = up[rank] - written
            if rank not in leads:
                assert sent == 0
            elif rank == 0:
                assert sent == 24 + 16
            elif sparsity == "0":
                assert sent == 24 + 16 + 32 + 4 * size + 4 * (size % 2) + 8
            else:
                assert 24 + 16 + 32 + 8 < sent < 4 * size / 2
        assert ours.vectors[0][0].any()


@on_ranks
def test_a_window_grows_and_keeps_what_was_packed(nodes: int) -> None:
    """Messages of many lengths, on ranks that have none, too."""
    ours = Wire(Clock(), WORLD)
    node = WORLD.rank * nodes // WORLD.size
    near = [rank for rank in range(WORLD.size) if rank * nodes // WORLD.size == node]
    for length in (8, 0, 800, 16, 8000):

        def packed(room: np.ndarray, length: int = length) -> np.ndarray:
            count = length * (ours.rank + 1)
            data = room[:count] if len(room) >= count else np.empty(count, np.uint8)
            data[:] = ours.rank + 1
            return data

        pieces = ours.gather_near(packed)
        assert len(pieces) == (len(near) if ours.rank == near[0] else 0)
        for rank, piece in zip(near, pieces, strict=False):
            assert piece.tolist() == [rank + 1] * (length * (rank + 1))


@pytest.mark.parametrize("asked", ["0", "x", "9999"])
def test_nodes_that_cannot_be_are_refused(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(wire.NODES, asked)
    with pytest.raises(BadInput, match=rf"FEDMPI_NODES = '{asked}': wanted a number from 1 to 1"):
        assert Wire(Clock(), WORLD).node


def test_methods_that_need_each_upload_are_refused() -> None:
    assert "exchange.name = 'tree': wanted a method" in refusal("method.name=dispfl", TREE)
    assert run(small(TREE)).sha256 == run(small()).sha256
