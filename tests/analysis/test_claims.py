"""Claims of papers beside results made by hand, against figures worked out by hand."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import claims, dots, frames, statements
from analysis.claims import DIRECTION, NOT_REACHED, NOT_RUN, REPRODUCED
from fedmpi import loading
from fedmpi.runs import sweep
from tests.recorded import rounds, run, settings, simulated, write

NAN = np.nan
SWEEP = """
[base]
rounds = 3
clients = 2
lr = 0.1
data.name = "synthetic"
partition = { name = "iid" }
threads = 4

[[grid]]
method.name = ["fedavg"]
seed = [1, 2, 3]

[[grid]]
method = [{ name = "ssfl", sparsity = 0.5 }, { name = "dispfl", sparsity = 0.5 }]
seed = [1, 2, 3]

[sizes.small]
rounds = 2
"""
CLAIM = """
[[claim]]
system = "SSFL"
claim = "it is so"
source = "a paper, table 1"
"""
SSFL = 'runs = { method.name = "ssfl" }\n'
FEDAVG = 'against = { method.name = "fedavg" }\n'
ACCURACY = 'measure = "accuracy"\naccuracy = "global"\n'
R = np.mean([0.9 / 0.8, 0.9 / 0.9, 0.75 / 0.7])
"""Last accuracies of ssfl over those of fedavg."""
NO_SPREAD = 'spread = "none"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three seeds of fedavg and of ssfl, two of dispfl; ssfl has an agreement of 1500 bytes."""
    home = tmp_path / "results"
    home.mkdir()
    accuracies = {
        "fedavg": ([0.2, 0.6, 0.8], [0.4, 0.5, 0.9], [0.5, 0.6, 0.7]),
        "ssfl": ([0.3, 0.7, 0.9], [0.6, 0.8, 0.9], [0.6, 0.7, 0.75]),
        "dispfl": ([0.1, 0.2, 0.6], [0.2, 0.3, 0.6]),
    }
    for name, of_seeds in accuracies.items():
        extra = {} if name == "fedavg" else {"sparsity": 0.5}
        for seed, accuracy in enumerate(of_seeds, 1):
            up, once = (50, 500) if name == "ssfl" else (100, 0)
            rows = simulated(rounds(accuracy, up=up, once=once), 2.0)
            tree = settings(name, seed=seed, **extra)
            write(home / f"{name}{seed}.h5", tree, rows, train_samples=100)
    return home


def stated(tmp_path: Path, *parts: str, sweep: str = SWEEP) -> Path:
    """A sweep file with a claim of these lines."""
    file = tmp_path / "study.toml"
    file.write_text(sweep + CLAIM + "".join(parts))
    return file


def judged(tmp_path: Path, results: Path | None, *parts: str, sweep: str = SWEEP) -> pd.DataFrame:
    """The rows of a claim of these lines."""
    found = claims.Results(() if results is None else (results,))
    return claims.judged(statements.read([stated(tmp_path, *parts, sweep=sweep)]), found)


def one(tmp_path: Path, results: Path | None, *parts: str, sweep: str = SWEEP) -> dict[str, Any]:
    """The only row of a claim of these lines."""
    rows = judged(tmp_path, results, *parts, sweep=sweep)
    assert len(rows) == 1
    return {str(key): value for key, value in rows.iloc[0].items()}


def test_an_accuracy_within_the_published_spread_is_reproduced(
    tmp_path: Path, folder: Path
) -> None:
    row = one(tmp_path, folder, ACCURACY, SSFL, "published = 0.83\nspread = 0.02\n")
    assert row["verdict"] == REPRODUCED and row["why"] == "within the published spread"
    assert (row["n"], row["seeds"], row["size"]) == (3, "1 2 3", "own")
    # (0.9 + 0.9 + 0.75) / 3, and the sample deviation of these.
    assert row["ours_mean"] == pytest.approx(0.85)
    assert row["ours_std"] == pytest.approx(np.sqrt((0.05**2 + 0.05**2 + 0.1**2) / 2))
    assert row["ours"] == "85.0±8.7 %" and row["published"] == "83 %" and row["spread"] == "±2 %"


@pytest.mark.parametrize(
    ("published", "verdict", "why"),
    [
        ("published = 0.86\nspread = 0.005\n", NOT_REACHED, "outside the published spread"),
        ("published = 0.84\nspread = 0.005\n", DIRECTION, "outside the published spread"),
        (f"published = 0.86\n{NO_SPREAD}near = 0.02\n", DIRECTION, "near, within ±2 %"),
        (f"published = 0.9\n{NO_SPREAD}near = '1 %'\n", NOT_REACHED, "not near, within ±0.9 %"),
        (f"published = 0.7\n{NO_SPREAD}near = '1 %'\n", DIRECTION, "not near, within ±0.7 %"),
    ],
)
def test_without_a_spread_nothing_is_reproduced(
    tmp_path: Path, folder: Path, published: str, verdict: str, why: str
) -> None:
    row = one(tmp_path, folder, ACCURACY, SSFL, published)
    assert row["verdict"] == verdict and row["why"].startswith(why)
    assert ("no spread is published" in row["why"]) == ("none" in published)


def test_a_reduced_size_reproduces_nothing(tmp_path: Path, folder: Path) -> None:
    """The same figures as above, once the paper's size is another."""
    published = "published = 0.05\nspread = 0.02\n"
    row = one(tmp_path, folder, ACCURACY, SSFL, FEDAVG, published)
    assert (row["verdict"], row["ours"]) == (REPRODUCED, "+5.0±5.0 points")
    for more, size in (
        ("own = { rounds = 999 }\n", "reduced: rounds 3 (999)"),
        ("samples = 50_000\n", "reduced: training samples 100 (50000)"),
        ("own.momentum = 0.9\n", "reduced: momentum unknown (0.9)"),
    ):
        row = one(tmp_path, folder, ACCURACY, SSFL, FEDAVG, published, more)
        assert (row["verdict"], row["size"]) == (DIRECTION, size)
        assert row["why"] == "reduced size; with 2 of 3 seeds"
    other = SWEEP.replace("rounds = 3", "rounds = 9").replace("clients = 2", "clients = 5")
    row = one(tmp_path, folder, ACCURACY, SSFL, FEDAVG, published, sweep=other)
    assert row["size"] == "reduced: rounds 3 (9), clients 2 (5)"
    # Alone, a figure of another size says nothing.
    row = one(tmp_path, folder, ACCURACY, SSFL, "published = 0.85\nspread = 0.1\n", sweep=other)
    assert row["verdict"] == NOT_RUN and row["ours"] == "85.0±8.7 %"
    assert row["why"] == "at a reduced size only, where the figure says nothing"


@pytest.mark.parametrize(
    ("changed", "more", "size"),
    [
        ({}, "", "own"),
        ({"lr": 0.5, "method.name": "fedavg"}, "", "own"),  # both are stated
        ({"momentum": 0.0}, "", "reduced: momentum 0.9 (0.0)"),
        ({"momentum": 0.0}, "own = { momentum = 0.9 }\n", "own"),
        ({"momentum": 0.0, "clip": None}, "", "reduced: momentum 0.9 (0.0), clip 2.0 (absent)"),
        ({"epochs": 2}, "", "reduced: epochs absent (2)"),
        ({"devices.tiers": []}, "", "reduced: devices.tiers another (none)"),
        # Neither what is trained nor the accuracies of rounds.
        ({"threads": 1, "device": "cpu", "target": None, "evaluate.final": "none"}, "", "own"),
    ],
)
def test_what_runs_changed_beside_what_is_stated_is_not_the_papers(
    tmp_path: Path, changed: dict[str, Any], more: str, size: str
) -> None:
    """A result says which settings differ from those that its names and its paper stand for."""
    tree = settings("ssfl", sparsity=0.5) | {"momentum": 0.9, "clip": 2.0, "epochs": None}
    tree["devices"] = {"tiers": [{"name": "phone", "share": 1.0}]}
    about = {"train_samples": 100, "paper": "", "changed": json.dumps(changed)}
    write(tmp_path / "a.h5", tree, rounds([0.3, 0.7, 0.9]), **about)
    lines = [ACCURACY, SSFL, "published = 0.9\nspread = 0.02\n", more]
    row = one(tmp_path, tmp_path / "a.h5", *lines)
    assert row["size"] == size
    assert row["verdict"] == (REPRODUCED if size == "own" else NOT_RUN)


@pytest.mark.parametrize(
    ("paper", "base", "size"),
    [
        ("", "", "own"),
        ("ssfl", "", "reduced: paper ssfl (none)"),
        ("", 'paper = "ssfl"\n', "reduced: paper none (ssfl)"),
        ("ssfl", 'paper = "ssfl"\n', "own"),
    ],
)
def test_a_papers_values_are_stated_by_its_name(
    tmp_path: Path, paper: str, base: str, size: str
) -> None:
    about = {"train_samples": 100, "paper": paper, "changed": "{}"}
    tree = settings("ssfl", sparsity=0.5)
    write(tmp_path / "a.h5", tree, rounds([0.3, 0.7, 0.9]), **about)
    lines = [ACCURACY, SSFL, "published = 0.9\nspread = 0.02\nown = { rounds = 3 }\n"]
    changed = SWEEP.replace("[base]\n", f"[base]\n{base}")
    assert one(tmp_path, tmp_path / "a.h5", *lines, sweep=changed)["size"] == size


@pytest.mark.parametrize(
    ("given", "wanted", "size"),
    [
        ({"bits": None}, "8", "reduced: method.bits absent (8)"),
        ({"bits": None}, '"absent"', "own"),
        ({"bits": 8}, '"absent"', "reduced: method.bits 8 (absent)"),
        ({}, "8", "own"),  # the method has no such setting
    ],
)
def test_a_setting_of_the_method_that_is_not_set_is_a_difference(
    tmp_path: Path, given: dict[str, Any], wanted: str, size: str
) -> None:
    tree = settings("ssfl", sparsity=0.5, **given)
    write(tmp_path / "a.h5", tree, rounds([0.3, 0.7, 0.9]), train_samples=100)
    lines = [ACCURACY, SSFL, f"published = 0.9\nspread = 0.02\nown.method.bits = {wanted}\n"]
    of_another = SWEEP + "method.bits = 4\n"  # of the size that stands last
    assert one(tmp_path, tmp_path / "a.h5", *lines, sweep=of_another)["size"] == size


@pytest.mark.parametrize(
    ("key", "path", "near"),
    [
        (
            "runs = {{ method.name = 'ssfl', {} = [0.5, 'unset'] }}",
            "method.sparsty",
            "method.sparsity",
        ),
        ("against = {{ method.name = 'fedavg', {} = 'iid' }}", "partition.nme", "partition.name"),
        ("against = {{ {} = 'iid' }}", "partition", "partition.name"),
        ("tuned = ['{}']", "lrr", "lr"),
        ("equal = ['{}']", "method.sparcity", "method.sparsity"),
        ("own.{} = 0.5", "method.spasity", "method.sparsity"),
    ],
)
@pytest.mark.parametrize("results", [True, False])
def test_a_setting_that_there_is_not_is_an_error(
    tmp_path: Path, folder: Path, results: bool, key: str, path: str, near: str
) -> None:
    """Whether or not there are results; it would select all runs, or be left out."""
    line = key.format(path)
    others = [one for one in (SSFL, FEDAVG) if one.split()[0] != line.split()[0]]
    file = stated(tmp_path, ACCURACY, *others, line, "\npublished = 0.1\nspread = 0.1\n")
    given = [folder] if results else []
    result = run(claims.main, *given, "--claims", file)
    words = f"{file}: SSFL: 'it is so': {line.split()[0].split('.')[0]}: no setting {path!r} in"
    assert result.exit_code == 2
    output = " ".join(result.output.split())
    assert words in output and output.endswith(f"do you mean {near}?")


def test_settings_of_results_alone_are_known(tmp_path: Path, folder: Path) -> None:
    """Defaults need not stand in the sweep; without results they are not known."""
    lines = (ACCURACY, SSFL, "published = 0.1\nspread = 0.1\nequal = ['method.bits']\n")
    tree = settings("ssfl", sparsity=0.5, bits=8, seed=9)
    write(folder / "another.h5", tree, rounds([0.3, 0.7, 0.9]), train_samples=100)
    assert not judged(tmp_path, folder, *lines).empty
    with pytest.raises(statements.ClaimError, match=r"no setting 'method\.bits'"):
        judged(tmp_path, None, *lines)


def test_of_unknown_size_is_not_of_the_papers_own(tmp_path: Path) -> None:
    """Results of earlier versions do not say how many samples their data set has."""
    write(tmp_path / "results" / "a.h5", settings("ssfl", sparsity=0.5), rounds([0.1, 0.5, 0.85]))
    published = "published = 0.85\nspread = 0.1\nsamples = 100\n"
    row = one(tmp_path, tmp_path / "results", ACCURACY, SSFL, published)
    assert row["size"] == "reduced: training samples unknown (100)" and row["verdict"] == NOT_RUN


def test_a_grid_alone_tells_the_size_of_a_run(tmp_path: Path, folder: Path) -> None:
    """Each run has to fit one grid as a whole: fedavg has no sparsity, the others have this one."""
    published = "published = 0.05\nspread = 0.02\n"
    assert one(tmp_path, folder, ACCURACY, SSFL, FEDAVG, published)["size"] == "own"
    other = SWEEP.replace('"ssfl", sparsity = 0.5', '"ssfl", sparsity = 0.7')
    row = one(tmp_path, folder, ACCURACY, SSFL, FEDAVG, published, sweep=other)
    assert row["size"].startswith("reduced: method.")


def test_against_the_strongest_of_several(tmp_path: Path, folder: Path) -> None:
    """Of the two, fedavg has the higher mean; errors are reduced from 0.2, 0.1, 0.3."""
    several = 'against = [{ method.name = "dispfl" }, { method.name = "fedavg" }]\n'
    measure = 'measure = "relative error reduction"\naccuracy = ["global", "personal_mean"]\n'
    published = f"published = 0.213\n{NO_SPREAD}near = 0.01\n"
    rows = judged(tmp_path, folder, measure, SSFL, several, published)
    first, second = rows.to_dict("records")
    figures = [(0.2 - 0.1) / 0.2, 0.0, (0.3 - 0.25) / 0.3]
    assert first["against"] == "fedavg"
    assert first["ours_mean"] == pytest.approx(np.mean(figures))
    assert first["ours_std"] == pytest.approx(np.std(figures, ddof=1))
    assert first["why"].startswith("near, within ±1 %")  # 0.222 is
    assert (first["verdict"], first["by"], second["by"]) == (DIRECTION, "global", "personal_mean")
    # Local models are 0.2 below.
    figures = [(0.4 - 0.3) / 0.4, 0.0, (0.5 - 0.45) / 0.5]
    assert second["ours_mean"] == pytest.approx(np.mean(figures))
    assert second["verdict"] == DIRECTION
    assert second["why"].startswith("not measured as in the paper")


def test_the_strongest_may_lack_seeds(tmp_path: Path, folder: Path) -> None:
    """It is no weaker for seeds that were not run yet, and the verdict says that they lack."""
    better = rounds([0.1, 0.2, 0.95])
    write(folder / "feddst1.h5", settings("feddst", seed=1), better, train_samples=100)
    against = 'against = { method.name = ["fedavg", "feddst"] }\n'
    published = "published = -0.05\nspread = 0.01\n"
    row = one(tmp_path, folder, ACCURACY, SSFL, against, published)
    assert row["against"] == "feddst" and row["n"] == 1
    assert row["ours_mean"] == pytest.approx(-0.05)
    assert "2 of 3 seeds have nothing to compare with" in row["why"]


def test_a_best_value_is_not_that_of_a_lucky_seed(tmp_path: Path, folder: Path) -> None:
    tree = settings("ssfl", seed=1, sparsity=0.5) | {"lr": 0.2}
    write(folder / "lucky.h5", tree, rounds([0.3, 0.7, 0.99]), train_samples=100)
    published = "published = 0.85\nspread = 0.01\ntuned = ['lr']\n"
    row = one(tmp_path, folder, ACCURACY, SSFL, published)
    assert row["n"] == 3 and row["ours_mean"] == pytest.approx(0.85)


def test_against_methods_that_were_not_run(tmp_path: Path, folder: Path) -> None:
    """Who is ahead of some of them alone has not reproduced it."""
    published = "published = 0.05\nspread = 0.1\n"
    one_of = 'against = { method.name = ["fedavg", "prunefl", "dispfl", "feddst"] }\n'
    row = one(tmp_path, folder, ACCURACY, SSFL, one_of, published)
    assert row["against"] == "fedavg" and row["verdict"] == DIRECTION
    assert row["why"].startswith("no runs of prunefl, feddst to compare with")
    both = 'against = [{ method.name = "fedavg" }, { method.name = "feddst" }]\n'
    row = one(tmp_path, folder, ACCURACY, SSFL, both, published)
    assert row["verdict"] == DIRECTION and "no runs of feddst to" in row["why"]
    assert one(tmp_path, folder, ACCURACY, SSFL, FEDAVG, published)["verdict"] == REPRODUCED


def test_of_costs_the_lowest_is_the_strongest(tmp_path: Path, folder: Path) -> None:
    """To 0.2 fedavg needs 1 and 1 rounds, dispfl 2 and 1, with the two seeds that all have."""
    (folder / "ssfl3.h5").unlink()
    several = 'against = { method.name = ["dispfl", "fedavg"] }\n'
    measure = 'measure = "rounds to target"\naccuracy = "global"\ntarget = 0.2\n'
    row = one(tmp_path, folder, measure, SSFL, several, "published = 1.5\nspread = 0.1\n")
    assert (row["against"], row["ours_mean"], row["verdict"]) == ("fedavg", 1, NOT_REACHED)


def test_by_another_accuracy_nothing_is_reproduced(tmp_path: Path, folder: Path) -> None:
    """Local models are 0.2 below in both methods, so that all accuracies differ alike."""
    several = ACCURACY.replace('"global"', '["global", "personal_mean"]')
    rows = judged(tmp_path, folder, several, SSFL, FEDAVG, "published = 0.05\nspread = 0.02\n")
    assert list(rows["ours"]) == ["+5.0±5.0 points"] * 2
    assert list(rows["verdict"]) == [REPRODUCED, DIRECTION]
    assert rows["why"][1] == "not measured as in the paper; with 2 of 3 seeds"


def test_two_are_compared_seed_by_seed(tmp_path: Path, folder: Path) -> None:
    """There is no third seed of dispfl: 0.9 - 0.6 twice."""
    dispfl = 'against = { method.name = "dispfl" }\n'
    row = one(tmp_path, folder, ACCURACY, SSFL, dispfl, "published = 0.3\nspread = 0.0\n")
    assert (row["n"], row["seeds"]) == (2, "1 2")
    assert row["ours_mean"] == pytest.approx(0.3) and row["ours_std"] == pytest.approx(0)
    assert (row["verdict"], row["ours"]) == (REPRODUCED, "+30.0 points")


def test_bytes_to_a_target_both_ways_and_uplink_alone(tmp_path: Path, folder: Path) -> None:
    measure = 'measure = "bytes to target"\naccuracy = "global"\nbytes = ["both", "up"]\n'
    more = f"target = 0.7\npublished = 2.0\n{NO_SPREAD}near = 0.5\n"
    more += "honest = 0.8\naccounting = 'both directions'\n"
    both, up = judged(tmp_path, folder, measure, SSFL, FEDAVG, more).to_dict("records")
    # fedavg reaches 0.7 in rounds 3, 3, 3; ssfl in 2, 2, 2, after 500 bytes up and 1000 down.
    assert both["ours_mean"] == pytest.approx(3300 / (1500 + 2 * 1050))
    assert up["ours_mean"] == pytest.approx(300 / (500 + 2 * 50))
    assert (both["verdict"], up["verdict"]) == (NOT_REACHED, NOT_REACHED)
    assert (both["by"], up["by"]) == ("global, to 70 %, both ways", "global, to 70 %, up")
    assert (both["published"], both["honest"]) == ("2 x", "0.80 x")
    assert both["accounting"] == "both directions"


@pytest.mark.parametrize(
    ("name", "form", "figures"),
    [
        # ssfl: 2, 2, 2 rounds of 2 s, and an agreement of 2 s; fedavg: 3, 3, 3.
        ("rounds to target", "factor", [1.5, 1.5, 1.5]),
        ("rounds to target", "saved", [1 / 3] * 3),
        ("rounds to target", "difference", [-1, -1, -1]),
        ("seconds to target", "factor", [1.0, 1.0, 1.0]),
    ],
)
def test_costs_to_a_target(
    tmp_path: Path, folder: Path, name: str, form: str, figures: list[float]
) -> None:
    measure = f'measure = "{name}"\naccuracy = "global"\ntarget = 0.7\nas = "{form}"\n'
    published = 'published = "less"\nspread = "none"\nleast = -9\n'
    row = one(tmp_path, folder, measure, SSFL, FEDAVG, published)
    assert row["ours_mean"] == pytest.approx(np.mean(figures))
    assert (row["verdict"], row["why"]) == (DIRECTION, "no figure is published")


def test_rounds_to_a_target_alone(tmp_path: Path, folder: Path) -> None:
    measure = 'measure = "rounds to target"\naccuracy = "global"\ntarget = 0.6\n'
    fedavg = 'runs = { method.name = "fedavg" }\n'
    row = one(tmp_path, folder, measure, fedavg, "published = 3\nspread = 1\n")
    # 2, 3 and 2 rounds.
    assert row["ours_mean"] == pytest.approx(7 / 3) and row["verdict"] == REPRODUCED
    row = one(tmp_path, folder, measure, fedavg, f"published = 2\n{NO_SPREAD}near = '1 %'\n")
    assert row["verdict"] == NOT_REACHED  # more rounds are worse
    row = one(tmp_path, folder, measure, fedavg, f"published = 9\n{NO_SPREAD}near = '1 %'\n")
    assert row["verdict"] == DIRECTION  # fewer are better


def test_who_misses_the_target_reproduces_nothing(tmp_path: Path, folder: Path) -> None:
    """Of three seeds of ssfl two get to 0.8."""
    measure = 'measure = "rounds to target"\naccuracy = "global"\ntarget = 0.8\n'
    row = one(tmp_path, folder, measure, SSFL, "published = 2.5\nspread = 9\n")
    assert (row["verdict"], row["why"]) == (NOT_REACHED, "1 of 3 did not reach 80 %")
    assert row["ours_mean"] == pytest.approx(2.5)  # of rounds 3 and 2
    row = one(tmp_path, folder, measure.replace("0.8", "0.95"), SSFL, "published = 2\nspread = 9\n")
    assert (row["verdict"], row["ours"]) == (NOT_REACHED, "")


def test_who_reaches_the_target_needs_no_more_rounds(tmp_path: Path, folder: Path) -> None:
    """Until then a run with fewer rounds is the same; one that has missed it could have gone on."""
    measure = (
        'measure = "rounds to target"\naccuracy = "global"\ntarget = 0.7\nreduced_target = 0.1\n'
    )
    more = "published = 2\nspread = 0\nown = { rounds = 999 }\n"
    row = one(tmp_path, folder, measure, SSFL, more)
    assert (row["verdict"], row["size"]) == (REPRODUCED, "own")
    row = one(tmp_path, folder, measure.replace("0.7", "0.8"), SSFL, more)
    assert (row["verdict"], row["size"]) == (NOT_REACHED, "reduced: rounds 3 (999)")


def test_a_baseline_that_misses_the_target_gives_a_bound(tmp_path: Path, folder: Path) -> None:
    """In three rounds dispfl spends 3300 bytes and does not get to 0.7; ssfl spends 3600."""
    dispfl = 'against = { method.name = "dispfl" }\n'
    measure = 'measure = "bytes to target"\naccuracy = "global"\ntarget = 0.7\n'
    row = one(tmp_path, folder, measure, SSFL, dispfl, "published = 0.92\nspread = 0.01\n")
    assert row["ours_mean"] == pytest.approx(3300 / 3600) and row["ours"] == "at least 0.92 x"
    assert row["verdict"] == DIRECTION  # its figure is within the spread, but a bound
    assert "at least: 2 of 2 to compare with never did" in row["why"]


def test_a_target_of_a_reduced_size(tmp_path: Path) -> None:
    """It is where the runs end; else the one that the claim has for it; else the paper's."""
    home = tmp_path / "results"
    home.mkdir()
    write(home / "a.h5", settings("ssfl"), rounds([0.2, 0.5, 0.6]))
    measure = 'measure = "rounds to target"\naccuracy = "global"\ntarget = 0.8\n'
    lines = [measure, SSFL, "published = 2\nspread = 9\n", "own = { clients = 99 }\n"]
    assert "did not reach 80 %" in one(tmp_path, home, *lines)["why"]
    row = one(tmp_path, home, *lines, "reduced_target = 0.5\n")
    assert (row["ours_mean"], row["by"]) == (2, "global, to 50 %")
    ended = settings("ssfl") | {"target": "accuracy:0.6"}
    write(home / "a.h5", ended, rounds([0.2, 0.5, 0.6]), ended="target")
    row = one(tmp_path, home, *lines)
    assert (row["ours_mean"], row["by"]) == (3, "global, to 60 %")
    row = one(tmp_path, home, *lines, "reduced_target = 0.5\n")
    assert (row["ours_mean"], row["by"]) == (2, "global, to 50 %")
    # Its last accuracy is where it ended, and nothing else.
    row = one(tmp_path, home, ACCURACY, *lines[1:3])
    assert row["verdict"] == NOT_RUN and "ended at its target" in row["why"]


@pytest.mark.parametrize(
    ("lines", "figure"),
    [
        ('measure = "bytes"\n', 3300 / (1500 + 3 * 1050)),
        ('measure = "bytes"\nbytes = "up"\n', 300 / 650),
        ('measure = "bytes a round"\n', 1100 / 1050),
        ('measure = "bytes a round"\nbytes = "up"\nas = "saved"\n', 0.5),
        ('measure = "accuracy"\naccuracy = "shard_mean"\nat = 2\n', np.mean([0.1, 0.3, 0.1])),
        ('measure = "FLOPs"\ncolumn = "rounds.flops"\n', 0.0),
        ('measure = "seconds"\ncolumn = ["rounds.sim_seconds", "rounds.seconds"]\n', 1.0),
        ('measure = "FLOPs"\ncolumn = "rounds.flops"\nper = "rounds.lost"\n', 1 - 7),
        ('measure = "transfer ratio"\ncolumn = "rounds.sampled"\nper = "rounds.lost"\n', 2.0),
        (
            'measure = "transfer ratio"\ncolumn = "rounds.accuracy"\nrows = { round = 2 }\n'
            'per = "rounds.accuracy"\nper_rows = { round = 0 }\n',
            np.mean([3.0, 1.5, 1.25]),
        ),
        ('measure = "column"\ncolumn = "rounds.accuracy"\nrows = { round = "last" }\n', R),
        ('measure = "column"\ncolumn = "rounds.up"\nas = "difference"\n', -50.0),
    ],
)
def test_other_measures(tmp_path: Path, folder: Path, lines: str, figure: float) -> None:
    against = "" if "per =" in lines else FEDAVG
    published = 'published = "more"\nspread = "none"\nleast = -99\n'
    row = one(tmp_path, folder, lines, SSFL, against, published)
    assert row["ours_mean"] == pytest.approx(figure)
    assert row["verdict"] == DIRECTION


def test_units_of_a_column(tmp_path: Path, folder: Path) -> None:
    lines = 'measure = "column"\ncolumn = "rounds.accuracy"\nrows = { round = "last" }\n'
    lines += 'as = "difference"\nbetter = "higher"\nunit = "share"\n'
    published = 'published = "more"\nspread = "none"\nleast = 0\n'
    assert one(tmp_path, folder, lines, SSFL, FEDAVG, published)["ours"] == "+5.0±5.0 points"
    lines = 'measure = "column"\ncolumn = "rounds.up"\nunit = "bytes"\n'
    assert one(tmp_path, folder, lines, SSFL, published)["ours"] == "50 B"


def test_a_column_that_is_lacking_is_said(tmp_path: Path, folder: Path) -> None:
    published = 'published = "fewer"\nspread = "none"\nleast = 0\n'
    for column in ("nosuch.flops", "rounds.nosuch", "final.accuracy"):
        lines = f'measure = "FLOPs"\ncolumn = "{column}"\ntakes = "a year"\n'
        row = one(tmp_path, folder, lines, SSFL, FEDAVG, published)
        assert row["verdict"] == NOT_RUN
        assert row["why"] == f"the result of ssfl has no {column}; it takes a year"
    lines = 'measure = "FLOPs"\ncolumn = "rounds.flops"\nrows = { round = 8 }\n'
    row = one(tmp_path, folder, lines, SSFL, FEDAVG, published)
    assert row["why"] == "the result of ssfl has no rounds.flops"


def test_a_comparison_with_nothing_is_said(tmp_path: Path, folder: Path) -> None:
    """The means of an empty kind of bytes are zero."""
    lines = 'measure = "column"\ncolumn = "clients.up_mask"\nunit = "bytes"\nbetter = "lower"\n'
    published = 'published = "fewer"\nspread = "none"\nleast = 0\n'
    for form in ("factor", "ratio", "saved"):
        row = one(tmp_path, folder, lines, f'as = "{form}"\n', SSFL, FEDAVG, published)
        assert (row["verdict"], row["why"]) == (NOT_RUN, f"a {form} of 0 and 0 is no number")


def test_an_accuracy_after_so_many_rounds_is_of_that_round(tmp_path: Path, folder: Path) -> None:
    published = "published = 0.7\nspread = 0.1\n"
    row = one(tmp_path, folder, ACCURACY, "at = 2\n", SSFL, published)
    assert row["ours_mean"] == pytest.approx((0.7 + 0.8 + 0.7) / 3)
    row = one(tmp_path, folder, ACCURACY, "at = 4\n", SSFL, published)
    assert row["verdict"] == NOT_RUN
    assert row["why"] == "the result of ssfl has no accuracy after round 4"


def test_runs_that_ended_at_their_own_target(tmp_path: Path) -> None:
    """They say nothing on a higher one, nor on all rounds; but on the rounds that there were."""
    home = tmp_path / "results"
    home.mkdir()
    tree = settings("ssfl", sparsity=0.5) | {"target": "accuracy:0.7"}
    write(home / "a.h5", tree, rounds([0.5, 0.7]), train_samples=100, ended="target")
    target = 'measure = "rounds to target"\naccuracy = "global"\ntarget = 0.6\n'
    published = "published = 2\nspread = 1\n"
    assert one(tmp_path, home, target, SSFL, published)["ours_mean"] == 2
    row = one(tmp_path, home, target.replace("0.6", "0.8"), SSFL, published)
    assert row["verdict"] == NOT_RUN
    assert row["why"] == "the result of ssfl ended at its own target accuracy:0.7, below 0.8"
    whole = "the result of ssfl ended at its target, not after all rounds"
    for measure in (ACCURACY, 'measure = "bytes"\n'):
        assert one(tmp_path, home, measure, SSFL, published)["why"] == whole
    early = one(tmp_path, home, ACCURACY, "at = 1\n", SSFL, "published = 0.5\nspread = 0.1\n")
    assert early["ours_mean"] == pytest.approx(0.5)


def test_an_order(tmp_path: Path, folder: Path) -> None:
    """Means of the first two seeds, which all three have: 0.9, 0.85 and 0.6."""
    names = ("ssfl", "fedavg", "dispfl")
    tables = (f"{{ lr = 0.1, method.name = {name!r} }}" for name in names)
    runs = f"runs = [{', '.join(tables)}]\n"
    measure = 'measure = "order"\naccuracy = "global"\n'
    row = one(tmp_path, folder, measure, runs, "published = [0.9, 0.86, 0.6]\nspread = 0.01\n")
    assert (row["verdict"], row["seeds"], row["n"]) == (REPRODUCED, "1 2", 2)
    lacking = "1 of 3 seeds have nothing to compare with"
    assert row["why"] == f"within the published spread; {lacking}"
    assert row["ours"] == "ssfl 90.0 % > fedavg 85.0±7.1 % > dispfl 60.0 %"
    assert row["published"] == "ssfl 90 % > fedavg 86 % > dispfl 60 %"
    published = "published = [0.9, 0.8, 0.6]\nspread = [0, 0.01, 0]\n"
    row = one(tmp_path, folder, measure, runs, published)
    assert (row["verdict"], row["why"]) == (
        DIRECTION,
        f"{lacking}; outside the published spread; with 1 of 2 seeds",
    )
    row = one(tmp_path, folder, measure, runs, 'published = "as said"\nspread = "none"\n')
    assert row["verdict"] == DIRECTION
    turned = 'runs = [{ method.name = "fedavg" }, { method.name = "ssfl" }]\n'
    # Near, and in the wrong order: of seeds 0.8 < 0.9, 0.9 = 0.9, 0.7 < 0.75.
    published = f"published = [0.81, 0.8]\n{NO_SPREAD}near = 0.1\n"
    row = one(tmp_path, folder, measure, turned, published)
    assert row["verdict"] == NOT_REACHED
    assert row["ours"].startswith("ssfl 85.0±8.7 % > fedavg")
    row = one(tmp_path, folder, measure, turned, "published = [0.8, 0.85]\nspread = 0.01\n")
    assert row["verdict"] == NOT_REACHED


def test_runs_that_differ_in_more_than_seeds_are_rows_of_their_own(
    tmp_path: Path, folder: Path
) -> None:
    """What is compared is equal in all settings that nobody selects; others are no comparison."""
    wide = settings("ssfl", seed=1, sparsity=0.5) | {"clients": 9}
    write(folder / "wide.h5", wide, rounds([0.1, 0.2, 0.3]), train_samples=100)
    published = "published = 0.05\nspread = 0.02\n"
    more = "own.lr = 0.2\n"
    row = one(tmp_path, folder, ACCURACY, SSFL, FEDAVG, published, more)
    assert (row["verdict"], row["claim"]) == (DIRECTION, "it is so (clients=2)")
    other = 'against = { method.name = "local" }\n'
    rows = judged(tmp_path, folder, ACCURACY, SSFL, other, published, more)
    assert list(rows["verdict"]) == [NOT_RUN, NOT_RUN]
    assert list(rows["claim"]) == ["it is so (clients=2)", "it is so (clients=9)"]
    assert rows["why"][1] == "no run to compare with, equal in all other settings: local"


def test_other_sizes_are_left_out_beside_the_papers_own(tmp_path: Path, folder: Path) -> None:
    for name in ("ssfl", "fedavg"):
        extra = {"sparsity": 0.5} if name == "ssfl" else {}
        wide = settings(name, seed=1, **extra) | {"clients": 9}
        write(folder / f"wide-{name}.h5", wide, rounds([0.1, 0.2, 0.3]), train_samples=100)
    published = "published = 0.05\nspread = 0.02\n"
    assert one(tmp_path, folder, ACCURACY, SSFL, FEDAVG, published)["verdict"] == REPRODUCED
    other = "own = { clients = 7 }\n"
    rows = judged(tmp_path, folder, ACCURACY, SSFL, FEDAVG, published, other)
    assert list(rows["claim"]) == ["it is so (clients=2)", "it is so (clients=9)"]


def test_tuned_settings_are_at_their_best_on_both_sides(tmp_path: Path, folder: Path) -> None:
    for lr, last in ((0.3, 0.95), (1.0, 0.2)):
        for name, shift in (("ssfl", 0.0), ("fedavg", -0.05)):
            extra = {"sparsity": 0.5} if name == "ssfl" else {}
            tree = settings(name, seed=1, **extra) | {"lr": lr}
            write(folder / f"{name}{lr}.h5", tree, rounds([0.1, 0.2, last + shift]))
    published = f'published = 0.05\n{NO_SPREAD}near = 0.001\ntuned = ["lr"]\n'
    row = one(tmp_path, folder, ACCURACY, SSFL, FEDAVG, published, "own.clients = 9\n")
    # One seed against three: what has more seeds is preferred, of those the better.
    assert row["claim"] == "it is so (lr=0.1)"
    (folder / "ssfl2.h5").unlink()
    (folder / "ssfl3.h5").unlink()
    row = one(tmp_path, folder, ACCURACY, SSFL, FEDAVG, published, "own.clients = 9\n")
    assert row["claim"] == "it is so (lr=0.3)"
    assert row["ours_mean"] == pytest.approx(0.95 - 0.9) and row["against"].startswith("fedavg")


def test_settings_of_the_method_that_are_equal_on_both_sides(tmp_path: Path) -> None:
    """At each sparsity ssfl is held against dispfl of the same."""
    for name, last in (("ssfl", 0.9), ("dispfl", 0.5)):
        for sparsity in (0.5, 0.9):
            tree = settings(name, sparsity=sparsity)
            rows = rounds([0.1, 0.2, last - sparsity / 10])
            write(tmp_path / "r" / f"{name}{sparsity}.h5", tree, rows)
    lines = [ACCURACY, SSFL, 'against = { method.name = "dispfl" }\n', "own.clients = 9\n"]
    lines.append('published = "more"\nspread = "none"\nleast = 0\n')
    rows = judged(tmp_path, tmp_path / "r", *lines, 'equal = ["method.sparsity"]\n')
    assert [round(value, 6) for value in rows["ours_mean"]] == [0.4, 0.4]
    assert list(rows["claim"]) == ["it is so (sparsity=0.5)", "it is so (sparsity=0.9)"]
    rows = judged(tmp_path, tmp_path / "r", *lines)  # else against the strongest
    assert [round(value, 6) for value in rows["ours_mean"]] == [0.4, 0.36]


def test_a_selector_takes_any_of_its_values_and_unset(tmp_path: Path, folder: Path) -> None:
    published = 'published = "more"\nspread = "none"\nleast = 0\n'
    for values, wanted in (
        ("0.5", ["ssfl", "dispfl"]),
        ("[0.1, 0.5]", ["ssfl", "dispfl"]),
        ('[0.1, "unset"]', ["fedavg"]),
        ('[0.5, "unset"]', ["fedavg", "ssfl", "dispfl"]),
        ("0.1", []),
    ):
        found = judged(
            tmp_path, folder, ACCURACY, f"runs = {{ method.sparsity = {values} }}\n", published
        )
        assert len(found[found["n"] > 0]) == len(wanted)


@pytest.mark.parametrize("named", [False, True])
def test_a_selected_problem_is_that_of_both_sides(tmp_path: Path, named: bool) -> None:
    """FedAvg of another partition is stronger, and counts only if the claim names it."""
    for name, extra in (("fedavg", {}), ("ssfl", {"sparsity": 0.5})):
        for alpha, last in ((0.1, 0.5), (0.5, 0.7)):
            tree = settings(name, seed=1, **extra)
            tree["partition"] = {"name": "dirichlet", "alpha": alpha}
            accuracy = last + (0.1 if name == "ssfl" else 0.0)
            write(tmp_path / "r" / f"{name}{alpha}.h5", tree, rounds([accuracy]))
    ours = 'runs = { method.name = "ssfl", partition.alpha = 0.1 }\n'
    theirs = 'method.name = "fedavg"' + (", partition.alpha = 0.5" if named else "")
    published = f"published = 0.1\n{NO_SPREAD}near = 0.05\n"
    parts = ACCURACY, ours, f"against = {{ {theirs} }}\n", published
    row = one(tmp_path, tmp_path / "r", *parts)
    assert row["ours_mean"] == pytest.approx(-0.1 if named else 0.1)
    assert row["against"] == ("fedavg alpha=0.5" if named else "fedavg")


def test_diverged_runs_count_against_a_claim(tmp_path: Path, folder: Path) -> None:
    tree = settings("ssfl", seed=3, sparsity=0.5)
    write(folder / "ssfl3.h5", tree, rounds([0.9]), "diverged", train_samples=100)
    row = one(tmp_path, folder, ACCURACY, SSFL, "published = 0.9\nspread = 0.1\n")
    assert (row["verdict"], row["why"]) == (NOT_REACHED, "1 of 3 diverged")
    write(folder / "ssfl3.h5", tree, rounds([0.9]), "running", train_samples=100)
    row = one(tmp_path, folder, ACCURACY, SSFL, "published = 0.9\nspread = 0.1\n")
    assert (row["verdict"], row["n"]) == (REPRODUCED, 2)


def test_an_accuracy_that_nobody_measured_is_not_run(tmp_path: Path) -> None:
    rows = rounds([NAN] * 3, [NAN] * 3)
    rows["shard_mean"] = [0.2, 0.3, 0.4]
    write(tmp_path / "r" / "a.h5", settings("ssfl"), rows)
    published = "published = 0.4\nspread = 0.1\n"
    row = one(tmp_path, tmp_path / "r", ACCURACY, SSFL, published)
    assert (row["verdict"], row["why"]) == (NOT_RUN, "the result of ssfl has no accuracy accuracy")
    until = 'measure = "rounds to target"\naccuracy = "global"\ntarget = 0.3\n'
    assert one(tmp_path, tmp_path / "r", until, SSFL, published)["verdict"] == NOT_RUN
    shards = ACCURACY.replace("global", "shard_mean")
    assert one(tmp_path, tmp_path / "r", shards, SSFL, published)["verdict"] == REPRODUCED


@pytest.mark.parametrize("results", [True, False])
def test_what_was_not_run_says_its_command(tmp_path: Path, folder: Path, results: bool) -> None:
    other = 'runs = { method.name = "spatl" }\n'
    published = "published = 0.9\nspread = 0.1\n"
    row = one(tmp_path, folder if results else None, ACCURACY, other, published)
    assert (row["verdict"], row["why"]) == (NOT_RUN, "no finished run of spatl")
    file = tmp_path / "study.toml"
    assert row["command"] == (
        f"fedmpi sweep {file} --out results/papers/study"
        f" # or: fedmpi sweep {file} --size small --out results/papers/study"
    )
    more = "needs = 'a fleet'\ncommand = 'x y'\ntakes = '9 GPUs'\n"
    row = one(tmp_path, folder, ACCURACY, SSFL, published, more)
    assert (row["verdict"], row["why"]) == (NOT_RUN, "a fleet; it takes 9 GPUs")
    assert row["command"] == "x y"


def test_cases_are_claims_that_differ_in_little(tmp_path: Path, folder: Path) -> None:
    cases = """cases = [
    { claim = "dense", runs = { method.name = "fedavg" }, published = 0.8, near = '5 %' },
    { claim = "sparse", runs = { method.name = ["ssfl"], method.sparsity = 0.5 }, published = 0.7 },
]
"""
    common = f"runs = {{ partition.name = 'iid' }}\n{NO_SPREAD}near = 0.2\n"
    rows = judged(tmp_path, folder, ACCURACY, common, cases)
    assert list(rows["claim"]) == ["it is so: dense", "it is so: sparse"]
    assert list(rows["runs"]) == ["iid fedavg", "iid ssfl sparsity=0.5"]
    assert [round(value, 6) for value in rows["ours_mean"]] == [0.8, 0.85]
    assert "within ±4 %" in rows["why"][0] and "within ±20 %" in rows["why"][1]


GOOD = {
    "measure": '"accuracy"',
    "accuracy": '"global"',
    "runs": '{ method.name = "ssfl" }',
    "published": "0.5",
    "spread": "0.1",
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"measure": '"speed"'}, "measure: wanted accuracy or relative error reduction or order"),
        ({"published": None}, "published: missing; a claim by accuracy needs it"),
        ({"accuracy": None}, "accuracy: missing; a claim by accuracy needs it"),
        ({"accuracy": '"mean"'}, "one or several of global, shard_mean, personal_mean, found"),
        ({"target": "0.5"}, "target: not with the measure 'accuracy'; with rounds to target"),
        ({"publishd": "0.5"}, "no key 'publishd'; do you mean published? There are: system"),
        ({"published": "true"}, "published: wanted a number or a text, found True"),
        ({"published": '"much"'}, "spread: wanted 'none', since no number is published, found 0.1"),
        ({"published": '"much"', "spread": '"none"'}, "least or most: missing; say which figures"),
        ({"spread": '"none"'}, "near: missing; say what counts as near"),
        ({"spread": "-1"}, "spread: wanted 'none', or a number of at least 0, found -1"),
        ({"spread": "[1, 2]"}, "spread: wanted one number, as published, found [1, 2]"),
        ({"near": "0.1"}, "near: wanted where spread is 'none' only"),
        ({"spread": '"none"', "near": '"a bit"'}, "near: wanted a share such as '10 %', or a"),
        ({"least": "0", "most": "1"}, "least and most: a claim has one direction, found both"),
        ({"as": '"factor"'}, "as: a claim without against or per compares nothing"),
        ({"against": "{ a = 1 }", "as": '"reduction"'}, "as: wanted difference or factor or saved"),
        ({"runs": "{}"}, "runs: wanted settings, such as { method.name = 'fedavg' }, found {}"),
        ({"runs": "[{ a = 1 }, { a = 2 }]"}, "runs: wanted one table, found"),
        ({"runs": "{ a = [] }"}, "runs.a: wanted a value, or a list of values, found ()"),
        ({"measure": '"order"'}, "runs: wanted several tables, the best first, found"),
        ({"measure": '"relative error reduction"'}, "against: missing; a claim by relative"),
        ({"at": "0"}, "at: wanted last or best, found 0"),
        ({"tuned": '"lr"'}, "tuned: wanted a list of settings, found 'lr'"),
        ({"own": "3"}, "own: wanted a table, found 3"),
        ({"samples": "0"}, "samples: wanted a number of at least 1, found 0"),
        ({"honest": '"2"'}, "honest: wanted a number, found '2'"),
        ({"system": '""'}, "system: wanted a text, found ''"),
        ({"cases": "3"}, "cases: wanted tables, found 3"),
        (
            {"measure": '"FLOPs"', "accuracy": None, "column": '"flops"'},
            "column: wanted TABLE.COLUMN, or a list of them, found 'flops'",
        ),
        (
            {"measure": '"FLOPs"', "accuracy": None, "column": '"a.b"', "per": '"a.c"'}
            | {"against": "{ a = 1 }"},
            "against and per: a claim has one of them, found both",
        ),
        ({"measure": '"rounds to target"', "target": "2"}, "target: wanted an accuracy, more"),
    ],
)  # fmt: skip
def test_what_is_stated_wrongly_is_an_error(
    tmp_path: Path, changes: dict[str, str | None], words: str
) -> None:
    keys = {**GOOD, "system": '"SSFL"', "claim": '"it is so"', "source": '"a paper"'} | changes
    file = tmp_path / "bad.toml"
    lines = [f"{key} = {value}\n" for key, value in keys.items() if value is not None]
    file.write_text("[[claim]]\n" + "".join(lines))
    result = run(claims.main, "--claims", file)
    assert result.exit_code == 2
    assert f"{file}: claim 1 (" in result.output
    assert words in result.output


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[base]\nrounds = 1\n", "no [[claim]] in"),
        ("claim = 3\n", "claim: wanted tables [[claim]], found 3"),
        ("[grid]\nseed = [1]\n", "grid: wanted tables [[grid]], found {'seed': [1]}"),
        ("base = 3\n", "base: wanted a table, found 3"),
        ("sizes = 3\n", "sizes: wanted a table, found 3"),
        ("[base\n", "no TOML"),
        (
            '[base]\npaper = "ssfl"\n' + CLAIM + ACCURACY + SSFL + "published = 1\nspread = 1\n",
            "own: missing; the settings of the paper's own size are not in the sweep's",
        ),
        (
            CLAIM + ACCURACY + SSFL + "published = 1\nspread = 1\n",
            "own: missing; the settings of the paper's own size are not in the sweep's",
        ),
        (
            "[base]\nclients = 2\n[sizes.small]\nrounds = 2\n"
            + CLAIM + ACCURACY + SSFL + "published = 1\nspread = 1\n",
            "size small changes rounds, whose values at the paper's own size are not known",
        ),
    ],
)  # fmt: skip
def test_files_that_state_no_claims(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    result = run(claims.main, "--claims", file)
    assert result.exit_code == 2 and words in result.output


def test_the_command(tmp_path: Path, folder: Path) -> None:
    published = "published = 0.83\nspread = 0.02\n"
    file = stated(tmp_path, ACCURACY, SSFL, published, "accounting = 'one model'\nhonest = 0.8\n")
    result = run(claims.main, folder, "--claims", file, "--csv", tmp_path / "all.csv")
    assert result.exit_code == 0
    flat = " ".join(result.output.split())
    assert "85.0±8.7 %" in flat and "1 reproduced, 0 direction only" in flat
    assert f"Runs: fedmpi sweep {file} --size small --out" in flat
    assert "Source: a paper, table 1 Accounting: one model" in flat
    saved = pd.read_csv(tmp_path / "all.csv")
    assert list(saved.columns) == list(claims.COLUMNS) and saved["ours_mean"][0] == 0.85
    # What it wrote itself it replaces.
    assert run(claims.main, "--claims", file, "--csv", tmp_path / "all.csv").exit_code == 0
    assert pd.read_csv(tmp_path / "all.csv")["verdict"][0] == NOT_RUN
    text = run(claims.main, folder, "--claims", file, "--markdown").output
    cells = ["it is so. accuracy (global)", "83 % ±2 %; 80.0 % by bytes on the wire"]
    cells += ["85.0±8.7 %", "3", "own", "reproduced: within the published spread"]
    assert f"| {' | '.join(cells)} |" in text
    assert run(claims.main, tmp_path / "none", "--claims", file).exit_code == 2
    png = tmp_path / "claims.png"
    assert run(claims.main, folder, "--claims", file, "--out", png).exit_code == 0
    assert png.stat().st_size > 0
    nothing = run(claims.main, "--claims", file, "--out", tmp_path / "none.png")
    assert nothing.exit_code == 2 and "wanted results of which a claim is measured" in (
        " ".join(nothing.output.split())
    )


def test_the_picture_has_a_panel_for_each_unit(tmp_path: Path, folder: Path) -> None:
    """Published and ours in percent; runs of an order one by one; what was not run is left out."""
    order = 'runs = [{ method.name = "ssfl" }, { method.name = "dispfl" }]\n'
    order += 'measure = "order"\naccuracy = "global"\npublished = [0.9, 0.5]\nspread = 0.01\n'
    bytes_to = 'measure = "bytes to target"\naccuracy = "global"\ntarget = 0.6\nbytes = "up"\n'
    bytes_to += f'{SSFL}{FEDAVG}published = "some"\nleast = 1.0\n{NO_SPREAD}'
    none = f'{ACCURACY}runs = {{ method.name = "feddst" }}\npublished = 0.5\nspread = 0.1\n'
    rows = judged(tmp_path, folder, order, CLAIM, bytes_to, CLAIM, none)
    assert NOT_RUN in set(rows["verdict"])
    figure = dots.picture(rows, claims.COLOURS)
    shares, factors = figure.axes
    ours = [one.lines[0].get_xdata().item() for one in shares.containers]
    np.testing.assert_allclose(ours, [90.0, 60.0])
    published = [one.get_xdata() for one in shares.lines if one.get_marker() == "D"]
    np.testing.assert_allclose(np.concatenate(published), [90.0, 50.0])
    lines = [text.get_text() for text in shares.get_yticklabels()]
    assert lines == ["SSFL, it is so (global): ssfl", "dispfl"]
    (factor,) = (one.lines[0].get_xdata().item() for one in factors.containers)
    assert factor == pytest.approx(rows["ours_mean"][1])
    assert (shares.get_xlabel(), factors.get_xlabel()) == ("accuracy or share (%)", "ratio")


def test_claims_of_this_repository() -> None:
    """They are stated rightly, say where they are from, and each has its command."""
    rows = claims.judged(statements.read([claims.CLAIMS]), claims.Results(()))
    assert set(rows["verdict"]) == {NOT_RUN}
    assert (rows["command"] != "").all() and (rows["source"] != "").all()
    result = run(claims.main)
    assert result.exit_code == 0 and f"{len(rows)} not run" in result.output


PAPERS = sorted((claims.CLAIMS / "papers").glob("*.toml"))


@pytest.mark.parametrize("file", [one for one in PAPERS if "[[grid]]" in one.read_text()])
def test_claims_are_of_runs_that_their_sweep_makes(file: Path, tmp_path: Path) -> None:
    """Each selector selects one of the runs of the paper's own size, and these have that size."""
    (study,) = statements.read([file])
    few = tmp_path / file.name  # one seed and one rate will do
    few.write_text(
        re.sub(r"^(seed|lr) = \[([^,\]]*).*", r"\1 = [\2]", file.read_text(), flags=re.M)
    )
    members = [one.settings for one in sweep.members(few)]
    given = [dict(frames.flat(one.tree())) for one in members]
    runs = pd.DataFrame(given)
    runs[frames.ABSENT] = [frames.absent(one) for one in given]
    runs[frames.CHANGED] = [loading.changes(one.tree(), one.paper) for one in members]
    runs[f"{frames.ABOUT}paper"] = [one.paper for one in members]
    runs[statements.TRAINING] = {"mnist": 60_000, "cifar10": 50_000}.get(runs["data.name"][0], 0)
    for claim in study.claims:
        if claim.needs or claim.command:
            continue
        for selector in claim.runs:
            some = claims.matching(runs, selector)
            assert len(some), f"{claim.text}: {statements.label(selector)}"
            is_own = [not study.reduced(claim, run) for run in some.to_dict("records")]
            assert any(is_own), f"{claim.text}: {study.reduced(claim, some.iloc[0].to_dict())}"
        assert not claim.against or any(len(claims.matching(runs, one)) for one in claim.against)


def test_tables_that_files_lack_have_no_rows(folder: Path) -> None:
    assert frames.table(folder, "nosuch").empty
    assert len(frames.table(folder, "rounds")) == len(frames.rounds(folder)) == 27
