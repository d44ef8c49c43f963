"""A writer, three readers and a second job on one result: `python -m tests.stress --help`.

They run on a file system that has no locks: a library that is loaded before all others refuses
them. The readers compare every row that they find with what the writer writes; the second job wants
to do the same run, and to mark it as failed. The suite has a small share of it.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np

from tests import until

LOCKLESS = """
#include <errno.h>
#include <stdarg.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

int flock(int file, int operation) { errno = ENOSYS; return -1; }

static int refuse(int file, int command, void *argument)
{
    switch (command) {
    case F_SETLK: case F_SETLKW: case F_GETLK:
    case F_OFD_SETLK: case F_OFD_SETLKW: case F_OFD_GETLK:
        errno = ENOLCK;
        return -1;
    }
    return syscall(SYS_fcntl, file, command, argument);
}

#define DEFINE(name)                                        \\
    int name(int file, int command, ...)                    \\
    {                                                       \\
        va_list rest;                                       \\
        va_start(rest, command);                            \\
        void *argument = va_arg(rest, void *);              \\
        va_end(rest);                                       \\
        return refuse(file, command, argument);             \\
    }

DEFINE(fcntl)
DEFINE(fcntl64)
"""
"""A library in which every lock of a file is refused, as where the file system has none."""
ROOM = Path(__file__).parents[1]
WORDS = (
    *("data.name=synthetic", "data.samples=200", "data.test_samples=40", "data.shape=[1,4,4]"),
    *("model.hidden=[8]", "clients=4", "rounds=99999"),
)
"""The run that both jobs want to do."""
READERS = 3
MEETINGS = 5
"""How often the writer waits until the second job has tried again."""


def lockless(folder: Path) -> Path | None:
    """Makes the library; returns its file, or None if there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "lockless.so"
    words = [compiler, "-shared", "-fPIC", "-D_GNU_SOURCE", "-x", "c", "-", "-o", str(library)]
    subprocess.run(words, input=LOCKLESS, text=True, check=True)
    return library


def stress(folder: Path, rounds: int, library: Path | None) -> dict[str, int]:
    """One run of it in an empty folder; returns what was counted.

    Returns:
        `rounds` in the end, `rows` that readers compared, `wrong` ones of these and in the end,
        `torn` readings of which a reader could make nothing, `refused` attempts of the second job,
        and `faults`: whatever else any of them ended with.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOM), "OMP_NUM_THREADS": "1"}
    environment["HDF5_USE_FILE_LOCKING"] = "FALSE"
    if library is not None:
        environment["LD_PRELOAD"] = str(library)
    parts = [("write", str(rounds)), *[("read", str(rounds))] * READERS, ("rival", "0")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.stress", "--part", part, number, str(folder)],
            **{"cwd": ROOM, "env": environment, "text": True},
            stdout=subprocess.PIPE,
        )
        for part, number in parts
    ]
    found: Counter[str] = Counter()
    for process in processes:
        out, _ = process.communicate()
        found["faults"] += process.returncode != 0
        if process.returncode == 0:
            found.update(json.loads(out.splitlines()[-1]))
    found["faults"] += sorted(path.name for path in folder.iterdir()) != ["r.h5", "written"]
    end = _compared(folder / "r.h5", rounds)
    found["wrong"] += end["wrong"] + (end["status"] != "done")
    return {"rounds": end["rounds"], **found}


def _rows(t: int) -> dict[str, Any]:
    from tests.results.test_record import rows

    return rows(t, t / 10_000)


def _compared(path: Path, rounds: int) -> dict[str, Any]:
    """Compares all that is in a result with what was written."""
    from fedmpi.results import record

    about, found = record.content(path)
    listed = len(found["rounds"])
    rows = wrong = 0
    whole = _everything(rounds)
    for name, wanted in whole.items():
        count = len(wanted) // rounds
        held = found[name][: listed * count]
        rows += listed * count
        wrong += listed * count - len(held)
        wrong += int((held != wanted[: len(held)]).sum()) if len(held) else 0
    return {"status": about["status"], "rounds": listed, "rows": rows, "wrong": wrong}


_made: dict[int, dict[str, np.ndarray]] = {}


def _everything(rounds: int) -> dict[str, np.ndarray]:
    """Returns the tables after so many rounds, as bytes that can be compared, [rows]."""
    if rounds not in _made:
        every = [_rows(t) for t in range(rounds)]
        _made[rounds] = {n: np.concatenate([part[n] for part in every]) for n in every[0]}
        for table in _made[rounds].values():  # NaN is not equal to itself
            for name in table.dtype.names:
                if table.dtype[name].kind == "f":
                    np.nan_to_num(table[name], copy=False)
    return _made[rounds]


def _write(rounds: int, folder: Path) -> dict[str, int]:
    from fedmpi import loading
    from fedmpi.results import record, tables

    tree: dict[str, Any] = {}
    loading.override(tree, WORDS)
    settings = loading.load(tree)
    held = record.begin(folder / "r.h5")
    file = record.Record(held, settings.tree(), settings.identity(), {}, tables.TABLES)
    for t in range(rounds):
        if t % (rounds // MEETINGS) == 1:  # neither is to be done before the other has begun
            before = _met(folder)
            assert until(lambda: _met(folder) > before)  # noqa: B023
        file.append({name: _numbers(rows) for name, rows in _rows(t).items()})
    file.close(record.DONE)
    (folder / "written").touch()
    return {}


def _met(folder: Path) -> int:
    """How often the second job has tried so far."""
    tried = folder.with_suffix(".tried")
    return tried.stat().st_size if tried.exists() else 0


def _numbers(rows: np.ndarray) -> np.ndarray:
    for name in rows.dtype.names or ():
        if rows.dtype[name].kind == "f":
            np.nan_to_num(rows[name], copy=False)
    return rows


def _read(rounds: int, folder: Path) -> dict[str, int]:
    from fedmpi.results import record

    found: Counter[str] = Counter()
    _everything(rounds)
    while not (folder / "written").exists():
        if (folder / "r.h5").exists():
            try:
                one = _compared(folder / "r.h5", rounds)
            except record.RecordError:
                found["torn"] += 1
            else:
                found.update({name: one[name] for name in ("rows", "wrong")}, reads=1)
    return dict(found)


def _rival(_: int, folder: Path) -> dict[str, int]:
    from click.testing import CliRunner

    from fedmpi.__main__ import main
    from fedmpi.results import record

    found: Counter[str] = Counter()
    while not (folder / "written").exists():
        if not (folder / "r.h5").exists():
            continue
        record.mark_failed(folder / "r.h5")
        said = CliRunner().invoke(main, ["run", *WORDS, "--out", str(folder / "r.h5")])
        if said.exit_code == 2 and "another job is writing it" in said.stderr:
            found["refused"] += 1
            with folder.with_suffix(".tried").open("a") as tried:
                tried.write(".")
        elif said.exit_code or "done already" not in said.stderr:
            found["faults"] += 1
            print(said.output, said.exception, file=sys.stderr)
    return dict(found)


@click.command()
@click.option("--runs", default=20, show_default=True, help="How many results.")
@click.option("--rounds", default=1500, show_default=True, help="Rounds of each.")
@click.option("--part", type=(str, int, click.Path(path_type=Path)), hidden=True)
def main(runs: int, rounds: int, part: tuple[str, int, Path] | None) -> None:
    """Write results while others read and others want to replace them; count wrong rows."""
    if part is not None:
        work = {"write": _write, "read": _read, "rival": _rival}[part[0]]
        print(json.dumps(work(part[1], part[2])))
        return
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as top:
        library = lockless(Path(top))
        for run in range(runs):
            folder = Path(top) / str(run)
            folder.mkdir()
            found = stress(folder, rounds, library)
            print(run, found, flush=True)
            total.update(found)
    print("all", dict(total), "without locks" if library else "no compiler: with locks")
    sys.exit(total["wrong"] + total["faults"] > 0)


if __name__ == "__main__":
    main()
