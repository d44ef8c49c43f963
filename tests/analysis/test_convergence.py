"""A bound's terms, fit and verdict, against numbers worked out by hand and a quadratic."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from analysis import convergence, frames
from fedmpi.results import tables
from fedmpi.results.record import DONE, Record, begin
from tests.recorded import rounds, settings, write
from tests.small import run, small
from tests.training.test_theory import WORDS, clients_of
from tests.training.test_theory import quadratic as quadratic

NAN = np.nan


def result(path: Path, tree: dict[str, Any], of_rounds: np.ndarray, of_clients: np.ndarray) -> Path:
    """A result with these rows of rounds and clients, all at once."""
    record = Record(begin(path), tree, path.stem, {"ranks": 1, "hosts": ["a"]}, tables.TABLES)
    record.append({"rounds": of_rounds, "clients": of_clients})
    record.close(DONE)
    return path


def theory(gradients: list[float], **given: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows of rounds with these squared norms, NaN where not measured, and of two clients each.

    The clients have 30 and 10 samples, and the same terms, those that are given.
    """
    of_rounds = rounds([0.5] * len(gradients))
    of_rounds["theory_gradient"] = gradients
    of_clients = tables.empty(tables.CLIENTS, 2 * len(gradients))
    of_clients["round"] = np.repeat(np.arange(len(gradients)), 2)
    of_clients["client"], of_clients["samples"] = [0, 1] * len(gradients), [30, 10] * len(gradients)
    of_clients["steps"] = [6, 2] * len(gradients)
    is_due = np.isfinite(np.repeat(gradients, 2))
    for name, value in given.items():
        of_clients[f"theory_{name}"][is_due] = value
    return of_rounds, of_clients


def measured(folder: Path) -> pd.DataFrame:
    return convergence.terms(frames.runs(folder), frames.rounds(folder), frames.clients(folder))


def test_what_a_run_measured(tmp_path: Path) -> None:
    tables_of = theory([NAN, 4.0, NAN, 2.0], variance=8.0, drift=5.0, pruning=3.0)
    result(tmp_path / "a.h5", settings("fedsl", interval=2, bits=8), *tables_of)
    write(tmp_path / "other.h5", settings("fedavg"), rounds([0.5]))
    (row,) = measured(tmp_path).to_dict("records")
    assert row["variant"] == "fedsl"
    assert row["gradient"] == 3
    # Weights of 3/4 and 1/4: of squares 10/16, and none is known of rounding.
    assert row["variance"] == 8 * 10 / 16 and row["rounding"] == 0
    assert row["drift"] == 5 and row["pruning"] == 3
    # Four rounds of 4 steps on average, at 0.1.
    assert row["steps"] == 16 and row["rate"] == pytest.approx(0.1)
    assert row["start_unit"] == pytest.approx(2 / 1.6)


@pytest.mark.parametrize(
    "aggregation", [{"weights": "equal"}, {"weights": "samples", "rule": "median"}]
)
def test_clients_that_count_the_same(tmp_path: Path, aggregation: dict[str, Any]) -> None:
    """So they do in the objective, whatever their samples are."""
    of_rounds, of_clients = theory([4.0], variance=8.0)
    of_clients["theory_drift"] = [1.0, 5.0]
    tree = settings("fedavg") | {"aggregation": aggregation}
    result(tmp_path / "a.h5", tree, of_rounds, of_clients)
    (row,) = measured(tmp_path).to_dict("records")
    assert (row["variance"], row["drift"]) == (8 * 2 / 4, 3)


def test_a_decaying_rate_counts_by_its_mean(tmp_path: Path) -> None:
    tree = settings("fedsl") | {"lr_decay": 0.5, "schedule": "decay"}
    result(tmp_path / "a.h5", tree, *theory([1.0, 1.0, 1.0]))
    assert measured(tmp_path)["rate"][0] == pytest.approx(0.1 * (1 + 0.5 + 0.25) / 3)


def random(seed: int, rows: int = 8) -> tuple[np.ndarray, ...]:
    """Columns of a bound: start, noise and drift."""
    draws = np.random.default_rng(seed)
    return tuple(draws.uniform(0.1, 1.0, rows) for _ in range(3))


@pytest.mark.parametrize(("gap", "smooth"), [(2.0, 3.0), (0.5, 0.01), (1.0, 0.0), (0.0, 40.0)])
def test_what_follows_the_bound_is_fitted(gap: float, smooth: float) -> None:
    columns = random(1)
    y = gap * columns[0] + smooth * columns[1] + smooth**2 * columns[2]
    found = convergence.fitted(*columns, y)
    np.testing.assert_allclose(found, (gap, smooth), rtol=1e-4, atol=1e-6)


def test_what_grows_as_the_terms_fall_wants_no_smoothness() -> None:
    gap, smooth = convergence.fitted(np.ones(3), *(np.array([3.0, 2.0, 1.0]),) * 2, np.arange(3.0))
    assert (gap, smooth) == (1, 0)


@pytest.mark.parametrize("seed", range(4))
def test_no_other_constants_fit_better(seed: int) -> None:
    """By a search over a lattice of both, none of which is below 0."""
    columns, y = random(seed), np.random.default_rng(100 + seed).uniform(-0.5, 3.0, 8)
    gap, smooth = convergence.fitted(*columns, y)
    assert gap >= 0 and smooth >= 0

    def error(gap: np.ndarray, smooth: np.ndarray) -> np.ndarray:
        pairs = zip(columns, (gap, smooth, smooth**2), strict=True)
        return np.square(sum(column[:, None] * by for column, by in pairs) - y[:, None]).sum(0)

    tried = np.meshgrid(np.linspace(0, 6, 300), np.linspace(0, 3, 300))
    best = error(*(one.ravel() for one in tried)).min()
    assert error(np.array([gap]), np.array([smooth]))[0] <= best + 1e-12


def test_a_raised_constant_holds_in_every_row_and_no_less_does() -> None:
    start, noise, apart = random(2)
    y = np.linspace(0.5, 3.0, 8)
    raised = convergence.holding(0.4, start, noise, apart, y)

    def holds(smooth: float) -> bool:
        return bool((0.4 * start + smooth * noise + smooth**2 * apart >= y - 1e-12).all())

    assert holds(raised) and not holds(0.999 * raised)
    assert convergence.holding(9.0, np.ones(1), np.ones(1), np.ones(1), np.ones(1)) == 0
    nothing = np.zeros(1)
    assert convergence.holding(0.1, np.ones(1), nothing, nothing, np.ones(1)) == np.inf
    assert convergence.holding(0.0, np.ones(1), np.full(1, 0.5), nothing, np.ones(1)) == 2


@pytest.mark.usefixtures("quadratic")
@pytest.mark.parametrize(
    "words",
    [
        ("method.name=fedavg", "local_steps=4"),
        (
            *("method.name=fedsl", "method.interval=2", "method.bits=2", "method.pruning=0.6"),
            *("method.dropout=0.0", "rounds=100", "evaluate.every=10"),
        ),
    ],
    ids=" ".join,
)
def test_the_bound_holds_on_a_quadratic_with_its_own_constants(words: tuple[str, ...]) -> None:
    """L is the largest eigenvalue of a client's Hessian, D what F lies above its least value."""
    found = run(small(*WORDS, "rounds=8", "batch=32", "partition.name=iid", *words))
    engine, each = found.engine, {}
    functions, shares = clients_of(engine)
    hessian = sum(s * one.hessian for s, one in zip(shares, functions, strict=True))
    linear = sum(s * one.linear for s, one in zip(shares, functions, strict=True))
    w = engine.flat.initial.double().numpy()
    least = np.linalg.lstsq(hessian, linear, rcond=None)[0]
    values = [
        sum(s * one.value(at) for s, one in zip(shares, functions, strict=True))
        for at in (w, least)
    ]
    smooth = max(np.linalg.eigvalsh(one.hessian)[-1] for one in functions)
    for table in ("rounds", "clients"):
        each[table] = pd.DataFrame(found.tables[table])
    row = convergence._measured({"lr": 0.1}, each["rounds"], each["clients"])
    assert row is not None and 0.1 * smooth <= 1
    noise = row["rate"] * (row["variance"] + row["rounding"])
    apart = 2 * (row["drift"] + row["pruning"])
    gap = values[0] - values[1]
    bound = gap * row["start_unit"] + smooth * noise + smooth**2 * apart
    assert 0 < row["gradient"] <= bound
    if words[0].endswith("fedsl"):
        # Without the errors of drift and pruning it would not.
        assert row["gradient"] > gap * row["start_unit"] + smooth * noise


def test_the_command(tmp_path: Path) -> None:
    for bits, gradient in ((2, 3.0), (4, 2.0), (8, 1.5), (16, 1.4)):
        tree = settings("fedsl", bits=bits)
        given = {"variance": 1.0, "drift": 0.5, "pruning": 0.1, "rounding": 8.0 / bits}
        result(tmp_path / f"{bits}.h5", tree, *theory([gradient] * 3, **given))
    write(tmp_path / "plain.h5", settings("fedavg"), rounds([0.5]))
    found = CliRunner(env={"COLUMNS": "200"}).invoke(convergence.main, [str(tmp_path)])
    assert found.exit_code == 0, found.output
    lines = [line.split() for line in found.output.splitlines() if line.startswith("fedsl bits=")]
    assert [line[1] for line in lines] == ["bits=2", "bits=4", "bits=8", "bits=16"]
    assert [line[3] for line in lines] == ["3", "2", "1.5", "1.4"]
    rows = convergence.bounded(convergence.summary(measured(tmp_path)))
    parts = sum(rows[f"{name}_mean"] for name in convergence.PARTS)
    np.testing.assert_allclose(parts, rows["fit_mean"])
    assert (rows["bound_mean"] >= rows["gradient_mean"] - 1e-12).all()
    said = " ".join(found.output.split())
    assert "Left out: 1 finished runs without evaluate.theory" in said
    assert "does not know" not in said
    tree = settings("fedsl", bits=2, dropout=0.3) | {"momentum": 0.9}
    result(tmp_path / "odd.h5", tree, *theory([2.0] * 3, variance=1.0))
    found = CliRunner(env={"COLUMNS": "200"}).invoke(convergence.main, [str(tmp_path)])
    assert "what these settings do here: momentum, method.dropout." in " ".join(
        found.output.split()
    )


def test_without_theory_there_is_nothing_to_tell(tmp_path: Path) -> None:
    write(tmp_path / "plain.h5", settings("fedavg"), rounds([0.5]))
    found = CliRunner().invoke(convergence.main, [str(tmp_path)])
    assert found.exit_code == 2
    assert "no finished run with evaluate.theory=true" in found.output
