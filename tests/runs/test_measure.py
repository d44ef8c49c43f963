"""A kept model measured again: what the run recorded, to the last digit, whatever the method."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from fedmpi.config import ConfigError
from fedmpi.results import record
from fedmpi.results.record import RecordError
from fedmpi.runs import launch
from fedmpi.runs.job import Job
from fedmpi.runs.measure import COLUMNS, measure
from tests.plain import METHODS
from tests.small import small

OWNERS = ("local", "ditto", "dispfl")
"""Methods whose clients have whole models: these are judged as local models, too."""
PRIVATE = ("fedper", "fedrep", "fedbn", "local", "spatl")
"""Methods without a global model whose clients have one after a round."""
OTHERS = {
    "fedavg statistics": ("statistics=local", "model.name=cnn", "model.norm=batch"),
    "fedper statistics": (
        *("method.name=fedper", "statistics=local", "model.name=cnn", "model.norm=batch"),
        "participation=0.5",
    ),
    "fedbn batch": ("method.name=fedbn", "model.name=cnn", "model.norm=batch"),
    "newcomers": ("method.name=fedper", "newcomers=2", "evaluate.final=evaluate"),
    "skew": ("skew.rotations=[0,90]", "skew.noise=0.1", "skew.since=1"),
    "link": ("method.name=splitquant", "evaluate.link=link"),
    "early": ("rounds=5", "target=accuracy:0.01"),
    "best": ("rounds=4", "keep=best", "lr=0.5"),
    "changes": ("codec.down.values=f4", "codec.down.sparsity=0.9"),
    "devices": ("method.name=fedrolex", "devices.tiers=[{keep=0.5,share=1.0}]"),
}
"""What else decides which models are judged, and on which samples."""


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv(launch.PROGRESS, "0")


def done(path: Path, *words: str) -> Path:
    """The result of a small run."""
    Job().run(small("epochs=1", *words), path)
    return path


def agrees(path: Path) -> set[str]:
    """Asserts that what is measured was recorded, bit for bit; returns the columns."""
    found = measure(path)
    known = {name for name in COLUMNS if np.isfinite(found.now[name])}
    assert {name: found.now[name] for name in known} == {
        name: found.recorded[name] for name in known
    }
    return known


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_measured_as_it_was(name: str, tmp_path: Path) -> None:
    path = done(tmp_path / "a.h5", f"method.name={name}")
    known = agrees(path)
    assert ("accuracy" in known) == (name not in (*PRIVATE, "dispfl"))
    assert ("shard_mean" in known) == (name != "dispfl")
    assert ("personal_mean" in known) == (name in OWNERS)


@pytest.mark.parametrize("case", OTHERS)
def test_what_else_is_measured_as_it_was(case: str, tmp_path: Path) -> None:
    assert "shard_mean" in agrees(done(tmp_path / "a.h5", *OTHERS[case]))


def test_the_best_model_is_that_of_the_best_round(tmp_path: Path) -> None:
    """A learning rate by which the last round is not the best."""
    path = done(tmp_path / "a.h5", "rounds=6", "keep=best", "lr=2.0", "seed=3")
    about, tables = record.content(path)
    found = measure(path)
    assert found.round == about["kept_round"] == about["best_round"] < 5
    best = tables["rounds"]["validation"].max()
    assert found.now["validation"] == best > tables["rounds"]["validation"][-1]


def test_settings_that_are_changed_count(tmp_path: Path) -> None:
    path = done(tmp_path / "a.h5")
    found = measure(path, ("skew.noise=20.0",))
    assert found.now["shard_mean"] != found.recorded["shard_mean"]
    assert found.now["accuracy"] == found.recorded["accuracy"]


def test_a_model_of_another_network_is_refused(tmp_path: Path) -> None:
    path = done(tmp_path / "a.h5")
    with pytest.raises(ConfigError, match=r"hidden1\.1\.bias is \(12,\), wanted \(9,\)"):
        measure(path, ("model.hidden=[9,8]",))
    with pytest.raises(ConfigError, match=r"head\.1\.weight is \(10, 8\), wanted \(10, 12\)"):
        measure(path, ("model.hidden=[12]",))


def test_own_parts_of_other_clients_are_refused(tmp_path: Path) -> None:
    path = done(tmp_path / "a.h5", "method.name=fedper")
    with pytest.raises(ConfigError, match="what 5 clients have of their own; wanted clients = 5"):
        measure(path, ("clients=4",))


def test_a_result_without_a_model_is_refused(tmp_path: Path) -> None:
    path = done(tmp_path / "a.h5", "keep=none")
    with pytest.raises(RecordError, match="it keeps no model; wanted a finished run with keep"):
        measure(path)
    settings = json.loads(record.content(path)[0]["settings"])
    assert (settings["keep"], settings["keep_limit"]) == ("none", 100)
