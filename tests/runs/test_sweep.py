"""A sweep: what it consists of, what is left to do, and what becomes of a run that dies."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import h5py
import pytest
from click.testing import CliRunner, Result

from fedmpi.__main__ import main
from fedmpi.config import ConfigError
from fedmpi.engine import Engine
from fedmpi.methods import topk
from fedmpi.results import record, tables
from fedmpi.runs import launch
from fedmpi.runs.sweep import Sweep, account, members
from tests import PATIENCE

FILES = sorted((Path(__file__).parents[2] / "jobs" / "sweeps").glob("*.toml"))
"""The studies that come along; `test_papers` has those in the folder of papers."""
QUICK = """
[base]
rounds = 3
clients = 4
data = { name = "synthetic", samples = 200, test_samples = 40, shape = [1, 4, 4] }
model.hidden = [8]
"""
"""The settings of runs that take a tenth of a second."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, in a shell that no launcher has touched."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ.keys() - launch.plain(os.environ).keys():
        monkeypatch.delenv(name)
    # A run replaces it.
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    return tmp_path


def write(*grids: str) -> Path:
    """A sweep file."""
    path = Path("a.toml")
    path.write_text(QUICK + "".join(f"[[grid]]\n{grid}\n" for grid in grids))
    return path


def points(*grids: str) -> list[dict[str, Any]]:
    return [member.point for member in members(write(*grids))]


def sweep(*words: str) -> Result:
    """`fedmpi sweep a.toml WORDS`, in this process."""
    return CliRunner().invoke(main, ["sweep", "a.toml", *words], catch_exceptions=False)


def states(result: Result) -> list[str]:
    """What --dry-run says of each run."""
    assert result.exit_code == 0
    return [line[6:16].strip() for line in result.stdout.splitlines()]


def test_a_grid_is_a_product() -> None:
    found = points("seed = [1, 2]\nlr = [0.1, 0.2, 0.3]")
    assert found == [{"seed": s, "lr": lr} for s in (1, 2) for lr in (0.1, 0.2, 0.3)]


def test_grids_are_a_union_and_each_run_is_there_once() -> None:
    found = points(
        "seed = [1, 2]",
        '"method.name" = ["fedavg", "topk"]\nseed = [2, 3]',
    )
    # FedAvg with seed 2 stands in both.
    assert found == [
        {"seed": 1},
        {"seed": 2},
        {"method.name": "fedavg", "seed": 3},
        {"method.name": "topk", "seed": 2},
        {"method.name": "topk", "seed": 3},
    ]


def test_a_default_is_no_other_run() -> None:
    assert len(points("seed = [1, 1]\nlr = [0.1, 0.10]\nmomentum = [0.0]")) == 1


def test_without_grids_it_is_one_run() -> None:
    (member,) = members(write())
    assert member.point == {}
    assert member.settings.clients == 4


def test_points_win_over_the_base_and_tables_are_replaced() -> None:
    (first, second) = members(
        write('rounds = [9]\npartition = [{ name = "iid" }, { name = "dirichlet", alpha = 0.3 }]')
    )
    assert first.settings.rounds == second.settings.rounds == 9
    assert first.settings.partition.name == "iid"
    assert second.settings.tree()["partition"] == {"name": "dirichlet", "alpha": 0.3, "minimum": 10}
    assert str(first) == "rounds=9  partition=iid"
    assert str(second) == "rounds=9  partition=dirichlet(alpha=0.3)"


def test_a_grid_may_name_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk.Config, "paper", {"method.sparsity": 0.75, "clients": 100, "lr": 0.5})
    (one,) = members(write('paper = ["topk"]'))
    assert str(one) == "paper=topk"
    assert (one.settings.method.name, one.settings.lr) == ("topk", 0.5)
    assert one.settings.clients == 4  # as [base] says
    path = write('"method.sparsity" = [0.1, 0.2]')
    assert [one.settings.lr for one in members(path, ("paper:topk", "lr=0.3"))] == [0.3, 0.3]


SIZES = """
[sizes.small]
rounds = 2
clients = 3
lr = 0.3
model = { name = "lenet" }
data.shape = [1, 16, 16]
grid.seed = [7]

[sizes.one]
seed = 5
method.name = "fedavg"
model.hidden = [4]
"""
"""Behind a file's base and grids; `small` has another model than the base and the second grid."""


def sized(*grids: str, more: str = SIZES) -> Path:
    """A sweep file with sizes."""
    path = write(*grids)
    path.write_text(path.read_text() + more)
    return path


METHODS = '"method.name" = ["fedavg", "ssfl"]\nclients = [4, 5]\nseed = [1, 2]'


def test_a_size_wins_over_base_and_grids() -> None:
    """An axis that it sets is gone, and other values of an axis hold where a grid has it."""
    path = sized(METHODS, '"model.hidden" = [[8], [9]]\nrounds = [4]')
    assert len(members(path)) == 8 + 2
    found = members(path, size="small")
    assert [member.point for member in found] == [
        {"method.name": "fedavg", "seed": 7},
        {"method.name": "ssfl", "seed": 7},
        {},
    ]
    for member in found:
        tree = member.settings.tree()
        assert (tree["rounds"], tree["clients"], tree["lr"]) == (2, 3, 0.3)
        assert member.settings.model.name == "lenet"
        assert (tree["model"]["channels"], tree["model"]["hidden"]) == ([6, 16], [120, 84])
        assert tree["data"]["shape"] == [1, 16, 16]
        assert tree["data"]["samples"] == 200, "the rest of the base's table stays"


def test_runs_that_a_size_makes_equal_run_once() -> None:
    path = sized(METHODS, "seed = [1, 2, 3]\nlr = [0.1, 0.2]", more="[sizes.a]\nlr=0.2\nclients=4")
    found = [member.point for member in members(path, size="a")]
    assert found == [
        {"method.name": name, "seed": seed} for name in ("fedavg", "ssfl") for seed in (1, 2)
    ] + [{"seed": 3}]


def test_a_size_sets_one_setting_of_a_table_that_is_an_axis() -> None:
    path = sized('model = [{ hidden = [5] }, { name = "lenet" }]\n"data.shape" = [[1, 16, 16]]')
    with pytest.raises(ConfigError, match=r"\(model=lenet, .*model.hidden = \[4\]: wanted"):
        members(path, size="one")
    path = sized('partition = [{ name = "iid" }, { name = "dirichlet", alpha = 0.3 }]')
    found = members(path, size="one")
    assert list(map(str, found)) == ["partition=iid", "partition=dirichlet(alpha=0.3)"]
    assert [one.settings.tree()["model"]["hidden"] for one in found] == [[4], [4]]


def test_words_win_over_a_size() -> None:
    (one,) = members(sized("seed = [1, 2]"), ("rounds=9", "seed=8"), "small")
    assert (one.settings.rounds, one.settings.seed, one.settings.lr) == (9, 8, 0.3)


def test_a_run_is_told_by_what_it_has() -> None:
    """Not by what the grid says, if a size or a word says otherwise."""
    path = sized('seed = [1, 2]\n"data.samples" = [90, 100]')
    found = members(path, ("data.samples=60",), "small")
    assert [(str(one), one.settings.data.samples) for one in found] == [
        (f"seed={one.settings.seed}  data.samples=60", 60) for one in found
    ]


def test_the_command_takes_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """To count and list, to run, and to hand on to ranks."""
    sized(METHODS)
    assert sweep("--count").stdout == "8\n"
    assert sweep("--count", "--size", "small").stdout == "2\n"
    assert sweep("--size", "small", "data.samples=60").exit_code == 0
    assert states(sweep("--size", "small", "--dry-run", "data.samples=60")) == ["done"] * 2
    assert states(sweep("--dry-run")) == ["to do"] * 8
    started = starts(2, monkeypatch)
    assert sweep("--size", "small", "lr=0.1", "--ranks", "3", "--out", "o").exit_code == 2
    assert started == ["3 sweep a.toml lr=0.1 --size small --out o --only 0 --only 1"]


@pytest.mark.parametrize(
    ("more", "size", "wanted"),
    [
        (SIZES, "big", "--size big: no such size in a.toml; there are: small, one"),
        ("", "small", "--size small: no such size in a.toml; it has none; leave --size out"),
        ("sizes = 3", "a", "a.toml: 'sizes' must have a table for each size: write [sizes.NAME]"),
        ("[sizes]\na = 3", "a", "a.toml: 'sizes' must have a table for each size"),
        ("[sizes.a]\ngrid = [1]", "a", "a.toml: 'sizes' must have a table for each size"),
        (
            "[sizes.a]\ngrid.lr = [1]\nclients = 4",
            "a",
            "a.toml: [sizes.a.grid] lr: no [[grid]] has it; there are: method.name, seed",
        ),
        ("[sizes.a]\ngrid.seed = 1", "a", "a.toml: [[grid]] 1: seed = 1: wanted a list of at"),
        ("[sizes.a]\nrouds = 1", "a", "size a): no setting 'rouds' (did you mean 'rounds'?)"),
        ("claim = 3", None, "a.toml: 'claim' must be a list of tables: write [[claim]]"),
        ("[bass]", None, "a.toml: no table [bass]; there are: base, grid, sizes, claim"),
    ],
)
def test_sizes_that_cannot_be(more: str, size: str | None, wanted: str) -> None:
    """Top-level keys must stand first in TOML."""
    path = write(METHODS)
    text = path.read_text()
    path.write_text(f"{more}\n{text}" if more[:5] in ("sizes", "claim") else f"{text}{more}")
    words = () if size is None else ("--size", size)
    found = sweep("--count", *words)
    assert (found.exit_code, found.stdout) == (2, "")
    assert wanted in found.stderr


def test_claims_may_stand_in_the_file() -> None:
    """They are for who reads the results."""
    path = sized("seed = [1, 2]", more='[[claim]]\ntext = "a"\nabove = 0.5\n[[claim]]\n')
    assert len(members(path)) == 2


def test_a_grid_may_be_nested() -> None:
    dotted = '"method.name" = ["topk"]\n"method.sparsity" = [0.5, 0.9]'
    nested = '[grid.method]\nname = ["topk"]\nsparsity = [0.5, 0.9]'
    assert points(dotted) == points(nested)


def test_members_do_not_share_tables() -> None:
    """A point that writes into a table of the base leaves it as it was for the next."""
    first, second = members(write('"data.samples" = [100, 200]'))
    assert first.settings.tree()["data"]["samples"] == 100
    assert second.settings.tree()["data"]["samples"] == 200


def test_all_that_is_wrong_is_said() -> None:
    """In every grid, but what is wrong with many runs only of the first."""
    grids = ("seed = 1", "rouds = [1, 2]", "lr = [0.1, -1, 'x']")
    with pytest.raises(ConfigError) as caught:
        members(write(*grids))
    assert [problem.split(":")[1] for problem in caught.value.problems] == [
        " [[grid]] 1",
        " [[grid]] 2 (rouds=1)",
        " [[grid]] 3 (lr=-1)",
        " [[grid]] 3 (lr=x)",
    ]


@pytest.mark.parametrize(
    ("grids", "wanted"),
    [
        (["threads = [1, 2]"], ["1: threads is 1 and 2"]),
        (["threads = [4]\nseed = [1, 2]", "seed = [2, 3]"], ["2: threads is 4 and absent"]),
        (
            ['exchange = [{ window = 1 }, { window = 2 }]\n"data.cache" = ["a", "b"]'],
            [
                "1: data.cache is a and b",
                "1: exchange.window is 1 and 2",
            ],
        ),
        (["threads = [2]\nseed = [1, 1, 3]"], []),
        (["seed = [1]\nthreads = [1]", "seed = [2]\nthreads = [2]"], []),
    ],
)
def test_what_belongs_to_the_machine_makes_no_other_run(
    grids: list[str], wanted: list[str]
) -> None:
    """Where one run is asked for with several such settings, it is not said which are meant."""
    path = write(*grids)
    if not wanted:
        assert members(path)
        return
    with pytest.raises(ConfigError) as caught:
        members(path)
    for problem, start in zip(caught.value.problems, wanted, strict=True):
        assert problem.startswith(f"{path}: [[grid]] {start} for the same run: it belongs to the")
        assert "wanted one value, in [base]" in problem


def test_count() -> None:
    write("seed = [1, 2, 2]\nlr = [0.1, 0.2]")
    found = sweep("--count")
    assert (found.exit_code, found.stdout) == (0, "4\n")
    assert not list(Path().rglob("*.h5"))


@pytest.mark.parametrize("option", ["--count", "--dry-run"])
def test_asking_runs_nothing_even_inside_a_job(
    option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMIX_RANK", "0")
    write("seed = [1, 2]")
    assert sweep(option).exit_code == 0
    assert not Path("results").exists()


def test_states_and_what_is_left() -> None:
    """Done, diverged, failed, running, to do: what is finished is not run again."""
    file = write("seed = [1, 2, 3, 4]", "lr = [1e20]")
    assert sweep("--only", "0", "--only", "4").exit_code == 0
    plan = Sweep(file, Path("results"))
    for number, status in ((1, record.FAILED), (2, record.RUNNING)):
        settings = plan.members[number].settings
        path, tree = plan.path(number), settings.tree()
        held = record.begin(path)
        record.Record(held, tree, settings.identity(), {}, tables.TABLES).close(status)
    found = sweep("--dry-run")
    assert states(found) == ["done", "failed", "running", "to do", "diverged"]
    assert found.stdout.splitlines()[0] == "   0  done        seed=1"
    assert found.stdout.splitlines()[4] == "   4  diverged    lr=1e+20"
    before = {number: plan.path(number).read_bytes() for number in (0, 4)}

    found = sweep()
    assert found.exit_code == 0
    assert found.stderr.count(": done already") == found.stderr.count(": diverged already") == 1
    assert states(sweep("--dry-run")) == ["done", "done", "done", "done", "diverged"]
    assert {number: plan.path(number).read_bytes() for number in (0, 4)} == before


def test_it_says_at_the_end_what_became_of_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ranks, too; a run that diverged is a result, and no failure."""
    write("clients = [2, 999, 3]", "lr = [1e20, 2e20]", "seed = [9]")
    assert sweep("--only", "0").stderr.splitlines()[-1].startswith("round 3/3 "), "it is one run"
    found = sweep()
    assert found.exit_code == 2
    said = found.stderr.splitlines()
    assert said[-1] == ("6 runs: 1 done already, 1 refused (run 1), 2 done, 2 diverged (runs 3, 4)")
    diverged = [line for line in said if "diverged: " in line]
    assert len(diverged) == 2
    assert "not finite after round 1 of 3, where the run ends; a lower lr" in diverged[0]
    found = sweep("--only", "3")
    assert (found.exit_code, found.stderr.count("diverged already\n")) == (0, 1)

    killed: list[Sequence[str]] = []

    def start(ranks: int, words: Sequence[str]) -> int:
        """Refuses run 1, as before; the second job dies while it does the new run 6."""
        killed.append(words)
        return 2 if len(killed) == 1 else 137

    write("clients = [2, 999, 3]", "lr = [1e20, 2e20]", "seed = [9]")
    monkeypatch.setattr(launch, "start", start)
    found = sweep("--ranks", "2")
    assert found.exit_code == 2
    assert found.stderr.splitlines()[-1] == (
        "6 runs: 3 done already, 1 refused (run 1), 2 diverged already (runs 3, 4)"
    )
    write("clients = [2]", "seed = [10]")
    found = sweep("--ranks", "2")
    assert found.exit_code == 1
    assert found.stderr.splitlines()[-1] == "2 runs: 1 done already, 1 failed (run 1)"


def test_an_account_of_many_is_a_line() -> None:
    found = account(dict.fromkeys(range(1000), "diverged") | {1000: "done"})
    assert found.startswith("1001 runs: 1000 diverged (runs 0, 1, 2, ")
    assert found.endswith(" 18, 19, ...), 1 done")


def test_only_some() -> None:
    write("seed = [1, 2, 3]")
    found = sweep("--only", "2", "--only", "0")
    assert found.exit_code == 0
    assert "[1/2] seed=3" in found.stderr
    assert re.search(r"\[2/2, .* gone, about .* left\] seed=1", found.stderr)
    assert states(sweep("--dry-run")) == ["done", "to do", "done"]
    assert states(sweep("--dry-run", "--only", "1")) == ["to do"]


def test_bad_members_are_skipped_and_the_code_tells() -> None:
    write("clients = [2, 999, 3]")
    found = sweep()
    assert found.exit_code == 2
    assert (
        "run 1 (clients=999): clients = 999: wanted at most 180, the training samples"
        in found.stderr
    )
    assert states(sweep("--dry-run")) == ["done", "to do", "done"]


def spoil() -> dict[Path, bytes]:
    """A sweep of five runs; the files of three of them are no results of theirs."""
    file = write("seed = [1, 2, 3, 4, 5]")
    assert sweep("--only", "0", "--only", "1", "--only", "3").exit_code == 0
    plan = Sweep(file, Path("results"))
    os.truncate(plan.path(1), 3000)
    plan.path(2).touch()
    shutil.copy(plan.path(0), plan.path(3))
    return {plan.path(number): plan.path(number).read_bytes() for number in range(4)}


def test_damaged_files_stop_no_others() -> None:
    """Each is refused by name and left as it is; the code tells, the other runs are done."""
    before = spoil()
    found = sweep("--dry-run")
    assert states(found) == ["done", "damaged", "damaged", "refused", "to do"]
    for run, words in (
        ("run 1 (seed=2) refused: ", "not an HDF5 file"),
        ("run 2 (seed=3) refused: ", "remove it to run it again"),
        ("run 3 (seed=4) refused: ", "holds the run "),
    ):
        assert any(run in line and words in line for line in found.stderr.splitlines())
    found = sweep()
    assert found.exit_code == 2
    assert found.stderr.count("remove it to run it again") == 2
    assert states(sweep("--dry-run")) == ["done", "damaged", "damaged", "refused", "done"]
    assert {path: path.read_bytes() for path in before} == before


def test_damaged_files_stop_no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    started = starts(2, monkeypatch)
    before = spoil()
    found = sweep("--ranks", "2", "--out", "results")
    assert found.exit_code == 2
    assert started == ["2 sweep a.toml --out results --only 4"]
    assert found.stderr.count(" refused: ") == 3
    assert {path: path.read_bytes() for path in before} == before


def test_a_file_that_is_damaged_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the job that died, say. The others go on; nothing is replaced."""
    plan = Sweep(write("seed = [1, 2, 3]"), Path("results"))
    started: list[str] = []

    def start(ranks: int, words: Sequence[str]) -> int:
        started.append(" ".join(words))
        if len(started) == 1:
            assert sweep("--only", "0").exit_code == 0
            plan.path(1).write_text("half")
            return 1
        return 0

    monkeypatch.setattr(launch, "start", start)
    assert plan.supervise(2) == 1
    assert jobs(started) == [[0, 1, 2], [2]]
    assert plan.path(1).read_text() == "half"


def test_a_run_that_fails_by_itself_is_not_tried_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk, say: it has the status `failed` before its job has ended, and had before."""
    plan = Sweep(write("seed = [1, 2, 3]"), Path("results"))
    started: list[str] = []

    def start(ranks: int, words: Sequence[str]) -> int:
        started.append(" ".join(words))
        for number in jobs(started)[-1]:
            if number == 1:
                settings = plan.members[number].settings
                held = record.begin(plan.path(number))
                tree, identity = settings.tree(), settings.identity()
                record.Record(held, tree, identity, {}, tables.TABLES).fail()
                return 1
            assert sweep("--only", str(number)).exit_code == 0
        return 0

    monkeypatch.setattr(launch, "start", start)
    for _ in range(2):
        started.clear()
        assert plan.supervise(2) == 1
        assert len(started) <= 2
        assert [plan.state(number) for number in range(3)] == ["done", "failed", "done"]


def test_a_run_of_a_sweep_is_the_run_alone() -> None:
    write("seed = [3]")
    assert sweep().exit_code == 0
    (path,) = Path("results").iterdir()
    words = ["run", str(path), "--out", "alone"]
    assert CliRunner().invoke(main, words, catch_exceptions=False).exit_code == 0
    with h5py.File(path) as ours, h5py.File(Path("alone") / path.name) as theirs:
        assert ours.attrs["model_sha256"] == theirs.attrs["model_sha256"]


KILLER = """#!{python}
# An mpiexec that starts one process and no MPI. It logs the process's words, and kills it in the
# second round of a run with seed = 2, or later. The process cannot be done before, because what it
# says of 200 rounds does not fit into a small pipe, and what waits for a reader there.
import subprocess, sys
if "--version" in sys.argv:
    sys.exit(print("killer 1.0"))
words = sys.argv[sys.argv.index("-n") + 2 :]
with open("log", "a") as log:
    print(*words[3:], file=log)
pipe = {{"stderr": subprocess.PIPE, "pipesize": 4096, "text": True}}
process, title = subprocess.Popen(words, **pipe), ""
for line in process.stderr:
    sys.stderr.write(line)
    title = line if line.startswith("[") else title
    if "seed=2 " in title and line.startswith("round 2/"):
        process.kill()
code = process.wait()
sys.exit(code if code >= 0 else 128 - code)
"""


LONG = "seed = [2]\nrounds = [200]"
"""A run that says too much to be done before somebody has read of its second round."""


@pytest.fixture
def killer(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of `KILLER`, which is the launcher."""
    path = here / "killer"
    path.write_text(KILLER.format(python=sys.executable))
    path.chmod(0o755)
    monkeypatch.setenv("FEDMPI_MPIEXEC", str(path))
    monkeypatch.setenv(launch.PROGRESS, "0")
    return path


def jobs(lines: Iterable[str]) -> list[list[int]]:
    """The numbers of the runs that each job was to do."""
    return [[int(number) for number in line.split("--only")[1:]] for line in lines]


def test_a_sweep_that_is_too_large() -> None:
    """Its runs are counted before they are made."""
    numbers = list(range(1, 1001))
    grid = "".join(f"{name} = {numbers}\n" for name in ("seed", "rounds", "batch", "epochs"))
    Path("a.toml").write_text(f"[[grid]]\n{grid}")
    with pytest.raises(ConfigError, match="1,000,000,000,000 runs; wanted at most 100,000"):
        members(Path("a.toml"))


def test_a_run_that_kills_its_job(killer: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is marked as failed, the others run, and the exit code tells."""
    plan = Sweep(write("seed = [1]", LONG, "seed = [3]"), Path("results"))
    assert plan.supervise(1) == 1
    assert [plan.state(number) for number in range(3)] == ["done", "failed", "done"]
    with record.open_result(plan.path(1)) as cut:
        assert 2 <= len(cut["rounds"]) < 200
    assert "run 1 (seed=2  rounds=200) failed: exit code 137\n" in capfd.readouterr().err
    assert jobs(Path("log").read_text().splitlines()) == [[0, 1, 2], [2]]


def test_a_run_that_dies_before_it_has_a_file(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """For want of memory, say. Which run it was shows if each has a job of its own."""
    started: list[str] = []

    def start(ranks: int, words: Sequence[str]) -> int:
        started.append(" ".join(words))
        for number in jobs(started)[-1]:
            if number == 2:
                return 1
            assert sweep("--only", str(number)).exit_code == 0
        return 0

    monkeypatch.setattr(launch, "start", start)
    plan = Sweep(write("seed = [1, 2, 3, 4]"), Path("results"))
    assert plan.supervise(2) == 1
    assert [plan.state(number) for number in range(4)] == ["done", "done", None, "done"]
    assert "run 2 (seed=3) failed: exit code 1\n" in capfd.readouterr().err
    assert jobs(started) == [[0, 1, 2, 3], [2], [3]]


def test_an_interrupted_sweep_goes_on(killer: Path) -> None:
    """The sweep as a whole is killed in its second run; the next one does the rest."""
    plan = Sweep(write("seed = [1]", LONG, "seed = [3]"), Path("results"))
    program = [sys.executable, "-m", "fedmpi", "sweep", "a.toml"]
    done = subprocess.run([killer, "-n", "1", *program], capture_output=True, timeout=PATIENCE)
    assert done.returncode == 137
    assert states(sweep("--dry-run")) == ["done", "running", "to do"]
    first = plan.path(0).read_bytes()

    found = sweep()
    assert found.exit_code == 0
    assert found.stderr.count(": done already") == 1
    assert states(sweep("--dry-run")) == ["done", "done", "done"]
    assert plan.path(0).read_bytes() == first


def test_supervising_a_finished_sweep_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    write("seed = [1, 2]")
    assert sweep().exit_code == 0
    monkeypatch.setattr(launch, "start", lambda *_: pytest.fail("ranks were started"))
    assert sweep("--ranks", "3").exit_code == 0


def starts(code: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Jobs do nothing from now on but end with a code; what they would have been."""
    started: list[str] = []

    def start(ranks: int, words: Sequence[str]) -> int:
        started.append(" ".join([str(ranks), *words]))
        return code

    monkeypatch.setattr(launch, "start", start)
    return started


@pytest.mark.parametrize(("code", "found"), [(0, 1), (2, 2)])
def test_supervising_passes_the_code_of_its_job_on(
    code: int, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But a job that says it ended well, and did nothing, has failed."""
    started = starts(code, monkeypatch)
    write("seed = [1, 2]")
    assert sweep("--ranks", "3", "--out", "o").exit_code == found
    assert started == ["3 sweep a.toml --out o --only 0 --only 1"]


def test_a_launcher_that_never_works_is_not_tried_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = starts(1, monkeypatch)
    write("seed = [1, 2, 3]")
    assert sweep("--ranks", "3").exit_code == 1
    assert len(started) == 4


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_studies_that_come_along(file: Path) -> None:
    """All of their settings are right, a run of each method could begin, and one sends all."""
    alike = ("data={name='synthetic', shape=[3,32,32], samples=2000}",)
    is_real = members(file)[0].settings.data.name == "cifar10"
    some = members(file, alike) if is_real else members(file)
    found = {member.settings.method.name: member.settings for member in some}
    assert found.keys() & {"fedavg", "splitfed"}, "what the others are compared with"
    assert len(found) > 1
    for settings in found.values():
        # A file of weights is made beforehand, by a command that its sweep names.
        drawn = settings.model.model_copy(update={"initial": None, "fresh": ()})
        Engine(settings.model_copy(update={"model": drawn}))


def test_devices_too_small_for_all_but_a_front() -> None:
    (file,) = (file for file in FILES if file.stem == "constrained-devices")
    small = members(file, ("devices.tiers.0.memory=0.2",))
    for settings in {member.settings.method.name: member.settings for member in small}.values():
        if settings.method.name == "splitfed":
            Engine(settings)
        else:
            with pytest.raises(ConfigError, match="is a 'sensor': wanted at most its memory"):
                Engine(settings)


def test_what_another_job_writes_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a sweep that is started twice: the account says so, and the code that it lacks."""
    file = write("seed = [1, 2]")
    path = Sweep(file, Path("results")).path(0)
    with record.begin(path):
        found = sweep()
        assert found.exit_code == 2
        last = found.stderr.splitlines()[-1]
        assert last == "2 runs: 1 being written by another job (run 0), 1 done"
        starts(2, monkeypatch)
        found = sweep("--ranks", "2", "--out", "results")
        assert found.exit_code == 2
        last = found.stderr.splitlines()[-1]
        assert last == "2 runs: 1 being written by another job (run 0), 1 done already"


def test_what_another_job_has_finished_meanwhile_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """The account and the exit code say the same; it was 3 done, with code 2."""
    file = write("seed = [1, 2, 3]")
    plan = Sweep(file, Path("results"))

    def start(ranks: int, words: Sequence[str]) -> int:
        with record.begin(plan.path(0)):
            code = sweep().exit_code
        assert sweep("--only", "0").exit_code == 0  # the other job's
        return int(code)

    monkeypatch.setattr(launch, "start", start)
    found = sweep("--ranks", "2", "--out", "results")
    assert found.stderr.splitlines()[-1] == "3 runs: 3 done" and found.exit_code == 0
