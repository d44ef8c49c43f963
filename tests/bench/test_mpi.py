"""Collectives and exchanges on ranks: what is compared, who takes part, and what is written."""

import json
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from mpi4py import MPI

from fedmpi import bench, config
from fedmpi.__main__ import main
from fedmpi.bench import exchange, mpi
from fedmpi.errors import BadInput
from fedmpi.messages import wire
from fedmpi.messages.codec import Message
from fedmpi.messages.sums import Sum
from fedmpi.results import record

WORLD = MPI.COMM_WORLD
on_ranks = pytest.mark.parallel([1, 3])


@pytest.fixture(params=[1, 2])
def nodes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """So many nodes among which the ranks are divided, but no more than ranks."""
    number = min(request.param, WORLD.size)
    monkeypatch.setenv(wire.NODES, str(number))
    return number


@pytest.fixture
def ours(nodes: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[mpi.Bench]:
    """One turn of everything, of three collectives each."""
    monkeypatch.setattr(mpi, "LOOPS", ())
    monkeypatch.setattr(mpi, "FEW", 3)
    found = mpi.Bench(bench.rank(), 1)
    yield found
    found.gloo.end()


SIDES = {
    "meet": ["ours", "bare"],
    "bcast": ["ours", "bare", "counted"],
    "gather": ["ours", "bare", "counted", "pickled"],
    "near": ["ours", "bare"],
    "reduce": ["ours", "bare"],
    "pair": ["ours", "bare"],
    "alltoall": ["ours", "bare"],
}


@on_ranks
@pytest.mark.parametrize("name", mpi.COLLECTIVES)
def test_collectives_are_measured_on_every_level(ours: mpi.Bench, nodes: int, name: str) -> None:
    """Three ranks on two nodes are one and two."""
    rows = list(ours.collective(name, 16))
    if WORLD.rank:
        assert not rows
        return
    levels = {"all": WORLD.size, "near": 2, "far": 2} if nodes == 2 else {"near": WORLD.size}
    if name == "near":
        levels = {"near": levels["near"]}
    wanted = [(level, ranks, side) for level, ranks in levels.items() for side in SIDES[name]]
    if name == "bcast":
        first = wanted[0][:2]
        wanted[3:3] = [(*first, "node"), (*first, "blocks")]
    if name == "reduce" and not ours.gloo.problem:
        wanted.insert(2, (*wanted[0][:2], "gloo"))
    assert [(row["level"], row["ranks"], row["side"]) for row in rows] == wanted
    for row in rows:
        assert 0 < row["min_us"] <= row["avg_us"] <= row["max_us"]
        assert (row["nodes"], row["bytes"], row["iterations"]) == (nodes, 16, 3)
        # Every node has a root of its own, which hands nothing to a reduction.
        group = WORLD.size if row["level"] == "near" else row["ranks"]
        roots = nodes if row["level"] == "near" else 1
        hands = {"meet": 0, "reduce": group - roots, "pair": group // 2}.get(name, group)
        if row["side"] in ("ours", "node", "blocks"):
            assert row["moved"] == 16 * hands


@on_ranks
@pytest.mark.parametrize("name", ["bcast", "gather", "near", "reduce", "pair", "alltoall"])
def test_a_collective_that_brings_something_else_is_not_measured(
    ours: mpi.Bench, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mpi, "wanted", lambda *_: b"else")
    with pytest.raises(AssertionError, match=f"a {name} of 8 bytes yields something else"):
        list(ours.collective(name, 8))


def test_what_collectives_bring() -> None:
    one, two = np.ones(2, "f4").tobytes(), np.full(2, 2, "f4").tobytes()
    three = np.full(2, 3, "f4").tobytes()
    assert mpi.wanted("bcast", 8, 2, 1) == one
    assert mpi.wanted("gather", 8, 2, 0) == mpi.wanted("near", 8, 2, 0) == one + two
    assert mpi.wanted("reduce", 8, 2, 0) == three
    assert mpi.wanted("gather", 8, 2, 1) == mpi.wanted("reduce", 8, 2, 1) == b""
    assert mpi.wanted("meet", 8, 2, 0) == b""
    assert [mpi.wanted("pair", 8, 3, rank) for rank in range(3)] == [two, b"", b""]
    assert mpi.wanted("alltoall", 24, 2, 0) == one + one + two + two
    assert mpi.wanted("alltoall", 24, 2, 1) == one + two
    assert [mpi.loops(size) for size in (8, 1 << 13, 1 << 14, 1 << 21)] == [100, 100, 20, 5]


@on_ranks
@pytest.mark.parametrize("positions", exchange.POSITIONS)
def test_every_exchange_that_there_is_is_measured(ours: mpi.Bench, positions: str) -> None:
    names = tuple(config.exchanges())
    rows = list(ours.exchange(names, 1 << 14, 0.9, 2, positions))
    if WORLD.rank:
        assert not rows
        return
    sides = [(name, "ours") for name in names] + [("dense", side) for side in exchange.DENSE]
    assert [(row["name"], row["side"]) for row in rows] == sides
    for row in rows:
        assert (row["clients"], row["sparsity"], row["positions"]) == (2, 0.9, positions)
        parts = [row[f"{name}_us"] for name in mpi.PHASES]
        assert np.isnan(parts).all() if row["name"] == "dense" else sum(parts) > 0
    kept, hosts = 410, max(1, WORLD.size - 1)
    # Values, and a bitmap that is shorter than 410 positions, in whole words.
    each = 48 + 4 * kept + (512 if positions == "own" else 0)
    wanted = 24 * WORLD.size + 2 * hosts * each
    assert {row["name"]: row["moved"] for row in rows}["star"] == pytest.approx(wanted, abs=64)


def test_an_exchange_with_another_sum_is_not_measured(
    ours: mpi.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver = exchange.Uplink.deliver

    def wrong(*given: object) -> object:
        work = deliver(*given)  # type: ignore[arg-type]

        def more(messages: list[Message]) -> Sum:
            total = work(messages)
            total.scale(1.001)
            return total

        return more

    monkeypatch.setattr(exchange.Uplink, "deliver", wrong)
    with pytest.raises(AssertionError, match="star own: not the sum of the updates"):
        list(ours.exchange(("star",), 1 << 10, 0.9, 1, "own"))


@on_ranks
def test_work_is_measured_on_each_rank_and_on_the_root_alone(ours: mpi.Bench) -> None:
    rows = list(ours.work(1 << 12, 0.9))
    if WORLD.rank:
        assert not rows
        return
    steps = ["select", "pack", "pack dense", "read", "read dense"]
    steps += ["add", "add dense", "scan", "clear"]
    wanted = [(s, "each", WORLD.size) for s in steps] + [(s, "root", 1) for s in steps]
    assert [(row["name"], row["level"], row["ranks"]) for row in rows] == wanted
    assert all(row["min_us"] > 0 for row in rows)
    assert all(row["min_us"] == row["max_us"] for row in rows[len(steps) :])


@pytest.mark.parallel([1, 2])
def test_what_rank_0_has_no_room_for_is_left_out(
    ours: mpi.Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mpi, "MOST", 129 * max(1, WORLD.size - 1))
    plan = mpi.Plan(("gather", "bcast"), ("star",), False, (64, 256), (128, 512), (0.5,), (1,))
    sizes = [[row["bytes"] for row in rows if row["side"] == "ours"] for rows in plan.measure(ours)]
    said = capsys.readouterr().err.splitlines()
    if WORLD.rank:
        assert sizes == [[], [], []] and not said
        return
    assert sizes == [[64], [64, 256], [128]]
    assert [line.split(",")[0] for line in said] == [
        "# left out: gather",
        "# left out: dense vectors",
    ]


@pytest.mark.parallel([2])
def test_gloo_adds_up_all_ranks_or_says_why_not(ours: mpi.Bench) -> None:
    if not ours.gloo.problem:
        (total,) = ours.gloo.reduce(8)() or [np.full(2, 3, "f4")]
        assert total.tolist() == [3, 3]


def row(**more: object) -> mpi.Row:
    """A row of a collective."""
    found = dict.fromkeys(mpi.COLUMNS, 0) | {"kind": "collective", "name": "bcast"}
    found |= {"side": "ours", "level": "near", "positions": "", "ranks": 4, "nodes": 1}
    return found | {"avg_us": 2.5, "min_us": 1.0, "max_us": np.nan, "iterations": 100} | more


def test_people_read_the_columns_of_osu(capsys: pytest.CaptureFixture[str]) -> None:
    mpi.say([row(bytes=8), row(bytes=8, side="bare"), row(bytes=64)])
    blocks = capsys.readouterr().out.strip().split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == [
        "# fedmpi bench mpi: collective bcast, bare, near: 4 ranks, 1 node",
        "# fedmpi bench mpi: collective bcast, ours, near: 4 ranks, 1 node",
    ]
    head, *lines = blocks[1].splitlines()[1:]
    columns = ["# Size", "Avg Latency(us)", "Min Latency(us)", "Max Latency(us)", "Iterations"]
    places = [head.index(column) for column in columns]
    assert places == [0, *(22 + 20 * place for place in range(4))]
    assert [line.split() for line in lines] == [
        ["8", "2.50", "1.00", "nan", "100"],
        ["64", "2.50", "1.00", "nan", "100"],
    ]


def test_json_has_every_column_and_null_for_no_number() -> None:
    found = json.loads(mpi.line(row(bytes=8)))
    assert list(found) == list(mpi.COLUMNS)
    assert (found["max_us"], found["bytes"]) == (None, 8)


def test_a_file_opens_in_pandas(tmp_path: Path) -> None:
    out = tmp_path / "mpi.h5"
    words = ["--collective", "gather", "--bytes", "9", "--repeats", "1", "--out", str(out)]
    found = CliRunner().invoke(main, ["bench", "mpi", *words, "--json"])
    assert found.exit_code == 0, found.output
    with h5py.File(out) as file:
        frame = pd.DataFrame(file["mpi"][:])
        assert json.loads(file["mpi"].attrs["columns"]).keys() == mpi.COLUMNS.keys()
        assert file.attrs["command"].startswith("fedmpi")
    printed = [json.loads(line) for line in found.output.splitlines() if line.startswith("{")]
    assert list(frame.columns) == list(mpi.COLUMNS)
    assert frame["side"].tolist() == [b"ours", b"bare", b"counted", b"pickled"]
    assert frame["bytes"].tolist() == [16] * 4
    assert frame["avg_us"].tolist() == [one["avg_us"] for one in printed]
    about, rows = record.load_rows(out, mpi.TABLE)
    assert about["host"] == wire.host()
    assert rows["avg_us"].tolist() == frame["avg_us"].tolist()


def test_another_file_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "run.h5"
    with h5py.File(out, "w") as file:
        file["rounds"] = [1]
    found = CliRunner().invoke(main, ["bench", "mpi", "--out", str(out)])
    assert found.exit_code == 2
    assert f"{out}: holds something else, and is not replaced" in found.output
    with pytest.raises(BadInput, match="holds something else"):
        record.save_rows(out, mpi.TABLE, mpi.table([]), mpi.COLUMNS, {})
    with pytest.raises(BadInput, match=r"wanted a file \(HDF5\) with the table mpi"):
        record.load_rows(out, mpi.TABLE)


@pytest.mark.parametrize("name", sorted(bench.summaries()))
def test_other_benchmarks_do_not_run_under_a_launcher(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its processes would measure the others."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    if bench.is_on_ranks(name):
        assert name == "mpi"
        return
    found = CliRunner().invoke(main, ["bench", name])
    assert (found.exit_code, found.output) == (
        2,
        f"fedmpi bench {name}: wanted one process, found 2, which a launcher has started; call it "
        "without the launcher\n",
    )
