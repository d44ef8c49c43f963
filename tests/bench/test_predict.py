"""Predictions from files of timings: fitted, kept, held to exchanges, printed; nothing is timed."""

import json
from math import inf
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fedmpi import config, costs
from fedmpi.__main__ import main
from fedmpi.bench import mpi, predict
from fedmpi.costs import Load
from fedmpi.results import record
from tests.test_costs import machine, parts, rows


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """What `bench mpi` would have written on a made-up machine, which has measured two exchanges:
    one takes twice what its steps take, and one as much. The smallest take what steps do.
    """
    found = list(rows())
    for name, times, bytes_ in (
        *(("star", 1.0, 1 << 12), ("reduce", 1.0, 1 << 12)),
        *(("star", 2.0, 1 << 14), ("reduce", 1.0, 1 << 14)),
    ):
        load = Load(6, 4, 2, bytes_ // 4, 0.9)
        seconds = sum(parts(name, load).values()) - parts(name, load)["choose"]
        row = {"kind": "exchange", "name": name, "side": "ours", "level": "all", "clients": 2}
        row |= {"ranks": 4, "bytes": bytes_, "sparsity": 0.9, "positions": "own"}
        found.append(row | {"max_us": 1e6 * times * seconds})
    empty = {name: "" if form[0] == "S" else 0 for name, (form, _) in mpi.COLUMNS.items()}
    table = mpi.table([{**empty, "per_node": 2, **row} for row in found])
    path = tmp_path / "mpi.h5"
    record.save_rows(path, mpi.TABLE, table, mpi.COLUMNS, {"host": "made-up"})
    return path


def call(*words: object) -> str:
    found = CliRunner().invoke(main, ["bench", "predict", *map(str, words)])
    assert found.exit_code == 0, found.output
    return found.output


def printed(*words: object) -> list[dict[str, object]]:
    return [json.loads(line) for line in call("--json", *words).splitlines()]


def test_predictions_are_those_of_the_machine(file: Path, tmp_path: Path) -> None:
    kept = tmp_path / "model.json"
    asked = ("--clients", 500, "--ranks", 64, "--sparsity", 0.99, "--parameters", 1 << 20)
    found = printed(file, "--model", kept, *asked)
    assert [row["exchange"] for row in found] == config.exchanges()
    for row in found:
        wanted = parts(str(row["exchange"]), Load(500, 64, 2, 1 << 20, 0.99))
        for part, seconds in wanted.items():
            assert row[f"predicted_{part}_seconds"] == pytest.approx(seconds, rel=1e-3)
        assert row["predicted_seconds"] == pytest.approx(sum(wanted.values()), rel=1e-3)
        assert row["measured_seconds"] is None
        assert (row["ranks"], row["nodes"], row["per_node"]) == (64, 32, 2)
    # Without files the model that was kept is read.
    out = tmp_path / "predicted.jsonl"
    assert printed("--model", kept, *asked, "--out", out) == found
    assert [json.loads(line) for line in out.read_text().splitlines()] == found


def test_what_was_measured_stands_beside_its_prediction(file: Path, tmp_path: Path) -> None:
    words = (file, "--model", tmp_path / "m.json", "--clients", 10, "--ranks", 8)
    found = printed(*words, "--sparsity", 0.9, "--parameters", 1 << 12)
    seen = {row["exchange"]: row for row in found if row["measured_seconds"] is not None}
    assert seen.keys() == {"star", "reduce"}
    for name, times in (("star", 2), ("reduce", 1)):
        row = seen[name]
        assert (row["clients"], row["ranks"]) == (6, 4)
        ready = row["predicted_seconds"] - row["predicted_choose_seconds"]
        assert row["measured_seconds"] == pytest.approx(times * ready, rel=1e-3)


def test_it_is_said_how_well_exchanges_are_predicted(file: Path, tmp_path: Path) -> None:
    said = call(file, "--model", tmp_path / "m.json", "--clients", 10, "--ranks", 4)
    assert (
        "star, 1 measured exchanges, larger than fitted to: median error 50%, worst 50%, 0%" in said
    )
    assert (
        "reduce, 1 measured exchanges, larger than fitted to: median error 0%, worst 0%, 100%"
        in said
    )
    lines = {line.split()[0] + " " + line.split()[1]: line for line in said.splitlines() if line}
    assert lines["gather near"].split()[2:] == ["11", "0%", "0%", "0%", "100%"]
    assert "All predicted" in said


def test_a_model_is_held_to_other_files(file: Path, tmp_path: Path) -> None:
    """On 16 ranks of a machine that takes half of what four ranks had let expect for a gather."""
    empty = {name: "" if form[0] == "S" else 0 for name, (form, _) in mpi.COLUMNS.items()}
    gather, found = machine().laws["gather near"], []
    for size in (8, 1 << 20):
        row = {"kind": "collective", "name": "gather", "side": "ours", "level": "near"}
        row |= {"ranks": 16, "bytes": size, "max_us": 0.5e6 * gather.seconds(16, size)}
        found.append({**empty, **row})
    other = tmp_path / "other.h5"
    record.save_rows(other, mpi.TABLE, mpi.table(found), mpi.COLUMNS, {})
    words = (file, "--model", tmp_path / "m.json", "--clients", 10, "--ranks", 4)
    said = call(*words, "--against", other)
    assert "gather near, 2 of other files: median error 100%, worst 100%, 0% within 20%" in said
    assert "of other files" not in call(*words)


def test_the_fastest_is_marked() -> None:
    load = {"clients": 2, "ranks": 2, "nodes": 1, "sparsity": 0.9, "agreed": False}
    both = [{"exchange": name, **load, "predicted_seconds": s} for name, s in (("a", 2), ("b", 1))]
    head, line, _ = predict.lines(both)
    assert head.split() == ["clients", "ranks", "nodes", "sparsity", "positions", "a", "b"]
    assert line.split() == ["2", "2", "1", "0.9", "own", "2", "s", "1", "s+"]


def test_a_link_can_be_given(file: Path, tmp_path: Path) -> None:
    """50 us and 80 Mbit/s are 10 MB/s; laws of the node stay."""
    found = predict.linked(machine(), 50, 80)
    law = found.laws["gather far"]
    assert (law.upto, law.a) == ((inf,), (pytest.approx(5e-5),))
    np.testing.assert_allclose(law.b, [1e-7])
    assert found.laws["gather near"] == machine().laws["gather near"]
    words = (file, "--model", tmp_path / "m.json", "--clients", 10, "--ranks", 8)
    slow, fast = (printed(*words, "--link", 50, mbit) for mbit in (1, 1000))
    # With files it is kept, and said.
    kept = ["--model", tmp_path / "m.json", *words[3:]]
    assert printed(*kept) == fast
    text = CliRunner().invoke(main, ["bench", "predict", *map(str, kept)]).output
    assert "between nodes: a link of 50 us and 1000 Mbit/s, which was given" in text
    assert all(
        a["predicted_seconds"] > b["predicted_seconds"] for a, b in zip(slow, fast, strict=True)
    )


def test_what_was_not_measured_is_refused(tmp_path: Path) -> None:
    lone = [row for row in rows() if row["level"] != "far"]
    empty = {name: "" if form[0] == "S" else 0 for name, (form, _) in mpi.COLUMNS.items()}
    path = tmp_path / "mpi.h5"
    table = mpi.table([{**empty, "per_node": 4, **row} for row in lone])
    record.save_rows(path, mpi.TABLE, table, mpi.COLUMNS, {})
    words = ["bench", "predict", str(path), "--model", str(tmp_path / "m.json"), "--ranks", "8"]
    found = CliRunner().invoke(main, words)
    assert found.exit_code == 2
    assert "wanted measurements between nodes, found none" in found.output
    found = CliRunner().invoke(main, ["bench", "predict", "--model", str(tmp_path / "none.json")])
    assert found.exit_code == 2
    assert "give files of fedmpi bench mpi" in found.output


def test_the_kept_model_is_this_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert costs.place() == tmp_path / "fedmpi" / "costs.json"
