"""Benchmarks: the harness's arithmetic, and that references do the same work as we do."""

import json
from functools import partial

import numpy as np
import pytest
from click.testing import CliRunner

from fedmpi import bench, config
from fedmpi.__main__ import main
from fedmpi.bench import round as rounds
from fedmpi.bench import train
from fedmpi.bench.textbook import Textbook
from fedmpi.config import ConfigError
from fedmpi.engine import Engine
from tests.small import run


def test_compare_takes_medians_and_drops_the_first_turn() -> None:
    ours, theirs = iter([90.0, 1.0, 5.0, 3.0]), iter([90.0, 8.0, 2.0, 4.0])
    turns = {"ours": partial(next, ours), "theirs": partial(next, theirs)}
    found = bench.compare("some", {"size": 1}, turns, repeats=3, unit=10)
    assert found.seconds == pytest.approx(0.3)
    assert found.spread == pytest.approx((0.1, 0.5))
    assert found.against == {"theirs": pytest.approx(3 / 4)}


def test_turns_are_taken_one_by_one() -> None:
    order: list[str] = []

    def turn(name: str) -> float:
        order.append(name)
        return 1.0

    bench.compare("some", {}, {name: partial(turn, name) for name in "abc"}, repeats=2)
    assert "".join(order) == "abcabcabc"


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    bench.Result("some", {"size": 1}, 0.5, (0.25, 1.0), {"theirs": 0.75}).say(as_json=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "bench": "some",
        "case": {"size": 1},
        "seconds": 0.5,
        "spread": [0.25, 1.0],
        "against": {"theirs": 0.75},
        "also": {},
    }


@pytest.mark.parametrize(("seconds", "wanted"), [(2.5e-4, "250.000 us"), (0.25, "250.000 ms")])
def test_times_are_said_in_fitting_units(
    seconds: float, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spread, also = (seconds / 2, 4 * seconds), {"limit_us": 200.0}
    bench.Result("some", {"size": 1}, seconds, spread, {"theirs": 0.75}, also).say(as_json=False)
    number, unit = wanted.split()
    low, high = f"{float(number) / 2:.3f}", f"{float(number) * 4:.3f}"
    said = f"some  size=1  {number} {unit} ({low} to {high})  0.750 x theirs  limit_us=200\n"
    assert capsys.readouterr().out == said


def test_unknown_cases_are_refused() -> None:
    assert bench.chosen((), ["a", "b"]) == ("a", "b")
    assert bench.chosen(("b",), ["a", "b"]) == ("b",)
    with pytest.raises(ConfigError, match="'c': no such case; there are: a, b"):
        bench.chosen(("c",), ["a", "b"])


@pytest.mark.parametrize("model", ["logistic", "mlp"])
def test_training_is_measured(model: str) -> None:
    found = train.measure(model, batch=10, repeats=1)
    assert found.case["model"] == model
    assert set(found.against) == {"textbook", "bare"}
    assert all(ratio > 0 for ratio in found.against.values())


def test_a_wrong_training_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.Textbook, "train", lambda *_: {"w": train.torch.zeros(7850)})
    with pytest.raises(AssertionError, match="not those of the textbook"):
        train.measure("logistic", batch=10, repeats=1)


def test_the_textbooks_rounds_are_fedavg() -> None:
    tree = rounds.tree_of("many") | {"rounds": 3, "clients": 6, "evaluate": 3}
    tree["data"] = tree["data"] | {"samples": 6 * 32}
    settings = config.load(tree)
    textbook = Textbook(Engine(settings))
    for t in range(3):
        textbook.round(t, range(6))
    np.testing.assert_allclose(run(settings).model, textbook.vector().numpy(), 1e-4, 1e-6)


@pytest.mark.parametrize(
    ("workload", "parameters"), [("small", 582_026), ("many", 7_850), ("comm", 9_991_920)]
)
def test_workloads_have_the_stated_models(workload: str, parameters: int) -> None:
    assert Engine(config.load(rounds.tree_of(workload))).flat.size == parameters


def test_the_command_names_what_there_is() -> None:
    found = CliRunner().invoke(main, ["bench", "round", "--workload", "none"])
    assert found.exit_code == 2
