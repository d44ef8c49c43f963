"""The messages that `steps` predicts are as long as those that ranks send."""

import numpy as np
import pytest

from fedmpi import bench, config
from fedmpi.bench.exchange import Uplink
from fedmpi.costs import Load
from fedmpi.exchanges import sparse
from fedmpi.exchanges.auto import steps_of
from fedmpi.messages import wire
from tests.exchanges.added import WORLD
from tests.small import run, small

several = pytest.mark.parallel([2, 3, 4])
each = pytest.mark.parametrize("name", config.exchanges())


def nodes_of(nodes: int) -> list[int]:
    """Number of each rank's node, as they are faked."""
    return [rank * nodes // WORLD.size for rank in range(WORLD.size)]


def sent(name: str, load: Load, nodes: int) -> list[float]:
    """Bytes that each rank but the root sends by the steps of an exchange."""
    moves: dict[str, list[float]] = {}
    for step in steps_of(name)(load):
        if step.part == "move":
            moves.setdefault(step.law, []).append(step.size)
    numbers, found = nodes_of(nodes), []
    for rank in range(1, WORLD.size):
        near = [other for other in range(WORLD.size) if numbers[other] == numbers[rank]]
        if name == "tree":
            found.append(moves["near"][0])
            if rank == near[0]:
                found[-1] += moves["gather"][0] + moves["reduce"][0]
        elif name == "sparse":
            place, steps = near.index(rank), moves["pair"]
            if rank == near[0]:
                place, steps = numbers[rank], steps[(load.near - 1).bit_length() :]
            step = (place & -place).bit_length() - 1
            assert place - 2**step == sparse.relatives(place, WORLD.size)[1]
            found.append(steps[step] + moves["reduce"][0])
        else:
            laws = {"star": ["gather"], "reduce": ["reduce"]}
            some = laws.get(name, ["alltoall", "gather", "reduce"])
            found.append(sum(size for law in some for size in moves[law]))
    return found


@pytest.fixture
def even(nodes: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """So many nodes of as many ranks each, or one."""
    found = nodes if WORLD.size % nodes == 0 else 1
    monkeypatch.setenv(wire.NODES, str(found))
    return found


@several
@each
@pytest.mark.parametrize("method", ["fedavg", "staticmask"])
def test_bytes_of_the_table_of_ranks(name: str, method: str, even: int) -> None:
    """All values, or those under a mask that all ranks know; two clients on each rank."""
    clients = 2 * (WORLD.size - 1)
    words = (f"method.name={method}", f"clients={clients}", "rounds=1", "partition.name=iid")
    found = run(small(*words, f"exchange.name={name}"), WORLD)
    if WORLD.rank > 0:
        return
    tables = (found.tables[key] for key in ("ranks", "clients"))
    rows, uploads = (table[table["round"] == 0] for table in tables)
    assert np.bincount(uploads["rank"]).tolist() == [0] + [2] * (WORLD.size - 1)
    size = found.engine.flat.size
    (values,) = set(uploads["up_gradient"].tolist())
    load = Load(
        clients, WORLD.size, WORLD.size // even, size, 1 - values / 4 / size, method != "fedavg"
    )
    assert load.kept == values // 4
    for row, wanted in zip(rows[1:], sent(name, load, even), strict=True):
        assert row["up"] == pytest.approx(wanted, abs=32 * WORLD.size)


@several
@each
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99])
def test_bytes_of_sums_with_positions_of_their_own(name: str, sparsity: float, even: int) -> None:
    """Their union is larger; in the end it is all positions."""
    parameters, clients = 200_000, 2 * (WORLD.size - 1)
    uplink = Uplink(bench.rank(), clients, parameters, sparsity)
    deliver, ranks = uplink.deliver(name, "own"), uplink.wire
    messages = [uplink.message(client, "own") for client in uplink.mine]
    ranks.reset()
    deliver(messages)
    counted = ranks.report(np.array([ranks.up]))
    load = Load(clients, WORLD.size, WORLD.size // even, parameters, sparsity)
    if WORLD.rank == 0:
        for (up,), wanted in zip(counted[1:], sent(name, load, even), strict=True):
            assert up == pytest.approx(wanted, rel=0.03, abs=32 * WORLD.size)
