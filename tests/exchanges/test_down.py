"""Broadcasts bring the same bytes in every way, counted where they pass; nodes are faked."""

from typing import get_args

import numpy as np
import pytest

from fedmpi import config
from fedmpi.messages import wire
from fedmpi.messages.clock import Clock, Phase
from fedmpi.messages.wire import ROOT, WORD, Wire
from tests.exchanges.added import WORLD
from tests.plain import METHODS
from tests.small import alike, refusal, run, small

WAYS = get_args(config.Way)
BROADCASTING = [name for name in METHODS if small(f"method.name={name}").broadcasts]

on_ranks = pytest.mark.parallel([1, 2, 3, 4])
every_way = pytest.mark.parametrize("way", WAYS)


def node(rank: int, nodes: int) -> int:
    """Number of a rank's node."""
    return rank * nodes // WORLD.size


def between(way: str, rank: int, nodes: int) -> bool:
    """Whether what a rank is told comes from another node."""
    is_first = rank == 0 or node(rank - 1, nodes) != node(rank, nodes)
    return node(rank, nodes) > 0 and (way != "node" or is_first)


@on_ranks
@every_way
def test_the_same_bytes_on_every_rank(
    way: config.Way, nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also none, and in many blocks and waves, in memory that is there already or too short."""
    monkeypatch.setattr(wire, "BLOCK", 3 * WORD)
    monkeypatch.setattr(wire, "MOST", 7 * WORD)
    ours = Wire(Clock(), WORLD)
    for turn, words in enumerate((5, 0, 1, 100, 7, 200)):
        ours.reset()
        sent = np.random.default_rng(turn).integers(256, size=words * WORD, dtype=np.uint8)
        found = ours.bcast(sent.copy() if ours.is_root else None, way)
        np.testing.assert_array_equal(found, sent)
        is_far = between(way, WORLD.rank, nodes)
        assert (ours.up, ours.up_between) == (0, 0)
        assert (ours.down, ours.down_between) == (len(sent), len(sent) * is_far)
    assert min(ours.clock.seconds[[Phase.WAIT, Phase.TRANSFER]]) > 0


@pytest.mark.parallel([4])
def test_ranks_of_a_node_read_the_same_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a leader writes there later, the other ranks of its node see, and no others."""
    monkeypatch.setenv(wire.NODES, "2")
    ours = Wire(Clock(), WORLD)
    found = ours.bcast(np.zeros(WORD, np.uint8) if ours.is_root else None, "node")
    WORLD.Barrier()
    if ours.rank == 2:
        found[:] = 7
    WORLD.Barrier()
    assert found.tolist() == [7 if ours.rank in (2, 3) else 0] * WORD


@on_ranks
@every_way
@pytest.mark.parametrize(
    "words",
    [
        (),
        ("method.name=ssfl",),
        ("method.name=splitfed", "local_steps=2"),
        ("method.name=topk", "exchange.name=tree", "server=shared"),
        ("control=mean", "exchange.window=1", "model.hidden=[1024]", "server=shared"),
    ],
    ids=" ".join,
)
def test_a_run_has_the_same_bits(words: tuple[str, ...], way: str, nodes: int) -> None:
    """And the same bytes; of these fewer come from other nodes."""
    given = (*words, "rounds=2", "epochs=1") if "local_steps=2" not in words else words
    found, wanted = (run(small(*given, f"exchange.down={one}"), WORLD) for one in (way, "bcast"))
    if WORLD.rank > ROOT:
        return
    alike(found, wanted, but=("ranks",))
    assert found.engine.settings.identity() == wanted.engine.settings.identity()
    both = zip(found.tables["ranks"], wanted.tables["ranks"], strict=True)
    for ours, theirs in both:
        for column in ("up", "up_between", "down"):
            assert ours[column] == theirs[column]
        if "splitfed" not in "".join(words):  # there single clients are told something as well
            is_far = between(way, ours["rank"], nodes)
            assert ours["down_between"] == is_far * theirs["down"]


@pytest.mark.parallel([3])
@pytest.mark.parametrize("name", BROADCASTING)
def test_no_method_changes_what_a_node_reads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the next broadcast it is as it came."""
    told: list[tuple[np.ndarray, np.ndarray]] = []
    bcast = Wire.bcast

    def watched(self: Wire, data: np.ndarray | None, way: config.Way) -> np.ndarray:
        for found, copy in told:
            np.testing.assert_array_equal(found, copy)
        told.clear()
        found = bcast(self, data, way)
        WORLD.Barrier()
        if not self.is_root:  # its message lies in memory of its own
            told.append((found, found.copy()))
        return found

    monkeypatch.setattr(Wire, "bcast", watched)
    settings = small(f"method.name={name}", "rounds=2", "clients=3", "exchange.down=node")
    run(settings, WORLD)
    assert told or WORLD.rank == ROOT


@pytest.mark.parametrize("words", [("method.name=dispfl",), ("codec.down.values=f2",)])
def test_servers_that_do_not_broadcast_have_no_ways(words: tuple[str, ...]) -> None:
    why = refusal(*words, "exchange.down=node")
    assert "exchange.down = 'node': wanted a server that sends all clients its model" in why
    assert not refusal(*words, "exchange.down=bcast")
