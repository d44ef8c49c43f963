"""Paired tests against tables of Student's t, and signs counted one by one."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from analysis import frames, groups, paired
from tests.recorded import rounds, run, settings, write

SLEEP = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
OTHER = np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])
"""Hours of sleep gained by two drugs, the example of Gosset's paper."""


@pytest.mark.parametrize(
    ("freedom", "t", "within"),
    [
        *((1, 12.7062, 0.95), (2, 4.30265, 0.95), (3, 3.18245, 0.95), (4, 2.77645, 0.95)),
        *((5, 2.57058, 0.95), (9, 3.24984, 0.99), (10, 3.16927, 0.99), (30, 1.69726, 0.90)),
        *((1, 1.0, 0.5), (2, 0.816497, 0.5), (7, 0.711142, 0.5), (120, 2.61742, 0.99)),
    ],
)
def test_students_t_is_that_of_the_tables(freedom: int, t: float, within: float) -> None:
    assert paired.within(t, freedom) == pytest.approx(within, abs=2e-6)


def test_gossets_example() -> None:
    """On 9 degrees of freedom t = 4.0621: p = 0.002833; 0.7001 to 2.4599 hours."""
    pairs = OTHER - SLEEP
    assert paired.student(pairs) == pytest.approx(0.002833, abs=1e-6)
    assert paired.interval(pairs) == pytest.approx((0.7001, 2.4599), abs=1e-4)


@pytest.mark.parametrize("seeds", [2, 3, 5, 6, 9])
def test_signs_are_those_that_are_as_far_from_zero(seeds: int) -> None:
    for draw in range(5):
        pairs = np.random.default_rng((seeds, draw)).normal(0.5, 1, seeds)
        far, choices = 0, 0
        for signs in product((-1, 1), repeat=seeds):
            total = sum(sign * value for sign, value in zip(signs, pairs, strict=True))
            far += abs(total) >= abs(sum(pairs)) - 1e-12
            choices += 1
        assert paired.flips(pairs) == far / choices
    assert paired.flips(np.abs(pairs) + 1) == 2 / 2**seeds
    assert paired.flips(np.zeros(seeds)) == 1


def test_many_signs_are_drawn() -> None:
    pairs = np.random.default_rng(1).normal(0.4, 1, 40)
    assert paired.flips(pairs) == pytest.approx(paired.student(pairs), abs=0.01)
    assert paired.flips(pairs) == paired.flips(pairs)


def test_differences_that_are_all_alike() -> None:
    assert paired.student(np.full(4, 0.25)) == 0
    assert paired.student(np.zeros(4)) == 1
    assert paired.interval(np.full(4, 0.25)) == (0.25, 0.25)
    for few in (np.empty(0), np.ones(1)):
        assert np.isnan([paired.student(few), paired.flips(few), *paired.interval(few)]).all()


def test_holms_adjustment() -> None:
    """3 * 0.01, 2 * 0.02 and then no less, 1 * 0.03; what was not tested does not count."""
    found = paired.holm(np.array([0.03, np.nan, 0.01, 0.02]))
    np.testing.assert_allclose(found, [0.04, np.nan, 0.03, 0.04])
    assert paired.holm(np.array([0.6, 0.5])).tolist() == [1.0, 1.0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four seeds of fedavg; of ssfl three of these and another one, and another sparsity."""
    for seed, last in ((1, 0.50), (2, 0.40), (3, 0.60), (4, 0.55)):
        write(tmp_path / f"f{seed}.h5", settings(seed=seed), rounds([0.1, last]))
    for seed, last in ((3, 0.64), (1, 0.53), (2, 0.42), (9, 0.9)):
        write(
            tmp_path / f"s{seed}.h5", settings("ssfl", seed=seed, sparsity=0.5), rounds([0, last])
        )
    write(tmp_path / "one.h5", settings("ssfl", seed=1, sparsity=0.9), rounds([0.1, 0.2]))
    write(tmp_path / "ill.h5", settings("ssfl", seed=4, sparsity=0.5), rounds([0.9]), "diverged")
    return tmp_path


def test_runs_are_paired_by_their_seeds(folder: Path) -> None:
    found = paired.differences(frames.runs(folder), "fedavg", "accuracy_last")
    assert found["variant"].tolist() == ["ssfl", "ssfl"]
    first, second = found.to_dict("records")
    pairs = np.array([0.03, 0.02, 0.04])
    assert (first["n"], first["seeds"]) == (3, "1 2 3")
    assert first["mean"] == pytest.approx(0.03)
    wide = 4.30265 * 0.01 / np.sqrt(3)
    assert (first["low"], first["high"]) == pytest.approx((0.03 - wide, 0.03 + wide), abs=1e-6)
    t = 0.03 / (0.01 / np.sqrt(3))
    assert first["t"] == pytest.approx(1 - t / np.sqrt(2 + t * t))  # in closed form, of two
    assert first["flips"] == 0.25 and first["holm"] == pytest.approx(first["t"])
    assert first["t"] == pytest.approx(paired.student(pairs))
    assert second["n"] == 1 and second["mean"] == pytest.approx(-0.3)
    assert np.isnan([second[name] for name in ("low", "high", "t", "holm", "flips")]).all()
    other = paired.differences(frames.runs(folder), "ssfl 0.5", "accuracy_last")
    assert other["mean"].tolist() == pytest.approx([-0.03, -0.33])


@pytest.mark.parametrize(
    ("column", "ours", "theirs", "cells"),
    [
        ("up_total", 2_000_000, 0, ["up_total in MB, minus fedavg", "+4.00", "+4.00 to +4.00"]),
        ("bytes_once", 1_500, 0, ["bytes_once in kB, minus fedavg", "+1.50", "+1.50 to +1.50"]),
        ("down_once", 0, 0, ["down_once in B, minus fedavg", "+0.00", "+0.00 to +0.00"]),
    ],
)
def test_bytes_have_a_unit(
    tmp_path: Path, column: str, ours: int, theirs: int, cells: list[str]
) -> None:
    """One for the whole table, with three digits of its largest number."""
    for seed in (1, 2):
        for name, up in (("ssfl", ours), ("fedavg", theirs)):
            once = up if column == "bytes_once" else 0
            rows = rounds([0.1, 0.2], up=0 if once else up, once=once)
            rows["down"] = 0
            write(tmp_path / f"{name}{seed}.h5", settings(name, seed=seed), rows)
    said = run(paired.main, tmp_path, "--against", "fedavg", "--column", column)
    assert said.exit_code == 0
    for cell in cells:
        assert cell in " ".join(said.output.split())


@pytest.mark.parametrize("column", groups.NUMBERS)
def test_every_number_has_a_unit(folder: Path, column: str) -> None:
    rows = paired.differences(frames.runs(folder), "fedavg", column)
    scale, digits, unit = paired.scaled(column, rows)
    assert scale > 0 and 0 <= digits < 3 and unit


def test_the_command(folder: Path, tmp_path: Path) -> None:
    to = tmp_path / "numbers.csv"
    said = run(paired.main, folder, "--against", "fedavg", "--csv", to)
    assert said.exit_code == 0
    line = next(line for line in said.output.splitlines() if line.startswith("ssfl 0.5"))
    assert line.split() == [
        *("ssfl", "0.5", "3", "+3.0", "+0.5", "to", "+5.5", "0.035", "0.035", "0.250")
    ]
    line = next(line for line in said.output.splitlines() if line.startswith("ssfl 0.9"))
    assert line.split() == ["ssfl", "0.9", "1", "-30.0", *"––––"]
    assert to.read_text().startswith("group,variant,sparsity,n,seeds,mean,low,high,t,flips,holm")
    said = run(paired.main, folder, "--against", "fedsl")
    assert said.exit_code == 2
    assert "--against fedsl: wanted one row of a table, found none; possible are" in said.output
    said = run(paired.main, folder, "--against", "fedavg", "--column", "loss")
    assert said.exit_code == 2 and "--column" in said.output
