"""A wheel holds all of `fedmpi`, and works where there is no checkout."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import h5py
import pytest
from click.testing import CliRunner

from fedmpi.__main__ import main
from tests import PATIENCE
from tests.plain import FAMILIES, member

# Looked for, not imported: setuptools would change what others import.
lost = [name for name in ("pip", "setuptools") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(lost), reason=f"no {' and '.join(lost)} beside this Python")

ROOT = Path(__file__).parents[2]
BASE = """[base]
rounds = 1
clients = 2
data = { name = "synthetic", samples = 100, test_samples = 20, shape = [1, 8, 8] }
model.hidden = [12, 8]
"""
PROGRAM = """
import atexit, sys
from fedmpi.__main__ import main

def say():
    ours = (module for name, module in sys.modules.items() if name.partition(".")[0] == "fedmpi")
    files = filter(None, (getattr(module, "__file__", None) for module in ours))
    with open("modules", "w") as file:
        print(*files, file=file, sep="\\n")

atexit.register(say)
main()
"""
"""The command line, which leaves behind from where it was imported."""


def pip(*words: str | Path) -> None:
    """Runs pip, which needs no network for what it is asked here."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy of the tree, because a build leaves files in it."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(
        ROOT / "fedmpi", folder / "tree" / "fedmpi", ignore=shutil.ignore_patterns("__pycache__")
    )
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder / "tree")
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", folder, folder / "tree")
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """Where the wheel is installed, and nothing else."""
    folder = wheel.parent / "installed"
    pip("install", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


def elsewhere(installed: Path, here: Path, *words: str | Path) -> str:
    """What a command says in another folder, where Python finds the installed package first."""
    environment = os.environ | {"PYTHONPATH": str(installed), "COLUMNS": "100"}
    given = {"capture_output": True, "text": True, "timeout": PATIENCE}
    done = subprocess.run(words, cwd=here, env=environment, **given)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_all_modules_are_in_it_and_nothing_else(wheel: Path) -> None:
    with ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    paths = (path for path in (ROOT / "fedmpi").rglob("*") if path.is_file())
    assert names == {
        path.relative_to(ROOT).as_posix() for path in paths if path.parent.name != "__pycache__"
    }


def test_its_command_lists_what_the_tree_has(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where both find the same data sets, or none
    for table in ("methods", "models", "data", "partitions"):
        found = elsewhere(installed, tmp_path, installed / "bin" / "fedmpi", "list", table)
        wanted = CliRunner(env={"COLUMNS": "100"}).invoke(main, ["list", table])
        assert found == wanted.stdout != ""


def test_a_method_of_each_family_runs(installed: Path, tmp_path: Path) -> None:
    """In one process, and no module of it is of the checkout."""
    grids = []
    for family in FAMILIES:
        pairs = (word.split("=") for word in member(family))
        lines = (
            f"{key} = [{value if value[0].isdigit() else repr(value)}]\n" for key, value in pairs
        )
        grids.append("[[grid]]\n" + "".join(lines))
    (tmp_path / "sweep.toml").write_text("\n".join([BASE, *grids]))
    program = (sys.executable, "-c", PROGRAM, "sweep", "sweep.toml", "--out", "results")
    elsewhere(installed, tmp_path, *program)
    found = []
    for path in (tmp_path / "results").glob("*.h5"):
        with h5py.File(path) as file:
            found.append((file.attrs["status"], len(file["rounds"]) > 0))
    assert found == [("done", True)] * len(FAMILIES)
    modules = (tmp_path / "modules").read_text().splitlines()
    assert len(modules) > len(FAMILIES)
    assert all(Path(module).is_relative_to(installed) for module in modules)
