"""`python -m tests`: the whole suite on 1, 2, 3 and 4 ranks, and a plain count at the end.

After each rank count come the files that took longest.

Tests for one rank are dealt to several processes, each of them a rank alone. For more, one process
per rank runs pytest. The tests of a rank count are chosen by mpi-pytest's marks. If one rank fails,
the job is aborted (see `conftest`), so that a failure cannot hang the others.
"""

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from fedmpi.provenance import cores
from fedmpi.runs import launch
from tests import KEPT

LIMIT = 4200
"""Seconds for one rank count; a job that takes longer hangs."""
FILES = 15
"""Files whose seconds are printed, for each rank count."""
CROWD = 8
"""Processes for the tests for one rank, at most: each imports torch, and collects all tests."""


def command(ranks: int, report: Path) -> list[str]:
    """The command line that runs the tests meant for so many ranks."""
    words = [sys.executable, "-m", "pytest", "-m", "parallel[match]", f"--junitxml={report}"]
    if ranks == 1:
        # Who has done his share takes over tests of others.
        return [*words, f"--numprocesses={min(cores(), CROWD)}", "--dist=worksteal"]
    return launch.find().command(ranks, [*words, "-p", "no:cacheprovider", *on_ranks()])


def on_ranks() -> list[str]:
    """Files with tests for several ranks; each rank would have to import all others, too."""
    files = sorted(Path(__file__).parent.rglob("test_*.py"))
    return [str(path) for path in files if "mark.parallel" in path.read_text()]


def count(report: Path) -> Counter[str]:
    """What a report says: how many tests passed, failed, were skipped."""
    found: Counter[str] = Counter()
    if report.exists():
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            number = {
                key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")
            }
            failed = number["failures"] + number["errors"]
            found["failed"] += failed
            found["skipped"] += number["skipped"]
            found["passed"] += number["tests"] - failed - number["skipped"]
    return found


def slowest(report: Path) -> list[tuple[float, str]]:
    """The test files that took longest, by a report: seconds of all their tests, and the file."""
    seconds: Counter[str] = Counter()
    if report.exists():
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            parts = case.get("classname", "").split(".")
            file = "/".join(part for part in parts if part.islower())  # a class is no file
            seconds[file] += float(case.get("time", 0))
    return [(taken, file) for file, taken in seconds.most_common(FILES)]


def main() -> int:
    """Runs everything, whatever fails on the way; returns the exit code."""
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        # Torch takes a thread for each core, in every process, until an engine says how many.
        environment = launch.find().environment() | {KEPT: folder, "OMP_NUM_THREADS": "1"}
        # Without byte code each of the many processes would compile all modules anew.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for ranks in (1, 2, 3, 4):
            print(f"--- {ranks} rank{'s' * (ranks > 1)}", flush=True)
            # Every rank writes its own report; rank 0's is counted.
            report = Path(folder) / f"{ranks}.xml"
            try:
                done = subprocess.run(command(ranks, report), env=environment, timeout=LIMIT)
                code = done.returncode
            except subprocess.TimeoutExpired:
                print(f"no end after {LIMIT} s")
                code = 1
            found = count(report)
            for taken, file in slowest(report):
                print(f"{taken:8.1f} s  {file}")
            # An aborted job leaves no report, or an incomplete one.
            if code and not found["failed"]:
                found["failed"] += 1
            total += found
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return 1 if total["failed"] or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
