"""`fedmpi pretrain`: a model trained centrally, and what begins with it."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fedmpi import weights
from fedmpi.__main__ import main
from fedmpi.config import written
from fedmpi.engine import Engine
from fedmpi.results import record
from fedmpi.runs import launch, upstream
from tests.small import SMALL, run, small

WORDS = tuple(
    f"{table}.{name}={written(value)}"
    for table in ("data", "model")
    for name, value in SMALL[table].items()  # type: ignore[attr-defined]
)
TRAINING = (*WORDS, "rounds=2", "batch=16", "lr=0.05", "momentum=0.5")
MANY = ("method.name=topk", "clients=7", "partition.name=shards", "devices.dropouts=0.5",
        "codec.values=f2", "aggregation.rule=mean", "evaluate.final=tune")  # fmt: skip
"""Settings of a federation, which are ignored."""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv(launch.PROGRESS, "0")
    for name in (*launch.SIZE_VARIABLES, *launch.RANK_VARIABLES):
        monkeypatch.delenv(name, raising=False)


def pretrain(*words: str) -> Any:
    return CliRunner().invoke(main, ["pretrain", *words, "--to", "up.safetensors"])


def tensors() -> dict[str, np.ndarray]:
    return dict(weights.read("model.initial", Path("up.safetensors")))


def vector(given: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([one.reshape(-1) for one in given.values()])


def test_it_is_the_model_of_one_client_with_all_samples() -> None:
    found = pretrain(*TRAINING, *MANY)
    assert (found.exit_code, found.stdout) == (
        0,
        "up.safetensors: 6 tensors of the model after round 2\n",
    )
    central = run(small(*TRAINING, "clients=1", "partition.name=iid"))
    np.testing.assert_array_equal(vector(tensors()), central.model)
    held = len(central.engine.population.held_out)
    assert central.engine.population.sizes.tolist() == [300 - held]


def test_a_run_begins_with_the_file() -> None:
    assert pretrain(*TRAINING).exit_code == 0
    begun = Engine(small("model.initial=up.safetensors"))
    np.testing.assert_array_equal(begun.flat.initial.numpy(), vector(tensors()))


def test_what_is_upstream_is_not_seen_again() -> None:
    """Some classes beforehand, and others after it."""
    assert pretrain(*TRAINING, "data.only.classes=[0,1,2,3]").exit_code == 0
    assert tensors()["head.1.weight"].shape == (4, 8)
    words = ("data.only.classes=[4,5,6,7,8,9]", "model.initial=up.safetensors", "model.fresh=head")
    assert dict(Engine(small(*words)).flat.stages.named_parameters())["head.1.weight"].shape == (
        6,
        8,
    )


def test_the_file_says_how_it_came_about() -> None:
    assert pretrain(*TRAINING).exit_code == 0
    content = Path("up.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    about = json.loads(content[8 : 8 + length])["__metadata__"]
    recorded, _ = record.content(Path("up.h5"))
    for name in ("identity", "settings", "code_sha256", "commit", "fedmpi", "torch"):
        assert about[name] == str(recorded[name]), name
    settings = json.loads(about["settings"])
    assert (settings["clients"], settings["lr"], settings["method"]["name"]) == (1, 0.05, "fedavg")


def test_what_is_finished_is_not_trained_again() -> None:
    assert pretrain(*TRAINING).exit_code == 0
    before, result = tensors(), Path("up.h5").read_bytes()
    Path("up.safetensors").unlink()
    again = pretrain(*TRAINING, *MANY)
    assert again.exit_code == 0 and "up.h5: done already" in again.stderr
    assert Path("up.h5").read_bytes() == result
    np.testing.assert_array_equal(vector(tensors()), vector(before))
    other = pretrain(*TRAINING, "lr=0.01")
    assert other.exit_code == 2 and other.stderr.startswith("up.h5: holds the run ")


def test_a_signal_stops_it_and_no_file_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream.Job, "run", lambda *given, **more: record.STOPPED)
    found = pretrain(*TRAINING)
    assert (found.exit_code, found.stdout) == (launch.STOPPED, "")
    assert not Path("up.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("lr=1e30",), "up.h5: training diverged, and up.safetensors is not written"),
        (("model.train=adapters", "model.lora.rank=2"), "wanted a model without adapters"),
        (("keep=none",), "keep = 'none': wanted 'last' or 'best'"),
        (("lrr=1",), "no setting 'lrr'"),
        (("--to", "up.h5"), "--to up.h5: wanted a name that ends in .safetensors"),
        (("data.only.classes=[99]",), "data.only.classes: wanted classes 0 to 9, found 99"),
    ],
)
def test_what_cannot_be_trained(words: tuple[str, ...], problem: str) -> None:
    found = CliRunner().invoke(main, ["pretrain", "--to", "up.safetensors", *TRAINING, *words])
    assert (found.exit_code, found.stdout) == (2, "")
    assert problem in found.stderr
    assert not Path("up.safetensors").exists()
