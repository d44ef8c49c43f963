"""What methods took to be so accurate, against numbers worked out by hand."""

from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pytest

from analysis import frames, targets, terminal
from tests.recorded import rounds, run, settings, simulated, write

NAN = np.nan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three seeds of fedavg, of which two get there; two of ssfl, which pays 1500 bytes before."""
    for seed, accuracy in ((1, [0.2, 0.6, 0.8]), (2, [0.4, 0.5, 0.9]), (3, [0.5, 0.1, 0.2])):
        rows = simulated(rounds(accuracy), 4.0 * seed)
        write(tmp_path / f"fedavg{seed}.h5", settings(seed=seed), rows)
    for seed, accuracy in ((1, [0.1, 0.5, 0.7]), (3, [0.6, 0.2, 0.3])):
        rows = simulated(rounds(accuracy, up=50, once=500), 1.0)
        write(tmp_path / f"ssfl{seed}.h5", settings("ssfl", seed=seed, sparsity=0.5), rows)
    rows = rounds([0.1, 0.2, 0.3], up=10)
    write(tmp_path / "ssfl9.h5", settings("ssfl", seed=1, sparsity=0.9), rows)
    write(tmp_path / "ill.h5", settings(seed=4), rounds([0.9]), "diverged")
    return tmp_path


def costs(folder: Path, target: float, measure: str = "accuracy") -> pd.DataFrame:
    """`targets.costs` of a folder."""
    return targets.costs(frames.runs(folder), frames.rounds(folder), target, measure)


def cells(output: str, method: str) -> list[list[str]]:
    """The rows of the tables that begin with this, as words."""
    return [line.split() for line in output.splitlines() if line.startswith(f"{method} ")]


def test_what_each_run_took(folder: Path) -> None:
    runs = costs(folder, 0.55)
    assert list(runs["variant"]) == ["fedavg"] * 3 + ["ssfl"] * 3
    assert list(runs["seed"]) == [1, 2, 3, 1, 3, 1]
    np.testing.assert_array_equal(runs["rounds"], [2, 3, NAN, 3, 1, NAN])
    # 100 or 50 bytes up and 1000 down a round; and 500 and 1000 in the agreement.
    np.testing.assert_array_equal(runs["bytes"], [2200, 3300, NAN, 4650, 2550, NAN])
    np.testing.assert_array_equal(runs["sim_seconds"], [8, 24, NAN, 4, 2, NAN])
    np.testing.assert_array_equal(runs["sim_joules"], [80, 240, NAN, 40, 20, NAN])
    # Of one of two clients, without the agreement.
    np.testing.assert_array_equal(runs["up"], [50, 50, 50, 25, 25, 5])
    np.testing.assert_array_equal(runs["down"], [500] * 6)
    np.testing.assert_array_equal(runs["best"], [0.8, 0.9, 0.5, 0.7, 0.6, 0.3])


def test_a_target_is_met_by_what_equals_it(folder: Path) -> None:
    np.testing.assert_array_equal(costs(folder, 0.6)["rounds"], [2, 3, NAN, 3, 1, NAN])
    np.testing.assert_array_equal(costs(folder, 0.61)["rounds"], [3, 3, NAN, 3, NAN, NAN])
    found = costs(folder, 0.5, "shard_min")  # a tenth below the accuracy
    np.testing.assert_array_equal(found["rounds"], [2, 3, NAN, 3, 1, NAN])
    np.testing.assert_allclose(found["best"], [0.7, 0.8, 0.4, 0.6, 0.5, 0.2])


def test_clients_that_rest_send_nothing(tmp_path: Path) -> None:
    """Bytes are of those that take part, in the rounds until then, not a mean of rounds' means."""
    rows = rounds([0.1, 0.2, 0.6, 0.7])
    rows["sampled"], rows["up"], rows["down"] = [4, 1, 3, 8], [400, 40, 360, 9], [80, 40, 40, 9]
    write(tmp_path / "a.h5", settings(), rows)
    one = costs(tmp_path, 0.6).iloc[0]
    assert (one["up"], one["down"], one["bytes"]) == (800 / 8, 160 / 8, 960)
    never = costs(tmp_path, 0.8).iloc[0]
    assert (never["up"], never["down"]) == (809 / 16, 169 / 16)


def test_an_accuracy_that_is_not_measured_meets_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", settings(seed=1), rounds([NAN, 0.3, NAN, 0.6], [0.1] * 4))
    write(tmp_path / "b.h5", settings(seed=2), rounds([NAN] * 4, [0.1] * 4))
    runs = costs(tmp_path, 0.2)
    np.testing.assert_array_equal(runs["rounds"], [2, NAN])
    np.testing.assert_array_equal(runs["best"], [0.6, NAN])
    assert "sim_seconds" not in run(targets.main, tmp_path, "--target", "0.2").output


def test_means_are_of_those_that_got_there_and_say_how_many(folder: Path) -> None:
    runs = costs(folder, 0.55)
    fedavg, ssfl, sparse = targets.summary(runs.assign(speedup=NAN)).to_dict("records")
    assert [row["n"] for row in (fedavg, ssfl, sparse)] == ["2 of 3", "2 of 2", "0 of 1"]
    assert (fedavg["rounds_mean"], fedavg["bytes_mean"]) == (2.5, 2750)
    np.testing.assert_allclose(fedavg["bytes_std"], 1100 / 2**0.5)
    assert fedavg["sim_seconds_mean"] == 16
    # The best accuracy is of all three.
    np.testing.assert_allclose(fedavg["best_mean"], (0.8 + 0.9 + 0.5) / 3)
    assert (ssfl["rounds_mean"], ssfl["bytes_mean"]) == (2, 3600)
    assert np.isnan(sparse["rounds_mean"]) and np.isnan(sparse["bytes_mean"])
    assert (sparse["up_mean"], sparse["best_mean"]) == (5, 0.3)


def test_bytes_of_a_client_are_of_those_that_got_there(tmp_path: Path) -> None:
    for seed, accuracy, up in ((1, 0.6, 100), (2, 0.1, 900)):
        write(tmp_path / f"{seed}.h5", settings(seed=seed), rounds([accuracy], up=up))
    (row,) = targets.summary(costs(tmp_path, 0.5).assign(speedup=NAN)).to_dict("records")
    assert row["up_mean"] == 50


def test_the_speed_up_is_within_a_seed(folder: Path) -> None:
    runs = costs(folder, 0.55)
    found = targets.speedup(runs, "fedavg")
    # Of seed 3 fedavg never got there, and of ssfl at 0.9 nothing did.
    np.testing.assert_allclose(found, [1, 1, NAN, 2200 / 4650, NAN, NAN])
    _, ssfl, _ = targets.summary(runs.assign(speedup=found)).to_dict("records")
    assert (ssfl["speedup_mean"], ssfl["missing"]) == (2200 / 4650, 1)
    found = targets.speedup(runs, "ssfl 0.5")
    np.testing.assert_allclose(found, [4650 / 2200, NAN, NAN, 1, 1, NAN])


def test_the_reference_has_the_same_settings(tmp_path: Path) -> None:
    for lr, up in ((0.1, 100), (0.2, 300)):
        for method, times in (("fedavg", 1), ("topk", 2)):
            tree = settings(method) | {"lr": lr, "partition": {"name": "dirichlet", "alpha": lr}}
            write(tmp_path / f"{method}{lr}.h5", tree, rounds([0.6], up=times * up))
            tree = settings(method) | {"lr": lr}
            write(tmp_path / f"{method}{lr}iid.h5", tree, rounds([0.6], up=1000 * times * up))
    runs = costs(tmp_path, 0.5)
    keys = zip(runs["group"], runs["variant"], strict=True)
    found = dict(zip(keys, targets.speedup(runs, "fedavg"), strict=True))
    assert found["iid", "topk lr=0.1"] == 101_000 / 201_000
    assert found["iid", "topk lr=0.2"] == 301_000 / 601_000
    assert found["dirichlet alpha=0.2", "topk lr=0.2"] == 1300 / 1600
    one = targets.speedup(runs, "fedavg lr=0.1")
    iid = one[(runs["group"] == "iid") & (runs["variant"] == "topk lr=0.2")]
    assert list(iid) == [101_000 / 601_000]
    assert one[runs["group"] == "dirichlet alpha=0.2"].isna().all()


@pytest.mark.parametrize("reference", ["ssfl", "fedprox"])
def test_a_reference_is_one_row(folder: Path, reference: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        targets.speedup(costs(folder, 0.5), reference)
    found = "ssfl 0.5, ssfl 0.9" if reference == "ssfl" else "none"
    assert f"found {found}; possible are: fedavg, ssfl 0.5, ssfl 0.9" in caught.value.message


def test_the_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    result = run(targets.main, folder, "--target", "0.55", "--target", "0.85")
    assert result.exit_code == 0, result.output
    titles = [line for line in result.output.splitlines() if line.startswith("iid: ")]
    assert [title.strip() for title in titles[:2]] == ["iid: accuracy 0.55", "iid: accuracy 0.85"]
    first, second = cells(result.output, "fedavg")
    assert first[:5] == ["fedavg", "–", "2", "of", "3"]
    took = ["2.50±0.71", "50", "B", "500", "B", "2.75±0.78", "kB", "1.00", "x"]
    simulations = ["16.0±11.3", "s", "160±113", "J", "73.3±20.8"]
    assert first[5:] == took + simulations
    assert second[2:6] == ["1", "of", "3", "3"]
    (half, sparse), (half_later, _) = (cells(result.output, "ssfl")[i : i + 2] for i in (0, 2))
    assert half[5:12] == ["2.00±1.41", "25", "B", "500", "B", "3.60±1.48", "kB"]
    assert half[12:14] == ["0.47", "x"]
    never = ["not", "reached", "5", "B", "500", "B", "–", "–", "–", "–", "30.0"]
    assert sparse == ["ssfl", "0.9", "0", "of", "1", *never]
    assert half_later[2:7] == ["0", "of", "2", "not", "reached"]
    said = " ".join(result.output.split())
    assert "iid: accuracy 0.55: fedavg did not reach it with every seed" in said
    assert "missing in the speed-up of ssfl 0.5 (1)." in said


def test_without_a_reference_there_is_no_speed_up(folder: Path) -> None:
    for path in folder.glob("fedavg*"):
        path.unlink()
    words = [folder, "--target", "0.55"]
    assert "peed-up" not in run(targets.main, *words).output
    assert "peed-up" in run(targets.main, *words, "--against", "ssfl 0.5").output
    found = run(targets.main, *words, "--against", "ssfl 0.9").output
    assert "No speed-up: ssfl 0.9 did not reach the target." in found
    assert run(targets.main, *words, "--against", "fedavg").exit_code == 2


def test_the_sim_columns_need_devices(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", settings(), rounds([0.6]))
    assert "sim." not in run(targets.main, tmp_path, "--target", "0.5").output


@pytest.mark.parametrize(
    ("form", "pairs"),
    [
        ("count", [(3.0, 0.0, "3"), (2.5, 0.71, "2.50±0.71"), (8.0, 0.71, "8.00±0.71")]),
        ("factor", [(1.0, 0.0, "1.00 x"), (0.5, 0.0, "0.50 x"), (12.34, 0.06, "12.3±0.1 x")]),
    ],
)
def test_counts_and_factors_are_readable(form: str, pairs: list[tuple[Any, ...]]) -> None:
    rows = pd.DataFrame([pair[:2] for pair in pairs], columns=["a_mean", "a_std"])
    assert terminal.Column("a", "", form).texts(rows) == [pair[2] for pair in pairs]


def test_without_a_plain_fedavg_there_is_no_default(tmp_path: Path) -> None:
    """Two rows could be meant: nobody is compared with, unless someone names one."""
    for server in ("adam", "momentum"):
        tree = settings() | {"aggregation": {"server": server}}
        write(tmp_path / f"{server}.h5", tree, rounds([0.5, 0.9]))
    words = (str(tmp_path), "--target", "0.6")
    assert "peed-up" not in run(targets.main, *words).output
    found = run(targets.main, *words, "--against", "fedavg")
    assert found.exit_code == 2
    assert (
        "found fedavg aggregation.server=adam, fedavg aggregation.server=momentum" in found.output
    )
    assert (
        "peed-up" in run(targets.main, *words, "--against", "fedavg aggregation.server=adam").output
    )
