"""`fedmpi evaluate` and `fedmpi export model`, as they are called."""

import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fedmpi.__main__ import main
from fedmpi.results import record
from fedmpi.runs import launch

QUICK = ("rounds=2", "data.name=synthetic", "data.samples=200", "data.test_samples=40",
         "clients=4", "model.hidden=[6]", "--out", "a.h5")  # fmt: skip


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for name in (*launch.SIZE_VARIABLES, *launch.RANK_VARIABLES):
        monkeypatch.delenv(name, raising=False)


def fedmpi(*words: str) -> Any:
    return CliRunner().invoke(main, words)


def test_accuracies_are_printed_to_the_last_digit_beside_the_recorded_ones() -> None:
    assert fedmpi("run", *QUICK).exit_code == 0
    shown = fedmpi("evaluate", "a.h5")
    rows = record.content(Path("a.h5"))[1]["rounds"]
    assert (shown.exit_code, shown.stderr) == (0, "")
    for name in ("accuracy", "validation", "shard_mean", "shard_std", "shard_min"):
        assert shown.stdout.count(repr(float(rows[name][-1]))) >= 2, name
    assert "a.h5, the model after round 2" in shown.stdout
    assert "differs" not in shown.stdout
    other = fedmpi("evaluate", "a.h5", "skew.noise=9.0")
    assert other.stdout.count("differs") >= 1


def test_what_cannot_be_judged_is_said() -> None:
    limits = ("method.name=fedper", "keep_limit=1", "clients=200", "data.samples=4000")
    words = [word for word in QUICK if word not in ("clients=4", "data.samples=200")]
    assert fedmpi("run", *words, *limits, "model.hidden=[200]", "rounds=1").exit_code == 0
    shown = fedmpi("evaluate", "a.h5")
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert shown.stderr.startswith("a.h5: it keeps no whole model: wanted what clients have of")


def test_a_model_is_exported() -> None:
    assert fedmpi("run", *QUICK).exit_code == 0
    shown = fedmpi("export", "model", "a.h5", "--to", "m.safetensors")
    assert (shown.exit_code, shown.stdout) == (0, "m.safetensors: 4 tensors\n")
    assert fedmpi("export", "model", "a.h5").exit_code == 2
    shown = fedmpi("export", "model", "a.h5", "--to", "m.zip")
    assert (shown.exit_code, "wanted a name that ends in" in shown.stderr) == (2, True)
