"""The command line: helps, exit codes, and one clear sentence for whatever is wrong."""

import errno
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import h5py
import pytest
from click.testing import CliRunner, Result

from fedmpi import engine
from fedmpi.__main__ import main
from fedmpi.data import files
from fedmpi.results import record
from fedmpi.runs import job, launch
from fedmpi.terminal.doctor import CHECKS
from tests import PATIENCE

QUICK = (
    *("data.name=synthetic", "data.samples=200", "data.test_samples=40", "data.shape=[1,4,4]"),
    *("model.hidden=[8]", "clients=4", "rounds=2"),
)
"""Words for a run that takes a tenth of a second."""
COMMANDS = (
    *(
        "run",
        "sweep",
        "resume",
        "partition",
        "agent",
        "pretrain",
        "list",
        "show",
        "watch",
        "evaluate",
    ),
    *("export", "doctor", "data", "bench"),
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder without data sets, in a shell that no launcher has touched."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "USUAL", ("data",))
    for name in os.environ.keys() - launch.plain(os.environ).keys():
        monkeypatch.delenv(name)
    monkeypatch.delenv("FEDMPI_DATA", raising=False)
    # A run replaces it.
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    return tmp_path


def fedmpi(*words: str) -> Result:
    """Runs a command in this process; an exception that it lets through is raised here."""
    return CliRunner().invoke(main, words, catch_exceptions=False, prog_name="fedmpi")


def python(*words: str) -> "subprocess.CompletedProcess[str]":
    """Runs Python in a process of its own."""
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=PATIENCE
    )


def results(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.h5"))


@pytest.mark.parametrize("words", [[], *([command] for command in COMMANDS)])
def test_help(words: list[str]) -> None:
    found = fedmpi(*words, "--help")
    assert found.exit_code == 0
    assert found.output.startswith(f"Usage: {' '.join(['fedmpi', *words])} [OPTIONS]")
    assert max(map(len, found.output.splitlines())) <= 80


def test_every_command_is_known() -> None:
    assert set(main.commands) == set(COMMANDS)


def test_help_and_version_import_nothing_slow() -> None:
    program = (
        "import sys; from fedmpi.__main__ import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "slow = {'torch', 'mpi4py', 'h5py', 'numba', 'numpy', 'pydantic', 'rich'}\n"
        "slow &= set(sys.modules)\n"
        "sys.exit(f'imported {slow}' if slow else 0)"
    )
    for words in (["--help"], ["run", "--help"], ["--version"]):
        done = python("-c", program, *words)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_lists_do_not_import_mpi() -> None:
    program = (
        "import sys; from fedmpi.__main__ import main\n"
        "main(['list', 'settings'], standalone_mode=False)\n"
        "sys.exit('imported mpi4py' if 'mpi4py' in sys.modules else 0)"
    )
    assert python("-c", program).returncode == 0


def test_the_module_is_the_command() -> None:
    found = python("-m", "fedmpi", "--version")
    assert found.returncode == 0
    assert found.stdout.startswith("fedmpi, version ")


@pytest.mark.parametrize("words", [[], ["fly"], ["run", "--fast"], ["run", "--ranks", "0"]])
def test_words_that_are_no_command(words: list[str]) -> None:
    found = fedmpi(*words)
    assert found.exit_code == 2
    assert "Usage: fedmpi" in found.output


def test_choices_of_doctor_are_its_checks() -> None:
    check = next(p for p in main.commands["doctor"].params if p.name == "check")
    assert isinstance(check.type, click.Choice)
    assert list(check.type.choices) == list(CHECKS)


SETTINGS = {
    "unknown key": (["rouds=3"], "no setting 'rouds' (did you mean 'rounds'?); there are: seed,"),
    "unknown key of a table": (["method.moo=1"], "no setting 'moo' in [method]; there are: name"),
    "unknown key of a named table": (
        ["method.name=topk", "method.sparsty=0.5"],
        "no setting 'sparsty' in [method] (did you mean 'sparsity'?); there are: name, spans,",
    ),
    "wrong type": (["lr=fast"], "lr = fast: wanted a number above 0"),
    "a float for epochs": (["epochs=1.5"], "epochs = 1.5: wanted a whole number of at least 1"),
    "a truth for a number": (["seed=true"], "seed = true: wanted a whole number of at least 0"),
    "a value for a table": (["method=5"], "method = 5: wanted a table, such as method.name"),
    "a value for a list": (["model.hidden=3"], "model.hidden = 3: wanted a list"),
    "negative": (["momentum=-0.1"], "momentum = -0.1: wanted a number of at least 0"),
    "zero": (["rounds=0"], "rounds = 0: wanted a whole number of at least 1"),
    "zero where it is excluded": (["lr=0"], "lr = 0.0: wanted a number above 0"),
    "not a number": (["lr=nan"], "lr = nan: wanted a number above 0 and of at most 3e+38"),
    "beyond float32": (["lr=1e308"], "lr = 1e+308: wanted a number above 0 and of at most 3"),
    "beyond all threads": (
        ["threads=5000"],
        "5000: wanted a whole number from 1 to 1024",
    ),
    "digits without end": (["seed=" + "9" * 5000], "wanted a whole number from 0 to 2147483647"),
    "participation": (
        ["participation=1.5"],
        "1.5: wanted a number above 0 and of at most 1",
    ),
    "method": (
        ["method.name=fedpro"],
        "method.name = 'fedpro': no such method (did you mean 'fedprox'?); there are: ",
    ),
    "model": (
        ["model.name=cnm"],
        "no such model (did you mean 'cnn'?); there are: bert, cnn, cnn1d",
    ),
    "data": (["data.name=cifar"], "no such data (did you mean 'cifar10'?); there are: cifar10,"),
    "partition": (
        ["partition.name=x"],
        "partition.name = 'x': no such partition; there are: classes",
    ),
    "exchange": (["exchange.name=ring"], "exchange.name = 'ring': no such exchange; there are"),
    "state": (["state.memory=-1"], "state.memory = -1: wanted a whole number of at least 0"),
    "no folder for state": (
        ["method.name=topk", "state.folder=/nowhere/at/all"],
        "state.folder = /nowhere/at/all: no such file or folder, or a link",
    ),
    "server": (["server=two"], "server = 'two': wanted 'dedicated' or 'shared'"),
    "device": (["device=gpu"], "device = 'gpu': wanted cpu, cuda or cuda:K\n"),
    "missing GPU": (["device=cuda:99"], "device = 'cuda:99': there are "),
    "setting that is no table": (["lr=0.1", "lr.x=1"], "lr.x: 'lr' is a setting, not a table"),
    "word without =": (["lr=0.1", "fast"], "'fast' is not a setting; wanted key=value, such as"),
    "word without a key": (["=1"], "'=1' is not a setting; wanted key=value, such as lr=0.1"),
    "split point": (
        ["method.name=splitfed", "method.cut=conv1"],
        "method.cut = 'conv1': the model has no such split point; there are: hidden1",
    ),
    "no split point at all": (
        ["method.name=splitfed", "model.hidden=[]"],
        "the model has no split point: it is a single stage",
    ),
    "classes": (
        ["partition.name=classes", "partition.classes_per_client=11"],
        "classes_per_client = 11: the training set has 10 classes; possible are 1 to 10",
    ),
    "more clients than samples": (
        ["clients=9999"],
        "clients = 9999: wanted at most 180, the training samples",
    ),
    "smallest client": (
        ["partition.name=dirichlet", "partition.minimum=60"],
        "minimum = 60: 4 clients want 240 ",
    ),
    "images for a CNN": (
        ["data.shape=[5]", "model.name=cnn"],
        "model.name = 'cnn': wanted images, found samples of shape (5,)",
    ),
    "beyond all memory": (["data.shape=[2147483647,2147483647,9]"], "more memory than there is"),
    "missing data": (["data.name=mnist"], "no MNIST; wanted train-images-idx3-ubyte"),
    "missing data root": (
        ["data.name=mnist", "data.root=lost/for/good"],
        "lost/for/good (no such folder)",
    ),
}
"""Settings that cannot be run, on top of `QUICK`, and what is said of them."""


def quick(words: Sequence[str]) -> list[str]:
    """`QUICK` with words on top; a new name empties its table."""
    named = tuple(word.partition("name=")[0] for word in words if "name=" in word)
    tables = tuple(word.partition("=")[0] + "." for word in words if "." not in word.split("=")[0])
    return [*(w for w in QUICK if not w.startswith((*named, *tables))), *words]


def refused(found: Result, said: str, folder: Path) -> None:
    """Bad input: exit code 2, one clear error, no traceback, nothing written."""
    assert found.exit_code == 2
    assert said in found.stderr
    assert found.stderr.count(said) == 1
    assert "Traceback" not in found.stderr
    assert not found.stdout
    assert not results(folder)


@pytest.mark.parametrize("case", SETTINGS)
def test_bad_settings(case: str, here: Path) -> None:
    words, said = SETTINGS[case]
    refused(found := fedmpi("run", *quick(words)), said, here)
    # One line, but for data, whose error lists where it was looked for.
    assert len(found.stderr.splitlines()) == 1 or "data.name=mnist" in words


def test_all_problems_are_said_at_once(here: Path) -> None:
    found = fedmpi("run", "rouds=3", "lr=0", "method.name=x", "model.depth=2")
    refused(found, "rouds", here)
    assert len(found.stderr.splitlines()) == 4


def test_marks_that_editors_put_in_front_of_a_file() -> None:
    Path("a.toml").write_bytes("\ufeffrounds = 0".encode())
    assert fedmpi("run", "a.toml").stderr == "rounds = 0: wanted a whole number of at least 1\n"


FILES = {
    "without an end": ("/dev/zero", None, "/dev/zero: more than 16 MiB; wanted a file of settings"),
    "missing file": ("a.toml", None, "a.toml: no such file; wanted a file of settings (TOML)"),
    "no TOML": ("a.toml", b"lr = = 1", "a.toml: not TOML: Invalid value (at line 1, column 6)"),
    "not even text": (
        "a.toml",
        b"lr = 1 # caf\xe9",
        "a.toml: not UTF-8; wanted a file of settings",
    ),
    "UTF-16": ("a.toml", "\ufefflr = 1".encode("utf-16"), "a.toml: UTF-16; wanted UTF-8"),
    "unknown key": ("a.toml", b"rouds = 1", "no setting 'rouds' (did you mean 'rounds'?)"),
    "nested too deep": ("a.toml", b"[lr]\nx = 1", "lr = {x = 1}: wanted a number above 0"),
    "a sweep": (
        "a.toml",
        b"[base]\nlr = 1\n[[grid]]\n",
        "no setting 'base'; [base] and [[grid]] are ",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_files(case: str, here: Path) -> None:
    name, content, said = FILES[case]
    if content is not None:
        Path(name).write_bytes(content)
    refused(fedmpi("run", name), said, here)


NO_RESULTS = {
    "missing": (None, "a.h5: no such file; wanted a result (HDF5)"),
    "not HDF5": (b"lr = 1", "a.h5: not an HDF5 file, or one"),
    "cut short": (b"\x89HDF\r\n\x1a\n" + bytes(40), "a.h5: not an HDF5 file, or one"),
}


@pytest.mark.parametrize("case", NO_RESULTS)
@pytest.mark.parametrize("command", ["run", "show"])
def test_files_that_are_no_results(case: str, command: str, here: Path) -> None:
    content, said = NO_RESULTS[case]
    if content is not None:
        Path("a.h5").write_bytes(content)
    found = fedmpi(command, "a.h5")
    assert found.exit_code == 2
    assert said in found.stderr
    assert results(here) == ([] if content is None else [here / "a.h5"])


def test_hdf5_that_is_no_result() -> None:
    h5py.File("a.h5", "w").close()
    for command in ("run", "show"):
        found = fedmpi(command, "a.h5")
        assert found.exit_code == 2
        assert found.stderr == "a.h5: HDF5, but not a result: it holds no settings\n"


SWEEPS = {
    "a scalar in a grid": (
        "[[grid]]\nlr = 0.1",
        "a.toml: [[grid]] 1: lr = 0.1: wanted a list of at least one value",
    ),
    "an empty list": (
        "[[grid]]\nlr = []",
        "a.toml: [[grid]] 1: lr = []: wanted a list of at least one value",
    ),
    "one grid, not a list": ("[grid]\nlr = [1]", "'grid' must be a list of tables: write [[grid]]"),
    "no table": ("base = 1", "a.toml: 'base' must be a table: write [base]"),
    "unknown table": ("[bass]\nlr = 1", "a.toml: no table [bass]; there are: base, grid"),
    "unknown key": ("[[grid]]\nrouds = [1, 2]", "[[grid]] 1 (rouds=1): no setting 'rouds' (did"),
    "unknown base key": ("[base]\nrouds = 1", "no setting 'rouds'"),
    "setting as a table": (
        "[base]\nlr = 1\n[[grid]]\n'lr.x' = [1]",
        "a.toml: [[grid]] 1 (lr.x=1): lr.x: 'lr' is a setting, not a table",
    ),
}


@pytest.mark.parametrize("case", SWEEPS)
@pytest.mark.parametrize("option", [[], ["--dry-run"], ["--count"], ["--ranks", "2"]])
def test_bad_sweeps(case: str, option: list[str], here: Path) -> None:
    text, said = SWEEPS[case]
    Path("a.toml").write_text(text)
    refused(fedmpi("sweep", "a.toml", *option), said, here)


@pytest.mark.parametrize("option", [[], ["--dry-run"], ["--ranks", "2"]])
def test_only_beyond_the_last_run(option: list[str], here: Path) -> None:
    Path("a.toml").write_text("[[grid]]\nseed = [1, 2]")
    found = fedmpi("sweep", "a.toml", "--only", "2", *option)
    refused(found, "--only 2: no such run; a.toml has runs 0 to 1", here)


def test_a_file_of_another_run_is_left_alone(here: Path) -> None:
    assert fedmpi("run", *QUICK, "--out", "a.h5").exit_code == 0
    before = Path("a.h5").read_bytes()
    found = fedmpi("run", *QUICK, "seed=2", "--out", "a.h5")
    assert found.exit_code == 2
    assert "a.h5: holds the run " in found.stderr
    assert Path("a.h5").read_bytes() == before


def test_a_result_leaves_nothing_open_to_a_paper() -> None:
    assert fedmpi("run", *QUICK, "--out", "a.h5").exit_code == 0
    found = fedmpi("run", "a.h5", "paper:topk")
    assert found.exit_code == 2
    assert found.stderr == (
        "paper:topk: wanted settings that leave something open, found a result, a.h5, which has a "
        "value for each\n"
    )


def test_a_file_that_is_no_result_is_left_alone() -> None:
    Path("a.h5").write_text("my thesis")
    found = fedmpi("run", *QUICK, "--out", "a.h5")
    assert found.exit_code == 2
    assert "a.h5: not an HDF5 file" in found.stderr
    assert Path("a.h5").read_text() == "my thesis"


PLACES = {
    "below a file": ("file/results", "a part of the path is a file, no folder"),
    "a name that is too long": (f"{'n' * 300}", "the name is too long"),
    "a file whose lock has too long a name": (f"{'n' * 250}.h5", "the name is too long"),
    "a link that leads nowhere": ("link.h5", "no such file or folder, or a link that leads nowhe"),
    "a folder that is such a link": ("link", "what has that name is no folder"),
    "a circle of links": ("circle.h5", "links lead in a circle"),
    "a pipe": ("pipe.h5", "no plain file; wanted a result (HDF5)"),
    "a device": ("null.h5", "no plain file; wanted a result (HDF5)"),
    "a folder that takes no files": ("/proc/results", "no such file or folder"),
    "an empty file": ("empty.h5", "not an HDF5 file"),
    "a file that is cut off": ("cut.h5", "not an HDF5 file"),
}


@pytest.mark.parametrize("case", PLACES)
@pytest.mark.parametrize("ranks", [(), ("--ranks", "2")], ids=["alone", "with ranks"])
def test_places_that_take_no_result(
    case: str, ranks: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    """It is said before any data are read or ranks are started; and nothing is left behind."""
    for name in ("link", "link.h5"):
        Path(name).symlink_to("nowhere/r.h5")
    Path("circle.h5").symlink_to("circle.h5")
    Path("null.h5").symlink_to("/dev/null")
    os.mkfifo("pipe.h5")
    Path("file").touch()
    Path("empty.h5").touch()
    assert fedmpi("run", *QUICK, "--out", "cut.h5").exit_code == 0
    os.truncate("cut.h5", 5000)
    before = sorted(here.iterdir())
    for module in (engine, job):
        monkeypatch.setattr(module, "Engine", lambda *_: pytest.fail("data were read"))
    monkeypatch.setattr(launch, "start", lambda *_: pytest.fail("ranks were started"))
    out, words = PLACES[case]
    found = fedmpi("run", *QUICK, "--out", out, *ranks)
    assert found.exit_code == 2
    assert words in found.stderr
    assert found.stderr.count("\n") == 1
    assert sorted(here.iterdir()) == before


def test_a_disk_that_becomes_full_in_a_round(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    """It says so, the exit code is 1, and the rounds before are in the result."""
    reserve, calls = os.posix_fallocate, []

    def refuse(file: int, begin: int, length: int) -> None:
        calls.append(length)
        if len(calls) == 3:
            raise OSError(errno.EDQUOT, "")
        reserve(file, begin, length)

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    growth = lambda _, tables: 10**6 * int(tables["rounds"]["round"][0] + 1)  # noqa: E731
    monkeypatch.setattr(record.Record, "_growth", growth)
    words = [word for word in QUICK if "rounds" not in word]
    found = fedmpi("run", *words, "rounds=5", "--out", "a.h5")
    assert found.exit_code == 1
    assert found.stderr.splitlines()[-1] == (
        "a.h5: your disk quota is used up; make room or ask for more or choose another place with "
        "--out"
    )
    with record.open_result(Path("a.h5")) as file:
        assert file.attrs["status"] == record.FAILED
        assert file["rounds"]["round"].tolist() == [0]
    assert sorted(path.name for path in here.iterdir()) == ["a.h5"]
    monkeypatch.setattr(os, "posix_fallocate", reserve)
    assert fedmpi("run", *words, "rounds=5", "--out", "a.h5").exit_code == 0


FULL = """
import errno, os, sys
from fedmpi.__main__ import main
from fedmpi.results.record import Record
def append(self, tables, append=Record.append):
    if tables["rounds"]["round"][0] == 2:
        def refuse(*_): raise OSError(errno.ENOSPC, "")
        os.posix_fallocate = refuse
        self._growth = lambda tables: 1
    append(self, tables)
Record.append = append
main(sys.argv[1:])
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize(
    "words", [["list", "methods"], ["show", "a.h5"], ["sweep", "a.toml", "--count"], ["--help"]]
)
def test_output_that_cannot_be_written(words: list[str], here: Path) -> None:
    """One sentence, whether it is refused in the middle or as the process ends."""
    Path("a.toml").write_text("[[grid]]\nseed = [1, 2]")
    if "a.h5" in words:
        assert fedmpi("run", *QUICK, "--out", "a.h5").exit_code == 0
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fedmpi", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
        )
    assert done.stderr == "standard output: no space is left on the disk; make room\n"
    assert done.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_what_prints_nothing_needs_no_output() -> None:
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-m", "fedmpi", "list", "nonsense"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, timeout=PATIENCE)
    assert done.returncode == 2
    assert b"standard output" not in done.stderr


def test_other_faults_of_the_system_are_no_faults_of_the_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr("fedmpi.terminal.catalogue.show_list", refuse)
    with pytest.raises(OSError, match=rf"Errno {errno.ENOSPC}"):
        fedmpi("list", "methods")


SLASHES = {
    "a result": ["run", *QUICK, "--out", "new.h5/"],
    "a result in upper case": ["run", *QUICK, "--out", "new.HDF5//"],
    "a result that is there": ["show", "a.h5/"],
    "a file that is there": ["sweep", "a.toml/", "--count"],
    "a picture": ["partition", *QUICK, "--plot", "a.png/"],
}


@pytest.mark.parametrize("case", SLASHES)
def test_a_slash_at_the_end_says_folder(case: str, here: Path) -> None:
    Path("a.toml").write_text("[[grid]]\nseed = [1, 2]")
    Path("a.h5").touch()
    found = fedmpi(*SLASHES[case])
    assert found.exit_code == 2
    assert "Wanted a folder that is there, or a file without a slash, found" in found.stderr
    assert sorted(path.name for path in here.iterdir()) == ["a.h5", "a.toml"]


def test_folders_may_end_in_a_slash(here: Path) -> None:
    """One named as a result, too, if it is there."""
    Path("a.h5").mkdir()
    for out in ("new/", "a.h5/"):
        assert fedmpi("run", *QUICK, "--out", out).exit_code == 0
    assert sorted(str(path.parent) for path in results(here) if path.is_file()) == [
        str(here / "a.h5"),
        str(here / "new"),
    ]


def test_ranks_end_together_when_the_disk_is_full(here: Path) -> None:
    """One sentence, once, and no traceback; what was finished is there, and no lock."""
    launcher = launch.find()
    words = [word for word in QUICK if "rounds" not in word]
    program = [sys.executable, "-c", FULL, "run", *words, "rounds=5", "--out", "a.h5"]
    done = subprocess.run(
        launcher.command(2, program),
        env=launcher.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert done.stderr.count("a.h5: no space is left on the disk; make room or choose ") == 1
    assert "Traceback" not in done.stderr
    with record.open_result(Path("a.h5")) as file:
        assert file.attrs["status"] == record.FAILED
        assert file["rounds"]["round"].tolist() == [0, 1]
    assert sorted(path.name for path in here.iterdir()) == ["a.h5"]


@pytest.mark.parametrize("case", ["unknown key", "missing data", "split point", "classes"])
def test_nothing_is_started_for_bad_settings(
    case: str, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    words, said = SETTINGS[case]
    monkeypatch.setattr(launch, "start", lambda *_: pytest.fail("ranks were started"))
    refused(fedmpi("run", *quick(words), "--ranks", "2"), said, here)


def test_no_launcher(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    lost = str(here / "lost")
    monkeypatch.setenv("FEDMPI_MPIEXEC", lost)
    refused(fedmpi("run", *QUICK, "--ranks", "2"), f"{lost} does not run: ", here)


@pytest.mark.parametrize("ranks", [(), ("--ranks", "3")])
def test_ranks_that_a_launcher_does_not_join(
    ranks: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    monkeypatch.setenv("PMI_RANK", "2")
    found = fedmpi("run", *QUICK, *ranks)
    refused(found, "a launcher started at least 3 processes ($PMI_RANK), but MPI does not", here)


def test_srun_whose_tasks_mpi_does_not_join(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    refused(fedmpi("run", *QUICK), "srun started 4 tasks, but MPI does not connect them", here)


@pytest.mark.parametrize(("code", "wanted"), [(0, 0), (2, 2), (1, 1), (137, 1), (-9, 1)])
def test_the_exit_code_of_a_job(
    code: int, wanted: int, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    """What the ranks end with is passed on; a run that they left unfinished has failed."""

    def start(ranks: int, words: Sequence[str]) -> int:
        assert ranks == 2
        assert words == ["run", *QUICK, "--out", "a.h5"]
        if code in (0, 137):
            assert fedmpi("run", *QUICK, "--out", "a.h5").exit_code == 0
        if code == 137:
            with h5py.File("a.h5", "r+") as file:
                file.attrs["status"] = record.RUNNING
        return code

    monkeypatch.setattr(launch, "start", start)
    assert fedmpi("run", *QUICK, "--out", "a.h5", "--ranks", "2").exit_code == wanted
    if code == 137:
        with h5py.File("a.h5") as file:
            assert file.attrs["status"] == record.FAILED


def test_a_run_is_recorded_once() -> None:
    found = fedmpi("run", *QUICK)
    assert found.exit_code == 0
    (path,) = results(Path("results"))
    assert found.stderr.splitlines()[0] == str(path)
    assert found.stderr.splitlines()[-1].startswith("round 2/2  loss ")
    before = path.read_bytes()
    for ranks in ([], ["--ranks", "2"]):
        again = fedmpi("run", *QUICK, *ranks)
        assert again.exit_code == 0
        assert again.stderr == f"{path}: done already\n"
        assert path.read_bytes() == before


def test_a_result_repeats_itself() -> None:
    assert fedmpi("run", *QUICK, "method.name=ssfl", "--out", "first").exit_code == 0
    (first,) = results(Path("first"))
    assert fedmpi("run", str(first), "--out", "second").exit_code == 0
    (second,) = results(Path("second"))
    assert first.name == second.name
    with h5py.File(first) as a, h5py.File(second) as b:
        for name in ("identity", "settings", "partition_sha256", "model_sha256"):
            assert a.attrs[name] == b.attrs[name]
        assert len(a.attrs["model_sha256"]) == 64


def test_a_result_says_what_was_changed_and_by_whose_paper() -> None:
    words = [*QUICK, "paper:qsgd", "momentum=0.5", "threads=1"]
    assert fedmpi("run", *words, "--out", "a.h5").exit_code == 0
    assert fedmpi("run", "a.h5", "--out", "b.h5").exit_code == 0
    for name in ("a.h5", "b.h5"):
        with h5py.File(name) as file:
            changed = json.loads(file.attrs["changed"])
            assert file.attrs["paper"] == "qsgd"
            assert (changed["momentum"], changed["model.hidden"]) == (0.0, [200, 200])
            # The machine's, and the paper's.
            assert changed.keys().isdisjoint(["threads", "method.name", "local_steps"])
            assert json.loads(file.attrs["settings"])["local_steps"] == 1
    found = " ".join(fedmpi("show", "b.h5").stdout.split())
    assert "changed paper:qsgd " in found and "momentum=0.5 (not 0.0)" in found


def test_a_result_of_another_machine_is_repeated_with_this_ones_settings() -> None:
    """Threads, memory and folders of the machine where it ran are not taken, but can be given."""
    own = ("threads=1", "state.memory=7", f"state.folder={Path.cwd()}", "exchange.window=3")
    assert fedmpi("run", *QUICK, *own, "--out", "a.h5").exit_code == 0
    assert fedmpi("run", "a.h5", "state.memory=9", "--out", "b.h5").exit_code == 0
    there, here = record.settings_of(Path("a.h5")), record.settings_of(Path("b.h5"))
    assert (there["threads"], there["state"]["memory"]) == (1, 7)
    assert (here["threads"], here["exchange"]["window"]) == (None, 256)
    assert here["state"] == {"memory": 9, "folder": None}
    with h5py.File("a.h5") as a, h5py.File("b.h5") as b:
        for name in ("identity", "model_sha256"):
            assert a.attrs[name] == b.attrs[name]


def test_a_result_is_known_by_its_bytes() -> None:
    """Whatever its name, and wherever it lies, such as in the folders of Hydra and Hive."""
    assert fedmpi("run", *QUICK, "--out", "lr=0.1/first.HDF5").exit_code == 0
    assert results(Path()) == []
    for name in ("lr=0.1/first.HDF5", "lr=0.1/a result", "b=1.toml"):
        if not Path(name).exists():
            shutil.copy("lr=0.1/first.HDF5", name)
        assert fedmpi("run", name, "--out", "lr=0.1/first.HDF5").stderr == (
            "lr=0.1/first.HDF5: done already\n"
        )
        assert "status" in fedmpi("show", name).stdout


def test_settings_come_through_a_pipe() -> None:
    """Which can be read once: nothing is lost to those who look whether it is a result."""
    reading, writing = os.pipe()
    os.write(writing, b"rouds = 1")
    os.close(writing)
    assert "no setting 'rouds'" in fedmpi("run", f"/dev/fd/{reading}").stderr
    os.close(reading)


def test_a_path_with_an_equals_sign_is_a_file() -> None:
    Path("exp/lr=0.05").mkdir(parents=True)
    found = fedmpi("run", "exp/lr=0.05/run.toml")
    assert found.exit_code == 2
    assert found.stderr.startswith("exp/lr=0.05/run.toml: no such file; wanted a file of settings")
    Path("exp/lr=0.05/run.toml").write_text("rouds = 1")
    assert "no setting 'rouds'" in fedmpi("run", "exp/lr=0.05/run.toml").stderr


def test_an_empty_result_is_not_read_as_empty_settings(here: Path) -> None:
    Path("a.hdf5").touch()
    assert "a.hdf5: not an HDF5 file" in fedmpi("run", "a.hdf5").stderr
    assert not results(here)


def test_a_sweep_wants_a_folder(here: Path) -> None:
    Path("a.toml").write_text("[[grid]]\nseed = [1, 2]")
    for name in ("x.h5", "x.HDF5"):
        for option in ([], ["--dry-run"], ["--ranks", "2"]):
            found = fedmpi("sweep", "a.toml", "--out", name, *option)
            refused(found, f"--out {name}: wanted a folder, because each run has its own", here)
    Path("x.h5").mkdir()
    assert "to do" in fedmpi("sweep", "a.toml", "--out", "x.h5", "--dry-run").stdout


def test_where_results_go(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is one whatever its name; a file without a suffix is none; `~` is the home."""
    monkeypatch.setenv("HOME", str(here / "home"))
    Path("x.h5").mkdir()
    assert fedmpi("run", *QUICK, "--out", "x.h5").exit_code == 0
    assert len(list(Path("x.h5").iterdir())) == 1
    Path("file").touch()
    for name in ("file", "/dev/null", "file/inside"):
        found = fedmpi("run", *QUICK, "--out", name)
        assert found.exit_code == 2
        assert " folder; choose another place with --out\n" in found.stderr
    for command in (["run", *QUICK], ["show"]):
        for name in ("", " "):
            out = ["--out", name] if command[0] == "run" else [name]
            found = fedmpi(*command, *out)
            assert found.exit_code == 2
            assert "Wanted a path, found nothing." in found.stderr
    assert fedmpi("run", *QUICK, "--out=~/deep").exit_code == 0
    assert len(list(Path("home/deep").iterdir())) == 1
    assert not Path("~").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--lr=0.1"], "No such option: --lr. A setting is written lr=VALUE."),
        (["partition", "--method.name", "x"], "No such option: --method.name. A setting is writt"),
        (["run", "--fast"], "No such option"),
        (
            ["run", "lr", "=", "0.1"],
            "lr: no such file; wanted a file of settings (TOML), or key",
        ),
        (["rn"], "Did you mean 'run'?"),
        (
            ["agent", "method=topk"],
            "wanted a table; its name is set by method.name=topk",
        ),
    ],
)
def test_what_was_probably_meant(words: list[str], said: str) -> None:
    found = fedmpi(*words)
    assert found.exit_code == 2
    assert said in found.stderr


def test_a_folder_is_listed() -> None:
    assert fedmpi("run", *QUICK, "--out", "a").exit_code == 0
    found = fedmpi("show", "a")
    assert found.exit_code == 0
    assert "done" in found.stdout
    Path("b").mkdir()
    assert fedmpi("show", "b").exit_code == 2


def test_words_change_a_file() -> None:
    Path("a.toml").write_text("rounds = 7\nmethod = { name = 'topk', sparsity = 0.5 }\n")
    words = [word for word in QUICK if not word.startswith("rounds")]
    assert fedmpi("run", "a.toml", *words, "method.sparsity=0.75", "rounds=1").exit_code == 0
    (path,) = results(Path("results"))
    assert path.name.startswith("topk-")
    settings = record.settings_of(path)
    method = {"name": "topk", "sparsity": 0.75, "spans": "whole"}
    assert settings["method"] == method
    assert settings["rounds"] == 1


ON_RANKS = {
    "unknown key, bad value": (["rouds=3", "lr=0"], "no setting 'rouds'"),
    "split point": (["method.name=splitfed", "method.cut=x"], "method.cut = 'x': the model has no"),
    "missing GPU": (["device=cuda:99"], "device = 'cuda:99': there are "),
}


@pytest.mark.parametrize("case", ON_RANKS)
def test_ranks_refuse_together(case: str, here: Path) -> None:
    """No rank hangs, one of them speaks, and nothing is left."""
    words, said = ON_RANKS[case]
    launcher = launch.find()
    program = [sys.executable, "-m", "fedmpi", "run", *words, "--out", "results"]
    done = subprocess.run(
        launcher.command(3, program),
        env=launcher.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    text = done.stdout + done.stderr
    assert done.returncode == 2, text
    assert text.count(said) == 1
    assert "Traceback" not in text
    assert not results(here)


def test_home_is_where_the_users_list_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it is set; a user in a container may be in no list."""
    monkeypatch.setenv("HOME", "/my/home")
    assert fedmpi("list", "exchanges").exit_code == 0
    assert os.environ["HOME"] == "/my/home"
    for unset in (lambda: monkeypatch.delenv("HOME"), lambda: monkeypatch.setenv("HOME", "")):
        unset()
        assert fedmpi("list", "exchanges").exit_code == 0
        assert Path(os.environ["HOME"]).is_absolute()
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda _: {}[12345])
    assert fedmpi("list", "exchanges").exit_code == 0
    assert os.environ["HOME"] == tempfile.gettempdir()


def test_ranks_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `env -i` has it; Open MPI would not even say its version."""
    few = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    command = [sys.executable, "-m", "fedmpi", "doctor", "mpi"]
    room = Path(__file__).parent.parent
    done = subprocess.run(command, env=few, cwd=room, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_closed_streams(here: Path) -> None:
    """As some daemons start their children. No file of a run may be in the place of a stream."""
    room = Path(__file__).parent.parent
    look = "import os; open('said', 'w').write(' '.join(os.readlink(f'/proc/self/fd/{n}')"
    look += " for n in range(3)))"
    program = (
        "import os, sys; from fedmpi.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        f'os.execl(sys.executable, sys.executable, "-c", "{look}")\n'
    )
    words = [sys.executable, "-c", program, "run", *QUICK, "--out", "run.h5"]
    command = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *words]
    variables = launch.plain(os.environ) | {"PYTHONPATH": str(room)}
    subprocess.run(command, env=variables, timeout=PATIENCE)
    with record.open_result(here / "run.h5") as file:
        assert file.attrs["status"] == record.DONE
    if Path("/proc/self/fd").is_dir():
        inherited = (here / "said").read_text()
        assert inherited == " ".join([os.devnull] * 3)
