"""Sums that are added up node by node are those of `star`; nodes are faked on one machine."""

from itertools import product

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
@pytest.mark.parametrize(
    ("exchange", "method"),
    [
        ("star", "splitfed"),
        *product(["star", "reduce", "tree"], ["topk", "ssfl", "scaffold"]),
    ],
)
def test_bytes_between_nodes_apart(exchange: str, method: str, nodes: int) -> None:
    """All that is for the root from another node, and back; in a tree one sum for each node.

    With messages to all, to single ones, in turns on a line, and of an agreement.
    """
    words = (f"method.name={method}", "rounds=1", "server=shared")
    if method != "ssfl":
        words += ("local_steps=2",)
    found = run(small(*words, f"exchange.name={exchange}"), WORLD)
    if WORLD.rank > 0:
        return
    rows, clients = found.tables["ranks"], found.tables["clients"]
    each = [name for name in clients.dtype.names if name.startswith("up_")]
    node = [rank * nodes // WORLD.size for rank in range(WORLD.size)]
    for row in rows:
        rank, mine = row["rank"], clients[clients["round"] == row["round"]]
        is_far = node[rank] > 0
        assert row["down_between"] == (row["down"] if is_far else 0)
        if exchange == "tree":
            is_first = rank == 0 or node[rank] != node[rank - 1]
            written = 24 + sum(int(mine[mine["rank"] == rank][name].sum()) for name in each)
            assert row["up_between"] == (row["up"] - written if is_far and is_first else 0)
            assert is_first or row["up"] == written
        else:
            assert row["up_between"] == (row["up"] if is_far else 0)
    assert rows["down_between"].any() == rows["up_between"].any() == (nodes > 1)


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


@on_ranks
def test_shared_memory_is_as_large_as_the_window(nodes: int) -> None:
    """Twelve uploads of 0.3 MiB: three in a wave by the window of 1 MiB; else all of a rank's."""
    words = ("clients=12", "rounds=1", "local_steps=1", "model.hidden=[1024]", "server=shared")
    length = {}
    for window in (1, 256):
        found = run(small(*words, TREE, f"exchange.window={window}"), WORLD.Dup())
        length[window], size = len(found.engine.wire.node.up.mine), 4 * found.engine.flat.size
    assert length[1] < 2**20 + 3 * 200
    whole = 12 // WORLD.size * size
    assert whole < length[256] < whole + 12 * 200


@pytest.mark.parametrize("asked", ["0", "x", "9999"])
def test_nodes_that_cannot_be_are_refused(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(wire.NODES, asked)
    with pytest.raises(BadInput, match=rf"FEDMPI_NODES = '{asked}': wanted a number from 1 to 1"):
        assert Wire(Clock(), WORLD).node


def test_methods_that_need_each_upload_are_refused() -> None:
    assert "exchange.name = 'tree': wanted a method" in refusal("method.name=dispfl", TREE)
    assert run(small(TREE)).sha256 == run(small()).sha256
