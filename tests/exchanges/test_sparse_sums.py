"""Sums that climb a tree: what each rank sends, and what merges that keep the largest values do."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from fedmpi import models
from fedmpi.engine import Engine
from fedmpi.exchanges import sparse
from fedmpi.messages.clock import Clock
from fedmpi.messages.ledger import Ledger
from fedmpi.messages.wire import Wire
from tests.exchanges.added import LOST, WORLD, bytes_of
from tests.exchanges.test_exchanges import whole
from tests.small import refusal, run, small, smooth

RESELECT = ("exchange.name=sparse", "exchange.reselect=true")
SIZE = 400

on_ranks = pytest.mark.parallel([1, 2, 3, 4])


def made() -> sparse.Exchange:
    clock = Clock()
    return sparse.Exchange(Wire(clock, WORLD), clock, Ledger(1))


@dataclass
class Rank:
    """What a rank has, in the plain version of a tree.

    Attributes:
        rank: its number.
        total: its sum.
        alive: for each rank below it and for itself, the positions that all merges have kept.
        up: bytes that it sent, but for numbers.
    """

    rank: int
    total: np.ndarray
    alive: dict[int, set[int]]
    up: int = 0

    def cut(self, count: int | None, exempt: set[int]) -> None:
        if count is None:
            return
        ranked = sorted(set(np.flatnonzero(self.total).tolist()) - exempt)
        ranked.sort(key=lambda position: -abs(self.total[position]))
        kept = set(ranked[:count]) | exempt
        self.total[[p for p in range(SIZE) if p not in kept]] = 0
        for positions in self.alive.values():
            positions &= kept


def packed(positions: int, values: int) -> int:
    """Bytes of a packed message with so many positions and values."""
    coded = min(4 * positions, -(-SIZE // 8))
    return 24 + 16 + 32 + -(-coded // 8) * 8 + -(-4 * values // 8) * 8


def tree(sums: list[np.ndarray], nodes: int, count: int | None, exempt: set[int]) -> list[Rank]:
    """All ranks at the end: neighbours merge, level by level, in nodes and between them."""
    ranks = [Rank(r, s.copy(), {r: set(range(SIZE))}) for r, s in enumerate(sums)]
    for rank in ranks:
        rank.cut(count, exempt)

    def climb(level: list[Rank]) -> Rank:
        while len(level) > 1:
            for one, other in zip(level[::2], level[1::2], strict=False):
                values = np.count_nonzero(other.total)
                is_dense = 4 * values + min(4 * values, -(-SIZE // 8)) >= 4 * SIZE
                other.up = packed(0, SIZE) if is_dense else packed(values, values)
                one.total += other.total
                one.alive |= other.alive
                one.cut(count, exempt)
            level = level[::2]
        return level[0]

    node = [rank * nodes // len(ranks) for rank in range(len(ranks))]
    near = [[r for r, n in zip(ranks, node, strict=True) if n == own] for own in range(nodes)]
    alive = dict(climb([climb(level) for level in near]).alive)
    for rank in ranks:
        rank.alive = {rank.rank: alive[rank.rank]}
    return ranks


@on_ranks
@pytest.mark.parametrize("density", [0.0, 0.01, 0.4, 0.99, 1.0])
def test_bytes_of_each_hop(density: float, nodes: int) -> None:
    """A sum has the union of positions, and turns dense where that is shorter."""
    sums = [whole(rank, SIZE, density) for rank in range(WORLD.size)]
    exchange = made()
    exchange.merge([sums[WORLD.rank].copy(), np.zeros(2)])
    wanted = tree(sums, nodes, None, set())[WORLD.rank]
    assert exchange.wire.up == wanted.up + 16 * (WORLD.rank > 0)
    assert exchange.wire.down == 0


@on_ranks
@pytest.mark.parametrize("count", [0, 1, 20, SIZE])
@pytest.mark.parametrize("exempt", [(), (0, 7, 399)], ids=["all", "exempt"])
def test_the_largest_values_of_each_merge_are_kept(
    count: int, exempt: tuple[int, ...], nodes: int
) -> None:
    """Of whole numbers, so that many are equal; against pairs that merge in plain Python."""
    sums = [whole(rank, SIZE, 0.2) for rank in range(WORLD.size)]
    ranks = tree(sums, nodes, count, set(exempt))
    exchange, vector, numbers = made(), sums[WORLD.rank].copy(), np.array([1.0, WORLD.rank])
    kept = exchange.reselect([vector, numbers], count, np.array(exempt, np.int64))
    assert kept.dtype == np.uint32
    assert set(kept.tolist()) == ranks[WORLD.rank].alive[WORLD.rank]
    assert (np.diff(kept.astype(np.int64)) > 0).all()
    assert exchange.wire.up == ranks[WORLD.rank].up + 16 * (WORLD.rank > 0)
    found = WORLD.gather((kept.astype(int), exchange.wire.down))
    if WORLD.rank == 0:
        np.testing.assert_array_equal(vector, ranks[0].total)
        assert numbers.tolist() == [WORLD.size, sum(range(WORLD.size))]
        assert np.count_nonzero(vector) <= count + len(exempt)
        came = np.zeros(SIZE)
        for one, (positions, down) in zip(sums, found, strict=True):
            came[positions] += one[positions]
            assert down % 8 == 0
            assert 0 <= down <= packed(count + len(exempt), 0)
        np.testing.assert_array_equal(vector, came)
        assert all(down > 0 for _, down in found[1:])
        assert found[0][1] == 0


@dataclass
class Kept:
    """What clients had and sent, and what became of it.

    Attributes:
        wholes: each client's update with its residual, before it was compressed, by round.
        rests: its residual at the end of a round, by round.
        totals: the sum that the server steps with, on the root.
    """

    wholes: list[dict[int, np.ndarray]]
    rests: list[dict[int, np.ndarray]]
    totals: list[np.ndarray]


def watched(kept: Kept):
    """Prepares an engine so that its updates, residuals and sums are seen."""

    def prepare(engine: Engine) -> None:
        clients, begin, reselect, merge = (
            engine.clients,
            engine.begin,
            engine.reselect,
            engine.merge,
        )
        encode = clients.encode_update

        def encoding(t: int, client: int, update: torch.Tensor) -> object:
            kept.wholes[-1][client] = update.numpy().astype(np.float64)
            return encode(t, client, update)

        def beginning(t: int) -> None:
            begin(t)
            kept.wholes.append({})

        def reselecting(t: int, sums: object) -> None:
            reselect(t, sums)
            residuals = clients.feedback.residuals
            kept.rests.append({c: residuals[c].numpy().astype(float) for c in kept.wholes[-1]})

        def merging(t: int) -> None:
            merge(t)
            if engine.server is not None:
                kept.totals.append(engine.server.sum.total.numpy().astype(float))

        clients.encode_update, engine.begin = encoding, beginning
        engine.reselect, engine.merge = reselecting, merging

    return prepare


@on_ranks
@pytest.mark.parametrize(
    "words",
    [
        ("method.name=topk", "method.sparsity=0.9"),
        ("method.name=topk", "method.sparsity=0.9", "method.spans=tensor", "clients=2"),
        ("method.name=topk", "codec.values=uniform", "codec.bits=4"),
        ("method.name=dgc", "method.sparsity=0.97", "method.warmup=1"),
        ("method.name=stc", "method.sparsity=0.9"),
        ("method.name=topk", "exchange.window=1", "model.hidden=[1024]"),
        ("method.name=topk", *LOST),
    ],
    ids=["topk", "two clients", "codes", "dgc", "stc", "waves", "lost"],
)
def test_what_is_left_out_goes_back_to_who_sent_it(
    words: tuple[str, ...], nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sum and residuals add up to what clients had; running statistics are all in the sum."""
    if "model.hidden=[1024]" not in words:
        monkeypatch.setattr(models, "build", smooth)
    kept = Kept([], [], [])
    settings = small(*words, *RESELECT, "rounds=3", "epochs=1", "server=shared")
    found = run(settings, WORLD, watched(kept))
    all_kept = WORLD.gather(kept)
    if WORLD.rank > 0:
        return
    engine, clients = found.engine, found.tables["clients"]
    statistics = engine.flat.stat_positions.numpy()
    for t, total in enumerate(kept.totals):
        wanted, size = np.zeros_like(total), np.zeros_like(total)
        for one in all_kept:
            for client, had in one.wholes[t].items():
                row = clients[(clients["round"] == t) & (clients["client"] == client)]
                if not row["lost"][0]:
                    weight = engine.population.weight(t, client)
                    wanted += weight * (had - one.rests[t][client])
                    size += weight * (abs(had) + abs(one.rests[t][client]))
        own = np.ones(len(total), bool)
        own[statistics] = False
        error = abs(total - wanted)[own]
        assert (error <= 8 * 2**-24 * size[own]).all(), (t, error.max())
        assert np.count_nonzero(total[own]) <= engine.clients.count(t)
        if len(statistics) and wanted.any():
            assert total[statistics].any()
    assert np.isfinite(found.model).all()


@on_ranks
def test_a_single_upload_is_never_cut_down() -> None:
    """It has no more values than are kept, and nothing comes back."""
    words = ("method.name=topk", "clients=1", "validation=0.0", "rounds=3")
    cut, plain = (run(small(*words, *more), WORLD) for more in (RESELECT, RESELECT[:1]))
    if WORLD.rank == 0:
        assert cut.sha256 == plain.sha256
        for column, values in bytes_of(plain).items():
            np.testing.assert_array_equal(bytes_of(cut)[column], values, err_msg=column)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("method.name=fedavg",), "wanted a method whose clients send the largest values"),
        (("method.name=randomk",), "found method.name = 'randomk'"),
        (("method.name=topk", "method.sparsity=0.0"), "wanted method.sparsity above 0, found 0.0"),
        (("method.name=topk", "feedback=none"), "wanted feedback = 'classic'"),
        (("method.name=topk", "control=mean"), "wanted control = 'none', found 'mean'"),
        (("method.name=topk", "aggregation.server=fedexp"), "needs no lengths of updates"),
    ],
)
def test_what_cannot_be_cut_down_is_refused(words: tuple[str, ...], wanted: str) -> None:
    why = refusal(*words, *RESELECT)
    assert "exchange.reselect = true: " in why
    assert wanted in why


@pytest.mark.parametrize("name", ["star", "tree", "sharded"])
def test_other_exchanges_do_not_reselect(name: str) -> None:
    assert "no setting 'reselect'" in refusal(f"exchange.name={name}", "exchange.reselect=true")


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 13])
def test_everyone_is_below_the_root_once(size: int) -> None:
    """And no rank has more above it than there are steps."""
    above = {}
    for rank in range(size):
        below, parent = sparse.relatives(rank, size)
        assert below == sorted(below)
        for other in below:
            assert sparse.relatives(other, size)[1] == rank
        above[rank] = parent
    assert [rank for rank, parent in above.items() if parent is None] == [0]
    for rank in range(size):
        steps, at = 0, rank
        while at:
            at, steps = above[at], steps + 1
        assert steps <= (size - 1).bit_length()
